"""The report of a comparison: one HTML file that needs nothing else, on a desk, a phone or in the dark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit.files import atomic_path
from dreamkit.training.compare.summary import NOTES_FILE, REPORT_FILE, read_plan
from dreamkit.training.compare.work import views_file
from dreamkit.training.report.page import Report, page

Row = dict[str, Any]


def write_report(folder: Path, machine: Mapping[str, Any], rows: Sequence[Row], summary: Sequence[Row]) -> Path:
    """Write report.html into the folder of a comparison.

    Args:
        folder: of the comparison.
        machine: what it ran on.
        rows: every run, in the order of the plan.
        summary: an objective and mode each.

    Returns:
        The file.

    Raises:
        RunError: no comparison there, or the system refused the write.
    """
    notes = folder / NOTES_FILE
    turntables = {
        row["key"]: path.read_bytes() for row in rows if (path := views_file(folder, row["key"], "webp")).is_file()
    }
    report = Report(
        shared=read_plan(folder)["shared"],
        machine=machine,
        rows=rows,
        summary=summary,
        turntables=turntables,
        notes=notes.read_text(encoding="utf-8") if notes.is_file() else "",
    )
    path = folder / REPORT_FILE
    with atomic_path(path) as temporary:
        temporary.write_text(page(report), encoding="utf-8")
    return path
