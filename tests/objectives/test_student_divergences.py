"""f-divergences: what a gradient claims to be the gradient of, by quadrature; and which modes a student ends on."""

from typing import Any

import pytest
import torch
from closed_form import COSINE, coefficients
from student_closed_form import (
    ExactDenoiser,
    ExactRatio,
    FixedContext,
    at_level,
    context,
    log_density,
    made,
    modes,
    numbers,
    quadrature,
)
from torch import Tensor

from dreamkit.diffusion.exact import Mixture
from dreamkit.errors import ConfigError
from dreamkit.objectives.adversarial import curvature, curvature_slope

pytestmark = pytest.mark.usefixtures("one_thread")

# f of D_f(p || q) = E_q f(p / q), each with f'' = h / r^2.
GENERATORS: dict[str, Any] = {
    "reverse-kl": lambda r: -r.log(),
    "kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
    "softened-reverse-kl": lambda r: (1 + r) * ((1 + r) / r).log(),
    "neyman": lambda r: 1 / (2 * r),
    "hellinger": lambda r: -4 * r.sqrt(),
    "jeffreys": lambda r: (r - 1) * r.log(),
}
WRITTEN: dict[str, Any] = {
    "reverse-kl": lambda r: 1.0,
    "kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "softened-reverse-kl": lambda r: 1 / (1 + r),
    "neyman": lambda r: 1 / r,
    "hellinger": lambda r: r**0.5,
    "jeffreys": lambda r: 1 + r,
}
each_divergence = pytest.mark.parametrize("divergence", GENERATORS)

T = 0.6
DATA = modes([-0.7, 0.8], 0.5, [0.4, 0.6])
M, S = 0.25, 0.6


@each_divergence
def test_h_is_the_papers(divergence: Any) -> None:
    """r^2 f'', by derivatives of f; and h - r h'."""
    r = torch.tensor([0.05, 0.4, 1.0, 2.5, 9.0], dtype=torch.float64, requires_grad=True)
    h = curvature(divergence, r)
    assert h.tolist() == pytest.approx([WRITTEN[divergence](value) for value in r.tolist()])
    first = torch.autograd.grad(GENERATORS[divergence](r).sum(), r, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), r)[0]
    torch.testing.assert_close(h, r.square() * second, rtol=1e-9, atol=1e-12)
    slope = torch.autograd.grad((r * 0 + h).sum(), r)[0]
    torch.testing.assert_close(curvature_slope(divergence, r), h - r * slope, rtol=1e-9, atol=1e-12)


def test_an_unknown_divergence() -> None:
    for attempt in (lambda: curvature("chi", torch.ones(1)), lambda: curvature_slope("chi", torch.ones(1))):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="'chi'"):
            attempt()
    for name in ("f-distill", "uni-instruct"):
        with pytest.raises(ConfigError, match="'chi'"):
            at_level(name, T, divergence="chi")


class Student:
    """x = m + s z with the weights of a quadrature, its noisy density, and derivatives with respect to m and s."""

    def __init__(self, nodes: int, t: float = T) -> None:
        self.z, self.e, self.weight = quadrature(nodes)
        self.t, (self.a, self.c) = t, coefficients(COSINE, t)

    def given(self, m: float = M, s: float = S, data: Mixture = DATA) -> FixedContext:
        own = made(m, s)
        ratio = ExactRatio(data, own)
        return context(ExactDenoiser(data), ExactDenoiser(own), eps=numbers(self.e), discriminator=ratio)

    def gradient(self, name: str, **options: Any) -> Tensor:
        """E g and E g z, with the mean of h that the objective divides by put back."""
        given = self.given()
        x = numbers(M + S * self.z)
        grad = at_level(name, self.t, ratio_limit=1e9, **options)(x, given).grad.flatten()
        alpha, sigma = torch.tensor([[self.a]]).double(), torch.tensor([[self.c]]).double()
        noisy = self.a * x + self.c * numbers(self.e)
        own = made(M, S)
        log_ratio = log_density(DATA, noisy, alpha, sigma) - log_density(own, noisy, alpha, sigma)
        grad = grad * curvature(options["divergence"], log_ratio.exp()).mean()
        return torch.stack([(self.weight * grad).sum(), (self.weight * grad * self.z).sum()])

    def derivative(self, value: Any) -> Tensor:
        """D/dm and d/ds of E_q value(x_t, log r(x_t), F(x_t) - R(x_t))."""
        m, s = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (M, S))
        places = self.z.reshape(-1, round(len(self.z) ** 0.5))[:, 0]
        weight = self.weight.reshape(len(places), -1).sum(dim=1)
        variance = self.a**2 * s**2 + self.c**2
        x_t = self.a * m + variance.sqrt() * places
        own = -((x_t - self.a * m) ** 2) / (2 * variance) - 0.5 * (2 * torch.pi * variance).log()
        alpha, sigma = torch.tensor([[self.a]]).double(), torch.tensor([[self.c]]).double()
        log_ratio = log_density(DATA, x_t.reshape(-1, 1, 1, 1), alpha, sigma) - own
        critic = m + self.a * s**2 / variance * (x_t - self.a * m)
        levels = torch.full((len(places),), self.t, dtype=torch.float64)
        teacher = ExactDenoiser(DATA).predict(x_t.reshape(-1, 1, 1, 1), levels).flatten()
        expectation = (weight * value(log_ratio, critic - teacher)).sum()
        return torch.stack(torch.autograd.grad(expectation, (m, s)))


