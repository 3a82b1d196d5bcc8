"""A fit end to end: a folder of posed pictures in, a run folder with pictures, assets and scores out."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dreamkit.captures import CaptureSet, read_capture_set
from dreamkit.diffusion.loading import resolve_device
from dreamkit.errors import RunError
from dreamkit.files import write_json
from dreamkit.runs import Run
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.rendering import check_backend
from dreamkit.scenes.trainable import Moment, TrainableScene
from dreamkit.training.callbacks import Callback, CallbackList, LogWriter, MetricsWriter
from dreamkit.training.deliver import render_scene
from dreamkit.training.fit import FitTrainer, difference, held_out_scores, on_device
from dreamkit.training.fit_settings import FitSettings, fit_settings, is_fit
from dreamkit.training.generate import OPTIMISING, export_assets, optimise, peak_rss_mb, restore
from dreamkit.training.latent_space import shared_teacher
from dreamkit.training.particles import seeded
from dreamkit.training.poses import aligned

CAMERAS_FILE = "cameras.json"
SCORES_FILE = "scores.json"
_ALIGN_STEPS = 100  # in which a held-out view is seen
_MEASURE_STREAM = 6
_NO_MASKS = (
    "No picture of the set is transparent anywhere, and none has a mask: what stands behind the subject is fitted as "
    "part of it. Cut-outs (RGBA) or masks give a cleaner asset."
)


@dataclass(frozen=True)
class FitResult:
    """What a finished fit left.

    Args:
        run: its folder.
        exports: format -> file.
        seconds: wall time of this process on it.
        steps: optimisation steps of the run.
        peak_rss_mb: largest resident memory of this process, MB.
        views: for training, and held out.
        size: width and height of the pictures as fitted.
        scores: psnr_training, ssim_training; psnr and ssim on held-out views with the poses given; where poses were
            corrected, psnr_aligned and ssim_aligned after those of the held-out views were too, and what they and the
            training views moved by.
        warnings: what the user should know.
    """

    run: Path
    exports: dict[str, Path]
    seconds: float
    steps: int
    peak_rss_mb: float
    views: tuple[int, int]
    size: tuple[int, int]
    scores: dict[str, float]
    warnings: list[str] = field(default_factory=list)


def fit(settings: FitSettings, out: str = "outputs", callbacks: Sequence[Callback] = ()) -> FitResult:
    """Fit a scene to a set of posed pictures.

    Args:
        settings: what to fit to, and how.
        out: where run folders go.
        callbacks: who is told.

    Raises:
        DreamkitError: anything the user can mend; nothing is left behind by what fails before the first step.
        RunInterrupted: the user stopped it; the run is saved.
    """
    started = time.perf_counter()
    check_backend("gaussian_rasterize" if settings.scene == "gaussians" else "hash_grid")
    device = resolve_device(settings.device)
    settings = replace(settings, data=str(Path(settings.data).expanduser().absolute()))
    if settings.scene == "latent-nerf":
        CallbackList(callbacks).on_stage("loading the teacher", None)
        settings = _as_large_as_decoded(settings)
    found = _read(settings, CallbackList(callbacks))
    trainer = FitTrainer(settings, found.training, device, found.points, found.colors)
    run = Run.create(out, _slug(settings.data), "fit", settings)
    with run.lock():
        return _run(run, trainer, found, callbacks, started)


def resume_fit(path: str, callbacks: Sequence[Callback] = (), out_root: str = "outputs") -> FitResult:
    """Continue a fit from its last good checkpoint, or finish one that lacks its exports.

    Args:
        path: run folder, or "latest".
        callbacks: who is told.
        out_root: where "latest" looks.

    Raises:
        DreamkitError: no such run, one that is no fit, or whose pictures are gone.
    """
    started = time.perf_counter()
    run = Run.open(path, out_root)
    if not is_fit(run.config):
        raise RunError(f"{run.path} is no fit to pictures.", "Continue it with `dreamkit resume`.")
    with run.lock():
        settings = fit_settings(run.config)
        found = _read(settings, CallbackList(callbacks))
        trainer = FitTrainer(settings, found.training, resolve_device(settings.device), found.points, found.colors)
        return _run(run, trainer, found, callbacks, started)


def _read(settings: FitSettings, listeners: Callback) -> CaptureSet:
    """The pictures, with progress."""
    listeners.on_stage("reading the pictures", None)
    return read_capture_set(settings.data, settings.captures, lambda done, total: listeners.on_step(done, total, {}))


def _as_large_as_decoded(settings: FitSettings) -> FitSettings:
    """The settings with pictures no larger than those of the teacher: a latent scene has no more detail."""
    size = max(16, min(settings.captures.max_size, shared_teacher(settings.teacher, settings.device).image_size))
    return replace(settings, captures=replace(settings.captures, max_size=size))


def _slug(data: str) -> str:
    """The set's folder as a folder name."""
    path = Path(data)
    name = path.parent.name if path.suffix == ".json" else path.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-") or "capture"


