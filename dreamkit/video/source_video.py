"""A video to film again: read from a file, and made latents of."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.checks import require, require_integer
from dreamkit.errors import ConfigError
from dreamkit.video.autoencoders import VideoAutoencoder

_PART = 32
"""Frames that are made latents of at once, where a frame knows no other: their activations take most of the memory."""


def read_video(path: Path | str, size: tuple[int, int], frames: int) -> Tensor:
    """The first frames of a video file, their middle cut out in the shape of `size` and scaled to it.

    Args:
        path: anything that ffmpeg reads.
        size: height and width in pixels.
        frames: how many at most, at least 1; they are the file's own, whatever its frames a second.

    Returns:
        [F, 3, H, W] float32 in [0, 1].

    Raises:
        ConfigError: no such file, or none that is a video.
    """
    import imageio.v3

    require_integer("The number of frames", frames, 1)
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no file {file}.", "Give a video, for example an .mp4.")
    made = []
    try:
        for picture in imageio.v3.imiter(file, plugin="FFMPEG"):
            made.append(_fitted(torch.from_numpy(picture.copy()), size))
            if len(made) == frames:
                break
    # The reader raises whatever the layer below it does.
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise ConfigError(f"{file} can't be read as a video: {reason[0]}.", "Give an .mp4, .mkv or .webm.") from error
    require("The number of frames in the video", len(made) > 0, 0, "at least 1")
    return torch.stack(made)


def _fitted(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """[h, w, 3] uint8 to [3, H, W] in [0, 1]."""
    height, width = picture.shape[:2]
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(1, min(own, round(scale * side))) for own, side in zip((height, width), size, strict=True))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = picture[top : top + rows, left : left + columns].permute(2, 0, 1)[None].float() / 255
    return functional.interpolate(middle, size, mode="bilinear", antialias=True)[0].clamp(0, 1)


@torch.no_grad()
def encode_source(autoencoder: VideoAutoencoder, frames: Tensor, size: tuple[int, int]) -> Tensor:
    """Latents [1, C, F', h, w] of a whole video; where it is too short for a last latent frame it stands still.

    Args:
        autoencoder: of the model.
        frames: [F, 3, H, W] in [0, 1], F at least 1.
        size: height and width that the stream has.

    Raises:
        ConfigError: frames of another shape.
    """
    shape = list(frames.shape)
    fits = frames.ndim == 4 and shape[0] > 0 and shape[1:] == [3, *size]
    require("The source's shape", fits, shape, f"[frames, 3, {size[0]}, {size[1]}], at least one frame")
    stride = autoencoder.temporal_factor
    if stride == 1:
        return torch.cat([autoencoder.encode(part[None]) for part in frames.split(_PART)], dim=2)
    missing = -(len(frames) - 1) % stride
    return autoencoder.encode(torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])[None])
