"""The main job, end to end: a sentence in, a run folder with pictures, assets and scores out."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from dreamkit.diffusion.loading import load_teacher, resolve_device
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import CheckpointError, ConfigError, SceneError, TeacherError
from dreamkit.files import write_error
from dreamkit.objectives import objective_class
from dreamkit.prompts import check_prompt, clean_prompt, slug
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes.film_config import FilmConfig
from dreamkit.scenes.rendering import check_backend
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.triangles import MeshFigures
from dreamkit.training.anchor_config import AnchorConfig
from dreamkit.training.assets import AssetOptions, export_format
from dreamkit.training.callbacks import Callback, CallbackList, LogWriter, MetricsWriter
from dreamkit.training.checkpoints import guard_interrupts, list_checkpoints, load_latest, save_checkpoint
from dreamkit.training.deliver import render_films, render_scene, score_scene
from dreamkit.training.fit import FitTrainer
from dreamkit.training.fit_settings import fit_settings, is_fit
from dreamkit.training.particles import scene_from_state
from dreamkit.training.presets import (
    asked_at,
    for_student,
    is_toy,
    knows,
    preset,
    taught_levels,
    with_options,
    with_overrides,
)
from dreamkit.training.previews import Previews
from dreamkit.training.scene import SceneTrainer, make_objective, settings_from_config
from dreamkit.training.settings import EMBEDDED, SceneChoice, SceneSettings, scene_kind
from dreamkit.training.stages import StagedTrainer, joined, make_trainer, parse_stages, stage_at

OPTIMISING = "optimising"
_START = "start"
"""Folder of a run that holds the scene it starts from, as a checkpoint of step 0."""


@dataclass(frozen=True)
class GenerateOptions:
    """What `dreamkit generate` takes; `None` leaves the preset's value."""

    prompt: str
    preset: str = "draft"
    objective: str = "sds"
    scene: str = "gaussians"
    stages: str = ""
    teacher: str = EMBEDDED
    negative: str = ""
    guidance: float | None = None
    steps: int | None = None
    views: int | None = None
    resolution: int | None = None
    pictures: str = ""
    pictures_from: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    out: str = "outputs"
    device: str = "auto"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class GenerateResult:
    """What a finished run left.

    Args:
        run: its folder.
        exports: format -> file.
        seconds: wall time of this process on it.
        steps: optimisation steps of the run.
        peak_rss_mb: largest resident memory of this process, MB.
        scores: `r_precision`, `object`, `colour`, `janus`; `None` where the prompt does not decide it.
        warnings: what the user should know.
        teacher_calls: samples that went through the teacher (and the critic) in this process.
    """

    run: Path
    exports: dict[str, Path]
    seconds: float
    steps: int
    peak_rss_mb: float
    scores: dict[str, float | None]
    warnings: list[str] = field(default_factory=list)
    teacher_calls: int = 0


def peak_rss_mb() -> float:
    """Largest resident memory this program has had, in MB (10^6 bytes).

    Linux' ru_maxrss begins, in a process that another one started, with the other's memory; VmHWM does not.
    """
    from dreamkit_kernels.bench.measure import resident_mib

    own = resident_mib("VmHWM")
    if own is not None:
        return own * 2**20 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def settings_for(options: GenerateOptions, teacher: Teacher | None = None) -> SceneSettings:
    """The preset with the options over it, everything checked.

    Args:
        options: what was asked for.
        teacher: the one they name, which presets depend on; by default what its name tells. A student of few steps is
            asked at its own levels, without guidance, where the options don't say otherwise.

    Raises:
        DreamkitError: a bad prompt, an unknown name, a value out of range, or a student that can't judge a scene.
    """
    prompt = clean_prompt(options.prompt)
    negative = clean_prompt(options.negative, allow_empty=True)
    objective_class(options.objective)
    if options.guidance is not None and not 0 <= options.guidance < float("inf"):
        raise ConfigError(f"guidance is {options.guidance}.", "Use a number >= 0; 1 is no guidance.")
    named = asdict(options) | {"prompt": prompt, "negative": negative}
    toy = options.teacher == EMBEDDED if teacher is None else is_toy(teacher)
    reads = teacher is not None and teacher.reads_pictures
    levels = taught_levels(teacher)
    name, scene, objective = named.pop("preset"), named.pop("scene"), named.pop("objective")
    named.pop("out")
    changes, text = named.pop("options"), named.pop("stages")
    azimuth, elevation = named.pop("pictures_from")
    named["anchors"] = anchors = AnchorConfig(_absolute(named.pop("pictures")), azimuth, elevation)
    kinds = parse_stages(text) if text else [(scene_kind(scene), objective, None)]
    stages = []
    for index, (kind, method, steps) in enumerate(kinds):
        base = preset(name, method, toy, kind, later=index > 0, held=anchors.is_set, pictures=reads)
        base = with_overrides(for_student(base) if levels else base, **named)
        stages.append(base if steps is None else replace(base, steps=steps))
    for option in changes:
        if not any(knows(stage, option) for stage in stages):
            with_options(stages[0], [option])  # which says what is wrong with it
    settled = [with_options(stage, [option for option in changes if knows(stage, option)]) for stage in stages]
    settled = [asked_at(stage, levels, changes) for stage in settled]
    for stage in settled:
        make_objective(stage)
    return joined(settled)


