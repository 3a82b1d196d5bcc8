"""Gaussians as a field on a regular grid: what an isosurface is cut from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

REACH = 3.0
"""How many standard deviations of a Gaussian are looked at; beyond, it is below 1.2 % of its peak."""

LOW_PASS = 0.3
"""Added to the diagonal of every covariance, in voxels squared: what rasterisers add in pixels squared. Without it a
disc thinner than a voxel would fall between the grid's points."""


@dataclass(frozen=True)
class Splats:
    """Gaussians as plain arrays (float32, on the CPU)."""

    means: Floats  # [N, 3] world units
    covariances: Floats  # [N, 3, 3] world units squared
    opacities: Floats  # [N] in [0, 1]
    colors: Floats  # [N, 3] in [0, 1]

    def __len__(self) -> int:
        return len(self.means)

    def subset(self, mask: NDArray[np.bool_]) -> Splats:
        """Those where `mask` [N] is true."""
        return Splats(self.means[mask], self.covariances[mask], self.opacities[mask], self.colors[mask])

    def smoothed(self, variance: float) -> Splats:
        """The same with `variance` (world units squared) added in every direction; the peaks stay."""
        covariances = self.covariances + np.float32(variance) * np.eye(3, dtype=np.float32)
        return Splats(self.means, covariances, self.opacities, self.colors)

    def reach(self) -> Floats:
        """[N, 3] half edges of the boxes about each Gaussian's `REACH` ellipsoid: REACH sqrt(Sigma_kk)."""
        return np.asarray(REACH * np.sqrt(np.diagonal(self.covariances, axis1=1, axis2=2)), np.float32)


@dataclass(frozen=True)
class Grid:
    """Samples at the points origin + voxel * (i, j, k)."""

    values: Floats  # [X, Y, Z]
    origin: Floats  # [3] world units
    voxel: float  # world units


def bounding_box(splats: Splats) -> tuple[Floats, Floats]:
    """The box that holds the object, floaters left out.

    The box of all 3-sigma ellipsoids, cut to 1.5 times the distance from the median centre that holds 98 % of the
    Gaussians (plus their reach): one stray Gaussian cannot eat up the grid's resolution.

    Args:
        splats: N >= 1 Gaussians.

    Returns:
        The lower and the upper corner, [3] world units.
    """
    reach = splats.reach()
    centre = np.median(splats.means, axis=0)
    distance = np.linalg.norm(splats.means - centre, axis=1)
    limit = 1.5 * np.quantile(distance, 0.98) + np.quantile(reach, 0.98)
    low = np.maximum((splats.means - reach).min(axis=0), centre - limit)
    high = np.minimum((splats.means + reach).max(axis=0), centre + limit)
    return low.astype(np.float32), high.astype(np.float32)


def _blocks(
    centres: Floats,  # [N, 3] world units
    reach: Floats,  # [N, 3] world units
    origin: Floats,  # [3] world units
    voxel: float,
    shape: tuple[int, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and past-the-last grid index of each Gaussian's block, [N, 3] each, cut to the grid."""
    first = np.ceil((centres - reach - origin) / voxel).astype(np.int64)
    last = np.floor((centres + reach - origin) / voxel).astype(np.int64) + 1
    return np.clip(first, 0, shape), np.clip(last, 0, shape)


def density_grid(splats: Splats, resolution: int) -> Grid:
    """The field D(x) = sum_i o_i exp(-1/2 d^T (Sigma_i + LOW_PASS voxel^2 I)^-1 d), d = x - mean_i, on a cubic grid.

    Each Gaussian is evaluated in the block of its 3-sigma ellipsoid only. A block is small enough for the cache,
    and within it the quadratic form is split into what depends on (y, z) and on x, so that a grid point costs one
    exponential and four additions or products.

    Args:
        splats: N >= 1 Gaussians.
        resolution: grid points along the longest edge of the bounding box, >= 8.

    Returns:
        The grid, with two layers of zeros all round, so that every isosurface closes.
    """
    low, high = bounding_box(splats)
    padding = 2
    voxel = float((high - low).max()) / (resolution - 1 - 2 * padding)
    splats = splats.smoothed(LOW_PASS * voxel**2)
    origin = (low - padding * voxel).astype(np.float32)
    shape = tuple(int(n) for n in np.ceil((high - low) / voxel).astype(np.int64) + 1 + 2 * padding)
    values = np.zeros(shape, np.float32)
    inner = values[padding:-padding, padding:-padding, padding:-padding]
    first, last = _blocks(splats.means, splats.reach(), low, voxel, inner.shape)
    # -1/2 goes into the matrix and log o into the exponent.
    form = (-0.5 * np.linalg.inv(splats.covariances.astype(np.float64))).astype(np.float32)
    log_opacity = np.log(np.maximum(splats.opacities, 1e-12)).astype(np.float32)
    axes = [(low[k] + voxel * np.arange(inner.shape[k])).astype(np.float32) for k in range(3)]
    for i in np.flatnonzero((last > first).all(axis=1)):
        box = tuple(slice(a, b) for a, b in zip(first[i], last[i], strict=True))
        x, y, z = (axis[side] - mean for axis, side, mean in zip(axes, box, splats.means[i], strict=True))
        q = form[i]
        plane = (log_opacity[i] + q[1, 1] * y * y)[:, None] + q[2, 2] * z * z + (2.0 * q[1, 2] * y)[:, None] * z
        slope = (2.0 * q[0, 1] * y)[:, None] + 2.0 * q[0, 2] * z
        block = x[:, None, None] * slope
        block += plane
        block += (q[0, 0] * x * x)[:, None, None]
        np.exp(block, out=block)
        inner[box] += block
    return Grid(values, origin, voxel)
