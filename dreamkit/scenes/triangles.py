"""Triangle meshes with vertex colours or a texture: what they are, their figures, and points on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreamkit.checks import require_integer
from dreamkit.errors import SceneError
from dreamkit.scenes.density_grid import Floats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Faces = NDArray[np.int32]


@dataclass(frozen=True)
class MeshFigures:
    """What there is to say about a mesh in numbers. The seams of a texture are closed first."""

    vertices: int
    """As stored: a texture's seams count twice."""
    faces: int
    components: int
    """Connected parts."""
    watertight: bool
    """Whether every edge has exactly two faces, so that there is an inside."""
    manifold: bool
    """Whether no edge has more than two faces and the faces about every vertex are a single fan."""
    boundary_edges: int
    """Edges of one face only."""
    volume: float
    """World units cubed; meaningful when watertight."""
    area: float
    """World units squared."""
    bounding_box: tuple[tuple[float, float, float], tuple[float, float, float]]
    """Lower and upper corner, world units."""


@dataclass(frozen=True)
class Mesh:
    """Triangles with a colour and a normal at every vertex."""

    vertices: Floats  # [V, 3] world units
    faces: Faces  # [F, 3] counter-clockwise seen from outside
    colors: Floats  # [V, 3] in [0, 1], sRGB
    normals: Floats  # [V, 3] unit, outward

    def surface(self) -> tuple[Floats, Faces]:
        """Vertices [W, 3] and faces [F, 3] without the seams that a texture cuts."""
        return self.vertices, self.faces

    def figures(self) -> MeshFigures:
        """Count, measure and check the mesh; it has at least one face."""
        vertices, faces = self.surface()
        edge_faces, fans, components = _topology(faces)
        distinct = bool((faces != np.roll(faces, 1, axis=1)).all())
        low, high = self.vertices.min(axis=0).tolist(), self.vertices.max(axis=0).tolist()
        return MeshFigures(
            vertices=len(self.vertices),
            faces=len(faces),
            components=components,
            watertight=bool((edge_faces == 2).all()),
            manifold=distinct and bool((edge_faces <= 2).all()) and fans == len(np.unique(faces)),
            boundary_edges=int((edge_faces == 1).sum()),
            volume=signed_volume(vertices, faces),
            area=float(face_areas(vertices, faces).sum()),
            bounding_box=(tuple(low), tuple(high)),  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class TexturedMesh(Mesh):
    """Triangles with a picture on them. The colours are the texture's at the vertices.

    A vertex on a seam of the atlas is there once for each of its places in the texture.
    """

    uvs: Floats  # [V, 2] in [0, 1], the origin bottom left as in OpenGL and OBJ, v up
    texture: Floats  # [H, W, 3] in [0, 1], sRGB; row 0 is the top of the picture, v = 1

    def surface(self) -> tuple[Floats, Faces]:
        """Vertices [W, 3] and faces [F, 3] without seams: one vertex for all at exactly the same place."""
        return weld(self.vertices, self.faces)


def weld(vertices: Floats, faces: Faces) -> tuple[Floats, Faces]:
    """Join vertices at exactly the same place.

    Args:
        vertices: [V, 3].
        faces: [F, 3].

    Returns:
        Vertices [W, 3], each at the turn of its first twin, and the same faces [F, 3] of them.
    """
    first, number = first_of_each(vertices)
    return vertices[first], number[faces].astype(np.int32)


def first_of_each(rows: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where each distinct row [D] stands first, in their order, and which of those every row [N] is."""
    _, first, number = np.unique(rows + np.float32(0), axis=0, return_index=True, return_inverse=True)  # -0 is 0
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[number.reshape(-1)]


def _topology(faces: Faces) -> tuple[NDArray[np.intp], int, int]:
    """Faces at each edge [E], the number of fans (faces about a vertex that are linked by edges), and of parts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    def parts(first: NDArray, second: NDArray, count: int) -> NDArray:
        links = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
        return connected_components(links, directed=False)[1]

    start = faces.astype(np.int64).reshape(-1)  # half-edge 3 f + k goes from corner k of face f to the next
    end = np.roll(faces, -1, axis=1).astype(np.int64).reshape(-1)
    count = int(start.max()) + 1
    _, edge, edge_faces = np.unique(
        np.minimum(start, end) * count + np.maximum(start, end), return_inverse=True, return_counts=True
    )
    one, other = np.argsort(edge, kind="stable")[np.repeat(edge_faces == 2, edge_faces)].reshape(-1, 2).T
    corners = np.arange(len(start)).reshape(-1, 3)
    following = np.roll(corners, -1, axis=1).reshape(-1)
    along = start[one] == start[other]  # two faces that do not run the same way round
    first = np.concatenate([one, following[one]])
    second = np.concatenate([np.where(along, other, following[other]), np.where(along, following[other], other)])
    fans = parts(first, second, len(start)).max() + 1
    components = np.unique(parts(start, end, count)[start])
    return edge_faces, int(fans), len(components)


def signed_volume(vertices: Floats, faces: Faces) -> float:
    """Enclosed volume, sum over faces of a . (b x c) / 6: positive when faces run counter-clockwise from outside.

    Args:
        vertices: [V, 3].
        faces: [F, 3].
    """
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0)


def _area_vectors(vertices: Floats, faces: Faces) -> NDArray[np.float64]:
    """(b - a) x (c - a) of each face [F, 3]: along its normal, twice its area long."""
    a, b, c = (vertices[faces[:, k]].astype(np.float64) for k in range(3))
    return np.cross(b - a, c - a)


def face_areas(vertices: Floats, faces: Faces) -> NDArray[np.float64]:
    """Area of each face [F], world units squared."""
    return 0.5 * np.linalg.norm(_area_vectors(vertices, faces), axis=1)


def vertex_normals(vertices: Floats, faces: Faces) -> Floats:
    """Unit normals at the vertices: the sum of the adjacent faces' normals, weighted by area.

    Args:
        vertices: [V, 3].
        faces: [F, 3].

    Returns:
        [V, 3] unit; up (+y) where a vertex has no area about it.
    """
    area = _area_vectors(vertices, faces)
    sums = np.stack(
        [np.bincount(faces.ravel(), np.repeat(area[:, k], 3), minlength=len(vertices)) for k in range(3)], axis=-1
    )
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    unit = np.where(lengths > 1e-30, sums / np.maximum(lengths, 1e-30), [0.0, 1.0, 0.0])
    return unit.astype(np.float32)


def texture_colors(
    texture: Floats,  # [H, W, C], row 0 at v = 1
    uvs: Floats,  # [N, 2], the origin bottom left
) -> Floats:
    """Look a texture up, bilinear and held at the edges of the picture.

    The texel in row r and column c has its centre at u = (c + 1/2) / W and v = 1 - (r + 1/2) / H.

    Args:
        texture: the picture.
        uvs: where to look; outside [0, 1] counts as at the edge.

    Returns:
        [N, C].
    """
    height, width = texture.shape[:2]
    row = np.clip((1.0 - uvs[:, 1].astype(np.float64)) * height - 0.5, 0, height - 1)
    column = np.clip(uvs[:, 0].astype(np.float64) * width - 0.5, 0, width - 1)
    top, left = np.floor(row).astype(np.intp), np.floor(column).astype(np.intp)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (row - top)[:, None], (column - left)[:, None]
    upper = texture[top, left] * (1 - across) + texture[top, right] * across
    lower = texture[below, left] * (1 - across) + texture[below, right] * across
    return (upper * (1 - down) + lower * down).astype(np.float32)


def sample_surface_evenly(mesh: Mesh, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the surface at about equal distances: independent ones crowd here and leave gaps there.

    Lloyd's relaxation (1982) on eight times as many samples: each goes to the nearest point, and every point moves to
    the sample that lies nearest to the mean of its own, four times.

    Args:
        mesh: of positive area.
        count: how many, at least 1.
        generator: on the CPU, the only source of randomness.

    Returns:
        Points, unit normals and colours, [count, 3] each, as `sample_surface` gives them.

    Raises:
        ConfigError: a count below 1.
        SceneError: the mesh has no area.
    """
    from scipy.spatial import cKDTree

    require_integer("The number of surface samples", count, 1)
    points, normals, colors = sample_surface(mesh, 8 * count, generator)
    samples = points.double().numpy()
    tree, chosen = cKDTree(samples), np.arange(count)
    for _ in range(4):
        _, owner = cKDTree(samples[chosen]).query(samples)
        members = np.bincount(owner, minlength=count)[:, None]
        means = np.stack([np.bincount(owner, samples[:, k], minlength=count) for k in range(3)], axis=1)
        _, chosen = tree.query(np.where(members > 0, means / np.maximum(members, 1), samples[chosen]))
    return points[chosen], normals[chosen], colors[chosen]


def sample_surface(mesh: Mesh, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the surface, uniform by area, with what is there.

    Args:
        mesh: of positive area.
        count: how many, at least 1.
        generator: on the CPU, the only source of randomness.

    Returns:
        Points [count, 3] in world units, unit normals [count, 3] (those of the vertices, interpolated) and colours
        [count, 3] in [0, 1] sRGB (the texture's if there is one, else those of the vertices, interpolated).

    Raises:
        ConfigError: a count below 1.
        SceneError: the mesh has no area.
    """
    import torch

    require_integer("The number of surface samples", count, 1)
    totals = np.cumsum(face_areas(mesh.vertices, mesh.faces))
    if not (len(totals) and 0 < totals[-1] < np.inf):
        raise SceneError("The mesh has no area to sample points on.", "Extract it again at a finer resolution.")
    draws = torch.rand(count, 3, generator=generator, dtype=torch.float64).numpy()
    # A draw below the total, and the first face whose running total is above it: never one without an area.
    chosen = np.searchsorted(totals, draws[:, 0] * totals[-1], side="right")
    corners = mesh.faces[np.minimum(chosen, len(totals) - 1)]
    # Uniform in the unit square, folded to the triangle.
    weights = np.where(draws[:, 1:].sum(axis=1, keepdims=True) > 1, 1 - draws[:, 1:], draws[:, 1:])
    weights = np.concatenate([1 - weights.sum(axis=1, keepdims=True), weights], axis=1)

    def interpolate(values: Floats) -> NDArray[np.float64]:
        return np.einsum("nk,nkc->nc", weights, values[corners].astype(np.float64))

    normals = interpolate(mesh.normals)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    flat = _area_vectors(mesh.vertices, corners)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
    normals = np.where(lengths > 1e-6, normals / np.maximum(lengths, 1e-6), flat)
    if isinstance(mesh, TexturedMesh):
        colors = texture_colors(mesh.texture, interpolate(mesh.uvs))  # type: ignore[arg-type]
    else:
        colors = interpolate(mesh.colors)  # type: ignore[assignment]
    points, unit, rgb = (
        torch.from_numpy(values.astype(np.float32)) for values in (interpolate(mesh.vertices), normals, colors)
    )
    return points, unit, rgb
