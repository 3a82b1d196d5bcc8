"""Who plays what: random scripts of the moving toy world, and scripts of stated compositions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from dreamkit.checks import one_of, require
from dreamkit.errors import ConfigError
from dreamkit.toyworld.captions import COLOURS, CaptionWriter, Thing
from dreamkit.toyworld.motion_config import MOTION_MATERIALS, MOTION_OBJECTS
from dreamkit.toyworld.motion_meshes import MeshLibrary
from dreamkit.toyworld.motion_scripts import CAMERA_MOVES, ROLLERS, CameraPath, Mover, Script, directions_of
from dreamkit.toyworld.objects import BOUNDING_RADIUS

_SHARES: dict[str, float] = {
    "still": 0.10, "spinning": 0.17, "rolling": 0.17, "sliding": 0.14, "bouncing": 0.14, "circling": 0.08,
    "entering": 0.08, "leaving": 0.05, "passing": 0.07,
}  # fmt: skip
_STATIC = 0.5  # share of clips whose camera stands still
_STATIC_DIRECTED = 0.85  # of those that speak of left and right
_TRAVELS = ("rolling", "sliding", "circling", "entering", "leaving", "passing")
_ROUND = ("ball", "cone", "cylinder", "ring", "mushroom", "tree")  # spinning does not show on them, but for spots
_LOOKS_AHEAD = ("duck", "car", "robot", "fish")  # where they go, mostly
_LANE = 0.55  # how far from the middle two objects pass, world units
_HALF_VIEW = math.tan(math.radians(20.0))


class Casting:
    """Draws scripts.

    Args:
        library: meshes of the objects, which say how large they are.
        frames: of a clip; what crosses the picture is near its middle in the middle of the clip.
        generator: source of every choice.
    """

    def __init__(self, library: MeshLibrary, frames: int, generator: torch.Generator) -> None:
        self.library = library
        self.frames = frames
        self.writer = CaptionWriter(generator)

    def _uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.writer.generator))

    def _chance(self, probability: float) -> bool:
        return self.writer.chance(probability)

    def random_script(self, hold_out: bool) -> Script:
        """Any motion of any object, without the compositions of `captions.HELD_OUT` if they are held out."""
        draw = torch.multinomial(torch.tensor(list(_SHARES.values())), 1, generator=self.writer.generator)
        motion = tuple(_SHARES)[int(draw)]
        things = [self._thing(motion, hold_out) for _ in range(2 if motion == "passing" else 1)]
        direction = self.writer.choose(directions_of(motion))
        if motion in ("rolling", "sliding") and self._chance(0.4):
            direction = self.writer.choose(("left", "right"))
        return self.script(things, motion, direction, self._camera_move(motion, direction))

    def _thing(self, motion: str, hold_out: bool) -> Thing:
        names = {
            "rolling": ROLLERS,
            "sliding": tuple(name for name in MOTION_OBJECTS if name not in ("ball", "ring")),
        }.get(motion, MOTION_OBJECTS)
        while True:
            name = self.writer.choose(names)
            hard_to_see = motion in ("spinning", "rolling") and name in _ROUND
            material = "plain"
            if self._chance(0.6 if hard_to_see else 0.35):
                material = "spotted" if hard_to_see else self.writer.choose(MOTION_MATERIALS[1:])
            thing = Thing(name, self.writer.choose(tuple(COLOURS)), material)
            if not (hold_out and thing.held_out):
                return thing

    def _camera_move(self, motion: str, direction: str) -> str:
        """A move that does not show where things appear and disappear."""
        if self._chance(_STATIC_DIRECTED if direction else _STATIC) or motion in ("entering", "leaving"):
            return "static"
        return self.writer.choose(CAMERA_MOVES[1:3] if direction else CAMERA_MOVES[1:])

    def script(self, things: Sequence[Thing], motion: str, direction: str = "", camera_move: str = "static") -> Script:
        """A script of a stated composition; sizes, speeds, phases and views are drawn.

        Raises:
            ConfigError: a word that the moving world does not have, or things that can't move like that.
        """
        for thing in things:
            one_of("The moving world's object", thing.name, MOTION_OBJECTS)
            one_of("The colour", thing.colour, COLOURS)
            one_of("The moving world's material", thing.material, MOTION_MATERIALS)
            if motion == "rolling" and thing.name not in ROLLERS:
                raise ConfigError(f"A {thing.name} does not roll.", f"Let it slide, or use {', '.join(ROLLERS)}.")
        wanted = 2 if motion == "passing" else 1
        require(f"The number of things in a clip of {motion}", len(things) == wanted, len(things), str(wanted))
        camera = self._camera(motion, camera_move)
        movers = [self._mover(thing, motion, direction, camera) for thing in things]
        if motion == "passing":
            movers = self._pass_each_other(movers[0], movers[1], camera)
        return Script(tuple(movers), camera)

    def _camera(self, motion: str, move: str) -> CameraPath:
        near, far = self._uniform(3.0, 3.4), self._uniform(4.6, 5.2)
        radius = self._uniform(3.8, 4.4) if motion == "passing" else self._uniform(3.5, 4.3)
        ends = {"dollies in": (far, near), "dollies out": (near, far)}.get(move, (radius, radius))
        return CameraPath(
            move=move,
            azimuth=self._uniform(-12, 12),
            elevation=self._uniform(15, 28),
            radius=ends[0],
            end_radius=ends[1],
            height=0.7 if motion == "bouncing" else 0.5,
            rate=self._uniform(2.0, 4.0),
            swing=self._uniform(7, 11),
        )

    def second_camera(self, first: CameraPath) -> CameraPath:
        """A camera that orbits or dollies from where another begins (a pan begins beside what it shows)."""
        move = self.writer.choose(CAMERA_MOVES[1:5])
        end = self._uniform(3.0, 3.4) if move == "dollies in" else self._uniform(4.6, 5.2)
        return replace(first, move=move, rate=self._uniform(2.0, 4.0), end_radius=end)

    def _mover(self, thing: Thing, motion: str, direction: str, camera: CameraPath) -> Mover:
        shape = int(torch.randint(self.library.shapes, (), generator=self.writer.generator))
        mesh = self.library.mesh(thing.name, shape)
        rolls = thing.name in ROLLERS and motion in _TRAVELS and motion != "sliding"
        radius = float(mesh.half_sizes[0])
        upright = not rolls or thing.name == "ball"
        mover = Mover(
            thing, shape, motion, direction, rolls, radius,
            lift=-float(mesh.vertices[:, 1].min()) if upright else radius,
            scale=self._uniform(0.54, 0.62) if motion == "passing" else self._uniform(0.68, 0.85),
            clockwise=self._chance(0.5),
            phase=self._uniform(0.0, 1.0),
        )  # fmt: skip
        mover = replace(mover, yaw=self._yaw(mover) if upright else 0.0)
        return self._timed(mover, camera)

    def _yaw(self, mover: Mover) -> float:
        if mover.motion == "spinning" or (mover.motion == "still" and self._chance(0.25)):
            return self._uniform(-180, 180)
        if mover.thing.name in _LOOKS_AHEAD and mover.motion == "circling":
            return 90.0
        if mover.thing.name in _LOOKS_AHEAD and mover.direction and self._chance(0.7):
            return mover.sign * self._uniform(55, 95)
        return self._uniform(-40, 40)

    def _timed(self, mover: Mover, camera: CameraPath) -> Mover:
        """With how far and how fast it moves. Periods of turns are whole frames."""
        half_width = min(camera.radius, camera.end_radius) * _HALF_VIEW
        straight = replace(mover, heading=self._uniform(-12, 12), middle=(0.0, self._uniform(-0.25, 0.25)))
        edge = _edge(straight, camera)
        match mover.motion:
            case "spinning":
                return replace(mover, period=float(round(self._uniform(12, 24))))
            case "bouncing":
                return replace(mover, period=float(round(self._uniform(8, 14))), reach=self._uniform(0.45, 0.8))
            case "circling":
                return replace(mover, period=float(round(self._uniform(16, 26))), reach=self._uniform(0.55, 0.75))
            case "rolling" | "sliding" if not mover.direction:
                reach = self._uniform(0.75, 1.0) * max(0.5, 0.95 * half_width - 0.5 * mover.scale)
                return replace(straight, reach=reach, period=self._uniform(28, 40))
            case "rolling" | "sliding":
                return self._crossing(straight, camera, edge)
            case "entering" | "leaving":
                late = self._uniform(0.05, 0.2) if mover.motion == "entering" else self._uniform(-0.25, 0.0)
                return replace(straight, reach=edge, period=self._uniform(13, 18), phase=late)
        return mover

    def _crossing(self, mover: Mover, camera: CameraPath, edge: float) -> Mover:
        """Across the picture in 17 to 24 frames, near its middle in the middle of the clip (or anywhere, rarely)."""
        share = camera.radius * _HALF_VIEW / edge  # of the path that is in the picture
        period = self._uniform(17, 24) / share
        off_middle = self._uniform(-0.25, 0.25) * share
        phase = 0.5 + off_middle - 0.5 * self.frames / period
        if camera.move == "static" and self._chance(0.12):
            phase = mover.phase
        return replace(mover, reach=edge, period=period, phase=phase)

    def _pass_each_other(self, first: Mover, second: Mover, camera: CameraPath) -> list[Mover]:
        """In two lanes, the second the other way, and both at the middle at once."""
        nearer = _LANE if self._chance(0.5) else -_LANE
        lane = replace(first, heading=0.0, middle=(0.0, nearer))
        edge = max(_edge(replace(lane, scale=scale), camera) for scale in (first.scale, second.scale))
        period = edge / (camera.radius * _HALF_VIEW) * self._uniform(17, 24)
        meeting = 0.5 * self.frames + self._uniform(-2, 2)
        lane = replace(lane, reach=edge, period=period, phase=0.5 - meeting / period)
        other = "left" if first.direction == "right" else "right"
        opposite = replace(
            second, direction=other, yaw=-second.yaw, heading=0.0, middle=(0.0, -nearer), reach=edge,
            period=lane.period, phase=lane.phase,
        )  # fmt: skip
        return [lane, opposite]


def _edge(mover: Mover, camera: CameraPath) -> float:
    """How far along its path from the middle an object is surely out of the picture, world units.

    A sphere of radius s at the place p along a path at an angle b to the picture is beside the view's pyramid of half
    angle v where p cos b - (r + p sin b) tan v > s / cos v, r the camera's distance.
    """
    turned, beside = math.radians(abs(mover.heading) + abs(camera.azimuth)), abs(mover.middle[1])
    far = (max(camera.radius, camera.end_radius) + beside) * _HALF_VIEW
    offset = beside * math.sin(math.radians(abs(camera.azimuth)))
    size = mover.scale * BOUNDING_RADIUS / math.cos(math.atan(_HALF_VIEW))
    return (far + offset + size) / (math.cos(turned) - _HALF_VIEW * math.sin(turned))
