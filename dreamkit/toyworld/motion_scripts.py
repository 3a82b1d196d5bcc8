"""What moves how in a clip: pure functions of time, so that any stretch of any length can be rendered.

Times are frame numbers, 12 to a second. The floor is the plane y = 0, and the default camera looks along -z, so left is
-x. A motion gives a position, a course, the way along it and a turn, all functions of time:

    p_world = T(position) R_y(course) R_z(-way / radius) R_y(yaw + turn) R_lie (scale p_object)

R_z is there for what rolls only, and R_lie lays a cylinder or a ring on its side for it. What rolls does not slip: the
way along the course is the arc that has touched the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.checks import one_of, require
from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import Camera
from dreamkit.toyworld.captions import Thing

MOTIONS: tuple[str, ...] = (
    "still", "spinning", "rolling", "sliding", "bouncing", "circling", "entering", "leaving", "passing",
)  # fmt: skip
_DIRECTIONS: dict[str, tuple[str, ...]] = {
    "rolling": ("", "left", "right"),
    "sliding": ("", "left", "right"),
    "entering": ("left", "right"),
    "leaving": ("left", "right"),
    "passing": ("left", "right"),
}
CAMERA_MOVES: tuple[str, ...] = (
    "static", "orbits left", "orbits right", "dollies in", "dollies out", "pans left", "pans right",
)  # fmt: skip
ROLLERS: tuple[str, ...] = ("ball", "cylinder", "ring")
"""Objects that roll where they travel; the others slide."""


def directions_of(motion: str) -> tuple[str, ...]:
    """Directions that a motion can have; "" is none. One enters FROM a side, all else goes TO it."""
    return _DIRECTIONS.get(motion, ("",))


@dataclass(frozen=True)
class Mover:
    """One object and how it moves.

    Args:
        thing: what it is.
        shape: number of its variant.
        motion: one of `MOTIONS`.
        direction: one of `directions_of(motion)`.
        rolls: whether it rolls where it travels; else it slides.
        radius: of what rolls, object units.
        lift: from the floor to the object's centre, object units.
        scale: world units in an object unit.
        yaw: degrees about y; without a course 0 faces the default camera, with one 90 faces forward.
        heading: degrees about y by which a straight path is turned from the x axis.
        middle: x and z of the path's middle, world units.
        reach: how far it moves from the middle, or where it is out of the picture; the radius of its circle; the
            height of its bounce; world units.
        period: frames of a turn, a bounce, a round, a way there and back or across two `reach`, an entrance or an exit.
        phase: share of a period done at time 0.
        clockwise: seen from above, how it spins or circles.

    Raises:
        ConfigError: an unknown motion, a direction it can't have, or a size that is not positive.
    """

    thing: Thing
    shape: int
    motion: str
    direction: str
    rolls: bool
    radius: float
    lift: float
    scale: float
    yaw: float = 0.0
    heading: float = 0.0
    middle: tuple[float, float] = (0.0, 0.0)
    reach: float = 1.0
    period: float = 24.0
    phase: float = 0.0
    clockwise: bool = False

    def __post_init__(self) -> None:
        one_of("The motion", self.motion, MOTIONS)
        one_of(f"For {self.motion}, the direction", self.direction, directions_of(self.motion))
        for name in ("radius", "lift", "scale", "reach", "period"):
            value = getattr(self, name)
            require(f"The mover's {name}", 0 < value < math.inf, value, "a positive number")

    @property
    def sign(self) -> float:
        """Which way it travels along its course: -1 to the left, 1 to the right or without a direction."""
        return -1.0 if self.direction == ("right" if self.motion == "entering" else "left") else 1.0

    @property
    def lies(self) -> bool:
        """Whether it is laid on its side, its axis towards the camera, to roll."""
        return self.rolls and self.thing.name in ("cylinder", "ring")

    def poses(self, times: Tensor) -> Tensor:
        """[F, 4, 4] object to world (with its scale) at times [F]."""
        path = _PATHS[self.motion](self, times.double())  # a day has a million frames
        own = rotation(1, path.turn + math.radians(self.yaw))
        if self.lies:
            own = own @ rotation(0, torch.full_like(path.turn, math.pi / 2))
        if self.rolls:
            own = rotation(2, -path.way / (self.scale * self.radius)) @ own
        poses = torch.zeros(len(times), 4, 4)
        poses[:, :3, :3] = rotation(1, path.course) @ own * self.scale
        poses[:, :3, 3] = path.position + path.position.new_tensor(
            [self.middle[0], self.scale * self.lift, self.middle[1]]
        )
        poses[:, 3, 3] = 1.0
        return poses


@dataclass(frozen=True)
class _Path:
    """Where a mover is at times [F], before its lift and its middle are added."""

    position: Tensor  # [F, 3]
    course: Tensor  # [F] radians about y from the x axis
    way: Tensor  # [F] along the course since some time
    turn: Tensor  # [F] radians about y


def _straight(mover: Mover, way: Tensor, place: Tensor | None = None) -> _Path:
    """A path along a line; `place` where it is not as far along as the way says."""
    course = torch.full_like(way, math.radians(mover.heading))
    along = way if place is None else place
    position = torch.stack([along * course.cos(), torch.zeros_like(way), -along * course.sin()], dim=-1)
    return _Path(position, course, way, torch.zeros_like(way))


def _still(mover: Mover, times: Tensor) -> _Path:
    return replace(_straight(mover, torch.zeros_like(times)), course=torch.zeros_like(times))


def _angle(mover: Mover, times: Tensor) -> Tensor:
    """2 pi (t / period + phase), negative clockwise."""
    return (-2 if mover.clockwise else 2) * math.pi * (times / mover.period + mover.phase)


def _spinning(mover: Mover, times: Tensor) -> _Path:
    return replace(_still(mover, times), turn=_angle(mover, times))


def _bouncing(mover: Mover, times: Tensor) -> _Path:
    """Free flight between perfect bounces: height = 4 reach u (1 - u), u the phase."""
    u = torch.remainder(times / mover.period + mover.phase, 1.0)
    height = 4 * mover.reach * u * (1 - u)
    return replace(_still(mover, times), position=functional.pad(height[:, None], (1, 1)))


def _circling(mover: Mover, times: Tensor) -> _Path:
    angle = _angle(mover, times)
    position = mover.reach * torch.stack([angle.cos(), torch.zeros_like(angle), -angle.sin()], dim=-1)
    quarter = -math.pi / 2 if mover.clockwise else math.pi / 2
    return _Path(position, angle + quarter, mover.reach * angle.abs(), torch.zeros_like(angle))


def _travelling(mover: Mover, times: Tensor) -> _Path:
    """There and back, as a sine; or with a direction at constant speed, and round again out of sight."""
    cycles = times / mover.period + mover.phase
    if not mover.direction:
        return _straight(mover, mover.reach * torch.sin(2 * math.pi * cycles))
    place = 2 * mover.reach * (torch.remainder(cycles, 1.0) - 0.5)
    return _straight(mover, mover.sign * 2 * mover.reach * (cycles - 0.5), mover.sign * place)


def _entering(mover: Mover, times: Tensor) -> _Path:
    """From out of the picture to the middle, ever slower: way = -reach (1 - u)^2."""
    u = (times / mover.period + mover.phase).clamp(0.0, 1.0)
    return _straight(mover, -mover.sign * mover.reach * (1 - u) ** 2)


def _leaving(mover: Mover, times: Tensor) -> _Path:
    """From the middle out of the picture, ever faster: way = reach u^2."""
    u = (times / mover.period + mover.phase).clamp(0.0, 1.0)
    return _straight(mover, mover.sign * mover.reach * u**2)


_PATHS: dict[str, Callable[[Mover, Tensor], _Path]] = {
    "still": _still,
    "spinning": _spinning,
    "rolling": _travelling,
    "sliding": _travelling,
    "bouncing": _bouncing,
    "circling": _circling,
    "entering": _entering,
    "leaving": _leaving,
    "passing": _travelling,
}


def rotation(axis: int, angle: Tensor) -> Tensor:
    """Right-handed rotations [..., 3, 3] by angles [...] in radians about the x (0), y (1) or z (2) axis."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrices = angle.new_zeros(*angle.shape, 3, 3)
    matrices[..., axis, axis] = 1.0
    matrices[..., first, first] = matrices[..., second, second] = angle.cos()
    matrices[..., second, first] = angle.sin()
    matrices[..., first, second] = -angle.sin()
    return matrices


