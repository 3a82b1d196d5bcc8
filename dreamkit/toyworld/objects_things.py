"""Toy things with a front towards +z: car, house, mug, chair, plane, teapot, truck, boat, clock, television.

Sizes are in rough units that `Solid` fits into the unit sphere. Features are exaggerated, for 64x64 pixels.
"""

from __future__ import annotations

from dreamkit.toyworld.primitives import (
    Field,
    box,
    capped_cone,
    capsule,
    convex_prism,
    cylinder,
    disc_x,
    disc_z,
    ellipsoid,
    rounded_box,
    rounded_cylinder,
    sphere,
    torus,
    union,
)
from dreamkit.toyworld.solids import (
    BLACK,
    BODY,
    CREAM,
    CRIMSON,
    GLASS,
    GOLD,
    METAL,
    ORANGE,
    SCREEN,
    TYRE,
    WOOD,
    Parts,
    ShapeParameters,
    ToyObject,
)


def _wheels(x: float, y: float, z: float, radius: float, half_width: float) -> Parts:
    """Four wheels with metal hubs, at (+-x, y, +-z)."""
    wheel = disc_x(radius - 0.02, half_width - 0.02).rounded(0.02).moved(x, y, z)
    hub = disc_x(radius * 0.45, half_width + 0.02).moved(x, y, z)
    return [(TYRE, wheel.mirrored_x().mirrored_z()), (METAL, hub.mirrored_x().mirrored_z())]


def _along_z(profile: list[tuple[float, float]], half_width: float) -> Field:
    """A convex profile given as (z, y), counter-clockwise seen from -x, extruded along x."""
    return convex_prism(profile, half_width).rotated_y(-90)


def _car(parameters: ShapeParameters) -> Parts:
    feature = parameters.feature
    cabin = _along_z([(-0.72, 0.0), (0.42, 0.0), (0.1, 0.46), (-0.52, 0.46)], 0.38).rounded(0.03)
    side_glass = _along_z([(-0.56, 0.08), (0.26, 0.08), (0.06, 0.37), (-0.44, 0.37)], 0.43)
    windshield = _along_z([(0.0, 0.08), (0.44, 0.08), (0.2, 0.40), (0.0, 0.40)], 0.29)
    return [
        (BODY, rounded_box(0.46, 0.24, 0.95, 0.1).moved(0, -0.14, 0)),
        (BODY, cabin),
        (GLASS, union(side_glass, windshield)),
        *_wheels(0.38, -0.34, 0.55, 0.21 * feature, 0.09),
        (GOLD, disc_z(0.11 * feature, 0.06).moved(0.28, -0.06, 0.93).mirrored_x()),
        (TYRE, box(0.13, 0.05, 0.05).moved(0, -0.16, 0.93)),
        (CRIMSON, box(0.09, 0.06, 0.04).moved(0.32, -0.06, -0.94).mirrored_x()),
    ]


def _house(parameters: ShapeParameters) -> Parts:
    feature = parameters.feature
    roof = convex_prism([(-0.86, 0.08), (0.86, 0.08), (0.0, 0.84)], 0.72).rounded(0.03)
    pane = box(0.13 * feature, 0.13 * feature, 0.04)
    frame = box(0.17 * feature, 0.17 * feature, 0.02)
    front = union(pane.moved(0.43, -0.26, 0.62), pane.moved(-0.43, -0.26, 0.62), pane.moved(0, 0.36, 0.74))
    frames = union(frame.moved(0.43, -0.26, 0.62), frame.moved(-0.43, -0.26, 0.62), frame.moved(0, 0.36, 0.74))
    side = pane.rotated_y(90).moved(0.69, -0.3, 0).mirrored_x()
    return [
        (BODY, box(0.68, 0.42, 0.6).moved(0, -0.34, 0)),
        (BODY, roof),
        (GLASS, union(front, side)),
        (CREAM, frames),
        (WOOD, box(0.16, 0.26 * feature, 0.05).moved(0, -0.76 + 0.26 * feature, 0.6)),
        (GOLD, sphere(0.045).moved(0.09, -0.48, 0.66)),
        (TYRE, box(0.12, 0.3, 0.12).moved(0.42, 0.64, -0.2)),
    ]


