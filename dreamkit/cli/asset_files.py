"""Where a command takes a run's folder, it takes a splat or a mesh that was made elsewhere too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Source = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FILE")]
"""The run folder, "latest", or a file."""
OutFolder = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: outputs; for a FILE its own folder)")
]
OUTPUTS = "outputs"
SUFFIXES = (".ply", ".splat", ".glb", ".obj")


def asset_file(source: str) -> Path | None:
    """The file that a command was given; None for a run.

    What ends as an asset does is a file even if it isn't there, and what is a file is one however it ends: whoever
    opens it says what is wrong.

    Args:
        source: what the user gave.
    """
    path = Path(source).expanduser()
    try:
        is_file = path.exists() and not path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        is_file = False
    named = path.suffix.lower() in SUFFIXES and not path.is_dir()
    return path if is_file or named else None


def results_folder(path: Path, out: str | None) -> Path:
    """Where what is made of a file goes: a folder that was asked for, else the file's own."""
    return path.parent if out is None else Path(out).expanduser()


def source_word(path: Path | None) -> str:
    """What the JSON object calls what was given."""
    return "run" if path is None else "file"
