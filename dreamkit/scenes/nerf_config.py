"""How a NeRF starts, is sampled, shaded, learns and is kept in bounds: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from dreamkit.checks import one_of
from dreamkit.config import Schedule
from dreamkit.scenes.field_config import FieldConfig
from dreamkit.scenes.rendering import BackgroundMode

Geometry = Literal["density", "volsdf", "neus"]
Sampler = Literal["occupancy", "proposal"]
Normals = Literal["analytic", "finite"]
Surroundings = Literal["learned", "environment"]


@dataclass(frozen=True)
class NerfConfig(FieldConfig):
    """How a NeRF starts, is sampled, shaded, learns and is kept in bounds.

    Lengths are world units. Schedules take any form of `Schedule.parse`.
    """

    kind: ClassVar[str] = "NeRF"

    geometry: Geometry = "density"
    """What the field holds: density, or a signed distance that becomes density as in VolSDF or opacity as in NeuS."""
    density_scale: float = 10.0
    """Density of a raw value of 1, about: sigma = density_scale softplus(raw)."""
    blob: float = 4.0
    """Density mode starts as a ball of fog: blob (1 - |x| / blob_radius) is added to the raw value everywhere."""
    blob_radius: float = 0.5
    """Where the fog ends; a signed distance starts as the sphere of this radius."""
    blob_floor: float = -5.0
    """The least that the blob adds: low enough for empty space, not so low that nothing could grow there."""
    sharpness: Schedule = field(default=Schedule(0.0, 20.0, 200.0, 1.0, "exponential"))
    """1 / beta of VolSDF, s of NeuS: how quickly a signed distance turns from empty to solid, per world unit."""
    sampler: Sampler = "occupancy"
    """How rays find what is there: occupancy (a grid of what was dense) or proposal (a small field that learns it)."""
    step: float = 0.025
    """Distance between samples along a ray."""
    samples: int = 32
    """Samples a ray of the final pass of the proposal sampler; the first pass takes as many."""
    occupancy_resolution: int = 48
    """Cells along an axis of the occupancy grid, 8 to 256."""
    occupancy_interval: int = 8
    """Steps between updates of the occupancy grid, each of a quarter of its cells."""
    occupancy_decay: float = 0.9
    """What a cell keeps of its largest density at an update, 0 to 1."""
    weight_threshold: float = 1e-3
    """Samples that add less than this to their pixel get no gradient and no colour."""
    normals: Normals = "finite"
    """Normals from finite differences (smooth, cheap) or from the gradient itself (exact)."""
    background: BackgroundMode | Surroundings = "neutral"
    """Behind the scene in training: a colour as for Gaussians, learned (a network of the direction) or environment
    (a learned picture all round)."""
    surroundings_rate: Schedule = field(default=Schedule.constant(1e-3))
    """Learning rate of a learned background."""
    opacity_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of the mean binary entropy of the pixels' opacities: pixels are full or empty."""
    sparsity_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of mean sqrt(opacity^2 + 0.01): less is there."""
    orientation_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of sum w max(0, n . d)^2 a ray: what is seen faces the camera."""
    distortion_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of mip-NeRF 360's distortion: what is there lies at one depth."""
    eikonal_weight: Schedule = field(default=Schedule.constant(0.1))
    """Weight of mean (|grad f| - 1)^2 of a signed distance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("geometry", Geometry), ("sampler", Sampler), ("normals", Normals)):
            one_of(f"The NeRF's {name}", getattr(self, name), get_args(kind))
        one_of("The NeRF's background", self.background, (*get_args(BackgroundMode), *get_args(Surroundings)))
        whole = {"samples": (4, 1024), "occupancy_resolution": (8, 256), "occupancy_interval": (1, 10**6)}
        for name, (low, high) in whole.items():
            self.require(name, low <= getattr(self, name) <= high, f"a whole number from {low} to {high}")
        for name in ("density_scale", "blob_radius", "step"):
            self.require(name, 0 < getattr(self, name) < 1e6, "a positive number")
        self.require("step", self.step >= self.half / 1024, f"at least {self.half / 1024:g}")
        for name in ("occupancy_decay", "weight_threshold"):
            self.require(name, 0 <= getattr(self, name) <= 1, "0 to 1")

    @property
    def signed(self) -> bool:
        """Whether the field is a signed distance."""
        return self.geometry != "density"
