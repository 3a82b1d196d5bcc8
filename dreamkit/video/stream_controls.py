"""What steers a stream while it plays: a path of the camera and tracks of points, cut into the controls of chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.video.camera_paths import CameraPath, CameraTrail, read_json_list, read_text
from dreamkit.video.controls import Controls

_MAX_POINTS = 1024


@dataclass(frozen=True)
class Steering:
    """Controls from some frame on. What is `None` is not steered.

    Raises:
        ConfigError: shapes that don't fit, or a visible point outside of the picture.
    """

    camera: CameraPath | None = None
    """Begins where the camera is."""
    tracks: Tensor | None = None
    """[F, N, 2] places (x, y) of N points in F frames of video, in [0, 1], the origin at the top left; afterwards no
    point is seen."""
    visible: Tensor | None = None
    """[F, N] bool, where a point is seen; `None` is everywhere."""

    def __post_init__(self) -> None:
        if self.tracks is not None or self.visible is not None:
            items = (None if item is None else item[None] for item in (self.tracks, self.visible))
            Controls(None, *items).check_values()
        if self.tracks is not None and 0 in self.tracks.shape:
            raise ConfigError(f"The tracks' shape is {list(self.tracks.shape)}.", "Give at least one frame and point.")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is steered."""
        return self.camera is None and self.tracks is None


def read_tracks(path: Path | str) -> tuple[Tensor, Tensor]:
    """Tracks from a JSON file: for each frame a list of points, each [x, y] or null where it is not seen.

    Args:
        path: the file; every frame has the same number of points.

    Returns:
        [F, N, 2] float32 places and [F, N] bool where they are seen.

    Raises:
        ConfigError: a file that can't be read, or an entry that can't be understood, named by frame and point.
    """
    file = Path(path)
    frames = read_json_list(file, read_text(file))
    count = len(frames[0]) if frames and isinstance(frames[0], list) else 0
    if not 1 <= count <= _MAX_POINTS:
        raise ConfigError(f"{file} begins with no list of points.", f"Give 1 to {_MAX_POINTS} points for each frame.")
    places = torch.zeros(len(frames), count, 2)
    visible = torch.zeros(len(frames), count, dtype=torch.bool)
    for number, points in enumerate(frames):
        if not isinstance(points, list) or len(points) != count:
            raise ConfigError(f"{file}, frame {number}: not {count} points, as the first.", "Mark hidden ones by null.")
        for index, point in enumerate(points):
            if point is not None:
                places[number, index] = torch.tensor(_place(f"{file}, frame {number}, point {index}", point))
                visible[number, index] = True
    return places, visible


def _place(where: str, point: Any) -> list[float]:
    numbers = point if isinstance(point, list) else []
    fine = len(numbers) == 2 and all(isinstance(item, int | float) and not isinstance(item, bool) for item in numbers)
    if not fine or not all(math.isfinite(item) and 0 <= item <= 1 for item in numbers):
        raise ConfigError(
            f"{where} is {point!r}.", "Give [x, y] from 0 to 1 (top left to bottom right), or null where it is hidden."
        )
    return [float(item) for item in numbers]


@dataclass(frozen=True)
class TrailState:
    """All that the controls of the next chunk depend on."""

    steering: Steering
    time: int
    camera: Any


class ControlTrail:
    """Gives the controls of a stream's chunks, one after the other.

    Args:
        window: see `CameraTrail`.
        stride: frames of video from one latent frame to the next.
    """

    def __init__(self, window: int | None, stride: int) -> None:
        self._camera = CameraTrail(window, stride)
        self._stride = stride
        self._steering = Steering()
        self._time = 0

    def follow(self, steering: Steering, time: int = 0) -> None:
        """Take other controls from the next chunk on.

        Args:
            steering: the controls.
            time: which frame of the tracks the next latent frame is.
        """
        if steering.camera is not self._steering.camera or steering.camera is None:
            self._camera.follow(steering.camera)
        self._steering, self._time = steering, time

    def next(self, frames: int) -> Controls | None:
        """Controls of the next latent frames, `None` where nothing is steered."""
        camera = self._camera.next(frames)
        times = self._time + self._stride * torch.arange(frames)
        self._time += self._stride * frames
        tracks, visible = self._steering.tracks, None
        if tracks is not None:
            given = times < len(tracks)
            at = times.clamp(max=len(tracks) - 1)
            seen = torch.ones(tracks.shape[:2], dtype=torch.bool)
            visible = ((seen if self._steering.visible is None else self._steering.visible)[at] & given[:, None])[None]
            tracks = tracks[at][None].float()
        return None if camera is None and tracks is None else Controls(camera, tracks, visible)

    def state(self) -> TrailState:
        """The state, cheap and never changed afterwards."""
        return TrailState(self._steering, self._time, self._camera.state())

    def restore(self, state: TrailState) -> None:
        """Go back to a state."""
        self._steering, self._time = state.steering, state.time
        self._camera.restore(state.camera)
