"""`dreamkit render RUN|FILE`: films and pictures of a scene, in several styles along camera paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.cli.asset_files import OUTPUTS, OutFolder, Source, asset_file, results_folder, source_word
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import parse
from dreamkit.runs import Run
from dreamkit.training.callbacks import Callback, Level

if TYPE_CHECKING:
    from dreamkit.scenes.film_config import FilmConfig


def _hint(default: str) -> str:
    return f"(default: {default})"


@dataclass(frozen=True)
class Render:
    """Film a run's asset: colours, normals, depth, clay or wires, along a path, as mp4, gif, webp or pictures.

    Without any option: turntable.mp4 and contact_sheet.png in the run's renders/ folder, again. With some, a film a
    style: renders/<path>-<style>.<format>.

    A splat or a mesh that was made elsewhere (.ply, .compressed.ply, .splat, .glb, .obj) is filmed too, whatever its
    size and place: the ball about it counts as the unit ball about the origin, but along a FILE of cameras it stays
    where it is. Its films lie beside it and begin with its name.

    A path's FILE is JSON in nerfstudio's style: {"camera_path": [{"camera_to_world": [16 numbers, row by row],
    "fov": 50}, ...]}, or a transforms.json with "frames" of "transform_matrix", and "fl_y" and "h" in
    pixels. Matrices lead from the camera to the world, in OpenGL's axes (x right, y up, looking along -z); in the
    world y is up, and the object sits about the origin with its front at +z.
    """

    run: Source
    """The run folder, "latest", or a file."""
    style: Annotated[
        str | None,
        tyro.conf.arg(metavar="rgb|normal|depth|clay|wireframe", help_behavior_hint=_hint("rgb")),
    ] = None
    """What to show; several, separated by commas, give a film each."""
    path: Annotated[
        str | None, tyro.conf.arg(metavar="turntable|spiral|FILE", help_behavior_hint=_hint("turntable"))
    ] = None
    """How the camera goes: once round, twice round while it rises and returns, or along a file of cameras."""
    format: Annotated[
        str | None,
        tyro.conf.arg(metavar="mp4|gif|webp|png", help_behavior_hint=_hint("what --output ends in, else mp4")),
    ] = None
    """Kind of file; png is a folder of pictures."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Where to write: a film, a folder of pictures, or a .png of --frames 1; its ending decides the format."""
    resolution: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_hint("512"))] = None
    """Height of the frames in pixels, 16 to 2048; as wide, or as a path's file has it."""
    fps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_hint("24"))] = None
    """Frames a second, 1 to 120 (gif: 50)."""
    frames: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_hint("120"))] = None
    """How many frames, 1 to 10,000."""
    elevation: Annotated[float | None, tyro.conf.arg(metavar="F", help_behavior_hint=_hint("15"))] = None
    """Degrees above the horizon; a spiral begins there and rises by 45."""
    radius: Annotated[float | None, tyro.conf.arg(metavar="F", help_behavior_hint=_hint("3"))] = None
    """Distance from the camera to the origin, world units, 0.05 to 50."""
    fov: Annotated[float | None, tyro.conf.arg(metavar="F", help_behavior_hint=_hint("40"))] = None
    """Vertical field of view, degrees, 1 to 150."""
    background: Annotated[
        str | None,
        tyro.conf.arg(metavar="light|white|gray|black|#rrggbb", help_behavior_hint=_hint("light")),
    ] = None
    """What is behind."""
    colormap: Annotated[
        str | None, tyro.conf.arg(metavar="magma|inferno|viridis|turbo|gray", help_behavior_hint=_hint("magma"))
    ] = None
    """Colours of depth; near is bright."""
    faces: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_hint("4000"))] = None
    """Most triangles of the mesh that a wireframe shows."""
    line_width: Annotated[float | None, tyro.conf.arg(metavar="F", help_behavior_hint=_hint("1"))] = None
    """Width of a wireframe's lines, pixels."""
    device: Annotated[str | None, tyro.conf.arg(metavar="auto|cpu|cuda", help_behavior_hint=_hint("auto"))] = None
    """Where to render; auto takes a GPU if there is one."""
    out: OutFolder = None
    """Where "latest" looks; where what is made of a file goes."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def film(self) -> FilmConfig | None:
        """What to film, checked; None if nothing of a film was asked for.

        Raises:
            DreamkitError: an option out of range or unknown, or a path's file that can't be read.
        """
        others = ("run", "out", "json")
        given: dict[str, Any] = {
            field.name: value
            for field in fields(self)
            if field.name not in others and (value := getattr(self, field.name)) is not None
        }
        if not given:
            return None
        from dreamkit.scenes.film_config import FilmConfig

        if "style" in given:
            given["styles"] = tuple(name for part in given.pop("style").split(",") if (name := part.strip()))
        config = FilmConfig(**given)
        config.cameras()
        return config


class WarningNote(Callback):
    """Remembers the warnings, for the JSON object."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def on_message(self, level: Level, text: str) -> None:
        """Note a warning."""
        if level == "warning":
            self.warnings.append(text)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `render`.

    Returns:
        The exit code.
    """
    command = parse(Render, "render", arguments)
    file = asset_file(command.run)
    source = Run.open(command.run, command.out or OUTPUTS).path if file is None else file
    film = command.film()
    from dreamkit.training.progress import progress_display

    note = WarningNote()
    with progress_display() as progress:
        renders = _render(source, file is None, command.out, film, [progress, note])
    paths = {name: str(path) for name, path in renders.items()}
    if command.json:
        print_json({source_word(file): str(source), "renders": paths, "warnings": note.warnings})
    else:
        print_rows(paths)
    return 0


def _render(
    source: Path, is_run: bool, out: str | None, film: FilmConfig | None, callbacks: list[Callback]
) -> dict[str, Path]:
    """Film a run or a file; returns name -> file."""
    if is_run:
        from dreamkit.training.generate import render

        options: dict[str, Any] = {} if film is None else {"film": film}
        return render(str(source), callbacks, **options)
    from dreamkit.training.made_elsewhere import open_asset, render_asset

    return render_asset(open_asset(source), results_folder(source, out), film, callbacks)
