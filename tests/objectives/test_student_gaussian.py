"""Students' objectives on Gaussians, where each is a line of arithmetic: gradient, expectation, fixed point.

The teacher's data is N(mu, v), the student makes x = m + s z. At x_t = a x + c e, with k = a v / (a^2 v + c^2),

    R = mu + k (x_t - a mu),    U the same around another mean,    F = m + l (x_t - a m),  l = a s^2 / (a^2 s^2 + c^2)
"""

import dataclasses
from typing import Any

import pytest
import torch
from closed_form import COSINE, FLOW, coefficients, gaussian, normal
from student_closed_form import (
    PIXEL,
    ExactDenoiser,
    ExactRatio,
    FixedContext,
    at_level,
    context,
    made,
    numbers,
    quadrature,
    signs,
)
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.guidance import from_delta_convention
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import TeacherError
from dreamkit.objectives import MatchingContext, student_objective_class
from dreamkit.objectives.dmd import DecoupledMatching
from dreamkit.objectives.matching import Scores

pytestmark = pytest.mark.usefixtures("one_thread")

MU, EMPTY, V = 0.4, -0.3, 0.36
M, S = -0.2, 0.5
T = 0.45
schedules = pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])


def world(schedule: NoiseSchedule = COSINE, m: float = M, s: float = S, **more: Any) -> FixedContext:
    teacher = ExactDenoiser(gaussian(MU, V, PIXEL), schedule, gaussian(EMPTY, V, PIXEL))
    critic = ExactDenoiser(made(m, s), schedule, made(m + 0.3, s))
    return context(teacher, critic, schedule=schedule, **more)


class Formula:
    """The same in plain arithmetic, for numbers z and e."""

    def __init__(self, schedule: NoiseSchedule, z: Tensor, e: Tensor, t: float = T, m: float = M, s: float = S) -> None:
        self.a, self.c = coefficients(schedule, t)
        self.k = self.a * V / (self.a**2 * V + self.c**2)
        self.l = self.a * s**2 / (self.a**2 * s**2 + self.c**2)
        self.x = m + s * z
        self.x_t = self.a * self.x + self.c * e
        self.R, self.U = (mean + self.k * (self.x_t - self.a * mean) for mean in (MU, EMPTY))
        self.F, self.FU = (mean + self.l * (self.x_t - self.a * mean) for mean in (m, m + 0.3))

    def guided(self, w: float) -> Tensor:
        return self.U + w * (self.R - self.U)


def grads(name: str, z: Tensor, e: Tensor, schedule: NoiseSchedule = COSINE, w: float = 1.0, **options: Any) -> Tensor:
    """The gradient on every number of x = M + S z, noised by e."""
    given = world(schedule, eps=numbers(e), student_level=torch.tensor([T]).double().expand(len(z)))
    return at_level(name, T, w, **options)(numbers(M + S * z), given).grad.flatten()


def draws(count: int = 6) -> tuple[Tensor, Tensor]:
    return normal(count, (), 1).flatten(), normal(count, (), 2).flatten()


# The gradient, number by number ---------------------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("name", ["dmd", "tdm", "decoupled-dmd"])
def test_dmd(name: str, w: float, schedule: NoiseSchedule) -> None:
    """(F - R_w) / (|x - R_w| + 1e-6), which TDM writes with a target, and which is decoupled DMD at a single level."""
    z, e = draws()
    f = Formula(schedule, z, e)
    n = (f.x - f.guided(w)).abs() + 1e-6
    target = f.x + (f.R - f.F) + (w - 1) * (f.R - f.U)
    torch.testing.assert_close(grads(name, z, e, schedule, w), (f.x - target) / n, rtol=1e-9, atol=1e-11)


