"""Few-step students: the levels of a segment, and a phase's gradient and critic, on Gaussians."""

import dataclasses
from typing import Any

import pytest
import torch
from closed_form import COSINE, FLOW, coefficients, gaussian, normal
from student_closed_form import (
    PIXEL,
    ExactDenoiser,
    FixedContext,
    Linear,
    at_level,
    context,
    numbers,
    quadrature,
    signs,
)
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.objectives import student_objective_class
from dreamkit.objectives.causal_video import few_step_levels
from dreamkit.objectives.matching import shifted
from dreamkit.objectives.segments import PhasedMatching, Step

pytestmark = pytest.mark.usefixtures("one_thread")

MU, V = 0.4, 0.3
EARLY, LATE = 0.35, 0.7  # s and t
schedules = pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])


# TDM ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("critic", [False, True], ids=["student", "critic"])
def test_levels_stay_in_the_segment_of_the_students_step(critic: bool, shift: float) -> None:
    """Student levels 1, 3/4, 1/2, 1/4, shifted as the student's are: each has the levels down to the next."""
    started = torch.tensor(few_step_levels(4, shift)).double().repeat(100)
    method = student_objective_class("tdm")(shift=shift, segments=4)
    x = torch.zeros(400, 1, 1, 1).double()
    given = context(ExactDenoiser(gaussian(MU, V, PIXEL)), student_level=started)
    ends = method.critic_range(x, given) if critic else method.level_range(x, given)
    drawn = method.draw(x, given, *ends).unflatten(0, (100, 4))
    tops = [1.0, 0.75, 0.5, 0.25, 0.0]
    low, high = (0.001, 1.0) if critic else (0.02, 0.98)
    for step in range(4):
        top, bottom = (float(shifted(torch.tensor(tops[step + back]).double(), shift)) for back in (0, 1))
        seen = drawn[:, step]
        assert float(seen.min()) >= max(bottom, low) - 1e-9
        assert float(seen.max()) <= min(top, high) + 1e-9
        assert float(seen.max() - seen.min()) > 0.9 * (min(top, high) - max(bottom, low))


def test_chunks_have_segments_of_their_own() -> None:
    started = torch.tensor([[1.0, 1.0, 0.5, 0.5]]).double().expand(50, 4)
    x = torch.zeros(50, 1, 4, 1, 1).double()
    given = context(ExactDenoiser(gaussian(MU, V, PIXEL)), student_level=started, chunk=2)
    method = student_objective_class("tdm")(segments=2)
    drawn = method.draw(x, given, *method.level_range(x, given))
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert float(drawn[:, :2].min()) > 0.5
    assert float(drawn[:, 2:].max()) < 0.5


def test_one_segment_is_dmd() -> None:
    x = numbers(normal(6, (), 1).flatten())
    teacher, critic = ExactDenoiser(gaussian(MU, V, PIXEL)), ExactDenoiser(gaussian(0.0, 0.5, PIXEL))
    level = torch.ones(6).double()
    one = student_objective_class("tdm")(segments=1)(x, context(teacher, critic, student_level=level)).grad
    two = student_objective_class("dmd")()(x, context(teacher, critic)).grad
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("segments", [0, -1, 1.5])
def test_bad_segments(segments: Any) -> None:
    with pytest.raises(ConfigError, match="segments"):
        student_objective_class("tdm")(segments=segments)


def test_a_level_of_another_shape() -> None:
    teacher = ExactDenoiser(gaussian(MU, V, PIXEL))
    for name in ("tdm", "decoupled-dmd"):
        with pytest.raises(TeacherError, match="student's level has shape"):
            student_objective_class(name)()(
                torch.zeros(2, 1, 1, 1), context(teacher, teacher, student_level=torch.ones(3))
            )
    with pytest.raises(TeacherError, match="sample's level has shape"):
        student_objective_class("phased-dmd")()(
            torch.zeros(2, 1, 1, 1), context(teacher, teacher, sample_level=torch.ones(2, 1))
        )


# Phased DMD -----------------------------------------------------------------------------------------------------------


class Implied:
    """The denoiser of noisy samples that are N(mean, variance) at their level: (x_t + sigma^2 score) / alpha."""

    def __init__(self, schedule: NoiseSchedule, mean: float, variance: float) -> None:
        self.schedule, self.mean, self.variance = schedule, mean, variance

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        alpha, sigma = self.schedule.coefficients(levels, x_t)
        return (x_t - sigma**2 * (x_t - self.mean) / self.variance) / alpha

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


class At(PhasedMatching):
    """At one level."""

    def level_range(self, x: Tensor, context: Any) -> tuple[float, float]:
        return LATE, LATE

    def critic_range(self, x: Tensor, context: Any) -> tuple[float, float]:
        return LATE, LATE


