"""How far apart two shapes are."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dreamkit.errors import SceneError


def chamfer_distance(
    points_a: Tensor,  # [N, 3] world units
    points_b: Tensor,  # [M, 3] world units
) -> float:
    """Mean distance from the points of one set to the nearest of the other, averaged over both ways.

        (1/2) (mean_a min_b |a - b| + mean_b min_a |a - b|)

    Distances are not squared, so it is a length. Two samplings of the SAME surface are about half the spacing of their
    points apart: sample densely against the differences that matter.

    Args:
        points_a: points of one surface, at least 1.
        points_b: points of the other, at least 1.

    Returns:
        World units, >= 0.

    Raises:
        SceneError: a set that is empty, of another shape, or not finite.

    Paper: Barrow et al., "Parametric correspondence and chamfer matching", IJCAI 1977.
    """
    from scipy.spatial import cKDTree

    sets = []
    for points in (points_a, points_b):
        values = points.detach().cpu().double().numpy()
        if values.ndim != 2 or values.shape[1] != 3 or not len(values):
            raise SceneError(
                f"A distance between shapes can't be taken from points of shape {values.shape}.",
                "Use [N, 3] with at least one point.",
            )
        if not np.isfinite(values).all():
            raise SceneError("A distance between shapes can't be taken: points are not finite.", "Check their source.")
        sets.append(values)
    a, b = sets
    there, back = cKDTree(b).query(a)[0], cKDTree(a).query(b)[0]
    return float(0.5 * (there.mean() + back.mean()))
