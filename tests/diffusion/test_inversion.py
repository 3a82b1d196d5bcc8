"""DDIM inversion: it inverts, step by step as the formula has it, row by row."""

import math

import pytest
import torch
from torch import Tensor

from dreamkit.diffusion.exact import ExactTeacher, Mixture
from dreamkit.diffusion.inversion import implied_noise, invert
from dreamkit.diffusion.schedule import NoiseSchedule

COSINE, FLOW = NoiseSchedule.ddpm("cosine"), NoiseSchedule.flow(3.0)
SCHEDULES = pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])
SHAPE = (1, 2, 3)
MEAN, VARIANCE = 0.2, 0.3


def normal(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussians(schedule: NoiseSchedule, prompt: float = 0.6) -> ExactTeacher:
    """N(0.2, 0.3) for the empty prompt, N(`prompt`, 0.3) for "y"."""
    data = {
        name: Mixture.gaussian(torch.full(SHAPE, mean, dtype=torch.float64), VARIANCE)
        for name, mean in (("", MEAN), ("y", prompt))
    }
    return ExactTeacher(data, schedule)


def mixture(schedule: NoiseSchedule) -> ExactTeacher:
    means, shares = 0.6 * normal(3, 9), torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    return ExactTeacher({"": Mixture(means, levels(0.1, 0.2, 0.3), shares)}, schedule)


def back(teacher: ExactTeacher, x_t: Tensor, t: float, steps: int) -> Tensor:
    """DDIM from level t down to 0."""
    row = teacher.null_condition(1)
    for index in range(steps):
        here, there = t * (1 - index / steps), t * (1 - (index + 1) / steps)
        prediction = teacher.predict(x_t, here, row)
        x_t = teacher.schedule.add_noise(prediction.x0, prediction.eps, there)
    return x_t


@SCHEDULES
@pytest.mark.parametrize("world", [gaussians, mixture])
def test_sampling_from_the_inverted_noise_returns_to_the_sample(schedule: NoiseSchedule, world: type) -> None:
    """With many steps; and the error falls as their number grows, to the first order."""
    teacher, x, t = world(schedule), normal(6), 0.9
    errors = []
    for steps in (100, 200, 400):
        x_t = invert(teacher, x, levels(t).expand(6), teacher.null_condition(1), steps=steps).x_t
        errors.append(float((back(teacher, x_t, t, steps) - x).abs().max()))
    assert errors[-1] < 0.05
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


@SCHEDULES
def test_it_follows_the_exact_ode(schedule: NoiseSchedule) -> None:
    """Of Gaussian data the path is known: (x_t - alpha mu) / sqrt(alpha^2 v + sigma^2) stays what it was."""
    teacher, x = gaussians(schedule), normal(4)
    t = levels(0.2, 0.5, 0.8, 0.95)
    x_t = invert(teacher, x, t, teacher.null_condition(1), steps=1000).x_t
    alpha, sigma = schedule.coefficients(t, x)
    exact = alpha * MEAN + (x - MEAN) * ((alpha**2 * VARIANCE + sigma**2) / VARIANCE).sqrt()
    torch.testing.assert_close(x_t, exact, rtol=0, atol=0.012)


@SCHEDULES
def test_one_step_is_the_formula(schedule: NoiseSchedule) -> None:
    """At t = 0 nothing is noise: x_t = alpha x0(x, 0) + sigma E(x, 0) = alpha x."""
    teacher, x = gaussians(schedule), normal(3)
    t = levels(0.3, 0.3, 0.3)
    inversion = invert(teacher, x, t, teacher.null_condition(1), steps=1)
    torch.testing.assert_close(inversion.x_t, schedule.add_noise(x, torch.zeros_like(x), t))
    two = invert(teacher, x, t, teacher.null_condition(1), steps=2)
    middle = schedule.add_noise(x, torch.zeros_like(x), t / 2)
    predicted = teacher.predict(middle, t / 2, teacher.null_condition(1))
    torch.testing.assert_close(two.x_t, schedule.add_noise(predicted.x0, predicted.eps, t))
    assert two.last is not None
    torch.testing.assert_close(two.last.eps, predicted.eps)


def test_every_row_climbs_to_its_own_level() -> None:
    """Rows together are rows apart, given as many steps."""
    teacher, x, t = mixture(COSINE), normal(4), levels(0.1, 0.4, 0.7, 1.0)
    row = teacher.null_condition(1)
    together = invert(teacher, x, t, row, steps=7).x_t
    for index in range(4):
        alone = invert(teacher, x[index : index + 1], t[index : index + 1], row, steps=7).x_t
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("top", "stride", "steps"),
    [(0.9, 0.2, 5), (0.8, 0.2, 4), (0.81, 0.2, 5), (0.05, 0.2, 1), (1.0, 0.1, 10), (0.6, 1.0, 1), (0.6, 0.6, 1)],
)
def test_no_step_is_longer_than_the_stride(top: float, stride: float, steps: int) -> None:
    teacher, x = gaussians(COSINE), normal(2)
    seen = teacher.calls
    invert(teacher, x, levels(top / 2, top), teacher.null_condition(1), stride=stride)
    assert (teacher.calls - seen) / 2 == steps
    assert steps == max(1, math.ceil(top / stride - 1e-9))


