"""Distribution matching for a few steps: each step of a student is matched on a stretch of noise levels of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dreamkit.checks import one_of, require_integer
from dreamkit.diffusion.schedule import FLOOR, NoiseSchedule
from dreamkit.objectives.dmd import DistributionMatching
from dreamkit.objectives.matching import (
    CriticWeighting,
    Direction,
    GradientMatching,
    MatchingContext,
    as_groups,
    shifted,
    spread,
)
from dreamkit.objectives.registry import register_student

_STEEPEST = 10.0
"""Largest 1 / sigma_{t|s}^2 that the critic's loss is let to have, as in Phased DMD."""

_SAME_LEVEL = 1e-6
"""Levels this close are one: a student's level lies on the edge between two segments up to rounding."""


@register_student("tdm")
@dataclass(frozen=True)
class TrajectoryDistributionMatching(DistributionMatching):
    """TDM (Luo et al., "Learning Few-Step Diffusion Models by Trajectory Distribution Matching", arXiv 2503.06674).

        target = x + (R - F) + (w - 1) (R - U),   g = (x - target) / n = (F - R_w) / n

    A student of K steps starts step k at level k / K (shifted); its output x is matched only at the levels of the
    segment ((k - 1) / K, k / K] that the step goes through, so one critic, trained on the same segments, serves all
    steps: what the next ones will add is none of this step's business. K = 1 is DMD.

    The paper's demo noises x with what is left of the student's own noise at the segment's end and corrects the critic
    by importance weights; here x is noised afresh, for which the critic is exact without them.
    """

    needs_student_level: ClassVar[bool] = True
    segments: int = 4
    """Steps of the student, each with a segment of the levels, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("The number of segments", self.segments, 1)

    def level_range(self, x: Tensor, context: MatchingContext) -> tuple[float | Tensor, float | Tensor]:
        """The ends of each group's segment, inside of [t_min, t_max]."""
        return self._segment(x, context, self.t_min, self.t_max)

    def critic_range(self, x: Tensor, context: MatchingContext) -> tuple[float | Tensor, float | Tensor]:
        """The ends of each group's segment, inside of the critic's levels."""
        return self._segment(x, context, self.critic_t_min, self.critic_t_max)

    def _segment(self, x: Tensor, context: MatchingContext, low: float, high: float) -> tuple[Tensor, Tensor]:
        assert context.student_level is not None  # `check` has seen to it
        started = as_groups(context.student_level, x, context.chunk, "student's level").double()
        place = shifted(started, 1 / self.shift) * self.segments
        step = (place - _SAME_LEVEL).ceil().clamp(1, self.segments)
        bottom, top = (shifted((step - back) / self.segments, self.shift).clamp(low, high) for back in (1, 0))
        return bottom, top


