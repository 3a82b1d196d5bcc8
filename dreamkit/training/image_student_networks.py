"""The networks that train an image student: copies of the teacher's, and a GAN head in the critic's middle."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.teacher import Query
from dreamkit.errors import TeacherError

HEAD_WIDTH = 128
_MIDDLES = ("mid_block", "mid_blocks")


def trainable_copy(model: NetworkTeacher) -> NetworkTeacher:
    """The same model with a network of its own, in float32, whose weights have gradients; its encoders are shared."""
    copied = copy.copy(model)
    copied.calls = 0
    copied.network = copy.deepcopy(model.network).float().requires_grad_(True)
    return copied


class NetworkDenoiser:
    """A model under a batch's prompts and cameras, as objectives ask it; differentiable, whoever wants to be.

    Args:
        model: teacher, student or critic.
        condition: prompts, B rows.
        null: the empty prompt, 1 row.
        camera: poses [B, 12], if the model takes any.
        half_precision: whether matrices are multiplied in bfloat16.
    """

    def __init__(
        self,
        model: NetworkTeacher,
        condition: Condition,
        null: Condition,
        camera: Tensor | None = None,
        half_precision: bool = False,
    ) -> None:
        self.model = model
        self.condition = condition
        self.null = null
        self.camera = camera
        self.half_precision = half_precision

    def predict(self, x_t: Tensor, levels: Tensor | float) -> Tensor:
        """x0 for the prompts, [B, C, h, w]."""
        return self._ask(x_t, levels, self.condition)[0]

    def pair(self, x_t: Tensor, levels: Tensor | float) -> tuple[Tensor, Tensor]:
        """x0 for the prompts and without, from one forward pass."""
        full, empty = self._ask(x_t, levels, self.condition, self.null)
        return full, empty

    def _ask(self, x_t: Tensor, levels: Tensor | float, *conditions: Condition) -> list[Tensor]:
        queries = [Query(x_t, levels, condition, self.camera) for condition in conditions]
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.half_precision):
            return [prediction.x0 for prediction in self.model.predict_all(queries, differentiable=True)]


# The GAN head ---------------------------------------------------------------------------------------------------------


class GanHead(nn.Module):
    """Tells data from samples by a denoiser's features: a small network on each position, and a mean over them.

    Its last layer starts at zero: until it has learned something, data and samples are equally likely.

    Args:
        width: number of features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.position = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, HEAD_WIDTH), nn.SiLU(), nn.Linear(HEAD_WIDTH, HEAD_WIDTH), nn.SiLU()
        )
        self.logit = nn.Linear(HEAD_WIDTH, 1)
        nn.init.zeros_(self.logit.weight)
        nn.init.zeros_(self.logit.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B] of features [B, N, D]."""
        return self.logit(self.position(features).mean(dim=1))[:, 0]


class CriticNetworks(nn.Module):
    """A critic's network, and its head if it has one, as one module, so that they share optimisers.

    Args:
        network: the denoiser.
        head: reads what leaves its middle.
    """

    def __init__(self, network: nn.Module, head: GanHead | None = None) -> None:
        super().__init__()
        self.network = network
        self.head = head


class MiddleFeatures(Exception):
    """Carries what a network computes half way through, and so ends the call there.

    Args:
        features: [B, N, D].
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def middle_features(denoiser: NetworkDenoiser, x_t: Tensor, levels: Tensor) -> Tensor:
    """What leaves the middle of a denoiser's network, [B, N, D]; the rest of it is not asked.

    Raises:
        TeacherError: the network has no middle.
    """

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        raise MiddleFeatures(output if output.ndim == 3 else output.flatten(2).transpose(1, 2))

    hook = middle_of(denoiser.model.network).register_forward_hook(leave)
    try:
        denoiser.predict(x_t, levels)
    except MiddleFeatures as half_way:
        return half_way.features.to(x_t.dtype)
    finally:
        hook.remove()
    raise TeacherError(
        f"{type(denoiser.model.network).__name__} never asks its middle.", "Use an objective without a GAN."
    )


def middle_of(network: nn.Module) -> nn.Module:
    """The block in the middle of a U-Net or an hourglass.

    Raises:
        TeacherError: it has none.
    """
    for name in _MIDDLES:
        block = getattr(network, name, None)
        if isinstance(block, nn.ModuleList) and len(block):
            return block[-1]
        if isinstance(block, nn.Module) and not isinstance(block, nn.ModuleList):
            return block
    raise TeacherError(
        f"{type(network).__name__} has no middle whose features a GAN head could read.",
        "Use an objective without one, or gan_weight=0.",
    )


def make_head(model: NetworkTeacher, seed: int) -> GanHead:
    """A head for a model's features, its weights drawn from a seed.

    Raises:
        TeacherError: the network has no middle.
    """
    denoiser = NetworkDenoiser(model, model.null_condition(1), model.null_condition(1))
    x_t = torch.zeros(1, *model.sample_shape, device=model.device)
    with torch.no_grad():
        width = middle_features(denoiser, x_t, torch.ones(1, dtype=torch.float64, device=model.device)).shape[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GanHead(width).to(model.device)


class HeadDiscriminator:
    """A GAN head on a critic's features, as objectives ask it.

    Args:
        head: reads the features.
        denoiser: the critic under the batch's prompts.
    """

    def __init__(self, head: GanHead, denoiser: NetworkDenoiser) -> None:
        self.head = head
        self.denoiser = denoiser

    def __call__(self, x_t: Tensor, levels: Tensor) -> Tensor:
        """Logits [B]; positive for data."""
        return self.head(middle_features(self.denoiser, x_t, levels))
