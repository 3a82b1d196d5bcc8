"""Score distillation sampling: SDS."""

from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.errors import ConfigError
from dreamkit.objectives.base import (
    Gradient,
    Objective,
    ObjectiveContext,
    TimestepSchedule,
    Weighting,
    register,
    weight,
)


@register("sds")
@dataclass(frozen=True)
class ScoreDistillationSampling(Objective):
    """SDS (Poole et al., "DreamFusion: Text-to-3D using 2D Diffusion", arXiv 2209.14988).

        x_t = alpha x + sigma e,   e ~ N(0, 1)
        D(s) = E(n) + s (E(y) - E(n))
        g = w(t) (D(s) - e)

    With `weighting="sigma_ratio"` g is x - x0(x_t), the same direction in units of the image.
    """

    guidance: Schedule = field(default_factory=lambda: Schedule.constant(100.0))
    """Guidance scale s of E(n) + s (E(y) - E(n)) over the run."""
    timesteps: TimestepSchedule = field(default_factory=TimestepSchedule)
    """Noise levels over the run."""
    weighting: Weighting = "sigma_squared"
    """w(t): sigma_squared, uniform or sigma_ratio."""
    rescale: float = 0.0
    """Strength of guidance rescaling in [0, 1]; 0 is none."""

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ConfigError(
                f"The weighting {self.weighting!r} is not known.", f"Use one of {', '.join(get_args(Weighting))}."
            )
        if not 0 <= self.rescale <= 1:
            raise ConfigError(f"A guidance rescaling of {self.rescale} is not in [0, 1].", "Use 0 for none.")

    def __call__(self, x: Tensor, context: ObjectiveContext) -> Gradient:
        """The SDS gradient of clean samples x [B, C, h, w]."""
        teacher, schedule = context.teacher, context.teacher.schedule
        clean = x.detach()
        t = self.timesteps.sample(len(clean), context)
        eps = context.noise_like(clean)
        scale = self.guidance.at(context.progress, context.total)
        guided = teacher.predict_guided(
            schedule.add_noise(clean, eps, t),
            t,
            context.positive,
            context.negative,
            scale,
            camera=context.camera,
            rescale=self.rescale,
        ).guided
        grad = weight(schedule, t, self.weighting) * (guided.eps - eps)
        diagnostics = {"t": float(t.mean()), "guidance": scale, "grad_rms": float(torch.sqrt(grad.square().mean()))}
        return Gradient(grad, guided.x0, diagnostics)
