"""A capture as a set of files that other programs read: transforms.json, a Blender set, or a COLMAP model."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.captures.colmap import FLIP, MODELS
from dreamkit.captures.lens import Lens
from dreamkit.captures.normalise import UPRIGHT
from dreamkit.errors import SceneError
from dreamkit.files import write_error, write_json
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.conventions import matrix_quaternions

_NUMBERS = {name: number for number, (name, _) in enumerate(MODELS)}


def lens_of(cameras: Camera, index: int) -> Lens:
    """The lens of an ideal camera."""
    focal = 0.5 * cameras.height / math.tan(0.5 * math.radians(float(cameras.fov_y[index])))
    return Lens(cameras.width, cameras.height, focal, focal, 0.5 * cameras.width, 0.5 * cameras.height)


def write_pictures(capture: Capture, folder: Path, first: int = 0) -> list[str]:
    """Write views as PNG with transparency, 8 bits a channel; returns their names.

    Args:
        capture: the views.
        folder: made if missing.
        first: number of the first picture.

    Raises:
        RunError: the system refused the write.
    """
    from PIL import Image

    names = []
    _make(folder)
    for index in range(len(capture.cameras)):
        alpha = capture.alphas[index]
        behind = capture.background[:, None, None]
        color = (capture.images[index] - (1 - alpha) * behind) / alpha.clamp_min(1e-6)
        layers = torch.cat([color * (alpha > 0), alpha]).clamp(0, 1)
        pixels = (layers * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
        names.append(f"view_{first + index:04d}.png")
        try:
            Image.fromarray(pixels, "RGBA").save(folder / names[-1])
        except OSError as error:
            raise write_error(folder / names[-1], error) from error
    return names


def write_transforms(
    cameras: Camera, files: Sequence[str], path: Path, lens: Lens | None = None, blender: bool = False
) -> None:
    """Write cameras and the names of their pictures as a transforms.json, in a world whose z is up.

    Args:
        cameras: V views.
        files: V picture names, relative to the file's folder.
        path: the file.
        lens: of all pictures, if it is not the ideal one of the cameras.
        blender: write as Blender's synthetic sets: one angle for all, names without endings.

    Raises:
        SceneError: views of several lenses in a Blender set.
        RunError: the system refused the write.
    """
    poses = cameras.camera_to_world.double().cpu().clone()
    poses[:, :3] = UPRIGHT.T @ poses[:, :3]
    lenses = [lens or lens_of(cameras, index) for index in range(len(cameras))]
    frames: list[dict[str, Any]] = []
    for file, pose, own in zip(files, poses, lenses, strict=True):
        frame: dict[str, Any] = {"file_path": file, "transform_matrix": pose.tolist()}
        if blender:
            frame["file_path"] = f"./{Path(file).with_suffix('')}"
        else:
            frame |= {"fl_x": own.fx, "fl_y": own.fy, "cx": own.cx, "cy": own.cy, "w": own.width, "h": own.height}
        frames.append(frame)
    content: dict[str, Any] = {"frames": frames}
    if blender:
        if len(set(lenses)) > 1:
            raise SceneError("A Blender set has one lens for all views.", "Write a transforms.json instead.")
        content = {"camera_angle_x": 2 * math.atan(0.5 * lenses[0].width / lenses[0].fx), "frames": frames}
    elif lens is not None:
        content = {"camera_model": _model(lens), **_bends(lens), "frames": frames}
    write_json(path, content)


def write_colmap(
    cameras: Camera,
    files: Sequence[str],
    folder: Path,
    lens: Lens | None = None,
    points: Tensor | None = None,  # [M, 3] world units
    colors: Tensor | None = None,  # [M, 3] in [0, 1]
    binary: bool = True,
) -> None:
    """Write a COLMAP model: cameras, images and points3D. Pictures belong into images/ beside sparse/.

    Args:
        cameras: V views.
        files: V picture names, relative to images/.
        folder: of the model, made if missing, e.g. sparse/0.
        lens: of all pictures, if it is not the ideal one of the cameras.
        points: of the surface.
        colors: of the points, gray by default.
        binary: binary files, or text.

    Raises:
        RunError: the system refused the write.
    """
    _make(folder)
    lenses = [lens or lens_of(cameras, index) for index in range(len(cameras))]
    numbers = {own: number for number, own in enumerate(dict.fromkeys(lenses), start=1)}
    pose_of = {file: _world_to_camera(pose) for file, pose in zip(files, cameras.camera_to_world, strict=True)}
    images = [(file, pose_of[file], numbers[own]) for file, own in zip(files, lenses, strict=True)]
    cloud = torch.zeros(0, 3) if points is None else points
    cloud = cloud.double().cpu() * FLIP.diagonal()[:3]
    shades = torch.full_like(cloud, 0.5) if colors is None else colors.double().cpu()
    rows = list(zip(cloud.tolist(), (shades * 255).round().clamp(0, 255).long().tolist(), strict=True))
    writer = _binary_files if binary else _text_files
    for name, content in writer(numbers, images, rows).items():
        try:
            (folder / name).write_bytes(content)
        except OSError as error:
            raise write_error(folder / name, error) from error


def bent(
    layers: Tensor,  # [C, h, w]
    ideal: Lens,
    lens: Lens,
) -> Tensor:
    """What a lens would have taken of a picture that an ideal pinhole took, [C, lens.height, lens.width].

    Args:
        layers: [C, h, w], best finer and of a wider view than the lens's: beyond it the border is repeated.
        ideal: of the picture.
        lens: to take it with.
    """
    rows, columns = (torch.arange(size, dtype=torch.float64) + 0.5 for size in (lens.height, lens.width))
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    seen = ideal.project(lens.plane(torch.stack([u, v], -1)))
    if not bool(torch.isfinite(seen).all()):
        raise SceneError("The lens folds its picture: its distortion is too strong.", "Use a smaller one.")
    size = seen.new_tensor([ideal.width, ideal.height])
    grid = (2 * seen / size - 1).to(layers.dtype)
    return torch.nn.functional.grid_sample(layers[None], grid[None], "bilinear", "border", align_corners=False)[0]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def _model(lens: Lens) -> str:
    if lens.fisheye:
        return "OPENCV_FISHEYE"
    return "PINHOLE" if lens.is_pinhole else "OPENCV"


def _bends(lens: Lens) -> dict[str, float]:
    """The lens's distortion by name."""
    radial = {f"k{number}": value for number, value in enumerate(lens.radial, start=1)}
    return radial | {"p1": lens.tangential[0], "p2": lens.tangential[1]}


