"""The folder of a comparison of video students: its plan, its rows, and what they come to."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit.errors import ConfigError, RunError
from dreamkit.files import atomic_path, plain, write_error, write_json
from dreamkit.training.compare.summary import read_object
from dreamkit.training.compare_video.measures import MEASURES, RATIOS, SPEED, STREAM, TEACHER
from dreamkit.training.compare_video.plan import COMPARISON, FORMAT_VERSION, Plan
from dreamkit.training.compare_video.students import TEACHER_NAME

Row = dict[str, Any]
PLAN_FILE, ROWS_FOLDER = "plan.json", "rows"
CSV_FILE, JSON_FILE, REPORT_FILE = "results.csv", "summary.json", "report.html"
IDENTITY = ("kind", "student", "prompt", "seed")
COLUMNS = (*IDENTITY, "motion", "frames", *(measure.name for measure in MEASURES), "seconds", "error")
"""What results.csv holds of a row."""
_KEPT = (*COLUMNS, "key", "created", "digest", "curve", "machine")


def open_folder(folder: Path, plan: Plan) -> None:
    """Make or enter the folder of a comparison; its plan grows by the students and prompts that are new.

    Raises:
        RunError: a file in its place, something else in it, or a folder that can't be written.
        ConfigError: a comparison with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"The output path {folder} is a file.", "Choose another folder with --out.")
    try:
        (folder / ROWS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    before = read_plan(folder) if (folder / PLAN_FILE).exists() else {"shared": plan.shared}
    changed = [name for name, value in plan.shared.items() if before["shared"].get(name) != value]
    if changed:
        changes = "; ".join(f"{name} {before['shared'].get(name)!r}, now {plan.shared[name]!r}" for name in changed)
        raise ConfigError(f"{folder} holds a comparison with other settings: {changes}.", "Choose another --out.")
    students = dict(before.get("students", {})) | {student.name: student.described() for student in plan.students}
    prompts = list(dict.fromkeys([*before.get("prompts", []), *(case.prompt for case in plan.cases)]))
    content = {
        "format_version": FORMAT_VERSION,
        "comparison": COMPARISON,
        "shared": plan.shared,
        "students": students,
        "teacher": plan.teacher or before.get("teacher"),
        "prompts": prompts,
    }
    write_json(folder / PLAN_FILE, plain(content))


def read_plan(folder: Path) -> Row:
    """The plan of a comparison's folder.

    Raises:
        RunError: no such folder, no comparison of video students, or one of another version.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file.", "Give the folder that `dreamkit compare-video` wrote.")
    path = folder / PLAN_FILE
    if not path.is_file():
        raise RunError(f"{folder} holds no comparison: there is no {PLAN_FILE}.", "Give what --out was.")
    content = read_object(path, FORMAT_VERSION)
    kinds = {"shared": dict, "students": dict, "prompts": list}
    if content.get("comparison") != COMPARISON or not all(
        isinstance(content.get(name), kind) for name, kind in kinds.items()
    ):
        raise RunError(f"{folder} holds another comparison, not one of video students.", "Choose another --out.")
    return content


def load_rows(folder: Path, plan: Mapping[str, Any]) -> list[Row]:
    """Every row of the students as they are now, in the order of the plan: what was made of a changed one is left out.

    Raises:
        RunError: a row that is damaged or of another version.
    """
    digests = {name: student["digest"] for name, student in plan["students"].items()}
    if plan.get("teacher"):
        digests[TEACHER_NAME] = plan["teacher"]["digest"]
    newest: dict[tuple[Any, ...], Row] = {}
    for path in sorted((folder / ROWS_FOLDER).glob("*.json")):
        row = read_object(path, FORMAT_VERSION)
        missing = [name for name in _KEPT if name not in row]
        if missing:
            raise RunError(f"{path} is no row of a comparison: it lacks {', '.join(missing)}.", "Delete it.")
        if row["digest"] != digests.get(row["student"]):
            continue
        identity = tuple(row[name] for name in IDENTITY)
        known = newest.setdefault(identity, row)
        if row["created"] > known["created"]:
            newest[identity] = row
    kinds, names, prompts = (TEACHER, STREAM, SPEED), list(digests), plan["prompts"]

    def place(row: Row) -> tuple[int, ...]:
        prompt = prompts.index(row["prompt"]) if row["prompt"] in prompts else len(prompts)
        return kinds.index(row["kind"]), names.index(row["student"]), prompt, row["seed"]

    return sorted(newest.values(), key=place)


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval by Student's t; `None` for one value alone.

    Raises:
        ZeroDivisionError: no values.
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, None
    from scipy.special import stdtrit

    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(stdtrit(count - 1, 0.975)) * math.sqrt(variance / count)


def good(rows: Sequence[Row], kind: str, student: str) -> list[Row]:
    """The rows of a student that have not failed."""
    return [row for row in rows if row["kind"] == kind and row["student"] == student and row["error"] is None]


def summarise(rows: Sequence[Row], students: Sequence[str]) -> list[Row]:
    """Means over prompts and seeds, the teacher's first.

    Args:
        rows: of a comparison.
        students: names, in their order.

    Returns:
        For each: `student`, `n` and `errors`, the numbers of its cells that went well and that failed, `measures`,
        column -> {mean, half, n}, where anything was measured, and `ratios`, column -> the mean as a share of the
        teacher's over the same prompts and seeds.
    """
    names = [TEACHER_NAME] if any(row["kind"] == TEACHER for row in rows) else []
    entries = []
    for name in [*names, *students]:
        kind = TEACHER if name == TEACHER_NAME else STREAM
        own = good(rows, kind, name)
        every = [*own, *good(rows, SPEED, name)]
        measures = {}
        for measure in MEASURES:
            values = [float(row[measure.name]) for row in every if row[measure.name] is not None]
            if values:
                mean, half = interval(values)
                measures[measure.name] = {"mean": mean, "half": half, "n": len(values)}
        failed = sum(row["student"] == name and row["error"] is not None for row in rows)
        ratios = {} if kind == TEACHER else _ratios(own, good(rows, TEACHER, TEACHER_NAME))
        entries.append({"student": name, "n": len(own), "errors": failed, "measures": measures, "ratios": ratios})
    return entries


def _ratios(own: Sequence[Row], teacher: Sequence[Row]) -> dict[str, float]:
    """Means as shares of the teacher's, each over the cells that both have."""
    yardstick = {(row["prompt"], row["seed"]): row for row in teacher}
    found = {}
    for column, theirs in RATIOS.items():
        pairs = [
            (row[column], other[theirs])
            for row in own
            if (other := yardstick.get((row["prompt"], row["seed"])))
            and row[column] is not None
            and other[theirs] is not None
        ]
        whole = sum(pair[1] for pair in pairs)
        if whole > 0:
            found[column] = sum(pair[0] for pair in pairs) / whole
    return found


def public_row(row: Row) -> Row:
    """A row as results.csv has it."""
    return {name: row[name] for name in COLUMNS}


def write_tables(folder: Path, rows: Sequence[Row], content: Mapping[str, Any]) -> None:
    """Write results.csv, a row a cell, and summary.json.

    Raises:
        RunError: the system refused a write.
    """
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(public_row(row) for row in rows)
    with atomic_path(folder / CSV_FILE) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    write_json(folder / JSON_FILE, content)
