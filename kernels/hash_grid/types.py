"""The layout of a multiresolution hash grid, and the checks that name a wrong argument."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape

PRIMES = (1, 2654435761, 805459861)
"""Factors of the spatial hash, one a dimension (Teschner et al., 2003)."""
FEATURES = (1, 2, 4, 8)
MAX_ENTRIES = 2**29
"""Most entries of a table: indices stay in 32 bits."""


@dataclass(frozen=True)
class Level:
    """One resolution of the grid: position x in [0, 1] is at x * scale + shift in units of cells."""

    scale: float
    shift: float
    resolution: int
    """Grid points along an axis; 0 for a hashed level, where it does not matter."""
    size: int
    """Entries of the table."""
    offset: int
    """First entry of the level in the table."""


@dataclass(frozen=True)
class HashGrid:
    """Layout of a multiresolution hash grid.

    The table holds the levels one after the other, [entries, features]. Under `instant_ngp` it is laid out as by
    tiny-cuda-nn's GridEncoding, so that its weights load: levels whose points fit are dense, finer ones hashed.
    Under `hashed` (nerfstudio's torch HashEncoding) every level is hashed.
    """

    levels: int = 16
    features: int = 2
    """Features an entry: 1, 2, 4 or 8."""
    log2_size: int = 19
    """Logarithm to base 2 of the most entries a level may have, 1 to 24."""
    base_resolution: int = 16
    """Cells along an axis of the coarsest level, roughly."""
    growth: float = 1.381912879967776
    """Factor between resolutions; the default leads from 16 to 2048 in 16 levels."""
    dims: int = 3
    """Dimensions of a position: 2 or 3."""
    smoothstep: bool = False
    """Interpolate with s(w) = w^2 (3 - 2w) instead of w: continuous first derivatives."""
    layout: Literal["instant_ngp", "hashed"] = "instant_ngp"
    spec: str = field(init=False, repr=False, compare=False)
    """All of the above as JSON: what an operator of torch can be given."""

    def __post_init__(self) -> None:
        ranges = (("levels", 1, 64), ("log2_size", 1, 24), ("base_resolution", 1, 2**15), ("dims", 2, 3))
        for name, low, high in ranges:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}.")
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, got {value}.")
        if self.features not in FEATURES:
            raise ValueError(f"features must be one of {FEATURES}, got {self.features}.")
        if not 1.0 <= self.growth <= 16.0:
            raise ValueError(f"growth must be between 1 and 16, got {self.growth}.")
        if self.layout not in ("instant_ngp", "hashed"):
            raise ValueError(f"layout must be 'instant_ngp' or 'hashed', got {self.layout!r}.")
        finest = self.plan[-1]
        if finest.scale >= 2**20:
            raise ValueError(
                f"the finest level has {finest.scale:.0f} cells an axis; fewer than {2**20} are supported."
            )
        if self.entries > MAX_ENTRIES:
            raise ValueError(f"the table has {self.entries} entries; at most {MAX_ENTRIES} are supported.")
        chosen = {item.name: getattr(self, item.name) for item in fields(self) if item.init}
        object.__setattr__(self, "spec", json.dumps(chosen))

    @staticmethod
    @functools.cache
    def from_spec(spec: str) -> HashGrid:
        """The grid whose `spec` this is."""
        return HashGrid(**json.loads(spec))

    @functools.cached_property
    def plan(self) -> tuple[Level, ...]:
        """The levels, coarse to fine."""
        levels: list[Level] = []
        offset = 0
        for index in range(self.levels):
            level = self._level(index, offset)
            levels.append(level)
            offset += level.size
        return tuple(levels)

    def _level(self, index: int, offset: int) -> Level:
        largest = 1 << self.log2_size
        if self.layout == "hashed":
            # In float32, as where the layout comes from: at whole numbers the rounding decides.
            cells = self.base_resolution * self.growth ** torch.arange(self.levels)
            return Level(float(cells[index].floor()), 0.0, 0, largest, offset)
        scale = _float32(2.0 ** (index * math.log2(self.growth)) * self.base_resolution - 1.0)
        resolution = math.ceil(scale) + 1
        if resolution**self.dims > largest:
            return Level(scale, 0.5, 0, largest, offset)
        padded = -(-(resolution**self.dims) // 8) * 8
        return Level(scale, 0.5, resolution, min(padded, largest), offset)

    @property
    def entries(self) -> int:
        """Rows of the table."""
        return self.plan[-1].offset + self.plan[-1].size

    @property
    def width(self) -> int:
        """Features of an encoded position, over all levels."""
        return self.levels * self.features

    def make_table(self, generator: torch.Generator | None = None, scale: float = 1e-4) -> Tensor:
        """A table [entries, features] of numbers uniform in [-scale, scale]."""
        return scale * (2 * torch.rand(self.entries, self.features, generator=generator) - 1)

    def load_table(self, weights: Tensor) -> Tensor:
        """The table in the flat weights of tiny-cuda-nn's GridEncoding, as float32 [entries, features].

        Raises:
            ValueError: the weights are of another layout.
        """
        if weights.numel() != self.entries * self.features:
            raise ValueError(
                f"weights must hold {self.entries} x {self.features} = {self.entries * self.features} numbers for "
                f"this grid, got {weights.numel()}."
            )
        return weights.detach().reshape(self.entries, self.features).float()


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def check_arguments(positions: Tensor, table: Tensor, grid: HashGrid) -> None:
    """Check what goes into `encode`.

    Raises:
        TypeError: no tensors, or of a dtype other than float32 and float64.
        ValueError: a wrong shape, or tensors on different devices.
    """
    check_float("positions", positions)
    check_like("table", table, "positions", positions)
    check_shape("positions", positions, ["N", grid.dims])
    check_shape("table", table, [grid.entries, grid.features])
