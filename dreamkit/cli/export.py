"""`dreamkit export RUN --format ply|splat|glb|obj`: the asset in another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from dreamkit.checks import require_choice
from dreamkit.cli.output import print_json
from dreamkit.cli.parsing import Folder, RunFolder, parse
from dreamkit.runs import Run

FORMATS = ("ply", "splat", "glb", "obj")


@dataclass(frozen=True)
class Export:
    """Write a run's asset in another format into its exports/ folder."""

    run: RunFolder
    """The run folder, or "latest"."""
    format: Annotated[str, tyro.conf.arg(metavar="ply|splat|glb|obj")] = "glb"
    """ply, splat: Gaussians for a splat viewer; glb, obj: a mesh with vertex colours or a texture."""
    out: Folder = "outputs"
    """Where "latest" looks."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `export`.

    Returns:
        The exit code.
    """
    command = parse(Export, "export", arguments)
    require_choice("--format", command.format, FORMATS)
    folder = Run.open(command.run, command.out).path
    from dreamkit.training.generate import export

    path = str(export(str(folder), command.format))
    if command.json:
        print_json({"run": str(folder), "exports": {command.format: path}})
    else:
        print(path)
    return 0
