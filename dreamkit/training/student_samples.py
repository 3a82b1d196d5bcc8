"""What a student streams, drawn: the same chunks over the same cache as `dreamkit stream` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.rollout import ChunkDenoiser
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
        student: a causal model.
        config: of the streams.
        prompts: B sentences.
        chunks: of each stream, at least 1.
        seed: of the noise, the same for each.
        controls: of B streams of `chunks * config.chunk` latent frames, the cameras as `streamed_cameras` has them.

    Returns:
        Latents [B, C, chunks * config.chunk, h, w]; `student.decode` makes frames of them.

    Raises:
        ConfigError: a size that the model can't make.
        TeacherError: controls for a model that knows none.
    """
    streams = []
    for row, prompt in enumerate(prompts):
        own = None if controls is None else controls.rows(row, row + 1)
        denoiser = ChunkDenoiser(student, config, seed, student.encode_prompt([prompt]))
        starts = range(0, chunks * config.chunk, config.chunk)
        parts = (None if own is None else own.frames(start, start + config.chunk) for start in starts)
        with denoiser.precision():
            streams.append(torch.cat([denoiser.next(part) for part in parts], dim=2))
    return torch.cat(streams)


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
