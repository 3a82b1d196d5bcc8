"""What a user gets from a scene: films, pictures, asset files and scores."""

from pathlib import Path

import torch
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import turntable
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.training.callbacks import Callback

FORMATS = ("ply", "splat", "glb", "obj")
SCORE_VIEWS = 24
SHEET_VIEWS = 8
PICTURE_SIZE = 256
TURNTABLE_FRAMES = 72
BACKGROUND = 0.85  # light gray: white and black objects both stand out


@torch.no_grad()
def turntable_views(scene: GaussianScene, count: int, size: int, listeners: Callback | None = None) -> Tensor:
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


def render_scene(scene: GaussianScene, folder: Path, listeners: Callback) -> dict[str, Path]:
    """Write turntable.mp4 and contact_sheet.png (8 views) into a folder; returns name -> file."""
    from dreamkit.scenes.pictures import contact_sheet, write_video

    listeners.on_stage("rendering the turntable", TURNTABLE_FRAMES)
    frames = turntable_views(scene, TURNTABLE_FRAMES, PICTURE_SIZE, listeners)
    files = {"turntable": folder / "turntable.mp4", "contact_sheet": folder / "contact_sheet.png"}
    write_video(frames, files["turntable"], fps=24)
    labels = [f"{index * 360 // SHEET_VIEWS}\N{DEGREE SIGN}" for index in range(SHEET_VIEWS)]
    contact_sheet(frames[:: TURNTABLE_FRAMES // SHEET_VIEWS], files["contact_sheet"], columns=4, labels=labels)
    return files


def export_format(scene: GaussianScene, folder: Path, kind: str) -> Path:
    """Write the asset as `scene.ply`, `scene.splat`, `mesh.glb` or `mesh.obj`; returns the file.

    Raises:
        ConfigError: another format.
        SceneError: the scene has nothing to export.
    """
    from dreamkit.scenes.export import export_mesh, export_scene
    from dreamkit.scenes.mesh import extract_mesh

    if kind not in FORMATS:
        raise ConfigError(f"The format {kind!r} is not known.", f"Known: {', '.join(FORMATS)}.")
    if kind in ("ply", "splat"):
        path = folder / f"scene.{kind}"
        export_scene(scene, path)
    else:
        path = folder / f"mesh.{kind}"
        export_mesh(extract_mesh(scene), path)
    return path


def score_scene(scene: GaussianScene, prompt: str) -> dict[str, float | None]:
    """Scores by the embedded judge over 24 views of a turn at 15 degrees of elevation."""
    from dreamkit.metrics.judge import IMAGE_SIZE, load_judge
    from dreamkit.metrics.scores import score_views

    images = turntable_views(scene, SCORE_VIEWS, IMAGE_SIZE)
    return score_views(load_judge(), images, turntable(SCORE_VIEWS).azimuth, prompt)
