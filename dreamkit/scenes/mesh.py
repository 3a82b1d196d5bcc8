"""A surface from Gaussians: density grid, isosurface, cleaning, smoothing, decimation, vertex colours.

The steps are separate functions, and `extract_mesh` is the row of them. The result is closed, its faces run counter-
clockwise seen from outside, and its colours are those of the Gaussians that cameras can see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.density_grid import Floats, Grid, Splats, density_grid
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.surface_level import surface_level

_NEIGHBOURS = 32


@dataclass(frozen=True)
class MeshConfig:
    """How a surface is cut from a scene."""

    resolution: int = 128
    """Grid points along the longest edge of the object, 16 to 512."""
    level: float | None = None
    """Density of the surface; by default the one that lies where renders show a surface."""
    min_opacity: float = 0.02
    """Gaussians more transparent than this are left out, 0 to 1."""
    min_component: float = 0.02
    """Parts smaller than this share of the largest part's volume are left out, 0 to 1."""
    smoothing_steps: int = 8
    """Rounds of Taubin smoothing, which takes off the grid's steps without shrinking; 0 for none."""
    max_faces: int = 20_000
    """Decimate to at most this many triangles (as far as the surface stays closed), at least 100."""

    def __post_init__(self) -> None:
        wanted = {
            "resolution": (16 <= self.resolution <= 512, "16 to 512"),
            "level": (self.level is None or 0 < self.level < np.inf, "a positive number"),
            "min_opacity": (0 <= self.min_opacity <= 1, "0 to 1"),
            "min_component": (0 <= self.min_component <= 1, "0 to 1"),
            "smoothing_steps": (0 <= self.smoothing_steps <= 1000, "0 to 1000"),
            "max_faces": (self.max_faces >= 100, "at least 100"),
        }
        for name, (holds, hint) in wanted.items():
            if not holds:
                raise ConfigError(f"The mesh's {name} is {getattr(self, name)}.", f"Use {hint}.")


@dataclass(frozen=True)
class MeshFigures:
    """What there is to say about a mesh in numbers."""

    vertices: int
    faces: int
    components: int
    """Connected parts."""
    watertight: bool
    """Whether every edge has exactly two faces, so that there is an inside."""
    volume: float
    """World units cubed; meaningful when watertight."""
    bounding_box: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Lower and upper corner, world units."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with a colour and a normal at every vertex."""

    vertices: Floats  # [V, 3] world units
    faces: NDArray[np.int32]  # [F, 3] counter-clockwise seen from outside
    colors: Floats  # [V, 3] in [0, 1], sRGB
    normals: Floats  # [V, 3] unit, outward

    def figures(self) -> MeshFigures:
        """Count, measure and check the mesh."""
        mesh = _trimesh(self.vertices, self.faces)
        low, high = self.vertices.min(axis=0).tolist(), self.vertices.max(axis=0).tolist()
        return MeshFigures(
            vertices=len(self.vertices),
            faces=len(self.faces),
            components=int(mesh.body_count),
            watertight=bool(mesh.is_watertight),
            volume=float(mesh.volume),
            bounding_box=(tuple(low), tuple(high)),  # type: ignore[arg-type]
        )


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
    level = surface_level(scene, grid) if config.level is None else config.level
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


