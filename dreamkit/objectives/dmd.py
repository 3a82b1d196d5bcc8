"""Distribution matching by the gradient of a divergence: DMD and its kin, which need no derivative of a score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dreamkit.checks import one_of
from dreamkit.config import Schedule
from dreamkit.diffusion.guidance import guide
from dreamkit.errors import ConfigError
from dreamkit.objectives.adversarial import (
    Adversarial,
    Divergence,
    curvature,
    density_ratio,
    present,
    student_term,
)
from dreamkit.objectives.base import require
from dreamkit.objectives.matching import (
    CriticWeighting,
    Direction,
    MatchingContext,
    as_groups,
    coefficients,
    normaliser,
    require_finite,
    spread,
)
from dreamkit.objectives.registry import register_student

Weighting = Literal["normalised", "sigma_squared"]


@register_student("dmd")
@dataclass(frozen=True)
class DistributionMatching(Adversarial):
    """DMD (Yin et al., "Improved Distribution Matching Distillation", DMD2, arXiv 2405.14867).

        g = (F - R_w) / n,   n = mean |x - R_w|

    The gradient of KL(q || p) of the student's noisy samples to the teacher's, its size made that of the way to the
    teacher's sample. `gan_weight` adds that of softplus(-D(x_t)), for a discriminator trained with
    `discriminator_loss`: real data then corrects what the teacher has wrong.
    """

    weighting: Weighting = "normalised"
    """normalised: (F - R_w) / n; sigma_squared: sigma^2 times the difference of noises, alpha sigma (F - R_w)."""
    gan_weight: float = 0.0
    """Weight of the adversarial term, as published for losses that are means over a sample; 0 is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("The weighting", self.weighting, get_args(Weighting))
        require(0 <= self.gan_weight < float("inf"), "gan_weight", self.gan_weight, "a number >= 0; 0 is none")

    @property
    def learns_from_data(self) -> bool:
        """Whether there is a discriminator, which data trains."""
        return super().learns_from_data or self.gan_weight > 0

    def check(self, context: MatchingContext) -> None:
        """Say before the first step what the context lacks.

        Raises:
            TeacherError: it lacks something.
        """
        super().check(context)
        if self.gan_weight:
            present(context.discriminator, self.name)

    def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
        """(F - R_w) / n, weighted by how much each group matters, and the adversarial gradient."""
        levels = self.draw(x, context, *self.level_range(x, context))
        with torch.no_grad():
            x_t, _ = self.diffuse(x, levels, context)
            scores = self.scores(x_t, levels, context, self.scale(x, context))
            grad = self.weighed(scores.critic - scores.guided, x, scores.guided, levels, context)
            importance = self.importance(x_t, levels, context)
        diagnostics = {"t": float(levels.mean()), "distance": float((x - scores.guided).abs().mean())}
        if importance is not None:
            grad = grad * spread(importance, x)
            diagnostics["largest_importance"] = float(importance.max())
        if self.gan_weight:
            adversarial, diagnostics["gan"] = self.adversarial_gradient(x, x_t, levels, context)
            grad = grad + adversarial
        return Direction(grad, scores.guided, diagnostics)

    def weighed(
        self, difference: Tensor, x: Tensor, guided: Tensor, levels: Tensor, context: MatchingContext
    ) -> Tensor:
        """A difference of two predictions of x0, as a gradient on x."""
        if self.weighting == "normalised":
            return difference / normaliser(x, guided, context.chunk)
        alpha, sigma = coefficients(context.schedule, levels, x)
        return alpha * sigma * difference

    def importance(self, x_t: Tensor, levels: Tensor, context: MatchingContext) -> Tensor | None:
        """How much each group counts, [B] or [B, F] with a mean of 1; `None` for all the same."""
        return None

    def adversarial_gradient(
        self, x: Tensor, x_t: Tensor, levels: Tensor, context: MatchingContext
    ) -> tuple[Tensor, float]:
        """The gradient of softplus(-D(x_t)) on x, and the mean of softplus(-D(x_t)).

        Times gan_weight and the numbers of a sample: (F - R_w) / n is the gradient of a sum over a sample, and the
        usual weights are for a mean.
        """
        noisy = x_t.detach().requires_grad_()
        with torch.enable_grad():
            term = student_term(present(context.discriminator, self.name)(noisy, levels).to(x.dtype))
            (towards,) = torch.autograd.grad(term.mean() * len(x), noisy)
        alpha, _ = coefficients(context.schedule, levels, x)
        require_finite(self.name, context.step, {"discriminator's answer": term.detach()})
        return self.gan_weight * x[0].numel() * alpha * towards, float(term.detach().mean())


