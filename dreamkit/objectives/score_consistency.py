"""Consistency in continuous time: a student that leads every point of a path to the same end; and a score to steady it.

**TrigFlow** (Lu and Song, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models", arXiv 2410.11081)
is where the formulas are short. With the angle theta = atan2(sigma, alpha), any schedule's noisy sample over
c = sqrt(alpha^2 + sigma^2) is

    z = x_t / c = cos(theta) x0 + sin(theta) e

so a denoiser's answer at (c z, t) is one for z at theta, and its velocity is V = (cos(theta) z - x0) / sin(theta). The
data's path to noise has dz / dtheta = V of the teacher. A student's end is f = cos(theta) z - sin(theta) V, its x0.
(Data is taken as it comes: the paper's sigma_d is 1.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamkit.checks import one_of, require_integer
from dreamkit.diffusion.guidance import guide
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.objectives.base import require, surrogate_loss
from dreamkit.objectives.dmd import DistributionMatching
from dreamkit.objectives.matching import (
    CriticWeighting,
    Denoiser,
    Matching,
    MatchingContext,
    StudentLoss,
    coefficients,
    group_sum,
    require_finite,
    spread,
    working,
)
from dreamkit.objectives.registry import register_student

Derivative = Literal["auto", "jvp", "difference"]

_NORM_OFFSET = 0.1
"""c of g / (||g|| + c)."""


# TrigFlow and schedules ---------------------------------------------------------------------------------------------


def angle(schedule: NoiseSchedule, levels: Tensor) -> Tensor:
    """Theta = atan2(sigma, alpha), shaped like the levels."""
    return torch.atan2(schedule.sigma(levels), schedule.alpha(levels))


def angle_rate(schedule: NoiseSchedule, levels: Tensor) -> Tensor:
    """The slope d theta / dt, shaped like the levels; of a schedule in steps, that between two of them."""
    slope: Tensor = torch.func.jvp(lambda t: angle(schedule, t), (levels,), (torch.ones_like(levels),))[1]
    return slope


def trig_parts(schedule: NoiseSchedule, levels: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cos, sin and c, broadcast over x."""
    alpha, sigma = coefficients(schedule, levels, x)
    size = torch.hypot(alpha, sigma)
    return alpha / size, sigma / size, size


def velocity(predicted: Tensor, z: Tensor, levels: Tensor, schedule: NoiseSchedule) -> Tensor:
    """V = (cos z - x0) / sin, of a predicted x0, shaped like z."""
    cos, sin, _ = trig_parts(schedule, levels, z)
    return (cos * z - predicted.to(z.dtype)) / sin


def student_velocity(student: Denoiser, z: Tensor, levels: Tensor, schedule: NoiseSchedule) -> Tensor:
    """V of a denoiser at z, shaped like it."""
    _, _, size = trig_parts(schedule, levels, z)
    return velocity(student.predict(size * z, levels), z, levels, schedule)


def directional_derivative(
    function: Callable[[Tensor, Tensor], Tensor],
    at: tuple[Tensor, Tensor],
    along: tuple[Tensor, Tensor],
    how: Derivative,
    step: float,
) -> tuple[Tensor, bool]:
    """d/dh function(at + h along) at h = 0, and whether it is exact (forward mode).

    Args:
        function: of z and levels.
        at: where.
        along: the direction, shaped like `at`.
        how: jvp; difference: central, (function(+step) - function(-step)) / (2 step); auto: jvp where the network has
            it, which one with an attention kernel of its own may not.
        step: of the difference.

    Raises:
        ConfigError: jvp is asked for, and the network has none.
    """
    if how != "difference":
        try:
            with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention has no forward derivative
                return torch.func.jvp(function, at, along)[1], True
        except RuntimeError as error:  # a NotImplementedError is one, too; what is truly wrong comes back below
            if how == "jvp":
                raise ConfigError(
                    f"The student has no forward derivative: {error}.", "Use derivative=difference, or auto."
                ) from error
    ahead, behind = (function(at[0] + h * along[0], at[1] + h * along[1]) for h in (step, -step))
    return (ahead - behind) / (2 * step), False


# Objectives -----------------------------------------------------------------------------------------------------------


