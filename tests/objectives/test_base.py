"""What every objective is built of: noise levels, weights, the surrogate loss, the registry."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.objectives import (
    Gradient,
    Objective,
    ObjectiveContext,
    TimestepSchedule,
    base,
    objective_class,
    objective_names,
    register,
    surrogate_loss,
)
from dreamkit.objectives.base import Weighting, weight


def context(step: int = 0, total: int = 100, seed: int = 0) -> ObjectiveContext:
    """A context for drawing noise levels: nothing but device and generator matters."""
    empty = Condition(torch.zeros(1, 1, 1))
    teacher: Any = SimpleNamespace(device=torch.device("cpu"))
    return ObjectiveContext(teacher, empty, empty, None, step, total, torch.Generator().manual_seed(seed))


class TestSurrogateLoss:
    @pytest.mark.parametrize("batch", [1, 3])
    def test_its_gradient_is_the_given_one_over_the_batch(self, batch: int) -> None:
        x = torch.randn(batch, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        grad = torch.randn_like(x).detach()
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
    schedule = NoiseSchedule.ddpm("cosine")

    @pytest.mark.parametrize("kind", get_args(Weighting))
    def test_kinds(self, kind: Weighting) -> None:
        t = torch.tensor([0.1, 0.5, 0.9])
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        expected = {"sigma_squared": sigma**2, "sigma_ratio": sigma / alpha, "uniform": torch.ones(3)}[kind]
        w = weight(self.schedule, t, kind)
        assert w.shape == (3, 1, 1, 1)
        torch.testing.assert_close(w[:, 0, 0, 0], expected)

    def test_unknown_kind(self) -> None:
        with pytest.raises(ConfigError, match="sigma_cubed"):
            weight(self.schedule, torch.tensor([0.5]), "sigma_cubed")  # type: ignore[arg-type]


class TestTimestepSchedule:
    def test_the_default_falls_from_noise_to_detail(self) -> None:
        schedule = TimestepSchedule()
        means = [float(schedule.sample(64, context(step)).mean()) for step in (0, 50, 99)]
        assert means == pytest.approx([0.97, 0.53, 0.089], abs=0.012)  # clipped to 0.98 at the start
        assert means[0] > means[1] > means[2]

    def test_level_and_jitter_bound_the_draw(self) -> None:
        schedule = TimestepSchedule(Schedule(0.0, 0.8, 0.4, 1.0), jitter=0.1)
        for step in (0, 25, 50, 75):
            t = schedule.sample(100, context(step))
            centre = 0.8 - 0.4 * step / 100
            assert float(t.min()) >= centre - 0.1 - 1e-6
            assert float(t.max()) <= centre + 0.1 + 1e-6
            assert float(t.max() - t.min()) > 0.18

    @settings(max_examples=50, deadline=None)
    @given(st.integers(1, 33), st.integers(0, 99), st.integers(0, 1000), st.floats(0, 1))
    def test_never_outside_its_bounds(self, count: int, step: int, seed: int, jitter: float) -> None:
        t = TimestepSchedule(jitter=jitter, t_min=0.1, t_max=0.7).sample(count, context(step, seed=seed))
        assert t.shape == (count,)
        assert float(t.min()) >= 0.1 - 1e-7
        assert float(t.max()) <= 0.7 + 1e-7

    def test_every_stratum_gets_one_level(self) -> None:
        schedule = TimestepSchedule(Schedule.constant(0.5), jitter=0.48)
        t = schedule.sample(16, context()).double().sort().values
        stratum = ((t - 0.02) / 0.96 * 16 - 1e-6).floor()
        assert stratum.tolist() == list(range(16))

    def test_views_get_their_levels_in_any_order(self) -> None:
        schedule = TimestepSchedule(Schedule.constant(0.5), jitter=0.4)
        orders = {tuple(schedule.sample(4, context(seed=seed)).argsort().tolist()) for seed in range(60)}
        assert len(orders) > 15  # of 24

    def test_the_classic_range(self) -> None:
        schedule = TimestepSchedule(Schedule.constant(0.5), jitter=0.48)
        t = torch.cat([schedule.sample(8, context(step, seed=step)) for step in range(100)])
        assert float(t.min()) < 0.03
        assert float(t.max()) > 0.97
        assert float(t.mean()) == pytest.approx(0.5, abs=0.01)

    def test_no_jitter_is_the_level_itself(self) -> None:
        t = TimestepSchedule(Schedule.constant(0.5), jitter=0.0).sample(3, context())
        torch.testing.assert_close(t, torch.full((3,), 0.5))

    def test_a_schedule_in_steps(self) -> None:
        schedule = TimestepSchedule(Schedule(10, 0.9, 0.1, 20), jitter=0.0)
        levels = [float(schedule.sample(1, context(step, 40))) for step in (0, 10, 15, 20, 39)]
        assert levels == pytest.approx([0.9, 0.9, 0.5, 0.1, 0.1], abs=1e-6)

    def test_same_seed_same_levels(self) -> None:
        one, two, other = (TimestepSchedule().sample(8, context(seed=seed)) for seed in (3, 3, 4))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)

    @pytest.mark.parametrize(
        "options", [{"t_min": 0.0}, {"t_max": 1.0}, {"t_min": 0.9, "t_max": 0.1}, {"jitter": -0.1}, {"jitter": 1.5}]
    )
    def test_bad_values(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            TimestepSchedule(**options)


class TestRegistry:
    def test_names(self) -> None:
        names = objective_names()
        assert "sds" in names
        assert names == sorted(names)
        for name in names:
            assert issubclass(objective_class(name), Objective)
            assert objective_class(name).name == name

    def test_an_unknown_name_lists_the_known_ones_and_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            objective_class("sdz")
        message = str(caught.value)
        assert "'sdz'" in message
        assert all(name in message for name in objective_names())
        assert "Did you mean sds?" in message

    def test_nothing_near(self) -> None:
        with pytest.raises(ConfigError) as caught:
            objective_class("photogrammetry")
        assert "Did you mean" not in str(caught.value)

    def test_register_and_refuse_a_second_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))

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
        one, two = context(seed=1).noise_like(x), context(seed=1).noise_like(x)
        assert torch.equal(one, two)
        double = context(seed=1).noise_like(x.double())
        assert double.dtype == torch.float64
        large = context().noise_like(torch.zeros(4, 3, 64, 64))
        assert float(large.mean()) == pytest.approx(0, abs=0.02)
        assert float(large.std()) == pytest.approx(1, abs=0.02)

    def test_progress(self) -> None:
        assert context(25, 100).progress == 0.25
