"""`dreamkit convert RUN --to gaussians|mesh`: a run's scene in another representation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from dreamkit.checks import require_choice
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Folder, Integer, PresetInteger, RunFolder, parse
from dreamkit.runs import Run

FORMATS = {"gaussians": ("ply", "splat"), "mesh": ("glb", "obj")}


@dataclass(frozen=True)
class Convert:
    """Turn a run's scene into Gaussians on its surface, or into a mesh, as a file in its exports/ folder."""

    run: RunFolder
    """The run folder, or "latest"."""
    to: Annotated[str, tyro.conf.arg(metavar="gaussians|mesh")] = "mesh"
    """What to make of it."""
    format: Annotated[str, tyro.conf.arg(metavar="ply|splat|glb|obj")] = ""
    """ply or splat for Gaussians, glb or obj for a mesh; ply and glb by default."""
    count: Integer = 20_000
    """Gaussians to place on the surface (a scene of Gaussians keeps its own)."""
    resolution: Integer = 128
    """Grid points along the longest edge when a surface is cut, 16 to 512."""
    faces: Integer = 20_000
    """Most triangles, at least 4."""
    texture: PresetInteger = None
    """Side of the texture, 16 to 8192 pixels; 0 for vertex colours. By default 1024, and none for Gaussians."""
    out: Folder = "outputs"
    """Where "latest" looks."""
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
    folder = Run.open(command.run, command.out).path
    from dreamkit.training.assets import AssetOptions
    from dreamkit.training.generate import convert

    options = AssetOptions(command.count, command.resolution, command.faces, command.texture)
    path, figures = convert(str(folder), kind, options=options)
    content: dict[str, Any] = {"run": str(folder), "exports": {kind: str(path)}}
    if figures is not None:
        content["figures"] = asdict(figures)
    if command.json:
        print_json(content)
    else:
        print_rows({"file": str(path), **({} if figures is None else content["figures"])})
    return 0
