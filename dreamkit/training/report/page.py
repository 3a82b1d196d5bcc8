"""The page of a report, put together from escaped text."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dreamkit.training.report.notes import notes_html
from dreamkit.training.report.parts import counted, data_uri, document, number_text, sort_head
from dreamkit.training.report.plots import bars, colours, scatter

Row = Mapping[str, Any]
_SCHEDULE = {"start_step", "start_value", "end_value", "end_step", "curve"}


@dataclass(frozen=True)
class Column:
    """A column of the summary's table.

    Args:
        name: in the summary.
        title: for readers.
        digits: after the point.
        better: `high`, `low`, or nothing where neither is.
    """

    name: str
    title: str
    digits: int = 2
    better: str = ""


COLUMNS = (
    Column("n", "runs", 0),
    Column("r_precision", "R-precision", better="high"),
    Column("object", "object", better="high"),
    Column("colour", "colour", better="high"),
    Column("janus", "Janus", better="low"),
    Column("janus_views", "Janus views", better="low"),
    Column("view_agreement", "view agreement", better="high"),
    Column("view_variety", "view variety", 3, "high"),
    Column("saturation", "saturation"),
    Column("contrast", "contrast", 3),
    Column("diversity", "diversity", 3),
    Column("seconds", "seconds", 1, "low"),
    Column("teacher_calls", "teacher calls", 0, "low"),
    Column("steps", "steps", 0),
)

MODE_TITLES = {
    "text": "The prompt alone",
    "views": "The view named in the prompt",
    "camera": "With the camera's pose",
}


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Args:
        shared: settings that all rows have in common.
        machine: what wrote it.
        rows: every run, in the order of the plan.
        summary: an objective and mode each.
        turntables: a row's key -> animated WebP.
        notes: plain text for its top.
    """

    shared: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: Sequence[Row]
    summary: Sequence[Row]
    turntables: Mapping[str, bytes]
    notes: str = ""

    @property
    def labels(self) -> list[str]:
        """The objectives, in their order."""
        return list(dict.fromkeys(row["objective"] for row in self.rows))

    @property
    def modes(self) -> list[str]:
        """The modes, in their order."""
        return list(dict.fromkeys(row["mode"] for row in self.rows))


def page(report: Report) -> str:
    """The whole page."""
    sections = [_header(report), _summary(report), _plots(report), _turntables(report), _failures(report)]
    sections += [_settings(report), _measures()]
    return document("Score distillation, side by side", "\n".join(section for section in sections if section))


def _header(report: Report) -> str:
    machine, shared = report.machine, report.shared
    prompts, seeds = len({row["prompt"] for row in report.rows}), len({row["seed"] for row in report.rows})
    what = [
        counted(len(report.labels), "objective"),
        counted(prompts, "prompt"),
        counted(seeds, "seed"),
        f"preset {shared['preset']}",
        f"teacher {shared['teacher']}",
    ]
    where = [str(machine.get("date", "")), f"commit {machine.get('commit') or 'unknown'}"]
    where += [str(machine.get(name)) for name in ("cpu", "gpu") if machine.get(name)]
    if machine.get("jobs", 1) > 1:
        where.append(f"{machine['jobs']} runs at once")
    where += [f"torch {machine.get('torch')}", f"DreamKit {shared['dreamkit_version']}"]
    notes = f'<div class="notes">\n{notes_html(report.notes)}\n</div>' if report.notes.strip() else ""
    return (
        "<header>\n<h1>Score distillation, side by side</h1>\n"
        f'<p class="meta">{escape(" · ".join(what))}<br>{escape(" · ".join(where))}</p>\n{notes}\n</header>'
    )


def _dot(colour: str, mode: str) -> str:
    hollow = "" if mode == "camera" else " hollow"
    return f'<span class="dot{hollow}" style="--dot:{colour}"></span>'


def _summary(report: Report) -> str:
    """The table of means."""
    shown = [column for column in COLUMNS if any(row.get(column.name) is not None for row in report.summary)]
    if any(row["errors"] for row in report.summary):
        shown.insert(1, Column("errors", "failed", 0))
    palette, best = colours(report.labels), {column.name: _best(report.summary, column) for column in shown}
    heads = [sort_head("objective", "ascending"), sort_head("mode", "ascending", text=True)]
    heads += [sort_head(column.title, "ascending" if column.better == "low" else "descending") for column in shown]
    lines = []
    for row in report.summary:
        dot = _dot(palette[row["objective"]], row["mode"])
        cells = [f'<td data-value="{escape(row["objective"])}">{dot}{_breakable(row["objective"])}</td>']
        cells.append(f'<td class="text">{escape(row["mode"])}</td>')
        for column in shown:
            value = row.get(column.name)
            text = number_text(value, column.digits)
            kind = ' class="best"' if value is not None and text == best[column.name] else ""
            cells.append(f'<td{kind} data-value="{"" if value is None else value}">{text}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<section>\n<h2>Summary</h2>\n"
        '<p class="hint">Means over prompts and seeds; the best of a column in green. A click on a head sorts.</p>\n'
        f'<div class="scroll"><table class="sortable">\n<thead><tr>{"".join(heads)}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>\n</section>"
    )


