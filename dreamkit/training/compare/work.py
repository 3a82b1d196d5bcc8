"""One run of a comparison: optimised like any other, then measured; a small turntable instead of films and meshes."""

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import CheckpointError, DreamkitError, RunError, TeacherError
from dreamkit.files import atomic_path, plain, read_jsonl, write_error
from dreamkit.prompts import check_prompt, slug
from dreamkit.runs import Run
from dreamkit.scenes.cameras import turntable
from dreamkit.scenes.rendering import check_backend
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.training.callbacks import Callback, CallbackList, LogWriter, MetricsWriter
from dreamkit.training.compare.plan import CAMERA, FORMAT_VERSION, Task
from dreamkit.training.deliver import BACKGROUND, SCORE_VIEWS, turntable_views
from dreamkit.training.generate import OPTIMISING, optimise, reference_picture, restore, settings_for, teacher_of
from dreamkit.training.scene import SceneTrainer, make_objective, settings_from_config
from dreamkit.training.settings import Precision, SceneSettings

WEBP_QUALITY = 55
TURN_SECONDS = 2.4
VIEWS_FOLDER = "views"
_MEASURES = (
    "r_precision",
    "object",
    "colour",
    "janus",
    "fronts",
    "many_faced",
    "view_agreement",
    "saturation",
    "contrast",
)
_COSTS = ("seconds", "teacher_calls", "steps")


class CostWriter(MetricsWriter):
    """The metrics of a run with the samples that the teacher and the critic had seen by then.

    Args:
        path: `Run.metrics_file`.
        trainer: whose calls are counted.
    """

    def __init__(self, path: Path, trainer: SceneTrainer) -> None:
        super().__init__(path, stage=OPTIMISING)
        self._trainer = trainer
        self._before = trainer.calls

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Append a row."""
        super().on_step(step, total, {**metrics, "teacher_calls": float(self._trainer.calls - self._before)})


def total_cost(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    """What all processes that worked on a run spent together.

    Args:
        rows: its metrics; `name` grows from row to row and begins again where another process went on.
        name: `seconds` or `teacher_calls`.
    """
    values = [float(row[name]) for row in rows if row.get(name) is not None]
    last = values[-1] if values else 0.0
    return last + sum(value for value, following in pairwise(values) if following < value)


def make_row(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Make the asset of a task, or finish it, and measure it.

    Args:
        task: what to make.
        callbacks: told of every step.

    Returns:
        Its row: what it is, what was measured, what it cost, where it lies.

    Raises:
        DreamkitError: anything the user can mend.
        RunInterrupted: the user stopped it; the run is saved.
    """
    settings = settings_for(task.options)
    check_backend()
    teacher = _teacher(settings)
    settings = settings_for(task.options, teacher)
    if task.mode == CAMERA and not teacher.supports_camera:
        raise TeacherError(f"{settings.teacher} takes no camera.", "Compare it with --modes text.")
    warnings = check_prompt(teacher, settings.prompt)
    run = open_run(task, settings)
    with run.lock():
        scene = _optimised(run, settings, teacher, callbacks, warnings)
        measures, embeddings = measure(scene, settings.prompt)
        metrics = read_jsonl(run.metrics_file)
    save_views(task, turntable_views(scene, task.frames, task.size), embeddings)
    costs = {
        "seconds": round(total_cost(metrics, "seconds"), 3),
        "teacher_calls": round(total_cost(metrics, "teacher_calls")),
        "steps": settings.steps,
    }
    where = {"run": run.path.relative_to(task.folder).as_posix(), "error": None}
    return row_head(task) | measures | costs | where | {"settings": described(settings)}


def row_head(task: Task) -> dict[str, Any]:
    """The part of a row that says what it is about."""
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"format_version": FORMAT_VERSION, "key": task.key, "created": created, **task.identity}


def error_row(task: Task, text: str) -> dict[str, Any]:
    """The row of a run that failed."""
    empty = dict.fromkeys((*_MEASURES, *_COSTS))
    return row_head(task) | empty | {"run": None, "error": text, "settings": None}


def described(settings: SceneSettings) -> dict[str, Any]:
    """Settings for readers: all fields of the objective, and those of the run without its prompt and seed."""
    run = {
        name: value
        for name, value in plain(settings).items()
        if name not in ("prompt", "seed", "objective_options", "objective", "camera_conditioning", "view_prompts")
    }
    return {"objective": settings.objective, "options": plain(make_objective(settings)), "run": run}


def _teacher(settings: SceneSettings) -> Teacher:
    """The teacher; a process loads it once, but afresh for an objective that trains a critic on its weights."""
    if make_objective(settings).needs_critic:
        return teacher_of(settings)
    teacher = copy.copy(_kept_teacher(settings.teacher, settings.device, settings.precision))
    teacher.calls = 0
    return teacher


