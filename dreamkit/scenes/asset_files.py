"""What readers and writers of asset files share."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dreamkit.errors import SceneError

Function = TypeVar("Function", bound=Callable)

MAX_BYTES = 8 * 2**30
"""Of a file that is read: 30 million Gaussians with all their harmonics."""


def suffix_of(path: Path | str) -> str:
    """The path's suffix in small letters; `.compressed.ply` counts as one."""
    name = Path(path).name.lower()
    return ".compressed.ply" if name.endswith(".compressed.ply") else Path(name).suffix


def by_suffix(path: Path | str, known: dict[str, Function], what: str) -> Function:
    """The function for the path's suffix.

    Raises:
        SceneError: the suffix is not known.
    """
    suffix = suffix_of(path)
    if suffix not in known:
        raise SceneError(f"{path}: {suffix or 'no suffix'} is no format of a {what}.", f"Use {' or '.join(known)}.")
    return known[suffix]


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The file's content.

    Args:
        path: the file, or a link to one.
        limit: most bytes that it may have.

    Raises:
        SceneError: it is missing, a folder, a device or a pipe, too large, or not readable.
    """
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise SceneError(f"{path} can't be read: it is a folder.", "Give the file in it.")
        if not stat.S_ISREG(about.st_mode):  # a device may never end, and a pipe may never begin
            raise SceneError(f"{path} can't be read: it is a device or a pipe.", "Give a file.")
        if about.st_size > limit:
            raise SceneError(f"{path} has {about.st_size:,} bytes.", f"At most {limit:,} are read.")
        with path.open("rb") as file:
            return file.read(about.st_size)
    except OSError as error:
        raise SceneError(f"{path} can't be read: {error.strerror}.", "Check the path and its rights.") from error
    except ValueError as error:  # a NUL in the name
        raise SceneError(f"{str(path)!r} is no path: {error}.", "Check the path.") from error
