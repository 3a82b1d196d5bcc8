"""transforms.json of nerfstudio and instant-ngp, and Blender's synthetic sets (transforms_train.json, ..._test.json).

Each frame has "file_path" (Blender's without an ending) and "transform_matrix", camera to world in OpenGL's axes in a
world whose z is up. The lens, in the frame or for all beside the list: fl_x and fl_y in pixels, or camera_angle_x and
camera_angle_y in radians; cx, cy, w, h; "camera_model" with k1, k2, k3, p1, p2 (OPENCV) or k1 to k4 (OPENCV_FISHEYE);
and "mask_path", a gray picture of how much of each pixel the SUBJECT covers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamkit.captures.colmap import MOST_VIEWS, checked_lens, fitted
from dreamkit.captures.lens import Lens
from dreamkit.captures.photos import Photo, find_picture, inside, is_file, picture_size
from dreamkit.errors import SceneError
from dreamkit.scenes.paths import read_json, rigid_matrix

_MOST_BYTES = 64_000_000
_FORMAT = "See dreamkit/captures/transforms.py for the format."
_PERSPECTIVE = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "perspective")
_FISHEYE = ("OPENCV_FISHEYE", "fisheye")


def read_photos(folder: Path, file: Path) -> list[Photo]:
    """The posed pictures of a transforms.json, not decoded.

    Args:
        folder: of the set: nothing outside it is read.
        file: the JSON file.

    Raises:
        SceneError: it can't be read, has no frames, or a frame has no picture, lens or pose.
    """
    value = read_json(inside(folder, file.name, str(folder)), _MOST_BYTES, _FORMAT)
    frames = value.get("frames") if isinstance(value, dict) else None
    if not isinstance(frames, list) or not frames:
        raise SceneError(f"{file} holds no frames.", _FORMAT)
    if len(frames) > MOST_VIEWS:
        raise SceneError(f"{file} holds {len(frames)} frames.", f"Use at most {MOST_VIEWS}.")
    kept = {name: _names(value, name, file) for name in ("train_filenames", "test_filenames", "val_filenames")}
    tests = kept["test_filenames"] or kept["val_filenames"]
    photos: list[Photo] = []
    for index, frame in enumerate(frames):
        place = f"Frame {index} of {file}"
        if not isinstance(frame, dict):
            raise SceneError(f"{place} is no object with a picture.", _FORMAT)
        name = frame.get("file_path")
        if kept["train_filenames"] and str(name) not in kept["train_filenames"] | tests:
            continue  # the set's own choice: neither for training nor for tests
        photo = _photo(folder, {**value, **frame}, place)
        photos.append(replace(photo, held_out=str(name) in tests))
    _same_lens_same_size(value, photos, file)
    return photos


def read_blender_photos(folder: Path) -> list[Photo]:
    """The posed pictures of transforms_train.json, and of transforms_test.json, kept for tests, if it is there.

    Raises:
        SceneError: as `read_photos`.
    """
    photos = read_photos(folder, folder / "transforms_train.json")
    tests = folder / "transforms_test.json"
    if is_file(tests):
        photos += [replace(photo, held_out=True) for photo in read_photos(folder, tests)]
    return photos


def _names(value: Mapping[str, Any], name: str, file: Path) -> set[str]:
    """A list of file names, as a set."""
    names = value.get(name) or []
    if not isinstance(names, list):
        raise SceneError(f"{file}: {name} is {str(names)[:40]!r}.", "It must be a list of file names.")
    return {str(item) for item in names}


def _photo(folder: Path, values: Mapping[str, Any], place: str) -> Photo:
    """One frame, with what the file says for all."""
    if "transform_matrix" not in values:
        raise SceneError(f'{place} has no "transform_matrix".', _FORMAT)
    pose = rigid_matrix(values["transform_matrix"], place)
    path = find_picture(folder, values.get("file_path"), place)
    width, height = picture_size(path)
    lens = fitted(_lens(values, width, height, place), path)
    mask = values.get("mask_path")
    if mask is None:
        return Photo(path, None, lens, pose)
    file = inside(folder, mask, place)
    if not is_file(file):
        raise SceneError(f"{place}: there is no mask {file}.", "Put it there, or take mask_path out of the set.")
    return Photo(path, file, lens, pose)


def _lens(values: Mapping[str, Any], width: int, height: int, place: str) -> Lens:
    """The lens of a frame, in the pixels that it speaks of (those of its picture by default)."""
    model = values.get("camera_model", "OPENCV")
    if model not in (*_PERSPECTIVE, *_FISHEYE):
        raise SceneError(
            f"{place} has the camera model {str(model)[:40]!r}.",
            f"Known: {', '.join((*_PERSPECTIVE, *_FISHEYE))}. Undistort the pictures first.",
        )
    fisheye = model in _FISHEYE
    width = round(_number(values, "w", place) or width)
    height = round(_number(values, "h", place) or height)
    fx, fy = _focal(values, "x", width, place), _focal(values, "y", height, place)
    if fx is None and fy is None:
        raise SceneError(f"{place} has no lens.", 'Add "fl_x" in pixels, or "camera_angle_x" in radians.')
    center = {name: _number(values, name, place, anything=True) for name in ("cx", "cy")}
    bends = {name: _number(values, name, place, anything=True) or 0.0 for name in ("k1", "k2", "k3", "k4", "p1", "p2")}
    unclear = {"p1": bends["p1"], "p2": bends["p2"]} if fisheye else {"k4": bends["k4"]}
    for name, value in unclear.items():
        if value:
            raise SceneError(
                f"{place}: {name} is {value}, which a camera {model} has not.",
                "Programs disagree about its meaning: undistort the pictures first.",
            )
    lens = Lens(
        width=width,
        height=height,
        fx=fx or fy or 0.0,
        fy=fy or fx or 0.0,
        cx=0.5 * width if center["cx"] is None else center["cx"],
        cy=0.5 * height if center["cy"] is None else center["cy"],
        radial=tuple(bends[f"k{number}"] for number in range(1, 5 if fisheye else 4)),
        tangential=(bends["p1"], bends["p2"]),
        fisheye=fisheye,
    )
    return checked_lens(lens, place)


def _focal(values: Mapping[str, Any], axis: str, size: int, place: str) -> float | None:
    """Focal length along an axis, pixels."""
    focal = _number(values, f"fl_{axis}", place)
    angle = _number(values, f"camera_angle_{axis}", place)
    if focal is not None or angle is None:
        return focal
    if angle >= math.pi:
        raise SceneError(f"{place}: a camera_angle_{axis} of {angle:.6g} is no pinhole.", "It is in radians, below pi.")
    return 0.5 * size / math.tan(0.5 * angle)


def _number(values: Mapping[str, Any], name: str, place: str, anything: bool = False) -> float | None:
    """A finite number, a positive one unless anything will do; `None` where there is none."""
    value = values.get(name)
    if value is None:
        return None
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not -1e9 < value < 1e9 or not (anything or value > 0):
        wanted = "a finite number" if anything else "a positive number"
        raise SceneError(f"{place}: {name} is {str(value)[:40]}.", f"Use {wanted}.")
    return float(value)


def _same_lens_same_size(value: Mapping[str, Any], photos: list[Photo], file: Path) -> None:
    """Refuse pictures of several sizes under one lens that doesn't say which of them it means."""
    sizes = {(photo.lens.width, photo.lens.height): photo.picture for photo in photos}
    shared = any(name in value for name in ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y"))
    if shared and "w" not in value and len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise SceneError(
            f"{file} has one lens for pictures of several sizes: {first} has {one[0]}x{one[1]} pixels, "
            f"{second} {other[0]}x{other[1]}.",
            "Make them the same size, or give each frame its w, h and lens.",
        )
