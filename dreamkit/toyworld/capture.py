"""Views of a toy-world object as a photographer would bring them: pictures, masks and cameras, from ground truth.

In memory, or as a set of files whose poses may be a little wrong and whose lens may be bent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch.nn import functional

from dreamkit.captures.lens import Lens
from dreamkit.captures.write import bent, lens_of, write_colmap, write_pictures, write_transforms
from dreamkit.checks import one_of, require
from dreamkit.errors import ConfigError, RunError
from dreamkit.files import atomic_folder, write_error
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.toyworld.captions import COLOURS, MATERIALS, Thing
from dreamkit.toyworld.geometry import Placed, sample_surface, trace
from dreamkit.toyworld.objects import get_object
from dreamkit.toyworld.shading import NOTHING, PARTS, Geometry, Look, shade, stripes_and_spots

Format = Literal["transforms", "blender", "colmap"]
TRUTH_FILE = "transforms_truth.json"
"""True poses, where those of the set are not: for measuring only, no reader looks at it."""
_POINTS = 2000
_TESTS = 4  # views for training to one for tests, in a Blender set
_BATCH = 8
_LIGHT = (0.45, 0.75, 0.5)
_AMBIENT = 0.6


def capture_cameras(
    count: int, size: int, elevations: tuple[float, float] = (-10.0, 60.0), turn: float = 0.0
) -> Camera:
    """Cameras spread evenly over a band of a sphere of radius 3, along a golden spiral.

    Args:
        count: how many.
        size: side of the pictures, pixels.
        elevations: degrees, lowest and highest.
        turn: degrees by which the whole spiral is turned, so that two sets share no camera.
    """
    index = torch.arange(count, dtype=torch.float32)
    low, high = (math.sin(math.radians(value)) for value in elevations)
    elevation = torch.rad2deg(torch.asin(low + (high - low) * (index + 0.5) / count))
    azimuth = torch.remainder(turn + index * 180.0 * (3.0 - math.sqrt(5.0)), 360.0)
    return Camera.orbit(azimuth, elevation, 3.0, 40.0, size, size)


@torch.no_grad()
def capture(things: Sequence[Thing], scene: Sequence[Placed], cameras: Camera, background: float = 0.5) -> Capture:
    """Ground-truth views under one light that stands still.

    Args:
        things: what each object is painted like.
        scene: where each object is.
        cameras: V views.
        background: gray level behind, 0 to 1.

    Returns:
        The pictures, averaged from four rays a pixel.
    """
    count = len(cameras)
    buffer = trace(scene, *cameras.resized(2 * cameras.height, 2 * cameras.width).rays())
    code = torch.where(buffer.hit, buffer.part + PARTS * buffer.slot, torch.full_like(buffer.part, NOTHING))
    to_camera = functional.normalize(cameras.position, dim=1)
    geometry = Geometry(buffer.normal, code, stripes_and_spots(buffer.position), to_camera)
    light = functional.normalize(torch.tensor(_LIGHT), dim=0).expand(count, 3)
    look = Look(light, torch.full((count,), _AMBIENT), torch.full((count, 3, 1, 1), background))
    images = shade(geometry, [list(things)] * count, look, torch.zeros(count, 3))
    alphas = functional.avg_pool2d(buffer.hit.float()[:, None], 2)
    return Capture(cameras, images, alphas, torch.full((3,), background))


def capture_object(
    colour: str, name: str, cameras: Camera, material: str = "plain", background: float = 0.5
) -> Capture:
    """Ground-truth views of one object.

    Raises:
        ConfigError: there is no such object.
    """
    return capture([Thing(name, colour, material, "")], [Placed(get_object(name))], cameras, background)


@dataclass(frozen=True)
class CaptureRecipe:
    """A set of posed pictures of one object, as files."""

    name: str = "mug"
    """Toy-world object."""
    colour: str = "red"
    """Its colour."""
    material: str = "striped"
    """plain, striped, spotted or shiny."""
    views: int = 24
    """Pictures, 1 to 1000."""
    size: int = 128
    """Side of the pictures, pixels, 16 to 1024."""
    elevations: tuple[float, float] = (-10.0, 60.0)
    """Degrees, lowest and highest."""
    seed: int = 0
    """Seed of the noise and of where the spiral of cameras begins."""
    noise_degrees: float = 0.0
    """How far a camera that is written is turned from the true one, root mean square, degrees, 0 to 45."""
    noise_distance: float = 0.0
    """How far it is shifted, root mean square, world units, 0 to 1 (cameras stand at radius 3)."""
    distortion: float = 0.0
    """k1 of the lens: below 0 a barrel, above 0 a cushion, -0.5 to 0.5."""
    format: Format = "transforms"
    """transforms (nerfstudio), blender (with test views of their own) or colmap."""

    def __post_init__(self) -> None:
        get_object(self.name)
        one_of("The colour", self.colour, COLOURS)
        one_of("The material", self.material, MATERIALS)
        one_of("The format", self.format, get_args(Format))
        limits: dict[str, tuple[float, float]] = {
            "views": (1, 1000),
            "size": (16, 1024),
            "seed": (0, 2**63 - 1),
            "noise_degrees": (0, 45),
            "noise_distance": (0, 1),
            "distortion": (-0.5, 0.5),
        }
        for name, (low, high) in limits.items():
            require(name, low <= getattr(self, name) <= high, getattr(self, name), f"{low} to {high}")
        first, last = self.elevations
        require("elevations", -90 <= first <= last <= 90, self.elevations, "two degrees in order, -90 to 90")
        if self.format == "blender" and self.distortion:
            raise ConfigError("A Blender set knows no distortion.", "Use the format transforms or colmap.")


def noisy(cameras: Camera, degrees: float, distance: float, generator: torch.Generator) -> Camera:
    """Cameras turned about themselves and shifted, both in directions of no preference.

    Args:
        cameras: as they are.
        degrees: root mean square of the angles.
        distance: root mean square of the shifts, world units.
        generator: the only source of randomness.
    """
    draws = torch.randn(2, len(cameras), 3, generator=generator, dtype=torch.float64) / math.sqrt(3)
    x, y, z = (math.radians(degrees) * draws[0]).unbind(-1)
    zero = torch.zeros_like(x)
    turn = torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3))
    poses = cameras.camera_to_world.double().clone()
    poses[:, :3, :3] = turn @ poses[:, :3, :3]
    poses[:, :3, 3] += distance * draws[1]
    return replace(cameras, camera_to_world=poses.to(cameras.camera_to_world))


def write_capture(recipe: CaptureRecipe, folder: Path) -> Path:
    """Write a set of posed pictures, whole or not at all; returns its folder.

    Args:
        recipe: of what, and how.
        folder: to make; an empty one may be there.

    Raises:
        RunError: there is something, or the system refused a write.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} is there already, and not empty.", "Choose another folder, or remove it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    generator = torch.Generator().manual_seed(recipe.seed)
    turn = 360.0 * float(torch.rand((), generator=generator))
    parts = {"images": (recipe.views, turn)}
    if recipe.format == "blender":
        parts = {"train": (recipe.views, turn), "test": (max(1, recipe.views // _TESTS), turn + 77.0)}
    with atomic_folder(folder) as temporary:
        names: list[str] = []
        truth: list[Camera] = []
        lens = None
        for part, (count, start) in parts.items():
            cameras = capture_cameras(count, recipe.size, recipe.elevations, start)
            lens = _lens(recipe, cameras)
            stored = noisy(cameras, recipe.noise_degrees, recipe.noise_distance, generator)
            files = _write_pictures(recipe, cameras, lens, temporary / part)
            _write_cameras(recipe, stored, files, lens, temporary, part, generator)
            names += [f"{part}/{file}" for file in files]
            truth.append(cameras)
        if recipe.noise_degrees or recipe.noise_distance:
            write_transforms(Camera.cat(truth), names, temporary / TRUTH_FILE, lens)
    return folder


def _lens(recipe: CaptureRecipe, cameras: Camera) -> Lens | None:
    """The bent lens, if it is."""
    if not recipe.distortion:
        return None
    return replace(lens_of(cameras, 0), radial=(recipe.distortion, 0.0))


def _write_pictures(recipe: CaptureRecipe, cameras: Camera, lens: Lens | None, folder: Path) -> list[str]:
    """A few views at a time, so that many take no more memory than few; returns the names."""
    names: list[str] = []
    for start in range(0, len(cameras), _BATCH):
        some = cameras[start : start + _BATCH]
        taken = _bent_capture(recipe, some, lens) if lens else _straight(recipe, some)
        names += write_pictures(taken, folder, start)
    return names


def _straight(recipe: CaptureRecipe, cameras: Camera) -> Capture:
    return capture_object(recipe.colour, recipe.name, cameras, recipe.material)


def _bent_capture(recipe: CaptureRecipe, cameras: Camera, lens: Lens) -> Capture:
    """Views through the lens: of wider ones by a pinhole, twice as fine."""
    edge = torch.linspace(0, recipe.size, 65, dtype=torch.float64)
    ends = torch.tensor([0.0, recipe.size], dtype=torch.float64).repeat_interleave(65)
    border = torch.stack([edge.repeat(2), ends], -1)
    reach = lens.plane(torch.cat([border, border.flip(-1)])).abs().max()
    if not bool(torch.isfinite(reach)):
        raise ConfigError(f"A distortion of {recipe.distortion} folds the picture.", "Use one nearer to 0.")
    fov_y = torch.full_like(cameras.fov_y, 2 * math.degrees(math.atan(float(reach))))
    wide = replace(cameras, fov_y=fov_y, height=2 * recipe.size, width=2 * recipe.size)
    taken = _straight(recipe, wide)
    layers = torch.cat([taken.images, taken.alphas], dim=1)
    seen = torch.stack([bent(picture, lens_of(wide, 0), lens) for picture in layers])
    return Capture(cameras, seen[:, :3], seen[:, 3:], taken.background)


def _write_cameras(
    recipe: CaptureRecipe,
    cameras: Camera,
    files: Sequence[str],
    lens: Lens | None,
    folder: Path,
    part: str,
    generator: torch.Generator,
) -> None:
    """The poses of a part of the set, in its format."""
    paths = [f"{part}/{file}" for file in files]
    if recipe.format == "colmap":
        points, _ = sample_surface([Placed(get_object(recipe.name))], _POINTS, generator)
        write_colmap(cameras, files, folder / "sparse" / "0", lens, points)
    elif recipe.format == "blender":
        write_transforms(cameras, paths, folder / f"transforms_{part}.json", blender=True)
    else:
        write_transforms(cameras, paths, folder / "transforms.json", lens)
