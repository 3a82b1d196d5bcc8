"""Toy objects as triangles, cut from their distance functions once and kept in a file.

Sphere tracing a frame costs tens of milliseconds, rasterising a whole clip of meshes costs a few. Every part of an
object is a closed mesh of its own; where two of them meet, the depth test finds the border, as sharp as the pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dreamkit.checks import one_of, require_integer
from dreamkit.errors import SceneError
from dreamkit.files import atomic_path
from dreamkit.scenes.isosurface import MeshConfig, decimate, field_mesh
from dreamkit.scenes.triangles import Faces, face_areas
from dreamkit.toyworld.motion_config import MOTION_OBJECTS, MotionConfig
from dreamkit.toyworld.objects import ShapeParameters, Solid, get_object
from dreamkit.toyworld.primitives import Field

_HALF = 0.97  # of the cube that surely holds an object
_HIDDEN = -0.01  # faces that lie this deep in another part are never seen
_FEWEST = 60  # faces of a part
_STRAY = 0.6  # how far a triangle may be from the surface, in grid steps: as much as cutting rounds off an edge
# Normals are taken this far from a corner towards the middle of its face: the large flat faces of a decimated box
# end in its round edges, whose normals would make pillows of them.
_INSET = 0.12
_NORMAL_STEP = 2e-3
_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class ToyMesh:
    """One variant of an object, in its own space: inside the unit sphere, y up, its front towards +z.

    Args:
        vertices: [V, 3].
        faces: [F, 3] int32, counter-clockwise seen from outside.
        normals: [F, 3, 3] unit, at each corner of each face.
        parts: [F] int64, rows of `ACCENT_COLOURS`.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor
    parts: Tensor

    @property
    def half_sizes(self) -> Tensor:
        """[3] half the edges of the bounding box."""
        low, high = self.vertices.aminmax(dim=0)
        return (high - low) / 2

    def sample_surface(
        self, count: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:  # points [count, 3], normals [count, 3]
        """Points on the faces, uniform by area, with unit normals."""
        corners = self.vertices[self.faces]
        edges = corners[:, 1:] - corners[:, :1]
        areas = torch.linalg.cross(edges[:, 0], edges[:, 1]).norm(dim=1)
        chosen = torch.multinomial(areas, count, replacement=True, generator=generator)
        # A uniform point of the simplex: exponential draws, normalised.
        weights = -torch.rand(count, 3, 1, generator=generator).clamp_min(1e-9).log()
        weights = weights / weights.sum(dim=1, keepdim=True)
        points = (corners[chosen] * weights).sum(dim=1)
        return points, functional.normalize((self.normals[chosen] * weights).sum(dim=1), dim=1)


def cache_key(config: MotionConfig) -> str:
    """Name of the meshes on disk: changes with their settings, the objects' names and the shapes' source."""
    names = ("primitives", "solids", "objects_plain", "objects_animals", "objects_things", "marching", "motion_meshes")
    sources = "".join(Path(__file__).with_name(f"{name}.py").read_text() for name in names)
    settings = [MOTION_OBJECTS, config.shapes, config.faces, config.resolution, config.seed]
    return hashlib.sha256((json.dumps(settings) + sources).encode()).hexdigest()[:16]


def build_motion_cache(
    config: MotionConfig,
    folder: Path,
    workers: int = 2,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Cut the meshes of a configuration, or find them cut already.

    Args:
        config: how many, how fine.
        folder: where caches live.
        workers: processes; with 1 the work is done in this one.
        report: called with (meshes done, meshes in all).

    Returns:
        The safetensors file.
    """
    from safetensors.numpy import save_file

    path = folder / f"motion-{cache_key(config)}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    count = config.shapes * len(MOTION_OBJECTS)
    parts: list[dict[str, NDArray[Any]]] = []

    def keep(part: dict[str, NDArray[Any]]) -> None:
        parts.append(part)
        report(len(parts), count)

    if workers == 1:
        for index in range(count):
            keep(cut_mesh(index, config))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for part in pool.map(_cut_alone, range(count), [config] * count, chunksize=2):
                keep(part)
    tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return path


def _cut_alone(index: int, config: MotionConfig) -> dict[str, NDArray[Any]]:
    """One mesh, in a worker that uses one core."""
    torch.set_num_threads(1)
    return cut_mesh(index, config)


def shape_parameters(index: int, config: MotionConfig) -> ShapeParameters:
    """The shape of mesh number `index`: variants of an object follow one another, its first is the standard one."""
    if index % config.shapes == 0:
        return ShapeParameters()
    return ShapeParameters.sample(torch.Generator().manual_seed(config.seed * 1_000_003 + index))


def cut_mesh(index: int, config: MotionConfig) -> dict[str, NDArray[Any]]:
    """Mesh number `index` as arrays, its parts one after another; `counts` [1, 2] holds its vertices and faces."""
    solid = get_object(MOTION_OBJECTS[index // config.shapes]).build(shape_parameters(index, config))
    pieces = []
    for field in solid.groups:
        settings = MeshConfig(config.resolution, min_component=0.0, smoothing_steps=0, max_faces=10**9)
        mesh = field_mesh(lambda p, field=field: field.at(*p.unbind(-1)), None, _HALF, settings)  # type: ignore[misc]
        pieces.append((mesh.vertices, mesh.faces))
    areas = np.array([face_areas(vertices, faces).sum() for vertices, faces in pieces])
    budgets = np.maximum(config.faces * areas / areas.sum(), _FEWEST).astype(int)
    stray = _STRAY * 2 * _HALF / (config.resolution - 1)
    vertices: list[NDArray[Any]] = []
    faces, normals, parts = [], [], []
    for slot, ((points, triangles), budget) in enumerate(zip(pieces, budgets.tolist(), strict=True)):
        points, triangles = _simplified(points, triangles, solid.groups[slot], budget, stray)
        triangles = _seen_faces(points, triangles, solid, slot)
        used, renumbered = np.unique(triangles, return_inverse=True)
        points, triangles = points[used], renumbered.reshape(-1, 3).astype(np.int32)
        normals.append(_corner_normals(points, triangles, solid.groups[slot]))
        faces.append(triangles + sum(len(before) for before in vertices))
        vertices.append(points)
        parts.append(np.full(len(triangles), int(solid.part_ids[slot]), np.uint8))
    joined = {"vertices": vertices, "faces": faces, "normals": normals, "parts": parts}
    arrays: dict[str, NDArray[Any]] = {name: np.concatenate(values) for name, values in joined.items()}
    arrays["faces"] = arrays["faces"].astype(np.int32)
    arrays["counts"] = np.array([[len(arrays["vertices"]), len(arrays["faces"])]], np.int64)
    return arrays


def _simplified(
    points: NDArray[Any], triangles: Faces, field: Field, budget: int, stray: float
) -> tuple[NDArray[np.float32], Faces]:
    """As few triangles as `budget`, or twice as many until none is further than `stray` from the surface."""
    while budget < len(triangles):
        fewer, corners = decimate(points, triangles, budget)
        edges = fewer[corners]  # [F, 3, 3]
        probes = np.concatenate([edges.mean(axis=1, keepdims=True), (edges + np.roll(edges, 1, axis=1)) / 2], axis=1)
        if float(field.at(*torch.from_numpy(probes).unbind(-1)).abs().max()) < stray:
            return fewer, corners
        budget *= 2
    return points, triangles


def _seen_faces(points: NDArray[Any], triangles: Faces, solid: Solid, slot: int) -> Faces:
    """Without the faces that lie inside other parts."""
    others = [field for index, field in enumerate(solid.groups) if index != slot]
    if not others:
        return triangles
    coordinates = torch.from_numpy(points).unbind(-1)
    depth = torch.stack([field.at(*coordinates) for field in others]).amin(dim=0)
    inside = (depth < _HIDDEN).numpy()[triangles].all(axis=1)
    return triangles if inside.all() else triangles[~inside]


def _corner_normals(points: NDArray[Any], triangles: Faces, field: Field) -> NDArray[np.float32]:
    """Unit gradients [F, 3, 3] of a field at the corners of faces, by four differences on a tetrahedron."""
    corners = torch.from_numpy(points)[torch.from_numpy(triangles).long()]
    x, y, z = (corners + _INSET * (corners.mean(dim=1, keepdim=True) - corners)).unbind(-1)
    total = torch.zeros_like(corners)
    for offset in _TETRAHEDRON:
        dx, dy, dz = (_NORMAL_STEP * value for value in offset)
        total += field.at(x + dx, y + dy, z + dz)[..., None] * torch.tensor(offset)
    return functional.normalize(total, dim=-1, eps=1e-12).numpy()


class MeshLibrary:
    """The meshes of a file that `build_motion_cache` made.

    Args:
        path: the file.
        shapes: variants of every object in it.

    Raises:
        SceneError: the file holds another number of meshes.
    """

    def __init__(self, path: Path, shapes: int) -> None:
        from safetensors.torch import load_file

        tensors = load_file(path)
        counts = tensors["counts"].tolist() if "counts" in tensors else []
        if len(counts) != shapes * len(MOTION_OBJECTS):
            raise SceneError(
                f"{path} holds {len(counts)} meshes, not {shapes} of each of {len(MOTION_OBJECTS)} objects.",
                "Give the file that build_motion_cache made for this configuration.",
            )
        self.shapes = shapes
        vertices = tensors["vertices"].split([count for count, _ in counts])
        faces, normals, parts = (
            tensors[key].split([count for _, count in counts]) for key in ("faces", "normals", "parts")
        )
        self._meshes = [
            ToyMesh(v, f, n.float(), p.long()) for v, f, n, p in zip(vertices, faces, normals, parts, strict=True)
        ]

    def mesh(self, name: str, shape: int) -> ToyMesh:
        """Variant number `shape` of an object.

        Raises:
            ConfigError: an object or variant that there is not.
        """
        one_of("The moving world's object", name, MOTION_OBJECTS)
        require_integer("The variant of the shape", shape, 0, self.shapes - 1)
        return self._meshes[MOTION_OBJECTS.index(name) * self.shapes + shape]
