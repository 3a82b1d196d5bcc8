"""Claims of papers, on rows that are made up."""

from collections.abc import Sequence
from typing import Any

import pytest

from dreamkit.training.compare_video.claims import CLAIMS, FAILS, HOLDS, OPEN, Verdict, judge_claim, judge_claims

Row = dict[str, Any]


def traits(**changes: Any) -> dict[str, Any]:
    known = {"objective": "dmd", "history": "self", "sink": "first", "trained_sink": "first", "sink_frames": 3}
    return known | {"window": 9, "chunk": 3, "calls": 4} | changes


def rows(student: str, motion: str = "spinning", **columns: Sequence[float | None]) -> list[Row]:
    """A cell for each number of the columns, each of a prompt of its own."""
    count = len(next(iter(columns.values())))
    empty = {"motion_magnitude": None, "drift_last": None, "prompt_last": None, "error": None, "seed": 0}
    return [
        {"kind": "stream", "student": student, "motion": motion, "prompt": str(index), **empty}
        | {name: values[index] for name, values in columns.items()}
        for index in range(count)
    ]


def verdict(name: str, made: list[Row], kinds: dict[str, dict[str, Any]]) -> Verdict:
    return judge_claim(next(claim for claim in CLAIMS if claim.name == name), made, kinds)


REWARDED = {"plain": traits(), "rewarded": traits(objective="re-dmd")}


def test_a_clear_difference_holds() -> None:
    made = rows("plain", motion_magnitude=[0.5, 0.6, 0.4]) + rows("rewarded", motion_magnitude=[0.7, 0.81, 0.6])
    found = verdict("rewarded motion", made, REWARDED)
    assert (found.verdict, found.reason) == (HOLDS, "")
    comparison = found.pairs[0].comparisons[0]
    assert (found.pairs[0].first, found.pairs[0].second, found.pairs[0].differs) == ("rewarded", "plain", ())
    assert (comparison.first, comparison.second) == (pytest.approx(0.7033, abs=1e-4), pytest.approx(0.5))
    assert comparison.difference == pytest.approx(0.2033, abs=1e-4)
    assert comparison.cells == 3


def test_a_difference_within_its_interval_does_not() -> None:
    made = rows("plain", motion_magnitude=[0.5, 0.6, 0.4]) + rows("rewarded", motion_magnitude=[0.9, 0.5, 0.45])
    found = verdict("rewarded motion", made, REWARDED)
    assert (found.verdict, found.reason) == (FAILS, "motion is not higher, the difference is within its interval.")


def test_the_opposite_does_not() -> None:
    made = rows("plain", motion_magnitude=[0.7, 0.81, 0.6]) + rows("rewarded", motion_magnitude=[0.5, 0.6, 0.4])
    assert verdict("rewarded motion", made, REWARDED).reason == "motion is not higher."


def test_where_nothing_is_to_move_motion_is_no_merit() -> None:
    made = rows("plain", "still", motion_magnitude=[0.5] * 3) + rows("rewarded", "still", motion_magnitude=[0.7] * 3)
    assert verdict("rewarded motion", made, REWARDED).verdict == OPEN


@pytest.mark.parametrize(
    "made",
    [
        [],
        rows("plain", motion_magnitude=[0.5]) + rows("rewarded", motion_magnitude=[0.7]),
        rows("plain", motion_magnitude=[0.5, None, 0.4]) + rows("rewarded", motion_magnitude=[None, 0.7, 0.7]),
        rows("plain", motion_magnitude=[0.5, 0.4])
        + [row | {"error": "x"} for row in rows("rewarded", motion_magnitude=[0.7, 0.7])],
    ],
)
def test_too_few_cells(made: list[Row]) -> None:
    found = verdict("rewarded motion", made, REWARDED)
    assert found.verdict == OPEN
    assert "rewarded and plain have fewer than 2 cells" in found.reason


def test_no_student_of_a_kind() -> None:
    for found in judge_claims([], {"a": traits(objective=None, history=None)}):
        assert found.verdict == OPEN
        assert found.reason.startswith("It needs a student")
    assert all(found.verdict == OPEN for found in judge_claims([], {}))


def ema_rows(drift: Sequence[float], prompt: Sequence[float]) -> list[Row]:
    fixed = rows("fixed", motion_magnitude=[0.5, 0.6, 0.4], drift_last=[0.1, 0.12, 0.11], prompt_last=[0.8, 0.9, 0.8])
    return fixed + rows("ema", motion_magnitude=[0.7, 0.81, 0.6], drift_last=drift, prompt_last=prompt)


@pytest.mark.parametrize(
    ("drift", "prompt", "verdict_", "reason"),
    [
        ([0.1, 0.12, 0.11], [0.8, 0.9, 0.8], HOLDS, ""),
        ([0.1, 0.14, 0.1], [0.9, 0.7, 0.8], HOLDS, ""),  # a little more, within the interval
        ([0.3, 0.33, 0.31], [0.8, 0.9, 0.8], FAILS, "drift at the end is worse."),
        ([0.1, 0.12, 0.11], [0.5, 0.61, 0.5], FAILS, "prompt, the last 100 is worse."),
    ],
)
def test_an_ema_sink_must_keep_what_it_has(drift: list[float], prompt: list[float], verdict_: str, reason: str) -> None:
    kinds = {"fixed": traits(), "ema": traits(sink="ema", trained_sink="ema")}
    found = verdict("ema sink", ema_rows(drift, prompt), kinds)
    assert (found.verdict, found.reason) == (verdict_, reason)


def test_sinks_against_drift() -> None:
    kinds = {"with": traits(), "without": traits(sink="none", trained_sink="none", sink_frames=0)}
    made = rows("with", drift_last=[0.1, 0.12]) + rows("without", drift_last=[0.3, 0.325])
    found = verdict("sinks against drift", made, kinds)
    assert found.verdict == HOLDS
    assert found.pairs[0].differs == ()


def test_self_forcing_against_both_kinds_of_learning_from_clips() -> None:
    kinds = {
        "self": traits(),
        "tf": traits(objective="teacher-forcing", history="data"),
        "cc": traits(objective="causal-consistency", history="data"),
    }
    good = rows("self", drift_last=[0.1, 0.12]) + rows("tf", drift_last=[0.3, 0.325])
    assert verdict("self forcing", good + rows("cc", drift_last=[0.4, 0.42]), kinds).verdict == HOLDS
    found = verdict("self forcing", good + rows("cc", drift_last=[0.1, 0.12]), kinds)
    assert found.verdict == FAILS  # it must hold for both
    assert [pair.second for pair in found.pairs] == ["tf", "cc"]


def test_the_most_alike_are_compared_and_the_rest_is_told() -> None:
    kinds = {
        "rewarded": traits(objective="re-dmd", sink="ema", trained_sink="ema", window=6),
        "far": traits(window=12, history="data"),
        "near": traits(window=6),
    }
    made = [row for name, value in (("rewarded", 0.7), ("far", 0.1), ("near", 0.6))
            for row in rows(name, motion_magnitude=[value, value + 0.1])]  # fmt: skip
    found = verdict("rewarded motion", made, kinds)
    assert [(pair.first, pair.second) for pair in found.pairs] == [("rewarded", "near")]
    assert found.pairs[0].differs == ("sink ema and first", "trained sink ema and first")
