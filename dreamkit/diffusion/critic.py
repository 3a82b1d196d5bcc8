"""A critic: the trainable score of what the generator makes now.

A frozen teacher knows what pictures look like; a critic learns what the generator's look like, from the generator's
own samples, and an objective moves the generator by the difference. It starts as the teacher: low-rank adapters on its
attention (LoRA, Hu et al., arXiv 2106.09685), which share the frozen weights, or a full copy.
"""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.schedule import Prediction
from dreamkit.diffusion.teacher import POSE_WIDTH, Query
from dreamkit.errors import CheckpointError, ConfigError, TeacherError

CriticKind = Literal["lora", "copy"]
ADAPTER = "critic"
_ATTENTION = re.compile(r"(^|\.)to_(q|k|v|out)(\.0)?$")


@dataclass(frozen=True)
class CriticConfig:
    """How a critic is made and trained."""

    kind: CriticKind = "lora"
    """lora: adapters on the teacher's attention; copy: all weights, a second time."""
    rank: int = 8
    """Rank of the adapters, at least 1."""
    rate: Schedule = field(default_factory=lambda: Schedule.constant(1e-4))
    """AdamW's learning rate over the run, above 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay, at least 0."""
    updates: int = 1
    """Training steps of the critic for each step of the generator, at least 1."""
    camera_dropout: float = 0.1
    """Share of the samples that are shown without their camera, 0 to 1."""

    def __post_init__(self) -> None:
        wanted = {
            "kind": (self.kind in get_args(CriticKind), "lora or copy"),
            "rank": (self.rank >= 1, "at least 1"),
            "rate": (
                min(self.rate.start_value, self.rate.end_value) > 0
                and (self.rate.is_fractional or self.rate.start_value == self.rate.end_value),
                "a number above 0, or a schedule of such with bounds from 0 to 1, fractions of the run",
            ),
            "weight_decay": (self.weight_decay >= 0, "a number >= 0"),
            "updates": (self.updates >= 1, "at least 1"),
            "camera_dropout": (0 <= self.camera_dropout <= 1, "0 to 1"),
        }
        for name, (holds, hint) in wanted.items():
            if not holds:
                raise ConfigError(f"The critic's {name} is {getattr(self, name)}.", f"Use {hint}.")


