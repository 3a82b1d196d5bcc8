"""Which noise levels a run visits: ranges, strata, and the schedules that have a name."""

import itertools
from typing import Any

import pytest
import torch
from closed_form import COSINE, FLOW
from hypothesis import given, settings
from hypothesis import strategies as st
from test_base import plain_context
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.files import plain
from dreamkit.objectives import ObjectiveContext, TimestepSchedule
from dreamkit.objectives.timesteps import NAMED, dreamtime_level

pytestmark = pytest.mark.usefixtures("one_thread")


def flat(level: float, jitter: float) -> TimestepSchedule:
    return TimestepSchedule(Schedule.constant(level), Schedule.constant(jitter))


def on(schedule: NoiseSchedule, step: int, total: int = 100, seed: int = 0) -> ObjectiveContext:
    """A context on a noise schedule, which DreamTime looks at."""
    given = plain_context(step, total, seed)
    given.teacher.schedule = schedule
    return given


def levels(name: str, step: int, count: int = 512, total: int = 100, seed: int = 0) -> Tensor:
    return NAMED[name].sample(count, on(COSINE, step, total, seed))


class TestDraws:
    def test_the_default_falls_from_noise_to_detail(self) -> None:
        schedule = TimestepSchedule()
        means = [float(schedule.sample(64, plain_context(step)).mean()) for step in (0, 50, 99)]
        assert means == pytest.approx([0.97, 0.53, 0.089], abs=0.012)  # clipped to 0.98 at the start
        assert means[0] > means[1] > means[2]

    def test_level_and_jitter_bound_the_draw(self) -> None:
        schedule = TimestepSchedule(Schedule(0.0, 0.8, 0.4, 1.0), Schedule(0.0, 0.1, 0.05, 1.0))
        for step in (0, 25, 50, 75):
            t = schedule.sample(100, plain_context(step))
            centre, width = 0.8 - 0.4 * step / 100, 0.1 - 0.05 * step / 100
            assert float(t.min()) >= centre - width - 1e-12
            assert float(t.max()) <= centre + width + 1e-12
            assert float(t.max() - t.min()) > 1.8 * width

    @settings(max_examples=50)
    @given(st.integers(1, 33), st.integers(0, 99), st.integers(0, 1000), st.floats(0, 1))
    def test_never_outside_its_bounds(self, count: int, step: int, seed: int, jitter: float) -> None:
        schedule = TimestepSchedule(jitter=Schedule.constant(jitter), t_min=0.1, t_max=0.7)
        t = schedule.sample(count, plain_context(step, seed=seed))
        assert t.shape == (count,)
        assert t.dtype == torch.float64
        assert float(t.min()) >= 0.1
        assert float(t.max()) <= 0.7

    def test_every_stratum_gets_one_level(self) -> None:
        t = flat(0.5, 0.48).sample(16, plain_context()).sort().values
        stratum = ((t - 0.02) / 0.96 * 16).floor()
        assert stratum.tolist() == list(range(16))

    def test_views_get_their_levels_in_any_order(self) -> None:
        schedule = flat(0.5, 0.4)
        orders = {tuple(schedule.sample(4, plain_context(seed=seed)).argsort().tolist()) for seed in range(60)}
        assert len(orders) > 15  # of 24

    def test_no_jitter_is_the_level_itself(self) -> None:
        t = flat(0.5, 0.0).sample(3, plain_context())
        assert torch.equal(t, torch.full((3,), 0.5, dtype=torch.float64))

    def test_a_schedule_in_steps(self) -> None:
        schedule = TimestepSchedule(Schedule(10, 0.9, 0.1, 20), Schedule.constant(0.0))
        drawn = [float(schedule.sample(1, plain_context(step, 40))) for step in (0, 10, 15, 20, 39)]
        assert drawn == pytest.approx([0.9, 0.9, 0.5, 0.1, 0.1])

    @settings(max_examples=50)
    @given(
        st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5),
        st.integers(1, 17),
        st.integers(0, 99),
        st.integers(0, 9),
    )
    def test_only_the_nearest_of_its_levels(self, known: list[float], count: int, step: int, seed: int) -> None:
        """Of the same draw, which no level changes; by hand, in Python's floats."""
        free = TimestepSchedule(jitter=Schedule.constant(0.2))
        few = TimestepSchedule(jitter=Schedule.constant(0.2), levels=tuple(known))
        drawn = free.sample(count, plain_context(step, seed=seed)).tolist()
        asked = few.sample(count, plain_context(step, seed=seed))
        assert asked.dtype == torch.float64
        assert asked.tolist() == [min(known, key=lambda level, t=t: abs(level - t)) for t in drawn]

    def test_a_students_levels_from_the_noisiest_on(self) -> None:
        """The usual order of a run, over the three levels that a student of four steps has besides noise."""
        schedule = TimestepSchedule(Schedule(0.0, 0.95, 0.05, 1.0), Schedule.constant(0.0), levels=(0.75, 0.5, 0.25))
        asked = [float(schedule.sample(1, plain_context(step))) for step in range(100)]
        assert asked == sorted(asked, reverse=True)
        assert [asked.count(level) for level in (0.75, 0.5, 0.25)] == [37, 27, 36]  # down to 0.625, to 0.375, to 0.05

    def test_same_seed_same_levels(self) -> None:
        one, two, other = (TimestepSchedule().sample(8, plain_context(seed=seed)) for seed in (3, 3, 4))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


