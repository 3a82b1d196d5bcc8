"""How a mesh scene starts, is lit, learns and is kept smooth: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from dreamkit.checks import one_of
from dreamkit.config import Schedule
from dreamkit.scenes.field_config import FieldConfig
from dreamkit.scenes.rendering import BackgroundMode


@dataclass(frozen=True)
class MeshSceneConfig(FieldConfig):
    """How a mesh scene starts, is lit, learns and is kept smooth.

    Lengths are world units. Schedules take any form of `Schedule.parse`. Rates of 0 for distances and offsets leave the
    shape as it is, and only its paint learns.
    """

    kind: ClassVar[str] = "mesh"

    resolution: int = 40
    """Cells of the tetrahedral grid along an axis of the cube, 8 to 128."""
    radius: float = 0.5
    """A mesh from nothing starts as the sphere of this radius."""
    background: BackgroundMode = "neutral"
    """Behind the scene in training, as for Gaussians."""
    lambertian_share: Schedule = field(default=Schedule.constant(0.3))
    """Share of training views that are lit by a lamp near the camera, 0 to 1: shape shows in nothing else but its
    outline."""
    distances_rate: Schedule = field(default=Schedule(0.0, 5e-2, 5e-3, 1.0, "exponential"))
    """Learning rate of the signed distances, cells a step."""
    offsets_rate: Schedule = field(default=Schedule(0.0, 2e-2, 2e-3, 1.0, "exponential"))
    """Learning rate of the grid's offsets, cells a step."""
    smoothness_weight: Schedule = field(default=Schedule.constant(1000.0))
    """Weight of mean (1 - n_a . n_b) over the edges between faces a and b."""
    floater_weight: Schedule = field(default=Schedule.constant(100.0))
    """Weight of the cross-entropy between the signs at the two ends of every edge that the surface crosses."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("The mesh's background", self.background, get_args(BackgroundMode))
        self.require("resolution", 8 <= self.resolution <= 128, "a whole number from 8 to 128")
        self.require("radius", 0 < self.radius < self.half, f"above 0 and below half, {self.half:g}")
