"""The page of a comparison of video students, put together from escaped text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from dreamkit.training.compare_video.claims import FAILS, HOLDS, Comparison, Pair, Verdict
from dreamkit.training.compare_video.measures import MEASURES, SPEED_MEASURES, STREAM, TEACHER, Measure, groups
from dreamkit.training.compare_video.players import SCRIPT, STYLE, players
from dreamkit.training.compare_video.plots import lines, mean_curve
from dreamkit.training.compare_video.students import TEACHER_NAME
from dreamkit.training.compare_video.summary import Row, good
from dreamkit.training.report.parts import counted, document, number_text, sort_head
from dreamkit.training.report.plots import colours

_TITLE = "Video students, side by side"
_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
_CURVES = (
    ("prompt", "share of frames that show the prompt", 1.05),
    ("motion", "share of clips that move as asked", 1.05),
    ("sharpness", "sharpness", None),
    ("motion_magnitude", "motion, pixels a frame", None),
)
"""Score, axis, its end."""
_WANTED = {
    "higher": "higher",
    "lower": "lower",
    "not higher": "no higher",
    "not lower": "no lower",
}


@dataclass(frozen=True)
class Report:
    """What the page shows.

    Args:
        folder: of the comparison, where the clips lie.
        plan: of the comparison.
        machine: what it ran on.
        rows: all.
        summary: a student each.
        claims: what became of them.
    """

    folder: Path
    plan: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: Sequence[Row]
    summary: Sequence[Row]
    claims: Sequence[Verdict]

    @property
    def students(self) -> list[str]:
        """Their names, in their order."""
        return list(self.plan["students"])

    @property
    def palette(self) -> dict[str, str]:
        """A colour for each."""
        return colours(self.students)


def page(report: Report) -> str:
    """The whole page."""
    sections = [_header(report), _tables(report), _ratios(report), _claims(report), _plots(report)]
    sections += [players(report.folder, report.rows, report.students), _trainings(report), _failures(report)]
    return document(_TITLE, "\n".join(section for section in [*sections, _meanings()] if section), STYLE, SCRIPT)


def _header(report: Report) -> str:
    shared, machine, teacher = report.plan["shared"], report.machine, report.plan.get("teacher")
    streams = [row for row in report.rows if row["kind"] == STREAM]
    what = [
        counted(len(report.students), "student"),
        counted(len({row["prompt"] for row in streams}), "prompt"),
        counted(len({row["seed"] for row in streams}), "seed"),
        counted(shared["frames"], "frame"),
    ]
    if teacher:
        what.append(f"teacher {teacher['source']}, {teacher['steps']} steps, guidance {teacher['guidance']}")
    where = [str(machine.get("date", "")), f"commit {machine.get('commit') or 'unknown'}"]
    where += [str(machine.get(name)) for name in ("cpu", "gpu") if machine.get(name)]
    where += [f"torch {machine.get('torch')}", f"DreamKit {shared['dreamkit_version']}"]
    return (
        f"<header>\n<h1>{_TITLE}</h1>\n"
        f'<p class="meta">{escape(" · ".join(what))}<br>{escape(" · ".join(where))}</p>\n</header>'
    )


def _name_cell(report: Report, name: str) -> str:
    colour = report.palette.get(name, "var(--soft)")
    return f'<td data-value="{escape(name)}"><span class="dot" style="--dot:{colour}"></span>{escape(name)}</td>'


def _table(heads: Sequence[str], lines: Sequence[str]) -> str:
    return (
        f'<div class="scroll"><table class="sortable">\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _heads(measures: Sequence[Measure]) -> list[str]:
    return [sort_head(item.title, "ascending" if item.better == "low" else "descending") for item in measures]


def _tables(report: Report) -> str:
    """A table for each group of measures, a row a student."""
    blocks = []
    for title, measures in groups().items():
        shown = [item for item in measures if any(item.name in entry["measures"] for entry in report.summary)]
        entries = [entry for entry in report.summary if any(item.name in entry["measures"] for item in shown)]
        if not shown:
            continue
        best = {item.name: _best(entries, item) for item in shown}
        rows = [
            f"<tr>{_name_cell(report, entry['student'])}"
            f"{''.join(_cell(entry, item, best[item.name]) for item in shown)}</tr>"
            for entry in entries
        ]
        blocks.append(f"<h3>{escape(title)}</h3>\n{_table([sort_head('student', 'ascending'), *_heads(shown)], rows)}")
    hint = (
        "Means over prompts and seeds with 95 % intervals (Student's t, cells taken as independent); the best student "
        "of a column in green. A click on a head sorts."
    )
    return f'<section>\n<h2>Summary</h2>\n<p class="hint">{hint}</p>\n{chr(10).join(blocks)}\n</section>'


def _cell(entry: Row, measure: Measure, best: str | None) -> str:
    found = entry["measures"].get(measure.name)
    if found is None:
        return f'<td data-value="">{number_text(None, 0)}</td>'
    text = number_text(found["mean"], measure.digits)
    kind = ' class="best"' if text == best and entry["student"] != TEACHER_NAME else ""
    half = "" if found["half"] is None else f" {_PLUS_MINUS} {number_text(found['half'], measure.digits)}"
    title = f' title="{counted(found["n"], "cell")}"'
    return f'<td{kind}{title} data-value="{found["mean"]}">{text}<span class="half">{half}</span></td>'


def _best(entries: Sequence[Row], measure: Measure) -> str | None:
    """The best of the students as it is written; `None` where there is no better or no choice."""
    found = (entry["measures"].get(measure.name) for entry in entries if entry["student"] != TEACHER_NAME)
    values = [item["mean"] for item in found if item is not None]
    if not measure.better or len({number_text(value, measure.digits) for value in values}) < 2:
        return None
    return number_text(max(values) if measure.better == "high" else min(values), measure.digits)


def _ratios(report: Report) -> str:
    """Students as shares of the teacher."""
    entries = [entry for entry in report.summary if entry["ratios"]]
    if not entries:
        return ""
    shown = [item for item in MEASURES if any(item.name in entry["ratios"] for entry in entries)]
    rows = []
    for entry in entries:
        values = [entry["ratios"].get(item.name) for item in shown]
        cells = (f'<td data-value="{"" if v is None else v}">{number_text(v, 2)}</td>' for v in values)
        rows.append(f"<tr>{_name_cell(report, entry['student'])}{''.join(cells)}</tr>")
    heads = [sort_head("student", "ascending"), *(sort_head(item.title, "descending") for item in shown)]
    hint = "Means of the students divided by those of the teacher's clips of the same prompts and seeds: 1 is alike."
    return f'<section>\n<h2>Against the teacher</h2>\n<p class="hint">{hint}</p>\n{_table(heads, rows)}\n</section>'


def _claims(report: Report) -> str:
    """What became of published claims."""
    blocks = []
    for verdict in report.claims:
        kind = {HOLDS: "holds", FAILS: "fails"}.get(verdict.verdict, "open")
        reason = f" {escape(verdict.reason)}" if verdict.reason else ""
        pairs = "".join(f"<li>{_pair(pair)}</li>" for pair in verdict.pairs)
        blocks.append(
            f'<div class="claim {kind}"><h3>{escape(verdict.text)}</h3>\n'
            f'<p class="meta">{escape(verdict.source)}</p>\n'
            f"<p><strong>{escape(verdict.verdict)}</strong>.{reason}</p>\n"
            f"{f'<ul>{pairs}</ul>' if pairs else ''}</div>"
        )
    hint = (
        "Students are told apart by how they are streamed and by the options that their training recorded. Of the "
        "pairs that a claim is about those count that are most alike otherwise; cells of the same prompt and seed are "
        "compared, and a difference counts if its 95 % interval leaves out zero."
    )
    return f'<section>\n<h2>Claims</h2>\n<p class="hint">{hint}</p>\n{chr(10).join(blocks)}\n</section>'


def _pair(pair: Pair) -> str:
    differs = f" They also differ in {escape(', '.join(pair.differs))}." if pair.differs else ""
    numbers = "; ".join(_numbers(item) for item in pair.comparisons)
    return f"{escape(pair.first)} against {escape(pair.second)}: {numbers}.{differs}"


def _numbers(item: Comparison) -> str:
    measure = next(measure for measure in MEASURES if measure.name == item.demand.measure)
    digits = measure.digits
    parts = [number_text(value, digits) for value in (item.first, item.second, item.half)]
    scope = ", of prompts that ask for motion," if item.demand.moving else ""
    return escape(
        f"{measure.title}{scope} {parts[0]} and {parts[1]} (difference {item.difference:+.{digits}f} {_PLUS_MINUS} "
        f"{parts[2]} over {counted(item.cells, 'cell')}; should be {_WANTED[item.demand.wanted]})"
    )


def _plots(report: Report) -> str:
    """Scores over frames."""
    own = {name: good(report.rows, STREAM, name) for name in report.students}
    teacher = next((entry for entry in report.summary if entry["student"] == TEACHER_NAME), None)
    figures = []
    for name, title, high in _CURVES:
        curves = {student: mean_curve(rows, name) for student, rows in own.items()}
        column = name if name in ("sharpness", "motion_magnitude") else f"{name}_first"
        level = None if teacher is None else teacher["measures"].get(column, {}).get("mean")
        svg = lines(curves, report.palette, title, level, TEACHER_NAME, high)
        if svg:
            figures.append(f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>")
    if not figures:
        return ""
    items = (
        f'<li><span class="dot" style="--dot:{report.palette[name]}"></span>{escape(name)}</li>'
        for name in report.students
    )
    legend = f'<ul class="legend">{"".join(items)}</ul>'
    hint = "Means over prompts and seeds of parts of a hundred frames."
    return (
        f'<section>\n<h2>Over the frames</h2>\n<p class="hint">{hint}</p>\n{legend}\n'
        f'<div class="plots">\n{chr(10).join(figures)}\n</div>\n</section>'
    )


def _trainings(report: Report) -> str:
    """What the students are and what their training cost."""
    heads = [sort_head("student", "ascending")]
    texts = ("objective", "history", "sink", "runs")
    heads += [sort_head(title, "ascending", text=True) for title in texts]
    numbers = ("sink, frames", "window", "chunk", "rows a chunk", "parameters, M", "steps", "hours", "clips, thousands")
    heads += [sort_head(title, "ascending") for title in numbers]
    rows = []
    for name in report.students:
        student = report.plan["students"][name]
        traits, cost = student["traits"], student["cost"]
        sink = traits["sink"] + (
            "" if traits["trained_sink"] == traits["sink"] else f", {traits['trained_sink']} in training"
        )
        runs = "" if cost is None else ", ".join(cost["runs"]) + ("" if cost["complete"] else " (and others not found)")
        cells = [
            f'<td class="text">{escape(str(value or "unknown"))}</td>'
            for value in (traits["objective"], traits["history"], sink, runs)
        ]
        cells += [_plain(traits[key], 0) for key in ("sink_frames", "window", "chunk")]
        cells.append(_plain(student["calls"], 0))
        cells.append(_plain(None if student["parameters"] is None else student["parameters"] / 1e6, 2))
        for key, unit, digits in (("steps", 1, 0), ("seconds", 3600, 2), ("samples", 1000, 1)):
            cells.append(_plain(None if cost is None else cost[key] / unit, digits))
        rows.append(f"<tr>{_name_cell(report, name)}{''.join(cells)}</tr>")
    hint = (
        "Training costs are those of the student's run and of the students it began with, as far as their runs are "
        "found; that of the teacher at the end is not counted. Rows a chunk: samples through the network for a chunk, "
        "with the pass that fills the cache."
    )
    return f'<section>\n<h2>Students</h2>\n<p class="hint">{hint}</p>\n{_table(heads, rows)}\n</section>'


def _plain(value: float | None, digits: int) -> str:
    return f'<td data-value="{"" if value is None else value}">{number_text(value, digits)}</td>'


def _failures(report: Report) -> str:
    items = [
        f"<li>{escape(row['student'])}, {escape(row['kind'])}, {escape(row['prompt'])}, seed {row['seed']}: "
        f"{escape(row['error'])}</li>"
        for row in report.rows
        if row["error"] is not None
    ]
    return f'<section>\n<h2 class="warn">Failed cells</h2>\n<ul>{"".join(items)}</ul>\n</section>' if items else ""


def _meanings() -> str:
    """What the figures mean."""
    items = [
        f"<li><strong>{escape(measure.title)}</strong>: {escape(measure.about)}.</li>"
        for measure in MEASURES
        if measure.about
    ]
    notes = (
        "Prompts are held-out compositions or those of a file; the judge is the embedded one, of the moving toy world. "
        "Camera, tracks and loop are asked of the prompt's first thing standing still (sliding, for the tracks). "
        f"A teacher's row ({TEACHER}) is of single clips, so its first frames are all it has. "
        f"{SPEED_MEASURES[0].group} is measured apart, a student alone in a new process that judges nothing."
    )
    return f"<section>\n<h2>What the figures mean</h2>\n<p>{escape(notes)}</p>\n<ul>{''.join(items)}</ul>\n</section>"
