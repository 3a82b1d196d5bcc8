"""Cameras of a stream: named moves and paths from files, as poses that never depend on how far a stream has come.

A path says where the camera is at a time, relative to where it was when the path began. Poses are camera_to_world in
OpenGL's axes: x right, y up, z back. The moves are those of the moving toy world (`toyworld.motion_scripts.CameraPath`)
at its middle speeds, seen from the camera itself.

A network that was trained on clips knows poses relative to a clip's first camera. In an endless stream the frame at the
beginning of the window takes its place: poses of a chunk are relative to the frame `window` frames before it, or to the
stream's first frame as long as that is nearer. So the numbers stay in the range of training for ever, and a chunk's
controls are a function of the camera's last moves alone.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dreamkit.checks import require_choice
from dreamkit.errors import ConfigError

MOVES = ("static", "orbit-left", "orbit-right", "dolly-in", "dolly-out", "pan-left", "pan-right")
"""Named moves; "orbit", "dolly" and "pan" alone mean orbit-left, dolly-in and pan-left."""
_SHORT = {"orbit": "orbit-left", "dolly": "dolly-in", "pan": "pan-left"}
_ELEVATION = math.radians(21.5)
_RADIUS, _NEAR, _FAR = 3.9, 3.2, 4.9
_RATE = math.radians(3.0)
_SWING = math.radians(9.0)
_TIME = 10.0
_MAX_BYTES = 64_000_000


class CameraPath(Protocol):
    """A way of the camera through time."""

    def poses(self, times: Tensor) -> Tensor:
        """[n, 4, 4] float64 camera_to_world at times [n] in frames of video, 0 where the path begins."""


@dataclass(frozen=True)
class MovePath:
    """A named move.

    Args:
        move: one of `MOVES`.
    """

    move: str

    def poses(self, times: Tensor) -> Tensor:
        """See `CameraPath`. An orbit goes on for ever; a dolly and a pan come to rest as 1 - exp(-t / 10)."""
        times = times.double()
        kind, _, way = self.move.partition("-")
        progress = 1 - torch.exp(-times / _TIME)
        still = torch.zeros_like(times)
        if kind == "orbit":
            angle = (-1 if way == "left" else 1) * _RATE * times
            target = torch.tensor([0.0, 0.0, -_RADIUS], dtype=torch.float64)
            turn = _about_up(angle)
            return _poses(turn, target - (turn @ target))
        if kind == "dolly":
            back = (_FAR - _NEAR) * progress * (-1 if way == "in" else 1)
            return _poses(_about_up(still), torch.stack([still, still, back], dim=-1))
        if kind == "pan":
            return _poses(_about_up((1 if way == "left" else -1) * 2 * _SWING * progress), torch.zeros(len(times), 3))
        return _poses(_about_up(still), torch.zeros(len(times), 3))


@dataclass(frozen=True)
class ListedPath:
    """Given poses, one a frame of video; the last one stays.

    Args:
        listed: [F, 4, 4] camera_to_world.
    """

    listed: Tensor

    def poses(self, times: Tensor) -> Tensor:
        """See `CameraPath`."""
        return self.listed.double()[times.round().long().clamp(0, len(self.listed) - 1)]


def camera_path(name: str) -> CameraPath:
    """A named move, or the poses in a file.

    Args:
        name: a move, or the path of a .json or .csv file, see `read_poses`.

    Raises:
        ConfigError: neither a move nor a file, or a file that can't be understood.
    """
    name = _SHORT.get(name, name)
    if name in MOVES:
        return MovePath(name)
    if Path(name).suffix.lower() not in (".json", ".csv"):
        require_choice("The camera", name, (*MOVES, "FILE.json", "FILE.csv"))
    return ListedPath(read_poses(name))


def read_poses(path: Path | str) -> Tensor:
    """Poses from a file: a JSON list, or a line of CSV, for each frame.

    Args:
        path: rows of 12 numbers (camera_to_world[:3, :4], row-major) or of 16; lists of lists are flattened.

    Returns:
        [F, 4, 4] float64.

    Raises:
        ConfigError: a file that can't be read, no rows, or a row that is no pose, named by its line or number.
    """
    file = Path(path)
    text = read_text(file)
    rows = _json_rows(file, text) if file.suffix.lower() == ".json" else _csv_rows(file, text)
    if not rows:
        raise ConfigError(f"{file} holds no camera.", "Give a row of 12 or 16 numbers for each frame.")
    return torch.stack([_pose(where, numbers) for where, numbers in rows])


def read_text(file: Path) -> str:
    """The text of a file of controls.

    Raises:
        ConfigError: it is not there, too large, or no text.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{file} has more than {_MAX_BYTES // 1_000_000} MB.", "Give a shorter path.")
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{file} can't be read: {reason}.", "Give a JSON or CSV file.") from error


def read_json_list(file: Path, text: str) -> list[Any]:
    """The list that a JSON file holds.

    Raises:
        ConfigError: no JSON, with its line, or no list.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{file} is no JSON: {error}.", "Correct it there.") from error
    except RecursionError as error:
        raise ConfigError(f"{file} nests too deeply.", "Give a list of rows.") from error
    if not isinstance(content, list):
        raise ConfigError(f"{file} holds no list.", "Give a list with an entry for each frame.")
    return content


def _json_rows(file: Path, text: str) -> list[tuple[str, list[Any]]]:
    rows = []
    for number, row in enumerate(read_json_list(file, text), start=1):
        flat = row if isinstance(row, list) else [row]
        if all(isinstance(part, list) for part in flat):
            flat = [item for part in flat for item in part]
        rows.append((f"{file}, row {number}", flat))
    return rows


def _csv_rows(file: Path, text: str) -> list[tuple[str, list[Any]]]:
    rows: list[tuple[str, list[Any]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        cells = next(csv.reader([line]), [])
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not rows and not any(_is_number(cell) for cell in cells):
            continue  # names of the columns
        rows.append((f"{file}, line {number}", list(cells)))
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _pose(where: str, numbers: Sequence[Any]) -> Tensor:
    """A pose [4, 4] of 12 or 16 numbers."""
    hint = "A row is camera_to_world, row-major: a rotation and a position, 12 numbers, or 16 with 0 0 0 1."
    if len(numbers) not in (12, 16):
        raise ConfigError(f"{where} has {len(numbers)} numbers.", hint)
    values = []
    for item in numbers:
        try:
            value = math.nan if isinstance(item, bool) else float(item)
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(f"{where}: {item!r} is no finite number.", hint)
        values.append(value)
    pose = torch.tensor([*values[:12], 0.0, 0.0, 0.0, 1.0], dtype=torch.float64).view(4, 4)
    if values[12:] not in ([], [0.0, 0.0, 0.0, 1.0]):
        raise ConfigError(f"{where} ends with {values[12:]}.", hint)
    rotation = pose[:3, :3]
    off = float((rotation @ rotation.mT - torch.eye(3, dtype=torch.float64)).abs().max())
    if off > 0.01 or float(torch.linalg.det(rotation)) < 0:
        raise ConfigError(f"{where} has no rotation in its first three columns.", hint)
    return pose


class CameraTrail:
    """The camera of a stream: its path, and the poses of the last `window` frames, relative to one another.

    Args:
        window: latent frames before a chunk that its poses are relative to; `None` is the stream's first frame, as
            where a video is filmed again: such a stream has a camera in every frame.
        stride: frames of video from one latent frame to the next.
    """

    def __init__(self, window: int | None, stride: int) -> None:
        self.window = window
        self.stride = stride
        self._path: CameraPath | None = None
        self._time = 0
        # [n <= window, 4, 4], or the first and the last; never changed in place: snapshots share it
        self._trail: Tensor | None = None

    def follow(self, path: CameraPath | None) -> None:
        """Take a path from the next frame on; it begins where the camera is, at the stream's last frame."""
        self._path = path
        # Before the first frame there is none to begin at: the first frame is the path's beginning.
        self._time = 0 if self._trail is not None else -self.stride

    def next(self, frames: int) -> Tensor | None:
        """Controls [1, frames, 12] float32 of the next frames; `None` where no camera is given."""
        start = self._time
        self._time += frames * self.stride
        times = torch.arange(frames + 1, dtype=torch.float64) * self.stride + start
        if self._path is None:
            poses = torch.eye(4, dtype=torch.float64).expand(frames + 1, 4, 4)
        else:
            poses = self._path.poses(times.clamp(min=0))
        before = poses.new_zeros(0, 4, 4) if self._trail is None else self._trail
        last = torch.eye(4, dtype=torch.float64) if self._trail is None else before[-1]
        # True inverses: a transposed rotation would double its rounding errors with every chunk.
        own = last @ torch.linalg.inv(poses[0]) @ poses[1:]
        every = torch.cat([before, own])
        every = torch.linalg.inv(every[0]) @ every
        self._trail = every[[0, -1]] if self.window is None else every[-self.window :]
        if self._path is None and self.window is not None:
            return None
        return every[len(before) :, :3].flatten(1)[None].float()

    def state(self) -> tuple[CameraPath | None, int, Tensor | None]:
        """All that the next poses depend on."""
        return self._path, self._time, self._trail

    def restore(self, state: tuple[CameraPath | None, int, Tensor | None]) -> None:
        """Go back to a state."""
        self._path, self._time, self._trail = state


def _poses(rotation: Tensor, position: Tensor) -> Tensor:
    """[..., 4, 4] of rotations [..., 3, 3] and positions [..., 3]."""
    poses = torch.zeros(*rotation.shape[:-2], 4, 4, dtype=torch.float64)
    poses[..., :3, :3] = rotation
    poses[..., :3, 3] = position
    poses[..., 3, 3] = 1.0
    return poses


def _about_up(angles: Tensor) -> Tensor:
    """Rotations [n, 3, 3] about the world's up axis, as the camera sees it: it looks down by the elevation."""
    up = torch.tensor([0.0, math.cos(_ELEVATION), math.sin(_ELEVATION)], dtype=torch.float64)
    cross = torch.tensor([[0.0, -up[2], up[1]], [up[2], 0.0, -up[0]], [-up[1], up[0], 0.0]], dtype=torch.float64)
    sine, cosine = angles.sin()[:, None, None], angles.cos()[:, None, None]
    return torch.eye(3, dtype=torch.float64) + sine * cross + (1 - cosine) * (cross @ cross)  # Rodrigues
