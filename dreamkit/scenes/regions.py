"""Parts of space that an edit may change: a box, a ball, or what a painted picture covers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import Camera

_FORMS = (
    "Use box:X0,Y0,Z0,X1,Y1,Z1 (two corners), ball:X,Y,Z,R, or a black and white picture PATH@AZIMUTH,ELEVATION "
    "that was painted over a render from there. World units: an asset is about 2 wide, y is up, +z is its front."
)
_PAINTED_DISTANCE, _PAINTED_FOV = 3.0, 40.0
"""The camera that `dreamkit render` looks through, and so the one a picture is painted from."""


class Region(Protocol):
    """A part of space."""

    def contains(self, points: Tensor) -> Tensor:
        """Whether points [N, 3] (world units) are in it, [N] bool."""
        ...


@dataclass(frozen=True)
class Box:
    """All points between two corners."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def contains(self, points: Tensor) -> Tensor:
        """Whether points [N, 3] are in it."""
        low, high = points.new_tensor(self.low), points.new_tensor(self.high)
        return ((points >= low) & (points <= high)).all(dim=1)


@dataclass(frozen=True)
class Ball:
    """All points near a centre."""

    centre: tuple[float, float, float]
    radius: float

    def contains(self, points: Tensor) -> Tensor:
        """Whether points [N, 3] are in it."""
        return (points - points.new_tensor(self.centre)).square().sum(dim=1) <= self.radius**2


@dataclass(frozen=True, eq=False)
class Painted:
    """All points, near and far, that a camera sees under the white of a picture.

    Args:
        mask: [H, W] in [0, 1].
        camera: one camera; the picture covers its whole view.
    """

    mask: Tensor
    camera: Camera

    def contains(self, points: Tensor) -> Tensor:
        """Whether points [N, 3] are in it."""
        height, width = self.mask.shape
        pixels, depth = self.camera.resized(height, width).to(points.device).project(points)
        pixels = torch.nan_to_num(pixels.reshape(-1, 2), nan=-1.0, posinf=-1.0, neginf=-1.0).clamp(-1.0, 1e6)
        column, row = pixels.floor().long().unbind(dim=1)
        seen = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (depth.reshape(-1) > 0)
        column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
        return seen & (self.mask.to(points.device)[row, column] > 0.5)


def parse_region(text: str) -> Region:
    """A region from the words of a command line: see `_FORMS`.

    Raises:
        ConfigError: another form, or one without volume.
        SceneError: the picture can't be read.
    """
    kind, _, rest = text.strip().partition(":")
    if kind == "box":
        values = _numbers(rest, 6, text)
        corners = [sorted(pair) for pair in zip(values[:3], values[3:], strict=True)]
        if any(low == high for low, high in corners):
            raise ConfigError(f"The region {text!r} has no volume.", _FORMS)
        low, high = zip(*corners, strict=True)
        return Box(low, high)
    if kind == "ball":
        x, y, z, radius = _numbers(rest, 4, text)
        if radius <= 0:
            raise ConfigError(f"The region {text!r} has no volume.", _FORMS)
        return Ball((x, y, z), radius)
    path, at, angles = text.strip().rpartition("@")
    if not at:
        raise ConfigError(f"The region {text!r} is of no known form.", _FORMS)
    azimuth, elevation = _numbers(angles, 2, text)
    from dreamkit.scenes.pictures import read_image

    mask = read_image(Path(path).expanduser()).mean(dim=0)
    if not bool((mask > 0.5).any()):
        raise ConfigError(f"The picture {path} has no white: the region is empty.", "Paint white what may change.")
    camera = Camera.orbit(azimuth, elevation, _PAINTED_DISTANCE, _PAINTED_FOV, *mask.shape)
    return Painted(mask, camera)


def rays_through(
    region: Region,
    cameras: Camera,  # B views
    limit: Tensor,  # [B, 1, H, W] distance along the viewing axis beyond which a region is hidden
    samples: int = 48,
) -> Tensor:
    """Which pixels see into a region before something opaque hides it: [B, 1, H, W] bool.

    Tried at points along each ray, from sqrt(3) (half the diagonal of the cube that holds an asset) before the origin's
    distance to as much behind it.

    Args:
        region: what to see.
        cameras: from where; H and W are theirs.
        limit: depth of what is there, infinite where nothing is.
        samples: points a ray.
    """
    origins, directions = cameras.rays()  # [B, H, W, 3]
    reach = math.sqrt(3.0)
    distance = cameras.position.norm(dim=1).view(-1, 1, 1)
    along = torch.einsum("bhwc,bc->bhw", directions, cameras.forward)  # of the axis, a unit of the ray
    seen = torch.zeros(origins.shape[:3], dtype=torch.bool, device=origins.device)
    for share in torch.linspace(-1.0, 1.0, samples).tolist():
        t = (distance + share * reach).clamp_min(0.0)
        points = origins + t[..., None] * directions
        inside = region.contains(points.reshape(-1, 3)).view(seen.shape)
        seen |= inside & (t * along <= limit[:, 0])
    return seen[:, None]


def holds_surface(
    region: Region,
    cameras: Camera,  # B views
    depth: Tensor,  # [B, 1, H, W] distance along the viewing axis of what is seen
    tolerance: float,
) -> Tensor:
    """Which pixels see a surface that lies in a region, or nearer to it than the tolerance: [B, 1, H, W] bool."""
    origins, directions = cameras.rays()  # [B, H, W, 3]
    along = torch.einsum("bhwc,bc->bhw", directions, cameras.forward)  # of the axis, a unit of the ray
    seen = torch.zeros(origins.shape[:3], dtype=torch.bool, device=origins.device)
    for shift in (-tolerance, 0.0, tolerance):
        points = origins + ((depth[:, 0] + shift) / along)[..., None] * directions
        seen |= region.contains(points.reshape(-1, 3)).view(seen.shape)
    return seen[:, None]


def _numbers(text: str, count: int, region: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"The region {region!r} is of no known form.", _FORMS)
    return values
