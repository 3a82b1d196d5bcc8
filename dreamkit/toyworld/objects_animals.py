"""Toy creatures, each with a face towards +z: duck, robot, snowman, fish, cat, bear, penguin, ghost.

Sizes are in rough units that `Solid` fits into the unit sphere. Features are exaggerated, for 64x64 pixels.
"""

from __future__ import annotations

import math

from dreamkit.toyworld.primitives import (
    Field,
    box,
    capped_cone,
    capsule,
    cone,
    convex_prism,
    cylinder,
    disc_z,
    ellipsoid,
    rounded_box,
    rounded_cylinder,
    sphere,
    union,
)
from dreamkit.toyworld.solids import (
    BLACK,
    BODY,
    CREAM,
    METAL,
    ORANGE,
    PINK,
    SCREEN,
    TYRE,
    WHITE,
    WOOD,
    Parts,
    ShapeParameters,
    ToyObject,
)


def _eyes(x: float, y: float, z: float, radius: float, outward: float = 0.25) -> Parts:
    """A pair of white eyes with black pupils that look to the front and a little outward."""
    white = ellipsoid(radius, radius, radius * 0.75)
    px, pz = outward * radius * 0.8, radius * 0.45
    pupil = sphere(radius * 0.62)
    return [
        (WHITE, white.moved(x, y, z).mirrored_x()),
        (BLACK, pupil.moved(x + px, y, z + pz).mirrored_x()),
    ]


