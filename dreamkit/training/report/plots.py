"""The plots of a report as inline SVG: text in the page's font and colour, so that they follow light and dark."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

Row = Mapping[str, Any]
COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#b07aa1", "#76b7b2", "#d4a92a", "#9c755f", "#ff7f9d"),
    *("#7f8c8d", "#2ca8c2", "#8c6bb1", "#a6c84c", "#c0504d", "#3f9b7a", "#d081c8"),
)
"""A colour an objective, of middle lightness: legible on white and on black."""
_INK = "#010203"
"""Stands for the text's colour until the page is known."""
_BARS = 0.75  # height of an objective's bars together, in rows
_LABEL_LENGTH = 26
_SHIFTS = (0, 2, -2, 4, -4, 6, -6, 8, -8, 10, -10)
"""Where a mark's name may stand, points above the mark."""


def colours(labels: Sequence[str]) -> dict[str, str]:
    """A colour for each label, in their order."""
    return {label: COLOURS[index % len(COLOURS)] for index, label in enumerate(labels)}


def scatter(summary: Sequence[Row], name: str, title: str) -> str:
    """R-precision against another column: a filled mark for each objective with a camera, a hollow one without.

    Args:
        summary: rows with `r_precision` and the column.
        name: the column on the horizontal axis.
        title: its name and unit.

    Returns:
        An SVG element; an empty text where nothing can be drawn.
    """
    points = [row for row in summary if row["r_precision"] is not None and row[name] is not None]
    if not points:
        return ""
    palette = colours(list(dict.fromkeys(row["objective"] for row in summary)))
    with drawing(f"scatter {name}", 3.5) as (figure, axes):
        xs = [row[name] for row in points]
        if max(xs) > 20 * max(min(xs), 1e-9):
            axes.set_xscale("log")
        for row in points:
            colour = palette[row["objective"]]
            face = colour if row["mode"] == "camera" else "none"
            axes.plot(row[name], row["r_precision"], "o", ms=8, mfc=face, mec=colour, mew=2, clip_on=False)
        low = math.floor(10 * min(row["r_precision"] for row in points) - 0.5) / 10
        axes.set_ylim(max(low, 0.0) - 0.03, 1.03)
        axes.margins(x=0.15)
        axes.set_xlabel(title)
        axes.set_ylabel("R-precision")
        _name_points(axes, points, name)
        return svg_text(figure, f"R-precision against {title}")


def _name_points(axes: Any, points: Sequence[Row], name: str) -> None:
    """Write each mark's objective beside it, moved a little where another is in the way; in a crowd, leave it out."""
    figure = axes.figure
    figure.draw_without_rendering()
    unit = figure.dpi / 72  # pixels a point
    marks = [axes.transData.transform((row[name], row["r_precision"])) / unit for row in points]
    taken = [(x - 6, x + 6, y) for x, y in marks]
    for row, (x, y) in sorted(zip(points, marks, strict=True), key=lambda item: item[1][1]):
        text, start = shortened(row["objective"], 14), x + 7
        end = start + 5.0 * len(text)
        beside = [other for left, right, other in taken if start < right and end > left]
        free = (shift for shift in _SHIFTS if all(abs(y + shift - other) >= 8 for other in beside))
        shift = next(free, None)
        if shift is None:
            continue
        taken.append((start, end, y + shift))
        place = (row[name], row["r_precision"])
        axes.annotate(text, place, xytext=(7, shift - 3), textcoords="offset points", fontsize=8)


def bars(summary: Sequence[Row], name: str, title: str, high: float | None = None) -> str:
    """A column by objective and mode as horizontal bars: solid with a camera, outlined without.

    Args:
        summary: rows with the column.
        name: the column.
        title: its name.
        high: end of the axis, by default where the bars end.

    Returns:
        An SVG element; an empty text where nothing can be drawn.
    """
    if all(row[name] is None for row in summary):
        return ""
    labels = list(dict.fromkeys(row["objective"] for row in summary))
    modes = list(dict.fromkeys(row["mode"] for row in summary))
    palette = colours(labels)
    with drawing(f"bars {name}", 0.9 + 0.19 * len(labels) * (len(modes) + 0.5)) as (figure, axes):
        step = _BARS / len(modes)
        for row in summary:
            if row[name] is None:
                continue
            at = labels.index(row["objective"]) + step * (modes.index(row["mode"]) - (len(modes) - 1) / 2)
            colour = palette[row["objective"]]
            face = colour if row["mode"] == "camera" else "none"
            axes.barh(at, row[name], 0.9 * step, color=face, edgecolor=colour, linewidth=1.5)
            axes.annotate(
                f"{row[name]:.2f}", (row[name], at), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(labels)), [shortened(label, _LABEL_LENGTH) for label in labels])
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, high or 1.15 * max(row[name] or 0 for row in summary) or 1)
        axes.set_xlabel(title)
        return svg_text(figure, title)


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


@contextmanager
def drawing(salt: str, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure in a plain style, of a width that a phone can show, and its axes.

    Args:
        salt: makes the names inside the picture its own, the same every time.
        height: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"dreamkit {salt}",
        "text.parse_math": False,
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "font.family": "DejaVu Sans",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.3, height), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="both", color=_INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        yield figure, axes


def svg_text(figure: Any, title: str) -> str:
    """The figure as an SVG element without size, font or colour of its own."""
    from html import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("'DejaVu Sans'", "inherit").replace("DejaVu Sans", "inherit")
    text = re.sub(r' width="[\d.]+pt"', "", re.sub(r' height="[\d.]+pt"', "", text, count=1), count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1).strip()
