"""One cell of a comparison of video students: a model is loaded, asked and judged; clips are kept for the report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamkit.diffusion.loading import resolve_device
from dreamkit.files import write_error
from dreamkit.metrics.video_judge import VideoJudge, load_video_judge
from dreamkit.metrics.video_stream import VideoScorer
from dreamkit.runs import RunInterrupted
from dreamkit.scenes.films import write_video
from dreamkit.training.callbacks import Callback
from dreamkit.training.checkpoints import InterruptGuard, guard_interrupts
from dreamkit.training.compare_video import speed
from dreamkit.training.compare_video.measures import MEASURES, SPEED, STREAM, TEACHER, TEACHER_MEASURES
from dreamkit.training.compare_video.plan import FORMAT_VERSION, Task
from dreamkit.training.compare_video.streams import Streams, teacher_clip
from dreamkit.video.pipeline import VideoTeacher, load_video_teacher
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import frame_rate, frame_size, load_student, read_stream_config

CLIPS_FOLDER = "clips"
_SIDE = 192
"""Pixels that clips are enlarged to, by a whole number."""


def make_row(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Measure a cell.

    Args:
        task: which.
        callbacks: told of frames as steps.

    Returns:
        Its row.

    Raises:
        DreamkitError: anything the user can mend.
        RunInterrupted: the user stopped it; the cell is begun anew the next time.
    """
    started = time.perf_counter()
    with guard_interrupts() as interrupt:
        progress = _Progress(task, callbacks, interrupt)
        if task.kind == SPEED:
            found = _measured_speed(task)
        elif task.kind == TEACHER:
            found = _judged_teacher(task)
        else:
            found = _judged_student(task, progress)
        progress.check()
    seconds = {"seconds": round(time.perf_counter() - started, 2), "error": None}
    return row_head(task) | dict.fromkeys(measure.name for measure in MEASURES) | found | seconds


def row_head(task: Task) -> dict[str, Any]:
    """The part of a row that says what it is about."""
    created = datetime.now(UTC).isoformat(timespec="milliseconds")
    motion = None if task.kind == SPEED or task.case.motion is None else " ".join(filter(None, task.case.motion))
    head = {"format_version": FORMAT_VERSION, "key": task.key, "created": created, "digest": task.digest}
    return head | task.identity | {"motion": motion, "frames": task.frames, "curve": [], "shown": task.shown}


def error_row(task: Task, text: str) -> dict[str, Any]:
    """The row of a cell that failed."""
    return row_head(task) | dict.fromkeys(measure.name for measure in MEASURES) | {"seconds": None, "error": text}


class _Progress:
    """Passes on how far a cell is, and ends it when the user wants that.

    Args:
        task: which.
        callbacks: told of it.
        interrupt: whether the user wants to stop.
    """

    def __init__(self, task: Task, callbacks: Sequence[Callback], interrupt: InterruptGuard) -> None:
        self.task, self.callbacks, self.interrupt = task, callbacks, interrupt
        self.total = self.done = 0

    def tick(self, frames: int) -> None:
        """So many more frames are done."""
        self.done += frames
        for callback in self.callbacks:
            callback.on_step(self.done, max(self.done, self.total), {})
        self.check()

    def check(self) -> None:
        """Stop, if that is wanted."""
        if self.interrupt.requested:
            raise RunInterrupted(self.task.folder)


@lru_cache(maxsize=1)
def _judge() -> VideoJudge:
    return load_video_judge()


@lru_cache(maxsize=1)
def _loaded(kind: str, source: str, digest: str, device: str) -> Any:
    """The model of the last cell, one at a time; the digest makes one that has changed since another one."""
    if kind == TEACHER:
        return load_video_teacher(Path(source), resolve_device(device))
    return load_contender(source, device)


def load_contender(source: str, device: str) -> tuple[VideoTeacher, StreamConfig]:
    """A student and how it is streamed: as its folder says, at the frame rate of its world.

    Args:
        source: `embedded`, a random model's name, or a folder.
        device: where to compute.

    Raises:
        TeacherError: no such student.
        CheckpointError: a file is missing, damaged or doesn't fit.
    """
    student = load_student(source, resolve_device(device))
    folder = Path(student.name)
    config = read_stream_config(folder) if folder.is_dir() else None
    return student, replace(config or StreamConfig(size=frame_size(student)), fps=frame_rate(student))


def _judged_student(task: Task, progress: _Progress) -> dict[str, Any]:
    student, config = _loaded(STREAM, task.source, task.digest, task.device)
    keep = partial(write_clip, task, config.fps) if task.shown else None
    streams = Streams(student, config, _judge(), task.noise_seed, progress.tick, keep)
    progress.total = streams.total(task.frames)
    numbers, curve = streams.everything(task.case, task.frames, task.seed)
    return {**numbers, "curve": curve}


def _judged_teacher(task: Task) -> dict[str, Any]:
    teacher = _loaded(TEACHER, task.source, task.digest, task.device)
    sampling = {"steps": task.steps, "guidance": task.guidance, "size": task.size}
    clip = teacher_clip(teacher, task.case.prompt, task.noise_seed, **sampling)
    scorer = VideoScorer(_judge(), task.case.prompt, task.case.motion)
    scorer.add(clip)
    scores = scorer.result()
    if task.shown:
        pixels = (255 * clip.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).contiguous()
        write_clip(task, frame_rate(teacher), "first", list(pixels))
    found: dict[str, Any] = {column: scores.get(name) for name, column in TEACHER_MEASURES.items()}
    return found | {"frames": len(clip)}


def _measured_speed(task: Task) -> dict[str, Any]:
    try:
        return dict(speed.measure_speed(task.source, task.case.plain, task.frames, task.device))
    except KeyboardInterrupt as stop:  # Ctrl-C in a terminal is for its whole group of processes
        raise RunInterrupted(task.folder) from stop


def clip_file(folder: Path, key: str, name: str) -> Path:
    """Where a clip of a row lies."""
    return folder / CLIPS_FOLDER / f"{key}-{name}.mp4"


def write_clip(task: Task, fps: int, name: str, frames: Sequence[Tensor]) -> None:
    """Write a clip of a cell, frames [H, W, 3] uint8; small ones are enlarged, so that none of their colour is lost.

    Raises:
        RunError: the system refused the write.
        SceneError: the encoder failed.
    """
    try:
        (task.folder / CLIPS_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(task.folder / CLIPS_FOLDER, error) from error
    times = max(1, _SIDE // min(frames[0].shape[:2]))
    images = (frame.permute(2, 0, 1).float() / 255 for frame in frames)
    enlarged = (image.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2) for image in images)
    write_video(enlarged, clip_file(task.folder, task.key, name), fps)
