"""A stand-in for the moving toy world: coloured squares on gray, made in no time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit.toyworld.motion import Clips, MotionConfig
from dreamkit.training import video_clips, video_teacher
from dreamkit.training.video_clips import PoolRecipe

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.1), "blue": (0.1, 0.1, 0.9)}
CONFIG = MotionConfig(frames=6, size=16, points=3)
NETWORK: dict[str, Any] = {
    **video_teacher.NETWORK,
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 32,
    "num_layers": 2,
    "text_dim": 32,
    "freq_dim": 16,
}
"""The video teacher's settings, tiny."""


class SquareWorld:
    """A square that moves to the right, a step of one pixel a frame; the camera moves along x."""

    def __init__(self, path: Path, config: MotionConfig, hold_out: bool = True) -> None:
        self.config = config

    def sample(self, count: int, generator: torch.Generator, frames: int | None = None) -> Clips:
        length, size = frames or self.config.frames, self.config.size
        pictures = torch.full((count, length, 3, size, size), 0.5)
        shapes = torch.zeros(count, length, 4, size, size)
        captions = []
        for clip in range(count):
            name = list(COLOURS)[int(torch.randint(3, (), generator=generator))]
            row, column = torch.randint(size - 6, (2,), generator=generator).tolist()
            captions.append(f"a {name} cube sliding to the right")
            for frame in range(length):
                place = pictures[clip, frame, :, row : row + 6, column + frame : column + frame + 6]
                place[:] = torch.tensor(COLOURS[name])[:, None, None]
                shapes[clip, frame, ::3, row : row + 6, column + frame : column + frame + 6] = 1.0  # faces the camera
        poses = torch.eye(3, 4).repeat(count, length, 1, 1)
        poses[..., 0, 3] = 3 + torch.arange(length)
        tracks = torch.rand(count, length, self.config.points, 2, generator=generator)
        visible = torch.rand(tracks.shape[:3], generator=generator) < 0.8
        quarter = torch.nn.functional.avg_pool2d(shapes.flatten(0, 1), 4).unflatten(0, (count, length))
        return Clips(pictures, captions, poses.flatten(2), tracks, visible, [], quarter)

    def sample_pairs(
        self, count: int, generator: torch.Generator, loops: float = 0.5, frames: int | None = None
    ) -> Clips:
        """The same from two cameras: the first stands still, before the second the square stays where it was."""
        clips = self.sample(count, generator, frames)
        length = clips.frames.shape[1]

        def beside(items: torch.Tensor) -> torch.Tensor:
            """Every frame moved to the left by as much as the square has moved."""
            return torch.stack([items[:, frame].roll(-frame, dims=-1) for frame in range(length)], dim=1)

        def turns(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return torch.stack([first, second], dim=2).flatten(1, 2)

        still = clips.cameras[:, :1].expand_as(clips.cameras)
        return Clips(
            turns(clips.frames, beside(clips.frames)),
            clips.captions,
            turns(still, clips.cameras),
            turns(clips.tracks, clips.tracks),
            turns(clips.visible, clips.visible),
            [],
            turns(clips.shapes, clips.shapes),
        )


def use_squares(patch: pytest.MonkeyPatch) -> None:
    """Let trainings of the video teacher have this world, in this process, and a tiny network."""
    patch.setattr(video_clips, "MotionWorld", SquareWorld)
    patch.setattr(video_clips, "_start", fill_here)
    patch.setattr(video_teacher, "build_motion_cache", build_nothing)
    patch.setattr(video_teacher, "NETWORK", NETWORK)


def build_nothing(config: MotionConfig, folder: Path, workers: int = 2) -> Path:
    """Instead of `build_motion_cache`."""
    return folder / "motion-none.safetensors"


def fill_here(recipe: PoolRecipe, place: Path, workers: int) -> list[Any]:
    """Instead of processes: fill the pool at once."""
    before = signal.getsignal(signal.SIGINT)
    for worker in range(workers):
        video_clips._fill(recipe, place, worker, workers)
    signal.signal(signal.SIGINT, before)
    return []


def write_autoencoder(folder: Path) -> Path:
    """A tiny random autoencoder of frames: 4 channels, a fourth of the side."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 0),
        num_decoder_blocks=(1, 0, 0),
    ).save_pretrained(folder)
    return folder
