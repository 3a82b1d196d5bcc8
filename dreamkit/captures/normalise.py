"""From a set's world to DreamKit's: y up, the subject about the origin in the unit sphere, cameras near radius 3."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.conventions import Z_UP

RADIUS = 3.0
"""Where cameras shall stand: as far as those that DreamKit trains and films with."""
UPRIGHT = torch.tensor(Z_UP, dtype=torch.float64)
"""Takes a world whose z is up to one whose y is."""
_NEAR_RADIUS = (2.7, 3.3)  # of the middle camera of a set that stands already
_RANGE = (2.0, 4.5)  # of all of them
_CENTRED = 0.35  # from the origin to what they look at
_PARALLEL = 1e-3
_ROUNDS = 15


@dataclass(frozen=True)
class Similarity:
    """x -> scale turn x + shift.

    Args:
        turn: [3, 3] float64 rotation.
        scale: above 0.
        shift: [3] float64.
    """

    turn: Tensor
    scale: float
    shift: Tensor

    @classmethod
    def identity(cls) -> Similarity:
        """Nothing moves."""
        return cls(torch.eye(3, dtype=torch.float64), 1.0, torch.zeros(3, dtype=torch.float64))

    def poses(
        self,
        poses: Tensor,  # [V, 4, 4] float64
    ) -> Tensor:
        """Camera-to-world matrices in the new world, [V, 4, 4]: the cameras keep their size."""
        moved = poses.clone()
        moved[:, :3, :3] = self.turn @ poses[:, :3, :3]
        moved[:, :3, 3] = self.points(poses[:, :3, 3])
        return moved

    def points(
        self,
        points: Tensor,  # [M, 3] float64
    ) -> Tensor:
        """Points in the new world, [M, 3]."""
        return self.scale * points @ self.turn.T + self.shift

    def after(self, first: Similarity) -> Similarity:
        """`first`, then this one."""
        return Similarity(
            self.turn @ first.turn, self.scale * first.scale, self.scale * self.turn @ first.shift + self.shift
        )


def focus(
    poses: Tensor,  # [V, 4, 4] float64
) -> Tensor | None:
    """The point [3] nearest to all optical axes, or `None` where they are parallel (or there is only one).

    The least sum of distances, by least squares whose weights are one over the distances before:
    (sum w (I - d d^T)) x = sum w (I - d d^T) o. A few cameras that were placed wrongly don't move it, as they would
    move the point of least squares.
    """
    directions, origins = -poses[:, :3, 2], poses[:, :3, 3]
    across = torch.eye(3, dtype=poses.dtype) - directions[:, :, None] * directions[:, None]
    if float(torch.linalg.eigvalsh(across.mean(dim=0))[0]) < _PARALLEL:
        return None
    middle = origins.median(dim=0).values  # near which numbers are small
    weights = torch.ones(len(poses), 1, 1, dtype=poses.dtype)
    for _ in range(_ROUNDS):
        matrix = (weights * across).mean(dim=0)
        right = (weights * across @ (origins - middle)[:, :, None]).mean(dim=0)
        point = torch.linalg.lstsq(matrix, right).solution[:, 0] + middle
        passed = (across @ (point - origins)[:, :, None])[:, :, 0].norm(dim=1)
        floor = 1e-3 * (origins - point).norm(dim=1).median() + 1e-12
        weights = (floor / passed.clamp_min(floor))[:, None, None]
    return point


def stands(poses: Tensor) -> bool:
    """Whether cameras stand as DreamKit wants them: about the origin, upright, near radius 3."""
    radius = poses[:, :3, 3].norm(dim=1)
    centre = focus(poses)
    if centre is None:  # how far the axes pass the origin
        along = (poses[:, :3, 3] * poses[:, :3, 2]).sum(dim=1)
        aside = float((radius.square() - along.square()).clamp_min(0).sqrt().mean())
    else:
        aside = float(centre.norm())
    near = _NEAR_RADIUS[0] <= float(radius.median()) <= _NEAR_RADIUS[1]
    inside = _RANGE[0] <= float(radius.min()) and float(radius.max()) <= _RANGE[1]
    upright = float(poses[:, 1, 1].mean()) > 0.3
    return near and inside and upright and aside <= _CENTRED


def upright(poses: Tensor) -> Tensor:
    """[3, 3] the rotation that makes up what photographers held up.

    They hold cameras level: up is the direction across all right axes, on the side of the cameras' up axes. Where those
    right axes don't span a plane, or cameras were held upright, it is the mean of the up axes.
    """
    mean = poses[:, :3, 1].mean(dim=0)
    right = poses[:, :3, 0]
    values, vectors = torch.linalg.eigh(right.T @ right / len(right))
    normal = vectors[:, 0] * torch.sign((vectors[:, 0] * mean).sum())
    level = float(values[1]) > max(0.02, 4 * float(values[0])) and float(normal @ mean) > 0.5 * float(mean.norm())
    up = normal if level else mean
    if float(up.norm()) < 1e-6:
        return torch.eye(3, dtype=poses.dtype)
    up = up / up.norm()
    # The rest of the turn leaves z where it can: nobody knows which side is the front.
    helper = torch.eye(3, dtype=poses.dtype)[2 if abs(float(up[2])) < 0.9 else 1]
    back = helper - (helper @ up) * up
    back = back / back.norm()
    return torch.stack([torch.linalg.cross(up, back), up, back])


def to_radius(poses: Tensor, place: str) -> Similarity:
    """The shift and the scale that bring what the cameras look at to the origin and them near radius 3.

    Raises:
        SceneError: they look in parallel, or all from one place.
    """
    centre = focus(poses)
    if centre is None:
        raise SceneError(
            f"The cameras of {place} look in parallel: there is no point that they stand around.",
            "Take pictures from all sides, or give poses in DreamKit's world and --normalise never.",
        )
    distance = float((poses[:, :3, 3] - centre).norm(dim=1).median())
    if not 1e-9 < distance < 1e9:
        raise SceneError(
            f"The cameras of {place} are {distance:.3g} away from what they look at.",
            "Move them while you take pictures: turning them on one spot shows no depth.",
        )
    scale = RADIUS / distance
    return Similarity(torch.eye(3, dtype=poses.dtype), scale, -scale * centre)


def shrinking(
    origins: Tensor,  # [N, 3] of rays that meet the subject
    directions: Tensor,  # [N, 3] unit
) -> float:
    """The factor, at most 1, that brings a subject into the unit sphere.

    How near its rays pass by the origin says how large its outline is; the outermost half percent may be dirt.
    """
    if len(origins) == 0:
        return 1.0
    along = (origins * directions).sum(dim=1, keepdim=True)
    nearest = (origins - along * directions).norm(dim=1)
    reach = float(nearest.sort().values[min(len(nearest) - 1, math.ceil(0.995 * len(nearest)))])
    return 1.0 if reach <= 1.0 else 0.95 / reach
