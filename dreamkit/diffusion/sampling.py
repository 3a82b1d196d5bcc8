"""Sampling from a teacher: deterministic DDIM, and the clipping pixel models are used to."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.schedule import FLOOR, Prediction
from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from dreamkit.diffusion.teacher import Teacher


@dataclass(frozen=True)
class SampleClip:
    """Keeps a predicted clean sample where samples live, step by step.

    Static: x0 is clamped to [-limit, limit]. Dynamic: x0 is clamped to its own quantile s of |x0| and divided by s /
    limit, so that saturated pixels move inwards (Saharia et al., "Imagen", arXiv 2205.11487, section 2.3).

    Args:
        limit: bound of a clean sample, 1 for pixel models.
        quantile: in (0, 1) for dynamic thresholding, `None` for static clipping.
        maximum: largest s of dynamic thresholding.
    """

    limit: float = 1.0
    quantile: float | None = None
    maximum: float = 1.0

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> "SampleClip | None":
        """Read a diffusers scheduler configuration; `None` where it clips nothing."""
        if config.get("thresholding"):
            return cls(
                1.0, float(config.get("dynamic_thresholding_ratio", 0.995)), float(config.get("sample_max_value", 1.0))
            )
        return cls(float(config.get("clip_sample_range", 1.0))) if config.get("clip_sample", True) else None

    def __call__(self, prediction: Prediction, x_t: Tensor) -> Prediction:
        """Clip x0 [B, ...] and recompute eps from it, so that the two still explain `x_t`."""
        if self.quantile is None:
            x0 = prediction.x0.clamp(-self.limit, self.limit)
        else:
            magnitude = prediction.x0.abs().flatten(1)
            bound = torch.quantile(magnitude, self.quantile, dim=1).clamp(self.limit, max(self.maximum, self.limit))
            bound = bound.reshape(-1, *(1,) * (prediction.x0.ndim - 1))
            x0 = prediction.x0.clamp(-bound, bound) / bound * self.limit
        eps = (x_t - prediction.alpha * x0) / prediction.sigma.clamp_min(FLOOR)
        return replace(prediction, x0=x0, eps=eps)


@torch.no_grad()
def ddim(
    teacher: "Teacher",
    noise: Tensor,  # [B, C, h, w]
    positive: Condition,
    negative: Condition,
    steps: int,
    scale: float,
    camera: Tensor | None = None,  # [B, 12]
    rescale: float = 0.0,
    clip: SampleClip | None = None,
) -> Tensor:
    """Walk from noise to a clean sample along the deterministic DDIM path (Song et al., arXiv 2010.02502, eta = 0).

    t runs in equal steps from 1 to 0, which for a discrete model is "trailing" spacing (Lin et al., arXiv 2305.08891):
    x_{t'} = alpha(t') x0(x_t) + sigma(t') eps(x_t). For a flow model this is Euler's method.

    Args:
        teacher: the model.
        noise: standard normal, [B, C, h, w]; read as x at t = 1.
        positive: the prompts, B or 1 rows.
        negative: the negative prompts, B or 1 rows; not evaluated at scale 1.
        steps: number of network calls, at least 1.
        scale: guidance scale s of E(n) + s (E(y) - E(n)).
        camera: poses for a camera-conditioned teacher, [B, 12].
        rescale: strength of guidance rescaling, 0 for none.
        clip: how the predicted clean sample is clipped, `None` for not at all.

    Returns:
        Clean samples x, [B, C, h, w], float32.

    Raises:
        ConfigError: fewer than 1 step.
    """
    if steps < 1:
        raise ConfigError(f"Sampling needs at least 1 step, not {steps}.")
    x = noise
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    for t, t_next in pairwise(times):
        if scale == 1:
            prediction = teacher.predict(x, t, positive, camera)
        else:
            prediction = teacher.predict_guided(x, t, positive, negative, scale, camera, rescale=rescale).guided
        if clip is not None:
            prediction = clip(prediction, x)
        x = teacher.schedule.add_noise(prediction.x0, prediction.eps, t_next)
    return x