def _mug(parameters: ShapeParameters) -> Parts:
    cup = rounded_cylinder(0.56, 0.62, 0.04) - cylinder(0.45, 0.6).moved(0, 0.14, 0)
    handle = torus(0.3, 0.105 * parameters.limb).rotated_x(90).stretched(1.0, 1.15, 1.0).moved(0.62, 0, 0)
    outside = cylinder(0.5, 0.7)
    return [
        (BODY, cup),
        (BODY, handle - outside),
        (WOOD, cylinder(0.47, 0.02).moved(0, 0.34, 0)),
    ]


def _chair(parameters: ShapeParameters) -> Parts:
    leg = 0.1 * parameters.limb
    return [
        (BODY, rounded_box(0.52, 0.09, 0.5, 0.03).moved(0, -0.15, 0)),
        (BODY, rounded_box(0.52, 0.52, 0.09, 0.03).moved(0, 0.42, -0.42)),
        (BODY, rounded_box(leg, 0.4, leg, 0.02).moved(0.41, -0.6, 0.39).mirrored_x().mirrored_z()),
    ]


def _plane(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    wing = rounded_box(0.98, 0.075 * limb, 0.26, 0.05).moved(0, -0.05, 0.15)
    tail = rounded_box(0.4, 0.055 * limb, 0.15, 0.04).moved(0, 0.08, -0.78)
    rudder = _along_z([(-0.98, 0.0), (-0.5, 0.0), (-0.8, 0.52), (-0.98, 0.52)], 0.05 * limb).rounded(0.02)
    hull = ellipsoid(0.32, 0.32, 0.95)
    blade = box(0.07, 0.44, 0.035).rotated_z(-35).moved(0, 0, 0.92)
    return [
        (BODY, hull),
        (BODY, union(wing, tail)),
        (BODY, rudder),
        (GLASS, ellipsoid(0.18, 0.2 * feature, 0.3).moved(0, 0.2, 0.32)),
        (TYRE, blade),
        (ORANGE, ellipsoid(0.12, 0.12, 0.16).moved(0, 0, 0.95)),
    ]


def _teapot(parameters: ShapeParameters) -> Parts:
    limb = parameters.limb
    pot = ellipsoid(0.56, 0.48, 0.56).moved(0, -0.1, 0)
    spout = union(
        capsule((0, -0.2, 0.45), (0, 0.02, 0.78), 0.13 * limb), capsule((0, 0.02, 0.78), (0, 0.32, 0.9), 0.1 * limb)
    )
    handle = torus(0.28, 0.085 * limb).rotated_z(90).stretched(1.0, 1.1, 1.0).moved(0, 0.0, -0.62)
    return [
        (BODY, union(pot.smooth_union(spout, 0.1), rounded_cylinder(0.36, 0.08, 0.03).moved(0, -0.54, 0))),
        (BODY, handle),
        (CREAM, torus(0.32, 0.05).moved(0, 0.3, 0)),
        (BODY, ellipsoid(0.3, 0.16, 0.3).moved(0, 0.33, 0)),
        (GOLD, sphere(0.12 * parameters.feature).moved(0, 0.55, 0)),
    ]


def _truck(parameters: ShapeParameters) -> Parts:
    feature = parameters.feature
    cab = _along_z([(0.42, -0.4), (0.98, -0.4), (0.98, 0.0), (0.86, 0.34), (0.42, 0.34)], 0.38).rounded(0.03)
    windshield = _along_z([(0.7, 0.04), (1.02, 0.04), (0.92, 0.28), (0.7, 0.28)], 0.3)
    side_glass = _along_z([(0.56, 0.04), (0.86, 0.04), (0.8, 0.28), (0.56, 0.28)], 0.43)
    return [
        (BODY, rounded_box(0.46, 0.52, 0.64, 0.03).moved(0, 0.18, -0.36)),
        (BODY, cab),
        (METAL, box(0.34, 0.06, 0.86).moved(0, -0.42, -0.04)),
        (GLASS, union(windshield, side_glass)),
        *_wheels(0.38, -0.48, 0.6, 0.21 * feature, 0.09),
        (GOLD, disc_z(0.09 * feature, 0.05).moved(0.27, -0.24, 1.0).mirrored_x()),
        (METAL, box(0.14, 0.08, 0.04).moved(0, -0.22, 1.01)),
    ]


def _boat(parameters: ShapeParameters) -> Parts:
    feature = parameters.feature
    # Drawn in (x, y) = (to the side, to the front) and laid flat; each layer a little larger than the one below.
    deck = [(-0.46, -0.8), (0.46, -0.8), (0.48, 0.2), (0.0, 1.0), (-0.48, 0.2)]
    keel = [(x * 0.8, y * 0.84) for x, y in deck]
    lower = convex_prism(keel, 0.16).rotated_x(90).rounded(0.05).moved(0, -0.54, 0)
    upper = convex_prism(deck, 0.14).rotated_x(90).rounded(0.03).moved(0, -0.24, 0)
    planks = convex_prism([(x * 0.74, y * 0.76) for x, y in deck], 0.05).rotated_x(90).moved(0, -0.08, 0)
    window = box(0.15 * feature, 0.1 * feature, 0.04)
    return [
        (BODY, union(lower, upper)),
        (WOOD, planks),
        (CREAM, rounded_box(0.32, 0.26, 0.36, 0.03).moved(0, 0.16, -0.24)),
        (BODY, rounded_box(0.39, 0.05, 0.45, 0.03).moved(0, 0.44, -0.24)),
        (GLASS, window.moved(0, 0.2, 0.11)),
        (GLASS, window.rotated_y(90).moved(0.31, 0.2, -0.24).mirrored_x()),
        (BODY, cylinder(0.14 * parameters.limb, 0.2).moved(0, 0.6, -0.34)),
        (TYRE, cylinder(0.15 * parameters.limb, 0.06).moved(0, 0.8, -0.34)),
    ]


def _clock(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    bell = ellipsoid(0.22 * feature, 0.17 * feature, 0.2).rotated_z(-32).moved(0.42, 0.66, 0).mirrored_x()
    foot = capsule((0.38, -0.5, 0), (0.52, -0.8, 0), 0.1 * limb).mirrored_x()
    hands = union(capsule((0, 0, 0.34), (0, 0.32, 0.34), 0.05), capsule((0, 0, 0.34), (0.22, 0.09, 0.34), 0.055))
    ticks = union(
        box(0.05, 0.06, 0.03).moved(0, 0.37, 0.31),
        box(0.05, 0.06, 0.03).moved(0, -0.37, 0.31),
        box(0.06, 0.05, 0.03).moved(0.37, 0, 0.31).mirrored_x(),
    )
    return [
        (BODY, disc_z(0.7, 0.26).rounded(0.04)),
        (CREAM, disc_z(0.46, 0.16).moved(0, 0, 0.16)),
        (BLACK, union(hands, ticks)),
        (METAL, bell),
        (BODY, foot),
        (METAL, capsule((0, 0.7, 0), (0, 0.84, 0), 0.07)),
    ]


def _television(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    antenna = capsule((0.05, 0.5, -0.05), (0.42, 0.95, -0.05), 0.045 * limb).mirrored_x()
    knob = disc_z(0.085 * feature, 0.07)
    return [
        (BODY, rounded_box(0.8, 0.58, 0.36, 0.08)),
        (BODY, rounded_box(0.5, 0.4, 0.2, 0.06).moved(0, 0, -0.42)),
        (SCREEN, rounded_box(0.43, 0.35, 0.06, 0.05).moved(-0.18, 0.02, 0.35)),
        (GLASS, box(0.12, 0.035, 0.06).rotated_z(35).moved(-0.36, 0.24, 0.37)),
        (CREAM, union(knob.moved(0.54, 0.28, 0.37), knob.moved(0.54, 0.02, 0.37))),
        (METAL, union(antenna, sphere(0.09).moved(0.42, 0.95, -0.05).mirrored_x())),
        (WOOD, capped_cone(0.12, 0.09, 0.13).moved(0.55, -0.66, 0.1).mirrored_x()),
    ]


THINGS: tuple[ToyObject, ...] = (
    ToyObject("car", True, _car),
    ToyObject("house", True, _house),
    ToyObject("mug", True, _mug),
    ToyObject("chair", True, _chair),
    ToyObject("plane", True, _plane),
    ToyObject("teapot", True, _teapot),
    ToyObject("truck", True, _truck),
    ToyObject("boat", True, _boat),
    ToyObject("clock", True, _clock),
    ToyObject("television", True, _television),
)
