"""What the scenes that keep colours in a hash grid have in common: size, light, learning rates."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from dreamkit.checks import one_of, require
from dreamkit.config import Schedule


@dataclass(frozen=True)
class HashNetworkConfig:
    """Size of a hash grid with two layers behind it."""

    levels: int = 8
    """Levels of the hash grid, 1 to 16."""
    features: int = 2
    """Features an entry of the hash grid: 1, 2, 4 or 8."""
    log2_size: int = 16
    """Logarithm to base 2 of the most entries of a level, 8 to 22."""
    coarsest: int = 8
    """Cells along an axis of the coarsest level, 2 to 4096."""
    finest: int = 128
    """Cells along an axis of the finest level, at least `coarsest`."""
    hidden: int = 32
    """Width of the layers, 8 to 256."""

    def __post_init__(self) -> None:
        whole = {
            "levels": (1, 16),
            "log2_size": (8, 22),
            "coarsest": (2, 4096),
            "finest": (self.coarsest, 2**15),
            "hidden": (8, 256),
        }
        for name, (low, high) in whole.items():
            value = getattr(self, name)
            require(f"The hash grid's {name}", low <= value <= high, value, f"a whole number from {low} to {high}")
        one_of("The hash grid's features", self.features, (1, 2, 4, 8))

    @property
    def growth(self) -> float:
        """Factor between the resolutions of neighbouring levels."""
        return max(1.0, (self.finest / self.coarsest) ** (1 / max(self.levels - 1, 1)))


@dataclass(frozen=True)
class FieldConfig:
    """What NeRFs and meshes have in common. Lengths are world units; schedules take any form of `Schedule.parse`."""

    kind: ClassVar[str] = "scene"
    """The scene in words, for messages."""

    half: float = 1.0
    """The scene is the cube [-half, half]^3: nothing is outside."""
    grid: HashNetworkConfig = field(default_factory=HashNetworkConfig)
    """Size of the hash grid and the layers behind it."""
    lambertian_share: Schedule = field(default=Schedule.constant(0.0))
    """Share of training views that are lit by a lamp near the camera, 0 to 1."""
    textureless_share: Schedule = field(default=Schedule.constant(0.0))
    """Share of training views that are lit and white, so that only shape can answer, 0 to 1."""
    ambient: float = 0.3
    """Light from everywhere in a lit view, 0 to 1; the lamp adds the rest."""
    table_rate: Schedule = field(default=Schedule(0.0, 2e-2, 2e-3, 1.0, "exponential"))
    """Learning rate of the hash grid."""
    network_rate: Schedule = field(default=Schedule(0.0, 5e-3, 5e-4, 1.0, "exponential"))
    """Learning rate of the layers."""
    adam_betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the first and second moment, each from 0 to below 1."""
    adam_epsilon: float = 1e-15
    """Adam's term against division by zero; tiny, because most entries get tiny gradients."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if not isinstance(item.default, Schedule):
                continue
            schedule = Schedule.parse(getattr(self, item.name))
            object.__setattr__(self, item.name, schedule)
            lowest, highest = sorted((schedule.start_value, schedule.end_value))
            self.require(item.name, lowest >= 0, "no value below 0")
            if item.name.endswith("_share"):
                self.require(item.name, highest <= 1, "no value above 1")
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        for name in ("half", "adam_epsilon"):
            self.require(name, 0 < getattr(self, name) < 1e6, "a positive number")
        self.require("ambient", 0 <= self.ambient <= 1, "0 to 1")
        both = self.lambertian_share.start_value + self.textureless_share.start_value
        both = max(both, self.lambertian_share.end_value + self.textureless_share.end_value)
        self.require("textureless_share", both <= 1, "shares that add up to at most 1 with lambertian_share")
        betas = self.adam_betas
        fine = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        self.require("adam_betas", fine, "two numbers from 0 to below 1")

    def require(self, name: str, holds: bool, wanted: str) -> None:
        """Check a condition on a field.

        Raises:
            ConfigError: it does not hold (one that NaN enters never does).
        """
        value = getattr(self, name)
        require(f"The {self.kind}'s {name}", holds, value.data() if isinstance(value, Schedule) else value, wanted)