def keep_solid_parts(grid: Grid, level: float, min_share: float) -> Grid:
    """Drop specks and fill cavities: what is left above `level` is solid, and only parts of some size.

    A part is a set of grid points above `level` connected through faces, edges or corners. A cavity is what the
    outside can't reach through faces; distillation leaves shells, and nobody sees their inner walls.

    Args:
        grid: the field.
        level: where the surface will be cut.
        min_share: parts with less volume than this share of the largest are dropped, 0 to 1.

    Returns:
        The field with dropped parts at 0 and cavities at twice the level.

    Raises:
        SceneError: nothing is above the level.
    """
    from scipy import ndimage

    solid = ndimage.binary_fill_holes(grid.values > level)
    labels, count = ndimage.label(solid, structure=np.ones((3, 3, 3)))
    if count == 0:
        raise SceneError(
            f"The scene's density is nowhere above {level:g}, so it has no surface there.",
            f"Use a level below {float(grid.values.max()):.3g}.",
        )
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = sizes >= max(min_share * sizes.max(), 1)
    kept[0] = False
    values = grid.values.copy()
    values[solid & ~kept[labels]] = 0.0
    cavity = solid & kept[labels] & (values <= level)
    values[cavity] = 2.0 * level
    return Grid(values, grid.origin, grid.voxel)


def isosurface(grid: Grid, level: float) -> tuple[Floats, NDArray[np.int32]]:
    """The surface of {D > level} by marching cubes (Lewiner's, topologically consistent).

    Args:
        grid: a field that is below the level on its border.
        level: the density of the surface.

    Returns:
        vertices [V, 3] in world units and faces [F, 3], counter-clockwise seen from outside.
    """
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(grid.values, level, gradient_direction="ascent")
    points = (vertices * grid.voxel + grid.origin).astype(np.float32)
    triangles = faces.astype(np.int32)
    if signed_volume(points, triangles) < 0:
        triangles = np.ascontiguousarray(triangles[:, ::-1])
    return points, triangles


def signed_volume(
    vertices: Floats,  # [V, 3]
    faces: NDArray[np.int32],  # [F, 3]
) -> float:
    """Enclosed volume, sum over faces of a . (b x c) / 6: positive when faces run counter-clockwise from outside."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)


def smooth(vertices: Floats, faces: NDArray[np.int32], steps: int) -> Floats:
    """Taubin's smoothing (SIGGRAPH 1995): a diffusion step forward and a slightly longer one back, `steps` times.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        steps: rounds, 0 for none.

    Returns:
        Moved vertices [V, 3]; volume is kept to about a percent.
    """
    if steps == 0:
        return vertices
    import trimesh.smoothing

    mesh = _trimesh(vertices, faces)
    # trimesh alternates: an even iteration shrinks by lamb, an odd one inflates by nu.
    trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.52, iterations=2 * steps)
    return np.asarray(mesh.vertices, np.float32)


def decimate(vertices: Floats, faces: NDArray[np.int32], max_faces: int) -> tuple[Floats, NDArray[np.int32]]:
    """Fewer triangles by quadric edge collapse, never at the price of a closed surface.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        max_faces: the wish; doubled until the result is as closed as what came in.

    Returns:
        vertices and faces; those that came in, if no smaller mesh is closed.
    """
    import fast_simplification

    closed = bool(_trimesh(vertices, faces).is_watertight)
    target = max_faces
    while target < len(faces):
        points, triangles = fast_simplification.simplify(vertices, faces, target_count=target)
        mesh = _trimesh(points, triangles)
        if not closed or (mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0):
            return np.asarray(points, np.float32), np.asarray(triangles, np.int32)
        target *= 2
    return vertices, faces


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


def vertex_normals(vertices: Floats, faces: NDArray[np.int32]) -> Floats:
    """Unit normals at the vertices: the sum of the adjacent faces' normals, weighted by area.

    Args:
        vertices: [V, 3].
        faces: [F, 3].

    Returns:
        [V, 3] unit; up (+y) where a vertex has no area about it.
    """
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    area = np.cross(b - a, c - a)
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(area[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=-1
    )
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit = np.where(lengths > 1e-30, sums / np.maximum(lengths, 1e-30), [0.0, 1.0, 0.0])
    return unit.astype(np.float32)


def _trimesh(vertices: Floats, faces: NDArray[np.int32]) -> Any:
    """The same triangles as a trimesh object, untouched (no merging, no reordering)."""
    import trimesh

    return trimesh.Trimesh(vertices, faces, process=False)
