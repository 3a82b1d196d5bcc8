"""How a Gaussian scene starts, learns and is kept in bounds: one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dreamkit.checks import one_of, require
from dreamkit.config import Schedule
from dreamkit.scenes.rendering import BackgroundMode

Initialisation = Literal["sphere", "points", "shape"]

_SCHEDULES = (
    "means_rate",
    "scales_rate",
    "quaternions_rate",
    "opacities_rate",
    "colors_rate",
    "sh_rest_rate",
    "sparsity_weight",
    "entropy_weight",
    "size_weight",
    "needle_weight",
)


@dataclass(frozen=True)
class GaussianConfig:
    """How a Gaussian scene starts, learns and is kept in bounds. Schedules take any form of `Schedule.parse`."""

    count: int = 2000
    """Gaussians at the start; at most this many points of a given cloud are used. At least 1."""
    initialisation: Initialisation = "sphere"
    """Where they start: sphere (a ball of fog), points (a given cloud) or shape (discs on given normals)."""
    initial_radius: float = 0.6
    """Radius of the ball of the sphere initialisation, world units."""
    initial_scale: float = 0.6
    """Standard deviation at the start, as a share of the distance between neighbours."""
    initial_opacity: float = 0.1
    """Opacity at the start, above 0 and below 1: fog for sphere; a given shape wants about 0.9."""
    initial_color: float = 0.5
    """Gray level at the start where no colours are given, between 0 and 1."""
    initial_color_noise: float = 0.1
    """Half the range of the random offset on each colour channel at the start."""
    flatness: float = 0.2
    """Thickness of the discs of the shape initialisation, as a share of their width, above 0, at most 1."""
    sh_degree: int | None = None
    """View-dependent colour by spherical harmonics of this degree, 0 to 3; none: one plain RGB colour each."""
    background: BackgroundMode = "random"
    """Behind the scene in training: black, white, gray, neutral (a new gray a view) or random (a new colour a view)."""
    antialiased: bool = False
    """Scale opacities by the projected area, so that far or thin Gaussians do not grow in small images."""
    means_rate: Schedule = field(default=Schedule(0.0, 1e-2, 1e-3, 1.0, "exponential"))
    """Learning rate of positions, world units a step."""
    scales_rate: Schedule = field(default=Schedule.constant(1e-2))
    """Learning rate of log-scales."""
    quaternions_rate: Schedule = field(default=Schedule.constant(1e-2))
    """Learning rate of quaternions."""
    opacities_rate: Schedule = field(default=Schedule.constant(5e-2))
    """Learning rate of opacity logits."""
    colors_rate: Schedule = field(default=Schedule.constant(5e-2))
    """Learning rate of plain colour logits and of the constant spherical harmonic."""
    sh_rest_rate: Schedule = field(default=Schedule.constant(2.5e-3))
    """Learning rate of the view-dependent spherical harmonics."""
    adam_betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the first and second moment, each from 0 to below 1."""
    adam_epsilon: float = 1e-15
    """Adam's term against division by zero; tiny, because most Gaussians get tiny gradients."""
    sparsity_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of (1/N) sum log(1 + 2 o^2): fewer visible Gaussians."""
    entropy_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of the binary entropy of the opacities: Gaussians are there or not, surfaces sharpen."""
    size_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of (1/N) sum max(0, largest scale / size_limit - 1)^2."""
    size_limit: float = 0.15
    """Largest standard deviation that costs nothing, world units."""
    needle_weight: Schedule = field(default=Schedule.constant(0.0))
    """Weight of (1/N) sum max(0, log(largest / middle scale) - log needle_limit)."""
    needle_limit: float = 4.0
    """Largest ratio of the longest to the middle axis that costs nothing, at least 1."""

    def __post_init__(self) -> None:
        for name in _SCHEDULES:
            object.__setattr__(self, name, Schedule.parse(getattr(self, name)))
            schedule: Schedule = getattr(self, name)
            require(
                f"The scene's {name}",
                min(schedule.start_value, schedule.end_value) >= 0,
                schedule.data(),
                "no value below 0",
            )
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        require("The scene's count", self.count >= 1, self.count, "at least 1")
        one_of("The scene's initialisation", self.initialisation, get_args(Initialisation))
        one_of("The scene's background", self.background, get_args(BackgroundMode))
        one_of("The scene's sh_degree", self.sh_degree, (None, 0, 1, 2, 3))
        for name in ("initial_radius", "initial_scale", "size_limit", "adam_epsilon"):
            value = getattr(self, name)
            require(f"The scene's {name}", 0 < value < 1e6, value, "a positive number")
        require(
            "The scene's initial_opacity", 0 < self.initial_opacity < 1, self.initial_opacity, "above 0 and below 1"
        )
        require("The scene's initial_color", 0 <= self.initial_color <= 1, self.initial_color, "0 to 1")
        require(
            "The scene's initial_color_noise", 0 <= self.initial_color_noise <= 1, self.initial_color_noise, "0 to 1"
        )
        require("The scene's flatness", 0 < self.flatness <= 1, self.flatness, "above 0, at most 1")
        require("The scene's needle_limit", self.needle_limit >= 1, self.needle_limit, "at least 1")
        require(
            "The scene's adam_betas",
            len(self.adam_betas) == 2 and all(0 <= beta < 1 for beta in self.adam_betas),
            self.adam_betas,
            "two numbers from 0 to below 1",
        )