@register_student("phased-dmd")
@dataclass(frozen=True)
class PhasedMatching(GradientMatching):
    """Phased DMD (Fan et al., "Score Matching within Subintervals", arXiv 2510.27684).

    A phase's rollout stops at a level s, so that x = x_s is noisy itself. It is noised on to t in (s, 1]:

        x_t = a_{t|s} x_s + s_{t|s} e,   a_{t|s} = a_t / a_s,   s_{t|s}^2 = s_t^2 - a_{t|s}^2 s_s^2

    The gradient is that of KL(q(x_t) || p(x_t)) on x_s, a_{t|s} (score_q - score_p). As score = (a_t x0 - x_t) / s_t^2
    it is the first line below, and as x0 = (x_t - s_t flow) / (a_t + s_t) the second, the paper's:

        g = a_{t|s} a_t / s_t^2 (F - R_w)
          = a_{t|s} a_t / (a_t s_t + s_t^2) (flow_R,w - flow_F)

    A critic can't regress onto x0, which nobody has. But the score of x_t is E[-e / s_{t|s} | x_t] for the e above, and
    a denoiser's noise is -s_t score; so the noise to regress onto is (s_t / s_{t|s}) e, and the clean sample

        x0* = (x_t - s_t (s_t / s_{t|s}) e) / a_t = (x_s - a_{t|s} s_s^2 / s_{t|s} e) / a_s

    ("corrected"; in flow, the paper's target). x_s itself in its place ("plain") leads to E[x_s | x_t]: biased, unless
    s = 0, where both are x. As t nears s, x0* is ever noisier: the weight on its error is times min(1, 10 s_{t|s}^2),
    the paper's clamp. A phase has a critic of its own.
    """

    needs_sample_level: ClassVar[bool] = True
    critic_weighting: CriticWeighting = "flow"
    """What the critic's error is measured in: eps, flow, v, x0, or min_snr."""
    critic_target: Literal["corrected", "plain"] = "corrected"
    """What the critic regresses onto: corrected, which is right; or plain, x_s itself, to see the bias."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("The critic's target", self.critic_target, ("corrected", "plain"))

    def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
        """a_{t|s} a_t / s_t^2 (F - R_w)."""
        levels = self.draw(x, context, *self.level_range(x, context))
        with torch.no_grad():
            x_t, _ = self.diffuse(x, levels, context)
            scores = self.scores(x_t, levels, context, self.scale(x, context))
            step = Step.between(context.schedule, self._start(x, context), levels)
            weight = step.ratio * step.alpha / step.sigma.square()
            grad = spread(weight, x) * (scores.critic - scores.guided)
        return Direction(grad, scores.guided, {"t": float(levels.mean()), "weight": float(weight.mean())})

    def level_range(self, x: Tensor, context: MatchingContext) -> tuple[float | Tensor, float | Tensor]:
        """From s + (1 - s) t_min to s + (1 - s) t_max: for clean samples as everywhere."""
        return self._above(x, context, self.t_min), self._above(x, context, self.t_max)

    def critic_range(self, x: Tensor, context: MatchingContext) -> tuple[float | Tensor, float | Tensor]:
        """The same of the critic's levels."""
        return self._above(x, context, self.critic_t_min), self._above(x, context, self.critic_t_max)

    def diffuse(self, x: Tensor, levels: Tensor, context: MatchingContext) -> tuple[Tensor, Tensor]:
        """x_t from x_s, and what the critic should see in it."""
        step = Step.between(context.schedule, self._start(x, context), levels)
        noise = context.noise_like(x)
        x_t = spread(step.ratio, x) * x + spread(step.spread, x) * noise
        if self.critic_target == "plain":
            return x_t, x
        noisier = step.ratio * step.start_sigma.square() / step.spread
        return x_t, (x - spread(noisier, x) * noise) / spread(step.start_alpha, x)

    def critic_weight(self, x: Tensor, levels: Tensor, context: MatchingContext) -> Tensor:
        """W(t), bounded where t is next to s."""
        step = Step.between(context.schedule, self._start(x, context), levels)
        return super().critic_weight(x, levels, context) * (_STEEPEST * step.spread.square()).clamp_max(1)

    def _start(self, x: Tensor, context: MatchingContext) -> Tensor:
        assert context.sample_level is not None  # `check` has seen to it
        return as_groups(context.sample_level, x, context.chunk, "sample's level").double()

    def _above(self, x: Tensor, context: MatchingContext, share: float) -> Tensor:
        start = self._start(x, context)
        return start + (1 - start) * share


@dataclass(frozen=True)
class Step:
    """The coefficients of a step from level s to a noisier t, [B] or [B, F] each.

    Args:
        start_alpha: a_s.
        start_sigma: s_s.
        alpha: a_t.
        sigma: s_t.
        ratio: a_{t|s}.
        spread: s_{t|s}, above 0.
    """

    start_alpha: Tensor
    start_sigma: Tensor
    alpha: Tensor
    sigma: Tensor
    ratio: Tensor
    spread: Tensor

    @staticmethod
    def between(schedule: NoiseSchedule, start: Tensor, levels: Tensor) -> Step:
        """From `start` to `levels`, t >= s."""
        start_alpha, start_sigma = schedule.alpha(start).clamp_min(FLOOR), schedule.sigma(start)
        alpha, sigma = schedule.alpha(levels), schedule.sigma(levels)
        ratio = alpha / start_alpha
        variance = sigma.square() - (ratio * start_sigma).square()
        return Step(start_alpha, start_sigma, alpha, sigma, ratio, variance.clamp_min(FLOOR**2).sqrt())
