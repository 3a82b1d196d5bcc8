"""Edits: a finished scene, of a run or of a file, changed to another prompt."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from dreamkit.config import Schedule
from dreamkit.errors import ConfigError
from dreamkit.prompts import check_prompt, clean_prompt, slug
from dreamkit.runs import Run
from dreamkit.scenes.asset_files import suffix_of
from dreamkit.scenes.conversion import colors_of, inside_of
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.rendering import check_backend
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.training.assets import FORMATS
from dreamkit.training.callbacks import Callback, CallbackList
from dreamkit.training.edit_config import EditConfig
from dreamkit.training.generate import (
    GenerateResult,
    load_scene_and_stage,
    reference_picture,
    run_to_end,
    save_start,
    teacher_of,
)
from dreamkit.training.made_elsewhere import open_asset
from dreamkit.training.presets import is_toy, preset, with_options, with_overrides
from dreamkit.training.scene import make_objective
from dreamkit.training.settings import EMBEDDED, SceneSettings
from dreamkit.training.stages import make_trainer

_STEPS = 200
_SHAPE_WEIGHT = 0.3
_GENTLE: dict[str, float] = {
    "means_rate": 0.1,
    "scales_rate": 0.2,
    "quaternions_rate": 0.2,
    "opacities_rate": 0.2,
    "distances_rate": 0.1,
    "offsets_rate": 0.1,
    "table_rate": 0.25,
    "network_rate": 0.25,
    "refinement_rate": 0.0,
}
"""What is left of the learning rates of shapes: an edit starts from something that is nearly right. A refinement layer
sees pictures, not space: what it learned from the source it keeps, and the field has to change."""


@dataclass(frozen=True)
class EditOptions:
    """What `dreamkit edit` takes; `None` leaves the preset's value."""

    source: str
    """A run folder, "latest", or a splat or mesh file."""
    prompt: str
    """What it shall become."""
    source_prompt: str | None = None
    """What it is; of a run its own prompt."""
    objective: str = "dds"
    preset: str = "draft"
    teacher: str | None = None
    """By default the run's own, and the embedded one for a file."""
    guidance: float | None = None
    steps: int | None = None
    views: int | None = None
    resolution: int | None = None
    region: str = ""
    """Where it may change, see `dreamkit.scenes.regions`."""
    shape_weight: float | None = None
    """Weight of its silhouettes and depths; 0 leaves the shape free."""
    seed: int = 0
    out: str = "outputs"
    device: str = "auto"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beginning:
    """What an edit starts from.

    Args:
        scene: the scene.
        settings: of the same kind and size: what a run like it has.
    """

    scene: TrainableScene
    settings: SceneSettings


def beginning_of(source: str, out_root: str = "outputs") -> Beginning:
    """The scene of a run, or of a file that was made elsewhere, moved and scaled into the unit ball.

    Raises:
        DreamkitError: no such run or file, or one without a scene.
    """
    path = Path(source).expanduser()
    named = suffix_of(path)[1:] in FORMATS and not path.is_dir()
    if path.is_file() or named:
        return _of_file(path)
    run = Run.open(source, out_root)
    scene, stage = load_scene_and_stage(run)
    if isinstance(stage, SceneSettings):
        return Beginning(scene, stage)
    return Beginning(
        scene,
        SceneSettings(
            "",
            scene=stage.scene,
            gaussians=stage.gaussians,
            nerf=stage.nerf,
            refinement=stage.refinement,
            teacher=stage.teacher,
        ),
    )


def _of_file(path: Path) -> Beginning:
    """Splats as Gaussians, triangles as a mesh scene, in the unit ball about the origin."""
    asset = open_asset(path)
    if isinstance(asset.content, GaussianScene):
        splats = asset.framing.framed(asset.content)
        return Beginning(splats, SceneSettings("", gaussians=splats.config))
    mesh = asset.framing.framed(asset.content)
    half = max(1.05 * float(abs(mesh.vertices).max()), MeshSceneConfig().half)
    config = MeshSceneConfig(half=half)
    generator = torch.Generator().manual_seed(0)
    scene = MeshScene.from_field(config, inside_of(mesh), colors_of(mesh), generator, half)
    return Beginning(scene, SceneSettings("", scene="mesh", mesh=config))


def edit_settings(options: EditOptions, beginning: Beginning, toy: bool = True) -> SceneSettings:
    """Everything that decides an edit.

    Raises:
        DreamkitError: a bad prompt, an unknown name, a value out of range.
    """
    was = beginning.settings
    prompt = clean_prompt(options.prompt)
    source_prompt = was.prompt if options.source_prompt is None else options.source_prompt
    if options.guidance is not None and not 0 <= options.guidance < float("inf"):
        raise ConfigError(f"guidance is {options.guidance}.", "Use a number >= 0; 1 is no guidance.")
    base = preset(options.preset, options.objective, toy, was.scene)
    weight = _SHAPE_WEIGHT if options.shape_weight is None else options.shape_weight
    base = replace(
        base,
        prompt=prompt,
        source_prompt=clean_prompt(source_prompt, allow_empty=True),
        teacher=options.teacher or was.teacher or EMBEDDED,
        gaussians=_gentle(replace(was.gaussians, background="neutral"), base.gaussians),
        nerf=_gentle(was.nerf, base.nerf),
        mesh=_gentle(was.mesh, base.mesh),
        refinement=_gentle(was.refinement, base.refinement),
        density=replace(was.density, enabled=False),
        steps=max(1, base.steps * _STEPS // preset("draft", toy=toy).steps),
        edit=EditConfig(options.region, shape_weight=weight),
        seed=options.seed,
        device=options.device,
    )
    chosen = {name: getattr(options, name) for name in ("guidance", "steps", "views", "resolution")}
    settings = with_options(with_overrides(base, **chosen), options.options)
    make_objective(settings)
    return settings


def edit(options: EditOptions, callbacks: Sequence[Callback] = ()) -> GenerateResult:
    """Change a finished scene to another prompt, in a run folder of its own; what it starts from stays as it is.

    Args:
        options: what to change and how.
        callbacks: who is told.

    Raises:
        DreamkitError: anything the user can mend; nothing is left behind by what fails before the first step.
        RunInterrupted: the user stopped it; the run is saved.
    """
    started = time.perf_counter()
    beginning = beginning_of(options.source, options.out)
    settings = edit_settings(options, beginning)
    check_backend()
    CallbackList(callbacks).on_stage("loading the teacher", None)
    teacher = teacher_of(settings)
    settings = edit_settings(options, beginning, toy=is_toy(teacher))
    warnings = check_prompt(teacher, settings.prompt)
    trainer = make_trainer(settings, teacher, reference_picture(settings), beginning.scene)
    run = Run.create(options.out, slug(settings.prompt), f"edit-{settings.objective}", settings)
    with run.lock():
        save_start(run, beginning.scene)
        return run_to_end(run, trainer, callbacks, warnings, started)


def _gentle(config: Any, usual: Any) -> Any:
    """A scene's configuration with a share of the usual learning rates of its shape; of an edited scene's too."""
    changed = {}
    for item in fields(config):
        if item.name in _GENTLE:
            rate: Schedule = getattr(usual, item.name)
            share = _GENTLE[item.name]
            changed[item.name] = replace(rate, start_value=share * rate.start_value, end_value=share * rate.end_value)
    return replace(config, **changed)