@schedules
def test_swiftbrush(schedule: NoiseSchedule) -> None:
    """sigma^2 (eps_R,w - eps_F,w), both guided: eps = (x_t - a x0) / c."""
    z, e = draws()
    f = Formula(schedule, z, e)
    eps = [(f.x_t - f.a * clean) / f.c for clean in (f.guided(3.0), f.FU + 3.0 * (f.F - f.FU))]
    torch.testing.assert_close(
        grads("swiftbrush", z, e, schedule, 3.0), f.c**2 * (eps[0] - eps[1]), rtol=1e-9, atol=1e-11
    )


def test_proper_guidance_draws_a_scale_for_each_sample() -> None:
    """SNOOPI: the gradient is linear in the scale, so each sample's shows: in the range, and all different."""
    z = torch.zeros(64).double()
    at = [grads("swiftbrush", z, z, w=w) for w in (0.0, 1.0)]
    drawn = (grads("swiftbrush", z, z, guidance_range=(2.0, 5.0)) - at[0]) / (at[1] - at[0])
    assert float(drawn.min()) > 2.0
    assert float(drawn.max()) < 5.0
    assert float(drawn.max() - drawn.min()) > 2.5
    assert len(set(drawn.tolist())) == 64
    fixed = grads("swiftbrush", z, z, guidance_range=(4.0, 4.0))
    torch.testing.assert_close(fixed, grads("swiftbrush", z, z, w=4.0), rtol=1e-9, atol=1e-12)


def test_a_self_forcing_guidance_of_three_is_our_four() -> None:
    """E(y) + 3 (E(y) - E(n)), as Self-Forcing and its kin write it."""
    z, e = draws()
    f = Formula(COSINE, z, e)
    theirs = f.R + 3.0 * (f.R - f.U)
    ours = grads("dmd", z, e, w=from_delta_convention(3.0))
    torch.testing.assert_close(ours, (f.F - theirs) / ((f.x - theirs).abs() + 1e-6), rtol=1e-9, atol=1e-11)


@schedules
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.2])
def test_sid(alpha: float, schedule: NoiseSchedule) -> None:
    """L = (R - F)[(R - x) - alpha (R - F)] / n; dR/dx = a k, dF/dx = a l, n fixed."""
    z, e = draws()
    f = Formula(schedule, z, e)
    n = (f.x - f.R).abs() + 1e-6
    d, slope = f.R - f.F, f.a * (f.k - f.l)
    expected = slope * ((f.R - f.x) - alpha * d) + d * (f.a * f.k - 1 - alpha * slope)
    torch.testing.assert_close(grads("sid", z, e, schedule, alpha=alpha), expected / n, rtol=1e-9, atol=1e-11)


@schedules
def test_sim(schedule: NoiseSchedule) -> None:
    """L = d (F - x) / sqrt(d^2 + c^2), d = R - F: its root is differentiated, too."""
    z, e = draws()
    f = Formula(schedule, z, e)
    d, slope, c = f.R - f.F, f.a * (f.k - f.l), 0.05
    root = (d**2 + c**2).sqrt()
    expected = slope * c**2 / root**3 * (f.F - f.x) + d / root * (f.a * f.l - 1)
    torch.testing.assert_close(grads("sim", z, e, schedule, softness=c), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["sid", "sim"])
def test_the_gradient_goes_through_both_networks(name: str) -> None:
    """It is that of the whole loss by central differences, and not the one without the networks' part."""
    z, e = draws()
    method = at_level(name, T, 2.0, **({"softness": 0.1} if name == "sim" else {}))
    given = world(eps=numbers(e))
    x = numbers(M + S * z)
    base = Formula(COSINE, z, e)
    n = numbers((base.x - base.guided(2.0)).abs() + 1e-6) if name == "sid" else 1.0

    def loss(at: Tensor, noisy: Tensor) -> Tensor:
        levels = torch.full((len(z),), T, dtype=torch.float64)
        return method.energy(at, noisy, levels, method.scores(noisy, levels, given, 2.0), given) / n  # type: ignore[attr-defined]

    def noised(at: Tensor) -> Tensor:
        return base.a * at + base.c * numbers(e)

    h = 1e-6
    whole = (loss(x + h, noised(x + h)) - loss(x - h, noised(x - h))) / (2 * h)
    part = (loss(x + h, noised(x)) - loss(x - h, noised(x))) / (2 * h)
    got = method(x, given).grad
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=1e-8)
    assert float((got - part).abs().max()) > 0.05


