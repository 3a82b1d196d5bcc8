"""Sphere tracing of toy scenes to geometry buffers, surface samples, and two-object layouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.toyworld.marching import march, march_cones
from dreamkit.toyworld.solids import BOUNDING_RADIUS, ShapeParameters, Solid, ToyObject

# Rays a chunk: eight views of 128 x 128. Fewer pay more for torch's cost a call than for arithmetic.
_CHUNK = 131072
# Pixels along a side of the square tiles whose rays share a cone for the first part of the way.
_TILE = 4
# Step of the finite differences for normals: a tenth of a pixel, so that edges shade as fine bevels; large against
# float32 rounding.
_NORMAL_STEP = 2e-3
_TETRAHEDRON = ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, 1.0, 1.0))

# Objects that others can stand on: a flat top that holds its middle.
SUPPORTS: tuple[str, ...] = ("table", "cube", "cylinder")
# Size of the upper object of `on_top`, relative to the lower one.
ON_TOP_SCALE = 0.62
_GAP = 0.06
_LAYOUT_RADIUS = 0.94


@dataclass(frozen=True)
class Placed:
    """An object in a scene: p_world = translation + scale * rotate_y(yaw) p_object.

    Args:
        object: what it is.
        parameters: its shape variation.
        translation: of its centre, world units.
        scale: its size; 1 fills the unit sphere.
        yaw: degrees about y; positive turns its front (+z) towards +x.
    """

    object: ToyObject
    parameters: ShapeParameters = field(default_factory=ShapeParameters)
    translation: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: float = 1.0
    yaw: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"A toy object's scale must be positive, not {self.scale}.", "1 fills the unit sphere.")

    @property
    def solid(self) -> Solid:
        """The built object, in its own space."""
        return self.object.build(self.parameters)


@dataclass
class GBuffer:
    """What rays see: geometry without colours, so that one tracing can be painted many times.

    Where `hit` is false the other buffers are zero, and depth is infinite.
    """

    hit: Tensor  # [B, H, W] bool
    normal: Tensor  # [B, H, W, 3] unit vectors, world space
    part: Tensor  # [B, H, W] uint8, 0 = body, else the row of ACCENT_COLOURS
    slot: Tensor  # [B, H, W] uint8, the index of the object in the scene
    position: Tensor  # [B, H, W, 3] object space of the object hit
    depth: Tensor  # [B, H, W] world units along the ray


class _World:
    """A scene with its transforms worked out, evaluated at world points given as x, y, z."""

    def __init__(self, scene: Sequence[Placed]) -> None:
        if not 1 <= len(scene) <= 255:
            raise ConfigError(f"A toy scene holds 1 to 255 objects, not {len(scene)}.", "Place at least one object.")
        self.scene = tuple(scene)
        self.solids = [placed.solid for placed in self.scene]

    def local(self, slot: int, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """World to object space."""
        placed = self.scene[slot]
        tx, ty, tz = placed.translation
        inverse = 1.0 / placed.scale
        c, s = math.cos(math.radians(placed.yaw)) * inverse, math.sin(math.radians(placed.yaw)) * inverse
        dx, dz = x - tx, z - tz
        return dx * c - dz * s, (y - ty) * inverse, dx * s + dz * c

    def distance(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Signed distance of the whole scene."""
        nearest: Tensor | None = None
        for slot, (placed, solid) in enumerate(zip(self.scene, self.solids, strict=True)):
            distance = solid.field.at(*self.local(slot, x, y, z)) * placed.scale
            nearest = distance if nearest is None else torch.minimum(nearest, distance)
        assert nearest is not None
        return nearest

    def normals(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """Unit normals [3, P] by four differences on a tetrahedron."""
        total = torch.zeros(3, x.shape[0], dtype=x.dtype, device=x.device)
        for ex, ey, ez in _TETRAHEDRON:
            h = _NORMAL_STEP
            value = self.distance(x + ex * h, y + ey * h, z + ez * h)
            total[0] += ex * value
            total[1] += ey * value
            total[2] += ez * value
        return torch.nn.functional.normalize(total, dim=0, eps=1e-12)

    def identify(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slot [P] uint8, part [P] uint8 and object-space position [3, P] of points at the surface."""
        distances, parts, positions = [], [], []
        for slot, (placed, solid) in enumerate(zip(self.scene, self.solids, strict=True)):
            position = torch.stack(self.local(slot, x, y, z))
            distance, part = solid(position.T)
            distances.append(distance * placed.scale)
            parts.append(part)
            positions.append(position)
        nearest = torch.stack(distances).argmin(0)
        part = torch.stack(parts).gather(0, nearest[None])[0]
        picked = torch.stack(positions).gather(0, nearest[None, None].expand(1, 3, -1))[0]
        return nearest.to(torch.uint8), part, picked

    def tile_start(
        self,
        origins: Tensor,  # [3, R], R a multiple of _TILE ** 2, the rays of a tile one after another
        directions: Tensor,  # [3, R] unit
        near: Tensor,  # [R]
        far: Tensor,  # [R]
    ) -> Tensor:  # [R]
        """A later safe start for each ray, from one cone a tile; beyond far where the whole tile misses."""
        area = _TILE * _TILE
        o, d = origins.reshape(3, -1, area), directions.reshape(3, -1, area)
        centre = o.mean(2)
        axis = torch.nn.functional.normalize(d.mean(2), dim=0)
        radius = (o - centre[..., None]).norm(dim=0).amax(1)
        spread = (d - axis[..., None]).norm(dim=0).amax(1)
        start = near.reshape(-1, area).amin(1)
        end = far.reshape(-1, area).amax(1)
        tiles = (start < end).nonzero().squeeze(1)
        free = torch.full_like(start, math.inf)
        free[tiles] = march_cones(
            self.distance,
            centre[:, tiles],
            axis[:, tiles],
            start[tiles],
            end[tiles],
            radius[tiles],
            spread[tiles],
        )
        return torch.maximum(near, free[:, None].expand(-1, area).reshape(-1))

    def span(
        self,
        origins: Tensor,  # [3, R]
        directions: Tensor,  # [3, R] unit
    ) -> tuple[Tensor, Tensor]:  # near [R], far [R]; near > far where every bounding sphere is missed
        """Where rays enter the first and leave the last bounding sphere, at or after their origin."""
        near = torch.full_like(origins[0], math.inf)
        far = torch.full_like(origins[0], -math.inf)
        for placed in self.scene:
            centre = torch.tensor(placed.translation, dtype=origins.dtype, device=origins.device)
            offset = centre[:, None] - origins
            along = (offset * directions).sum(0)
            squared = (BOUNDING_RADIUS * placed.scale) ** 2 - ((offset * offset).sum(0) - along * along)
            half = squared.clamp(min=0.0).sqrt()
            ahead = (squared > 0) & (along + half > 0)
            near = torch.where(ahead, torch.minimum(near, (along - half).clamp(min=0.0)), near)
            far = torch.where(ahead, torch.maximum(far, along + half), far)
        return near, far


@torch.no_grad()
def trace(
    scene: Sequence[Placed],
    origins: Tensor,  # [B, H, W, 3] world units
    directions: Tensor,  # [B, H, W, 3] unit vectors
) -> GBuffer:
    """What each ray sees first.

    Rays that miss every bounding sphere are never marched, finished ones are dropped as they go, and normals are
    finite differences at the hits. Float32; runs where the rays are.

    Raises:
        ConfigError: the scene is empty, or the rays have wrong shapes.
    """
    if origins.shape != directions.shape or origins.ndim != 4 or origins.shape[-1] != 3:
        raise ConfigError(
            f"Rays must be two tensors [B, H, W, 3], not {tuple(origins.shape)} and {tuple(directions.shape)}.",
            "Use Camera.rays().",
        )
    world = _World(scene)
    shape = origins.shape[:3]
    count = shape.numel()
    device = origins.device
    buffer = GBuffer(
        hit=torch.zeros(count, dtype=torch.bool, device=device),
        normal=torch.zeros(count, 3, device=device),
        part=torch.zeros(count, dtype=torch.uint8, device=device),
        slot=torch.zeros(count, dtype=torch.uint8, device=device),
        position=torch.zeros(count, 3, device=device),
        depth=torch.full((count,), math.inf, device=device),
    )
    flat_origins, flat_directions = origins.reshape(-1, 3).float(), directions.reshape(-1, 3).float()
    tiled = shape[1] % _TILE == 0 and shape[2] % _TILE == 0
    order = _tile_order(shape, device) if tiled else torch.arange(count, device=device)
    for pixels in order.split(_CHUNK):
        o, d = flat_origins[pixels].T.contiguous(), flat_directions[pixels].T.contiguous()
        near, far = world.span(o, d)
        if tiled:
            near = world.tile_start(o, d, near, far)
        rays = (near < far).nonzero().squeeze(1)
        depth, hit = march(world.distance, o[:, rays], d[:, rays], near[rays], far[rays])
        rays, depth = rays[hit], depth[hit]
        x, y, z = o[:, rays] + depth * d[:, rays]
        slot, part, position = world.identify(x, y, z)
        target = pixels[rays]
        buffer.hit[target] = True
        buffer.normal[target] = world.normals(x, y, z).T
        buffer.part[target] = part
        buffer.slot[target] = slot
        buffer.position[target] = position.T
        buffer.depth[target] = depth
    return GBuffer(
        hit=buffer.hit.reshape(shape),
        normal=buffer.normal.reshape(*shape, 3),
        part=buffer.part.reshape(shape),
        slot=buffer.slot.reshape(shape),
        position=buffer.position.reshape(*shape, 3),
        depth=buffer.depth.reshape(shape),
    )


def _tile_order(shape: torch.Size, device: torch.device) -> Tensor:
    """Flat pixel indices of [B, H, W], tile by tile."""
    batch, height, width = shape
    index = torch.arange(shape.numel(), device=device)
    index = index.reshape(batch, height // _TILE, _TILE, width // _TILE, _TILE)
    return index.permute(0, 1, 3, 2, 4).reshape(-1)


def signed_distance(
    scene: Sequence[Placed],
    points: Tensor,  # [..., 3] world units
) -> Tensor:  # [...]
    """Signed distance of a scene, negative inside; a lower bound of the distance outside. Differentiable."""
    x, y, z = points.unbind(-1)
    return _World(scene).distance(x, y, z)


@torch.no_grad()
def sample_surface(
    scene: Sequence[Placed],
    n: int,  # number of points, at least 1
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # points [n, 3] world units, normals [n, 3] unit
    """Points on the outer surface, about uniform by area, with normals.

    Random chords of the unit sphere (a uniform measure of lines) meet a surface in proportion to its area; each chord
    gives its first hit, so deep hollows get fewer points.

    Raises:
        ConfigError: n is not positive.
    """
    if n < 1:
        raise ConfigError(f"The number of surface points must be at least 1, not {n}.", "Ask for a few thousand.")
    world = _World(scene)
    found: list[Tensor] = []
    count = 0
    while count < n:
        ends = torch.randn(2, 3, max(256, 2 * (n - count)), generator=generator)
        start, end = torch.nn.functional.normalize(ends, dim=1) * 1.05
        d = torch.nn.functional.normalize(end - start, dim=0)
        near, far = world.span(start, d)
        rays = (near < far).nonzero().squeeze(1)
        depth, hit = march(world.distance, start[:, rays], d[:, rays], near[rays], far[rays])
        points = start[:, rays[hit]] + depth[hit] * d[:, rays[hit]]
        found.append(points)
        count += points.shape[1]
    points = torch.cat(found, 1)[:, :n]
    return points.T.contiguous(), world.normals(*points).T.contiguous()


def on_top(a: Placed, b: Placed) -> tuple[Placed, Placed]:
    """Object a, made smaller, standing on the middle of object b; the pair fits in the unit sphere.

    Translations of a and b are replaced; their scales are kept as relative sizes.

    Returns:
        a and b, placed.

    Raises:
        ConfigError: b is not one of `SUPPORTS`.
    """
    if b.object.name not in SUPPORTS:
        raise ConfigError(f"Nothing can stand on a {b.object.name}.", f"These have a flat top: {', '.join(SUPPORTS)}.")
    lower = replace(b, translation=(0.0, 0.0, 0.0))
    size = ON_TOP_SCALE * a.scale
    height = _top(lower) - size * a.solid.lowest[1]
    upper = replace(a, translation=(0.0, height, 0.0), scale=size)
    return _fit_pair(upper, lower)


def beside(a: Placed, b: Placed, side: str = "left") -> tuple[Placed, Placed]:
    """Object a to the left or right of object b, seen from the front; the pair stands level and fits in the sphere.

    Translations of a and b are replaced; their scales are kept as relative sizes.

    Args:
        a: the object that is left or right.
        b: the other.
        side: "left" puts a at -x, "right" at +x.

    Returns:
        a and b, placed.

    Raises:
        ConfigError: another side.
    """
    if side not in ("left", "right"):
        raise ConfigError(f"An object can be left or right of another, not {side!r}.", 'Use "left" or "right".')
    sign = -1.0 if side == "left" else 1.0
    reach_a, reach_b = _half_width(a, sign), _half_width(b, -sign)
    first = replace(a, translation=(sign * (reach_a + _GAP), -a.scale * a.solid.lowest[1], 0.0))
    second = replace(b, translation=(-sign * (reach_b + _GAP), -b.scale * b.solid.lowest[1], 0.0))
    return _fit_pair(first, second)


def _surface(placed: Placed) -> Tensor:
    """Probed surface points [N, 3] in world space."""
    points = placed.solid.surface
    c, s = math.cos(math.radians(placed.yaw)), math.sin(math.radians(placed.yaw))
    x, y, z = points.unbind(-1)
    turned = torch.stack((x * c + z * s, y, z * c - x * s), -1)
    return turned * placed.scale + torch.tensor(placed.translation)


def _half_width(placed: Placed, sign: float) -> float:
    """How far the object reaches from its centre towards the other one (towards -sign x)."""
    centred = replace(placed, translation=(0.0, 0.0, 0.0))
    return float((_surface(centred)[:, 0] * -sign).max())


def _top(placed: Placed) -> float:
    """Height of the surface above the middle of an object at the origin."""
    start = torch.tensor([[0.0], [2.0 * placed.scale], [0.0]])
    down = torch.tensor([[0.0], [-1.0], [0.0]])
    near = torch.zeros(1)
    depth, _ = march(_World([placed]).distance, start, down, near, near + 4.0 * placed.scale)
    return float(start[1] - depth)


def _fit_pair(a: Placed, b: Placed) -> tuple[Placed, Placed]:
    """Both, centred on their common bounding box and scaled to fill the unit sphere."""
    surface = torch.cat((_surface(a), _surface(b)))
    centre = (surface.amin(0) + surface.amax(0)) / 2
    factor = _LAYOUT_RADIUS / float((surface - centre).norm(dim=1).max())
    cx, cy, cz = centre.tolist()

    def moved(placed: Placed) -> Placed:
        x, y, z = placed.translation
        position = ((x - cx) * factor, (y - cy) * factor, (z - cz) * factor)
        return replace(placed, translation=position, scale=placed.scale * factor)

    return moved(a), moved(b)
