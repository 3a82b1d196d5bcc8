"""Where a stream's student comes from: the embedded one, a folder, or random weights; and the frames it makes."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any

import torch

from dreamkit.checks import nearest_first
from dreamkit.errors import CheckpointError, ConfigError, TeacherError
from dreamkit.video.pipeline import VideoTeacher, load_video_teacher
from dreamkit.video.random_models import RANDOM_MODELS, random_student
from dreamkit.video.stream_config import StreamConfig

EMBEDDED = "embedded"
INDEX_FILE = "model_index.json"
STREAM_KEY = "dreamkit_stream"
"""Where the index of a pipeline folder says how it is streamed: fields of `StreamConfig`."""
_FOLDER = "toyworld-video-student"


def load_student(name: str = EMBEDDED, device: torch.device | str = "cpu") -> VideoTeacher:
    """Load a student.

    Args:
        name: "embedded", one of `RANDOM_MODELS`, or a folder in diffusers' layout.
        device: where it computes. On a GPU its weights are bfloat16.

    Raises:
        TeacherError: no such student, or a model of another kind.
        CheckpointError: a file is missing, damaged or doesn't fit.
    """
    if name in RANDOM_MODELS:
        return random_student(name, device)
    folder = embedded_folder() if name == EMBEDDED else Path(name)
    if not folder.is_dir():
        known = ", ".join(nearest_first(name, (EMBEDDED, *RANDOM_MODELS)))
        raise TeacherError(f"There is no folder {name!r}.", f"Give a folder in diffusers' layout, or one of: {known}.")
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    return load_video_teacher(folder, device, dtype)


def embedded_folder() -> Path:
    """The folder of the embedded student.

    Raises:
        TeacherError: this installation has none.
    """
    folder = Path(str(importlib.resources.files("dreamkit_assets"))) / _FOLDER
    if not folder.is_dir():
        raise TeacherError(
            f"The embedded video student is missing from this installation ({folder}).",
            "Give a folder that `dreamkit distill video` made, or measure with --model embedded-random.",
        )
    return folder


def read_stream_config(folder: Path) -> StreamConfig | None:
    """How a pipeline folder says it is streamed; `None` where it does not.

    Raises:
        CheckpointError: the index is missing or damaged, or its settings are none of a stream.
    """
    path = folder / INDEX_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}.", "Give a pipeline folder.") from error
    settings = content.get(STREAM_KEY) if isinstance(content, dict) else None
    if settings is None:
        return None
    try:
        given: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in settings.items()}
        return StreamConfig(**given)
    except (TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(f"The {STREAM_KEY} in {path} does not fit: {error}.", "Copy it again.") from error


def frame_size(student: VideoTeacher) -> tuple[int, int]:
    """Height and width in pixels that a student is used at where nobody asks for others."""
    if student.name in RANDOM_MODELS:
        return RANDOM_MODELS[student.name].size
    return (64, 64) if student.autoencoder.temporal_factor == 1 else (480, 832)


def frame_rate(student: VideoTeacher) -> int:
    """Frames a second of a student's videos: 12 of the moving toy world, 16 of Wan."""
    return 12 if student.autoencoder.temporal_factor == 1 else 16
