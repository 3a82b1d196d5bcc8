"""A video filmed again from another camera: every frame is made beside the one of a source video.

    s_0 t_0 s_1 t_1 s_2 t_2 ...

A source frame s is clean (noise level 0) and has no camera, a row of zeros; the target t after it has a noise level,
and its camera is relative to that of the first source frame. So the two are told apart by what the network sees anyway.
Chunks, sink and window hold whole pairs: what is true of clips and streams of any length without a source stays true.
(Cross-frame in-context learning: Xu et al., "RealCam", arXiv 2605.06051.)
"""

from __future__ import annotations

import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor

from dreamkit.checks import require
from dreamkit.video.controls import POSE_DIM, Controls


def interleave(source: Tensor, target: Tensor, dim: int = 2) -> Tensor:
    """Pairs s_0 t_0 s_1 t_1 ... along an axis that is then twice as long.

    Raises:
        ConfigError: tensors of different shapes.
    """
    shapes = list(source.shape), list(target.shape)
    require("The source's shape", shapes[0] == shapes[1], shapes[0], f"{shapes[1]}, as the target's")
    return torch.stack([source, target], dim=dim + 1).flatten(dim, dim + 1)


def sources(pairs: Tensor, dim: int = 2) -> Tensor:
    """The source frames of pairs (a view)."""
    return pairs.unflatten(dim, (-1, 2)).select(dim + 1, 0)


def targets(pairs: Tensor, dim: int = 2) -> Tensor:
    """The target frames of pairs (a view)."""
    return pairs.unflatten(dim, (-1, 2)).select(dim + 1, 1)


def target_levels(levels: Tensor) -> Tensor:
    """Noise levels [B, 2 F] with those of the source frames 0."""
    return interleave(torch.zeros_like(targets(levels, 1)), targets(levels, 1), 1)


def paired_stream(stream: Stream) -> Stream:
    """A stream of pairs for one of frames: twice the chunk, sink and window."""
    return Stream(stream.height, stream.width, 2 * stream.chunk, 2 * stream.sink, 2 * stream.window)


def source_chunk(
    latents: Tensor,  # [1, C, F, h, w]
    start: int,
    frames: int,
) -> Tensor:
    """Frames start to start + frames of a source [1, C, frames, h, w]; after its end its last one stands still."""
    places = torch.arange(start, start + frames, device=latents.device).clamp(max=latents.shape[2] - 1)
    return latents[:, :, places]


def paired_controls(controls: Controls | None, batch: int, frames: int) -> Controls:
    """Controls of pairs [B, 2 F]: those of the targets beside a source that has none.

    Args:
        controls: of F target frames; without a camera they are seen from where the first source frame was.
        batch: B.
        frames: F.

    Raises:
        ConfigError: tracks, which pairs know nothing of.
    """
    require("The tracks of pairs", controls is None or controls.tracks is None, "given", "none: steer the camera")
    camera = None if controls is None else controls.camera
    if camera is None:
        camera = torch.eye(3, 4).flatten().expand(batch, frames, POSE_DIM)
    return Controls(interleave(torch.zeros_like(camera), camera, 1))