def test_networks_under_no_grad_are_refused_where_they_are_differentiated() -> None:
    class Closed(ExactDenoiser):
        def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
            return super().predict(x_t, levels).detach()

    z, _ = draws()
    for who in ("teacher", "critic"):
        given = dataclasses.replace(world(), **{who: Closed(made(M, S))})
        with pytest.raises(TeacherError, match=f"{who}.*no_grad"):
            at_level("sid", T)(numbers(M + S * z), given)


# The expectation ------------------------------------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize("name", ["dmd", "tdm"])
def test_the_expected_gradient_of_dmd(name: str, schedule: NoiseSchedule) -> None:
    """Of m: a c (F - R_w) at the mean, which is a c (1 - a k)(m - mu_w)."""
    z, e, weight = quadrature(4)  # exact for polynomials of degree 7
    f = Formula(schedule, z, e)
    for w, mean in ((1.0, MU), (3.0, EMPTY + 3 * (MU - EMPTY))):
        got = float((weight * grads(name, z, e, schedule, w, weighting="sigma_squared")).sum())
        assert got == pytest.approx(f.a * f.c * (1 - f.a * f.k) * (M - mean), rel=1e-9)


@schedules
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_the_expected_gradient_of_sid(alpha: float, schedule: NoiseSchedule) -> None:
    """Of m: (1 - a k)(m - mu_w) [(1 - a l) - (2 - 2 alpha) a (k - l)]. For alpha = 1/2 the bracket is 1 - a k."""
    z, e, weight = quadrature(4)
    f = Formula(schedule, z, e)
    for w, mean in ((1.0, MU), (3.0, EMPTY + 3 * (MU - EMPTY))):
        got = float((weight * grads("sid", z, e, schedule, w, alpha=alpha, normalised=False)).sum())
        bracket = (1 - f.a * f.l) - (2 - 2 * alpha) * f.a * (f.k - f.l)
        assert got == pytest.approx((1 - f.a * f.k) * (M - mean) * bracket, rel=1e-9)


@schedules
def test_the_expected_gradient_of_sim(schedule: NoiseSchedule) -> None:
    """Of m, where scores are much nearer than c: SiD's with alpha = 1, over c."""
    z, e, weight = quadrature(4)
    f = Formula(schedule, z, e)
    got = float((weight * grads("sim", z, e, schedule, softness=1e4)).sum())
    assert got * 1e4 == pytest.approx((1 - f.a * f.k) * (M - MU) * (1 - f.a * f.l), rel=1e-7)


@schedules
def test_the_expected_gradient_of_decoupled(schedule: NoiseSchedule) -> None:
    """Each term at its own level: a c (1 - a k)(m - mu) at t_DM; -(w - 1) a c (1 - a k)(mu - empty) at t_CA."""
    z, e, weight = quadrature(4)
    given = world(schedule, eps=numbers(e), student_level=torch.full((len(z),), 0.8).double())

    class Low(DecoupledMatching):
        def level_range(self, x: Tensor, context: MatchingContext) -> tuple[float, float]:
            return 0.3, 0.3

    method = Low(Schedule.constant(3.0), t_max=0.8, weighting="sigma_squared")
    got = float((weight * method(numbers(M + S * z), given).grad.flatten()).sum())
    low, high = (Formula(schedule, z, e, t) for t in (0.3, 0.8))
    expected = low.a * low.c * (1 - low.a * low.k) * (M - MU)
    expected -= 2 * high.a * high.c * (1 - high.a * high.k) * (MU - EMPTY)
    assert got == pytest.approx(expected, rel=1e-9)