def phase(schedule: NoiseSchedule, start: float = EARLY) -> tuple[float, float, float, float, float, float]:
    """a_s, s_s, a_t, s_t, a_{t|s}, s_{t|s}."""
    (a_s, s_s), (a_t, s_t) = coefficients(schedule, start), coefficients(schedule, LATE)
    ratio = a_t / a_s
    return a_s, s_s, a_t, s_t, ratio, (s_t**2 - ratio**2 * s_s**2) ** 0.5


def starting(count: int, level: float = EARLY) -> Tensor:
    return torch.full((count,), level, dtype=torch.float64)


@schedules
def test_a_step_is_the_rest_of_the_noise(schedule: NoiseSchedule) -> None:
    """a_t x0 + s_t e in two steps: mean and variance add up; from a clean start it is the whole."""
    a_s, s_s, a_t, s_t, ratio, spread = phase(schedule)
    step = Step.between(schedule, starting(1), starting(1, LATE))
    assert float(step.ratio) == pytest.approx(ratio)
    assert float(step.spread) == pytest.approx(spread)
    assert ratio * a_s == pytest.approx(a_t)
    assert (ratio * s_s) ** 2 + spread**2 == pytest.approx(s_t**2)
    clean = Step.between(schedule, starting(1, 0.0), starting(1, LATE))
    assert (float(clean.ratio), float(clean.spread)) == pytest.approx((a_t, s_t))


@schedules
@pytest.mark.parametrize("start", [0.0, EARLY])
def test_the_gradient_is_that_of_kl_at_the_level(start: float, schedule: NoiseSchedule) -> None:
    """For x_s = m + s z: d/dm and d/ds of KL(N(.), N(.)) of the two noisy Gaussians, in closed form."""
    *_, a_t, s_t, ratio, spread = phase(schedule, start)
    z, e, weight = quadrature(4)
    m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (-0.2, 0.6))
    variance, goal = ratio**2 * s**2 + spread**2, a_t**2 * V + s_t**2
    kl = 0.5 * ((goal / variance).log() + (variance + (ratio * m - a_t * MU) ** 2) / goal - 1)
    expected = torch.autograd.grad(kl, (m, s))
    teacher = ExactDenoiser(gaussian(MU, V, PIXEL), schedule)
    critic = Implied(schedule, ratio * -0.2, float(variance.detach()))
    given = context(teacher, critic, schedule=schedule, eps=numbers(e), sample_level=starting(len(z), start))
    grad = At(Schedule.constant(1.0))(numbers(-0.2 + 0.6 * z), given).grad.flatten()
    assert float((weight * grad).sum()) == pytest.approx(float(expected[0]), rel=1e-9)
    assert float((weight * grad * z).sum()) == pytest.approx(float(expected[1]), rel=1e-9)


@schedules
def test_the_papers_weight_in_flow(schedule: NoiseSchedule) -> None:
    """a_t a_{t|s} / (a_t s_t + s_t^2) (flow_R - flow_F), on any schedule."""
    *_, a_t, s_t, ratio, spread = phase(schedule)
    x, e = normal(8, (), 1).flatten(), normal(8, (), 2).flatten()
    x_t = numbers(ratio * x + spread * e)
    teacher, critic = (
        ExactDenoiser(gaussian(MU, V, PIXEL), schedule),
        ExactDenoiser(gaussian(-0.1, 0.5, PIXEL), schedule),
    )
    real, fake = (
        schedule.convert(denoiser.predict(x_t, starting(8, LATE)), x_t, starting(8, LATE), "x0").flow
        for denoiser in (teacher, critic)
    )
    expected = a_t * ratio / (a_t * s_t + s_t**2) * (real - fake)
    given = context(teacher, critic, schedule=schedule, eps=numbers(e), sample_level=starting(8))
    torch.testing.assert_close(At(Schedule.constant(1.0))(numbers(x), given).grad, expected, rtol=1e-9, atol=1e-11)


