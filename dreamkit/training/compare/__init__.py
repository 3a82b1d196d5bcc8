"""Objectives side by side: the same prompts, seeds and steps, one run each, and a report of what came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamkit_kernels.bench import machine

from dreamkit.errors import ConfigError
from dreamkit.files import atomic_path
from dreamkit.runs import Run
from dreamkit.training.compare import summary
from dreamkit.training.compare.plan import CompareOptions, Task, labels, plan, shared_settings
from dreamkit.training.compare.pool import ComparisonInterrupted, Job, run_tasks
from dreamkit.training.compare.progress import Listener
from dreamkit.training.compare.work import make_row

__all__ = ["CompareOptions", "Comparison", "ComparisonInterrupted", "compare", "rebuild"]


@dataclass(frozen=True)
class Comparison:
    """What a comparison left.

    Args:
        folder: where everything lies.
        machine: what it ran on: date, commit, processor, versions, runs at once.
        rows: a run each.
        summary: an objective and mode each.
        failed: rows with an error among those that were asked for.
    """

    folder: Path
    machine: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: list[dict[str, Any]]
    failed: int

    @property
    def report(self) -> Path:
        """The page with everything on it."""
        return self.folder / summary.REPORT_FILE


def compare(options: CompareOptions, listener: Listener | None = None, job: Job = make_row) -> Comparison:
    """Run what is not done yet, and write the report.

    Args:
        options: what to compare.
        listener: told of what happens.
        job: what makes a row.

    Raises:
        DreamkitError: anything the user can mend; a failing run is a row, no error.
        ComparisonInterrupted: the user stopped it; the same call continues it.
    """
    tasks = plan(options)
    folder, notes = Path(options.out).expanduser(), _read_notes(options.notes)
    summary.open_folder(folder, shared_settings(options), labels(tasks))
    with Run(folder, {}).lock():
        done = summary.done_keys(folder)
        waiting = [task for task in tasks if task.key not in done]
        listener = listener or Listener()
        listener.on_start(len(tasks), len(tasks) - len(waiting))
        here = machine() | {"jobs": options.jobs}
        run_tasks(
            waiting, job, options.jobs, lambda _, row: summary.save_row(folder, row | {"machine": here}), listener
        )
        return _write(folder, notes, tasks)


def rebuild(folder: str, notes: str = "") -> Comparison:
    """Write the tables and the report of a comparison again, from its rows.

    Args:
        folder: its folder.
        notes: file of a text for the top of the report; without it the one of before stays.

    Raises:
        RunError: there is no comparison, or one of another version.
    """
    return _write(Path(folder).expanduser(), _read_notes(notes), None)


def _write(folder: Path, notes: str | None, tasks: Sequence[Task] | None) -> Comparison:
    """The tables and the report from the rows of a folder."""
    from dreamkit.training.report import write_report

    rows = summary.load_rows(folder)
    if notes is not None:
        with atomic_path(folder / summary.NOTES_FILE) as temporary:
            temporary.write_text(notes, encoding="utf-8")
    entries = summary.summarise(rows, folder)
    content: dict[str, Any] = {
        "machine": _machine(rows),
        "rows": [summary.public_row(row) for row in rows],
        "summary": entries,
    }
    summary.write_tables(folder, content)
    write_report(folder, content["machine"], rows, entries)
    asked = None if tasks is None else {task.key for task in tasks}
    failed = sum(row["error"] is not None for row in rows if asked is None or row["key"] in asked)
    return Comparison(folder, content["machine"], content["rows"], entries, failed)


def _machine(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the newest row was made on, with the commits of all; this machine where there is no row."""
    made = [row["machine"] for row in sorted(rows, key=lambda row: row["created"])]
    if not made:
        return machine()
    commits = dict.fromkeys(str(entry["commit"]) for entry in made if entry.get("commit"))
    return made[-1] | {"commit": ", ".join(commits) or None}


def _read_notes(name: str) -> str | None:
    """The text of a file of notes; `None` where none is named."""
    if not name:
        return None
    try:
        return Path(name).expanduser().read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"The notes {name} can't be read: {error.strerror}.", "Give a text file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The notes {name} are no text in UTF-8.", "Give a text file.") from error