def _absolute(path: str) -> str:
    """A path that means the same when the run is resumed from another folder."""
    return str(Path(path).expanduser().absolute()) if path else ""


def teacher_of(settings: SceneSettings) -> Teacher:
    """The teacher that the settings name, on their device and in their precision.

    Raises:
        TeacherError: it can't be loaded.
    """
    dtype = None if settings.precision == "auto" else getattr(torch, settings.precision)
    return load_teacher(settings.teacher, settings.device, dtype)


def generate(options: GenerateOptions, callbacks: Sequence[Callback] = ()) -> GenerateResult:
    """Make a 3D asset from a sentence.

    Args:
        options: what to make and how.
        callbacks: who is told.

    Raises:
        DreamkitError: anything the user can mend; nothing is left behind by what fails before the first step.
        RunInterrupted: the user stopped it; the run is saved.
    """
    started = time.perf_counter()
    settings = settings_for(options)
    check_backend()
    listeners = CallbackList(callbacks)
    listeners.on_stage("loading the teacher", None)
    teacher = teacher_of(settings)
    settings = settings_for(options, teacher)
    warnings = check_prompt(teacher, settings.prompt)
    trainer = make_trainer(settings, teacher, reference_picture(settings))
    run = Run.create(options.out, slug(settings.prompt), settings.objective, settings)
    with run.lock():
        return run_to_end(run, trainer, callbacks, warnings, started)


def resume(path: str, callbacks: Sequence[Callback] = (), out_root: str = "outputs") -> GenerateResult:
    """Continue a run from its last good checkpoint, or finish one that lacks its exports.

    Args:
        path: run folder, or "latest".
        callbacks: who is told.
        out_root: where "latest" looks.

    Raises:
        DreamkitError: no such run, or one that can't be continued.
    """
    started = time.perf_counter()
    run = Run.open(path, out_root)
    with run.lock():
        settings = settings_from_config(run.config)
        CallbackList(callbacks).on_stage("loading the teacher", None)
        teacher = teacher_of(settings)
        trainer = make_trainer(settings, teacher, reference_picture(settings), load_start(run, settings))
        return run_to_end(run, trainer, callbacks, check_prompt(teacher, settings.prompt), started)


def save_start(run: Run, scene: TrainableScene) -> None:
    """Keep what a run starts from, so that it can be resumed without what it came from."""
    save_checkpoint(run.path / _START, 0, scene.state())


def load_start(run: Run, settings: SceneSettings) -> TrainableScene | None:
    """What a run starts from; `None` for what its settings say.

    Raises:
        CheckpointError: it is damaged.
    """
    if not (run.path / _START).is_dir():
        return None
    return scene_from_state(settings, load_latest(run.path / _START)[0].tensors)


