"""What every objective is built of: weights, clipping, the surrogate loss, the registry, the context."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from closed_form import COSINE, FLOW, FixedLevels, context, gaussians, make, normal, patterned, pose
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.exact import ExactTeacher, Mixture
from dreamkit.diffusion.guidance import guidance_rescale
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.objectives import (
    Gradient,
    Objective,
    ObjectiveContext,
    Source,
    objective_class,
    objective_names,
    register,
    registry,
    surrogate_loss,
)
from dreamkit.objectives.base import Weighting, clip_pixels, weight

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_context(step: int = 0, total: int = 100, seed: int = 0, run_seed: int = 0) -> ObjectiveContext:
    """A context for what needs no teacher."""
    empty = Condition(torch.zeros(1, 1, 1))
    teacher: Any = SimpleNamespace(device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    return ObjectiveContext(teacher, empty, empty, empty, None, step, total, generator, seed=run_seed)


class TestSurrogateLoss:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_its_gradient_is_the_given_one_over_the_batch(self, batch: int) -> None:
        x = normal(batch, (3, 4, 4)).requires_grad_()
        grad = normal(batch, (3, 4, 4), seed=1)
        loss = surrogate_loss(x, grad)
        loss.backward()
        # x - (x - g) rounds at the size of x.
        torch.testing.assert_close(x.grad, grad / batch, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(loss.detach(), 0.5 * grad.square().sum() / batch)

    def test_it_reaches_what_made_x(self) -> None:
        source = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        x = (3 * source).expand(2, 1, 1, 1)
        surrogate_loss(x, torch.tensor([[[[1.0]]], [[[5.0]]]], dtype=torch.float64)).backward()
        torch.testing.assert_close(source.grad, torch.tensor([9.0], dtype=torch.float64))


class TestWeight:
    @pytest.mark.parametrize("kind", get_args(Weighting))
    @pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_kinds(self, kind: Weighting, schedule: NoiseSchedule, dtype: torch.dtype) -> None:
        t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        one = torch.ones(3, dtype=torch.float64)
        expected = {"sigma_squared": sigma**2, "sigma_ratio": sigma / alpha, "uniform": one, "alpha": alpha}[kind]
        w = weight(schedule, t, kind, torch.zeros(3, 1, 2, 2, dtype=dtype))
        assert w.shape == (3, 1, 1, 1)
        assert w.dtype == dtype
        torch.testing.assert_close(w[:, 0, 0, 0], expected.to(dtype))

    def test_unknown_kind(self) -> None:
        with pytest.raises(ConfigError, match="sigma_cubed"):
            weight(COSINE, torch.tensor([0.5]), "sigma_cubed", torch.zeros(1))  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", get_args(Weighting))
    def test_every_method_takes_any(self, kind: Weighting) -> None:
        """The weight is a factor of the whole gradient, whatever the method."""
        x, t = normal(3), (0.2, 0.5, 0.8)
        grad, plain = (make("sds", t, 7.5, weighting=w)(x, context(gaussians(), 3)).grad for w in (kind, "uniform"))
        w = weight(COSINE, torch.tensor(t, dtype=torch.float64), kind, x)
        torch.testing.assert_close(grad, w * plain, rtol=1e-12, atol=1e-14)


class TestPixelClip:
    def test_long_pixels_are_shortened_and_short_ones_left(self) -> None:
        grad = normal(4, (3, 5, 5))
        limit = 1.5
        clipped, norm = clip_pixels(grad, limit), grad.norm(dim=1, keepdim=True)
        assert 0.1 < float((norm > limit).double().mean()) < 0.9  # both kinds are there
        torch.testing.assert_close(clipped.norm(dim=1, keepdim=True), norm.clamp_max(limit))
        torch.testing.assert_close(clipped * norm, grad * clipped.norm(dim=1, keepdim=True))  # the same direction
        assert torch.equal(clip_pixels(torch.zeros(1, 3, 2, 2), limit), torch.zeros(1, 3, 2, 2))

    @pytest.mark.parametrize("name", ["sds", "cds", "tsm", "sdi"])
    def test_it_is_an_option_of_every_method(self, name: str) -> None:
        x, teacher = normal(3), gaussians()
        free, clipped = (make(name, 0.5, 7.5, pixel_clip=c)(x, context(teacher, 3)).grad for c in (0.0, 0.3))
        assert float(free.norm(dim=1).max()) > 0.3
        torch.testing.assert_close(clipped, clip_pixels(free, 0.3))


class TestRescale:
    def test_it_pulls_the_guided_prediction_in(self) -> None:
        teacher, x, eps = patterned(), normal(4), normal(4, seed=1)
        grad = make("sds", 0.6, 50.0, rescale=1.0, weighting="uniform")(x, context(teacher, 4, eps=eps)).grad
        answer = teacher.predict_guided(
            teacher.schedule.add_noise(x, eps, 0.6), 0.6, teacher.encode_prompt(["y"]), teacher.encode_prompt(["n"]), 50
        )
        expected = guidance_rescale(answer.guided.eps, answer.positive.eps, 1.0) - eps
        torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("name", ["nfsd", "bsd", "dds", "cds", "ism"])
    def test_it_is_an_option_of_every_method(self, name: str) -> None:
        x, teacher = normal(3), patterned()
        source = Source(normal(3, seed=1), teacher.encode_prompt(["n"]))
        plain, pulled = (
            make(name, 0.5, 20.0, rescale=r)(x, context(teacher, 3, source=source)).grad for r in (0.0, 0.7)
        )
        assert not torch.allclose(plain, pulled)


class TestDiagnostics:
    def test_they_say_what_was_done(self) -> None:
        objective = objective_class("sds")(guidance=Schedule(0.0, 10.0, 2.0, 1.0), timesteps=FixedLevels(values=(0.3,)))
        for step in (0, 50):
            result = objective(normal(2), context(gaussians(), 2, step=step))
            assert result.diagnostics["guidance"] == pytest.approx(10 - 8 * step / 100)
            assert result.diagnostics["t"] == pytest.approx(0.3)
            assert result.diagnostics["grad_rms"] == pytest.approx(float(result.grad.square().mean().sqrt()))

    def test_the_weighting_by_the_ratio_is_the_step_to_the_target(self) -> None:
        x = normal(4)
        result = make("sds", 0.7, 4.0, weighting="sigma_ratio")(x, context(gaussians(), 4))
        torch.testing.assert_close(result.grad, x - result.target, rtol=1e-10, atol=1e-12)

    def test_the_image_term_is_handed_on(self) -> None:
        assert make("sds")(normal(2), context(gaussians(), 2)).image_pull == 0.0
        assert make("sds", image_term=0.25)(normal(2), context(gaussians(), 2)).image_pull == 0.25


class TestWhatAContextLacks:
    @pytest.mark.parametrize(("name", "word"), [("vsd", "critic"), ("esd", "critic"), ("dds", "source")])
    def test_it_is_named(self, name: str, word: str) -> None:
        with pytest.raises(TeacherError, match=word):
            make(name)(normal(2), context(gaussians(), 2))

    @pytest.mark.parametrize("name", [name for name in objective_names() if name != "csm"])
    def test_a_reference_for_one_that_reads_none(self, name: str) -> None:
        given = context(gaussians(), 2, reference=normal(1), critic=object(), source=object())
        with pytest.raises(TeacherError, match="csm"):
            make(name).check(given)


class TestRegistry:
    def test_names(self) -> None:
        names = objective_names()
        expected = ["asd", "bsd", "cds", "csd", "csm", "dds", "esd", "ism", "nfsd", "sdi", "sds", "sjc", "tsm", "vsd"]
        assert set(expected) <= set(names)
        assert names == sorted(names)
        for name in names:
            assert issubclass(objective_class(name), Objective)
            assert objective_class(name).name == name

    def test_an_unknown_name_lists_the_known_ones_and_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            objective_class("sdss")
        message = str(caught.value)
        assert "'sdss'" in message
        assert all(name in message for name in objective_names())
        assert "Did you mean sds?" in message

    def test_nothing_near(self) -> None:
        with pytest.raises(ConfigError) as caught:
            objective_class("photogrammetry")
        assert "Did you mean" not in str(caught.value)

    def test_register_and_refuse_a_second_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

        @register("another")
        class Another(Objective):
            def __call__(self, x: Tensor, context: ObjectiveContext) -> Gradient:
                raise NotImplementedError

        assert objective_class("another") is Another
        assert "another" in objective_names()
        with pytest.raises(ConfigError, match="another"):
            register("another")(Another)


class TestContext:
    def test_noise_is_the_same_for_the_same_seed_in_each_dtype(self) -> None:
        x = torch.zeros(2, 3, 4, 4)
        one, two = plain_context(seed=1).noise_like(x), plain_context(seed=1).noise_like(x)
        assert torch.equal(one, two)
        double = plain_context(seed=1).noise_like(x.double())
        assert double.dtype == torch.float64
        large = plain_context().noise_like(torch.zeros(4, 3, 64, 64))
        assert float(large.mean()) == pytest.approx(0, abs=0.02)
        assert float(large.std()) == pytest.approx(1, abs=0.02)

    def test_the_kept_noise_is_the_runs_and_not_the_steps(self) -> None:
        x = torch.zeros(4, 3, 4, 4)
        one, two = (plain_context(step, seed=step, run_seed=5).kept_noise(x) for step in (3, 8))
        assert one.shape == (1, 3, 4, 4)
        assert torch.equal(one, two)
        assert not torch.equal(one, plain_context(run_seed=6).kept_noise(x))
        assert torch.equal(one, plain_context(run_seed=5).kept_noise(x[:1]))  # whatever the number of views

    def test_drawing_it_takes_nothing_from_the_step(self) -> None:
        given = plain_context(seed=1)
        given.kept_noise(torch.zeros(1, 3, 4, 4))
        x = torch.zeros(2, 3, 4, 4)
        assert torch.equal(given.noise_like(x), plain_context(seed=1).noise_like(x))

    def test_progress(self) -> None:
        assert plain_context(25, 100).progress == 0.25


# What CSD and its like subtract is the same model for another prompt: with views alone nothing is left.
@pytest.mark.parametrize("name", ["sds", "sjc", "cds", "ism", "tsm", "asd", "sdi"])
def test_cameras_reach_the_teacher(name: str) -> None:
    """With one distribution a view, the view seen decides the gradient of every row."""
    views = [Mixture.gaussian(torch.full((1, 2, 2), mean, dtype=torch.float64), 0.1) for mean in (-0.5, 0.5)]
    teacher = ExactTeacher({"y": views, "n": views, "": views})
    x, eps = normal(1).expand(4, -1, -1, -1), normal(1, seed=1).expand(4, -1, -1, -1)
    given = context(teacher, 4, camera=pose([0, 180, 10, 190]), eps=eps)
    options = {"asd": {"shift": 1.0}, "cds": {"smallest_gap": 0.2, "largest_gap": 0.2}}.get(name, {})
    grad = make(name, 0.5, 2.0, **options)(x, given).grad
    assert float((grad[0] - grad[1]).abs().min()) > 1e-3
    if name != "asd":  # which draws a tau for each row
        torch.testing.assert_close(grad[:2], grad[2:])
