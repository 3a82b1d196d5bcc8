"""What papers say of their students, held against the rows of a comparison.

A claim compares students of one kind with students of another, told apart by their traits. Of all such pairs those
count that are most alike in everything else. The cells of both with the same prompt and seed are compared pairwise: a
difference counts if its 95 % interval (Student's t) leaves out zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamkit.training.compare_video.measures import MEASURES, STREAM
from dreamkit.training.compare_video.summary import Row, good, interval

Traits = Mapping[str, Any]
"""The fields of `students.Traits`."""
HOLDS, FAILS, OPEN = "holds", "does not hold", "not measured"
Wanted = Literal["higher", "lower", "not higher", "not lower"]
_FEWEST = 2
"""Cells of a pair, at least: one alone has no interval."""
_COMPARED = ("objective", "history", "sink", "trained_sink", "sink_frames", "window", "chunk", "calls")


@dataclass(frozen=True)
class Demand:
    """A part of a claim.

    Args:
        measure: the column.
        wanted: how the first student's is against the second's. "Not higher" and "not lower" hold unless the
            difference is beyond doubt.
        moving: whether only prompts count that ask for motion: where nothing is to move, less is better.
    """

    measure: str
    wanted: Wanted
    moving: bool = False


@dataclass(frozen=True)
class Claim:
    """A published claim.

    Args:
        name: short.
        text: what is claimed.
        source: who says so.
        first: whether a student is of the kind that is praised.
        second: whether it is of the kind it is praised against.
        needs: both kinds in words.
        demands: all must hold.
        apart: traits that tell the two kinds from each other, and so may differ.
    """

    name: str
    text: str
    source: str
    first: Callable[[Traits], bool]
    second: Callable[[Traits], bool]
    needs: str
    demands: tuple[Demand, ...]
    apart: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A demand on a pair of students.

    Args:
        demand: which.
        first: mean of the first student over the cells that both have.
        second: of the second.
        difference: first minus second.
        half: half the width of the difference's 95 % interval.
        cells: how many both have.
        holds: the outcome.
    """

    demand: Demand
    first: float
    second: float
    difference: float
    half: float
    cells: int
    holds: bool

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.difference) > self.half


