"""The one guidance convention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.diffusion.guidance import from_delta_convention, guidance_rescale, guide
from dreamkit.diffusion.schedule import PREDICTION_KINDS, NoiseSchedule


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))


def test_scale_zero_is_the_negative_and_one_the_positive(pair):
    positive, negative = pair
    assert torch.equal(guide(positive, negative, 0.0), negative)
    torch.testing.assert_close(guide(positive, negative, 1.0), positive)


def test_a_self_forcing_scale_of_three_is_our_four(pair):
    """Self-Forcing, LongLive and others write E(y) + s (E(y) - E(n))."""
    positive, negative = pair
    assert from_delta_convention(3.0) == 4.0
    theirs = positive + 3.0 * (positive - negative)
    torch.testing.assert_close(guide(positive, negative, from_delta_convention(3.0)), theirs)


def test_one_scale_for_each_sample(pair):
    positive, negative = pair
    scales = torch.tensor([1.0, 7.5, 100.0], dtype=torch.float64)
    together = guide(positive, negative, scales)
    for row, scale in enumerate(scales.tolist()):
        torch.testing.assert_close(together[row], guide(positive[row], negative[row], scale))


@given(scale=st.floats(-5, 100), kind=st.sampled_from(PREDICTION_KINDS))
def test_guiding_before_or_after_conversion_is_the_same(scale, kind):
    generator = torch.Generator().manual_seed(1)
    x_t, positive, negative = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    schedule = NoiseSchedule.ddpm("cosine")
    guided = schedule.convert(guide(positive, negative, scale), x_t, 0.6, kind)
    one, two = (schedule.convert(output, x_t, 0.6, kind) for output in (positive, negative))
    torch.testing.assert_close(guided.eps, guide(one.eps, two.eps, scale), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(guided.x0, guide(one.x0, two.x0, scale), atol=1e-9, rtol=1e-9)


def test_rescale_agrees_with_diffusers(pair):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    positive, negative = pair
    guided = guide(positive, negative, 7.5)
    torch.testing.assert_close(guidance_rescale(guided, positive, 0.7), rescale_noise_cfg(guided, positive, 0.7))
    assert torch.equal(guidance_rescale(guided, positive, 0.0), guided)
    full = guidance_rescale(guided, positive, 1.0)
    torch.testing.assert_close(full.flatten(1).std(dim=1), positive.flatten(1).std(dim=1))
    assert torch.isfinite(guidance_rescale(torch.ones(2, 3), torch.ones(2, 3))).all()