@lru_cache(maxsize=1)
def _kept_teacher(name: str, device: str, precision: Precision) -> Teacher:
    return teacher_of(SceneSettings("", teacher=name, device=device, precision=precision))


def open_run(task: Task, settings: SceneSettings) -> Run:
    """The run folder that an earlier process began for the task, or a new one."""
    root, name = task.folder / "runs", f"{settings.objective}-{task.key}"
    for path in sorted((root / slug(settings.prompt) / name).glob("*Z*"), reverse=True):
        try:
            run = Run.open(path)
            if plain(settings_from_config(run.config)) == plain(settings):
                return run
        except DreamkitError:
            continue  # what can't be continued is done again
    return Run.create(root, slug(settings.prompt), name, settings)


def _optimised(
    run: Run, settings: SceneSettings, teacher: Teacher, callbacks: Sequence[Callback], warnings: Sequence[str]
) -> TrainableScene:
    """The run's scene after its last step, on the CPU; a run without a good checkpoint begins anew."""
    log = LogWriter(run.log_file)
    listeners = CallbackList([*callbacks, log])
    trainer = SceneTrainer(settings, teacher, reference_picture(settings))
    try:
        warnings = [*warnings, *restore(trainer, run)]
    except CheckpointError as error:
        warnings = [*warnings, f"Begun anew: {error.message}"]
        trainer = SceneTrainer(settings, teacher, reference_picture(settings))
        run.rewind_metrics(0)
    for warning in warnings:
        log.on_message("warning", warning)
    listeners.callbacks.append(CostWriter(run.metrics_file, trainer))
    optimise(trainer, run, listeners)
    return trainer.scene.to("cpu")


@torch.no_grad()
def measure(scene: TrainableScene, prompt: str) -> tuple[dict[str, float | int | bool | None], Tensor]:
    """Every measure of one asset over 24 views of a turn, and the judge's embeddings of them [24, E]."""
    from dreamkit.metrics import pictures
    from dreamkit.metrics.judge import IMAGE_SIZE, load_judge
    from dreamkit.metrics.scores import Target, score_views
    from dreamkit.toyworld.captions import FRONTED

    judge = load_judge()
    cameras = turntable(SCORE_VIEWS, height=IMAGE_SIZE, width=IMAGE_SIZE)
    rendering = scene.render(cameras, torch.full((3,), BACKGROUND))
    image, alpha = rendering.image, rendering.alpha
    colour = pictures.foreground(image, alpha, BACKGROUND)
    fronted = Target.from_prompt(prompt).name in FRONTED
    fronts = pictures.count_fronts(pictures.looks_front(judge, image)) if fronted else None
    measures: dict[str, float | int | bool | None] = {
        **score_views(judge, image, cameras.azimuth, prompt),
        "fronts": fronts,
        "many_faced": None if fronts is None else fronts > 1,
        "view_agreement": pictures.view_agreement(judge, image) if fronted else None,
        "saturation": pictures.saturation(colour, alpha),
        "contrast": pictures.contrast(colour, alpha),
    }
    return measures, pictures.image_embeddings(judge, image)


def animated_webp(frames: Tensor, quality: int = WEBP_QUALITY) -> bytes:
    """A turn [N, 3, H, W] in [0, 1] as an animated WebP that repeats for ever."""
    from PIL import Image

    from dreamkit.scenes.pictures import to_bytes

    first, *rest = [Image.fromarray(pixels, "RGB") for pixels in to_bytes(frames)]
    buffer = BytesIO()
    duration = round(1000 * TURN_SECONDS / len(frames))
    first.save(buffer, "WEBP", save_all=True, append_images=rest, duration=duration, loop=0, quality=quality, method=4)
    return buffer.getvalue()


def views_file(folder: Path, key: str, suffix: str) -> Path:
    """Where a row's turntable (`webp`) and embeddings (`npy`) lie."""
    return folder / VIEWS_FOLDER / f"{key}.{suffix}"


def save_views(task: Task, frames: Tensor, embeddings: Tensor) -> None:
    """Write a row's turntable [N, 3, H, W] and the embeddings [24, E] of its scored views.

    Raises:
        RunError: the system refused the write.
    """
    import numpy as np

    try:
        (task.folder / VIEWS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(task.folder / VIEWS_FOLDER, error) from error
    with atomic_path(views_file(task.folder, task.key, "webp")) as temporary:
        temporary.write_bytes(animated_webp(frames))
    with atomic_path(views_file(task.folder, task.key, "npy")) as temporary:
        np.save(temporary, embeddings.half().numpy())


def load_embeddings(folder: Path, key: str) -> Tensor | None:
    """The judge's embeddings of a row's views, [24, E]; `None` where they are gone.

    Raises:
        RunError: the file is damaged.
    """
    import numpy as np

    path = views_file(folder, key, "npy")
    if not path.is_file():
        return None
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} is damaged: {error}.", "Delete it: the diversity is then left out.") from error
