"""What an objective is: (x, context) -> gradient on x, and the registry that finds one by name.

Every score-distillation method moves a clean sample x by

    g = w(t) * (target - reference)

where the target is the teacher's guided prediction at x_t and the reference is what the method subtracts: the noise
itself (SDS), a critic (VSD), the teacher at another time (CDS, ISM) or for another prompt (CSD, DDS).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import ConfigError

Weighting = Literal["sigma_squared", "uniform", "sigma_ratio"]


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective may know besides x.

    Args:
        teacher: the frozen diffusion model.
        positive: the prompts, B rows.
        negative: the negative prompts, B rows or 1.
        camera: poses [B, 12], or `None` for a teacher that takes none.
        step: steps done, >= 0.
        total: steps of the run, >= 1.
        generator: source of randomness, on the CPU.
    """

    teacher: Teacher
    positive: Condition
    negative: Condition
    camera: Tensor | None
    step: int
    total: int
    generator: torch.Generator

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.total

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of the shape of x, drawn on the CPU so that a seed means one thing everywhere."""
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)


@dataclass(frozen=True)
class Gradient:
    """What an objective returns.

    Args:
        grad: dL/dx before the division by the batch size, [B, C, h, w], detached.
        target: the clean sample the teacher would rather see, [B, C, h, w], for showing.
        diagnostics: numbers for the log.
    """

    grad: Tensor
    target: Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)


def surrogate_loss(x: Tensor, grad: Tensor) -> Tensor:
    """A loss whose gradient is the given one: L = 1/2 sum ||x - sg(x - g)||^2 / B, so dL/dx = g / B.

    Args:
        x: [B, ...], with a graph.
        grad: [B, ...], detached.
    """
    return 0.5 * (x - (x - grad).detach()).square().sum() / x.shape[0]


def weight(schedule: NoiseSchedule, t: Tensor, kind: Weighting) -> Tensor:
    """w(t) on a difference of noise predictions, [B, 1, 1, 1].

    Args:
        schedule: alpha(t) and sigma(t).
        t: [B] in [0, 1].
        kind: `sigma_squared`: sigma^2 (DreamFusion); `uniform`: 1 (SJC); `sigma_ratio`: sigma / alpha, which makes
            the gradient x - x0(x_t), the step to the teacher's clean image, whatever the noise level.

    Raises:
        ConfigError: another kind.
    """
    if kind == "sigma_squared":
        w = schedule.sigma(t).square()
    elif kind == "sigma_ratio":
        w = schedule.sigma_ratio(t)
    elif kind == "uniform":
        w = torch.ones_like(t)
    else:
        raise ConfigError(f"The weighting {kind!r} is not known.", "Use sigma_squared, uniform or sigma_ratio.")
    return w.float()[:, None, None, None]


@dataclass(frozen=True)
class TimestepSchedule:
    """Which noise levels a run visits.

    At progress p in [0, 1] the level is drawn from U[t(p) - jitter, t(p) + jitter], clipped to [t_min, t_max], with
    t(p) falling along `level`. A constant `level` of 0.5 with jitter 0.48 is the classic U[0.02, 0.98].
    """

    level: Schedule = field(default_factory=lambda: Schedule(0.0, 0.98, 0.08, 1.0))
    """Centre of the noise level t over the run."""
    jitter: float = 0.02
    """Half width of the range that a step draws from."""
    t_min: float = 0.02
    """Smallest noise level."""
    t_max: float = 0.98
    """Largest noise level."""

    def __post_init__(self) -> None:
        if not 0 < self.t_min <= self.t_max < 1:
            raise ConfigError(f"Noise levels from {self.t_min} to {self.t_max} make no range inside (0, 1).",
                              "Use 0 < t_min <= t_max < 1.")  # fmt: skip
        if not 0 <= self.jitter <= 1:
            raise ConfigError(f"A jitter of {self.jitter} is not in [0, 1].", "Use 0.02, or 0 for none.")

    def sample(self, count: int, context: ObjectiveContext) -> Tensor:
        """Noise levels of one step, [count] on the teacher's device, stratified over the batch."""
        strata = (torch.arange(count) + torch.rand(count, generator=context.generator)) / count
        order = torch.randperm(count, generator=context.generator)
        centre = self.level.at(context.progress, context.total)
        t = centre + self.jitter * (2 * strata[order] - 1)
        return t.clamp(self.t_min, self.t_max).to(context.teacher.device)


class Objective(ABC):
    """A score-distillation method: pure mathematics on x, knowing no scene, optimiser or file."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, x: Tensor, context: ObjectiveContext) -> Gradient:
        """The gradient that moves clean samples x [B, C, h, w] the way the teacher wants."""


_REGISTRY: dict[str, type[Objective]] = {}
Kind = TypeVar("Kind", bound=type[Objective])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: make an objective known by a name.

    Raises:
        ConfigError: the name is taken.
    """

    def add(kind: Kind) -> Kind:
        if name in _REGISTRY:
            raise ConfigError(f"Two objectives are called {name!r}.", "Give one another name.")
        kind.name = name
        _REGISTRY[name] = kind
        return kind

    return add


def objective_class(name: str) -> type[Objective]:
    """The objective of a name.

    Raises:
        ConfigError: there is none; the message lists those that are.
    """
    if name not in _REGISTRY:
        near = get_close_matches(name, _REGISTRY, n=1)
        known = ", ".join(sorted(_REGISTRY))
        raise ConfigError(
            f"The objective {name!r} is not known.", f"Known: {known}." + (f" Did you mean {near[0]}?" if near else "")
        )
    return _REGISTRY[name]


def objective_names() -> list[str]:
    """Names of all registered objectives, sorted."""
    return sorted(_REGISTRY)
