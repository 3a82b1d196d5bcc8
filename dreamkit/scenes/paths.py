"""Camera paths for films: a spiral, and paths from a file (`cameras.turntable` is the third).

A file is JSON as nerfstudio writes it, a camera_path.json of its viewer or a transforms.json of a dataset:

```json
{
  "render_height": 720, "render_width": 1280,
  "camera_path": [
    {"camera_to_world": [1, 0, 0, 0,  0, 1, 0, 0,  0, 0, 1, 3,  0, 0, 0, 1], "fov": 40}
  ]
}
```

- The frames are the list "camera_path" or "frames", or the whole file is that list.
- Each has "camera_to_world" or "transform_matrix": 4 x 4 in rows (or the 16 numbers one after the other), rigid,
  OpenGL axes: the camera looks along its own -z, its y is up. The world is that of the scene: y is up, the object sits
  about the origin, its front faces +z.
- The lens, in the frame or for all frames beside the list: "fov" (vertical, degrees); or "fl_y" or "fl_x" (pixels) with
  "h"; or "camera_angle_y" or "camera_angle_x" (radians).
- The shape of the picture: "render_width" and "render_height", or "w" and "h"; square without them.

Principal points and lens distortion are left out: these are pinhole cameras about the centre of the picture.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera

MAX_FRAMES = 10_000
MAX_SIDE = 4096
_MAX_BYTES = 64_000_000
_RIGID = 1e-3  # largest error of R^T R against the identity: files round their numbers
_FORMAT = "It must be JSON as nerfstudio's camera_path.json or transforms.json: see dreamkit/scenes/paths.py."


def spiral(
    n: int,
    top: float = 50.0,
    bottom: float = 0.0,
    turns: int = 2,
    radius: float = 3.0,
    fov_y: float = 40.0,
    height: int = 64,
    width: int = 64,
) -> Camera:
    """`n` cameras that wind round the object, up to the top and down again, so that a film of them loops.

        azimuth_i = 360 turns i / n,   elevation_i = bottom + (top - bottom) (1 - cos(2 pi i / n)) / 2

    Args:
        n: how many, >= 1.
        top: highest elevation, degrees.
        bottom: elevation at the beginning, degrees.
        turns: whole turns on the way, >= 1.
        radius: world units.
        fov_y: degrees.
        height: image height in pixels.
        width: image width in pixels.

    Returns:
        `n` cameras.

    Raises:
        SceneError: `n` or `turns` is below 1, or a value out of range.
    """
    if n < 1 or turns < 1:
        raise SceneError(f"A spiral of {n} views in {turns} turns has none.", "Use at least 1 of both.")
    progress = [i / n for i in range(n)]
    azimuth = [math.fmod(360.0 * turns * p, 360.0) for p in progress]
    elevation = [bottom + (top - bottom) * (1.0 - math.cos(2.0 * math.pi * p)) / 2.0 for p in progress]
    return Camera.orbit(azimuth, elevation, radius, fov_y, height, width)


def read_camera_path(path: Path | str, height: int) -> Camera:
    """The cameras of a file, see the module's docstring for its format.

    Args:
        path: the JSON file.
        height: image height in pixels; the width follows from the shape that the file gives.

    Returns:
        One camera a frame.

    Raises:
        SceneError: the file can't be read, or has no frames or too many; a frame without a matrix or a lens, a matrix
            that is not finite or not rigid, or a field of view that is not between 0 and 180 degrees.
    """
    value = read_json(Path(path), _MAX_BYTES, _FORMAT)
    shared: Mapping[str, Any] = value if isinstance(value, dict) else {}
    frames = shared.get("camera_path", shared.get("frames")) if shared else value
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{path} holds no frames.", _FORMAT)
    if len(frames) > MAX_FRAMES:
        raise SceneError(f"{path} holds {len(frames)} frames.", f"Use at most {MAX_FRAMES}.")
    aspect = _aspect(shared, str(path))
    width = max(1, round(height * aspect))
    if width > MAX_SIDE:
        raise SceneError(
            f"{path} asks for a picture {aspect:.4g} times as wide as high: {width} pixels.",
            f"Use a smaller resolution: at most {MAX_SIDE} pixels fit in a row.",
        )
    matrices, lenses = [], []
    for index, frame in enumerate(frames):
        place = f"Frame {index} of {path}"
        if not isinstance(frame, dict):
            raise SceneError(f"{place} is no object with a matrix.", _FORMAT)
        matrices.append(_matrix(frame, place))
        lenses.append(_fov_y({**shared, **frame}, aspect, place))
    return Camera(torch.stack(matrices).float(), torch.tensor(lenses), int(height), width)


def read_json(path: Path, most_bytes: int, hint: str) -> Any:
    """What a JSON file of bounded size holds.

    Raises:
        SceneError: it is not there, too large, or no JSON.
    """
    try:
        if path.stat().st_size > most_bytes:
            raise SceneError(f"{path} is larger than {most_bytes // 1_000_000} MB.", hint)
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SceneError(f"{path} can't be read: {error.strerror or error}.", hint) from error
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{path} is no JSON: {str(error)[:200]}.", hint) from error


def _number(values: Mapping[str, Any], name: str, place: str) -> float | None:
    """A positive finite number, or None where there is none."""
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise SceneError(f"{place}: {name} is {str(value)[:40]}.", "Use a positive number.")
    return float(value)


def _aspect(shared: Mapping[str, Any], path: str) -> float:
    """Width over height."""
    for names in (("render_width", "render_height"), ("w", "h")):
        width, height = (_number(shared, name, path) for name in names)
        if width is not None and height is not None:
            return width / height
    return 1.0


def _fov_y(values: Mapping[str, Any], aspect: float, place: str) -> float:
    """Vertical field of view in degrees, from whatever says it."""
    names = ("fov", "fl_y", "fl_x", "camera_angle_y", "camera_angle_x", "h", "render_height")
    given = {name: _number(values, name, place) for name in names}
    height = given["h"] or given["render_height"]
    focal = given["fl_y"] or given["fl_x"]
    if given["fov"] is not None:
        degrees = given["fov"]
    elif focal is not None:
        if height is None:
            raise SceneError(f"{place} has a focal length in pixels, but no height.", 'Add "h", the height in pixels.')
        degrees = math.degrees(2.0 * math.atan(height / (2.0 * focal)))
    elif given["camera_angle_y"] is not None:
        degrees = math.degrees(given["camera_angle_y"])
    elif given["camera_angle_x"] is not None and given["camera_angle_x"] < math.pi:
        degrees = math.degrees(2.0 * math.atan(math.tan(given["camera_angle_x"] / 2.0) / aspect))
    elif given["camera_angle_x"] is not None:
        degrees = math.degrees(given["camera_angle_x"])
    else:
        raise SceneError(f"{place} has no lens.", 'Add "fov", the vertical field of view in degrees.')
    if not 0.0 < degrees < 180.0:
        raise SceneError(f"{place}: a field of view of {degrees:.6g} degrees is no pinhole.", "Use 0 to 180 degrees.")
    return degrees


def _matrix(frame: Mapping[str, Any], place: str) -> Tensor:
    """[4, 4] float64 camera to world."""
    values = frame.get("camera_to_world", frame.get("transform_matrix"))
    if values is None:
        raise SceneError(f'{place} has neither "camera_to_world" nor "transform_matrix".', _FORMAT)
    return rigid_matrix(values, place)


def rigid_matrix(values: Any, place: str) -> Tensor:
    """[4, 4] float64 from four rows of four numbers, or the 16 one after the other: a rotation and a translation.

    Args:
        values: what a file holds.
        place: where, for the message.

    Raises:
        SceneError: it is none, or not finite.
    """
    try:
        matrix = torch.tensor(values, dtype=torch.float64).reshape(4, 4)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise SceneError(f"{place}: its matrix is not 4 x 4 numbers.", "Give four rows of four numbers.") from error
    if not bool(torch.isfinite(matrix).all()):
        raise SceneError(f"{place}: its matrix has values that are not finite.", "Use finite numbers.")
    rotation = matrix[:3, :3]
    defect = float((rotation.T @ rotation - torch.eye(3, dtype=torch.float64)).abs().max())
    last = matrix[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    determinant = float(torch.linalg.det(rotation))
    if defect > _RIGID or determinant < 0 or float(last.abs().max()) > _RIGID:
        raise SceneError(
            f"{place}: its matrix is not rigid (R^T R differs from the identity by {defect:.3g}, "
            f"det R is {determinant:.3g}, the last row is {matrix[3].tolist()}).",
            "Use a rotation and a translation, without scale or mirror, above a last row of 0, 0, 0, 1.",
        )
    return matrix
