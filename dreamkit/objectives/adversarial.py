"""A discriminator beside the scores: what it and the student minimise, and the density ratio that it knows.

A discriminator tells noisy data from noisy samples at the same levels; a head on the critic's features is enough of one
(Yin et al., "Improved Distribution Matching Distillation", DMD2, arXiv 2405.14867):

    discriminator:  softplus(-D(data_t)) + softplus(D(x_t))
    student:        softplus(-D(x_t))

Its best answer is the logarithm of the ratio r = p(x_t) / q(x_t) of the data's density and the student's (Goodfellow et
al., arXiv 1406.2661), which is what f-divergences weigh samples by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dreamkit.checks import one_of
from dreamkit.errors import TeacherError
from dreamkit.objectives.base import require
from dreamkit.objectives.matching import Discriminator, GradientMatching, MatchingContext, require_finite, working

Divergence = Literal["reverse-kl", "kl", "js", "softened-reverse-kl", "neyman", "hellinger", "jeffreys"]

_CURVATURES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "reverse-kl": (torch.ones_like, torch.ones_like),
    "kl": (lambda r: r, torch.zeros_like),
    "js": (lambda r: r / (1 + r), lambda r: (r / (1 + r)).square()),
    "softened-reverse-kl": (lambda r: 1 / (1 + r), lambda r: (1 + 2 * r) / (1 + r).square()),
    "neyman": (lambda r: 1 / r, lambda r: 2 / r),
    "hellinger": (lambda r: r.sqrt(), lambda r: r.sqrt() / 2),
    "jeffreys": (lambda r: 1 + r, torch.ones_like),
}
"""h(r) and h(r) - r h'(r)."""


def student_term(logits: Tensor) -> Tensor:
    """softplus(-D(x_t)), non-saturating: what a student minimises, shaped like the logits."""
    return softplus(-logits)


def discriminator_term(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-D(data_t)) + softplus(D(x_t)): what a discriminator minimises, shaped like the logits."""
    return softplus(-real) + softplus(fake)


def jitter_penalty(
    discriminator: Discriminator, x_t: Tensor, levels: Tensor, logits: Tensor, jitter: float, noise: Tensor
) -> Tensor:
    """(D(x_t + jitter e) - D(x_t))^2 / jitter^2, on average near ||dD / dx_t||^2: R1 on data, R2 on samples.

    Without a second derivative, so that it goes with any network (Lin et al., "Diffusion Adversarial Post-Training",
    arXiv 2501.08316; R1: Mescheder et al., arXiv 1801.04406). Shaped like the logits.

    Args:
        discriminator: to smooth.
        x_t: noisy data, or noisy samples.
        levels: theirs.
        logits: D(x_t).
        jitter: standard deviation, above 0.
        noise: e, standard normal, shaped like x_t.
    """
    return ((discriminator(x_t + jitter * noise, levels) - logits) / jitter).square()


def density_ratio(logits: Tensor, limit: float) -> Tensor:
    """The ratio r = exp(D), clamped to [1 / limit, limit]; differentiable inside.

    Args:
        logits: D(x_t).
        limit: above 1.
    """
    bound = math.log(limit)
    return logits.clamp(-bound, bound).exp()


def curvature(divergence: Divergence, ratio: Tensor) -> Tensor:
    """h(r) = r^2 f''(r) of the f-divergence D_f(p || q) = E_q f(r), r = p / q; shaped like `ratio`.

        reverse-kl: 1    kl: r    js: r / (1 + r)    softened-reverse-kl: 1 / (1 + r)    neyman: 1 / r
        hellinger: sqrt(r)    jeffreys: 1 + r

    (Xu et al., "One-step Diffusion Models with f-Divergence Distribution Matching", arXiv 2502.15681, table 1.)

    Raises:
        ConfigError: an unknown divergence.
    """
    one_of("The divergence", divergence, get_args(Divergence))
    return _CURVATURES[divergence][0](ratio)


def curvature_slope(divergence: Divergence, ratio: Tensor) -> Tensor:
    """h(r) - r h'(r), for the h of `curvature`; shaped like `ratio`.

    Raises:
        ConfigError: an unknown divergence.
    """
    one_of("The divergence", divergence, get_args(Divergence))
    return _CURVATURES[divergence][1](ratio)


def present(discriminator: Discriminator | None, objective: str) -> Discriminator:
    """The discriminator of an objective that is to be adversarial.

    Raises:
        TeacherError: there is none.
    """
    if discriminator is None:
        raise TeacherError(
            f"{objective} is to be adversarial and has no discriminator.",
            "Give the critic a GAN head, or set gan_weight to 0.",
        )
    return discriminator


@dataclass(frozen=True)
class Adversarial(GradientMatching):
    """An objective that may have a discriminator, and how that is trained."""

    gan_penalty: float = 0.0
    """Weight of the discriminator's approximate R1 and R2 penalties, >= 0; 0 is none."""
    gan_jitter: float = 0.01
    """Standard deviation of the noise that the penalties compare with, above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gan_penalty < float("inf"), "gan_penalty", self.gan_penalty, "a number >= 0; 0 is none")
        require(0 < self.gan_jitter < float("inf"), "gan_jitter", self.gan_jitter, "a number above 0, such as 0.01")

    @property
    def learns_from_data(self) -> bool:
        """Whether there is a discriminator, which data trains."""
        return self.needs_discriminator

    def discriminator_loss(self, real: Tensor, fake: Tensor, context: MatchingContext) -> Tensor:
        """What the discriminator minimises, a number; data and samples get the same levels, drawn here.

        Args:
            real: clean data, [B, C, (F,) h, w].
            fake: the student's samples, shaped alike; detached here.
            context: discriminator, schedule, generator.

        Raises:
            TeacherError: no discriminator, or shapes that don't fit.
            TrainingError: a loss that is not finite.
        """
        discriminator = present(context.discriminator, self.name)
        self.check_sample(fake, context)
        self.check_sample(real, context)
        samples, data = working(fake), working(real)
        with torch.no_grad():
            levels = self.draw(samples, context, *self.level_range(samples, context))
            noisy = [self.diffuse(clean, levels, context)[0] for clean in (data, samples)]
        real_logits, fake_logits = (discriminator(x_t, levels).to(samples.dtype) for x_t in noisy)
        loss = discriminator_term(real_logits, fake_logits).mean()
        if self.gan_penalty:
            for x_t, logits in zip(noisy, (real_logits, fake_logits), strict=True):
                noise = context.noise_like(x_t)
                smooth = jitter_penalty(discriminator, x_t, levels, logits, self.gan_jitter, noise)
                loss = loss + self.gan_penalty * smooth.mean()
        require_finite(self.name, context.step, {"discriminator's loss": loss.detach()})
        return loss
