"""Splats and meshes that were made elsewhere: filmed and turned into other formats, as a run's scene is.

They may have any size and place. Films frame the ball about them and surfaces are cut in it; what is written is where
the file's asset is, and as large. The world is taken as it is, with y up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreamkit.checks import require_choice
from dreamkit.diffusion.loading import resolve_device
from dreamkit.errors import SceneError
from dreamkit.files import write_error
from dreamkit.scenes.asset_files import suffix_of
from dreamkit.scenes.export import load_mesh, load_scene
from dreamkit.scenes.film_config import PATHS, FilmConfig
from dreamkit.scenes.framing import Framing
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.static_mesh import StaticMesh
from dreamkit.scenes.triangles import Mesh, MeshFigures
from dreamkit.training.assets import FORMATS, SPLATS, AssetOptions, as_gaussians, as_mesh, write_asset
from dreamkit.training.callbacks import Callback, CallbackList
from dreamkit.training.deliver import render_films, render_scene


@dataclass(frozen=True)
class Asset:
    """A file's splats or mesh.

    Args:
        path: the file.
        content: what it holds, where it is.
        framing: the ball about it.
    """

    path: Path
    content: GaussianScene | Mesh
    framing: Framing

    @property
    def prefix(self) -> str:
        """What the names of files made of it begin with."""
        return f"{self.path.name[: -len(suffix_of(self.path))]}-"

    def scene(self, framed: bool = True, device: str = "cpu") -> GaussianScene | StaticMesh:
        """What cameras can look at: in the unit ball about the origin, or where it is."""
        if isinstance(self.content, Mesh):
            return StaticMesh(self.framing.framed(self.content) if framed else self.content, device)
        return (self.framing.framed(self.content) if framed else self.content).to(device)


def open_asset(path: Path | str) -> Asset:
    """Read a splat or a mesh.

    Args:
        path: .ply, .compressed.ply or .splat of Gaussians, .glb or .obj of triangles.

    Raises:
        SceneError: another suffix, or a file that is missing or broken.
    """
    path = Path(path).expanduser()
    kind = suffix_of(path)[1:]
    if kind not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise SceneError(f"{path} is no splat and no mesh.", f"Use a run's folder, or a file that ends in {known}.")
    content = load_scene(path) if kind in SPLATS else load_mesh(path)
    return Asset(path, content, Framing.of(content))


def render_asset(
    asset: Asset, folder: Path, film: FilmConfig | None = None, callbacks: Sequence[Callback] = ()
) -> dict[str, Path]:
    """Film an asset: the camera goes about the ball that holds it, as if that were the unit ball about the origin.

    Along a file of cameras it is filmed where it is.

    Args:
        asset: what to film.
        folder: where to, made if it isn't there; names begin with the asset's.
        film: how; without it a turntable and a contact sheet.
        callbacks: who is told.

    Returns:
        Name -> file.

    Raises:
        DreamkitError: a film that can't be made.
    """
    make_folder(folder)
    listeners = CallbackList(callbacks)
    if film is None:
        return render_scene(asset.scene(), folder, listeners, asset.prefix)
    scene = asset.scene(film.path in PATHS, str(resolve_device(film.device)))
    return render_films(scene, film, folder, listeners, asset.prefix)


def convert_asset(
    asset: Asset, kind: str, folder: Path, options: AssetOptions | None = None
) -> tuple[Path, MeshFigures | None]:
    """Write an asset in a format.

    Gaussians stay as they are as splats, and triangles as meshes (unless the options want fewer, or another texture).

    Args:
        asset: what to write.
        kind: one of `FORMATS`.
        folder: where to, made if it isn't there; the name begins with the asset's.
        options: how; by default a mesh keeps all its triangles.

    Returns:
        The file, and the figures of a mesh.

    Raises:
        ConfigError: another format.
        SceneError: the asset has no surface.
    """
    require_choice("The format", kind, FORMATS)
    make_folder(folder)
    if isinstance(asset.content, GaussianScene) and kind in SPLATS:
        return write_asset(asset.content, folder, kind, asset.prefix)
    scene = asset.scene()
    if kind in SPLATS:
        splats = as_gaussians(scene, options or AssetOptions())
        return write_asset(asset.framing.restored(splats), folder, kind, asset.prefix)
    default = AssetOptions() if isinstance(scene, GaussianScene) else AssetOptions(faces=10_000_000)
    mesh = as_mesh(scene, options or default)
    untouched = isinstance(scene, StaticMesh) and mesh is scene.mesh and isinstance(asset.content, Mesh)
    result = asset.content if untouched else asset.framing.restored(mesh)
    return write_asset(result, folder, kind, asset.prefix)


def make_folder(folder: Path) -> None:
    """Make a folder, unless it is there.

    Raises:
        RunError: the system refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