def _best(summary: Sequence[Row], column: Column) -> str | None:
    """The best value of a column as it is written; `None` where there is no better or no choice."""
    values = [row[column.name] for row in summary if row.get(column.name) is not None]
    if not column.better or len({number_text(value, column.digits) for value in values}) < 2:
        return None
    return number_text(max(values) if column.better == "high" else min(values), column.digits)


def _plots(report: Report) -> str:
    """The plots with one legend."""
    summary, palette = report.summary, colours(report.labels)
    figures = [
        ("Does it show what was asked, and how long does it take?", scatter(summary, "seconds", "seconds a run")),
        ("What does it ask of the teacher?", scatter(summary, "teacher_calls", "samples through the teacher a run")),
        ("How often has an asset more than one front?", bars(summary, "janus", "Janus: share of assets", 1.12)),
        ("Can its sides be told apart?", bars(summary, "view_agreement", "share of views named right", 1.12)),
        ("How different are its sides?", bars(summary, "view_variety", "1 \N{MINUS SIGN} cosine between views")),
        ("How colourful is it?", bars(summary, "saturation", "HSV saturation of the foreground", 1.12)),
    ]
    drawn = "\n".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in figures if svg
    )
    if not drawn:
        return ""
    items = [f"<li>{_dot(palette[label], 'camera')}{escape(label)}</li>" for label in report.labels]
    if len(report.modes) > 1:
        items += [
            f"<li>{_dot('var(--soft)', mode)}{text}</li>"
            for mode, text in (("camera", "filled: with the camera"), ("text", "hollow: without"))
        ]
    legend = f'<ul class="legend">{"".join(items)}</ul>'
    return f'<section>\n<h2>At a glance</h2>\n{legend}\n<div class="plots">\n{drawn}\n</div>\n</section>'


def _turntables(report: Report) -> str:
    """A block a mode, a row a prompt, a column an objective."""
    cells: dict[tuple[str, str, str], list[str]] = {}
    for row in report.rows:
        cells.setdefault((row["mode"], row["prompt"], row["objective"]), []).append(_asset(report, row))
    prompts = list(dict.fromkeys(row["prompt"] for row in report.rows))
    heads = "".join(f'<th scope="col"><span>{_breakable(label)}</span></th>' for label in report.labels)
    blocks = []
    for mode in report.modes:
        lines = []
        for prompt in prompts:
            columns = [cells.get((mode, prompt, label), []) for label in report.labels]
            if any(columns):
                inner = "".join(f"<td>{''.join(assets)}</td>" for assets in columns)
                lines.append(f'<tr><th scope="row">{escape(prompt)}</th>{inner}</tr>')
        title = MODE_TITLES[mode]
        blocks.append(
            f'<h3>{title}</h3>\n<div class="scroll fit"><table class="grid">\n'
            f"<thead><tr><th></th>{heads}</tr></thead>\n"
            f"<tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
        )
    hint = '<p class="hint">Under each turn: R-precision, and a warning where it has more than one front.</p>'
    return f"<section>\n<h2>Turntables</h2>\n{hint}\n{chr(10).join(blocks)}\n</section>" if report.rows else ""


def _breakable(label: str) -> str:
    """A label that may break behind a colon or semicolon."""
    return "<wbr>".join(escape(part) for part in re.split(r"(?<=[:;])", label))


def _asset(report: Report, row: Row) -> str:
    """One run's turn with its figures."""
    name = escape(f"{row['prompt']}, {row['objective']}, {row['mode']}, seed {row['seed']}")
    if row["error"] is not None:
        return (
            f'<div class="asset"><div class="failed" style="width:96px;height:96px" title="{escape(row["error"])}">'
            '<span class="warn">failed</span></div></div>'
        )
    picture = f'<span title="{name}">no picture</span>'
    if row["key"] in report.turntables:
        content = report.turntables[row["key"]]
        side = _webp_side(content)
        picture = (
            f'<img src="{data_uri("image/webp", content)}" width="{side}" height="{side}" alt="{name}" '
            f'title="{name}" decoding="async">'
        )
    fronts = f' · <span class="warn">{row["fronts"]} fronts</span>' if row["many_faced"] else ""
    return f'<div class="asset">{picture}<div class="cap">{number_text(row["r_precision"], 2)}{fronts}</div></div>'


