"""`dreamkit export RUN|FILE --format ply|splat|compressed.ply|glb|obj`: the asset in another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dreamkit.checks import require_choice
from dreamkit.cli.asset_files import OUTPUTS, OutFolder, Source, asset_file, results_folder, source_word
from dreamkit.cli.output import print_json
from dreamkit.cli.parsing import parse
from dreamkit.runs import Run

FORMATS = ("ply", "splat", "compressed.ply", "glb", "obj")


@dataclass(frozen=True)
class Export:
    """Write a run's asset in other formats into its exports/ folder, or a file's beside it (<name>-scene.ply, ...)."""

    run: Source
    """The run folder, "latest", or a .ply, .compressed.ply, .splat, .glb or .obj that was made elsewhere."""
    format: Annotated[str, tyro.conf.arg(metavar="ply|splat|compressed.ply|glb|obj", aliases=("--formats",))] = "glb"
    """ply, splat, compressed.ply: Gaussians for a splat viewer; glb, obj: a mesh with vertex colours or a texture.
    Several are separated by commas."""
    out: OutFolder = None
    """Where "latest" looks; where what is made of a file goes."""
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
    kinds = list(dict.fromkeys(part.strip() for part in command.format.split(",")))
    for kind in kinds:
        require_choice("--format", kind, FORMATS)
    file = asset_file(command.run)
    source = Run.open(command.run, command.out or OUTPUTS).path if file is None else file
    paths = _export_run(source, kinds) if file is None else _export_file(file, kinds, command.out)
    if command.json:
        print_json({source_word(file): str(source), "exports": paths})
    else:
        print("\n".join(paths.values()))
    return 0


def _export_run(folder: Path, kinds: list[str]) -> dict[str, str]:
    """Format -> file."""
    from dreamkit.training.generate import export

    return {kind: str(export(str(folder), kind)) for kind in kinds}


def _export_file(file: Path, kinds: list[str], out: str | None) -> dict[str, str]:
    """Format -> file."""
    from dreamkit.training.made_elsewhere import convert_asset, open_asset

    asset = open_asset(file)
    return {kind: str(convert_asset(asset, kind, results_folder(file, out))[0]) for kind in kinds}
