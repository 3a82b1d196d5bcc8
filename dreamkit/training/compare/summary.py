"""The folder of a comparison: its plan, its rows, and what they come to."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamkit.errors import ConfigError, RunError
from dreamkit.files import atomic_path, write_error, write_json
from dreamkit.training.compare.plan import FORMAT_VERSION

Row = dict[str, Any]
PLAN_FILE = "plan.json"
ROWS_FOLDER = "rows"
CSV_FILE, JSON_FILE, REPORT_FILE, NOTES_FILE = "compare.csv", "compare.json", "report.html", "notes.txt"
IDENTITY = ("objective", "mode", "prompt", "seed")
COLUMNS = (
    *IDENTITY,
    *("r_precision", "object", "colour", "janus", "fronts", "many_faced", "view_agreement", "saturation", "contrast"),
    *("seconds", "teacher_calls", "steps", "run", "error"),
)
"""What compare.csv holds of a row."""
_MEANS = {
    "r_precision": "r_precision",
    "object": "object",
    "colour": "colour",
    "janus": "many_faced",
    "janus_views": "janus",
    "fronts": "fronts",
    "view_agreement": "view_agreement",
    "saturation": "saturation",
    "contrast": "contrast",
    "seconds": "seconds",
    "teacher_calls": "teacher_calls",
    "steps": "steps",
}
"""Name in the summary -> field of the rows whose mean it is."""
_LISTS = ("objectives", "modes", "prompts")


def open_folder(folder: Path, shared: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> None:
    """Make or enter the folder of a comparison; its plan grows by the names that are new.

    Args:
        folder: where it lies.
        shared: what all its rows have in common (`plan.shared_settings`).
        names: `objectives`, `modes` and `prompts`.

    Raises:
        RunError: a file in its place, a comparison of another version, or a folder that can't be written.
        ConfigError: a comparison with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"The output path {folder} is a file.", "Choose another folder with --out.")
    try:
        (folder / ROWS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    before = read_plan(folder) if (folder / PLAN_FILE).exists() else {"shared": dict(shared)}
    different = [name for name in shared if before["shared"].get(name) != shared[name]]
    if different:
        changes = "; ".join(f"{name} {before['shared'].get(name)!r}, now {shared[name]!r}" for name in different)
        raise ConfigError(f"{folder} holds a comparison with other settings: {changes}.", "Choose another --out.")
    merged = {name: list(dict.fromkeys([*before.get(name, []), *names[name]])) for name in _LISTS}
    write_json(folder / PLAN_FILE, {"format_version": FORMAT_VERSION, "shared": dict(shared), **merged})


def read_plan(folder: Path) -> dict[str, Any]:
    """The plan of a comparison's folder.

    Raises:
        RunError: no such folder, no comparison, or one of another version.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file.", "Give the folder that `dreamkit compare` wrote.")
    path = folder / PLAN_FILE
    if not path.is_file():
        raise RunError(f"{folder} holds no comparison: there is no {PLAN_FILE}.", "Give what --out was.")
    content = read_object(path)
    if not isinstance(content.get("shared"), dict) or not all(isinstance(content.get(n), list) for n in _LISTS):
        raise RunError(f"{path} is no plan of a comparison.", "Choose another folder.")
    return content


def read_object(path: Path, expected: int = FORMAT_VERSION) -> Row:
    """A JSON object of a version of the format.

    Raises:
        RunError: a file that can't be read, is damaged or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}.", "Check the file's rights.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}.", "Delete it: what it tells is then made again.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != expected:
        raise RunError(
            f"{path} has format version {version}; this DreamKit reads version {expected}.",
            "Choose another folder, or the DreamKit that wrote this one.",
        )
    return content


def save_row(folder: Path, row: Row) -> None:
    """Write a row as `rows/KEY.json`, atomically."""
    write_json(folder / ROWS_FOLDER / f"{row['key']}.json", row)