class TestNamed:
    @pytest.mark.parametrize("step", [0, 50, 99])
    def test_uniform_is_dreamfusions_range(self, step: int) -> None:
        t = torch.cat([levels("uniform", step, 8, seed=seed) for seed in range(200)])
        assert 0.02 <= float(t.min()) < 0.03
        assert 0.97 < float(t.max()) <= 0.98
        assert float(t.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(t.std()) == pytest.approx(0.96 / 12**0.5, rel=0.02)

    def test_two_phase_halves_its_range_after_a_fifth_of_the_run(self) -> None:
        for step in (0, 10, 20):
            t = levels("two_phase", step)
            assert float(t.min()) == pytest.approx(0.02, abs=0.005)
            assert float(t.max()) == pytest.approx(0.98, abs=0.005)
        for step in (21, 60, 99):
            t = levels("two_phase", step)
            assert float(t.min()) == pytest.approx(0.02, abs=0.003)
            assert float(t.max()) == pytest.approx(0.50, abs=0.003)

    @pytest.mark.parametrize("name", ["linear", "sqrt"])
    def test_linear_and_sqrt_go_from_end_to_end_without_chance(self, name: str) -> None:
        ends = [levels(name, step, 3) for step in (0, 100)]
        assert ends[0].tolist() == pytest.approx([0.98] * 3)
        assert ends[1].tolist() == pytest.approx([0.02] * 3)
        middle = float(levels(name, 25, 1))
        share = 0.25 if name == "linear" else 0.5  # the square root of a quarter
        assert middle == pytest.approx(0.98 - 0.96 * share)
        assert float(levels(name, 25, 1, seed=4)) == middle

    def test_dreamtime_falls(self) -> None:
        t = [float(levels("dreamtime", step, 1)) for step in range(0, 101, 5)]
        assert all(one >= two for one, two in itertools.pairwise(t))
        assert 0.9 < t[0] <= 0.98
        assert t[-1] == pytest.approx(0.02)

    @pytest.mark.parametrize("schedule", [COSINE, FLOW], ids=["ddpm", "flow"])
    def test_dreamtime_spends_its_time_where_its_weight_is(self, schedule: NoiseSchedule) -> None:
        """The share of the run above a level is the share of W above it, by a sum of our own."""
        import math

        def weight(t: float) -> float:
            alpha, sigma = (float(c) for c in schedule.coefficients(t, torch.zeros(1, dtype=torch.float64)))
            if t > 0.8:
                return sigma / alpha * math.exp(-((t - 0.8) ** 2) / (2 * 0.3**2))
            return sigma / alpha * (math.exp(-((t - 0.5) ** 2) / (2 * 0.1**2)) if t < 0.5 else 1.0)

        fine = [0.02 + 0.96 * (index + 0.5) / 4000 for index in range(4000)]
        weights = [weight(t) for t in fine]
        for progress in (0.1, 0.3, 0.5, 0.7, 0.9):
            level = dreamtime_level(schedule, progress, 0.02, 0.98)
            above = sum(w for t, w in zip(fine, weights, strict=True) if t >= level) / sum(weights)
            assert above == pytest.approx(progress, abs=0.02)

    def test_dreamtime_is_slow_where_the_weight_is_large(self) -> None:
        t = [float(levels("dreamtime", step, 1, total=400)) for step in range(400)]
        low, high = sum(0.02 <= v < 0.3 for v in t), sum(0.6 <= v < 0.88 for v in t)
        assert high > 20 * max(low, 1)

    def test_every_name_is_a_schedule_of_its_own(self) -> None:
        assert len(set(map(str, NAMED.values()))) == len(NAMED)
        for name, schedule in NAMED.items():
            assert TimestepSchedule.parse(name) is schedule
            for step in (0, 50, 99):
                t = levels(name, step)
                assert 0.02 <= float(t.min()) <= float(t.max()) <= 0.98


class TestParse:
    def test_fields(self) -> None:
        parsed = TimestepSchedule.parse({"level": [0.0, 0.9, 0.3, 1.0], "jitter": 0.1, "t_min": 0.05})
        assert parsed == TimestepSchedule(Schedule(0.0, 0.9, 0.3, 1.0), Schedule.constant(0.1), t_min=0.05)
        assert TimestepSchedule.parse(parsed) is parsed

    def test_levels(self) -> None:
        parsed = TimestepSchedule.parse({"level": 0.5, "levels": [0.75, 0.5]})
        assert parsed == TimestepSchedule(Schedule.constant(0.5), levels=(0.75, 0.5))
        assert TimestepSchedule.parse({"levels": []}) == TimestepSchedule.parse({"levels": ()}) == TimestepSchedule()
        assert TimestepSchedule.parse(plain(parsed)) == parsed

    @pytest.mark.parametrize("levels", [[1.0], [0.0], [0.5, "much"], "0.5", 0.5, None, [True], [float("nan")], [[0.5]]])
    def test_what_are_none(self, levels: Any) -> None:
        with pytest.raises(ConfigError, match="levels"):
            TimestepSchedule.parse({"levels": levels})

    @pytest.mark.parametrize(
        "value",
        [
            "unifrom", {"levels": 0.5}, 0.5, None, {"t_min": 0.0}, {"t_max": 1.0}, {"t_min": 0.9, "t_max": 0.1},
            {"jitter": -0.1}, {"jitter": 1.5}, {"order": "random"}, {"level": "high"}, {"t_min": "low"},
            {"t_max": None}, {"jitter": [0.0, 0.1, 2.0, 1.0]}, {"t_min": True}, {"t_min": float("nan")},
        ],
        ids=str,
    )  # fmt: skip
    def test_what_makes_none(self, value: Any) -> None:
        with pytest.raises(ConfigError):
            TimestepSchedule.parse(value)