def run_to_end(
    run: Run,
    trainer: SceneTrainer | StagedTrainer,
    callbacks: Sequence[Callback],
    warnings: list[str],
    started: float,
) -> GenerateResult:
    """Optimise from wherever the run is, then render, export and score."""
    writers = [LogWriter(run.log_file), MetricsWriter(run.metrics_file, stage=OPTIMISING)]
    listeners = CallbackList([*callbacks, *writers])
    listeners.on_run(run.path)
    settings = trainer.settings
    warnings = warnings + restore(trainer, run)
    if settings.preview_every:
        listeners.callbacks.append(Previews(run.path, trainer, settings.preview_every, OPTIMISING))
    for warning in warnings:
        listeners.on_message("warning", warning)
    optimise(trainer, run, listeners)
    scene = trainer.scene.to("cpu")
    render_scene(scene, run.renders, listeners)
    listeners.on_stage("exporting", None)
    exports = export_assets(scene, run.exports, warnings, listeners)
    for index, particle in enumerate(trainer.particles[1:], start=1):
        other = particle.scene.to("cpu")
        render_scene(other, run.renders / f"particle-{index}", listeners)
        export_assets(other, run.exports / f"particle-{index}", warnings, listeners)
    listeners.on_stage("scoring", None)
    scores = _score(scene, settings.prompt, warnings, listeners)
    seconds = time.perf_counter() - started
    result = GenerateResult(
        run.path, exports, seconds, settings.total_steps, peak_rss_mb(), scores, warnings, trainer.calls
    )
    listeners.on_end(result)
    return result


def reference_picture(settings: SceneSettings) -> torch.Tensor | None:
    """The reference picture of the settings, [3, H, W].

    It is the one they name (an objective that reads none will refuse it); for an objective that reads one it may also
    be the single picture that the scene must agree with.
    """
    single = settings.anchors.pictures
    if not settings.reference and single and not settings.anchors.is_set:
        reads = objective_class(settings.objective).reads_reference
        settings = replace(settings, reference=single if reads else "")
    if not settings.reference:
        return None
    from dreamkit.scenes.pictures import read_image

    return read_image(Path(settings.reference).expanduser())


def export_assets(scene: TrainableScene, folder: Path, warnings: list[str], listeners: Callback) -> dict[str, Path]:
    """Write the splat and the mesh; a scene too thin for a surface keeps its splat, with a warning."""
    exports = {"ply": export_format(scene, folder, "ply")[0]}
    try:
        exports["glb"] = export_format(scene, folder, "glb")[0]
    except SceneError as error:
        _warn(f"No mesh was written: {error}", warnings, listeners)
    return exports


def _score(scene: TrainableScene, prompt: str, warnings: list[str], listeners: Callback) -> dict[str, float | None]:
    """Scores by the judge; without a judge the asset is still there, with a warning."""
    try:
        return score_scene(scene, prompt)
    except TeacherError as error:
        _warn(f"The asset was not scored: {error}", warnings, listeners)
        return {}


def _warn(text: str, warnings: list[str], listeners: Callback) -> None:
    warnings.append(text)
    listeners.on_message("warning", text)


def restore(trainer: SceneTrainer | StagedTrainer | FitTrainer, run: Run) -> list[str]:
    """Load the run's last good checkpoint, if it has any; returns what the user should know."""
    if not list_checkpoints(run.checkpoints):
        run.rewind_metrics(0)
        return []
    checkpoint, warnings = load_latest(run)
    trainer.load_state(checkpoint.tensors, checkpoint.step)
    run.rewind_metrics(checkpoint.step)
    return warnings


def optimise(trainer: SceneTrainer | StagedTrainer | FitTrainer, run: Run, listeners: Callback) -> None:
    """Step to the end, saving on the way; a Ctrl-C saves and raises `RunInterrupted`."""
    settings, total = trainer.settings, trainer.settings.total_steps
    if trainer.step_index >= total:
        return
    listeners.on_stage(OPTIMISING, total)
    with guard_interrupts() as interrupt:
        while trainer.step_index < total:
            shows_target = listeners.wants("target", trainer.step_index + 1, total)
            result = trainer.step(shows_target)
            done = trainer.step_index
            for name, image in (("view", result.image), ("target", result.target)):
                if image is not None:
                    listeners.on_image(name, image)
            listeners.on_step(done, total, result.metrics)
            last, stop = done == total, interrupt.requested  # read once: a Ctrl-C may come while the step is saved
            if last or stop or done % settings.checkpoint_every == 0:
                save_checkpoint(run.checkpoints, done, trainer.state())
            if stop and not last:
                raise RunInterrupted(run.path, done)


