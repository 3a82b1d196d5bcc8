"""How a set of posed pictures is read: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dreamkit.checks import one_of, require

Normalise = Literal["auto", "never"]
Up = Literal["auto", "y", "z"]

EVERY = 8
"""Without a split of its own, every so manieth view of a set is held out (as mip-NeRF 360 and its successors do)."""


@dataclass(frozen=True)
class CaptureOptions:
    """How a set of posed pictures is read."""

    max_size: int = 512
    """Longest side of the pictures in pixels, 16 to 4096; larger ones are scaled down, smaller ones left."""
    hold_out: int | None = None
    """Keep every so manieth view for measuring, 2 or more; 0 keeps none. By default the set's own test views, or every
    8th."""
    normalise: Normalise = "auto"
    """auto: turn, shift and scale the cameras so that the subject lies about the origin in the unit sphere with cameras
    near radius 3, unless it does; never: take them as they are."""
    up: Up = "auto"
    """Axis that is up in the files' world: y, z or auto (z for transforms.json, estimated for COLMAP)."""
    background: float = 0.5
    """Gray level that transparent pixels are laid over, 0 to 1."""

    def __post_init__(self) -> None:
        require("max_size", 16 <= self.max_size <= 4096, self.max_size, "a whole number from 16 to 4096")
        held = self.hold_out
        require("hold_out", held is None or held == 0 or 2 <= held <= 10**6, held, "0 or a whole number from 2")
        one_of("normalise", self.normalise, get_args(Normalise))
        one_of("up", self.up, get_args(Up))
        require("background", 0 <= self.background <= 1, self.background, "0 to 1")
