"""Views of a toy-world object as a photographer would bring them: pictures, masks and cameras, from ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.toyworld.captions import Thing
from dreamkit.toyworld.geometry import Placed, trace
from dreamkit.toyworld.objects import get_object
from dreamkit.toyworld.shading import NOTHING, PARTS, Geometry, Look, shade, stripes_and_spots

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
