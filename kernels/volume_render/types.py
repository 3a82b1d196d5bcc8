"""Rays, samples along them and the occupancy grid, with the checks that name a wrong argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape

MAX_STEPS = 2**20
"""Most steps along one ray: a smaller step is a mistake."""


@dataclass(frozen=True)
class Rays:
    """N rays x = o + t d."""

    origins: Tensor  # [N, 3] world units
    directions: Tensor  # [N, 3]
    """Need not be of unit length: t counts in lengths of d."""


@dataclass(frozen=True)
class OccupancyGrid:
    """Where in a box there may be something."""

    occupied: Tensor  # [X, Y, Z] bool
    """Cells that are not empty; the box is cut evenly along every axis."""
    low: Tensor  # [3] world units
    """Smallest corner of the box."""
    high: Tensor  # [3] world units
    """Largest corner of the box."""


@dataclass(frozen=True)
class Samples:
    """S intervals along N rays, packed: sorted by ray, and along a ray by t."""

    starts: Tensor  # [S]
    """Where each interval begins, in lengths of the ray's direction."""
    ends: Tensor  # [S]
    """Where it ends."""
    offsets: Tensor  # [N + 1] int64
    """The intervals of ray n are offsets[n] to offsets[n + 1]."""

    @property
    def rays(self) -> Tensor:
        """[S] int64, the ray of each interval."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    @property
    def middles(self) -> Tensor:
        """[S] middles of the intervals."""
        return 0.5 * (self.starts + self.ends)

    @staticmethod
    def dense(edges: Tensor) -> Samples:
        """Samples with the same number B of intervals on every ray, from their edges [N, B + 1]."""
        count, intervals = edges.shape[0], edges.shape[1] - 1
        offsets = torch.arange(count + 1, device=edges.device) * intervals
        return Samples(edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1), offsets)


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int | str], like: tuple[str, Tensor] | None = None) -> None:
    """Check a floating tensor: its kind, dtype, shape, and dtype and device against those of a named other.

    Raises:
        TypeError: no tensor, or of a wrong dtype.
        ValueError: a wrong shape or device.
    """
    check_float(name, tensor)
    check_shape(name, tensor, shape)
    if like is not None:
        check_like(name, tensor, *like)


def check_samples(samples: Samples) -> None:
    """Check packed samples.

    Raises:
        TypeError: tensors of a wrong kind or dtype.
        ValueError: a wrong shape, or offsets that do not run from 0 to S without falling.
    """
    check_tensor("samples.starts", samples.starts, ["*"])
    check_tensor("samples.ends", samples.ends, samples.starts.shape, ("samples.starts", samples.starts))
    offsets = samples.offsets
    if not isinstance(offsets, Tensor) or offsets.dtype != torch.int64:
        raise TypeError("samples.offsets must be an int64 torch.Tensor.")
    if offsets.ndim != 1 or len(offsets) < 1:
        raise ValueError(f"samples.offsets must have shape [N + 1], got {list(offsets.shape)}.")
    if offsets.device != samples.starts.device:
        raise ValueError(f"samples.offsets must be on {samples.starts.device}, got {offsets.device}.")
    if torch.compiler.is_compiling():
        return  # the values are not known while a graph is traced; the native kernels check them too
    wrong = (offsets[0] != 0) | (offsets[-1] != len(samples.starts)) | (offsets.diff() < 0).any()
    if bool(wrong):  # a single wait for a GPU
        raise ValueError(f"samples.offsets must rise from 0 to {len(samples.starts)}.")


def check_grid(rays: Rays, grid: OccupancyGrid) -> None:
    """Check rays and the grid they march through.

    Raises:
        TypeError: tensors of a wrong kind or dtype.
        ValueError: a wrong shape, or a box without volume.
    """
    check_tensor("rays.origins", rays.origins, ["*", 3])
    check_tensor("rays.directions", rays.directions, rays.origins.shape, ("rays.origins", rays.origins))
    for name, corner in (("grid.low", grid.low), ("grid.high", grid.high)):
        check_tensor(name, corner, [3], ("rays.origins", rays.origins))
    if not isinstance(grid.occupied, Tensor) or grid.occupied.dtype != torch.bool:
        raise TypeError("grid.occupied must be a bool torch.Tensor.")
    if grid.occupied.ndim != 3 or 0 in grid.occupied.shape:
        raise ValueError(f"grid.occupied must have shape [X, Y, Z], none of them 0, got {list(grid.occupied.shape)}.")
    if not torch.compiler.is_compiling() and not bool((grid.high > grid.low).all()):
        raise ValueError(f"grid.low must be below grid.high, got {grid.low.tolist()} and {grid.high.tolist()}.")
