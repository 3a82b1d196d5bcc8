"""Texture atlases: a mesh unfolded into the unit square, and colours baked into the picture that lies there.

The origin of uv is bottom left (OpenGL, OBJ) and row 0 of a texture its top: the texel in row r and column c of an
S x S texture has its centre at u = (c + 1/2) / S, v = 1 - (r + 1/2) / S.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor

from dreamkit.checks import require_integer
from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.density_grid import Floats
from dreamkit.scenes.triangles import Faces, Mesh, TexturedMesh, texture_colors

MIN_SIZE, MAX_SIZE = 16, 8192
"""Sides of a texture, in texels."""

_PADDING = 4
"""Texels between charts: two on each side are a chart's own colours, whatever bilinear filtering asks for."""
_BAND = 262_144
"""Texels drawn at a time."""
_CHUNK = 65_536
"""Texels coloured at a time."""
_BYTES_PER_TEXEL = 100
"""What baking holds at its height: points, normals and places of the covered texels, the texture, the nearest ones."""


@dataclass(frozen=True)
class Atlas:
    """A mesh cut along seams into charts, which lie side by side in the unit square."""

    vertex_map: np.ndarray  # [V'] int64: the vertex that each one of the atlas is
    faces: Faces  # [F, 3] the same faces, in the same order, of the atlas's vertices
    uvs: Floats  # [V', 2] in [0, 1], the origin bottom left


@dataclass(frozen=True)
class Texels:
    """The texels of a square texture that a mesh covers, and what is there."""

    positions: Tensor  # [K, 3] world units
    normals: Tensor  # [K, 3] unit
    rows: Tensor  # [K] int64, 0 is the top
    columns: Tensor  # [K] int64
    size: int


