"""Video students side by side: the same prompts and seeds for each, a row a cell, and a report of what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamkit_kernels.bench import machine

from dreamkit.files import atomic_path
from dreamkit.runs import Run
from dreamkit.training.compare.pool import ComparisonInterrupted, Job, run_tasks
from dreamkit.training.compare.progress import Listener
from dreamkit.training.compare.summary import done_keys, save_row
from dreamkit.training.compare_video import summary
from dreamkit.training.compare_video.claims import judge_claims
from dreamkit.training.compare_video.measures import SPEED, STREAM, TEACHER
from dreamkit.training.compare_video.page import Report, page
from dreamkit.training.compare_video.plan import FORMAT_VERSION, CompareVideoOptions, Task, make_plan
from dreamkit.training.compare_video.work import error_row, make_row

__all__ = ["CompareVideoOptions", "ComparisonInterrupted", "VideoComparison", "compare_videos", "describe", "rebuild"]


@dataclass(frozen=True)
class VideoComparison:
    """What a comparison left.

    Args:
        folder: where everything lies.
        content: what summary.json holds: `machine`, `students`, `teacher`, `prompts`, `shared`, `summary`, `claims`.
        rows: a cell each, as in results.csv.
        failed: cells with an error among those that were asked for.
    """

    folder: Path
    content: dict[str, Any]
    rows: list[dict[str, Any]]
    failed: int

    @property
    def report(self) -> Path:
        """The page with everything on it."""
        return self.folder / summary.REPORT_FILE


def compare_videos(
    options: CompareVideoOptions, listener: Listener | None = None, job: Job = make_row
) -> VideoComparison:
    """Measure what is not measured yet, and write the report.

    Args:
        options: what to compare.
        listener: told of what happens.
        job: what makes a row.

    Raises:
        DreamkitError: anything the user can mend; a failing cell is a row, no error.
        ComparisonInterrupted: the user stopped it; the same call continues it.
    """
    plan, folder = make_plan(options), Path(options.out).expanduser()
    summary.open_folder(folder, plan)
    with Run(folder, {}).lock():
        done = done_keys(folder, FORMAT_VERSION)
        waiting = [task for task in plan.tasks if task.key not in done]
        listener = listener or Listener()
        listener.on_start(len(plan.tasks), len(plan.tasks) - len(waiting))
        here = machine() | {"jobs": options.jobs}

        def keep(_: Task, row: dict[str, Any]) -> None:
            save_row(folder, row | {"machine": here})

        run_tasks([task for task in waiting if task.kind != SPEED], job, options.jobs, keep, listener, error_row)
        # One after the other, with nothing beside them: they are timed.
        run_tasks([task for task in waiting if task.kind == SPEED], job, 1, keep, listener, error_row)
        return _write(folder, plan.tasks)


def rebuild(folder: str) -> VideoComparison:
    """Write the tables and the report of a comparison again, from its rows.

    Raises:
        RunError: there is no comparison, or one of another version.
    """
    return _write(Path(folder).expanduser(), None)


def _write(folder: Path, tasks: Sequence[Task] | None) -> VideoComparison:
    """The tables and the report from the rows of a folder."""
    plan = summary.read_plan(folder)
    rows = summary.load_rows(folder, plan)
    entries = summary.summarise(rows, list(plan["students"]))
    verdicts = judge_claims(rows, {name: student["traits"] for name, student in plan["students"].items()})
    content: dict[str, Any] = {
        "machine": _machine(rows),
        **{name: plan.get(name) for name in ("shared", "students", "teacher", "prompts")},
        "summary": entries,
        "claims": [asdict(verdict) for verdict in verdicts],
    }
    summary.write_tables(folder, rows, content)
    report = Report(folder, plan, content["machine"], rows, entries, verdicts)
    with atomic_path(folder / summary.REPORT_FILE) as temporary:
        temporary.write_text(page(report), encoding="utf-8")
    asked = None if tasks is None else {task.key for task in tasks}
    failed = sum(row["error"] is not None for row in rows if asked is None or row["key"] in asked)
    return VideoComparison(folder, content, [summary.public_row(row) for row in rows], failed)


def _machine(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the newest row was made on; this machine where there is no row."""
    made = [row["machine"] for row in sorted(rows, key=lambda row: row["created"])]
    return made[-1] if made else machine()


def describe(task: Task, row: Mapping[str, Any]) -> str:
    """A finished cell in one line."""
    if row.get("error") is not None:
        return f"{task.title}: failed: {row['error']}"
    shown = {
        STREAM: (("prompt_first", "prompt"), ("prompt_last", "at the end"), ("motion_magnitude", "motion"),
                 ("drift_last", "drift")),
        TEACHER: (("prompt_first", "prompt"), ("motion_magnitude", "motion")),
        SPEED: (("denoise_fps", "denoise FPS"), ("end_to_end_fps", "end to end"), ("peak_rss_mb", "MB")),
    }[task.kind]  # fmt: skip
    parts = [f"{title} {row[name]:.3g}" for name, title in shown if row.get(name) is not None]
    parts.append(f"{row['seconds']:.1f} s")
    return f"{task.title}: {', '.join(parts)}"