def trained(target: str, schedule: NoiseSchedule, start: float = EARLY, **options: Any) -> Tensor:
    """b and k of the critic b + k x_t that minimises `critic_loss`: the loss is a square, so Newton's step is exact.

    x_s = a_s mu + sqrt(a_s^2 v + s_s^2) z and e take the values that have all the moments that a square asks for."""
    a_s, s_s, *_ = phase(schedule, start)
    z, e = signs()
    critic = Linear()
    given = context(critic, critic, schedule=schedule, eps=numbers(e), sample_level=starting(len(z), start))
    x = numbers(a_s * MU + (a_s**2 * V + s_s**2) ** 0.5 * z)

    def loss(weights: Tensor) -> Tensor:
        at = Bound(weights)
        return At(critic_target=target, **options).critic_loss(x, dataclasses.replace(given, critic=at))  # type: ignore[arg-type]

    weights = torch.zeros(2, dtype=torch.float64)
    gradient = torch.func.grad(loss)(weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    return weights - torch.linalg.solve(hessian, gradient)


class Bound:
    """b + k x_t for given weights."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return self.weights[0] + self.weights[1] * x_t

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


@schedules
@pytest.mark.parametrize("weighting", ["flow", "min_snr", "eps", "v", "x0"])
def test_the_corrected_target_makes_the_exact_critic(weighting: str, schedule: NoiseSchedule) -> None:
    """mu + k (x_t - a_t mu), k = a_t v / (a_t^2 v + s_t^2): E[x0 | x_t], though nobody showed it an x0."""
    *_, a_t, s_t, _, _ = phase(schedule)
    k = a_t * V / (a_t**2 * V + s_t**2)
    got = trained("corrected", schedule, critic_weighting=weighting)
    assert got.tolist() == pytest.approx([MU - k * a_t * MU, k], rel=1e-9)


@schedules
def test_the_plain_target_is_biased(schedule: NoiseSchedule) -> None:
    """It makes E[x_s | x_t] = a_s mu + l (x_t - a_t mu), l = a_{t|s} var_s / var_t: another mean, another slope."""
    a_s, s_s, a_t, s_t, ratio, _ = phase(schedule)
    slope = ratio * (a_s**2 * V + s_s**2) / (a_t**2 * V + s_t**2)
    got = trained("plain", schedule)
    assert got.tolist() == pytest.approx([a_s * MU - slope * a_t * MU, slope], rel=1e-9)
    right = trained("corrected", schedule)
    assert abs(float(got[1] - right[1])) > 0.05
    # Against that critic a student that is right already would be pushed away; against the other it stays.
    levels, x_t = starting(4, LATE), numbers(normal(4, (), 1).flatten())
    exact = ExactDenoiser(gaussian(MU, V, PIXEL), schedule).predict(x_t, levels)
    assert float((Bound(right).predict(x_t, levels) - exact).abs().max()) < 1e-9
    assert float((Bound(got).predict(x_t, levels) - exact).abs().max()) > 0.05


@schedules
def test_of_clean_samples_both_are_the_same(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(
        trained("plain", schedule, 0.0), trained("corrected", schedule, 0.0), rtol=1e-9, atol=1e-12
    )


@schedules
def test_the_critics_loss_stays_bounded_next_to_the_samples_level(schedule: NoiseSchedule) -> None:
    """x0* has a variance of 1 / s_{t|s}^2 there, and the clamp takes it back."""
    x = numbers(normal(200, (), 1).flatten())
    sizes = []
    for share in (1e-6, 1e-3, 0.1):
        method = student_objective_class("phased-dmd")(critic_t_min=share, critic_t_max=share)
        given = context(Linear(), Linear(), schedule=schedule, sample_level=starting(200))
        sizes.append(float(method.critic_loss(x, given).detach()))
    assert max(sizes) < 100


def test_levels_are_above_the_samples() -> None:
    method = student_objective_class("phased-dmd")()
    x, start = torch.zeros(500, 1, 1, 1).double(), torch.linspace(0, 0.9, 500).double()
    given = context(Linear(), Linear(), sample_level=start)
    for low, high in (method.level_range(x, given), method.critic_range(x, given)):
        drawn = method.draw(x, given, low, high)
        assert bool((drawn > start).all())
        assert float(drawn.max()) <= 1.0


def test_a_bad_target() -> None:
    with pytest.raises(ConfigError, match="'right'"):
        at_level("phased-dmd", 0.5, critic_target="right")


def test_phases_of_chunks() -> None:
    """A chunk that stops early and one that goes to its end are each weighed for themselves."""
    teacher, critic = ExactDenoiser(gaussian(MU, V, PIXEL)), ExactDenoiser(gaussian(0.0, 0.5, PIXEL))
    clip, noise = normal(2, (1, 4, 1, 1), 1), normal(2, (1, 4, 1, 1), 2)
    level = torch.tensor([[EARLY, EARLY, 0.0, 0.0]] * 2).double()

    def grad(x: Tensor, eps: Tensor, start: Tensor, chunk: int) -> Tensor:
        given: FixedContext = context(teacher, critic, eps=eps, sample_level=start, chunk=chunk)
        return At()(x, given).grad

    got = grad(clip, noise, level, 2)
    for frame in range(4):
        alone = grad(clip[:, :, frame], noise[:, :, frame], level[:, frame], 0)
        torch.testing.assert_close(got[:, :, frame], alone, rtol=1e-10, atol=1e-12)