@dataclass(frozen=True)
class CameraPath:
    """How the camera moves about the point it looks at.

    With progress p = 1 - exp(-t / time): an orbit changes the azimuth by `rate` t, for ever; a dolly brings the radius
    from `radius` to `end_radius` by p; a pan turns the camera from `swing` to one side to as much to the other by p.

    Args:
        move: one of `CAMERA_MOVES`.
        azimuth: degrees at time 0, 0 in front.
        elevation: degrees.
        radius: distance at time 0, world units.
        height: of the point on the y axis that it looks at, world units.
        rate: of an orbit, degrees a frame.
        end_radius: where a dolly ends.
        swing: of a pan, degrees.
        time: frames in which a dolly or a pan does 63 percent of its way.

    Raises:
        ConfigError: an unknown move.
    """

    move: str = "static"
    azimuth: float = 0.0
    elevation: float = 20.0
    radius: float = 4.0
    height: float = 0.5
    rate: float = 3.0
    end_radius: float = 4.0
    swing: float = 10.0
    time: float = 10.0

    def __post_init__(self) -> None:
        one_of("The camera's move", self.move, CAMERA_MOVES)

    def cameras(self, times: Tensor, size: int = 64) -> Camera:
        """F cameras for square frames of `size` pixels at times [F] of at least 0, 40 degrees of view."""
        kind, _, way = self.move.partition(" ")
        left = -1.0 if way == "left" else 1.0
        times = times.double()
        azimuth, radius = torch.full_like(times, self.azimuth), torch.full_like(times, self.radius)
        progress = 1 - torch.exp(-times / self.time)
        if kind == "orbits":
            azimuth = azimuth + left * self.rate * times
        elif kind == "dollies":
            radius = radius + (self.end_radius - self.radius) * progress
        target = torch.tensor([0.0, self.height, 0.0])
        camera = Camera.orbit(azimuth, self.elevation, radius, 40.0, size, size, target, near=0.1, far=50.0)
        matrices = camera.camera_to_world
        if kind == "pans":
            # Turning left is positive about y; a pan to the left begins on the right.
            turn = rotation(1, torch.deg2rad(left * self.swing * (1 - 2 * progress)))
            matrices = torch.cat(
                [torch.cat([turn @ matrices[:, :3, :3], matrices[:, :3, 3:]], dim=2), matrices[:, 3:]], 1
            )
        return replace(camera, camera_to_world=matrices.float(), fov_y=camera.fov_y.float())