def test_the_guidance_of_decoupled_is_only_noisier_than_the_students_level() -> None:
    levels = []

    class Watched(ExactDenoiser):
        def pair(self, x_t: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            levels.append(at)
            return super().pair(x_t, at)

    started = torch.linspace(0.0, 1.0, 500).double()
    given = dataclasses.replace(world(student_level=started), teacher=Watched(made(MU, 0.6)))
    student_objective_class("decoupled-dmd")()(numbers(torch.zeros(500)), given)
    matching, guidance = levels
    assert bool((guidance >= started.clamp(0.02, 0.98) - 1e-12).all())
    assert float(guidance.max()) <= 0.98 + 1e-12
    assert float(matching.min()) < 0.05  # anywhere
    assert int((matching < started).sum()) > 150


@schedules
@pytest.mark.parametrize("part", ["m", "s"])
def test_sid_with_alpha_a_half_descends_half_the_fisher_divergence(part: str, schedule: NoiseSchedule) -> None:
    """Also of s, though F itself depends on the student: E d^2 with d = (F - R) of the student's own F."""
    z, e, weight = quadrature(4)
    got = weight * grads("sid", z, e, schedule, alpha=0.5, normalised=False)
    m, s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (M, S))
    a, c = coefficients(schedule, T)
    x_t = a * (m + s * z) + c * e
    k, own = a * V / (a**2 * V + c**2), a * s**2 / (a**2 * s**2 + c**2)
    apart = m + own * (x_t - a * m) - MU - k * (x_t - a * MU)
    expected = torch.autograd.grad(0.5 * (weight * apart.square()).sum(), m if part == "m" else s)[0]
    assert float((got * (1 if part == "m" else z)).sum()) == pytest.approx(float(expected), rel=1e-9)


# The fixed point ------------------------------------------------------------------------------------------------------


@schedules
@pytest.mark.parametrize(
    "name", ["dmd", "tdm", "decoupled-dmd", "swiftbrush", "phased-dmd", "re-dmd", "disback", "sim"]
)
def test_a_student_that_makes_the_teachers_data_stays(name: str, schedule: NoiseSchedule) -> None:
    """Every sample's gradient is 0, not only their mean, at every level."""
    x = numbers(normal(8, (), 3).flatten())
    same = ExactDenoiser(gaussian(MU, V, PIXEL), schedule)
    given = context(
        same, same, schedule=schedule, step=99, reward=torch.arange(8.0), path=(same,),
        student_level=torch.full((8,), 0.5), sample_level=torch.full((8,), 0.2),
    )  # fmt: skip
    grad = student_objective_class(name)()(x, given).grad
    assert float(grad.abs().max()) < 1e-9


def test_where_sids_gradient_vanishes_on_average_only() -> None:
    """(R - F) is 0 and so is its slope: SiD's is 0 for every sample as well."""
    x = numbers(normal(8, (), 3).flatten())
    same = ExactDenoiser(gaussian(MU, V, PIXEL))
    assert float(student_objective_class("sid")()(x, context(same, same)).grad.abs().max()) < 1e-9


@pytest.mark.parametrize("name", ["dmd", "sid", "sim", "uni-instruct"])
def test_descent_leads_to_the_guided_mean_and_the_teachers_spread(name: str) -> None:
    """m and s follow the gradients, the critic is exact: to EMPTY + w (MU - EMPTY) and sqrt(V)."""
    z, e = signs()
    m, s, w = -0.4, 0.9, 2.0
    options: dict[str, Any] = {"dmd": {"weighting": "sigma_squared"}, "sid": {"normalised": False, "alpha": 0.5}}.get(
        name, {}
    )
    if name == "uni-instruct":
        options = {"divergence": "reverse-kl", "normalised": False}
    method = at_level(name, 0.3, w, **options)
    goal = EMPTY + w * (MU - EMPTY)
    for step in range(400):
        given = world(m=m, s=s, eps=numbers(e), discriminator=ExactRatio(gaussian(goal, V, PIXEL), made(m, s)))
        grad = method(numbers(m + s * z), given).grad.flatten()
        rate = 0.5 if name != "sim" else 0.05 * (1 - step / 400)
        m, s = m - rate * float(grad.mean()), s - rate * float((grad * z).mean())
    assert m == pytest.approx(goal, abs=0.02)
    assert s == pytest.approx(V**0.5, abs=0.02)