def load_rows(folder: Path) -> list[Row]:
    """Every row of a comparison in the order of its plan; of two about the same run the newer one.

    Raises:
        RunError: a row that is damaged or of another version, or no comparison at all.
    """
    plan = read_plan(folder)
    newest: dict[tuple[Any, ...], Row] = {}
    for path in sorted((folder / ROWS_FOLDER).glob("*.json")):
        row = read_object(path)
        missing = [name for name in (*COLUMNS, "key", "created", "machine", "settings") if name not in row]
        if missing:
            raise RunError(f"{path} is no row of a comparison: it lacks {', '.join(missing)}.", "Delete it.")
        known = newest.setdefault(tuple(row[name] for name in IDENTITY), row)
        if row["created"] > known["created"]:
            newest[tuple(row[name] for name in IDENTITY)] = row
    orders = [{name: index for index, name in enumerate(plan[names])} for names in _LISTS]

    def place(row: Row) -> tuple[int, ...]:
        columns = zip(orders, IDENTITY[:3], strict=True)
        return (*(order.get(row[name], len(order)) for order, name in columns), row["seed"])

    return sorted(newest.values(), key=place)


def done_keys(folder: Path, version: int = FORMAT_VERSION) -> set[str]:
    """Keys of the rows that are there and without an error: those that failed are tried again."""
    paths = (folder / ROWS_FOLDER).glob("*.json")
    return {path.stem for path in paths if read_object(path, version).get("error") is None}


def mean(values: Iterable[float | bool | None]) -> float | None:
    """Mean of the values that are there, `None` without any."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarise(rows: Sequence[Row], folder: Path | None = None) -> list[Row]:
    """Means over prompts and seeds for each objective and mode.

    `janus` is the share of the assets with a front that show more than one; `janus_views` the mean share of the views
    away from the front that look like one; `view_variety` how different the sides of those assets are; `diversity` the
    mean over prompts of how different the seeds are, `None` with one seed.

    Args:
        rows: of a comparison.
        folder: of the comparison, where the embeddings lie; without it there is no diversity.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["objective"], row["mode"]), []).append(row)
    summary = []
    for (objective, mode), members in groups.items():
        good = [row for row in members if row["error"] is None]
        entry: Row = {"objective": objective, "mode": mode, "n": len(good), "errors": len(members) - len(good)}
        entry |= {name: mean(row[field] for row in good) for name, field in _MEANS.items()}
        entry["view_variety"] = None if folder is None else _view_variety(good, folder)
        entry["diversity"] = None if folder is None else _diversity(good, folder)
        summary.append(entry)
    return summary


def _view_variety(rows: Sequence[Row], folder: Path) -> float | None:
    """Mean over the assets with a front of how different their sides are."""
    from dreamkit.metrics.pictures import view_variety
    from dreamkit.training.compare.work import load_embeddings

    fronted = (load_embeddings(folder, row["key"]) for row in rows if row["fronts"] is not None)
    return mean(None if embeddings is None else view_variety(embeddings) for embeddings in fronted)


def _diversity(rows: Sequence[Row], folder: Path) -> float | None:
    """Mean over prompts of the diversity of their seeds."""
    from dreamkit.metrics.pictures import diversity
    from dreamkit.training.compare.work import load_embeddings

    prompts: dict[str, list[Row]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append(row)
    values = []
    for members in prompts.values():
        if len(members) > 1:
            embeddings = [load_embeddings(folder, row["key"]) for row in members]
            values.append(diversity([embedding for embedding in embeddings if embedding is not None]))
    return mean(values)


def public_row(row: Row) -> Row:
    """A row as compare.json and `--json` give it: what compare.csv holds."""
    return {name: row[name] for name in COLUMNS}


def write_tables(folder: Path, content: Mapping[str, Any]) -> None:
    """Write compare.json and compare.csv.

    Args:
        folder: of the comparison.
        content: `machine`, `rows` and `summary`.
    """
    write_json(folder / JSON_FILE, content)
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(content["rows"])
    with atomic_path(folder / CSV_FILE) as temporary:
        temporary.write_text(buffer.getvalue(), encoding="utf-8", newline="")
