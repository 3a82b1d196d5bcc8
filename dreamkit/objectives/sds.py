"""Random noise as the reference: SDS, SJC, and NFSD, which takes the noise out."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.teacher import Query
from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, Weighting, require
from dreamkit.objectives.registry import register


@register("sds")
@dataclass(frozen=True)
class ScoreDistillationSampling(Distillation):
    """SDS (Poole et al., "DreamFusion: Text-to-3D using 2D Diffusion", arXiv 2209.14988).

        x_t = alpha x + sigma e,   e ~ N(0, 1)
        D(s) = E(n) + s (E(y) - E(n))
        g = w(t) (D(s) - e)

    With `weighting="sigma_ratio"` g is x - x0(x_t), the same direction in units of the image.
    """

    guidance: Schedule = field(default_factory=lambda: Schedule.constant(100.0))
    """Guidance scale s of E(n) + s (E(y) - E(n)) over the run, >= 0."""

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) and the noise."""
        eps = context.noise_like(x)
        guided = self.ask(context.teacher.schedule.add_noise(x, eps, t), t, context).guided
        return Terms(guided.eps, eps, guided.x0, t)


@register("sjc")
@dataclass(frozen=True)
class ScoreJacobianChaining(ScoreDistillationSampling):
    """SJC (Wang et al., "Score Jacobian Chaining", arXiv 2212.00774), on any schedule.

        g = D(s) - e

    SDS with w = 1: the perturb-and-average score -D / sigma at x + (sigma / alpha) e, times sigma. The noise has mean
    zero, so subtracting it changes the variance alone; `variance_reduced=False` leaves it out.
    """

    weighting: Weighting = "uniform"
    """w(t): sigma_squared, uniform, sigma_ratio or alpha."""
    variance_reduced: bool = True
    """Whether the noise is subtracted."""

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s), and the noise or nothing."""
        terms = super().terms(x, t, context)
        reference = terms.reference if self.variance_reduced else torch.zeros_like(terms.reference)
        return Terms(terms.target, reference, terms.x0, t)


@register("nfsd")
@dataclass(frozen=True)
class NoiseFreeScoreDistillation(Distillation):
    """NFSD (Katzir et al., "Noise-Free Score Distillation", arXiv 2310.17590).

        g = w(t) (d_D + s (E(y) - E(0))),   d_D = E(0) for t < 0.2, E(0) - E(n) above

    E(0) is the noise and the way into the data's domain; E(n), for a prompt that describes bad pictures, is the same
    noise and the way out of it. Their difference needs no reference noise. Without a negative prompt d_D is 0 there.
    """

    domain_below: float = 0.2
    """Noise level below which E(0) has little noise left and stands alone, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.domain_below <= 1, "domain_below", self.domain_below, "0 to 1")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """E(0) + s (E(y) - E(0)), and E(n) or nothing."""
        x_t = context.teacher.schedule.add_noise(x, context.noise_like(x), t)
        has_negative = context.negative is not context.null
        answer = context.teacher.predict_guided(
            *(x_t, t, context.positive, context.null, self.scale(context)),
            camera=context.camera,
            rescale=self.rescale,
            repulsion=context.repulsion,
            also=[Query(x_t, t, context.negative, context.camera)] if has_negative else [],
        )
        against = answer.also[0] if has_negative else answer.negative
        low = (t < self.domain_below).to(x)[:, None, None, None]
        return Terms(answer.guided.eps, (1 - low) * against.eps, answer.guided.x0, t)
