"""What every scene that an optimiser can change has in common: parameters by name, an Adam for each, exact state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.rendering import BackgroundMode, Rendering, background_colors


@dataclass(frozen=True)
class Moment:
    """When in a run a view is rendered for training.

    Args:
        progress: how much of the run is done, 0 to 1.
        total: steps of the run; schedules in steps need it.
        generator: the only source of randomness of the step.
    """

    progress: float
    total: int
    generator: torch.Generator

    def value(self, schedule: Schedule) -> float:
        """The schedule's value now."""
        return schedule.at(self.progress, self.total)


class Change(Protocol):
    """What an upkeep did in a step."""

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        ...


class Upkeep(Protocol):
    """What changes a scene besides its optimisers: Gaussians come and go, a grid remembers where something is."""

    def before_backward(self, rendering: Rendering) -> None:
        """Called between rendering and the backward pass."""
        ...

    def after_step(self, scene: Any, rendering: Rendering, step: int, total_steps: int) -> Change:
        """Called after the optimisers' step."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what it does next, flat."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned."""
        ...


class NoChange:
    """Nothing was done."""

    metrics: ClassVar[dict[str, float]] = {}


class NoUpkeep:
    """For scenes that only their optimisers change."""

    def before_backward(self, rendering: Rendering) -> None:
        """Nothing to prepare."""

    def after_step(self, scene: Any, rendering: Rendering, step: int, total_steps: int) -> NoChange:
        """Nothing to do."""
        return NoChange()

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to put back."""


class TrainableScene(ABC):
    """A scene with parameters that can be rendered, trained, saved and loaded exactly.

    `config` has `background`, `adam_betas` and `adam_epsilon`; a subclass adds what its parameters are.
    """

    config: Any
    optimizers: dict[str, torch.optim.Adam]

    @abstractmethod
    def parameters_dict(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name (a new dict; the parameters are the scene's own)."""

    @abstractmethod
    def rate(self, name: str) -> Schedule:
        """Learning rate of a parameter."""

    @abstractmethod
    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Render from B cameras over [3] or [B, 3] background colours (the scene's own by default)."""

    def render_training(self, cameras: Camera, background: Tensor | None, moment: Moment) -> Rendering:
        """Render for a training step, where a scene may draw samples at random or vary its shading."""
        return self.render(cameras, background)

    @abstractmethod
    def penalties(self, rendering: Rendering, moment: Moment) -> dict[str, Tensor]:
        """The penalties of the config, each times its weight, for adding to a loss. Weights of 0 are left out."""

    def state(self) -> dict[str, Tensor]:
        """A copy of all that is needed to render or continue, by name: the parameters, and what a kind adds."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters_dict().items()}

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned, exactly. Optimisers are dropped: make them again.

        Raises:
            CheckpointError: the state is incomplete, misshapen, not finite or of another kind of scene.
        """

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """A copy of the scene on `device`, without optimisers."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters_dict().values())).device

    def backgrounds(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """[n, 3] background colours in the mode of the config; random needs the generator, else it is gray.

        `None` where the scene learns what is behind it.
        """
        mode: BackgroundMode = self.config.background
        return background_colors(mode, n, generator, self.device)

    def make_optimizers(self) -> dict[str, torch.optim.Adam]:
        """One Adam a parameter, at the rates of the run's start; the scene remembers them.

        Returns:
            The optimisers by parameter name (also `scene.optimizers`), so that density control can edit each.
        """
        self.optimizers = {
            name: torch.optim.Adam(
                [parameter],
                lr=self.rate(name).at(0.0, 1),
                betas=self.config.adam_betas,
                eps=self.config.adam_epsilon,
            )
            for name, parameter in self.parameters_dict().items()
        }
        return self.optimizers

    def set_learning_rates(self, progress: float, total_steps: int | None = None) -> dict[str, float]:
        """Move every learning rate along its schedule.

        Args:
            progress: how much of the run is done, 0 to 1.
            total_steps: the length of the run; needed by schedules in steps.

        Returns:
            The rates by parameter name.
        """
        rates = {name: self.rate(name).at(progress, total_steps) for name in self.optimizers}
        for name, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = rates[name]
        return rates

    def optimizer_state(self) -> dict[str, Tensor]:
        """A copy of the optimisers' moments and step counts, flat: "<parameter>.<quantity>"."""
        parameters = self.parameters_dict()
        tensors: dict[str, Tensor] = {}
        for name, optimizer in self.optimizers.items():
            for quantity, value in optimizer.state.get(parameters[name], {}).items():
                tensors[f"{name}.{quantity}"] = value.detach().clone()
        return tensors

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `optimizer_state` returned; `make_optimizers` comes first.

        Args:
            tensors: the flat state.

        Raises:
            CheckpointError: it belongs to other parameters or another N.
        """
        parameters = self.parameters_dict()
        for name, optimizer in self.optimizers.items():
            parameter = parameters[name]
            prefix = f"{name}."
            own = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
            for quantity, value in own.items():
                if value.ndim > 0 and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"The optimiser's {prefix}{quantity} has shape {tuple(value.shape)}, the scene's "
                        f"{name} {tuple(parameter.shape)}.",
                        "The checkpoint is of another scene: use an earlier one.",
                    )
            if own:
                optimizer.state[parameter] = {key: value.detach().clone() for key, value in own.items()}


def check_state(kind: str, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a state that is not of a scene.

    Args:
        kind: of scene, for the message.
        state: tensors by name.
        shapes: what they must be.

    Raises:
        CheckpointError: a tensor is missing, too many, misshapen, or not finite.
    """
    if set(state) != set(shapes):
        raise CheckpointError(
            f"A {kind} of this configuration has {', '.join(sorted(shapes))}, and this state has "
            f"{', '.join(sorted(state)) or 'nothing'}.",
            "Load it with the configuration it was made with.",
        )
    for name, shape in shapes.items():
        if tuple(state[name].shape) != tuple(shape):
            raise CheckpointError(
                f"The state's {name} has shape {tuple(state[name].shape)}, not {tuple(shape)}.",
                "Load it with the configuration it was made with.",
            )
        if not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"The state's {name} holds values that are not finite.", "Use an earlier checkpoint.")