@dataclass(frozen=True)
class Script:
    """A clip without its look: who moves how, and the camera.

    Args:
        movers: one object, or the two that pass each other.
        camera: its path.

    Raises:
        ConfigError: no movers, more than two, or a pair that does not pass.
    """

    movers: tuple[Mover, ...]
    camera: CameraPath

    def __post_init__(self) -> None:
        pair = self.motion == "passing" if self.movers else False
        if len(self.movers) != 1 + pair:
            raise ConfigError(f"A script has {len(self.movers)} movers.", "Use one, or two of the motion passing.")

    @property
    def things(self) -> list[Thing]:
        """The objects as captions name them."""
        return [mover.thing for mover in self.movers]

    @property
    def motion(self) -> str:
        """One of `MOTIONS`."""
        return self.movers[0].motion

    @property
    def direction(self) -> str:
        """Of the first object: "left", "right" or ""."""
        return self.movers[0].direction

    @property
    def camera_move(self) -> str:
        """One of `CAMERA_MOVES`."""
        return self.camera.move

    def poses(self, times: Tensor) -> Tensor:
        """[F, K, 4, 4] object to world, scales included, at times [F] in frames."""
        return torch.stack([mover.poses(times) for mover in self.movers], dim=1)

    def cameras(self, times: Tensor, size: int = 64) -> Camera:
        """F cameras for square frames of `size` pixels at times [F] in frames, at least 0."""
        return self.camera.cameras(times, size)
