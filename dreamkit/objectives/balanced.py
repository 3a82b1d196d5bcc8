"""BSD: the two forces of SDS, balanced sample by sample."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, Weighting
from dreamkit.objectives.registry import register


@register("bsd")
@dataclass(frozen=True)
class BalancedScoreDistillation(Distillation):
    """BSD (Huang et al., "PlacidDreamer", arXiv 2407.13976), in the form of the paper; its code has three.

        c = s (E(y) - E(n)),   d = E(n) - e
        a = clip(<d - c, d> / ||d - c||^2, 0, 1)        per sample
        g = alpha_t (a c + (1 - a) d)

    g is the shortest vector between the classifier's pull c and the smoothing pull d: it goes against neither
    (<g, c> >= 0 and <g, d> >= 0), which is the multi-objective descent of Sener and Koltun, arXiv 1810.04650.
    """

    weighting: Weighting = "alpha"
    """w(t): sigma_squared, uniform, sigma_ratio or alpha."""

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """The balanced pull, written as a difference to the noise."""
        eps = context.noise_like(x)
        answer = self.ask(context.teacher.schedule.add_noise(x, eps, t), t, context)
        smoothing = answer.negative.eps - eps
        classifier = answer.guided.eps - answer.negative.eps  # s (E(y) - E(n))
        share = least_norm_share(classifier, smoothing)
        pull = share * classifier + (1 - share) * smoothing
        return Terms(eps + pull, eps, answer.guided.x0, t, {"classifier_share": float(share.mean())})


def least_norm_share(c: Tensor, d: Tensor) -> Tensor:
    """The a in [0, 1] for which a c + (1 - a) d is shortest, per sample: [B, 1, 1, 1]."""
    across = (d - c).flatten(1)
    share = (across * d.flatten(1)).sum(dim=1) / across.square().sum(dim=1).clamp_min(torch.finfo(d.dtype).tiny)
    return share.clamp(0, 1)[:, None, None, None]
