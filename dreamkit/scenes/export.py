"""Scenes and meshes as files: PLY (3D Gaussian Splatting, plain or compressed), .splat, GLB and OBJ, out and in.

Coordinates are written as they are: right-handed, y up, front at +z, which is also glTF's convention. Scenes that were
reconstructed from photographs have y down, and some splat viewers turn every scene over for that reason.

Every file is written beside its target and renamed, so it is whole or not there. A file that is read is not trusted,
see `splat_files` and `mesh_files`.
"""

from __future__ import annotations

from pathlib import Path

from dreamkit.scenes.asset_files import by_suffix
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh_files import load_mesh, write_glb, write_obj
from dreamkit.scenes.splat_files import read_ply, read_splat, write_compressed_ply, write_ply, write_splat
from dreamkit.scenes.triangles import Mesh

_WRITERS = {".ply": write_ply, ".compressed.ply": write_compressed_ply, ".splat": write_splat}
_READERS = {".ply": read_ply, ".compressed.ply": read_ply, ".splat": read_splat}

__all__ = ["export_mesh", "export_scene", "load_mesh", "load_scene"]


def export_scene(scene: GaussianScene, path: Path | str) -> None:
    """Write the Gaussians in the format of the suffix: .ply, .compressed.ply or .splat.

    Args:
        scene: what to write.
        path: the file to write or replace; its folder must exist.

    Raises:
        SceneError: another suffix, or parameters that are not finite.
        RunError: the system refused the write.
    """
    by_suffix(path, _WRITERS, "scene")(scene, path)


def load_scene(path: Path | str) -> GaussianScene:
    """Read Gaussians from .ply (plain or compressed, whatever its name) or .splat, see `read_ply` and `read_splat`.

    Raises:
        SceneError: another suffix, or a file that is missing or broken.
    """
    return by_suffix(path, _READERS, "scene")(path)


def export_mesh(mesh: Mesh, path: Path | str) -> None:
    """Write the mesh in the format of the suffix: .glb or .obj; a textured one takes its .mtl and .png along.

    Args:
        mesh: what to write.
        path: the file to write or replace; its folder must exist.

    Raises:
        SceneError: another suffix, or values that are not finite.
        RunError: the system refused the write.
    """
    by_suffix(path, {".glb": write_glb, ".obj": write_obj}, "mesh")(mesh, path)
