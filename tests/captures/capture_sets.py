"""Small sets of posed pictures for the tests of their readers."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dreamkit.captures.write import write_colmap, write_pictures, write_transforms
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.toyworld.capture import capture_cameras, capture_object

FORMATS = ("transforms", "blender", "colmap-binary", "colmap-text")


def small_capture(views: int = 4, size: int = 16) -> Capture:
    """Views of a cube."""
    return capture_object("red", "cube", capture_cameras(views, size))


def write_set(capture: Capture, folder: Path, kind: str, points: torch.Tensor | None = None) -> Path:
    """The capture as files of a kind."""
    names = write_pictures(capture, folder / "images")
    paths = [f"images/{name}" for name in names]
    if kind == "transforms":
        write_transforms(capture.cameras, paths, folder / "transforms.json")
    elif kind == "blender":
        write_transforms(capture.cameras, paths, folder / "transforms_train.json", blender=True)
    else:
        write_colmap(capture.cameras, names, folder / "sparse" / "0", points=points, binary=kind == "colmap-binary")
    return folder


def brown(x: float, y: float, k1: float, k2: float, p1: float, p2: float, k3: float = 0.0) -> tuple[float, float]:
    """OpenCV's distortion as its documentation writes it, number by number."""
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2), y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y


def equidistant(x: float, y: float, k1: float, k2: float, k3: float, k4: float) -> tuple[float, float]:
    """OpenCV's fisheye as its documentation writes it."""
    r = math.hypot(x, y)
    theta = math.atan(r)
    bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
    return (x * bent / r, y * bent / r) if r else (0.0, 0.0)


# model of COLMAP -> parameters for a picture of 160 x 120, and (x, y) on the plane -> pixel, from its documentation
MODELS = {
    "SIMPLE_PINHOLE": ([150.0, 83.0, 57.0], lambda x, y: (150 * x + 83, 150 * y + 57)),
    "PINHOLE": ([150.0, 140.0, 83.0, 57.0], lambda x, y: (150 * x + 83, 140 * y + 57)),
    "SIMPLE_RADIAL": ([150.0, 80.0, 60.0, -0.15], lambda x, y: pixel(brown(x, y, -0.15, 0, 0, 0), 150, 150, 80, 60)),
    "RADIAL": ([150.0, 80.0, 60.0, -0.2, 0.05], lambda x, y: pixel(brown(x, y, -0.2, 0.05, 0, 0), 150, 150, 80, 60)),
    "OPENCV": (
        [150.0, 145.0, 82.0, 58.0, -0.2, 0.05, 0.004, -0.003],
        lambda x, y: pixel(brown(x, y, -0.2, 0.05, 0.004, -0.003), 150, 145, 82, 58),
    ),
    "OPENCV_FISHEYE": (
        [120.0, 118.0, 82.0, 58.0, -0.05, 0.02, -0.01, 0.002],
        lambda x, y: pixel(equidistant(x, y, -0.05, 0.02, -0.01, 0.002), 120, 118, 82, 58),
    ),
}


def pixel(place: tuple[float, float], fx: float, fy: float, cx: float, cy: float) -> tuple[float, float]:
    """A place on the bent plane as a pixel."""
    return fx * place[0] + cx, fy * place[1] + cy


def dot_picture(u: float, v: float, width: int, height: int, path: Path) -> None:
    """A soft white dot on black."""
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    light = np.exp(-((columns[None] - u) ** 2 + (rows[:, None] - v) ** 2) / (2 * 2.5**2))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * light).astype(np.uint8), "L").save(path)


def dot_of(image: torch.Tensor) -> tuple[float, float]:
    """Where the dot of a picture [3, H, W] is: its centre of light."""
    light = image.mean(dim=0).double()
    light = (light - 0.02).clamp_min(0)
    rows, columns = (torch.arange(size).double() + 0.5 for size in light.shape)
    total = float(light.sum())
    return float((light.sum(dim=0) * columns).sum()) / total, float((light.sum(dim=1) * rows).sum()) / total


def dotted_cameras(count: int = 6) -> tuple[Camera, torch.Tensor]:
    """Cameras about the origin, and a point near it for each."""
    cameras = capture_cameras(count, 16)
    points = 0.35 * (2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) - 1)
    return cameras, points


def opencv_plane(camera: Camera, point: torch.Tensor) -> tuple[float, float]:
    """Where a point is on a camera's plane at depth 1, x right and y down."""
    x, y, z = (camera.view_matrix[0, :3, :3] @ point + camera.view_matrix[0, :3, 3]).tolist()
    return x / z, y / z


def load(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text())


def store(path: Path, value: object) -> None:
    """A value or a text as a JSON file."""
    path.write_text(value if isinstance(value, str) else json.dumps(value))