def _webp_side(content: bytes) -> int:
    """Side of a square WebP in pixels."""
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(content)) as picture:
        return picture.width


def _failures(report: Report) -> str:
    failed = [row for row in report.rows if row["error"] is not None]
    items = [
        f"<li>{escape(row['objective'])}, {escape(row['mode'])}, {escape(row['prompt'])}, seed {row['seed']}: "
        f"{escape(row['error'])}</li>"
        for row in failed
    ]
    return f'<section>\n<h2 class="warn">Failed runs</h2>\n<ul>{"".join(items)}</ul>\n</section>' if items else ""


def _settings(report: Report) -> str:
    """Every objective's options, those of the run that differ, and what all have in common."""
    described = {row["objective"]: row["settings"] for row in report.rows if row.get("settings")}
    if not described:
        return ""
    flat = {label: _flat(content["run"]) for label, content in described.items()}
    first = next(iter(flat.values()))
    common = {name for name in first if all(run.get(name) == first[name] for run in flat.values())}
    parts = []
    for label, content in described.items():
        own = {name: value for name, value in flat[label].items() if name not in common}
        named = "" if content["objective"] == label else f" <span class='cap'>{escape(content['objective'])}</span>"
        parts.append(f"<h3>{escape(label)}{named}</h3>\n{_options(content['options'] | own, label)}")
    mixed = _mixed(report)
    warning = f'<p class="warn">Rows of different settings in one column: {escape(", ".join(mixed))}.</p>\n'
    return (
        f"<section>\n<h2>Settings</h2>\n{warning if mixed else ''}{chr(10).join(parts)}\n"
        f"<details><summary>What all runs have in common</summary>\n"
        f"{_options({name: first[name] for name in sorted(common)}, '')}</details>\n</section>"
    )


def _mixed(report: Report) -> list[str]:
    """Columns whose rows were made with different settings."""
    kinds: dict[str, set[str]] = {}
    for row in report.rows:
        if row.get("settings"):
            kinds.setdefault(row["objective"], set()).add(json.dumps(row["settings"], sort_keys=True))
    return [label for label, found in kinds.items() if len(found) > 1]


def _options(values: Mapping[str, Any], label: str) -> str:
    """Names and values as tags; what the label itself names stands out."""
    own = [part.partition("=")[0].strip() for part in label.partition(":")[2].split(";")]
    tags = []
    for name, value in _flat(values).items():
        shown = name.rstrip("_")
        named = any(shown == option or shown.startswith(f"{option}.") for option in own if option)
        text = value if isinstance(value, str) else json.dumps(value)
        tags.append(f"<li{' class=own' if named else ''}><code>{escape(shown)} = {escape(text)}</code></li>")
    return f'<ul class="set">{"".join(tags)}</ul>'


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names; a schedule as one text."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and set(value) == _SCHEDULE:
            found[f"{prefix}{name}"] = _schedule(value)
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _schedule(value: Mapping[str, Any]) -> str:
    """A schedule in a few characters: `6`, or `0.94 to 0.04`, with what is unusual about it."""
    first, last = value["start_value"], value["end_value"]
    if first == last:
        return f"{first:g}"
    span = "" if (value["start_step"], value["end_step"]) == (0, 1) else f" from {value['start_step']:g} to "
    span += f"{value['end_step']:g} of the run" if span else ""
    curve = "" if value["curve"] == "linear" else f", {value['curve']}"
    return f"{first:g} to {last:g}{span}{curve}"


def _measures() -> str:
    """What the figures mean."""
    lines = {
        "R-precision": "share of 24 views whose best caption, among all compositions of an object and a colour, is the "
        "prompt's.",
        "Janus": "share of the assets with a front that show more than one: separate runs of the 24 views that look "
        "like a front, a run longer than half a turn counted twice.",
        "Janus views": "share of the views more than 60° from the front that look like a front.",
        "view variety": "1 \N{MINUS SIGN} cosine similarity of the judge's embeddings of different views of an asset "
        "with a front: near 0 for what looks the same from everywhere, which the judge of fronts can't see.",
        "saturation, contrast": "HSV saturation and RMS luminance contrast of the foreground.",
        "diversity": "1 \N{MINUS SIGN} cosine similarity of the judge's embeddings of equal views of different seeds.",
        "seconds, teacher calls": "of the optimisation alone; samples through the teacher and the critic.",
    }
    items = "".join(f"<li><strong>{escape(name)}</strong>: {escape(text)}</li>" for name, text in lines.items())
    return f"<section>\n<h2>What the figures mean</h2>\n<ul>{items}</ul>\n</section>"
