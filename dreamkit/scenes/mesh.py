"""Meshes: what they are, and a surface from Gaussians (density grid, isosurface, cleaning, vertex colours).

The steps are separate functions, and `extract_mesh` is the row of them. The result is closed, its faces run counter-
clockwise seen from outside, and its colours are those of the Gaussians that cameras can see. `field_mesh` does the same
for any other field.
"""

from __future__ import annotations

import numpy as np
import torch

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.density_grid import Floats, Splats, density_grid
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.isosurface import (
    MeshConfig,
    decimate,
    field_mesh,
    isosurface,
    keep_solid_parts,
    sealing_level,
    smooth,
)
from dreamkit.scenes.surface_level import surface_level
from dreamkit.scenes.triangles import Mesh, MeshFigures, TexturedMesh, sample_surface, vertex_normals

__all__ = [
    "Mesh",
    "MeshConfig",
    "MeshFigures",
    "TexturedMesh",
    "extract_mesh",
    "field_mesh",
    "gaussian_visibility",
    "quaternion_matrices",
    "sample_surface",
    "scene_splats",
    "vertex_colors",
    "vertex_normals",
]

_NEIGHBOURS = 32


def extract_mesh(scene: GaussianScene, config: MeshConfig | None = None) -> Mesh:
    """Cut a closed, coloured surface from a scene of Gaussians.

    Args:
        scene: the Gaussians.
        config: resolution, level and cleaning.

    Returns:
        The mesh: watertight, normals outward, at most `max_faces` triangles where that keeps it closed.

    Raises:
        SceneError: there is nothing opaque enough to have a surface.
    """
    config = config or MeshConfig()
    splats = scene_splats(scene)
    visible = splats.opacities >= max(config.min_opacity, 1e-6)
    splats = splats.subset(visible)
    if not len(splats):
        raise SceneError(
            f"The scene has no Gaussian of opacity {config.min_opacity:g} or more, so it has no surface.",
            "Train it longer, or export the Gaussians themselves (ply or splat).",
        )
    grid = density_grid(splats, config.resolution)
    level = sealing_level(grid, surface_level(scene, grid)) if config.level is None else config.level
    grid = keep_solid_parts(grid, level, config.min_component)
    vertices, faces = isosurface(grid, level)
    vertices = smooth(vertices, faces, config.smoothing_steps)
    vertices, faces = decimate(vertices, faces, config.max_faces)
    weights = gaussian_visibility(scene)[visible]
    return Mesh(vertices, faces, vertex_colors(vertices, splats, weights), vertex_normals(vertices, faces))


def scene_splats(scene: GaussianScene) -> Splats:
    """The scene's Gaussians as plain arrays; covariance = R diag(scale^2) R^T."""
    with torch.no_grad():
        rotation = quaternion_matrices(scene.quaternions)
        # A floor of 1e-5 keeps the inverse of a flat Gaussian's covariance finite.
        axes = rotation * scene.scales.clamp_min(1e-5)[:, None, :]
        covariances = axes @ axes.transpose(1, 2)
        tensors = (scene.means, covariances, scene.opacities, scene.colors)
        return Splats(*(tensor.detach().float().cpu().numpy() for tensor in tensors))


def quaternion_matrices(
    quaternions: torch.Tensor,  # [N, 4] unit, wxyz
) -> torch.Tensor:
    """Rotation matrices of unit quaternions.

    Args:
        quaternions: [N, 4] unit, wxyz.

    Returns:
        [N, 3, 3], columns are the rotated axes.
    """
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def gaussian_visibility(scene: GaussianScene, size: int = 64) -> Floats:
    """How much each Gaussian shows: the sum of its blending weights over 26 views all round.

    The weight w_i of a Gaussian in a pixel is d pixel / d colour_i, so one backward pass of the sum of all pixels
    gives every Gaussian's total. What lies under the surface gets about 0, and its colour, which nothing ever
    corrected, stays out of the mesh.

    Args:
        scene: the Gaussians.
        size: image side in pixels.

    Returns:
        [N] sums of weights, >= 0.
    """
    from dreamkit_kernels.gaussian_rasterize import (  # type: ignore[import-not-found]
        Gaussians,
        View,
        rasterize,
    )

    with torch.no_grad():
        centre = scene.means.median(dim=0).values
        extent = float((scene.means - centre).norm(dim=-1).quantile(0.98) + scene.scales.quantile(0.98))
    azimuth = [45.0 * k for k in range(8)]
    angles = [(a, e) for e in (-35.0, 0.0, 35.0) for a in azimuth] + [(0.0, 90.0), (0.0, -90.0)]
    # At 3.2 times its radius a ball fills 36 of 40 degrees.
    cameras = Camera.orbit(
        [a for a, _ in angles], [e for _, e in angles], max(3.2 * extent, 1e-3), 40.0, size, size,
        target=centre.cpu(), near=max(0.01 * extent, 1e-6), far=max(100.0 * extent, 1.0),
    ).to(scene.device)  # fmt: skip
    colors = torch.zeros(len(scene), 1, device=scene.device, requires_grad=True)
    with torch.enable_grad():
        result = rasterize(
            Gaussians(
                scene.means.detach(),
                scene.quaternions.detach(),
                scene.scales.detach(),
                scene.opacities.detach(),
                colors,
            ),
            View(cameras.view_matrix, cameras.intrinsics, size, size, cameras.near, cameras.far),
        )
        result.image.sum().backward()
    assert colors.grad is not None
    return colors.grad[:, 0].clamp_min(0.0).cpu().numpy()


def vertex_colors(
    vertices: Floats,  # [V, 3]
    splats: Splats,
    visibility: Floats,  # [N]
) -> Floats:
    """Blend the colours of the Gaussians about each vertex.

    c(x) = sum_i w_i c_i / sum_i w_i over the 32 visible Gaussians with the nearest centres, with
    w_i = visibility_i o_i exp(-1/2 d^T Sigma_i^-1 d). Weights are taken relative to the largest one, so a vertex far
    from all of them gets the colour of the nearest and not 0 / 0.

    Args:
        vertices: [V, 3] world units.
        splats: the N Gaussians.
        visibility: [N] how much each one shows, see `gaussian_visibility`; all 0 counts as all equal.

    Returns:
        [V, 3] in [0, 1], sRGB as the Gaussians' own.
    """
    from scipy.spatial import cKDTree

    shown = visibility > 1e-3 * visibility.max()
    if shown.any():
        splats, visibility = splats.subset(shown), visibility[shown]
    else:
        visibility = np.ones(len(splats), np.float32)
    count = min(_NEIGHBOURS, len(splats))
    _, nearest = cKDTree(splats.means).query(vertices, k=range(1, count + 1))
    precisions = np.linalg.inv(splats.covariances.astype(np.float64))
    offsets = vertices[:, None, :].astype(np.float64) - splats.means[nearest]  # [V, K, 3]
    squared = np.einsum("vki,vkij,vkj->vk", offsets, precisions[nearest], offsets)
    logarithms = np.log(np.maximum(visibility * splats.opacities, 1e-20))[nearest] - 0.5 * squared
    weights = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    blended = np.einsum("vk,vkc->vc", weights, splats.colors[nearest]) / weights.sum(axis=1, keepdims=True)
    return np.clip(blended, 0.0, 1.0).astype(np.float32)