@dataclass(frozen=True)
class Pair:
    """Two students that a claim compares.

    Args:
        first: name.
        second: name.
        differs: what else tells them apart, "window 9 and 6".
        comparisons: of every demand.
    """

    first: str
    second: str
    differs: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Args:
        name: of the claim.
        text: the claim.
        source: of the claim.
        verdict: `HOLDS`, `FAILS` or `OPEN`.
        reason: why it was not measured, or what was found.
        pairs: that were compared.
    """

    name: str
    text: str
    source: str
    verdict: str
    reason: str
    pairs: tuple[Pair, ...] = field(default=())


_CLIP_TRAINED = ("teacher-forcing", "causal-consistency", "motion-consistency")

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="ema sink",
        text="An EMA sink raises motion and keeps consistency against a fixed sink.",
        source="Lu et al., Reward Forcing, arXiv 2512.04678",
        first=lambda traits: traits["sink"] == "ema",
        second=lambda traits: traits["sink"] == "first",
        needs="a student with an ema sink and one with the first frames as its sink",
        demands=(
            Demand("motion_magnitude", "higher", moving=True),
            Demand("drift_last", "not higher"),
            Demand("prompt_last", "not lower"),
        ),
        apart=("sink", "trained_sink"),
    ),
    Claim(
        name="sinks against drift",
        text="Sinks in training stop drift.",
        source="MotionStream, arXiv 2511.01266; Yang et al., LongLive, arXiv 2509.22622",
        first=lambda traits: traits["trained_sink"] != "none" and traits["sink"] != "none",
        second=lambda traits: traits["trained_sink"] == "none",
        needs="a student that was trained with a sink and one without",
        demands=(Demand("drift_last", "lower"),),
        apart=("sink", "trained_sink", "sink_frames"),
    ),
    Claim(
        name="self forcing",
        text="Self Forcing drifts less than teacher forcing and causal consistency.",
        source="Huang et al., Self Forcing, arXiv 2506.08009",
        first=lambda traits: traits["history"] == "self",
        second=lambda traits: traits["objective"] in _CLIP_TRAINED,
        needs="a student that was trained on its own history and one by teacher-forcing or causal-consistency",
        demands=(Demand("drift_last", "lower"),),
        apart=("objective", "history"),
    ),
    Claim(
        name="rewarded motion",
        text="Rewarded DMD moves more than DMD.",
        source="Lu et al., Reward Forcing, arXiv 2512.04678",
        first=lambda traits: traits["objective"] == "re-dmd",
        second=lambda traits: traits["objective"] == "dmd",
        needs="a student of the objective re-dmd and one of dmd",
        demands=(Demand("motion_magnitude", "higher", moving=True),),
        apart=("objective",),
    ),
)
"""All that are tested."""


def judge_claims(rows: Sequence[Row], traits: Mapping[str, Traits]) -> list[Verdict]:
    """Hold every claim against the rows.

    Args:
        rows: of a comparison.
        traits: name of a student -> what it is.
    """
    return [judge_claim(claim, rows, traits) for claim in CLAIMS]


def judge_claim(claim: Claim, rows: Sequence[Row], traits: Mapping[str, Traits]) -> Verdict:
    """Hold a claim against the rows: it holds if it does for all pairs of students that are most alike otherwise."""
    about = (claim.name, claim.text, claim.source)
    pairs = _pairs(claim, traits)
    if not pairs:
        return Verdict(*about, OPEN, f"It needs {claim.needs}.")
    measured = []
    for first, second in pairs:
        comparisons = [_compared(demand, rows, first, second) for demand in claim.demands]
        if all(item is not None for item in comparisons):
            differs = _differences(claim, traits[first], traits[second])
            measured.append(Pair(first, second, differs, tuple(item for item in comparisons if item is not None)))
    if not measured:
        return Verdict(*about, OPEN, f"{_named(pairs)} have fewer than {_FEWEST} cells in common that tell.")
    every = [item for pair in measured for item in pair.comparisons]
    failed = [item for item in every if not item.holds]
    if not failed:
        return Verdict(*about, HOLDS, "", tuple(measured))
    titles = {measure.name: measure.title for measure in MEASURES}
    reasons = dict.fromkeys(
        f"{titles[item.demand.measure]} "
        + (f"is not {item.demand.wanted.removeprefix('not ')}" if _is_strict(item.demand) else "is worse")
        + ("" if item.clear else ", the difference is within its interval")
        for item in failed
    )
    return Verdict(*about, FAILS, "; ".join(reasons) + ".", tuple(measured))


def _is_strict(demand: Demand) -> bool:
    return not demand.wanted.startswith("not ")


def _named(pairs: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{first} and {second}" for first, second in pairs)


def _pairs(claim: Claim, traits: Mapping[str, Traits]) -> list[tuple[str, str]]:
    """Students of both kinds that are most alike in what the claim is not about."""
    others = [name for name in _COMPARED if name not in claim.apart]
    found = [
        (sum(one[name] == other[name] for name in others), first, second)
        for first, one in traits.items()
        for second, other in traits.items()
        if first != second and claim.first(one) and claim.second(other)
    ]
    most = max((alike for alike, _, _ in found), default=0)
    return [(first, second) for alike, first, second in found if alike == most]


def _differences(claim: Claim, one: Traits, other: Traits) -> tuple[str, ...]:
    named = ((name, one[name], other[name]) for name in _COMPARED if name not in claim.apart)
    return tuple(
        f"{name.replace('_', ' ')} {_said(mine)} and {_said(theirs)}" for name, mine, theirs in named if mine != theirs
    )


def _said(value: Any) -> str:
    return "unknown" if value is None else str(value)


def _compared(demand: Demand, rows: Sequence[Row], first: str, second: str) -> Comparison | None:
    """A demand on two students; `None` with too few cells."""
    others = {(row["prompt"], row["seed"]): row for row in good(rows, STREAM, second)}
    pairs = []
    for row in good(rows, STREAM, first):
        other = others.get((row["prompt"], row["seed"]))
        if other is None or (demand.moving and row["motion"] in (None, "still")):
            continue
        if row[demand.measure] is not None and other[demand.measure] is not None:
            pairs.append((float(row[demand.measure]), float(other[demand.measure])))
    if len(pairs) < _FEWEST:
        return None
    difference, half = interval([one - other for one, other in pairs])
    assert half is not None
    means = [sum(values) / len(pairs) for values in zip(*pairs, strict=True)]
    outcomes = {
        "higher": difference - half > 0,
        "lower": difference + half < 0,
        "not higher": difference - half <= 0,
        "not lower": difference + half >= 0,
    }
    return Comparison(demand, means[0], means[1], difference, half, len(pairs), outcomes[demand.wanted])
