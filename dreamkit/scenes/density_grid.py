"""Gaussians as a field on a regular grid: what an isosurface is cut from, and where to cut it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dreamkit.errors import SceneError

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
    centres: Floats,  # [N, D] world units
    reach: Floats,  # [N, D] world units
    origin: Floats,  # [D]
    voxel: float,
    shape: tuple[int, ...],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and past-the-last grid index of each Gaussian's block, [N, D] each, cut to the grid."""
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


def silhouette(splats: Splats, grid: Grid, axis: int) -> NDArray[np.bool_]:
    """Where the scene is more opaque than transparent, seen along a world axis without perspective.

    alpha(u) = 1 - prod_i (1 - o_i exp(-1/2 d^T S_i^-1 d)) with S_i = Sigma_i + LOW_PASS voxel^2 I without the row and
    column of the axis: exactly what splatting composites, because the order does not matter for coverage.

    Args:
        splats: the Gaussians.
        grid: whose points to look at.
        axis: 0, 1 or 2, the viewing direction.

    Returns:
        [rows, columns] over the two other axes, true where alpha > 1/2.
    """
    splats = splats.smoothed(LOW_PASS * grid.voxel**2)
    kept = [k for k in range(3) if k != axis]
    origin, shape = grid.origin[kept], tuple(grid.values.shape[k] for k in kept)
    covariances = splats.covariances[:, kept][:, :, kept].astype(np.float64)
    form = (-0.5 * np.linalg.inv(covariances)).astype(np.float32)
    first, last = _blocks(splats.means[:, kept], splats.reach()[:, kept], origin, grid.voxel, shape)
    axes = [(origin[k] + grid.voxel * np.arange(shape[k])).astype(np.float32) for k in range(2)]
    opacities = np.minimum(splats.opacities, np.float32(0.999))
    log_transmittance = np.zeros(shape, np.float32)
    for i in np.flatnonzero((last > first).all(axis=1)):
        box = tuple(slice(a, b) for a, b in zip(first[i], last[i], strict=True))
        u, v = (axis_[side] - mean for axis_, side, mean in zip(axes, box, splats.means[i, kept], strict=True))
        q = form[i]
        exponent = (q[0, 0] * u * u)[:, None] + q[1, 1] * v * v + (2.0 * q[0, 1] * u)[:, None] * v
        log_transmittance[box] += np.log1p(-opacities[i] * np.exp(exponent))
    return log_transmittance < np.log(np.float32(0.5))


def surface_level(splats: Splats, grid: Grid, candidates: int = 40) -> float:
    """The level of D whose isosurface has the outline that the scene shows.

    What counts is what renders show, and what they show depends on opacities, sizes and overlap together; a fixed
    level would be a skin far out on one scene and holes on the next. So: for the three world axes take the outline
    of the splatted scene (alpha > 1/2) and that of {D > level} (the maximum of D along the axis), and choose the
    level with the best mean intersection over union among geometrically spaced ones.

    Args:
        splats: the Gaussians.
        grid: their field.
        candidates: how many levels to try, >= 2.

    Returns:
        The level, between 0.02 and 0.9 of the field's maximum.

    Raises:
        SceneError: the scene is nowhere more opaque than transparent.
    """
    outlines = [silhouette(splats, grid, axis) for axis in range(3)]
    if not all(outline.any() for outline in outlines):
        raise SceneError(
            "The scene is too transparent to have a surface: no view is more than half covered anywhere.",
            "Train it longer, or export the Gaussians themselves (ply or splat).",
        )
    peaks = [grid.values.max(axis=axis) for axis in range(3)]
    top = float(grid.values.max())
    levels = np.geomspace(min(0.02, 0.02 * top), 0.9 * top, candidates)
    scores = [
        np.mean([_overlap(outline, peak > level) for outline, peak in zip(outlines, peaks, strict=True)])
        for level in levels
    ]
    return float(levels[int(np.argmax(scores))])


def _overlap(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks; 0 when both are empty."""
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else 0.0
