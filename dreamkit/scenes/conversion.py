"""One kind of scene from another, by way of its surface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh import MeshConfig, extract_mesh, field_mesh
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.static_mesh import StaticMesh
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.triangles import Mesh, sample_surface, sample_surface_evenly, vertex_normals

_COLOR_POINTS = 20_000


@dataclass(frozen=True)
class Shape:
    """What a scene looks like from everywhere, whatever it is made of.

    Args:
        inside: points [N, 3] to [N], negative inside; any scale.
        colors: points [N, 3] on the surface to [N, 3] in [0, 1].
        half: half the edge of the cube that holds it.
    """

    inside: Callable[[Tensor], Tensor]
    colors: Callable[[Tensor], Tensor]
    half: float


def shape_of(scene: TrainableScene) -> Shape:
    """The shape of a scene of any kind.

    Raises:
        SceneError: it has no surface.
    """
    if isinstance(scene, NerfScene):
        level = half_light_level(scene)
        return Shape(lambda points: scene.field.inside(points, level), scene.field.colors, scene.config.half)
    mesh = mesh_of(scene)
    if isinstance(scene, MeshScene):
        return Shape(inside_of(mesh), scene.colors, scene.config.half)
    return Shape(inside_of(mesh), colors_of(mesh), float(np.abs(mesh.vertices).max()) * 1.05)


def mesh_of(scene: TrainableScene | StaticMesh, config: MeshConfig | None = None) -> Mesh:
    """A coloured surface of a scene of any kind: closed, unless it is a finished mesh that is not.

    Args:
        scene: what to cut.
        config: resolution and cleaning; of a mesh only `max_faces` matters.

    Raises:
        SceneError: the scene has no surface; what to try.
    """
    config = config or MeshConfig()
    if isinstance(scene, GaussianScene):
        return extract_mesh(scene, config)
    if isinstance(scene, MeshScene):
        return _mesh_of_mesh(scene, config)
    if isinstance(scene, StaticMesh):
        return _of_fewer_faces(scene.mesh, config.max_faces)
    if isinstance(scene, NerfScene):
        level = half_light_level(scene) if config.level is None else scene.field.raw_of(config.level)
        return field_mesh(
            lambda points: scene.field.inside(points, level), scene.field.colors, scene.config.half, config
        )
    raise SceneError(f"A {type(scene).__name__} has no surface.", "Use Gaussians, a NeRF or a mesh.")


def gaussians_of(mesh: Mesh, config: GaussianConfig, generator: torch.Generator) -> GaussianScene:
    """Flat Gaussians on a surface, opaque and in its colours.

    Args:
        mesh: the surface.
        config: how many (`count`), how flat, and how they will learn.
        generator: the only source of randomness.
    """
    points, normals, colors = sample_surface_evenly(mesh, config.count, generator)
    # Wide enough to leave no holes between neighbours, thin enough to stay on the surface.
    config = replace(config, initialisation="shape", initial_opacity=0.95, initial_scale=0.8, flatness=0.1)
    return GaussianScene.initialise(config, generator, points.float(), colors.float(), normals.float())


def mesh_scene_of(scene: TrainableScene, config: MeshSceneConfig, generator: torch.Generator) -> MeshScene:
    """A mesh scene in the shape and the colours of a scene of any kind."""
    shape = shape_of(scene)
    half = max(config.half, shape.half)
    return MeshScene.from_field(config, shape.inside, shape.colors, generator, half)


@torch.no_grad()
def half_light_level(scene: NerfScene) -> float:
    """The raw value at which a NeRF's surface lies: where rays have lost half of their light, the median over rays.

    Raises:
        SceneError: no ray of 14 views all round loses half: there is nothing.
    """
    if scene.config.signed:
        return 0.0
    azimuths = [60.0 * k for k in range(6)] * 2 + [0.0, 0.0]
    elevations = [-20.0] * 6 + [35.0] * 6 + [89.0, -89.0]
    distance = 3.2 * scene.config.half
    cameras = Camera.orbit(azimuths, elevations, distance, 40.0, 48, 48)
    raw = scene.half_light(cameras)
    if len(raw) == 0:
        raise SceneError(
            "The scene is empty: no ray loses half of its light on the way through.",
            "Train it longer, or start from more fog (nerf.blob).",
        )
    return float(raw.median())


def inside_of(mesh: Mesh) -> Callable[[Tensor], Tensor]:
    """A function that is negative inside a closed mesh: the distance to the nearest sampled point of its surface.

    The sign is that of (p - q) . n with q the nearest point and n its normal.
    """
    from scipy.spatial import cKDTree

    points, normals, _ = sample_surface(mesh, 8 * _COLOR_POINTS, torch.Generator().manual_seed(0))
    tree, outward = cKDTree(points.numpy()), normals.numpy()

    def inside(at: Tensor) -> Tensor:
        place = at.detach().cpu().double().numpy()
        distance, nearest = tree.query(place, k=5)
        offset = place[:, None] - np.asarray(tree.data)[nearest]
        # Five neighbours vote: at an edge a single normal may point the wrong way.
        side = np.einsum("nki,nki->nk", offset, outward[nearest]).sum(axis=1)
        return torch.from_numpy(np.where(side < 0, -distance[:, 0], distance[:, 0])).to(at)

    return inside


def colors_of(mesh: Mesh) -> Callable[[Tensor], Tensor]:
    """A function that gives points on or about a mesh the colour of the nearest sampled point of its surface."""
    from scipy.spatial import cKDTree

    points, _, colors = sample_surface(mesh, _COLOR_POINTS, torch.Generator().manual_seed(1))
    tree = cKDTree(points.numpy())

    def look(at: Tensor) -> Tensor:
        _, nearest = tree.query(at.detach().cpu().double().numpy())
        return colors[torch.from_numpy(nearest)].to(at)

    return look


@torch.no_grad()
def _mesh_of_mesh(scene: MeshScene, config: MeshConfig) -> Mesh:
    from dreamkit.scenes.isosurface import decimate

    surface = scene.surface()
    vertices = surface.vertices.cpu().numpy().astype(np.float32)
    points, faces = decimate(vertices, surface.faces.cpu().numpy().astype(np.int32), config.max_faces)
    colors = scene.colors(torch.from_numpy(points).to(scene.device)).cpu().numpy()
    return Mesh(points, faces, colors, vertex_normals(points, faces))


def _of_fewer_faces(mesh: Mesh, most: int) -> Mesh:
    """The mesh itself, or a decimated one with the colours of its surface at the vertices."""
    from dreamkit.scenes.isosurface import decimate

    if len(mesh.faces) <= most:
        return mesh
    points, faces = decimate(*mesh.surface(), most)
    colors = colors_of(mesh)(torch.from_numpy(points)).numpy().astype(np.float32)
    return Mesh(points, faces, colors, vertex_normals(points, faces))