@register_student("swiftbrush")
@dataclass(frozen=True)
class SwiftBrush(DistributionMatching):
    """VSD in one step (Nguyen and Tran, "SwiftBrush", arXiv 2312.05239).

        g = sigma^2 (eps_R,w - eps_F,w) = alpha sigma (F_w - R_w)

    Both networks guided. `guidance_range` draws a scale for each sample, the same for both networks: PG-SB of Nguyen et
    al., "SNOOPI", arXiv 2412.02687, which broadens both distributions and so steadies the student.
    """

    guidance: Schedule = field(default_factory=lambda: Schedule.constant(4.5))
    """Guidance scale w of U + w (R - U) over the run, >= 0; 1 is no guidance."""
    critic_guided: bool = True
    """Whether the critic gets the teacher's guidance, too."""
    critic_weighting: CriticWeighting = "eps"
    """What the critic's error is measured in: eps, flow, v, x0, or min_snr."""
    weighting: Weighting = "sigma_squared"
    """normalised: (F - R_w) / n; sigma_squared: sigma^2 times the difference of noises, alpha sigma (F - R_w)."""
    guidance_range: tuple[float, ...] = ()
    """Smallest and largest guidance scale that a sample may get, in place of `guidance`; none for the same for all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = self.guidance_range
        proper = not ends or (len(ends) == 2 and 0 <= ends[0] <= ends[1] < float("inf"))
        require(proper, "guidance_range", ends, "two numbers, 0 <= smallest <= largest, or none")

    def scale(self, x: Tensor, context: MatchingContext) -> float | Tensor:
        """The guidance scale: that of the run, or one a sample, [B] or [B, F], from `guidance_range`."""
        if not self.guidance_range:
            return super().scale(x, context)
        low, high = self.guidance_range
        drawn = low + (high - low) * torch.rand(len(x), generator=context.generator, dtype=torch.float64)
        return as_groups(drawn, x, context.chunk, "guidance scale")


@register_student("decoupled-dmd")
@dataclass(frozen=True)
class DecoupledMatching(DistributionMatching):
    """Decoupled DMD (Liu et al., "Decoupled DMD: CFG Augmentation as the Spear", arXiv 2511.22677, eq. 6).

        g = -[(R - F) / n at t_DM  +  (w - 1) (R - U) / n at t_CA]

    Guidance is what makes a few steps enough; matching keeps it in check. So each has levels and noise of its own: t_DM
    anywhere, t_CA only noisier than the level that the student started from, where what it will add is not decided yet.
    The paper leaves the weights out; here each term has that of its own level, so that with t_DM = t_CA this is DMD.
    """

    needs_student_level: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_guided:
            raise ConfigError("The critic of decoupled-dmd is not guided.", "Use dmd with critic_guided.")

    def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
        """The two terms, each at its own level."""
        assert context.student_level is not None  # `check` has seen to it
        w = self.guidance.at(context.progress, context.total)
        started = as_groups(context.student_level, x, context.chunk, "student's level").clamp(self.t_min, self.t_max)
        levels = self.draw(x, context, *self.level_range(x, context))
        later = self.draw(x, context, started, self.t_max)
        with torch.no_grad():
            x_t, _ = self.diffuse(x, levels, context)
            scores = self.scores(x_t, levels, context, w)
            grad = self.weighed(scores.critic - scores.conditional, x, scores.guided, levels, context)
            noisier, _ = self.diffuse(x, later, context)
            full, empty = (part.to(x.dtype) for part in context.teacher.pair(noisier, later))
            guided = guide(full, empty, w)
            require_finite(self.name, context.step, {"teacher's guided prediction": guided})
            grad = grad + (w - 1) * self.weighed(empty - full, x, guided, later, context)
        diagnostics = {"t": float(levels.mean()), "t_guidance": float(later.mean())}
        if self.gan_weight:
            adversarial, diagnostics["gan"] = self.adversarial_gradient(x, x_t, levels, context)
            grad = grad + adversarial
        return Direction(grad, scores.guided, diagnostics)


@register_student("re-dmd")
@dataclass(frozen=True)
class RewardedMatching(DistributionMatching):
    """Re-DMD (Lu et al., "Reward Forcing", arXiv 2512.04678).

        g = DMD's times exp(beta r) / mean exp(beta r)

    r is a reward of the samples, of motion say, that nothing is differentiated through: those that move more are what
    the student learns from most. The mean is over the batch, so that a batch of one is DMD; the paper's code leaves it
    out.
    """

    needs_reward: ClassVar[bool] = True
    beta: float = 1.0
    """How much a reward counts; 0 is DMD."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(abs(self.beta) < float("inf"), "beta", self.beta, "a finite number; 0 is DMD")

    def importance(self, x_t: Tensor, levels: Tensor, context: MatchingContext) -> Tensor | None:
        """exp(beta r) / mean exp(beta r), [B] or [B, F]."""
        assert context.reward is not None  # `check` has seen to it
        reward = as_groups(context.reward.detach(), x_t, context.chunk, "reward").to(x_t.dtype)
        require_finite(self.name, context.step, {"reward": reward})
        power = self.beta * reward
        weight = (power - power.max()).exp()
        return weight / weight.mean()


@register_student("f-distill")
@dataclass(frozen=True)
class DivergenceMatching(DistributionMatching):
    """f-distill (Xu et al., "One-step Diffusion Models with f-Divergence Distribution Matching", arXiv 2502.15681).

        g = DMD's times h(r) / mean h(r),   r = p(x_t) / q(x_t) = exp(D(x_t)),   h(r) = r^2 f''(r)

    The gradient of the f-divergence D_f(p || q). h = 1 is DMD's reverse KL, which seeks modes; where h grows with r
    (kl, js, hellinger, jeffreys) the samples count more that the data has more of, and modes are covered.
    """

    needs_discriminator: ClassVar[bool] = True
    gan_weight: float = 1e-3
    """Weight of the adversarial term, as published for losses that are means over a sample; 0 is none."""
    divergence: Divergence = "js"
    """f: reverse-kl, kl, js, softened-reverse-kl, neyman, hellinger or jeffreys."""
    ratio_limit: float = 10.0
    """Largest density ratio, and one over the smallest, above 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("The divergence", self.divergence, get_args(Divergence))
        require(1 < self.ratio_limit < float("inf"), "ratio_limit", self.ratio_limit, "a number above 1")

    def importance(self, x_t: Tensor, levels: Tensor, context: MatchingContext) -> Tensor | None:
        """h(r) / mean h(r), [B] or [B, F]."""
        answer = present(context.discriminator, self.name)(x_t, levels).to(x_t.dtype)
        logits = as_groups(answer, x_t, context.chunk, "discriminator's answer")
        require_finite(self.name, context.step, {"discriminator's answer": logits})
        h = curvature(self.divergence, density_ratio(logits, self.ratio_limit))
        return h / h.mean()
