"""Noise found by inversion as the reference: SDI."""

from dataclasses import dataclass, field

from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.inversion import implied_noise, invert
from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, Weighting, require
from dreamkit.objectives.registry import register
from dreamkit.objectives.timesteps import TimestepSchedule


@register("sdi")
@dataclass(frozen=True)
class ScoreDistillationInversion(Distillation):
    """SDI (Lukoianov et al., "Score Distillation via Reparametrized DDIM", arXiv 2405.15891).

        x_t by DDIM inversion of x with negative guidance D(-s)
        g = x - x0(x_t) = lam_t (D(s)(x_t) - k),   k = (x_t - alpha x) / sigma

    The noise is the one with which the teacher itself would have come to x; random noise is what over-smooths SDS. The
    source averages over pixels, where we sum as everywhere.
    """

    timesteps: TimestepSchedule = field(
        default_factory=lambda: TimestepSchedule(Schedule(0.0, 0.98, 0.25, 1.0), Schedule.constant(0.0))
    )
    """Levels over the run: a name (uniform, linear, sqrt, two_phase, dreamtime) or the fields."""
    weighting: Weighting = "sigma_ratio"
    """w(t): sigma_squared, uniform, sigma_ratio or alpha."""
    inversion_guidance: float = -7.5
    """Guidance scale of the inversion, at most 0."""
    inversion_steps: int = 10
    """Steps of the inversion, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.inversion_guidance <= 0, "inversion_guidance", self.inversion_guidance, "a number <= 0")
        require(self.inversion_steps >= 1, "inversion_steps", self.inversion_steps, "at least 1")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) at the inverted x_t, and the noise that leads there from x."""
        teacher = context.teacher
        x_t = invert(
            *(teacher, x, t, context.positive, context.negative, self.inversion_guidance),
            camera=context.camera,
            steps=self.inversion_steps,
        ).x_t
        guided = self.ask(x_t, t, context).guided
        return Terms(guided.eps, implied_noise(teacher, x, x_t, t), guided.x0, t)
