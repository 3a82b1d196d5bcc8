"""Posed pictures of something: what a scene is fitted to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dreamkit.scenes.cameras import Camera


@dataclass(frozen=True)
class Capture:
    """V views of something.

    Args:
        cameras: V cameras.
        images: [V, 3, H, W] in [0, 1], over the background.
        alphas: [V, 1, H, W] coverage in [0, 1].
        background: [3] colour.
    """

    cameras: Camera
    images: Tensor
    alphas: Tensor
    background: Tensor
