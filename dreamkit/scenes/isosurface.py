"""From a field on a grid to a clean surface: solid parts, marching cubes, smoothing, decimation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.density_grid import Floats, Grid
from dreamkit.scenes.triangles import Faces, Mesh, signed_volume, vertex_normals

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MIN_FACES = 4
"""A tetrahedron: nothing with fewer is closed."""
_AGGRESSIONS = (7, 5)
"""How eagerly decimation raises its threshold: when the library's own 7 tears a surface, slower steps may not."""
_CHUNK = 262_144
"""Points that a field is asked for at a time."""


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
    """Decimate to at most this many triangles (as far as the surface stays closed), at least 4."""

    def __post_init__(self) -> None:
        wanted = {
            "resolution": (16 <= self.resolution <= 512, "16 to 512"),
            "level": (self.level is None or 0 < self.level < np.inf, "a positive number"),
            "min_opacity": (0 <= self.min_opacity <= 1, "0 to 1"),
            "min_component": (0 <= self.min_component <= 1, "0 to 1"),
            "smoothing_steps": (0 <= self.smoothing_steps <= 1000, "0 to 1000"),
            "max_faces": (self.max_faces >= MIN_FACES, f"at least {MIN_FACES}"),
        }
        for name, (holds, hint) in wanted.items():
            if not holds:
                raise ConfigError(f"The mesh's {name} is {getattr(self, name)}.", f"Use {hint}.")


def field_mesh(
    sdf: Callable[[Tensor], Tensor],  # points [N, 3] to [N], negative inside
    color: Callable[[Tensor], Tensor] | None,  # points [N, 3] to [N, 3] in [0, 1], sRGB
    half: float,
    config: MeshConfig | None = None,
    device: torch.device | str = "cpu",
) -> Mesh:
    """Cut a closed surface from any field: signed distances, or an iso level minus the density of a NeRF.

    The field is evaluated at resolution^3 points of the cube [-half, half]^3, a chunk at a time and without gradients.
    What reaches out of the cube is closed at its faces.

    Args:
        sdf: the field.
        color: colours of points on the surface; None for white.
        half: half the edge of the cube, world units.
        config: resolution and cleaning; its level and min_opacity do not apply.
        device: where both functions want their points.

    Returns:
        The mesh, with the steps and the limits of `extract_mesh`.

    Raises:
        SceneError: nothing or everything is inside, or a function gave values that are not finite or of another shape.
        ConfigError: a half edge that is not positive.
    """
    config = config or MeshConfig()
    if not 0 < half < np.inf:
        raise ConfigError(f"The half edge of a field's cube is {half}.", "Use a positive number of world units.")
    grid = _field_grid(sdf, half, config.resolution, device)
    vertices, faces = isosurface(keep_solid_parts(grid, 0.0, config.min_component), 0.0)
    vertices = smooth(vertices, faces, config.smoothing_steps)
    vertices, faces = decimate(vertices, faces, config.max_faces)
    colors = np.ones_like(vertices)
    if color is not None:
        chunks = (vertices[first : first + _CHUNK] for first in range(0, len(vertices), _CHUNK))
        colors = np.clip(_evaluate(color, chunks, (3,), "colour", device), 0.0, 1.0)
    return Mesh(vertices, faces, colors, vertex_normals(vertices, faces))


