"""`dreamkit convert RUN|FILE --to gaussians|mesh`: a scene in another representation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.checks import require_choice
from dreamkit.cli.asset_files import OUTPUTS, OutFolder, Source, asset_file, results_folder, source_word
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Integer, PresetInteger, parse
from dreamkit.runs import Run

if TYPE_CHECKING:
    from dreamkit.scenes.triangles import MeshFigures

FORMATS = {"gaussians": ("ply", "splat", "compressed.ply"), "mesh": ("glb", "obj")}


@dataclass(frozen=True)
class Convert:
    """Turn a run's scene into Gaussians on its surface, or into a mesh, as a file in its exports/ folder.

    A splat or a mesh that was made elsewhere is turned too; the file lies beside it and begins with its name.
    """

    run: Source
    """The run folder, "latest", or a .ply, .compressed.ply, .splat, .glb or .obj that was made elsewhere."""
    to: Annotated[str, tyro.conf.arg(metavar="gaussians|mesh")] = "mesh"
    """What to make of it."""
    format: Annotated[str, tyro.conf.arg(metavar="ply|splat|compressed.ply|glb|obj")] = ""
    """ply, splat or compressed.ply for Gaussians, glb or obj for a mesh; ply and glb by default."""
    count: Integer = 20_000
    """Gaussians to place on the surface (a scene of Gaussians keeps its own)."""
    resolution: Integer = 128
    """Grid points along the longest edge when a surface is cut, 16 to 512."""
    faces: Annotated[
        int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 20000; all of a mesh file)")
    ] = None
    """Most triangles, at least 4."""
    texture: PresetInteger = None
    """Side of the texture, 16 to 8192 pixels; 0 for vertex colours. By default 1024, none for Gaussians, and that of a
    mesh file."""
    out: OutFolder = None
    """Where "latest" looks; where what is made of a file goes."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `convert`.

    Returns:
        The exit code.
    """
    command = parse(Convert, "convert", arguments)
    require_choice("--to", command.to, FORMATS)
    kind = command.format or FORMATS[command.to][0]
    require_choice("--format", kind, FORMATS[command.to])
    file = asset_file(command.run)
    source = Run.open(command.run, command.out or OUTPUTS).path if file is None else file
    path, figures = _convert(command, source, file is None, kind)
    content: dict[str, Any] = {source_word(file): str(source), "exports": {kind: str(path)}}
    if figures is not None:
        content["figures"] = asdict(figures)
    if command.json:
        print_json(content)
    else:
        print_rows({"file": str(path), **({} if figures is None else content["figures"])})
    return 0


def _convert(command: Convert, source: Path, is_run: bool, kind: str) -> tuple[Path, MeshFigures | None]:
    """Convert a run's scene or a file; returns the file, and the figures of a mesh."""
    from dreamkit.training.assets import AssetOptions

    of_mesh = source.suffix.lower() in (".glb", ".obj") and not is_run
    faces = command.faces if command.faces is not None else 10_000_000 if of_mesh else AssetOptions.faces
    options = AssetOptions(command.count, command.resolution, faces, command.texture)
    if is_run:
        from dreamkit.training.generate import convert

        return convert(str(source), kind, options=options)
    from dreamkit.training.made_elsewhere import convert_asset, open_asset

    return convert_asset(open_asset(source), kind, results_folder(source, command.out), options)
