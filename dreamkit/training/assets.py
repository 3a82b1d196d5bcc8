"""The files of an asset: splats and meshes of a scene of any kind."""

from dataclasses import dataclass
from pathlib import Path

import torch

from dreamkit.checks import require_choice, require_integer
from dreamkit.scenes.conversion import colors_of, gaussians_of, mesh_of, shape_of
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.isosurface import MeshConfig
from dreamkit.scenes.static_mesh import StaticMesh
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.triangles import Mesh, MeshFigures, TexturedMesh

SPLATS = ("ply", "splat", "compressed.ply")
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


def as_gaussians(scene: TrainableScene | StaticMesh, options: AssetOptions) -> GaussianScene:
    """The scene itself if it is made of Gaussians, else flat ones on its surface.

    Raises:
        SceneError: it has no surface.
    """
    if isinstance(scene, GaussianScene):
        return scene
    mesh = mesh_of(scene, MeshConfig(resolution=options.resolution, max_faces=10_000_000))
    config = GaussianConfig(count=options.count)
    return gaussians_of(mesh, config, torch.Generator().manual_seed(options.seed))


def as_mesh(scene: TrainableScene | StaticMesh, options: AssetOptions) -> Mesh:
    """The scene's surface, with a texture or vertex colours. A finished mesh that asks for nothing else stays as it is.

    Raises:
        SceneError: it has no surface.
    """
    from dreamkit.scenes.atlas import textured

    mesh = mesh_of(scene, MeshConfig(resolution=options.resolution, max_faces=options.faces))
    finished = scene.mesh if isinstance(scene, StaticMesh) else None
    if mesh is finished and options.texture is None:
        return mesh
    plain = isinstance(scene, GaussianScene) or (finished is not None and not isinstance(finished, TexturedMesh))
    size = (0 if plain else 1024) if options.texture is None else options.texture
    if not size:
        return Mesh(mesh.vertices, mesh.faces, mesh.colors, mesh.normals)
    colors = colors_of(finished) if finished is not None else shape_of(scene).colors  # type: ignore[arg-type]
    return textured(mesh, lambda points, normals: colors(points), size)


def export_format(
    scene: TrainableScene, folder: Path, kind: str, options: AssetOptions | None = None
) -> tuple[Path, MeshFigures | None]:
    """Write the asset as `scene.ply`, `scene.splat`, `scene.compressed.ply`, `mesh.glb` or `mesh.obj`.

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
    require_choice("The format", kind, FORMATS)
    options = options or AssetOptions()
    return write_asset(as_gaussians(scene, options) if kind in SPLATS else as_mesh(scene, options), folder, kind)


def write_asset(
    content: GaussianScene | Mesh, folder: Path, kind: str, prefix: str = ""
) -> tuple[Path, MeshFigures | None]:
    """Write Gaussians or a mesh in a format that holds them; the name begins with a prefix.

    Returns:
        The file, and the figures of a mesh.

    Raises:
        SceneError: values that are not finite.
    """
    from dreamkit.scenes.export import export_mesh, export_scene

    if isinstance(content, Mesh):
        path = folder / f"{prefix}mesh.{kind}"
        export_mesh(content, path)
        return path, content.figures()
    path = folder / f"{prefix}scene.{kind}"
    export_scene(content, path)
    return path, None
