"""COLMAP's models: cameras, images and points, as text or binary.

The files are parsed here although pycolmap reads them: it ends the process on damaged ones. Counts are held against the
bytes that are left before anything is made for them, so a file can't ask for more memory than it has itself.

COLMAP's poses lead from the world to the camera, in OpenCV's axes (x right, y DOWN, z FORWARD). They come out as
camera-to-world in OpenGL's axes, in a world turned by half a turn about x, so that a world whose y pointed down (as
that of a first camera does) has it up.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from dreamkit.captures.lens import Lens
from dreamkit.captures.photos import Photo, find_picture, inside, is_file, picture_size
from dreamkit.errors import SceneError
from dreamkit.scenes.mesh import quaternion_matrices

FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0", ".")
MODELS: tuple[tuple[str, str], ...] = (
    ("SIMPLE_PINHOLE", "f cx cy"),
    ("PINHOLE", "fx fy cx cy"),
    ("SIMPLE_RADIAL", "f cx cy k1"),
    ("RADIAL", "f cx cy k1 k2"),
    ("OPENCV", "fx fy cx cy k1 k2 p1 p2"),
    ("OPENCV_FISHEYE", "fx fy cx cy k1 k2 k3 k4"),
)
"""The models of camera that are read, by number, with their parameters in order."""
OTHERS = (
    "FULL_OPENCV", "FOV", "SIMPLE_RADIAL_FISHEYE", "RADIAL_FISHEYE", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE",
)  # fmt: skip
"""The models that are not, by number from 6."""

MOST_VIEWS = 10_000
MOST_POINTS = 100_000
"""Points that are kept of a cloud; of a larger one every so manieth."""
_MOST_TEXT = 2**28
_LONGEST_NAME = 4096
_POINT_BYTES, _TRACK_BYTES, _SEEN_BYTES = 43, 8, 24
_HINT = "Is it the output of COLMAP, whole? Export the model again."
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
"""Half a turn about x: between OpenCV's axes and OpenGL's, and COLMAP's world and ours."""


@dataclass(frozen=True)
class ColmapImage:
    """One line of images.txt: where a picture was taken, and by which camera.

    Args:
        name: of the picture, below the folder of pictures.
        camera: its number.
        rotation: quaternion w, x, y, z, world to camera.
        translation: world to camera.
    """

    name: str
    camera: int
    rotation: tuple[float, ...]
    translation: tuple[float, ...]

    def pose(self, place: str) -> Tensor:
        """[4, 4] float64 camera to world, OpenGL axes, in the turned world.

        Raises:
            SceneError: values that are not finite, or no rotation.
        """
        norm = math.hypot(*self.rotation)
        if not all(math.isfinite(value) and abs(value) < 1e12 for value in (norm, *self.translation)):
            raise SceneError(f"{place}: the pose of {self.name!r} is not finite.", _HINT)
        if abs(norm - 1) > 1e-2:
            raise SceneError(
                f"{place}: the quaternion of {self.name!r} has the length {norm:.6g}.", "A rotation's is 1."
            )
        (turn,) = quaternion_matrices(torch.tensor([self.rotation], dtype=torch.float64) / norm)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = turn.T
        pose[:3, 3] = -turn.T @ torch.tensor(self.translation, dtype=torch.float64)
        return FLIP @ pose @ FLIP


@dataclass(frozen=True)
class ColmapModel:
    """What a model's folder holds.

    Args:
        cameras: lenses by number.
        images: by name.
        points: [M, 3] float64 in the turned world, or none.
        colors: [M, 3] in [0, 1].
    """

    cameras: Mapping[int, Lens]
    images: list[ColmapImage]
    points: Tensor
    colors: Tensor


def find_model(folder: Path) -> Path | None:
    """The folder of a COLMAP model at or below a folder, if there is one."""
    for name in FOLDERS:
        if any(is_file(folder / name / f"images.{kind}") for kind in ("bin", "txt")):
            return folder / name
    return None


def read_photos(folder: Path, model_folder: Path) -> tuple[list[Photo], Tensor, Tensor]:
    """The posed pictures of a set, not decoded; points [M, 3] and their colours.

    Pictures are below images/, or the folder itself; masks, if there are any, in masks/ as NAME.png or with the
    picture's ending replaced.

    Raises:
        SceneError: a damaged model, a picture that is missing or of another shape than its camera's.
    """
    model = read_model(inside(folder, str(model_folder.relative_to(folder)), str(folder)))
    pictures = folder / "images" if (folder / "images").is_dir() else folder
    inside(folder, pictures.name if pictures != folder else ".", str(folder))
    photos = []
    for image in model.images:
        place = f"The model {model_folder}"
        if image.camera not in model.cameras:
            raise SceneError(f"{place}: {image.name!r} is of camera {image.camera}, which is not there.", _HINT)
        pose = image.pose(place)
        path = find_picture(pictures, image.name, place)
        lens = fitted(model.cameras[image.camera], path)
        photos.append(Photo(path, _mask(folder, image.name), lens, pose))
    return photos, model.points, model.colors


