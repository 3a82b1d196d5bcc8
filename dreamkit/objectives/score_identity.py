"""Distribution matching by the distance of scores: gradients flow through both networks, which are frozen.

For the noisy samples of a student the Fisher divergence E ||F - R||^2 has a gradient that a critic alone does not give:
F itself depends on the student. What does is E[u(x_t) . (F(x_t) - x)] = 0 for every u, because F is the mean of x given
x_t. Differentiated with respect to the student, once F's own change is set apart, it says

    E[u . dF] = -d E[u . (F - x)],   on the right with F and u as fixed functions, followed through x_t and x,

so with u = F - R the part that is missing becomes the gradient of a loss that can be computed.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, get_args

import torch
from torch import Tensor

from dreamkit.checks import one_of
from dreamkit.config import Schedule
from dreamkit.errors import TeacherError
from dreamkit.objectives.adversarial import (
    Adversarial,
    Divergence,
    curvature,
    curvature_slope,
    density_ratio,
    present,
)
from dreamkit.objectives.base import require
from dreamkit.objectives.matching import (
    Direction,
    GradientMatching,
    MatchingContext,
    Scores,
    as_groups,
    group_mean,
    group_sum,
    normaliser,
    require_finite,
    spread,
)
from dreamkit.objectives.registry import register_student


@dataclass(frozen=True)
class ScoreMatching(GradientMatching):
    """An objective that is a loss of x, R_w and F, differentiated through all three; a subclass says which."""

    differentiates_scores: ClassVar[bool] = True
    guidance: Schedule = field(default_factory=lambda: Schedule.constant(1.5))
    """Guidance scale w of U + w (R - U) over the run, >= 0; 1 is no guidance."""
    normalised: bool = True
    """Whether the loss of each group is divided by n = mean |x - R_w|."""

    @abstractmethod
    def energy(self, x: Tensor, x_t: Tensor, levels: Tensor, scores: Scores, context: MatchingContext) -> Tensor:
        """The loss whose sum over a sample is minimised, number by number, shaped like x; with the graph of x."""

    def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
        """D sum energy / n, through x, x_t and both networks; n is fixed."""
        levels = self.draw(x, context, *self.level_range(x, context))
        scale = self.scale(x, context)
        with torch.enable_grad():
            sample = x.detach().requires_grad_()
            x_t, _ = self.diffuse(sample, levels, context)
            scores = self.scores(x_t, levels, context, scale)
            for who, predicted in (("teacher", scores.guided), ("critic", scores.critic)):
                self.require_graph(who, predicted)
            energy = self.energy(sample, x_t, levels, scores, context)
            if self.normalised:
                energy = energy / normaliser(sample, scores.guided, context.chunk)
            # Only x is asked for: the critic's weights, which train elsewhere, get no gradient.
            (grad,) = torch.autograd.grad(energy.sum(), sample)
        guided = scores.guided.detach()
        distance = (guided - scores.critic.detach()).square().mean().sqrt()
        return Direction(grad, guided, {"t": float(levels.mean()), "score_distance": float(distance)})

    def require_graph(self, who: str, value: Tensor) -> None:
        """Refuse an answer that a gradient can't flow through, which would make another loss of this one.

        Raises:
            TeacherError: it can't.
        """
        if not value.requires_grad:
            raise TeacherError(
                f"{self.name} differentiates the {who}, and it was asked under no_grad.",
                "Freeze its weights (requires_grad_(False)), but let gradients flow to x_t.",
            )


@register_student("sid")
@dataclass(frozen=True)
class ScoreIdentity(ScoreMatching):
    """SiD (Zhou et al., "Score identity Distillation", arXiv 2404.04057; with guidance SiD-LSG, arXiv 2406.01561).

        L = sum (R_w - F) . [(R_w - x) - alpha (R_w - F)] / n

    The gradient goes through R_w and F to x_t. alpha = 1/2 is half the Fisher divergence; a larger one takes back some
    of ||R_w - F||^2, which a critic that lags behind overstates. The critic takes a step for each of the student's.
    """

    alpha: float = 1.0
    """How much of ||R_w - F||^2 is taken back: 0.5 to 1.2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(abs(self.alpha) < float("inf"), "alpha", self.alpha, "a finite number, such as 1")

    def energy(self, x: Tensor, x_t: Tensor, levels: Tensor, scores: Scores, context: MatchingContext) -> Tensor:
        """(R_w - F) [(R_w - x) - alpha (R_w - F)]."""
        apart = scores.guided - scores.critic
        return apart * ((scores.guided - x) - self.alpha * apart)