# Weights --------------------------------------------------------------------------------------------------------------


def test_rewards_weigh_dmds_gradient_and_their_weights_average_one() -> None:
    x, reward = numbers(normal(5, (), 3).flatten()), normal(5, (), 4).flatten()
    plain = at_level("dmd", T)(x, world()).grad.flatten()
    weighted = at_level("re-dmd", T, beta=2.0)(x, world(reward=reward)).grad.flatten()
    weights = weighted / plain
    assert float(weights.mean()) == pytest.approx(1.0)
    torch.testing.assert_close(weights, (2 * reward).exp() / (2 * reward).exp().mean(), rtol=1e-9, atol=1e-12)
    same = at_level("re-dmd", T, beta=0.0)(x, world(reward=reward)).grad.flatten()
    torch.testing.assert_close(same, plain, rtol=1e-12, atol=0)
    huge = at_level("re-dmd", T)(x, world(reward=1e4 + reward)).grad  # exp alone would be infinite
    assert bool(torch.isfinite(huge).all())


def test_rewards_of_chunks() -> None:
    x, reward = normal(2, (1, 4, 1, 1), 3), torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 0.5, 0.5]])
    level = {"chunk": 2}
    plain = at_level("dmd", T)(x, world(**level)).grad
    weights = (at_level("re-dmd", T)(x, world(**level, reward=reward)).grad / plain)[:, 0, :, 0, 0]
    torch.testing.assert_close(weights, reward.double().exp() / reward.double().exp().mean(), rtol=1e-9, atol=1e-12)
    whole = (at_level("re-dmd", T)(x, world(**level, reward=reward[:, 0])).grad / plain)[:, 0, :, 0, 0]
    assert float((whole - whole[:, :1]).abs().max()) < 1e-12  # one for the clip is one for each of its chunks


def test_the_way_back() -> None:
    """Most degraded first, each for as long, then the teacher."""
    x = numbers(normal(4, (), 3).flatten())
    path = [ExactDenoiser(made(0.1 * place, 0.5)) for place in (1, 2, 3, 4)]
    for step, expected in ((0, 3), (12, 3), (13, 2), (37, 1), (49, 0), (50, None), (99, None)):
        given = world(path=path, step=step)
        teacher = given.teacher if expected is None else path[expected]
        plain = at_level("dmd", T, 3.0)(
            x, world(path=path, step=step) if expected is None else dataclasses.replace(world(), teacher=teacher)
        )
        got = at_level("disback", T, 3.0)(x, given)
        assert torch.equal(got.grad, plain.grad), step
        assert got.diagnostics["steps_back"] == (0 if expected is None else expected + 1)


def test_scores_are_plain_data() -> None:
    z, e = draws()
    given = world(eps=numbers(e))
    levels = torch.full((len(z),), T, dtype=torch.float64)
    x_t = numbers(Formula(COSINE, z, e).x_t)
    assert at_level("dmd", T).scores(x_t, levels, given, 1.0).unconditional is None  # half the cost
    scores = at_level("dmd", T).scores(x_t, levels, given, 3.0)
    assert isinstance(scores, Scores)
    assert scores.unconditional is not None
    torch.testing.assert_close(scores.unconditional.flatten(), Formula(COSINE, z, e).U, rtol=1e-9, atol=1e-11)