def fitted(lens: Lens, picture: Path) -> Lens:
    """A lens in pixels of its picture, which may have been scaled since.

    Raises:
        SceneError: it has another shape.
    """
    width, height = picture_size(picture)
    # Scaled sizes are rounded: by a pixel at most.
    if abs(lens.width * height - width * lens.height) > max(lens.width, lens.height, width, height):
        raise SceneError(
            f"{picture} has {width}x{height} pixels, and its camera {lens.width}x{lens.height}.",
            "Scale pictures as a whole only; a cropped one needs intrinsics of its own.",
        )
    return lens if (lens.width, lens.height) == (width, height) else lens.resized(width, height)


def _mask(folder: Path, name: str) -> Path | None:
    for candidate in (f"masks/{name}.png", f"masks/{Path(name).with_suffix('.png')}"):
        if is_file(folder / candidate):
            return inside(folder, candidate, f"The set {folder}")
    return None


def read_model(folder: Path) -> ColmapModel:
    """The cameras, images and points of a folder; binary goes before text, as in COLMAP.

    Raises:
        SceneError: a file is missing, damaged or too large, or a model of camera that is not known.
    """
    binary = is_file(folder / "images.bin")
    kind = "bin" if binary else "txt"
    readers: tuple[Callable, Callable, Callable] = (
        (_binary_cameras, _binary_images, _binary_points) if binary else (_text_cameras, _text_images, _text_points)
    )
    results: list = []
    for name, reader in zip(("cameras", "images", "points3D"), readers, strict=True):
        path = folder / f"{name}.{kind}"
        if name == "points3D" and not is_file(path):
            results.append([])
            continue
        try:
            results.append(reader(path))
        except OSError as error:
            raise SceneError(f"{path} can't be read: {error.strerror or error}.", _HINT) from error
        except (ValueError, IndexError, OverflowError, struct.error) as error:
            raise SceneError(f"{path} is damaged: {str(error)[:200]}.", _HINT) from error
    cameras, images, rows = results
    if not images:
        raise SceneError(f"The COLMAP model {folder} has no images.", _HINT)
    points = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    points = points[(points.abs() < 1e12).all(dim=1)]
    turned = points[:, :3] * FLIP.diagonal()[:3]
    return ColmapModel(cameras, sorted(images, key=lambda image: image.name), turned, points[:, 3:].float() / 255)


def make_lens(model: str, width: int, height: int, parameters: list[float], place: str) -> Lens:
    """The lens of a COLMAP camera.

    Raises:
        SceneError: an unknown model, another number of parameters, or values that no lens has.
    """
    known = dict(MODELS)
    if model not in known:
        raise SceneError(
            f"{place} has a camera of the model {model[:40]!r}.",
            f"Known: {', '.join(known)}. `colmap image_undistorter` makes PINHOLE cameras of any.",
        )
    names = known[model].split()
    if len(parameters) != len(names):
        raise SceneError(f"{place}: a camera {model} has {len(parameters)} parameters.", f"It has {len(names)}.")
    values = dict(zip(names, parameters, strict=True))
    fx, fy = values.get("fx", values.get("f", 0.0)), values.get("fy", values.get("f", 0.0))
    return checked_lens(
        Lens(
            width=width,
            height=height,
            fx=fx,
            fy=fy,
            cx=values["cx"],
            cy=values["cy"],
            radial=tuple(values[name] for name in ("k1", "k2", "k3", "k4") if name in values),
            tangential=(values.get("p1", 0.0), values.get("p2", 0.0)),
            fisheye=model == "OPENCV_FISHEYE",
        ),
        place,
    )


def checked_lens(lens: Lens, place: str) -> Lens:
    """The lens itself.

    Raises:
        SceneError: values that no lens has.
    """
    sizes = {"width": lens.width, "height": lens.height, "fx": lens.fx, "fy": lens.fy}
    for name, value in sizes.items():
        if not 0 < value < 1e7:
            raise SceneError(f"{place}: the {name} of a camera is {value}.", "It must be positive, in pixels.")
    rest = {"cx": lens.cx, "cy": lens.cy, "p1": lens.tangential[0], "p2": lens.tangential[1]}
    rest |= {f"k{number}": value for number, value in enumerate(lens.radial, start=1)}
    for name, value in rest.items():
        if not abs(value) < 1e7:
            raise SceneError(f"{place}: the {name} of a camera is {value}.", "Use finite numbers.")
    return lens


