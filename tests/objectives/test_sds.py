"""SDS against a teacher that is known in closed form.

For data N(mu, v) in every pixel the exact noise prediction at x_t = alpha x0 + sigma e is

    E(x_t, t) = sigma (x_t - alpha mu) / (alpha^2 v + sigma^2)

so the mean of the SDS gradient over e is w sigma alpha (x - mu) / (alpha^2 v + sigma^2), its standard deviation is
w alpha^2 v / (alpha^2 v + sigma^2), and with v = 0 the noise cancels altogether.
"""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import GuidedPrediction, guidance_rescale, guide
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.objectives import ObjectiveContext, TimestepSchedule, surrogate_loss
from dreamkit.objectives.sds import ScoreDistillationSampling

SHAPE = (3, 4, 4)


class GaussianTeacher:
    """The exact teacher of N(mu, v); a prompt's embedding [1, 1] is its mu."""

    def __init__(self, variance: float, schedule: NoiseSchedule | None = None) -> None:
        self.variance = variance
        self.schedule = schedule or NoiseSchedule.ddpm("cosine")
        self.device = torch.device("cpu")
        self.seen: list[dict[str, Any]] = []

    def exact(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """E(x_t, t) in the dtype of x_t."""
        alpha, sigma = self.schedule.coefficients(t, x_t)
        mean = condition.embeddings.to(x_t.dtype).reshape(-1, 1, 1, 1)
        return sigma * (x_t - alpha * mean) / (alpha**2 * self.variance + sigma**2)

    def predict_guided(
        self, x_t: Tensor, t: Tensor, positive: Condition, negative: Condition, scale: float,
        camera: Tensor | None = None, rescale: float = 0.0,
    ) -> GuidedPrediction:  # fmt: skip
        """As `Teacher.predict_guided`."""
        self.seen.append({"x_t": x_t, "t": t, "scale": scale, "camera": camera})
        outputs = self.exact(x_t, t, positive), self.exact(x_t, t, negative)
        guided = guide(*outputs, scale)
        if rescale:
            guided = guidance_rescale(guided, outputs[0], rescale)
        predictions = [self.schedule.convert(out, x_t, t, "eps") for out in (guided, *outputs)]
        return GuidedPrediction(*predictions)


def prompt(mean: float, rows: int = 1) -> Condition:
    return Condition(torch.full((rows, 1, 1), mean, dtype=torch.float64))


def context(
    teacher: Any, positive: float = 0.4, negative: float = 0.0, step: int = 0, total: int = 10, seed: int = 0,
    camera: Tensor | None = None,
) -> ObjectiveContext:  # fmt: skip
    return ObjectiveContext(
        teacher, prompt(positive), prompt(negative), camera, step, total, torch.Generator().manual_seed(seed)
    )


def sds(t: float = 0.6, guidance: float = 1.0, **options: Any) -> ScoreDistillationSampling:
    """SDS at one fixed noise level."""
    levels = TimestepSchedule(Schedule.constant(t), jitter=0.0)
    return ScoreDistillationSampling(guidance=Schedule.constant(guidance), timesteps=levels, **options)


def weights(schedule: NoiseSchedule, t: float, kind: str) -> tuple[float, float, float]:
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return {"sigma_squared": sigma**2, "uniform": 1.0, "sigma_ratio": sigma / alpha}[kind], alpha, sigma


@pytest.mark.parametrize("kind", ["sigma_squared", "uniform", "sigma_ratio"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
@pytest.mark.parametrize("schedule", [NoiseSchedule.ddpm("cosine"), NoiseSchedule.flow(3.0)], ids=["ddpm", "flow"])
def test_without_variance_every_sample_is_the_expectation(kind: str, scale: float, schedule: NoiseSchedule) -> None:
    teacher = GaussianTeacher(0.0, schedule)
    x = torch.randn(5, *SHAPE, dtype=torch.float64)
    grad = sds(0.6, scale, weighting=kind)(x, context(teacher, 0.4, -0.1)).grad
    w, alpha, sigma = weights(schedule, 0.6, kind)
    mean = -0.1 + scale * (0.4 + 0.1)
    torch.testing.assert_close(grad, w * alpha / sigma * (x - mean), rtol=1e-5, atol=1e-6)


def test_sigma_ratio_is_the_step_to_the_clean_prediction() -> None:
    teacher = GaussianTeacher(0.3)
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    result = sds(0.7, 4.0, weighting="sigma_ratio")(x, context(teacher))
    torch.testing.assert_close(result.grad, x - result.target, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("t", [0.2, 0.6, 0.9])
def test_expected_gradient_and_its_spread(t: float) -> None:
    teacher = GaussianTeacher(0.25)
    x = torch.full((4000, *SHAPE), 0.8, dtype=torch.float64)
    grad = sds(t)(x, context(teacher, 0.4)).grad
    w, alpha, sigma = weights(teacher.schedule, t, "sigma_squared")
    total = alpha**2 * 0.25 + sigma**2
    spread = w * alpha**2 * 0.25 / total
    assert float(grad.mean()) == pytest.approx(w * sigma * alpha * 0.4 / total, abs=5 * spread / grad.numel() ** 0.5)
    assert float(grad.std()) == pytest.approx(spread, rel=0.02)


def test_mean_zero_at_the_fixed_point() -> None:
    teacher = GaussianTeacher(0.25)
    x = torch.full((4000, *SHAPE), 0.4, dtype=torch.float64)
    grad = sds(0.5)(x, context(teacher, 0.4)).grad
    assert abs(float(grad.mean())) < 5 * float(grad.std()) / grad.numel() ** 0.5


def test_each_sample_is_the_formula() -> None:
    """g = w (E(n) + s (E(y) - E(n)) - e), with the noise read back from what the teacher was shown."""
    teacher = GaussianTeacher(0.25)
    x = torch.randn(6, *SHAPE, dtype=torch.float64)
    objective = ScoreDistillationSampling(
        guidance=Schedule.constant(7.0), timesteps=TimestepSchedule(Schedule.constant(0.5), jitter=0.4)
    )
    grad = objective(x, context(teacher, 0.4, -0.2)).grad
    shown = teacher.seen[0]
    alpha, sigma = teacher.schedule.coefficients(shown["t"], x)
    eps = (shown["x_t"] - alpha * x) / sigma
    assert float(eps.std()) == pytest.approx(1.0, abs=0.15)
    positive, negative = (teacher.exact(shown["x_t"], shown["t"], prompt(mean)) for mean in (0.4, -0.2))
    expected = sigma**2 * (negative + 7.0 * (positive - negative) - eps)
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def test_descent_ends_at_the_guided_mean() -> None:
    teacher = GaussianTeacher(0.05)
    x = torch.zeros(16, *SHAPE, dtype=torch.float64, requires_grad=True)
    objective = sds(0.6, 2.0, weighting="sigma_ratio")
    for step in range(60):
        (gradient,) = torch.autograd.grad(
            surrogate_loss(x, objective(x, context(teacher, 0.4, 0.1, step, 60, seed=step)).grad), x
        )
        x = (x - 0.2 * 16 * gradient).detach().requires_grad_()
    assert float(x.detach().mean()) == pytest.approx(0.1 + 2 * 0.3, abs=0.02)


def test_schedules_of_the_run_reach_the_teacher() -> None:
    teacher = GaussianTeacher(0.1)
    objective = ScoreDistillationSampling(
        guidance=Schedule(0.0, 10.0, 2.0, 1.0), timesteps=TimestepSchedule(Schedule(0.0, 0.9, 0.1, 1.0), jitter=0.0)
    )
    for step in (0, 5):
        result = objective(torch.zeros(2, *SHAPE), context(teacher, step=step))
        progress = step / 10
        assert teacher.seen[-1]["scale"] == pytest.approx(10 - 8 * progress)
        assert result.diagnostics["guidance"] == pytest.approx(10 - 8 * progress)
        assert result.diagnostics["t"] == pytest.approx(0.9 - 0.8 * progress, abs=1e-6)
        assert result.diagnostics["grad_rms"] == pytest.approx(float(result.grad.square().mean().sqrt()))


def test_the_camera_reaches_the_teacher() -> None:
    teacher, camera = GaussianTeacher(0.1), torch.randn(2, 12)
    sds()(torch.zeros(2, *SHAPE), context(teacher, camera=camera))
    assert teacher.seen[0]["camera"] is camera


def test_rescaling_pulls_the_guided_prediction_in() -> None:
    teacher = GaussianTeacher(0.25)
    x = torch.randn(4, *SHAPE, dtype=torch.float64)
    grad = sds(0.6, 50.0, rescale=1.0, weighting="uniform")(x, context(teacher, 0.4, -0.5)).grad
    shown = teacher.seen[0]
    alpha, sigma = teacher.schedule.coefficients(shown["t"], x)
    guided = grad + (shown["x_t"] - alpha * x) / sigma
    positive = teacher.exact(shown["x_t"], shown["t"], prompt(0.4))
    torch.testing.assert_close(guided.flatten(1).std(dim=1), positive.flatten(1).std(dim=1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [{"weighting": "cubed"}, {"rescale": -0.1}, {"rescale": 1.1}])
def test_bad_options_are_refused_before_the_run(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ScoreDistillationSampling(**options)


def test_it_is_data() -> None:
    objective = ScoreDistillationSampling()
    assert objective.guidance.at(0.5) == 100.0
    assert objective.weighting == "sigma_squared"
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.weighting = "uniform"  # type: ignore[misc]