def _field_grid(sdf: Callable[[Tensor], Tensor], half: float, resolution: int, device: torch.device | str) -> Grid:
    """Minus the field, positive inside, with a layer of outside all round.

    Raises:
        SceneError: nothing or everything is inside, or values that are not finite.
    """
    axis = np.linspace(-half, half, resolution, dtype=np.float32)
    planes = max(1, _CHUNK // resolution**2)

    def slabs() -> Iterator[Floats]:
        for first in range(0, resolution, planes):
            slab = np.meshgrid(axis[first : first + planes], axis, axis, indexing="ij")
            yield np.stack(slab, axis=-1).reshape(-1, 3)

    values = -_evaluate(sdf, slabs(), (), "signed distance", device).reshape((resolution,) * 3)
    low, high = float(values.min()), float(values.max())
    if high <= 0:
        raise SceneError(
            f"The field is nowhere above its iso level: no point of the cube of half edge {half:g} is inside "
            f"(the nearest misses by {-high:.3g}).",
            "Train it longer, use a lower level, or look in a larger cube.",
        )
    if low > 0:
        raise SceneError(
            f"The field is above its iso level everywhere in the cube of half edge {half:g} (by {low:.3g} or more).",
            "Use a higher level, or look in a larger cube.",
        )
    voxel = 2.0 * half / (resolution - 1)
    padded = np.pad(values, 1, constant_values=-max(high, -low))
    return Grid(padded, np.full(3, -half - voxel, np.float32), voxel)


def _evaluate(
    function: Callable[[Tensor], Tensor],
    chunks: Iterator[Floats],
    shape: tuple[int, ...],  # of one answer
    what: str,
    device: torch.device | str,
) -> Floats:
    """The function's answers to all points.

    Raises:
        SceneError: an answer of another shape, or one that is not finite.
    """
    import torch

    answers = []
    for points in chunks:
        with torch.no_grad():
            answer = function(torch.from_numpy(points).to(device))
        if answer.shape != (len(points), *shape):
            raise SceneError(
                f"The {what} of {len(points)} points came as {tuple(answer.shape)}.",
                f"Give a tensor of shape {(len(points), *shape)}.",
            )
        finite = torch.isfinite(answer)
        if not bool(finite.all()):
            raise SceneError(
                f"The field's {what} is not finite at {int((~finite).sum())} of {len(points)} points.",
                "The scene has diverged: use an earlier checkpoint, or a lower learning rate.",
            )
        answers.append(answer.detach().float().cpu().numpy())
    return np.concatenate(answers)


def keep_solid_parts(grid: Grid, level: float, min_share: float) -> Grid:
    """Drop specks and fill cavities: what is left above `level` is solid, and only parts of some size.

    A part is a set of grid points above `level` connected through faces, edges or corners. A cavity is what the
    outside can't reach through faces; distillation leaves shells, and nobody sees their inner walls.

    Args:
        grid: a field that is below the level on its border.
        level: where the surface will be cut.
        min_share: parts with less volume than this share of the largest are dropped, 0 to 1.

    Returns:
        The field with dropped parts at its minimum and cavities at its maximum.

    Raises:
        SceneError: nothing is above the level.
    """
    from scipy import ndimage

    solid = ndimage.binary_fill_holes(grid.values > level)
    labels, count = ndimage.label(solid, structure=np.ones((3, 3, 3)))
    low, high = float(grid.values.min()), float(grid.values.max())
    if count == 0:
        raise SceneError(
            f"The scene's density is nowhere above {level:g}, so it has no surface there.",
            f"Use a level below {high:.3g}.",
        )
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = sizes >= max(min_share * sizes.max(), 1)
    kept[0] = False
    values = grid.values.copy()
    values[solid & ~kept[labels]] = low
    values[solid & kept[labels] & (values <= level)] = high
    return Grid(values, grid.origin, grid.voxel)


def sealing_level(grid: Grid, level: float) -> float:
    """The level itself, or the one a little below it at which a shell with pinholes becomes a solid.

    Discs that were laid on a surface leave gaps here and there; cut at the level that renders suggest they are a skin
    with two sides. If half or a quarter of the level doubles what is enclosed, that is what the surface was.

    Args:
        grid: a field that is below the level on its border.
        level: positive.
    """
    from scipy import ndimage

    def enclosed(at: float) -> int:
        return int(np.count_nonzero(ndimage.binary_fill_holes(grid.values > at)))

    now = enclosed(level)
    for lower in (0.5 * level, 0.25 * level):
        # Doubled beyond what the skin itself gains in thickness.
        if enclosed(lower) > 2 * now + np.count_nonzero(grid.values > lower):
            return lower
    return level


def isosurface(grid: Grid, level: float) -> tuple[Floats, Faces]:
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


def smooth(vertices: Floats, faces: Faces, steps: int) -> Floats:
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


def decimate(vertices: Floats, faces: Faces, max_faces: int) -> tuple[Floats, Faces]:
    """Fewer triangles by quadric edge collapse, never at the price of a closed surface.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
        max_faces: the wish, at least 4; doubled until the result is as closed as what came in.

    Returns:
        vertices and faces; those that came in, if no smaller mesh is closed.

    Raises:
        ConfigError: fewer than 4 triangles asked for.
    """
    import fast_simplification

    if max_faces < MIN_FACES:
        raise ConfigError(
            f"A mesh can't be decimated to {max_faces} triangles.",
            f"Use at least {MIN_FACES}: nothing with fewer is closed.",
        )
    closed = bool(_trimesh(vertices, faces).is_watertight)
    target = max_faces
    while target < len(faces):
        for aggression in _AGGRESSIONS:
            points, triangles = fast_simplification.simplify(vertices, faces, target_count=target, agg=aggression)
            mesh = _trimesh(points, triangles)
            if not closed or (mesh.is_watertight and mesh.is_winding_consistent and mesh.volume > 0):
                return np.asarray(points, np.float32), np.asarray(triangles, np.int32)
        target *= 2
    return vertices, faces


def _trimesh(vertices: Floats, faces: Faces) -> Any:
    """The same triangles as a trimesh object, untouched (no merging, no reordering)."""
    import trimesh

    return trimesh.Trimesh(vertices, faces, process=False)
