"""Signed distance functions: primitives and the operators that combine them.

A `Field` maps points to a signed distance (negative inside). The formulas are the classical ones collected by
Inigo Quilez ("Distance functions", https://iquilezles.org/articles/distfunctions/). Every field here is exact or a
lower bound of the distance outside, except `ellipsoid`, which is exact to first order at its surface; all lengths
are in the units of the object. Fields take separate x, y, z tensors inside, so that each operation streams through
contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Evaluate = Callable[[Tensor, Tensor, Tensor], Tensor]

# Keeps the derivative of a square root finite at zero, far below any distance that matters.
_TINY = 1e-20


def _length(*components: Tensor) -> Tensor:
    total = components[0] * components[0]
    for component in components[1:]:
        total = torch.addcmul(total, component, component)
    return (total + _TINY).sqrt()


def _box_distance(*excesses: Tensor) -> Tensor:
    """Distance to a box from the per-axis excesses |p| - half size, in two or three dimensions."""
    inside = excesses[0]
    for excess in excesses[1:]:
        inside = torch.maximum(inside, excess)
    return _length(*(excess.clamp(min=0.0) for excess in excesses)) + inside.clamp(max=0.0)


class Field:
    """A signed distance field, with operators that read left to right.

    `box(1, 1, 1).rotated_y(30).moved(0, 2, 0) - sphere(1)` is a turned and lifted box with a ball cut out.
    `|` unites, `&` intersects, `-` subtracts (the last two give a lower bound of the distance).

    Args:
        at: (x, y, z), tensors of one shape, to the signed distance, a tensor of that shape.
    """

    __slots__ = ("at",)

    def __init__(self, at: Evaluate) -> None:
        self.at = at

    def __call__(
        self,
        points: Tensor,  # [..., 3]
    ) -> Tensor:  # [...]
        """Signed distance at points."""
        x, y, z = points.unbind(-1)
        return self.at(x, y, z)

    def __or__(self, other: Field) -> Field:
        """Union: the smaller distance."""
        return Field(lambda x, y, z: torch.minimum(self.at(x, y, z), other.at(x, y, z)))

    def __and__(self, other: Field) -> Field:
        """Intersection: the larger distance."""
        return Field(lambda x, y, z: torch.maximum(self.at(x, y, z), other.at(x, y, z)))

    def __sub__(self, other: Field) -> Field:
        """This without the other: max(a, -b)."""
        return Field(lambda x, y, z: torch.maximum(self.at(x, y, z), -other.at(x, y, z)))

    def moved(self, dx: float = 0.0, dy: float = 0.0, dz: float = 0.0) -> Field:
        """Translated by (dx, dy, dz)."""

        def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            return self.at(x - dx if dx else x, y - dy if dy else y, z - dz if dz else z)

        return Field(at)

    def rotated_x(self, degrees: float) -> Field:
        """Rotated about x; positive turns +y towards +z."""
        c, s = _cos_sin(degrees)
        return Field(lambda x, y, z: self.at(x, y * c + z * s, z * c - y * s))

    def rotated_y(self, degrees: float) -> Field:
        """Rotated about y; positive turns +z (the front) towards +x."""
        c, s = _cos_sin(degrees)
        return Field(lambda x, y, z: self.at(x * c - z * s, y, x * s + z * c))

    def rotated_z(self, degrees: float) -> Field:
        """Rotated about z; positive turns +x towards +y."""
        c, s = _cos_sin(degrees)
        return Field(lambda x, y, z: self.at(x * c + y * s, y * c - x * s, z))

    def scaled(self, factor: float) -> Field:
        """Scaled uniformly by a positive factor; stays exact."""
        inverse = 1.0 / factor
        return Field(lambda x, y, z: self.at(x * inverse, y * inverse, z * inverse) * factor)

    def stretched(self, sx: float, sy: float, sz: float) -> Field:
        """Scaled by positive factors along the axes; a lower bound: the distance times the smallest factor."""
        smallest = min(sx, sy, sz)
        return Field(lambda x, y, z: self.at(x / sx, y / sy, z / sz) * smallest)

    def mirrored_x(self) -> Field:
        """The half at x > 0, and its mirror image at x < 0."""
        return Field(lambda x, y, z: self.at(x.abs(), y, z))

    def mirrored_z(self) -> Field:
        """The half at z > 0, and its mirror image at z < 0."""
        return Field(lambda x, y, z: self.at(x, y, z.abs()))

    def rounded(self, radius: float) -> Field:
        """Grown by a radius, which rounds the edges."""
        return Field(lambda x, y, z: self.at(x, y, z) - radius)

    def smooth_union(self, other: Field, blend: float) -> Field:
        """Union with a fillet about `blend` wide (quadratic polynomial smooth minimum)."""

        def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            a, b = self.at(x, y, z), other.at(x, y, z)
            overlap = (blend - (a - b).abs()).clamp(min=0.0)
            return torch.minimum(a, b) - overlap * overlap * (0.25 / blend)

        return Field(at)


def _cos_sin(degrees: float) -> tuple[float, float]:
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def union(*fields: Field) -> Field:
    """Union of one or more fields."""

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        distance = fields[0].at(x, y, z)
        for field in fields[1:]:
            distance = torch.minimum(distance, field.at(x, y, z))
        return distance

    return Field(at)


def sphere(radius: float) -> Field:
    """Ball about the origin: |p| - radius."""
    return Field(lambda x, y, z: _length(x, y, z) - radius)


def ellipsoid(rx: float, ry: float, rz: float) -> Field:
    """Ellipsoid with half axes rx, ry, rz: k (k - 1) / |p / r^2| with k = |p / r|.

    Exact to first order at the surface and along the axes. Outside it is a lower bound of the distance up to a few
    percent; inside it is only a sign and a rough depth.
    """
    smallest = min(rx, ry, rz)

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        ux, uy, uz = x / rx, y / ry, z / rz
        k = _length(ux, uy, uz)
        slope = _length(ux / rx, uy / ry, uz / rz)
        return torch.maximum(k * (k - 1.0) / slope, smallest * (k - 1.0))

    return Field(at)


def box(hx: float, hy: float, hz: float) -> Field:
    """Box with half sizes hx, hy, hz; exact."""
    return Field(lambda x, y, z: _box_distance(x.abs() - hx, y.abs() - hy, z.abs() - hz))


def rounded_box(hx: float, hy: float, hz: float, radius: float) -> Field:
    """Box with OUTER half sizes hx, hy, hz and edges rounded by `radius`; exact."""
    return box(hx - radius, hy - radius, hz - radius).rounded(radius)


def cylinder(radius: float, half_height: float) -> Field:
    """Cylinder about the y axis; exact."""
    return Field(lambda x, y, z: _box_distance(_length(x, z) - radius, y.abs() - half_height))


def rounded_cylinder(radius: float, half_height: float, edge: float) -> Field:
    """Cylinder about the y axis with OUTER sizes and edges rounded by `edge`; exact."""
    return cylinder(radius - edge, half_height - edge).rounded(edge)


def disc_z(radius: float, half_depth: float) -> Field:
    """Cylinder about the z axis (a coin that faces the front); exact."""
    return Field(lambda x, y, z: _box_distance(_length(x, y) - radius, z.abs() - half_depth))


def disc_x(radius: float, half_depth: float) -> Field:
    """Cylinder about the x axis (a wheel of something that drives to the front); exact."""
    return Field(lambda x, y, z: _box_distance(_length(y, z) - radius, x.abs() - half_depth))


def capsule(start: Sequence[float], end: Sequence[float], radius: float) -> Field:
    """Points within `radius` of the segment from start to end; exact. Start and end must differ."""
    ax, ay, az = start
    bx, by, bz = end[0] - ax, end[1] - ay, end[2] - az
    inverse = 1.0 / (bx * bx + by * by + bz * bz)

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        px, py, pz = x - ax, y - ay, z - az
        along = ((px * bx + py * by + pz * bz) * inverse).clamp(0.0, 1.0)
        return _length(px - along * bx, py - along * by, pz - along * bz) - radius

    return Field(at)


def capped_cone(half_height: float, bottom: float, top: float) -> Field:
    """Cone about the y axis with radius `bottom` at -half_height and `top` at +half_height; exact."""
    kx, ky = top - bottom, 2.0 * half_height
    inverse = 1.0 / (kx * kx + ky * ky)

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        r = _length(x, z)
        cap_x = (r - torch.where(y < 0, bottom, top)).clamp(min=0.0)
        cap_y = y.abs() - half_height
        along = (((top - r) * kx + (half_height - y) * ky) * inverse).clamp(0.0, 1.0)
        side_x, side_y = r - top + along * kx, y - half_height + along * ky
        nearest = torch.minimum(cap_x * cap_x + cap_y * cap_y, side_x * side_x + side_y * side_y)
        distance = (nearest + _TINY).sqrt()
        return torch.where((side_x < 0) & (cap_y < 0), -distance, distance)

    return Field(at)


def cone(half_height: float, radius: float) -> Field:
    """Cone about the y axis, its tip at +half_height; exact."""
    return capped_cone(half_height, radius, 0.0)


def torus(ring: float, tube: float) -> Field:
    """Torus about the y axis (lying flat): radius `ring` to the middle of a tube of radius `tube`; exact."""
    return Field(lambda x, y, z: _length(_length(x, z) - ring, y) - tube)


def half_space(nx: float, ny: float, nz: float, offset: float) -> Field:
    """Points with n . p <= offset; n is normalised here (and the offset is a length along it); exact."""
    norm = math.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx / norm, ny / norm, nz / norm
    return Field(lambda x, y, z: x * nx + y * ny + z * nz - offset)


def pyramid(half_base: float, half_height: float) -> Field:
    """Square pyramid, its base at -half_height and its tip at +half_height; a lower bound outside."""
    height = 2.0 * half_height
    norm = math.hypot(height, half_base)
    side, up = height / norm, half_base / norm

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        slope = torch.maximum(x.abs(), z.abs()) * side + (y - half_height) * up
        return torch.maximum(slope, -half_height - y)

    return Field(at)


def extruded_polygon(
    vertices: Sequence[tuple[float, float]],  # in the xy plane, either direction, not self-crossing
    half_depth: float,
) -> Field:
    """A polygon of the xy plane, extruded to |z| <= half_depth; exact."""
    edges = [(vertices[i], vertices[i - 1]) for i in range(len(vertices))]

    def polygon(x: Tensor, y: Tensor) -> Tensor:
        nearest = torch.full_like(x, math.inf)
        inside = torch.zeros_like(x, dtype=torch.bool)
        for (ax, ay), (bx, by) in edges:
            ex, ey = bx - ax, by - ay
            px, py = x - ax, y - ay
            along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0)
            qx, qy = px - along * ex, py - along * ey
            nearest = torch.minimum(nearest, qx * qx + qy * qy)
            # Even-odd rule: does a ray towards +x cross this edge?
            crosses = (y < ay) != (y < by)
            if ey:
                inside = inside ^ (crosses & (px < ex / ey * py))
        distance = (nearest + _TINY).sqrt()
        return torch.where(inside, -distance, distance)

    return Field(lambda x, y, z: _box_distance(polygon(x, y), z.abs() - half_depth))


def convex_prism(
    vertices: Sequence[tuple[float, float]],  # in the xy plane, counter-clockwise, convex
    half_depth: float,
) -> Field:
    """A convex polygon of the xy plane, extruded to |z| <= half_depth; a cheap lower bound outside."""
    planes = []
    for i, (ax, ay) in enumerate(vertices):
        bx, by = vertices[(i + 1) % len(vertices)]
        norm = math.hypot(bx - ax, by - ay)
        nx, ny = (by - ay) / norm, (ax - bx) / norm
        planes.append((nx, ny, nx * ax + ny * ay))

    def at(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        distance = z.abs() - half_depth
        for nx, ny, offset in planes:
            distance = torch.maximum(distance, x * nx + (y * ny - offset))
        return distance

    return Field(at)