class _Bytes:
    """A binary file that knows how much of it is left.

    Args:
        file: open for reading.
        size: of it, bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.left = size

    def take(self, form: str) -> tuple:
        """Numbers in the form of `struct`, little-endian."""
        wanted = struct.calcsize("<" + form)
        return struct.unpack("<" + form, self._read(wanted))

    def count(self, least: int, most: float = math.inf) -> int:
        """A number of records of at least `least` bytes each, for which there is room."""
        (number,) = self.take("Q")
        if number > self.left // least or number > most:
            raise ValueError(f"it speaks of {number} records, and holds {self.left} bytes more")
        return int(number)

    def text(self) -> str:
        """A name that ends in a zero byte."""
        letters = bytearray()
        while (letter := self._read(1)) != b"\0":
            letters += letter
            if len(letters) > _LONGEST_NAME:
                raise ValueError("a name does not end")
        return letters.decode("utf-8")

    def skip(self, number: int) -> None:
        """Pass over bytes."""
        if number > self.left:
            raise ValueError("it ends too early")
        self.file.seek(number, 1)
        self.left -= number

    def _read(self, number: int) -> bytes:
        content = self.file.read(number)
        if len(content) < number:
            raise ValueError("it ends too early")
        self.left -= number
        return content


def _binary_cameras(path: Path) -> dict[int, Lens]:
    cameras = {}
    with open(path, "rb") as file:
        source = _Bytes(file, path.stat().st_size)
        for _ in range(source.count(48, MOST_VIEWS)):
            number, model, width, height = source.take("IiQQ")
            place = f"{path}: camera {number}"
            if not 0 <= model < len(MODELS):
                named = OTHERS[model - len(MODELS)] if 0 <= model - len(MODELS) < len(OTHERS) else f"number {model}"
                make_lens(named, 1, 1, [], place)  # which says what is wrong with it
            name, parameters = MODELS[model]
            values = source.take(f"{len(parameters.split())}d")
            cameras[number] = make_lens(name, width, height, list(values), place)
    return cameras


def _binary_images(path: Path) -> list[ColmapImage]:
    images = []
    with open(path, "rb") as file:
        source = _Bytes(file, path.stat().st_size)
        for _ in range(source.count(73, MOST_VIEWS)):
            _, *values, camera = source.take("I7dI")
            name = source.text()
            source.skip(source.count(_SEEN_BYTES) * _SEEN_BYTES)
            images.append(ColmapImage(name, camera, tuple(values[:4]), tuple(values[4:])))
    return images


def _binary_points(path: Path) -> list[tuple[float, ...]]:
    rows = []
    with open(path, "rb") as file:
        source = _Bytes(file, path.stat().st_size)
        count = source.count(_POINT_BYTES + 8)
        stride = -(-count // MOST_POINTS)
        for index in range(count):
            _, *values = source.take("Q3d3Bd")
            source.skip(source.count(_TRACK_BYTES) * _TRACK_BYTES)
            if index % stride == 0:
                rows.append(tuple(values[:6]))
    return rows


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file without comments; empty ones too, since a picture may have seen no points."""
    size = path.stat().st_size
    if size > _MOST_TEXT:
        raise ValueError(f"it has {size:,} bytes; convert models of more than {_MOST_TEXT:,} to binary")
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.startswith("#"):
                yield line.strip()


def _text_cameras(path: Path) -> dict[int, Lens]:
    cameras = {}
    for line in _lines(path):
        if not line:
            continue
        number, model, width, height, *values = line.split()
        place = f"{path}: camera {number[:20]}"
        parameters = [float(value) for value in values[:16]]
        cameras[int(number)] = make_lens(model, int(width), int(height), parameters, place)
        if len(cameras) > MOST_VIEWS:
            raise ValueError(f"it holds more than {MOST_VIEWS} cameras")
    return cameras


def _text_images(path: Path) -> list[ColmapImage]:
    images = []
    lines = _lines(path)
    for line in lines:
        if not line:
            continue
        _, *values, camera, name = line.split(maxsplit=9)
        numbers = [float(value) for value in values]
        if len(values) != 7 or len(name) > _LONGEST_NAME:
            raise ValueError(f"the line of {name[:80]!r} is not of the known form")
        images.append(ColmapImage(name, int(camera), tuple(numbers[:4]), tuple(numbers[4:])))
        if len(images) > MOST_VIEWS:
            raise ValueError(f"it holds more than {MOST_VIEWS} images")
        next(lines, None)  # the points it saw
    return images


def _text_points(path: Path) -> list[tuple[float, ...]]:
    rows = []
    count = sum(1 for line in _lines(path) if line)
    stride = max(1, -(-count // MOST_POINTS))
    for index, line in enumerate(line for line in _lines(path) if line):
        if index % stride == 0:
            _, *values = line.split(maxsplit=8)[:7]
            if len(values) < 6:
                raise ValueError(f"point {index} has no place and colour")
            rows.append(tuple(float(value) for value in values))
    return rows