@register_student("sim")
@dataclass(frozen=True)
class ScoreImplicit(ScoreMatching):
    """SIM (Luo et al., "One-Step Diffusion Distillation through Score Implicit Matching", arXiv 2410.16794).

        L = (R_w - F) . (F - x) / sqrt(||R_w - F||^2 + c^2)

    Pseudo-Huber in place of the square: each group pulls about as hard, however far apart its scores are. c is
    `softness` times the root of the numbers in a group. The gradient goes through R_w and F to x_t, also below.
    """

    normalised: bool = False
    """Whether the loss of each group is divided by n = mean |x - R_w|, too."""
    softness: float = 0.00054
    """Root mean square of R_w - F below which the distance is a square, above 0 (its default: arXiv 2310.14189)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.softness < float("inf"), "softness", self.softness, "a number above 0")

    def energy(self, x: Tensor, x_t: Tensor, levels: Tensor, scores: Scores, context: MatchingContext) -> Tensor:
        """(R_w - F) (F - x) / sqrt(||R_w - F||^2 + c^2), the norm over a group."""
        apart = scores.guided - scores.critic
        square = group_mean(apart.square(), context.chunk) + self.softness**2
        size = group_sum(torch.ones_like(x), context.chunk)
        return apart * (scores.critic - x) / spread((size * square).sqrt(), x)


@register_student("uni-instruct")
@dataclass(frozen=True)
class UnifiedInstruct(ScoreMatching, Adversarial):
    """Uni-Instruct (Wang et al., "Unified Diffusion Divergence Instruction", arXiv 2505.20755).

        L = (h - r h') ||R_w - F||^2 + 2 h (R_w - F) . (F - x),   r = exp(D(x_t)),  h = h(r) of f-distill

    An f-divergence of clean samples is an integral over noise levels of J = E_q[h(r) ||F - R||^2]. J depends on the
    student through q, through r = p / q and through F. As dr = -r dlog q, the first two make the change of
    E[(h - r h') ||F - R||^2] under the samples alone; the third is the identity at the top of this file with
    u = 2 h (F - R). All is followed through x_t, r too. Reverse KL is twice SiD with alpha = 1/2; for kl the first term
    is gone. (The paper writes this gradient as a weighted sum of SIM's and of DMD's.)
    """

    needs_discriminator: ClassVar[bool] = True
    divergence: Divergence = "kl"
    """f: reverse-kl, kl, js, softened-reverse-kl, neyman, hellinger or jeffreys."""
    ratio_limit: float = 10.0
    """Largest density ratio, and one over the smallest, above 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("The divergence", self.divergence, get_args(Divergence))
        require(1 < self.ratio_limit < float("inf"), "ratio_limit", self.ratio_limit, "a number above 1")

    def energy(self, x: Tensor, x_t: Tensor, levels: Tensor, scores: Scores, context: MatchingContext) -> Tensor:
        """(h - r h') (R_w - F)^2 + 2 h (R_w - F) (F - x), over the mean of h."""
        logits = present(context.discriminator, self.name)(x_t, levels).to(x.dtype)
        self.require_graph("discriminator", logits)
        require_finite(self.name, context.step, {"discriminator's answer": logits.detach()})
        ratio = density_ratio(as_groups(logits, x, context.chunk, "discriminator's answer"), self.ratio_limit)
        h = curvature(self.divergence, ratio)
        slope = curvature_slope(self.divergence, ratio)
        apart = scores.guided - scores.critic
        loss = spread(slope, x) * apart.square() + spread(2 * h, x) * apart * (scores.critic - x)
        return loss / h.detach().mean()
