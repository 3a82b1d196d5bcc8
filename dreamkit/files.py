"""Files that are never half-written, and the plain formats (JSON, YAML, JSON Lines) of a run folder.

A file is written under a temporary name beside its target, flushed to the disk and renamed, so a reader (or a
power cut) sees the old file or the new one, nothing between.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from dreamkit.errors import RunError

_PARTIAL = ".partial-"
# PyYAML writes these as they are and reads them back as line breaks, or not at all: escape them.
_UNSAFE_IN_YAML = "\x85\u2028\u2029\ufeff"
_HINTS = {
    errno.ENOSPC: "The disk is full: free some space or choose another folder with --out.",
    errno.EDQUOT: "Your disk quota is used up: free some space or choose another folder with --out.",
    errno.EFBIG: "The file is larger than this system lets it be: raise the limit or choose another folder.",
    errno.EROFS: "The file system is read-only: choose another folder with --out.",
    errno.EACCES: "You have no right to write there: change the rights or choose another folder with --out.",
    errno.EPERM: "You have no right to write there: change the rights or choose another folder with --out.",
    errno.ENOTDIR: "A file is in the way of a folder: remove it or choose another folder with --out.",
    errno.EEXIST: "A file is in the way of a folder: remove it or choose another folder with --out.",
    errno.ENAMETOOLONG: "The path is too long for this file system: choose a shorter one with --out.",
}


def write_error(path: Path | str, error: OSError) -> RunError:
    """Explain a failed write (or folder creation) as a `RunError` with what to do about it.

    Args:
        path: what was to be written.
        error: what the operating system said.
    """
    reason = error.strerror or str(error) or type(error).__name__
    hint = _HINTS.get(error.errno or 0, "Check the path, or choose another folder with --out.")
    return RunError(f"Could not write {path}: {reason}.", hint)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it survives a power cut (a no-op where impossible)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk.

    Raises:
        OSError: the disk could not take it.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_sibling(path: Path) -> Path:
    """Return a fresh hidden name beside `path`, with the same suffix (writers choose their format by it)."""
    return path.with_name(f".{path.stem}{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders that a killed process left in `folder` (one writer a run)."""
    for leftover in folder.glob(f".*{_PARTIAL}*"):
        remove_path(leftover)


def remove_path(path: Path) -> None:
    """Delete a file, a link or a whole folder; a path that isn't there or can't be deleted is left."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary name to write to; when the block ends well, it becomes `path` in one step.

    The temporary file is flushed, renamed over `path`, and the folder is flushed. When the block raises, the
    temporary file is deleted and `path` stays what it was. The folder of `path` must exist.

    ```python
    with atomic_path(run.exports / "scene.ply") as temporary:
        write_ply(temporary, scene)
    ```

    Args:
        path: the file to write or replace.

    Yields:
        A path in the same folder with the same suffix.

    Raises:
        RunError: the block wrote nothing, or the system refused a write (full disk, no rights, ...).
    """
    target = Path(path)
    temporary = temporary_sibling(target)
    try:
        yield temporary
        if not temporary.exists():
            raise RunError(f"Nothing was written for {target}.", "This is a bug of the writer: report it.")
        fsync_file(temporary)
        os.replace(temporary, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        remove_path(temporary)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder to fill; when the block ends well, it becomes `path` in one step.

    As `atomic_path`, for a whole folder: every file in it is flushed before the rename. A folder that is
    already at `path` is set aside as `<path>.replaced` until the new one is in place, so that one of the two
    is there at every moment.

    Args:
        path: the folder to make or replace.

    Yields:
        An empty folder beside `path`.

    Raises:
        RunError: the system refused a write.
    """
    target = Path(path)
    temporary = temporary_sibling(target)
    replaced = target.with_name(target.name + ".replaced")
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                fsync_file(file)
            else:
                fsync_folder(file)
        fsync_folder(temporary)
        if target.exists():
            remove_path(replaced)
            os.replace(target, replaced)
        os.replace(temporary, target)
        fsync_folder(target.parent)
        remove_path(replaced)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        remove_path(temporary)


def plain(value: Any) -> Any:
    """Turn a configuration into what YAML and JSON can hold: dicts, lists, strings, numbers, booleans, None.

    Dataclasses and mappings become dicts, tuples and sets lists, paths and enumerations their text or value,
    scalars of numpy and torch Python numbers.

    Raises:
        TypeError: a value of any other kind.
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return plain(value.item())
    raise TypeError(f"can't store a {type(value).__name__} in a configuration: {value!r}")


def _finite(value: Any) -> Any:
    """Replace NaN and infinities by None at any depth: JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as an indented JSON file, atomically. NaN and infinities become null.

    Raises:
        RunError: the system refused the write.
        TypeError: a value that JSON can't hold (see `plain`).
    """
    text = json.dumps(_finite(plain(value)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_yaml(path: Path | str, value: Any) -> None:
    """Write `value` as a YAML file, atomically, keys in their order.

    Raises:
        RunError: the system refused the write.
        TypeError: a value that YAML can't hold (see `plain`).
    """
    import yaml

    text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, width=100)
    if any(character in text for character in _UNSAFE_IN_YAML):
        text = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=False, width=100)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path | str, text: str) -> None:
    """Append `text` as UTF-8 in one write, so that lines of several writers don't mix.

    Raises:
        RunError: the system refused the write.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))
    except OSError as error:
        raise write_error(path, error) from error


def append_jsonl(path: Path | str, value: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, in one write. NaN and infinities become null.

    Raises:
        RunError: the system refused the write.
        TypeError: a value that JSON can't hold (see `plain`).
    """
    append_text(path, json.dumps(_finite(plain(value)), ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read the whole lines of a JSON Lines file; a torn last line (the writer was killed) is left out.

    Raises:
        RunError: a broken line before the last one, or a file that can't be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines()  # of bytes: splits at line feeds only, not at U+2028
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunError(f"Could not read {path}: {error.strerror}.", "Check the path and its rights.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}, line {number} is not JSON.", "Remove the line, or the file.") from error
    return rows
