"""The files of an asset: splats and meshes of a scene of any kind."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dreamkit.checks import require_choice, require_integer
from dreamkit.scenes.conversion import gaussians_of, mesh_of, shape_of
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.isosurface import MeshConfig
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.triangles import Mesh, MeshFigures

SPLATS = ("ply", "splat")
MESHES = ("glb", "obj")
FORMATS = (*SPLATS, *MESHES)


@dataclass(frozen=True)
class AssetOptions:
    """How asset files are made."""

    count: int = 20_000
    """Gaussians on the surface of what is not made of Gaussians."""
    resolution: int = 128
    """Grid points along the longest edge when a surface is cut, 16 to 512."""
    faces: int = 20_000
    """Most triangles of a mesh, at least 4."""
    texture: int | None = None
    """Side of the texture in pixels, 16 to 8192; 0 for vertex colours. By default 1024, and none for Gaussians."""
    seed: int = 0
    """Seed of the places on the surface."""

    def __post_init__(self) -> None:
        require_integer("--count", self.count, 1, 5_000_000)
        require_integer("--resolution", self.resolution, 16, 512)
        require_integer("--faces", self.faces, 4, 10_000_000)
        if self.texture:
            require_integer("--texture", self.texture, 16, 8192)


def as_gaussians(scene: TrainableScene, options: AssetOptions) -> GaussianScene:
    """The scene itself if it is made of Gaussians, else flat ones on its surface.

    Raises:
        SceneError: it has no surface.
    """
    if isinstance(scene, GaussianScene):
        return scene
    mesh = mesh_of(scene, MeshConfig(resolution=options.resolution, max_faces=10_000_000))
    config = GaussianConfig(count=options.count)
    return gaussians_of(mesh, config, torch.Generator().manual_seed(options.seed))


def as_mesh(scene: TrainableScene, options: AssetOptions) -> Mesh:
    """The scene's surface, with a texture or vertex colours.

    Raises:
        SceneError: it has no surface.
    """
    from dreamkit.scenes.atlas import textured

    mesh = mesh_of(scene, MeshConfig(resolution=options.resolution, max_faces=options.faces))
    default = 0 if isinstance(scene, GaussianScene) else 1024
    size = default if options.texture is None else options.texture
    if not size:
        return mesh
    colors = shape_of(scene).colors
    return textured(mesh, lambda points, normals: colors(points), size)


def export_format(
    scene: TrainableScene, folder: Path, kind: str, options: AssetOptions | None = None
) -> tuple[Path, MeshFigures | None]:
    """Write the asset as `scene.ply`, `scene.splat`, `mesh.glb` or `mesh.obj`.

    Args:
        scene: of any kind, on the CPU.
        folder: where to.
        kind: one of `FORMATS`.
        options: how.

    Returns:
        The file, and the figures of a mesh.

    Raises:
        ConfigError: another format.
        SceneError: the scene has nothing to export.
    """
    from dreamkit.scenes.export import export_mesh, export_scene

    require_choice("The format", kind, FORMATS)
    options = options or AssetOptions()
    if kind in SPLATS:
        path = folder / f"scene.{kind}"
        export_scene(as_gaussians(scene, options), path)
        return path, None
    path = folder / f"mesh.{kind}"
    mesh = as_mesh(scene, options)
    export_mesh(mesh, path)
    return path, mesh.figures()
