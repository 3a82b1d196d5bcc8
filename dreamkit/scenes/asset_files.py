"""What readers and writers of asset files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dreamkit.errors import SceneError

Function = TypeVar("Function", bound=Callable)


def by_suffix(path: Path | str, known: dict[str, Function], what: str) -> Function:
    """The function for the path's suffix.

    Raises:
        SceneError: the suffix is not known.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in known:
        raise SceneError(f"{path}: {suffix or 'no suffix'} is no format of a {what}.", f"Use {' or '.join(known)}.")
    return known[suffix]


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        SceneError: it is missing, a folder, or not readable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path} can't be read: {error.strerror}.", "Check the path and its rights.") from error