def _run(run: Run, trainer: FitTrainer, found: CaptureSet, callbacks: Sequence[Callback], started: float) -> FitResult:
    """Optimise from wherever the run is, then measure, render and export."""
    writers = [LogWriter(run.log_file), MetricsWriter(run.metrics_file, stage=OPTIMISING)]
    listeners = CallbackList([*callbacks, *writers])
    listeners.on_run(run.path)
    warnings = restore(trainer, run) + ([] if found.masked else [_NO_MASKS])
    for warning in warnings:
        listeners.on_message("warning", warning)
    optimise(trainer, run, listeners)
    listeners.on_stage("measuring", None)
    scores = measure(trainer, found.held_out)
    write_json(run.path / SCORES_FILE, scores)
    write_json(run.path / CAMERAS_FILE, camera_path(trainer.cameras(), found.names))
    scene = trainer.scene.to("cpu")
    render_scene(scene, run.renders, listeners)
    listeners.on_stage("exporting", None)
    exports = export_assets(scene, run.exports, warnings, listeners)
    cameras = found.training.cameras
    result = FitResult(
        run=run.path,
        exports=exports,
        seconds=time.perf_counter() - started,
        steps=trainer.settings.steps,
        peak_rss_mb=peak_rss_mb(),
        views=(len(cameras), 0 if found.held_out is None else len(found.held_out.cameras)),
        size=(cameras.width, cameras.height),
        scores=scores,
        warnings=warnings,
    )
    listeners.on_end(result)
    return result


def measure(trainer: FitTrainer, held_out: Capture | None) -> dict[str, float]:
    """The scores of `FitResult`.

    Args:
        trainer: after its last step.
        held_out: views that it did not see.
    """
    scene = trainer.scene
    cameras = trainer.cameras()
    seen = replace(trainer.capture, cameras=replace(cameras, camera_to_world=cameras.camera_to_world.detach()))
    scores = {f"{name}_training": value for name, value in held_out_scores(scene, seen).items()}
    if trainer.poses is not None:
        scores |= _moved("training", trainer.capture.cameras, seen.cameras)
    if held_out is None:
        return scores
    held_out = on_device(held_out, trainer.device)
    scores |= held_out_scores(scene, held_out)
    if trainer.poses is None:
        return scores
    moved = replace(held_out, cameras=align(scene, trainer.settings, held_out))
    scores |= {f"{name}_aligned": value for name, value in held_out_scores(scene, moved).items()}
    return scores | _moved("held_out", held_out.cameras, moved.cameras)


def align(scene: TrainableScene, settings: FitSettings, views: Capture) -> Camera:
    """The cameras of views that the scene was not fitted to, moved to where it looks most like them."""
    # Of a NeRF every call sees all views; of Gaussians and latents, one.
    steps = _ALIGN_STEPS * (1 if settings.scene in ("nerf", "sdf") else len(views.cameras))
    loss_of = difference(settings, views)
    scene = scene.to(scene.device)  # a copy: its gradients are nobody's
    for parameter in scene.parameters_dict().values():
        parameter.requires_grad_(False)
    count = 0

    def loss(cameras: Camera) -> torch.Tensor:
        nonlocal count
        count += 1
        return loss_of(scene, cameras, Moment(1.0, settings.steps, seeded(settings.seed, _MEASURE_STREAM, count)))[0]

    return aligned(views.cameras, loss, steps)


def _moved(name: str, given: Camera, now: Camera) -> dict[str, float]:
    """Root mean square of how far cameras moved, in degrees and world units."""
    turn = now.camera_to_world[:, :3, :3] @ given.camera_to_world[:, :3, :3].transpose(1, 2)
    # |R - I|^2 = 8 sin^2(a / 2): exact for small angles, where the trace is not.
    chord = (turn - torch.eye(3, device=turn.device)).square().sum(dim=(1, 2)).div(8).sqrt().clamp_max(1)
    degrees = torch.rad2deg(2 * torch.asin(chord))
    distance = (now.position - given.position).norm(dim=1)
    return {
        f"turned_{name}": float(degrees.square().mean().sqrt()),
        f"shifted_{name}": float(distance.square().mean().sqrt()),
    }


def camera_path(cameras: Camera, names: Sequence[str]) -> dict[str, Any]:
    """The training views as a path that `dreamkit render --path` takes: where the pictures were taken."""
    frames = [
        {"camera_to_world": pose.flatten().tolist(), "fov": fov, "name": name}
        for pose, fov, name in zip(cameras.camera_to_world.detach().cpu(), cameras.fov_y.tolist(), names, strict=False)
    ]
    return {"render_height": cameras.height, "render_width": cameras.width, "camera_path": frames}
