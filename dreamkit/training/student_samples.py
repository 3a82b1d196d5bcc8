"""What a student streams, drawn: the same chunks as `dreamkit stream` makes them, over a cache or from a buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.toyworld.motion import relative_cameras
from dreamkit.video.buffer_stream import new_denoiser
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.stream_config import StreamConfig

_COLUMNS = 7


def sample_student(
    student: VideoTeacher,
    config: StreamConfig,
    prompts: Sequence[str],
    chunks: int,
    seed: int = 0,
    controls: Controls | None = None,
) -> Tensor:
    """Stream prompts, one after the other.

    Args:
        student: a model that streams.
        config: of the streams.
        prompts: B sentences.
        chunks: of each stream, at least 1.
        seed: of the noise, the same for each.
        controls: of B streams of `chunks * config.chunk` latent frames, the cameras as `streamed_cameras` has them. A
            moving buffer looks ahead: there, of `(chunks + config.buffer - 1) * config.chunk` frames, the cameras as a
            clip has them.

    Returns:
        Latents [B, C, chunks * config.chunk, h, w]; `student.decode` makes frames of them.

    Raises:
        ConfigError: a size that the model can't make.
        TeacherError: controls for a model that knows none.
    """
    streams = []
    for row, prompt in enumerate(prompts):
        own = None if controls is None else controls.rows(row, row + 1)
        denoiser = new_denoiser(student, config, seed, student.encode_prompt([prompt]))
        parts = (None if own is None else _controls_of(own, config, chunk) for chunk in range(chunks))
        with denoiser.precision():
            streams.append(torch.cat([denoiser.next(part) for part in parts], dim=2))
    return torch.cat(streams)


def _controls_of(controls: Controls, config: StreamConfig, chunk: int) -> Controls:
    """What a denoiser is to obey when it makes a chunk: the chunk's controls, or those of all that is in its buffer."""
    start = chunk * config.chunk
    if not config.buffer:
        return controls.frames(start, start + config.chunk)
    part = controls.frames(max(0, start - config.reference), start + config.buffer * config.chunk)
    return part if part.camera is None else replace(part, camera=relative_cameras(part.camera))


def draw_streams(
    student: VideoTeacher, config: StreamConfig, prompts: Sequence[str], chunks: int, picture: Path
) -> None:
    """Draw streams into a PNG: a row a prompt, frames from the first to the last."""
    from dreamkit.scenes.pictures import contact_sheet

    clips = student.decode(sample_student(student, config, prompts, chunks)).cpu()
    places = torch.linspace(0, clips.shape[1] - 1, min(_COLUMNS, clips.shape[1])).round().long()
    shown = clips[:, places]
    labels = [prompt if index == 0 else "" for prompt in prompts for index in range(len(places))]
    contact_sheet(shown.flatten(0, 1), picture, columns=len(places), labels=labels)