def _parameters(lens: Lens) -> list[float]:
    """The parameters of a lens in COLMAP's order.

    Raises:
        SceneError: a third radial term, for which COLMAP's OPENCV has no room.
    """
    values = {"fx": lens.fx, "fy": lens.fy, "cx": lens.cx, "cy": lens.cy, **_bends(lens)}
    names = MODELS[_NUMBERS[_model(lens)]][1].split()
    if not lens.fisheye and values.get("k3", 0.0):
        raise SceneError("COLMAP's OPENCV camera has no k3.", "Write a transforms.json instead.")
    return [values.get(name, 0.0) for name in names]


def _world_to_camera(camera_to_world: Tensor) -> tuple[list[float], list[float]]:
    """Quaternion (w, x, y, z) and translation from COLMAP's world to the camera, OpenCV's axes."""
    pose = FLIP @ camera_to_world.double().cpu() @ FLIP
    turn = pose[:3, :3].T
    shift = -turn @ pose[:3, 3]
    return matrix_quaternions(turn[None])[0].tolist(), shift.tolist()


def _binary_files(numbers: dict[Lens, int], images: list, points: list) -> dict[str, bytes]:
    cameras = [struct.pack("<Q", len(numbers))]
    for lens, number in numbers.items():
        parameters = _parameters(lens)
        head = struct.pack("<IiQQ", number, _NUMBERS[_model(lens)], lens.width, lens.height)
        cameras.append(head + struct.pack(f"<{len(parameters)}d", *parameters))
    views = [struct.pack("<Q", len(images))]
    for index, (name, (turn, shift), camera) in enumerate(images, start=1):
        views.append(struct.pack("<I7dI", index, *turn, *shift, camera) + name.encode() + b"\0" + struct.pack("<Q", 0))
    cloud = [struct.pack("<Q", len(points))]
    for index, (place, color) in enumerate(points, start=1):
        cloud.append(struct.pack("<Q3d3BdQ", index, *place, *color, 0.0, 0))
    return {"cameras.bin": b"".join(cameras), "images.bin": b"".join(views), "points3D.bin": b"".join(cloud)}


def _text_files(numbers: dict[Lens, int], images: list, points: list) -> dict[str, bytes]:
    def words(*values: object) -> str:
        return " ".join(repr(value) if isinstance(value, float) else str(value) for value in values)

    cameras = ["# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    for lens, number in numbers.items():
        cameras.append(words(number, _model(lens), lens.width, lens.height, *_parameters(lens)))
    views = ["# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME", "# POINTS2D[] as (X, Y, POINT3D_ID)"]
    for index, (name, (turn, shift), camera) in enumerate(images, start=1):
        views += [words(index, *turn, *shift, camera, name), ""]
    cloud = ["# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"]
    cloud += [words(index, *place, *color, 0.0) for index, (place, color) in enumerate(points, start=1)]
    files = {"cameras.txt": cameras, "images.txt": views, "points3D.txt": cloud}
    return {name: ("\n".join(lines) + "\n").encode() for name, lines in files.items()}
