"""What a toy object is: coloured parts, shape parameters, and a fit into the unit sphere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dreamkit.toyworld.marching import march
from dreamkit.toyworld.primitives import Field, union

BODY = 0
BLACK = 1
WHITE = 2
ORANGE = 3
TYRE = 4
GLASS = 5
WOOD = 6
METAL = 7
CREAM = 8
SCREEN = 9
GOLD = 10
CRIMSON = 11
PINK = 12

# Linear-looking sRGB colours in [0, 1]; the row is the part id. Row 0 is a placeholder: the caption's colour.
ACCENT_COLOURS: tuple[tuple[float, float, float], ...] = (
    (0.80, 0.80, 0.80),
    (0.04, 0.04, 0.05),
    (0.97, 0.97, 0.97),
    (0.98, 0.55, 0.08),
    (0.13, 0.13, 0.14),
    (0.70, 0.88, 0.97),
    (0.45, 0.28, 0.14),
    (0.62, 0.64, 0.67),
    (0.96, 0.91, 0.78),
    (0.10, 0.16, 0.22),
    (0.99, 0.85, 0.32),
    (0.75, 0.06, 0.08),
    (0.95, 0.55, 0.62),
)

# Radius of the sphere about the origin that each built object fills, and one that surely contains it: the
# fit looks at the surface through a grid of rays, which can miss the last bit of a sharp tip.
FITTED_RADIUS = 0.88
BOUNDING_RADIUS = 0.96

# Parts of an object before the fit: (part id, field), any units within |p| < _RAW_LIMIT.
Parts = Sequence[tuple[int, Field]]
_RAW_LIMIT = 1.7
_PROBE_RAYS = 33
_EDGE_RAYS = 23


@dataclass(frozen=True)
class ShapeParameters:
    """Small variations of an object's shape: factors near 1.

    Args:
        width: stretch along x (and z for objects without a front).
        height: stretch along y.
        depth: stretch along z for objects with a front.
        feature: size of eyes, beaks, windows, wheels, ears and the like.
        limb: thickness of legs, handles, arms and the like.
    """

    width: float = 1.0
    height: float = 1.0
    depth: float = 1.0
    feature: float = 1.0
    limb: float = 1.0

    @classmethod
    def sample(cls, generator: torch.Generator) -> ShapeParameters:
        """Random factors: width 0.92..1.08, height 0.88..1.12, depth 0.94..1.06, feature and limb 0.9..1.15."""
        lows = torch.tensor((0.92, 0.88, 0.94, 0.90, 0.90), dtype=torch.float64)
        highs = torch.tensor((1.08, 1.12, 1.06, 1.15, 1.15), dtype=torch.float64)
        draw = torch.rand(5, generator=generator, dtype=torch.float64)
        return cls(*(lows + draw * (highs - lows)).tolist())


class Solid:
    """An object instance in its own space: centred, inside the unit sphere, y up, its front towards +z.

    Args:
        parts: (part id, field) before the fit.
        stretch: factors along x, y, z.
    """

    def __init__(self, parts: Parts, stretch: tuple[float, float, float]) -> None:
        ids = sorted({part for part, _ in parts})
        self.part_ids = torch.tensor(ids, dtype=torch.uint8)
        grouped = [union(*(field for part, field in parts if part == wanted)) for wanted in ids]
        whole = union(*(field for _, field in parts)).stretched(*stretch)
        surface = probe(whole, _RAW_LIMIT)
        lowest, highest = surface.amin(0), surface.amax(0)
        centre = (lowest + highest) / 2
        scale = FITTED_RADIUS / float((surface - centre).norm(dim=1).max())
        shift = [-float(value) for value in centre]

        def fitted(field: Field) -> Field:
            return field.stretched(*stretch).moved(*shift).scaled(scale)

        self.field = _fitted(union(*(field for _, field in parts)), stretch, shift, scale)
        self.groups = [fitted(field) for field in grouped]  # a field for each of the part ids
        self.surface = (surface - centre) * scale  # [N, 3] points all over it, not uniform
        self.lowest: tuple[float, ...] = tuple(self.surface.amin(0).tolist())
        self.highest: tuple[float, ...] = tuple(self.surface.amax(0).tolist())

    def __call__(
        self,
        points: Tensor,  # [P, 3] object units
    ) -> tuple[Tensor, Tensor]:  # distance [P], part [P] uint8
        """Signed distance and the id of the nearest part."""
        x, y, z = points.unbind(-1)
        distances = torch.stack([group.at(x, y, z) for group in self.groups])
        distance, nearest = distances.min(0)
        return distance, self.part_ids.to(points.device)[nearest]


def _fitted(field: Field, stretch: tuple[float, float, float], shift: Sequence[float], scale: float) -> Field:
    """The fit as one affine map, which the hot loop evaluates: p -> (p / scale - shift) / stretch."""
    factors = [1.0 / (scale * s) for s in stretch]
    offsets = [-d / s for d, s in zip(shift, stretch, strict=True)]
    smallest = scale * min(stretch)

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        inner = field.at(x * factors[0] + offsets[0], y * factors[1] + offsets[1], z * factors[2] + offsets[2])
        return inner * smallest

    return Field(at)


def probe(
    field: Field,
    limit: float,  # half size of the cube to look at
) -> Tensor:  # [N, 3]
    """Points all over a surface, seen from the six sides of a cube; deterministic.

    A grid over the cube finds the bounding box; a second grid, just inside that box, finds its corners and edges.
    """
    cube = torch.full((3,), limit)
    points = _look(field, -cube, cube, _PROBE_RAYS)
    lowest, highest = points.amin(0), points.amax(0)
    inset = (highest - lowest) * 0.004
    return torch.cat((points, _look(field, lowest + inset, highest - inset, _EDGE_RAYS)))


def _look(field: Field, lowest: Tensor, highest: Tensor, rays: int) -> Tensor:
    """First hits [N, 3] of rays x rays parallel rays through a box from each of its six sides."""
    steps = torch.linspace(0.0, 1.0, rays)
    u, v = (grid.reshape(-1) for grid in torch.meshgrid(steps, steps, indexing="ij"))
    origins, directions = [], []
    for axis in range(3):
        for side in (0.0, 1.0):
            unit = [u, v]
            unit.insert(axis, torch.full_like(u, side))
            direction = torch.zeros(3, u.shape[0])
            direction[axis] = 1.0 - 2.0 * side
            # Start a little outside, where the surface may touch the box.
            origin = lowest[:, None] + torch.stack(unit) * (highest - lowest)[:, None] - 0.1 * direction
            origins.append(origin)
            directions.append(direction)
    o, d = torch.cat(origins, 1), torch.cat(directions, 1)
    near = torch.zeros(o.shape[1])
    depth, hit = march(field.at, o, d, near, near + float((highest - lowest).max()) + 0.2)
    return (o + depth * d)[:, hit].T


@dataclass(frozen=True)
class ToyObject:
    """A kind of thing in the toy world.

    Args:
        name: English noun without an article ("duck").
        has_front: whether a stranger can tell its front (towards +z) from its back.
        make: shape parameters to the coloured parts, before the fit.
        stretch: how much of the width, height and depth variation applies, 0 (none) to 1.
    """

    name: str
    has_front: bool
    make: Callable[[ShapeParameters], Parts]
    stretch: float = 1.0

    def build(self, parameters: ShapeParameters) -> Solid:
        """The object with these parameters, fitted into the unit sphere; the last few are remembered."""
        return _build(self, parameters)


@lru_cache(maxsize=64)
def _build(kind: ToyObject, parameters: ShapeParameters) -> Solid:
    depth = parameters.depth if kind.has_front else parameters.width
    factors = (parameters.width, parameters.height, depth)
    sx, sy, sz = (math.pow(factor, kind.stretch) for factor in factors)
    return Solid(kind.make(parameters), (sx, sy, sz))