def _duck(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    torso = ellipsoid(0.52, 0.42, 0.68).moved(0, -0.4, -0.1)
    tail = cone(0.26, 0.22).rounded(0.06).rotated_x(-50).moved(0, -0.12, -0.72)
    head = sphere(0.42).moved(0, 0.32, 0.28)
    wing = ellipsoid(0.14 * limb, 0.24, 0.38).moved(0.5, -0.36, -0.18).mirrored_x()
    beak = ellipsoid(0.24 * feature, 0.09 * feature, 0.28 * feature).moved(0, 0.22, 0.72)
    return [
        (BODY, torso.smooth_union(head, 0.12).smooth_union(tail, 0.12)),
        (BODY, wing),
        (ORANGE, beak),
        *_eyes(0.2, 0.46, 0.58, 0.12 * feature),
    ]


def _robot(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    arm = capsule((0.54, 0.02, 0), (0.58, -0.45, 0.06), 0.11 * limb).mirrored_x()
    leg = rounded_box(0.13 * limb, 0.24, 0.15 * limb, 0.04).moved(0.2, -0.78, 0).mirrored_x()
    foot = rounded_box(0.17, 0.08, 0.24, 0.04).moved(0.2, -0.96, 0.06).mirrored_x()
    eye = disc_z(0.1 * feature, 0.04).moved(0.17, 0.54, 0.40).mirrored_x()
    return [
        (BODY, rounded_box(0.4, 0.4, 0.28, 0.05).moved(0, -0.22, 0)),
        (BODY, rounded_box(0.46, 0.32, 0.34, 0.06).moved(0, 0.5, 0)),
        (BODY, union(arm, leg, foot)),
        (SCREEN, box(0.36, 0.23, 0.03).moved(0, 0.5, 0.34)),
        (WHITE, eye),
        (WHITE, box(0.2, 0.035, 0.03).moved(0, 0.35, 0.36)),
        (METAL, cylinder(0.05 * limb, 0.16).moved(0, 0.92, 0)),
        (ORANGE, sphere(0.12 * feature).moved(0, 1.1, 0)),
        (ORANGE, disc_z(0.1 * feature, 0.05).moved(0, -0.16, 0.28)),
    ]


def _snowman(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    nose = cone(0.26 * feature, 0.12 * feature).rotated_x(90).moved(0, 0.46, 0.5)
    eye = sphere(0.075 * feature).moved(0.14, 0.6, 0.27).mirrored_x()
    buttons = union(
        sphere(0.08 * feature).moved(0, -0.02, 0.36),
        sphere(0.08 * feature).moved(0, -0.42, 0.54),
        sphere(0.08 * feature).moved(0, -0.68, 0.56),
    )
    arm = capsule((0.3, 0.02, 0), (0.82, 0.3, 0.04), 0.06 * limb).mirrored_x()
    hat = union(rounded_cylinder(0.29, 0.05, 0.02), rounded_cylinder(0.19, 0.14, 0.02).moved(0, 0.13, 0))
    return [
        (BODY, union(sphere(0.56).moved(0, -0.6, 0), sphere(0.42).moved(0, 0, 0))),
        (BODY, sphere(0.35).moved(0, 0.5, 0)),
        (ORANGE, nose),
        (BLACK, union(eye, buttons)),
        (WOOD, arm),
        (TYRE, hat.moved(0, 0.8, 0)),
    ]


def _fish(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    # The polygons are drawn in (x, y) = (towards the tail, up) and turned so that x runs to -z.
    fin = 0.07 * limb
    tail = convex_prism([(0.5, 0.0), (1.0, -0.5), (1.08, 0.0), (1.0, 0.5)], fin).rounded(0.02)
    dorsal = convex_prism([(-0.25, 0.4), (0.4, 0.35), (0.45, 0.72), (0.15, 0.78)], fin).rounded(0.02)
    side = ellipsoid(0.26, 0.06, 0.16).rotated_z(-35).moved(0.42, -0.16, 0.1).mirrored_x()
    trunk = ellipsoid(0.36, 0.52, 0.72).moved(0, 0, 0.12)
    mouth = ellipsoid(0.16, 0.09, 0.1).moved(0, -0.1, 0.82)
    radius = 0.16 * feature
    return [
        (BODY, trunk),
        (BODY, union(tail, dorsal).rotated_y(90)),
        (ORANGE, side),
        (PINK, mouth),
        (WHITE, sphere(radius).moved(0.22, 0.14, 0.5).mirrored_x()),
        (BLACK, sphere(radius * 0.66).moved(0.29, 0.15, 0.58).mirrored_x()),
    ]


def _cat(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    torso = ellipsoid(0.42, 0.52, 0.4).moved(0, -0.5, -0.1)
    head = ellipsoid(0.54, 0.44, 0.42).moved(0, 0.3, 0.06)
    ear = cone(0.25 * feature, 0.2 * feature).rounded(0.02)
    inner = cone(0.2 * feature, 0.14 * feature).moved(0, -0.02, 0.1)
    paws = capsule((0.18, -0.5, 0.2), (0.18, -0.88, 0.32), 0.13 * limb).mirrored_x()
    tail = union(
        capsule((0.1, -0.88, -0.4), (0.5, -0.8, -0.5), 0.1 * limb),
        capsule((0.5, -0.8, -0.5), (0.68, -0.35, -0.5), 0.1 * limb),
    )
    whiskers = union(
        capsule((0.2, 0.14, 0.44), (0.66, 0.22, 0.42), 0.028), capsule((0.2, 0.1, 0.44), (0.66, 0.02, 0.42), 0.028)
    )
    return [
        (BODY, torso.smooth_union(head, 0.06)),
        (BODY, ear.rotated_z(-22).moved(0.34, 0.74, 0.02).mirrored_x()),
        (PINK, inner.rotated_z(-22).moved(0.34, 0.74, 0.02).mirrored_x()),
        (BODY, union(paws, tail)),
        (PINK, ellipsoid(0.09, 0.065, 0.07).moved(0, 0.2, 0.48)),
        (WHITE, whiskers.mirrored_x()),
        *_eyes(0.22, 0.38, 0.4, 0.135 * feature, 0.0),
    ]


def _bear(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    torso = ellipsoid(0.46, 0.46, 0.4).moved(0, -0.42, 0)
    head = ellipsoid(0.48, 0.42, 0.4).moved(0, 0.34, 0.04)
    ear = ellipsoid(0.21 * feature, 0.21 * feature, 0.12).moved(0.42, 0.68, 0.0).mirrored_x()
    arm = capsule((0.38, -0.2, 0.06), (0.66, -0.42, 0.28), 0.15 * limb).mirrored_x()
    leg = capsule((0.26, -0.74, 0.1), (0.36, -0.78, 0.5), 0.18 * limb).mirrored_x()
    pad = disc_z(0.12 * limb, 0.03).moved(0.38, -0.78, 0.66).mirrored_x()
    return [
        (BODY, torso.smooth_union(head, 0.05)),
        (BODY, union(ear, arm, leg)),
        (CREAM, disc_z(0.12 * feature, 0.03).moved(0.42, 0.68, 0.11).mirrored_x()),
        (CREAM, pad),
        (CREAM, ellipsoid(0.22 * feature, 0.17 * feature, 0.17).moved(0, 0.22, 0.42)),
        (BLACK, ellipsoid(0.1 * feature, 0.07 * feature, 0.07).moved(0, 0.29, 0.57)),
        (BLACK, sphere(0.075 * feature).moved(0.19, 0.46, 0.37).mirrored_x()),
    ]


def _penguin(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    torso = ellipsoid(0.5, 0.66, 0.46).moved(0, -0.24, 0)
    head = sphere(0.38).moved(0, 0.52, 0.02)
    belly = ellipsoid(0.29, 0.39, 0.2).moved(0, -0.28, 0.31)
    flipper = ellipsoid(0.1 * limb, 0.42, 0.2).rotated_z(22).moved(0.58, -0.18, 0).mirrored_x()
    foot = ellipsoid(0.2, 0.09, 0.28).moved(0.22, -0.88, 0.2).mirrored_x()
    beak = cone(0.18 * feature, 0.14 * feature).rounded(0.02).rotated_x(90).moved(0, 0.46, 0.5)
    return [
        (BODY, torso.smooth_union(head, 0.15)),
        (BODY, flipper),
        (WHITE, belly),
        (ORANGE, union(foot, beak)),
        *_eyes(0.16, 0.62, 0.31, 0.11 * feature, 0.0),
    ]


def _ghost(parameters: ShapeParameters) -> Parts:
    feature, limb = parameters.feature, parameters.limb
    dome = sphere(0.56).moved(0, 0.34, 0)
    skirt = capped_cone(0.5, 0.66, 0.56).moved(0, -0.16, 0)
    arm = capsule((0.45, 0.0, 0.1), (0.78, 0.12, 0.24), 0.13 * limb).mirrored_x()
    hem: list[Field] = []
    for i in range(7):
        angle = math.radians(360 / 7 * i)
        hem.append(sphere(0.21).moved(0.5 * math.sin(angle), -0.68, 0.5 * math.cos(angle)))
    eye = ellipsoid(0.13 * feature, 0.19 * feature, 0.1).moved(0.2, 0.46, 0.49).mirrored_x()
    mouth = ellipsoid(0.13 * feature, 0.16 * feature, 0.1).moved(0, 0.04, 0.56)
    return [
        (BODY, union(dome, skirt)),
        (BODY, union(*hem)),
        (BODY, arm),
        (BLACK, union(eye, mouth)),
    ]


CREATURES: tuple[ToyObject, ...] = (
    ToyObject("duck", True, _duck),
    ToyObject("robot", True, _robot),
    ToyObject("snowman", True, _snowman),
    ToyObject("fish", True, _fish),
    ToyObject("cat", True, _cat),
    ToyObject("bear", True, _bear),
    ToyObject("penguin", True, _penguin),
    ToyObject("ghost", True, _ghost),
)
