"""Scores of video students over the frames of their streams, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dreamkit.training.compare_video.summary import Row
from dreamkit.training.report.plots import drawing, shortened, svg_text

Point = tuple[float, float]


def mean_curve(rows: Sequence[Row], name: str) -> list[Point]:
    """The middle frame of every part of a stream, and the mean of a score in it over the rows that tell.

    Args:
        rows: of one student.
        name: of the score, as `streams.Life` has it.
    """
    sums: dict[float, tuple[float, int]] = {}
    for row in rows:
        for part in row["curve"]:
            if part.get(name) is not None:
                at = (part["start"] + part["end"]) / 2
                total, count = sums.get(at, (0.0, 0))
                sums[at] = (total + part[name], count + 1)
    return [(at, total / count) for at, (total, count) in sorted(sums.items())]


def lines(
    curves: Mapping[str, Sequence[Point]],
    colours: Mapping[str, str],
    title: str,
    level: float | None = None,
    level_name: str = "",
    high: float | None = None,
) -> str:
    """A line a student, and a dashed level to compare with.

    Args:
        curves: a student's name -> (frame, score).
        colours: of the students.
        title: of the vertical axis.
        level: the dashed line, none by default.
        level_name: what is written beside it.
        high: end of the vertical axis, by default where the lines end.

    Returns:
        An SVG element; an empty text where nothing can be drawn.
    """
    shown = {name: points for name, points in curves.items() if points}
    if not shown:
        return ""
    with drawing(f"lines {title}", 2.8) as (figure, axes):
        for name, points in shown.items():
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), color=colours[name], linewidth=1.6, marker=marker, markersize=5)
        if level is not None:
            axes.axhline(level, color="#7f8c8d", linewidth=1.2, linestyle=(0, (4, 3)))
            place = (1.0, level)
            axes.annotate(
                shortened(level_name, 20), place, xycoords=("axes fraction", "data"), xytext=(-2, 3),
                textcoords="offset points", ha="right", fontsize=8,
            )  # fmt: skip
        axes.set_ylim(0, high)
        axes.set_xlim(left=0)
        axes.set_xlabel("frame")
        axes.set_ylabel(title)
        return svg_text(figure, f"{title} over frames")
