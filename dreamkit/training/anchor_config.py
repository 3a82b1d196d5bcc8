"""What a scene looks like from some cameras, and how firmly it is held to that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dreamkit.checks import require


@dataclass(frozen=True)
class AnchorConfig:
    """What a scene looks like from some cameras, and how firmly it is held to that."""

    pictures: str = ""
    """A set of posed pictures (see `dreamkit fit`), or a single picture cut out of its background; none if empty."""
    azimuth: float = 0.0
    """Where a single picture was taken from, degrees: 0 the front, 90 its left (+x)."""
    elevation: float = 0.0
    """Degrees above the horizon, -90 to 90."""
    weight: float = 10.0
    """Of the squared distance to the pictures, against one view of the objective."""
    views: int = 1
    """Pictures a step."""

    def __post_init__(self) -> None:
        require("The pictures' azimuth", math.isfinite(self.azimuth), self.azimuth, "a number of degrees")
        require("The pictures' elevation", -90 <= self.elevation <= 90, self.elevation, "-90 to 90 degrees")
        require("The pictures' weight", 0 < self.weight < 1e6, self.weight, "a positive number")
        require("The pictures' views", 1 <= self.views <= 1024, self.views, "a whole number from 1 to 1024")

    @property
    def is_set(self) -> bool:
        """Whether it names a set of posed pictures, rather than a single one."""
        path = Path(self.pictures).expanduser()
        return bool(self.pictures) and (path.is_dir() or path.suffix.lower() == ".json")