@register_student("scm")
@dataclass(frozen=True)
class ScoreConsistency(Matching):
    """sCM (Lu and Song, arXiv 2410.11081; for text to image: Chen et al., "SANA-Sprint", arXiv 2503.09641).

        dz = V_T dtheta                                        the teacher's path, guided
        g = -cos sqrt(1 - r^2 sin^2) (V - V_T) - r (cos sin z + cos sin dV/dtheta),   r = min(1, step / warm-up)
        L = 1/2 ||V_student - sg(V + g / (||g|| + 0.1))||^2

    At r = 1, g is cos df/dtheta along the teacher's path: 0 where f does not change along it, which is consistency. At
    r = 0 the student learns the teacher's own velocity. The root is rCM's way of warming up (Zheng et al., arXiv
    2510.08431; the dV/dtheta of their formula has cos sin in it already, their derivative is along that much of the
    path).

    z is noised from `context.data`, or from x where there is none. The loss has a gradient for the student's weights
    through `context.student`, none for x; `grad` is that with respect to the student's velocity.
    """

    needs_student: ClassVar[bool] = True
    t_max: float = 0.999
    """Largest noise level that the student is taught at, at most 1."""
    warmup_steps: int = 1000
    """Steps until the tangent counts in full, at least 0."""
    derivative: Derivative = "auto"
    """How the tangent is found: jvp, exact; difference, with two more forward passes; auto, jvp where there is one."""
    difference_step: float = 3e-4
    """Step of the difference along the path, in radians times cos sin, above 0; for networks in float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("The number of warm-up steps", self.warmup_steps, 0)
        one_of("The derivative", self.derivative, get_args(Derivative))
        require(0 < self.difference_step <= 0.1, "difference_step", self.difference_step, "above 0, at most 0.1")

    def __call__(self, x: Tensor, context: MatchingContext) -> StudentLoss:
        """The consistency loss.

        Raises:
            TeacherError: the context lacks something, or shapes don't fit.
            TrainingError: a term is not finite.
        """
        self.check(context)
        self.check_sample(x, context)
        clean = working(x if context.data is None else context.data)
        assert context.student is not None  # `check` has seen to it
        student, schedule = context.student, context.schedule
        levels = self.draw(clean, context, *self.level_range(clean, context))
        with torch.no_grad():
            x_t, _ = self.diffuse(clean, levels, context)
            z = x_t / trig_parts(schedule, levels, clean)[2]
            teacher = self.teacher_velocity(x_t, z, levels, context)
        made = student_velocity(student, z, levels, schedule)
        with torch.no_grad():
            tangent, exact = self.tangent(made.detach(), teacher, z, levels, context)
            norm = spread(group_sum(tangent.square(), context.chunk).sqrt(), z)
            grad = -tangent / (norm + _NORM_OFFSET)
            cos, sin, _ = trig_parts(schedule, levels, z)
        terms = {"student's prediction": made.detach(), "teacher's prediction": teacher, "tangent": tangent}
        require_finite(self.name, context.step, dict(terms))
        diagnostics = {
            "t": float(levels.mean()),
            "tangent_norm": float(norm.mean()),
            "warmup": self.warmup(context),
            "jvp": float(exact),
        }
        target = (cos * z - sin * teacher).to(x.dtype)
        return StudentLoss(surrogate_loss(made, grad), grad.to(x.dtype), target, diagnostics)

    def tangent(
        self, made: Tensor, teacher: Tensor, z: Tensor, levels: Tensor, context: MatchingContext
    ) -> tuple[Tensor, bool]:
        """G at z, before it is normalised; and whether its derivative is exact.

        Args:
            made: V of the student, detached.
            teacher: V_T, guided.
            z: noisy samples over c.
            levels: theirs, [B] or [B, F].
            context: student and schedule.
        """
        assert context.student is not None  # `check` has seen to it
        student, schedule, r = context.student, context.schedule, self.warmup(context)
        cos, sin, _ = trig_parts(schedule, levels, z)
        theta = angle(schedule, levels)
        # Along cos sin of the path: where a derivative may be steep, at the ends, there is little of it (2410.11081).
        share = theta.cos() * theta.sin()
        slope, exact = directional_derivative(
            lambda at, t: student_velocity(student, at, t, schedule),
            (z, levels),
            (cos * sin * teacher, share / angle_rate(schedule, levels)),
            self.derivative,
            self.difference_step,
        )
        flat = cos * (1 - (r * sin).square()).clamp_min(0).sqrt()
        return -flat * (made - teacher) - r * (cos * sin * z + slope), exact

    def teacher_velocity(self, x_t: Tensor, z: Tensor, levels: Tensor, context: MatchingContext) -> Tensor:
        """V_T at the guidance of this step."""
        w = self.scale(z, context)
        if w == 1:
            return velocity(context.teacher.predict(x_t, levels), z, levels, context.schedule)
        full, empty = context.teacher.pair(x_t, levels)
        return velocity(guide(full, empty, w), z, levels, context.schedule)

    def warmup(self, context: MatchingContext) -> float:
        """R, from 0 to 1."""
        return 1.0 if not self.warmup_steps else min(1.0, context.step / self.warmup_steps)


@register_student("rcm")
@dataclass(frozen=True)
class RegularisedConsistency(ScoreConsistency):
    """rCM (Zheng et al., "Score-Regularized Continuous-Time Consistency", arXiv 2510.08431).

        L = L_sCM + dmd_weight L_DMD

    sCM covers the data's modes and blurs details; DMD, on what the student makes (x, with its graph), seeks modes and
    is sharp. DMD, with its usual levels, joins when the tangent's warm-up is over. `grad` is what reaches x; the
    student's weights get sCM's part through `context.student`.
    """

    needs_critic: ClassVar[bool] = True
    critic_weighting: CriticWeighting = "v"
    """What the critic's error is measured in: eps, flow, v, x0, or min_snr."""
    dmd_weight: float = 0.01
    """Weight of DMD's loss, >= 0; 0 is sCM."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.dmd_weight < float("inf"), "dmd_weight", self.dmd_weight, "a number >= 0; 0 is scm")

    def __call__(self, x: Tensor, context: MatchingContext) -> StudentLoss:
        """The consistency loss, and DMD's on x.

        Raises:
            TeacherError: the context lacks something, or shapes don't fit.
            TrainingError: a term is not finite.
        """
        steady = super().__call__(x, context)
        diagnostics = {f"scm/{name}": value for name, value in steady.diagnostics.items()}
        if self.warmup(context) < 1:
            return StudentLoss(steady.loss, torch.zeros_like(x), steady.target.to(x.dtype), diagnostics)
        dmd = DistributionMatching(
            guidance=self.guidance,
            critic_guided=self.critic_guided,
            shift=self.shift,
            shared_level=self.shared_level,
        )
        sharp = dmd(x, context)
        diagnostics |= {f"dmd/{name}": value for name, value in sharp.diagnostics.items()}
        loss = steady.loss + self.dmd_weight * sharp.loss
        return StudentLoss(loss, self.dmd_weight * sharp.grad, sharp.target, diagnostics)
