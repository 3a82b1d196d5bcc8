import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.config import Schedule
from dreamkit.errors import ConfigError

values = st.floats(1e-6, 1e6)


def threestudio(data, step):
    """threestudio.utils.misc.C for integer steps, as it is published."""
    start_step, start_value, end_value, end_step = data
    return start_value + (end_value - start_value) * max(min(1.0, (step - start_step) / (end_step - start_step)), 0.0)


@given(st.integers(0, 500), values, values, st.integers(501, 2000), st.integers(0, 2500))
def test_linear_agrees_with_threestudio(start_step, v0, v1, end_step, step):
    data = [start_step, v0, v1, end_step]
    assert Schedule.parse(data).at(step / 2500, 2500) == pytest.approx(threestudio(data, step), rel=1e-6)


def test_exponential_is_linear_in_the_logarithm():
    schedule = Schedule(0.2, 1.0, 1e-4, 0.6, "exponential")
    assert [schedule.at(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([1.0, 1.0, 1e-2, 1e-4, 1e-4])


def test_sqrt_is_fast_first_and_ends_where_linear_does():
    schedule = Schedule(0.2, 1.0, 3.0, 0.6, "sqrt")
    assert [schedule.at(p) for p in (0.0, 0.2, 0.3, 0.6, 1.0)] == pytest.approx([1.0, 1.0, 2.0, 3.0, 3.0])
    # A quarter of the way in time is half of it in value; Consistent3D's 700 to 100.
    falling = Schedule(0.0, 0.7, 0.1, 1.0, "sqrt")
    assert [falling.at(p) for p in (0.0, 0.25, 1.0)] == pytest.approx([0.7, 0.4, 0.1])
    assert Schedule(0, 0.0, 10.0, 400, "sqrt").at(0.25, 400) == pytest.approx(5.0)


def test_step_holds_up_to_its_start_and_changes_behind_it():
    schedule = Schedule(0.2, 1.0, 3.0, 1.0, "step")
    assert [schedule.at(p) for p in (0.0, 0.1, 0.2)] == [1.0, 1.0, 1.0]
    assert [schedule.at(p) for p in (0.2 + 1e-9, 0.5, 1.0)] == [3.0, 3.0, 3.0]
    assert [Schedule(5, 1.0, 3.0, 20, "step").at(step / 20, 20) for step in (4, 5, 6)] == [1.0, 1.0, 3.0]


def test_only_an_exponential_may_not_touch_zero():
    for curve in ("linear", "sqrt", "step"):
        assert Schedule(0.0, 0.0, -1.0, 1.0, curve).at(1.0) == -1.0
    with pytest.raises(ConfigError, match="zero"):
        Schedule(0.0, 0.0, 1.0, 1.0, "exponential")


def test_fractions_and_steps():
    fraction, steps = Schedule(0.0, 0.0, 10.0, 1.0), Schedule(0, 0.0, 10.0, 200)
    assert fraction.at(0.5) == steps.at(0.5, 200) == 5.0
    assert steps.at(0.5, 400) == 10.0
    with pytest.raises(ConfigError, match="steps"):
        steps.at(0.5)
    assert Schedule.constant(3.0).at(0.7) == 3.0


@given(
    *(st.floats(0, 0.9), values, values, st.sampled_from([0.95, 1.0, 300.0])),
    st.sampled_from(["linear", "exponential", "sqrt", "step"]),
)
def test_plain_forms_round_trip(start, v0, v1, end, curve):
    schedule = Schedule(start, v0, v1, end, curve)
    assert Schedule.parse(json.loads(json.dumps(schedule.data()))) == schedule or v0 == v1
    assert Schedule.parse(str(schedule.data())).at(0.3, 400) == schedule.at(0.3, 400)
    assert Schedule.parse(vars(schedule)) == schedule
    assert Schedule.parse(schedule) is schedule


@pytest.mark.parametrize(
    ("given_form", "expected"),
    [
        (0.5, Schedule.constant(0.5)),
        (2, Schedule.constant(2.0)),
        ("1e-3", Schedule.constant(1e-3)),
        ([0.5], Schedule.constant(0.5)),
        ("0, 1e-2, 1e-3, 300", Schedule(0, 1e-2, 1e-3, 300)),
        ("[0, 1, 2, 1, exponential]", Schedule(0, 1, 2, 1, "exponential")),
        ("0, 0.7, 0.1, 1, sqrt", Schedule(0, 0.7, 0.1, 1, "sqrt")),
        ([0.2, 0.5, 0.26, 1.0, "step"], Schedule(0.2, 0.5, 0.26, 1.0, "step")),
    ],
)
def test_forms(given_form, expected):
    assert Schedule.parse(given_form) == expected


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "fast",
        True,
        None,
        [1, 2],
        [1, 2, 3],
        [0, 1, 2, 3, "linear", 5],
        [10, 1, 2, 5],
        [5, 1, 2, 5],
        [-1, 1, 2, 5],
        [0, float("nan"), 1, 5],
        [0, 1, float("inf"), 5],
        [0, 0.0, 1.0, 5, "exponential"],
        [0, 1.0, 2.0, 5, "cosine"],
        {"start": 1},
        {"start_step": "soon"},
    ],
)
def test_bad_forms_are_refused(bad):
    with pytest.raises(ConfigError):
        Schedule.parse(bad)
