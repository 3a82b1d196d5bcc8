"""What a user gets from a scene: films, pictures, asset files and scores."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.files import write_error
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.film_config import BACKGROUNDS, FOV, FilmConfig
from dreamkit.scenes.films import AddFrame, open_film, write_video
from dreamkit.scenes.rendering import Rendering, Scene
from dreamkit.scenes.static_mesh import StaticMesh
from dreamkit.scenes.styles import (
    Style,
    clay_picture,
    depth_limits,
    depth_picture,
    normal_picture,
    scene_radius,
)
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.wireframe import Wireframe
from dreamkit.training.callbacks import Callback

SCORE_VIEWS = 24
SHEET_VIEWS = 8
PICTURE_SIZE = 256
TURNTABLE_FRAMES = 72
BACKGROUND = BACKGROUNDS["light"]
_PIXELS = 2**19  # of the frames that are rendered together
_EMPTY = 0.02  # coverage below which nobody sees anything

Painter = Callable[[Rendering, Camera], Tensor]
"""Pictures of a style [B, 3, H, W] from what a scene returned to cameras."""


@torch.no_grad()
def turntable_views(scene: Scene, count: int, size: int, listeners: Callback | None = None) -> Tensor:
    """[count, 3, size, size] views of a turn around the scene on light gray, the front first.

    Args:
        scene: what to look at.
        count: views at equal steps.
        size: their side in pixels.
        listeners: told of every few views.
    """
    from dreamkit.scenes.pictures import render_views

    cameras = turntable(count, height=size, width=size)
    views: list[Tensor] = []
    for view in render_views(scene, cameras, torch.full((3,), BACKGROUND)):
        views.append(view)
        if listeners is not None:
            listeners.on_step(len(views), count, {})
    return torch.stack(views)


def render_scene(scene: Scene, folder: Path, listeners: Callback, prefix: str = "") -> dict[str, Path]:
    """Write turntable.mp4 and contact_sheet.png (8 views) into a folder, names after a prefix; returns name -> file."""
    from dreamkit.scenes.pictures import contact_sheet

    listeners.on_stage("rendering the turntable", TURNTABLE_FRAMES)
    frames = turntable_views(scene, TURNTABLE_FRAMES, PICTURE_SIZE, listeners)
    names = {"turntable": "turntable.mp4", "contact_sheet": "contact_sheet.png"}
    files = {key: folder / f"{prefix}{name}" for key, name in names.items()}
    write_video(frames, files["turntable"], fps=24)
    labels = [f"{index * 360 // SHEET_VIEWS}\N{DEGREE SIGN}" for index in range(SHEET_VIEWS)]
    contact_sheet(frames[:: TURNTABLE_FRAMES // SHEET_VIEWS], files["contact_sheet"], columns=4, labels=labels)
    return files


@torch.no_grad()
def render_films(
    scene: Scene, config: FilmConfig, folder: Path, listeners: Callback, prefix: str = ""
) -> dict[str, Path]:
    """Film a scene: one pass over the cameras, a film in each style, frames encoded as they come.

    A film in which nothing is to be seen, or whose cameras stand in the object, is written, with a warning.

    Args:
        scene: what to look at.
        config: how.
        folder: where films without a name of their own go.
        listeners: told of every few frames, and of warnings.
        prefix: what the names of films without one of their own begin with.

    Returns:
        Style -> file (or folder of pictures).

    Raises:
        DreamkitError: the cameras can't be read, the scene has no surface for a wireframe, or a film can't be written.
    """
    cameras, files = config.cameras(), config.files(folder)
    if config.output is None:
        files = {style: path.with_name(f"{prefix}{path.name}") for style, path in files.items()}
    listeners.on_stage("looking at the scene", None)
    warn_of_place(scene, config, cameras, listeners)
    painters = make_painters(scene, config, cameras)
    wires = None
    if "wireframe" in files:
        listeners.on_stage("cutting the mesh", None)
        wires = wireframe(scene, config)
    batch = max(1, _PIXELS // (cameras.height * cameras.width))
    covered = 0.0
    listeners.on_stage(f"filming {', '.join(files)}", len(cameras))
    with ExitStack() as stack:
        films = {style: _open(path, config, stack) for style, path in files.items()}
        for start in range(0, len(cameras), batch):
            some = cameras[start : start + batch]
            pictures, alpha = _paint(scene, some, config, painters, wires)
            covered = max(covered, alpha)
            for style, frames in pictures.items():
                for frame in frames:
                    films[style](frame)
            listeners.on_step(start + len(some), len(cameras), {})
    if covered < _EMPTY:
        text = "Nothing is to be seen in the film. Does its path look at the origin, and is the scene trained?"
        listeners.on_message("warning", text)
    return files


def _open(path: Path, config: FilmConfig, stack: ExitStack) -> AddFrame:
    """A film, or a single picture, in a folder that is made if it isn't there."""
    from dreamkit.scenes.pictures import save_image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    if config.is_picture:
        return lambda frame: save_image(frame, path)
    return stack.enter_context(open_film(path, config.kind, config.frames_per_second))


