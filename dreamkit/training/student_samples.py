"""What a student streams, drawn: the same chunks as `dreamkit stream` makes them, over a cache or from a buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.toyworld.motion import relative_cameras
from dreamkit.training.video_clips import ClipPool
from dreamkit.training.video_teacher import PAIRS_SHOWN, draw_pairs
from dreamkit.video.buffer_stream import new_denoiser
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import source_chunk, sources, targets
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
    source: Tensor | None = None,  # [B, C, F, h, w]
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
        source: latents of videos that are filmed again, by a model that does that.

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
        made = []
        with denoiser.precision():
            for chunk in range(chunks):
                part = None if own is None else _controls_of(own, config, chunk)
                beside = None
                if source is not None:
                    beside = source_chunk(source[row : row + 1], chunk * config.chunk, config.chunk)
                made.append(denoiser.next(part, beside))
        streams.append(torch.cat(made, dim=2))
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


def draw_refilmed(student: VideoTeacher, config: StreamConfig, pool: ClipPool, frames: int, picture: Path) -> None:
    """Draw clips of a pool of pairs into a PNG, as `draw_pairs` does, filmed again by a student."""
    chunks = -(-frames // config.chunk)
    clips = pool.draw(PAIRS_SHOWN, frames, torch.Generator())
    pad = (0, 0, 0, chunks * config.chunk - frames)
    controls = Controls(functional.pad(targets(clips.cameras, 1), pad))
    made = sample_student(student, config, clips.captions, chunks, 0, controls, sources(clips.latents))
    draw_pairs(student, clips, made[:, :, :frames].cpu(), picture)
