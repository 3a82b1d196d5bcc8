"""At which density to cut the surface of a scene: where renders show it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dreamkit.errors import SceneError
from dreamkit.scenes.density_grid import Floats, Grid
from dreamkit.scenes.gaussians import GaussianScene

_DISTANCE = 1000.0
"""How far away the orthographic camera stands, in edges of the grid: perspective shifts stay below 0.1 voxel."""
_LOW_PASS = 0.05
"""Of these renders, in pixels squared, instead of the usual 0.3: a wider one would fatten the outline."""
_TOLERANCE = 2.0
"""How far, in voxels, the surface may lie behind what the render shows."""
_STRIDE = 2
"""Only every second ray in both directions is compared: a quarter of the work, the same level."""


def surface_level(scene: GaussianScene, grid: Grid, candidates: int = 24) -> float:
    """The level of D whose isosurface lies where renders of the scene show a surface.

    What renders show depends on opacities, sizes and overlap together; a fixed level would be a skin far out on one
    scene and a sieve on the next. So the scene is rendered along the six axis directions, one ray a grid line, and a
    level gets a point for every ray that both hit: where alpha > 1/2 and D > level somewhere on the ray, and not first
    more than 2 voxels BEHIND the rendered depth (in front is natural: depths are those of the Gaussians' centres).
    Rays that only one of them hits count against it. The outline keeps the level from being too low, holes in the
    front, through which one would see the inside of the back, from being too high.

        score(level) = mean over directions of  hits in agreement / rays that either hits

    Args:
        scene: the Gaussians.
        grid: their field.
        candidates: how many geometrically spaced levels to try, >= 2.

    Returns:
        The level with the best score, between 0.02 (or 2 % of the maximum) and 0.9 of the field's maximum.

    Raises:
        SceneError: the scene is nowhere more opaque than transparent.
    """
    views = [orthographic_depth(scene, grid, axis, sign) for axis in range(3) for sign in (1, -1)]
    if not all(np.isfinite(depth).any() for depth in views):
        raise SceneError(
            "The scene is too transparent to have a surface: no view is more than half covered anywhere.",
            "Train it longer, or export the Gaussians themselves (ply or splat).",
        )
    top = float(grid.values.max())
    levels = np.geomspace(min(0.02, 0.02 * top), 0.9 * top, candidates)
    columns = [np.ascontiguousarray(_columns(grid, axis)[::_STRIDE, ::_STRIDE]) for axis in range(3)]
    scores = np.zeros(candidates)
    for index, level in enumerate(levels):
        for axis in range(3):
            above = columns[axis] > level
            for sign in (1, -1):
                shown = views[2 * axis + (sign < 0)][::_STRIDE, ::_STRIDE]
                scores[index] += _agreement(shown, _first_index(above, sign))
    return float(levels[int(np.argmax(scores))])


def orthographic_depth(scene: GaussianScene, grid: Grid, axis: int, sign: int) -> Floats:
    """Expected depth along a world axis without perspective, one ray a grid line.

    Args:
        scene: the Gaussians.
        grid: whose lines to look along.
        axis: 0, 1 or 2.
        sign: 1 to look along the axis, -1 against it.

    Returns:
        Depth as a distance from the first grid plane in viewing direction, in voxels, over the two other axes in
        cyclic order (y z, z x or x y); infinite where alpha is at most 1/2.
    """
    from dreamkit_kernels.gaussian_rasterize import (  # type: ignore[import-not-found]
        Gaussians,
        Settings,
        View,
        rasterize,
    )

    first, second = (axis + 1) % 3, (axis + 2) % 3
    # Right, down and forward are a rotation: cyclic along the axis, swapped against it.
    right, down = (first, second) if sign > 0 else (second, first)
    shape = np.array(grid.values.shape)
    centre = grid.origin + 0.5 * grid.voxel * (shape - 1)
    distance = _DISTANCE * grid.voxel * float(shape.max())
    view_matrix = torch.zeros(1, 4, 4)
    for row, (column, value) in enumerate(((right, 1.0), (down, 1.0), (axis, float(sign)))):
        view_matrix[0, row, column] = value
        view_matrix[0, row, 3] = -value * float(centre[column])
    view_matrix[0, 2, 3] += distance
    view_matrix[0, 3, 3] = 1.0
    focal = distance / grid.voxel
    intrinsics = torch.tensor([[[focal, 0.0, 0.5 * shape[right]], [0.0, focal, 0.5 * shape[down]], [0.0, 0.0, 1.0]]])
    with torch.no_grad():
        colors = torch.zeros(len(scene), 1, device=scene.device)
        result = rasterize(
            Gaussians(scene.means, scene.quaternions, scene.scales, scene.opacities, colors),
            View(
                view_matrix.to(scene.device),
                intrinsics.float().to(scene.device),
                width=int(shape[right]),
                height=int(shape[down]),
                near=0.5 * distance,
                far=2.0 * distance,
            ),
            Settings(eps2d=_LOW_PASS),
        )
        alpha, depth = result.alpha[0, ..., 0], result.depth[0, ..., 0]
        # Image rows are `down`, columns `right`.
        from_plane = (depth / alpha.clamp_min(1e-6) - distance) / grid.voxel + 0.5 * float(shape[axis] - 1)
        shown = torch.where(alpha > 0.5, from_plane, torch.inf).cpu().numpy()
    return shown.T if sign > 0 else shown


def _columns(grid: Grid, axis: int) -> Floats:
    """The field with the two other axes in cyclic order first and `axis` last."""
    return grid.values.transpose((axis + 1) % 3, (axis + 2) % 3, axis)


def _first_index(
    above: NDArray[np.bool_],  # [A, B, L]
    sign: int,
) -> Floats:
    """How many planes a ray passes before the first true one; infinite where there is none. [A, B]."""
    ordered = above if sign > 0 else above[..., ::-1]
    first = ordered.argmax(axis=-1).astype(np.float32)
    return np.where(ordered.any(axis=-1), first, np.float32(np.inf))


def _agreement(shown: Floats, cut: Floats) -> float:
    """Share of the rays that hit the render or the surface on which both agree; 0 when there are none."""
    either = np.isfinite(shown) | np.isfinite(cut)
    both = np.isfinite(shown) & np.isfinite(cut)
    agree = both & (np.where(both, cut, 0.0) <= np.where(both, shown, 0.0) + _TOLERANCE)
    total = np.count_nonzero(either)
    return np.count_nonzero(agree) / total if total else 0.0
