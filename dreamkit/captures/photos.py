"""Picture files of a set: found inside its folder, weighed before they are decoded, loaded one at a time.

EXIF's orientation is left alone on purpose: COLMAP, nerfstudio and Blender give intrinsics and poses for the pixels as
the file stores them, so turning a picture upright would part it from its camera.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamkit.captures.lens import Lens, resample
from dreamkit.errors import DreamkitError, SceneError

MOST_PIXELS = 2**26
"""Of one picture: decoded, it takes a quarter of a gigabyte."""
_KINDS = (".png", ".jpg", ".jpeg", ".webp", ".PNG", ".JPG", ".JPEG")
_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_LONGEST_NAME = 4096


@dataclass(frozen=True)
class Photo:
    """A posed picture of a set, not decoded yet.

    Args:
        picture: the file.
        mask: a gray picture of the subject's coverage, the same size.
        lens: in pixels of the picture.
        pose: [4, 4] float64 camera to world, OpenGL axes.
        held_out: whether the set itself keeps it for tests.
    """

    picture: Path
    mask: Path | None
    lens: Lens
    pose: Tensor
    held_out: bool = False


def inside(folder: Path, name: object, place: str) -> Path:
    """A file that a set names, which must lie in the set's folder: its files may come from anybody.

    Args:
        folder: of the set.
        name: relative to it, as the file has it.
        place: who names it, for the message.

    Raises:
        SceneError: no name, an absolute one, or one that leads out of the folder, also by a link.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > _LONGEST_NAME:
        raise SceneError(f"{place} names the file {str(name)[:80]!r}.", "Give a path inside the set's folder.")
    path = name.replace("\\", "/")
    root = os.path.realpath(folder)
    real = os.path.realpath(os.path.join(root, path))
    if os.path.isabs(path) or ".." in path.split("/") or os.path.commonpath([root, real]) != root:
        raise SceneError(
            f"{place} names {name[:200]!r}, which leads out of {folder}.",
            "Copy the file into the set's folder and name it relative to that.",
        )
    return Path(os.path.join(folder, path))


def find_picture(folder: Path, name: object, place: str) -> Path:
    """The picture that a set names, with or without its ending.

    Raises:
        SceneError: there is none, or it lies elsewhere.
    """
    path = inside(folder, name, place)
    for candidate in (path, *(path.with_name(path.name + kind) for kind in _KINDS)):
        if is_file(candidate):
            # An ending that was added may name a link that leads out.
            return inside(folder, os.path.relpath(candidate, folder), place)
    raise SceneError(f"{place}: there is no picture {path}.", "Put it there, or take its frame out of the set.")


def is_file(path: Path) -> bool:
    """Whether there is a plain file (a pipe would wait for ever); `False` for names that no system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the file's head alone.

    Raises:
        SceneError: it is no picture, or one too large to decode.
    """
    with _opened(path) as picture:
        return int(picture.width), int(picture.height)


def load_layers(path: Path, mask: Path | None, factor: int) -> Tensor:
    """A picture as [4, h, w] in [0, 1]: colours premultiplied by alpha, and alpha.

    Args:
        path: the file.
        mask: coverage, multiplied with the picture's own alpha.
        factor: pixels along a side that are averaged to one.

    Raises:
        SceneError: it can't be decoded, or the mask has another size.
    """
    with _opened(path) as picture:
        # Pillow averages RGBA premultiplied, so that colours of what is transparent don't bleed.
        transparent = "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info
        small = picture.convert("RGBA" if transparent else "RGB").reduce(factor)
        size = picture.size
    layers = torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1)
    alpha = layers[3:] if transparent else torch.ones_like(layers[:1])
    if mask is not None:
        with _opened(mask) as picture:
            if picture.size != size:
                raise SceneError(
                    f"The mask {mask} has {picture.width}x{picture.height} pixels, its picture {size[0]}x{size[1]}.",
                    "Make them the same size.",
                )
            cover = picture.convert("L").reduce(factor)
        alpha = alpha * torch.from_numpy(np.asarray(cover, dtype=np.float32) / 255)[None]
    return torch.cat([layers[:3] * alpha, alpha])


def develop(photo: Photo, focal: float, height: int, width: int) -> Tensor:
    """A picture as an ideal pinhole would have taken it, [4, height, width], colours premultiplied.

    Args:
        photo: which.
        focal: of the pinhole, pixels.
        height: of its picture.
        width: of its picture.

    Raises:
        SceneError: it can't be decoded.
    """
    lens = photo.lens
    factor = max(1, int(min(lens.fx, lens.fy) / focal + 1e-6))
    layers = load_layers(photo.picture, photo.mask, factor)
    # The last row and column may hold fewer than `factor` pixels; places are still those of the picture over `factor`.
    smaller = lens.stretched(layers.shape[2], layers.shape[1], 1 / factor, 1 / factor)
    return resample(layers, smaller, focal, height, width).clamp(0.0, 1.0)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A picture, open and small enough.

    Raises:
        SceneError: it is none, or too large, or of a kind of pixel that has no plain colours.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, far higher, limit; damaged metadata
            with Image.open(path) as picture:
                width, height = picture.size
                if width * height > MOST_PIXELS or min(width, height) < 1:
                    raise SceneError(
                        f"{path} has {width}x{height} pixels, more than the {MOST_PIXELS:,} that fit into memory.",
                        "Scale the pictures down; the intrinsics follow by themselves.",
                    )
                if picture.mode not in _MODES:
                    raise SceneError(f"{path} has pixels of the kind {picture.mode}.", "Save it with 8 bits a channel.")
                yield picture
    except DreamkitError:
        raise
    except Exception as error:  # damaged files make Pillow's readers fail in every way that Python has
        raise SceneError(f"{path} is no picture that can be read: {str(error)[:200]}.", "Save it again.") from error
