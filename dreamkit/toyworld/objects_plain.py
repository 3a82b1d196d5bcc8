"""The twelve toy objects without a front: each looks much the same from all round.

Sizes are in rough units that `Solid` fits into the unit sphere. At 64x64 pixels one pixel is about 0.03 units, so
everything is chunky on purpose.
"""

from __future__ import annotations

from dreamkit.toyworld.primitives import (
    capped_cone,
    capsule,
    cone,
    convex_prism,
    cylinder,
    disc_z,
    ellipsoid,
    half_space,
    pyramid,
    rounded_box,
    rounded_cylinder,
    sphere,
    torus,
    union,
)
from dreamkit.toyworld.solids import (
    BODY,
    CREAM,
    GLASS,
    METAL,
    ORANGE,
    WOOD,
    Parts,
    ShapeParameters,
    ToyObject,
)


def _cube(parameters: ShapeParameters) -> Parts:
    return [(BODY, rounded_box(0.6, 0.6, 0.6, 0.05))]


def _ball(parameters: ShapeParameters) -> Parts:
    return [(BODY, sphere(0.8))]


def _cone(parameters: ShapeParameters) -> Parts:
    return [(BODY, cone(0.75, 0.65).rounded(0.03))]


def _cylinder(parameters: ShapeParameters) -> Parts:
    return [(BODY, rounded_cylinder(0.55, 0.68, 0.04))]


def _ring(parameters: ShapeParameters) -> Parts:
    # Lying flat, so that it looks the same from all round.
    return [(BODY, torus(0.6, 0.18 * parameters.limb))]


def _pyramid(parameters: ShapeParameters) -> Parts:
    return [(BODY, pyramid(0.75, 0.58).rounded(0.02))]


def _table(parameters: ShapeParameters) -> Parts:
    leg = 0.12 * parameters.limb
    return [
        (BODY, rounded_box(0.8, 0.1, 0.8, 0.03).moved(0, 0.45, 0)),
        (BODY, rounded_box(leg, 0.5, leg, 0.03).moved(0.62, -0.05, 0.62).mirrored_x().mirrored_z()),
    ]


def _mushroom(parameters: ShapeParameters) -> Parts:
    cap = ellipsoid(0.85, 0.72, 0.85) & half_space(0, -1, 0, 0.0)
    stem = capped_cone(0.36, 0.30 * parameters.limb, 0.24 * parameters.limb).rounded(0.03)
    return [(BODY, cap.rounded(0.04)), (CREAM, stem.moved(0, -0.34, 0))]


def _tree(parameters: ShapeParameters) -> Parts:
    return [
        (BODY, cone(0.34, 0.66).rounded(0.03).moved(0, -0.25, 0)),
        (BODY, cone(0.32, 0.54).rounded(0.03).moved(0, 0.17, 0)),
        (BODY, cone(0.30, 0.40).rounded(0.03).moved(0, 0.57, 0)),
        (WOOD, cylinder(0.17 * parameters.limb, 0.24).moved(0, -0.78, 0)),
    ]


def _bottle(parameters: ShapeParameters) -> Parts:
    neck = 0.15 * parameters.limb
    glass = rounded_cylinder(0.36, 0.48, 0.06).moved(0, -0.4, 0)
    shoulder = capped_cone(0.16, 0.30, neck).moved(0, 0.2, 0)
    return [
        (BODY, glass.smooth_union(shoulder, 0.1).smooth_union(cylinder(neck, 0.3).moved(0, 0.4, 0), 0.06)),
        (CREAM, rounded_cylinder(neck + 0.05, 0.1, 0.02).moved(0, 0.76, 0)),
    ]


def _lamp(parameters: ShapeParameters) -> Parts:
    return [
        (BODY, capped_cone(0.34, 0.66, 0.34).rounded(0.03).moved(0, 0.45, 0)),
        (METAL, cylinder(0.085 * parameters.limb, 0.5).moved(0, -0.25, 0)),
        (BODY, rounded_cylinder(0.42, 0.09, 0.04).moved(0, -0.78, 0)),
    ]


def _rocket(parameters: ShapeParameters) -> Parts:
    hull = ellipsoid(0.36, 1.05, 0.36).moved(0, 0.1, 0) & half_space(0, -1, 0, 0.62)
    # The upper end is the tip, in metal.
    tip = half_space(0, -1, 0, -0.8)
    fin = convex_prism([(0.2, -0.25), (0.2, -0.65), (0.72, -0.95), (0.72, -0.62)], 0.07 * parameters.limb)
    fins = union(fin.mirrored_x(), fin.mirrored_x().rotated_y(90))
    window = disc_z(0.15 * parameters.feature, 0.36).moved(0, 0.28, 0)
    return [
        (BODY, hull - tip),
        (METAL, (ellipsoid(0.37, 1.06, 0.37).moved(0, 0.1, 0)) & tip),
        (BODY, fins),
        (GLASS, union(window, window.rotated_y(90))),
        (ORANGE, capsule((0, -0.6, 0), (0, -0.78, 0), 0.2)),
    ]


PLAIN_OBJECTS: tuple[ToyObject, ...] = (
    ToyObject("cube", False, _cube, stretch=0.3),
    ToyObject("ball", False, _ball, stretch=0.0),
    ToyObject("cone", False, _cone),
    ToyObject("cylinder", False, _cylinder),
    ToyObject("ring", False, _ring, stretch=0.4),
    ToyObject("pyramid", False, _pyramid),
    ToyObject("table", False, _table),
    ToyObject("mushroom", False, _mushroom),
    ToyObject("tree", False, _tree),
    ToyObject("bottle", False, _bottle),
    ToyObject("lamp", False, _lamp),
    ToyObject("rocket", False, _rocket),
)
