"""DDIM on a model whose exact answer is known, and clipping against diffusers'."""

import math

import pytest
import torch

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import GuidedPrediction
from dreamkit.diffusion.sampling import SampleClip, ddim
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError

EMPTY = Condition(torch.zeros(1, 1, 1))


class GaussianTeacher:
    """The exact predictor of N(mean, variance): eps = sigma (x_t - alpha mean) / (alpha^2 variance + sigma^2)."""

    def __init__(self, schedule, mean=0.3, variance=0.25):
        self.schedule, self.mean, self.variance = schedule, mean, variance
        self.calls = 0

    def predict(self, x_t, t, condition, camera=None):
        self.calls += 1
        alpha, sigma = self.schedule.coefficients(t, x_t)
        denominator = alpha**2 * self.variance + sigma**2
        # The velocity form stays exact where alpha or sigma is 0.
        eps = sigma * (x_t - alpha * self.mean) / denominator
        x0 = (alpha * self.variance * x_t + sigma**2 * self.mean) / denominator
        return self.schedule.convert(alpha * eps - sigma * x0, x_t, t, "v")

    def predict_guided(self, x_t, t, positive, negative, scale, camera=None, rescale=0.0):
        one = self.predict(x_t, t, positive)
        return GuidedPrediction(one, one, one)


@pytest.mark.parametrize(
    "schedule",
    [
        NoiseSchedule.ddpm("cosine"),
        NoiseSchedule.ddpm("scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True),
        NoiseSchedule.flow(),
        NoiseSchedule.flow(shift=3.0),
    ],
    ids=repr,
)
def test_ddim_carries_noise_to_the_data_distribution(schedule):
    """The deterministic path of a Gaussian is known: it keeps the standardised value of a sample."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    teacher = GaussianTeacher(schedule)
    x = ddim(teacher, noise, EMPTY, EMPTY, steps=400, scale=1.0)
    alpha, sigma = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    start = (noise - alpha * teacher.mean) / math.sqrt(alpha**2 * teacher.variance + sigma**2)
    torch.testing.assert_close(x, teacher.mean + math.sqrt(teacher.variance) * start, atol=0.02, rtol=0)
    assert teacher.calls == 400


def test_ddim_converges_with_more_steps():
    teacher = GaussianTeacher(NoiseSchedule.ddpm("cosine"))
    noise = torch.tensor([1.5], dtype=torch.float64).reshape(1, 1, 1, 1)
    exact = teacher.mean + math.sqrt(teacher.variance) * 1.5
    errors = [abs(float(ddim(teacher, noise, EMPTY, EMPTY, n, 1.0)) - exact) for n in (5, 20, 80)]
    assert errors[0] > errors[1] > errors[2]


def test_steps_are_checked():
    with pytest.raises(ConfigError, match="at least 1 step"):
        ddim(GaussianTeacher(NoiseSchedule.flow()), torch.zeros(1, 1, 1, 1), EMPTY, EMPTY, 0, 1.0)


@pytest.mark.parametrize("maximum", [1.0, 1.5])
def test_dynamic_thresholding_agrees_with_diffusers(maximum):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=maximum)
    clip = SampleClip.from_diffusers(theirs.config)
    schedule = NoiseSchedule.ddpm("linear")
    generator = torch.Generator().manual_seed(0)
    x_t, x0 = (torch.randn(4, 3, 8, 8, generator=generator) * 2 for _ in range(2))
    clipped = clip(schedule.convert(x0, x_t, 0.5, "x0"), x_t)
    torch.testing.assert_close(clipped.x0, theirs._threshold_sample(x0))
    torch.testing.assert_close(schedule.add_noise(clipped.x0, clipped.eps, 0.5), x_t, atol=1e-5, rtol=0)


def test_static_clipping_keeps_x_t_explained():
    clip = SampleClip.from_diffusers({"clip_sample": True, "clip_sample_range": 1.0})
    schedule = NoiseSchedule.ddpm("cosine")
    x_t, x0 = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4) * 3
    clipped = clip(schedule.convert(x0, x_t, 0.7, "x0"), x_t)
    assert clipped.x0.abs().max() <= 1
    assert torch.equal(clipped.x0, x0.clamp(-1, 1))
    torch.testing.assert_close(schedule.add_noise(clipped.x0, clipped.eps, 0.7), x_t, atol=1e-5, rtol=0)


def test_no_clipping_where_the_scheduler_has_none():
    assert SampleClip.from_diffusers({"clip_sample": False}) is None
