"""Where an asset that was made elsewhere is and how large, so that cameras and grids made for the unit ball fit it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh import quaternion_matrices
from dreamkit.scenes.triangles import Mesh

Content = TypeVar("Content", GaussianScene, Mesh)

_STRAYS = 0.01
"""Share of the Gaussians that may lie outside: reconstructed scenes have floaters far away."""
_VISIBLE = 0.05
"""Opacity from which on a Gaussian counts."""
_SMALLEST = 1e-9


@dataclass(frozen=True)
class Framing:
    """The ball about an asset.

    Args:
        center: [3] world units.
        radius: world units, > 0.
    """

    center: tuple[float, float, float]
    radius: float

    @classmethod
    def of(cls, content: GaussianScene | Mesh) -> Framing:
        """The ball about the box of a mesh, or about all but the outermost of the Gaussians that can be seen.

        Args:
            content: at least one Gaussian or vertex.
        """
        if isinstance(content, Mesh):
            return cls._about(content.vertices.astype(np.float64), 0.0)
        with torch.no_grad():
            seen = content.opacities >= _VISIBLE
            seen = seen if bool(seen.any()) else torch.ones_like(seen)
            points = content.means[seen].double().cpu().numpy()
            axes = quaternion_matrices(content.quaternions[seen]) * content.scales[seen][:, None, :]
        return cls._about(points, _STRAYS, axes.double().cpu().numpy())

    @classmethod
    def _about(
        cls,
        points: NDArray[np.float64],  # [N, 3]
        strays: float,
        axes: NDArray[np.float64] | None = None,  # [N, 3, 3] columns one standard deviation long
    ) -> Framing:
        low, high = np.quantile(points, [strays, 1.0 - strays], axis=0)
        center = 0.5 * (low + high)
        offsets = points - center
        distance = np.linalg.norm(offsets, axis=1)
        if axes is not None:  # two standard deviations outwards, and as many across
            outward = offsets / np.maximum(distance, 1e-300)[:, None]
            out = np.linalg.norm(np.einsum("ni,nik->nk", outward, axes), axis=1)
            across = np.linalg.norm(axes, axis=1).max(axis=1)
            distance = np.hypot(distance + 2.0 * out, 2.0 * across)
        radius = float(np.quantile(distance, 1.0 - strays))
        return cls(tuple(center.tolist()), max(radius, _SMALLEST))

    def framed(self, content: Content) -> Content:
        """The asset moved and scaled so that its ball is the unit ball about the origin."""
        return _moved(content, 1.0 / self.radius, tuple(-value / self.radius for value in self.center))

    def restored(self, content: Content) -> Content:
        """What was made of a framed asset, back where the asset is."""
        return _moved(content, self.radius, self.center)


def _moved(content: Content, scale: float, shift: tuple[float, ...]) -> Content:
    """Every point x at scale x + shift."""
    if isinstance(content, Mesh):
        vertices = scale * content.vertices.astype(np.float64) + np.asarray(shift)
        return replace(content, vertices=vertices.astype(np.float32))
    state = dict(content.state())
    means = scale * state["means"].double() + torch.tensor(shift, dtype=torch.float64, device=content.device)
    state["means"] = means.float()
    state["log_scales"] = state["log_scales"] + math.log(scale)
    return GaussianScene(state, content.config)