@each_divergence
def test_f_distill_descends_its_divergence(divergence: Any) -> None:
    """E[h (score_q - score_p) dx_t] is the gradient of D_f(p || q) at the level: in m and in s, to six digits."""
    student = Student(80)
    got = student.gradient("f-distill", divergence=divergence, gan_weight=0.0, weighting="sigma_squared")
    expected = student.derivative(lambda log_ratio, _: GENERATORS[divergence](log_ratio.exp()))
    # g is a c (F - R), a difference of scores a (F - R) / c^2, and dx_t / dx is a.
    torch.testing.assert_close(got * student.a / student.c**3, expected, rtol=1e-6, atol=1e-8)


@each_divergence
def test_uni_instruct_descends_its_part_of_the_expansion(divergence: Any) -> None:
    """E_q h(r) ||F - R||^2, though q, r and F all depend on the student."""
    student = Student(80)
    got = student.gradient("uni-instruct", divergence=divergence, normalised=False)
    expected = student.derivative(lambda log_ratio, apart: curvature(divergence, log_ratio.exp()) * apart.square())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def test_uni_instruct_of_reverse_kl_is_twice_sid_of_a_half() -> None:
    student = Student(6)
    x = numbers(M + S * student.z)
    one = at_level("uni-instruct", T, 1.0, divergence="reverse-kl")(x, student.given()).grad
    two = at_level("sid", T, 1.0, alpha=0.5)(x, student.given()).grad
    torch.testing.assert_close(one, 2 * two, rtol=1e-9, atol=1e-12)


def test_f_distill_of_reverse_kl_is_dmd() -> None:
    student = Student(6)
    x = numbers(M + S * student.z)
    one = at_level("f-distill", T, 3.0, divergence="reverse-kl", gan_weight=0.0)(x, student.given()).grad
    torch.testing.assert_close(one, at_level("dmd", T, 3.0)(x, student.given()).grad, rtol=1e-12, atol=0)


@each_divergence
def test_weights_average_one_and_are_bounded(divergence: Any) -> None:
    """For a batch with every ratio, within ratio_limit."""
    logits = torch.linspace(-50, 50, 11, dtype=torch.float64)
    own = at_level("f-distill", T, divergence=divergence, ratio_limit=5.0)
    given = context(ExactDenoiser(DATA), ExactDenoiser(DATA), discriminator=lambda x_t, levels: logits)
    x_t, levels = numbers(torch.zeros(11)), torch.full((11,), T)
    weights = own.importance(x_t, levels, given)  # type: ignore[attr-defined]
    assert float(weights.mean()) == pytest.approx(1.0)
    expected = [WRITTEN[divergence](min(max(float(value.exp()), 0.2), 5.0)) for value in logits]
    assert weights.tolist() == pytest.approx([value / (sum(expected) / 11) for value in expected])


# Modes ----------------------------------------------------------------------------------------------------------------


def fitted(divergence: str, steps: int = 400) -> tuple[float, float]:
    """Where a broad Gaussian student ends: m and s follow E g and E g z; critic and ratio are exact."""
    data = modes(PLACES, WIDTH, SHARES)
    places, jitter = (torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n) for n in (48, 6))
    z, e = (grid.flatten() for grid in torch.meshgrid(places, jitter, indexing="ij"))
    options: dict[str, Any] = {"gan_weight": 0.0, "weighting": "sigma_squared", "ratio_limit": 1e4}
    method = at_level("f-distill", 0.12, divergence=divergence, **options)
    m, s = 0.3, 1.2
    for _ in range(steps):
        own = made(m, s)
        ratio = ExactRatio(data, own)
        given = context(ExactDenoiser(data), ExactDenoiser(own), eps=numbers(e), discriminator=ratio)
        grad = method(numbers(m + s * z), given).grad.flatten()
        m, s = m - 2 * float(grad.mean()), s - 2 * float((grad * z).mean())
    return m, s


PLACES, WIDTH, SHARES = (-1.0, 1.0), 0.25, [0.3, 0.7]


def test_reverse_kl_seeks_a_mode_kl_covers_both_and_js_is_in_between() -> None:
    """f-distill's claim. A Gaussian student for two modes, from a start that covers both: DMD's divergence ends on the
    likelier one, with its width; the forward one has the data's mean and variance, which are those of both."""
    reverse, between, forward = (fitted(name) for name in ("reverse-kl", "js", "kl"))
    assert reverse == pytest.approx((PLACES[1], WIDTH), abs=0.01)
    mean = sum(share * place for share, place in zip(SHARES, PLACES, strict=True))
    spread = (WIDTH**2 + sum(share * (place - mean) ** 2 for share, place in zip(SHARES, PLACES, strict=True))) ** 0.5
    assert forward == pytest.approx((mean, spread), abs=0.02)
    assert forward[0] + 0.02 < between[0] < reverse[0] - 0.02
    assert reverse[1] + 0.02 < between[1] < forward[1] - 0.02