@SCHEDULES
def test_guided_inversion_is_guidance_in_every_step(schedule: NoiseSchedule) -> None:
    """Between Gaussians of one variance D(s) is the prediction for the mean mu_n + s (mu_y - mu_n)."""
    x, t, scale = normal(4), levels(0.3, 0.5, 0.7, 0.9), -7.5
    teacher = gaussians(schedule)
    guided = invert(teacher, x, t, teacher.encode_prompt(["y"]), teacher.null_condition(1), scale, steps=10).x_t
    moved = gaussians(schedule, MEAN + scale * (0.6 - MEAN))
    expected = invert(moved, x, t, moved.encode_prompt(["y"]), steps=10).x_t
    torch.testing.assert_close(guided, expected, rtol=1e-10, atol=1e-12)
    plain = invert(teacher, x, t, teacher.encode_prompt(["y"]), steps=10).x_t
    at_one = invert(teacher, x, t, teacher.encode_prompt(["y"]), teacher.null_condition(1), 1.0, steps=10).x_t
    torch.testing.assert_close(at_one, plain)
    assert not torch.allclose(guided, plain)


def test_cameras_reach_every_step() -> None:
    views = [Mixture.gaussian(torch.full(SHAPE, mean, dtype=torch.float64), VARIANCE) for mean in (-0.5, 0.5)]
    teacher, alone = ExactTeacher({"": views}), gaussians(COSINE, 0.5)
    back_view = torch.zeros(2, 12, dtype=torch.float64)
    back_view[:, 11] = -1.0
    t = levels(0.5, 0.8)
    seen = invert(teacher, normal(2), t, teacher.null_condition(1), camera=back_view, steps=5).x_t
    expected = invert(alone, normal(2), t, alone.encode_prompt(["y"]), steps=5).x_t
    torch.testing.assert_close(seen, expected)


@SCHEDULES
def test_implied_noise_undoes_the_noising(schedule: NoiseSchedule) -> None:
    teacher, x, eps, t = gaussians(schedule), normal(4), normal(4, 1), levels(0.02, 0.4, 0.8, 1.0)
    torch.testing.assert_close(implied_noise(teacher, x, schedule.add_noise(x, eps, t), t), eps, rtol=1e-9, atol=1e-12)


def test_the_noise_of_an_inversion_looks_like_noise() -> None:
    """Of samples of the data: what the inversion finds has the spread of noise, but no chance in it."""
    teacher = gaussians(COSINE)
    x = MEAN + VARIANCE**0.5 * normal(2000)
    x_t = invert(teacher, x, levels(1.0).expand(2000), teacher.null_condition(1), steps=50).x_t
    assert float(x_t.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(x_t.std()) == pytest.approx(1.0, abs=0.05)