def unwrap(vertices: Floats, faces: Faces, size: int = 1024) -> Atlas:
    """Unfold a mesh by xatlas: charts of low distortion, packed with room between them for bilinear filtering.

    The time grows faster than the number of triangles: decimate first.

    Args:
        vertices: [V, 3] world units.
        faces: [F, 3], F >= 1.
        size: side of the texture that the packing is meant for, texels.

    Returns:
        The atlas; the same input gives the same bytes.

    Raises:
        ConfigError: a size out of range.
        SceneError: no triangle with an area, or vertices that are not finite.
    """
    import xatlas

    require_integer("The texture's size", size, MIN_SIZE, MAX_SIZE)
    if not len(faces):
        raise SceneError("The mesh has no triangles to unfold.", "Extract it again, at a lower level.")
    if not np.isfinite(vertices).all():
        raise SceneError("The mesh has vertices that are not finite.", "Use an earlier checkpoint.")
    packing = xatlas.PackOptions()
    packing.resolution, packing.bilinear = size, True
    packing.padding = min(_PADDING, size // 64 + 1)
    job = xatlas.Atlas()
    # In units of its own size: xatlas takes very small triangles for degenerate ones.
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    unit = (vertices - low) / max(float((high - low).max()), 1e-30)
    job.add_mesh(np.ascontiguousarray(unit, np.float32), np.ascontiguousarray(faces, np.uint32))
    job.generate(xatlas.ChartOptions(), packing)
    if job.chart_count == 0:
        raise SceneError("The mesh has no triangle with an area to unfold.", "Extract it again, at a finer resolution.")
    vertex_map, corners, uvs = job[0]
    return Atlas(vertex_map.astype(np.int64), corners.astype(np.int32), np.clip(uvs, 0.0, 1.0).astype(np.float32))


def texels(atlas: Atlas, mesh: Mesh, size: int) -> Texels:
    """The point of the surface at the centre of every covered texel.

    Args:
        atlas: from `unwrap` of the mesh.
        mesh: vertices and normals.
        size: side of the texture, 16 to 8192.

    Returns:
        Points and (interpolated) normals, row by row.

    Raises:
        ConfigError: a size out of range, or one that the free memory can't hold.
        SceneError: no texel's centre is covered.
    """
    from dreamkit_kernels.mesh_rasterize import interpolate, rasterize  # type: ignore[import-not-found]

    _check_size(size)
    faces = torch.from_numpy(atlas.faces)
    attributes = np.concatenate([mesh.vertices[atlas.vertex_map], mesh.normals[atlas.vertex_map]], axis=1)
    values = torch.from_numpy(np.ascontiguousarray(attributes, np.float32))
    u, v = torch.from_numpy(atlas.uvs).double().unbind(dim=1)
    found, rows, columns = [], [], []
    height = max(1, _BAND // size)
    for top in range(0, size, height):
        band = min(height, size - top)
        # Clip space of the rows top .. top + band: y = 1 at the upper edge of the first, -1 at the lower of the last.
        y = 1.0 - 2.0 * ((1.0 - v) * size - top) / band
        clip = torch.stack([2.0 * u - 1.0, y, torch.zeros_like(u), torch.ones_like(u)], dim=1).float()
        fragments = rasterize(clip[None], faces, band, size)
        row, column = (fragments.faces[0] >= 0).nonzero(as_tuple=True)
        found.append(interpolate(values, faces, fragments)[0][row, column])
        rows.append(row + top)
        columns.append(column)
    seen = torch.cat(found)
    if not len(seen):
        raise SceneError(
            f"The mesh covers no texel of a {size} x {size} texture.", "Use a larger texture, or decimate the mesh."
        )
    normals = torch.nn.functional.normalize(seen[:, 3:], dim=1)
    return Texels(seen[:, :3].contiguous(), normals, torch.cat(rows), torch.cat(columns), size)


def bake(texels: Texels, color: Callable[[Tensor, Tensor], Tensor]) -> Floats:
    """A texture of the surface's colours; every texel that no face covers gets the colour of the nearest one that is.

    So the charts have borders of their own colours, and neither bilinear filtering nor smaller versions of the picture
    show seams.

    Args:
        texels: from `texels`.
        color: points [N, 3] and unit normals [N, 3] to sRGB [N, 3]; asked for 65,536 texels at a time, without
            gradients.

    Returns:
        [size, size, 3] in [0, 1], row 0 the top.

    Raises:
        SceneError: colours of another shape or not finite.
    """
    from scipy.ndimage import distance_transform_edt

    texture = np.zeros((texels.size, texels.size, 3), np.float32)
    covered = np.zeros((texels.size, texels.size), bool)
    for first in range(0, len(texels.positions), _CHUNK):
        part = slice(first, first + _CHUNK)
        points = texels.positions[part]
        with torch.no_grad():
            colors = color(points, texels.normals[part])
        if colors.shape != points.shape or not bool(torch.isfinite(colors).all()):
            raise SceneError(
                f"The colours of {len(points)} texels came as {tuple(colors.shape)}, or are not finite.",
                "Give finite colours of the points' shape; if a model made them, use an earlier checkpoint.",
            )
        place = texels.rows[part].numpy(), texels.columns[part].numpy()
        texture[place] = colors.detach().float().clamp(0.0, 1.0).cpu().numpy()
        covered[place] = True
    bare = ~covered
    if bare.any():
        rows, columns = distance_transform_edt(bare, return_distances=False, return_indices=True)
        texture[bare] = texture[rows[bare], columns[bare]]
    return texture


def textured(mesh: Mesh, color: Callable[[Tensor, Tensor], Tensor], size: int = 1024) -> TexturedMesh:
    """Unfold a mesh and bake its colours: `unwrap`, `texels` and `bake` in a row.

    Args:
        mesh: vertices, faces and normals; its colours are left behind.
        color: points [N, 3] and unit normals [N, 3] to sRGB [N, 3].
        size: side of the texture, 16 to 8192.

    Returns:
        The same surface with a texture, its vertices doubled along the seams.

    Raises:
        ConfigError: a size out of range, or one that the free memory can't hold.
        SceneError: see `unwrap`, `texels` and `bake`.
    """
    _check_size(size)
    atlas = unwrap(mesh.vertices, mesh.faces, size)
    texture = bake(texels(atlas, mesh, size), color)
    return TexturedMesh(
        mesh.vertices[atlas.vertex_map],
        atlas.faces,
        texture_colors(texture, atlas.uvs),
        mesh.normals[atlas.vertex_map],
        atlas.uvs,
        texture,
    )


def _check_size(size: int) -> None:
    """Check the side of a texture against its limits and the free memory.

    Raises:
        ConfigError: it is out of range, or too large for this machine.
    """
    require_integer("The texture's size", size, MIN_SIZE, MAX_SIZE)
    needed, free = size * size * _BYTES_PER_TEXEL, psutil.virtual_memory().available
    if needed > free:
        fits = 2 ** int(math.log2(max(MIN_SIZE, math.sqrt(free / _BYTES_PER_TEXEL))))
        raise ConfigError(
            f"A texture of {size} x {size} texels needs about {needed / 2**30:.1f} GiB of memory to bake, and "
            f"{free / 2**30:.1f} are free.",
            f"Use {fits} or less.",
        )