def _paint(
    scene: Scene, cameras: Camera, config: FilmConfig, painters: dict[Style, Painter], wires: Wireframe | None
) -> tuple[dict[Style, Tensor], float]:
    """Pictures [B, 3, H, W] by style, the scene rendered once for all of them; and the largest coverage of a pixel."""
    background = config.background_color()
    pictures: dict[Style, Tensor] = {}
    covered = 0.0
    if painters:
        rendering = scene.render(cameras, background)
        pictures = {style: paint(rendering, cameras) for style, paint in painters.items()}
        covered = float(rendering.alpha.max())
    if wires is not None:
        drawn = [wires.draw(cameras[index], background, config.line_width) for index in range(len(cameras))]
        pictures["wireframe"] = torch.cat([picture for picture, _ in drawn])
        covered = max(covered, *(float(alpha.max()) for _, alpha in drawn))
    return pictures, covered


def make_painters(scene: Scene, config: FilmConfig, cameras: Camera) -> dict[Style, Painter]:
    """What paints each style of a film but the wireframe. Depth has one range for the whole film, so it can't flicker.

    Args:
        scene: what will be filmed.
        config: how.
        cameras: all of the film's.
    """
    background = config.background_color()
    painters: dict[Style, Painter] = {
        "rgb": lambda rendering, _: rendering.image,
        "normal": lambda rendering, _: normal_picture(rendering, background),
        "clay": lambda rendering, some: clay_picture(rendering, some, background),
    }
    if "depth" in config.styles:
        limits = depth_limits(scene, cameras)
        painters["depth"] = lambda rendering, _: depth_picture(rendering, background, limits, config.colormap)
    return {style: painters[style] for style in config.styles if style in painters}


def wireframe(scene: Scene, config: FilmConfig) -> Wireframe:
    """The wires of a scene's mesh, of as many triangles as the film wants.

    Raises:
        SceneError: the scene has no surface, or is of a kind that no mesh is cut from.
    """
    from dreamkit.scenes.conversion import mesh_of
    from dreamkit.scenes.mesh import MeshConfig

    if not isinstance(scene, (TrainableScene, StaticMesh)):
        raise SceneError(f"No mesh can be cut from a {type(scene).__name__}.", "Use the style clay or normal.")
    mesh = mesh_of(scene, MeshConfig(max_faces=config.faces))
    return Wireframe.of_arrays(mesh.vertices, mesh.faces, mesh.normals)


def warn_of_place(scene: Scene, config: FilmConfig, cameras: Camera, listeners: Callback) -> None:
    """Say so if cameras stand in the ball that holds the object, and how far away they would see it whole."""
    reach = scene_radius(scene)
    count = int((cameras.radius < reach).sum())
    if count:
        whole = reach / math.sin(math.radians(0.5 * (config.fov or FOV)))
        listeners.on_message(
            "warning",
            f"{count} of {len(cameras)} cameras stand inside the ball about the object: the nearest at a radius of "
            f"{float(cameras.radius.min()):.3g}, and it reaches to {reach:.2g}. "
            f"Try a radius of {whole:.1f}, from which it is seen whole.",
        )


def score_scene(scene: Scene, prompt: str) -> dict[str, float | None]:
    """Scores by the embedded judge over 24 views of a turn at 15 degrees of elevation."""
    from dreamkit.metrics.judge import IMAGE_SIZE, load_judge
    from dreamkit.metrics.scores import score_views

    images = turntable_views(scene, SCORE_VIEWS, IMAGE_SIZE)
    return score_views(load_judge(), images, turntable(SCORE_VIEWS).azimuth, prompt)