def load_scene(run: Run, listeners: Callback | None = None) -> TrainableScene:
    """The scene of a run's last good checkpoint.

    Args:
        run: the run.
        listeners: told of checkpoints that were passed over.

    Raises:
        DreamkitError: the run has no checkpoint, or is of another kind.
    """
    return load_scene_and_stage(run, listeners)[0]


def load_scene_and_stage(run: Run, listeners: Callback | None = None) -> tuple[TrainableScene, SceneChoice]:
    """The same as `load_scene`, with the settings of the stage (or the fit) that the scene is of."""
    settings = None if is_fit(run.config) else settings_from_config(run.config)
    checkpoint, warnings = load_latest(run)
    for warning in warnings:
        (listeners or LogWriter(run.log_file)).on_message("warning", warning)
    state = {name.removeprefix("scene/"): t for name, t in checkpoint.tensors.items() if name.startswith("scene/")}
    if not state:
        raise CheckpointError(f"The checkpoint of {run.path} holds no scene.", "Is it of another kind of run?")
    stage: SceneChoice
    stage = fit_settings(run.config) if settings is None else settings.stages[stage_at(settings, checkpoint.step)[0]]
    return scene_from_state(stage, state), stage


def render(
    path: str, callbacks: Sequence[Callback] = (), out_root: str = "outputs", film: FilmConfig | None = None
) -> dict[str, Path]:
    """Render a run from its last checkpoint.

    Args:
        path: run folder, or "latest".
        callbacks: who is told.
        out_root: where "latest" looks.
        film: what to film and how; without it the turntable and the contact sheet are rendered again.

    Returns:
        Name -> file; the names of a film are its styles.

    Raises:
        DreamkitError: no such run, one without a scene, or a film that can't be made.
    """
    run = Run.open(path, out_root)
    listeners = CallbackList(callbacks)
    scene = load_scene(run, listeners)
    if film is None:
        return render_scene(scene, run.renders, listeners)
    return render_films(scene.to(resolve_device(film.device)), film, run.renders, listeners)


def export(path: str, kind: str, out_root: str = "outputs") -> Path:
    """Export a run's scene in a format; returns the file."""
    return convert(path, kind, out_root)[0]


def convert(
    path: str, kind: str, out_root: str = "outputs", options: AssetOptions | None = None
) -> tuple[Path, MeshFigures | None]:
    """Export a run's scene in a format, as the options say; returns the file, and the figures of a mesh."""
    run = Run.open(path, out_root)
    return export_format(load_scene(run), run.exports, kind, options)


def evaluate(path: str, out_root: str = "outputs") -> dict[str, float | None]:
    """Score a run's scene against its prompt."""
    run = Run.open(path, out_root)
    return score_scene(load_scene(run), settings_from_config(run.config).prompt)


def sample(
    prompt: str,
    teacher: str = EMBEDDED,
    count: int = 16,
    steps: int = 50,
    guidance: float = 4.0,
    seed: int = 0,
    device: str = "auto",
    out: str = "outputs",
    negative: str = "",
) -> tuple[Path, list[str]]:
    """Draw 2D samples of a teacher into a grid PNG.

    Returns:
        The file, and warnings about the prompt.

    Raises:
        DreamkitError: a bad prompt, teacher or number.
    """
    from dreamkit.scenes.pictures import contact_sheet

    prompt, negative = clean_prompt(prompt), clean_prompt(negative, allow_empty=True)
    if not 1 <= count <= 256 or not 1 <= steps <= 1000:
        raise ConfigError(f"{count} samples of {steps} steps can't be drawn.", "Use 1 to 256 samples, 1 to 1000 steps.")
    loaded = load_teacher(teacher, device)
    warnings = check_prompt(loaded, prompt)
    generator = torch.Generator().manual_seed(seed)
    images = [
        loaded.sample([prompt] * min(16, count - start), steps, guidance, generator, negative=negative).cpu()
        for start in range(0, count, 16)
    ]
    path = Path(out).expanduser() / "samples" / f"{slug(prompt)}-{seed}.png"
    columns = max(1, round(count**0.5))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path.parent, error) from error
    contact_sheet(torch.cat(images), path, columns=columns)
    return path, warnings
