"""The teacher at another point of its own path as the reference: CDS, ISM, TSM, ASD."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.inversion import invert
from dreamkit.diffusion.teacher import Query
from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, Weighting, require
from dreamkit.objectives.registry import register
from dreamkit.objectives.timesteps import TimestepSchedule


@register("cds")
@dataclass(frozen=True)
class ConsistencyDistillationSampling(Distillation):
    """CDS (Wu et al., "Consistent3D", arXiv 2401.09050).

        x_{t1} = alpha_1 x + sigma_1 e*            one noise e* for the whole run
        x_{t2} = alpha_2 x0_1 + sigma_2 E_1        one step of the ODE, t2 < t1, E_1 = D(s)(x_{t1}, t1)
        g = w (E_1 - E_2)                          E_2 = D(s)(x_{t2}, t2)

    In the variance-exploding view z_t = x_t / alpha that is z_2 = z_1 + (lam_2 - lam_1) E_1.
    """

    guidance: Schedule = field(default_factory=lambda: Schedule(0.0, 100.0, 50.0, 1.0))
    """Guidance scale s of E(n) + s (E(y) - E(n)) over the run, >= 0."""
    timesteps: TimestepSchedule = field(
        default_factory=lambda: TimestepSchedule(Schedule(0.0, 0.7, 0.1, 1.0, "sqrt"), Schedule.constant(0.0))
    )
    """Levels t2 over the run: a name (uniform, linear, sqrt, two_phase, dreamtime) or the fields."""
    weighting: Weighting = "uniform"
    """w at t1: sigma_squared, uniform, sigma_ratio or alpha."""
    smallest_gap: float = 0.1
    """Smallest t1 - t2, above 0."""
    largest_gap: float = 0.3
    """Largest t1 - t2, at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        holds = 0 < self.smallest_gap <= self.largest_gap <= 1
        require(holds, "gap", (self.smallest_gap, self.largest_gap), "0 < smallest_gap <= largest_gap <= 1")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) at t1 and at t2."""
        schedule = context.teacher.schedule
        share = torch.rand(len(t), generator=context.generator, dtype=torch.float64).to(t.device)
        t1 = (t + self.smallest_gap + share * (self.largest_gap - self.smallest_gap)).clamp(max=self.timesteps.t_max)
        first = self.ask(schedule.add_noise(x, context.kept_noise(x).expand_as(x), t1), t1, context).guided
        second = self.ask(schedule.add_noise(first.x0, first.eps, t), t, context).guided
        return Terms(first.eps, second.eps, second.x0, t1)


@register("ism")
@dataclass(frozen=True)
class IntervalScoreMatching(Distillation):
    """ISM (Liang et al., "LucidDreamer", arXiv 2311.11284).

        x_s by DDIM inversion of x with the empty prompt, x_t one more step of it, t - s = gap
        g = lam_t (D(s)(x_t, t) - E(x_s, s, 0)),   lam = sigma / alpha

    Deterministic: no noise is drawn. E(x_s, s, 0) is what the step to x_t followed, and costs nothing.
    """

    timesteps: TimestepSchedule = field(
        default_factory=lambda: TimestepSchedule(
            Schedule(0.0, 0.5, 0.26, 0.3), Schedule(0.0, 0.48, 0.24, 0.3)
        )  # U[0.02, t_max], t_max from 0.98 to 0.5 over the first 30 %
    )
    """Levels t over the run: a name (uniform, linear, sqrt, two_phase, dreamtime) or the fields."""
    weighting: Weighting = "sigma_ratio"
    """w(t): sigma_squared, uniform, sigma_ratio or alpha."""
    gap: Schedule = field(default_factory=lambda: Schedule(0.0, 0.1, 0.05, 1.0))
    """t - s over the run, above 0, at most 1; half of t where t is smaller than twice that."""
    stride: float = 0.2
    """Longest step of the inversion to s, above 0, at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (self.gap.start_value, self.gap.end_value, self.stride):
            require(0 < value <= 1, "gap or stride", value, "a number above 0, at most 1")

    def interval(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The level s [B] below t, E(x_s, s, 0), the clean sample it sees, and x_t one step further."""
        teacher, camera = context.teacher, context.camera
        s = torch.maximum(t - self.gap.at(context.progress, context.total), t / 2)
        x_s = invert(teacher, x, s, context.null, camera=camera, stride=self.stride).x_t
        before = teacher.predict(x_s, s, context.null, camera)
        return s, before.eps, before.x0, teacher.schedule.add_noise(before.x0, before.eps, t)

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) at t, and the empty prompt's prediction at s."""
        _, before, _, x_t = self.interval(x, t, context)
        guided = self.ask(x_t, t, context).guided
        return Terms(guided.eps, before, guided.x0, t)


@register("tsm")
@dataclass(frozen=True)
class TrajectoryScoreMatching(IntervalScoreMatching):
    """TSM (Miao et al., "Dreamer XL: High-Resolution Text-to-3D by Trajectory Score Matching", arXiv 2405.11252).

        x_mu and x_t both one step from x_s,   mu = s + (t - s) sqrt(1 - gamma^2)
        g = lam_t (D(s)(x_t, t) - E(x_mu, mu, 0))

    Two points from one start share the error that the inversion has gathered, where ISM's second point adds its own.
    gamma = 1 is ISM.
    """

    gamma: float = 0.3
    """How far the two points lie apart, above 0, at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "gamma", self.gamma, "a number above 0, at most 1; 1 is ISM")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) at t, and the empty prompt's prediction at mu, in one forward pass."""
        s, before, clean, x_t = self.interval(x, t, context)
        mu = s + (t - s) * (1 - self.gamma**2) ** 0.5
        x_mu = context.teacher.schedule.add_noise(clean, before, mu)
        answer = self.ask(x_t, t, context, also=[Query(x_mu, mu, context.null, context.camera)])
        return Terms(answer.guided.eps, answer.also[0].eps, answer.guided.x0, t)


@register("asd")
@dataclass(frozen=True)
class AsynchronousScoreDistillation(Distillation):
    """ASD (Ma et al., "ScaleDreamer", arXiv 2407.02040).

        x_t, x_tau of the same x and the same e,   tau = t + u shift (t - t_min),   u ~ U[0, 1]
        g = w(t) (D(s)(x_t, t) - E(x_tau, tau, y))

    A teacher is a better critic of bad pictures when it sees them with more noise: VSD's reference without a critic.
    """

    shift: float = 0.1
    """How far tau may lie above t, as a share of t - t_min, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.shift <= 1, "shift", self.shift, "0 to 1")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) at t and the prompt's prediction at tau, in one forward pass."""
        schedule, eps = context.teacher.schedule, context.noise_like(x)
        share = torch.rand(len(t), generator=context.generator, dtype=torch.float64).to(t.device)
        tau = (t + share * self.shift * (t - self.timesteps.t_min)).clamp(max=1.0)
        later = Query(schedule.add_noise(x, eps, tau), tau, context.positive, context.camera)
        answer = self.ask(schedule.add_noise(x, eps, t), t, context, also=[later])
        return Terms(answer.guided.eps, answer.also[0].eps, answer.guided.x0, t)
