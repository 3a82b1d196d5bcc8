"""The one guidance convention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.diffusion.exact import ExactTeacher, Mixture
from dreamkit.diffusion.guidance import (
    Repulsion,
    from_delta_convention,
    guidance_rescale,
    guide,
    perpendicular,
    repelled,
)
from dreamkit.diffusion.schedule import PREDICTION_KINDS, NoiseSchedule
from dreamkit.diffusion.teacher import Query


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


# Perp-Neg -------------------------------------------------------------------------------------------------------------


def tensors(count, seed=3, rows=4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


def inner(one, two):
    return (one * two).flatten(1).sum(dim=1)


def test_perpendicular_is_orthogonal_and_the_rest_parallel():
    u, v = tensors(2)
    across = perpendicular(u, v)
    torch.testing.assert_close(inner(across, v), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    along = u - across
    # Cauchy and Schwarz with equality: what is taken away is a multiple of v.
    torch.testing.assert_close(inner(along, v).square(), inner(along, along) * inner(v, v))
    torch.testing.assert_close(perpendicular(across, v), across)
    torch.testing.assert_close(perpendicular(3 * v, v), torch.zeros_like(v), rtol=0, atol=1e-12)
    torch.testing.assert_close(perpendicular(u, -7 * v), across)


def test_perpendicular_to_nothing_is_everything():
    (u,) = tensors(1)
    assert torch.equal(perpendicular(u, torch.zeros_like(u)), u)


def test_perpendicular_is_diffusers_own():
    """As the diffusers community's perp-neg pipeline has it: x - ((x . y) / ||y||^2) y."""
    u, v = tensors(2)
    for row in range(4):
        x, y = u[row], v[row]
        theirs = x - ((torch.mul(x, y).sum()) / (torch.norm(y) ** 2)) * y
        torch.testing.assert_close(perpendicular(u, v)[row], theirs)


def test_repelled_by_weights_of_nothing_is_guided():
    positive, negative, one, two = tensors(4)
    guided = guide(positive, negative, 7.5)
    assert torch.equal(repelled(guided, positive, negative, [one, two], torch.zeros(2, 4), 7.5), guided)
    assert torch.equal(repelled(guided, positive, negative, [], torch.zeros(0, 4), 7.5), guided)


def test_repelled_is_the_sum_written_out():
    positive, negative, *views = tensors(4)
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pushed = repelled(guide(positive, negative, 7.5), positive, negative, views, weights, 7.5)
    for row in range(4):
        towards = positive[row] - negative[row]
        away = torch.zeros_like(towards)
        for view, w in zip(views, weights, strict=True):
            u = view[row] - negative[row]
            away += w[row] * (u - (u * towards).sum() / (towards * towards).sum() * towards)
        torch.testing.assert_close(pushed[row], negative[row] + 7.5 * (towards - away))


@given(scale=st.floats(0, 100), strength=st.floats(0, 20), seed=st.integers(0, 100))
def test_repulsion_never_goes_against_the_prompt(scale, strength, seed):
    """However strong, it leaves <D - E(n), E(y) - E(n)> as guidance has it."""
    positive, negative, one, two = tensors(4, seed)
    guided, towards = guide(positive, negative, scale), positive - negative
    pushed = repelled(guided, positive, negative, [one, two], torch.full((2, 4), strength), scale)
    expected = inner(guided - negative, towards)
    torch.testing.assert_close(inner(pushed - negative, towards), expected, rtol=1e-9, atol=1e-7)


def test_repulsion_takes_a_scale_for_each_sample():
    positive, negative, view = tensors(3)
    scales = torch.tensor([0.0, 1.0, 7.5, 100.0], dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.5, 2.0, 0.1]], dtype=torch.float64)
    together = repelled(guide(positive, negative, scales), positive, negative, [view], weights, scales)
    for row in range(4):
        part = slice(row, row + 1)
        alone = repelled(
            guide(positive[part], negative[part], float(scales[row])),
            *(positive[part], negative[part], [view[part]], weights[:, part], float(scales[row])),
        )
        torch.testing.assert_close(together[part], alone)
    assert torch.equal(together[0], negative[0])


# In a teacher, everything comes from one pass -------------------------------------------------------------------------


@pytest.fixture
def teacher():
    means = 0.5 * torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = ("y", "n", "", "side", "back")
    return ExactTeacher({name: Mixture.gaussian(mean, 0.3) for name, mean in zip(names, means, strict=True)})


def noisy(rows=3, seed=1):
    return torch.randn(rows, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_one_guided_call_answers(teacher):
    x_t, prompt, negative, null = noisy(), *(teacher.encode_prompt([name]) for name in ("y", "n", ""))
    also = [Query(noisy(2, 4), 0.3, teacher.encode_prompt(["side"])), Query(x_t, 0.9, prompt)]
    before = teacher.calls
    answer = teacher.predict_guided(x_t, 0.6, prompt, negative, 7.5, null=null, also=also)
    assert teacher.calls - before == 3 * 3 + 2 + 3
    for got, condition in ((answer.positive, prompt), (answer.negative, negative), (answer.null, null)):
        torch.testing.assert_close(got.eps, teacher.predict(x_t, 0.6, condition).eps)
    for got, query in zip(answer.also, also, strict=True):
        torch.testing.assert_close(got.eps, teacher.predict(query.x_t, query.t, query.condition).eps)
    torch.testing.assert_close(answer.guided.eps, guide(answer.positive.eps, answer.negative.eps, 7.5))


def test_an_empty_prompt_that_is_the_negative_one_costs_nothing(teacher):
    x_t, prompt, null = noisy(), teacher.encode_prompt(["y"]), teacher.null_condition(1)
    before = teacher.calls
    answer = teacher.predict_guided(x_t, 0.6, prompt, null, 7.5, null=null)
    assert teacher.calls - before == 2 * 3
    assert torch.equal(answer.null.eps, answer.negative.eps)
    assert teacher.predict_guided(x_t, 0.6, prompt, null, 7.5).null is None


def test_repulsion_by_a_teacher_is_repulsion_of_its_predictions(teacher):
    x_t, prompt, negative, null = noisy(), *(teacher.encode_prompt([name]) for name in ("y", "n", ""))
    weights = torch.tensor([[1.0, 0.5, 0.0], [0.2, 2.0, 0.0]], dtype=torch.float64)
    views = [teacher.encode_prompt([name] * 3) for name in ("side", "back")]
    repulsion, also = Repulsion(views, weights), [Query(x_t, 0.2, prompt)]
    answer = teacher.predict_guided(x_t, 0.6, prompt, negative, 7.5, null=null, repulsion=repulsion, also=also)
    outputs = [teacher.predict(x_t, 0.6, view).eps for view in views]
    expected = repelled(guide(answer.positive.eps, answer.negative.eps, 7.5), answer.positive.eps,
                        answer.negative.eps, outputs, weights, 7.5)  # fmt: skip
    torch.testing.assert_close(answer.guided.eps, expected)
    torch.testing.assert_close(answer.guided.eps[2], guide(answer.positive.eps, answer.negative.eps, 7.5)[2])
    torch.testing.assert_close(answer.null.eps, teacher.predict(x_t, 0.6, null).eps)
    torch.testing.assert_close(answer.also[0].eps, teacher.predict(x_t, 0.2, prompt).eps)
