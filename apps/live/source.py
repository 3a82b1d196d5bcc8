"""Where a live session's frames come from: a stream of a student, or whatever else has the same handle.

Nothing here loads torch before a session asks for its frames.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dreamkit.video.pipeline import VideoTeacher
    from dreamkit.video.stream_config import StreamConfig
    from dreamkit.video.stream_controls import Steering
    from dreamkit.video.stream_engine import StreamFrame
    from dreamkit.video.stream_metrics import StreamMetrics

_SNAPSHOT_MB = 128
_MAX_WORDS = 200


@dataclass(frozen=True)
class ModelInfo:
    """What a page has to know of a model."""

    name: str
    height: int
    """Of a frame, pixels."""
    width: int
    fps: int
    """Frames a second at which its videos are meant to be played."""
    has_controls: bool
    """Whether a camera and tracks steer it."""
    words: tuple[str, ...] | None
    """Words it knows, at most 200; `None` is any."""


class FrameSource(Protocol):
    """A stream and its handle, as `dreamkit.video.stream.StreamSession` is: commands may come from any thread."""

    warnings: list[str]

    def __next__(self) -> StreamFrame:
        """The next frame; waits while paused. StopIteration once it is closed."""

    @property
    def metrics(self) -> StreamMetrics:
        """Speeds and drift so far."""

    @property
    def snapshots(self) -> list[int]:
        """Frames that it can cheaply go back to."""

    def say(self, prompt: str) -> list[str]:
        """Change the prompt; returns warnings."""

    def steer(self, controls: Steering) -> None:
        """Take other controls."""

    def pause(self) -> None:
        """Hand over nothing and compute nothing."""

    def resume(self) -> None:
        """Go on."""

    def snapshot(self) -> None:
        """Keep what it takes to come back here."""

    def rewind(self, frame: int) -> None:
        """Let a frame that was read be the next one."""

    def close(self) -> None:
        """End it and wait for its threads."""


class LiveModel(Protocol):
    """What makes frame sources."""

    def info(self) -> ModelInfo:
        """What it is; may take as long as loading it does.

        Raises:
            DreamkitError: there is none, or it can't be loaded.
        """

    def open(self, prompt: str, seed: int) -> FrameSource:
        """Begin a stream.

        Raises:
            DreamkitError: a prompt that it can't use, or a model that can't be loaded.
        """


class StudentModel:
    """A causal student, loaded when the first session asks for it and shared by all.

    Args:
        name: as `load_student` takes it.
        device: where it computes, "auto" takes a GPU if there is one.
    """

    def __init__(self, name: str = "embedded", device: str = "auto") -> None:
        self.name, self.device = name, device
        self._lock = threading.Lock()
        self._loaded: tuple[VideoTeacher, StreamConfig] | None = None

    def info(self) -> ModelInfo:
        """See `LiveModel`."""
        student, config = self._load()
        words = student.text.content_words()
        height, width = config.size
        known = None if words is None else tuple(words[:_MAX_WORDS])
        return ModelInfo(self.name, height, width, config.fps, student.controls is not None, known)

    def open(self, prompt: str, seed: int) -> FrameSource:
        """See `LiveModel`."""
        from dreamkit.video.stream import StreamSession

        student, config = self._load()
        return StreamSession(student, prompt, seed=seed, config=config)

    def _load(self) -> tuple[VideoTeacher, StreamConfig]:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._read()
            return self._loaded

    def _read(self) -> tuple[VideoTeacher, StreamConfig]:
        from dreamkit.diffusion.loading import resolve_device
        from dreamkit.video import students
        from dreamkit.video.random_models import RANDOM_MODELS
        from dreamkit.video.stream_config import StreamConfig

        student = students.load_student(self.name, resolve_device(self.device))
        trained = None if student.name in RANDOM_MODELS else students.read_stream_config(Path(student.name))
        base = trained or StreamConfig(size=students.frame_size(student))
        # Threads of its own: frames are made while others are shown. Short queues: what is said shows soon.
        fps = students.frame_rate(student)
        return student, replace(base, fps=fps, overlap=True, ahead=1, snapshot_mb=_SNAPSHOT_MB)


def statistics(source: FrameSource) -> dict[str, Any]:
    """The speeds of a stream and its drift, as viewers are told."""
    metrics = source.metrics
    return {
        "type": "stats",
        "frames": metrics.frames,
        "denoise_fps": metrics.recent_denoise_fps,
        "end_to_end_fps": metrics.recent_end_to_end_fps,
        "first_frame_s": metrics.first_frame_s,
        "drift": None if metrics.drift is None else asdict(metrics.drift),
    }