class Critic(ABC):
    """The score of what the generator makes now."""

    @property
    @abstractmethod
    def calls(self) -> int:
        """Samples that went through it so far."""

    @abstractmethod
    def predict_all(self, queries: Sequence[Query]) -> list[Prediction]:
        """What it believes about several batches, without gradients; a query without a camera asks about all views."""

    @abstractmethod
    def update(
        self,
        x: Tensor,  # [B, C, h, w]
        condition: Condition,
        pose: Tensor | None,  # [B, 12]
        generator: torch.Generator,
        progress: float = 0.0,
    ) -> dict[str, float]:
        """Learn from what the generator just made.

        Args:
            x: clean samples, [B, C, h, w], detached.
            condition: their prompts, B rows or 1.
            pose: where they were seen from, [B, 12].
            generator: source of noise and levels, on the CPU.
            progress: share of the run that is done, for the learning rate.

        Returns:
            Numbers for the log.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat."""

    @abstractmethod
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: it belongs to another critic.
        """


class NetworkCritic(Critic):
    """A critic on a teacher's own network.

    The pose goes where the network takes one; a network that takes none gets it as a vector added to its time
    embedding (ProlificDreamer, arXiv 2305.16213), which starts at zero. So does one that could take it, when the run
    keeps the teacher from knowing the camera: a critic that knew from the start what each side looks like would push
    the generator away from just that.

    Args:
        teacher: whose score the critic starts from.
        config: how it is made and trained.
        seed: seed of its initial weights.
        native_camera: whether the pose goes where the network takes one, if it does.
    """

    def __init__(
        self, teacher: NetworkTeacher, config: CriticConfig, seed: int = 0, native_camera: bool = True
    ) -> None:
        self.config = config
        # The same model under another name: what it is asked goes through the adapters or the copy.
        self._model = copy.copy(teacher)
        self._model.calls = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            native = native_camera and teacher.supports_camera
            self._pose = None if native else self._embed_poses(teacher)
            parameters = self._adapt(teacher) if config.kind == "lora" else self._copy(teacher)
        self._parameters: dict[str, nn.Parameter] = parameters
        if self._pose is not None:
            self._parameters |= {f"pose.{name}": value for name, value in self._pose.named_parameters()}
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()), lr=1.0, weight_decay=config.weight_decay, foreach=False
        )

    @property
    def calls(self) -> int:
        """Samples that went through it so far."""
        return self._model.calls

    @property
    def trainable_bytes(self) -> int:
        """Memory of the weights that are the critic's own."""
        return sum(value.numel() * value.element_size() for value in self._parameters.values())

    def predict_all(self, queries: Sequence[Query]) -> list[Prediction]:
        """What it believes about several batches, without gradients."""
        return self._model.predict_all(queries)

    def update(
        self, x: Tensor, condition: Condition, pose: Tensor | None, generator: torch.Generator, progress: float = 0.0
    ) -> dict[str, float]:
        """Take `updates` steps on ||E_phi(x_t, t, y, camera) - e||^2 (in the teacher's own parameterisation)."""
        kind, losses = self._model.prediction_type, []
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.rate.at(progress)
        for _ in range(self.config.updates):
            t = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
            eps = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            kept = torch.rand(len(x), 1, generator=generator) >= self.config.camera_dropout
            camera = None if pose is None else pose * kept.to(pose)
            x_t = self._model.schedule.add_noise(x, eps, t)
            prediction = self._model.predict_all([Query(x_t, t, condition, camera)], differentiable=True)[0]
            truth = Prediction(eps, x, prediction.alpha, prediction.sigma)
            loss = functional.mse_loss(getattr(prediction, kind), getattr(truth, kind))
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return {"critic_loss": sum(losses) / len(losses)}

    def state(self) -> dict[str, Tensor]:
        """Weights and AdamW's moments."""
        tensors = {f"weight/{name}": value.detach().clone() for name, value in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach().clone()
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: it belongs to another critic.
        """
        weights = {key.removeprefix("weight/"): value for key, value in tensors.items() if key.startswith("weight/")}
        shapes = {name: value.shape for name, value in self._parameters.items()}
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise CheckpointError(
                "The checkpoint's critic is of another teacher, kind or rank.", "Is it another run's?"
            )
        self._optimizer.state.clear()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
                moments = {key: tensors.get(f"{key}/{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                if all(value is not None for value in moments.values()):
                    self._optimizer.state[parameter] = {
                        # AdamW keeps its step counts, which have no dimension, on the CPU.
                        key: value.to(parameter.device, copy=True) if value.ndim else value.clone()
                        for key, value in moments.items()
                        if value is not None
                    }

    def _adapt(self, teacher: NetworkTeacher) -> dict[str, nn.Parameter]:
        """Low-rank adapters in a network of its own that shares the teacher's weights."""
        from peft import LoraConfig, inject_adapter_in_model

        network = self._model.network = _sharing(teacher.network)
        targets = [
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and _ATTENTION.search(name)
        ]
        if not targets:
            raise TeacherError(
                f"{teacher.name} has no attention layers for a LoRA critic to adapt.", "Use the full-copy critic."
            )
        config = LoraConfig(r=self.config.rank, lora_alpha=self.config.rank, target_modules=targets)
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
        adapters = {name: parameter for name, parameter in network.named_parameters() if f".{ADAPTER}." in name}
        for parameter in adapters.values():
            parameter.data = parameter.data.float()  # AdamW's steps would vanish in half precision
        return adapters

    def _copy(self, teacher: NetworkTeacher) -> dict[str, nn.Parameter]:
        """A network of its own, in float32."""
        self._model.network = copy.deepcopy(teacher.network).float().requires_grad_(True)
        return dict(self._model.network.named_parameters())

    def _embed_poses(self, teacher: NetworkTeacher) -> nn.Module:
        """What turns a pose [B, 12] into something to add to the network's time embedding."""
        time_embedding = teacher.network.time_embedding
        width = next(m.out_features for m in reversed(list(time_embedding.modules())) if isinstance(m, nn.Linear))
        last = nn.Linear(width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        embed = nn.Sequential(nn.Linear(POSE_WIDTH, width), nn.SiLU(), last).to(teacher.device)
        self._model.supports_camera = True
        call = teacher._call

        def call_with_pose(
            network: Any, x: Tensor, timestep: Tensor, condition: Condition, camera: Tensor | None
        ) -> Tensor:
            if camera is None:
                return call(network, x, timestep, condition, None)
            given = (camera.abs().sum(dim=-1, keepdim=True) > 0).to(camera)
            vector = embed(camera.float()) * given
            hook = network.time_embedding.register_forward_hook(lambda _m, _i, output: output + vector.to(output))
            try:
                return call(network, x, timestep, condition, None)
            finally:
                hook.remove()

        self._model._call = call_with_pose
        return embed


def _sharing(network: nn.Module) -> nn.Module:
    """A second tree of modules on the very same weights, so that what is hung into it is not in the first."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
