"""Pictures of a scene for people: views, a contact sheet, a PNG. Each file is written atomically."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.files import atomic_path
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.rendering import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

_MARGIN = 6
_LABEL_SIZE = 14


def to_bytes(
    image: Tensor,  # [..., 3, H, W] in [0, 1]
) -> NDArray[np.uint8]:
    """Round an image to 8 bits.

    Args:
        image: [..., 3, H, W] in [0, 1]; beyond is clamped, NaN is black.

    Returns:
        [..., H, W, 3].

    Raises:
        SceneError: there are not three channels.
    """
    if image.ndim < 3 or image.shape[-3] != 3:
        raise SceneError(f"An image of shape {tuple(image.shape)} has no three channels.", "Use [..., 3, H, W].")
    clean = torch.nan_to_num(image.detach().float().cpu(), nan=0.0).clamp(0.0, 1.0)
    pixels = (clean * 255.0).round().to(torch.uint8).movedim(-3, -1)
    return np.ascontiguousarray(pixels.numpy())


def read_image(path: Path, background: float = 0.85) -> Tensor:
    """A picture from a file, [3, H, W] in [0, 1]; what is transparent in it lies on gray.

    Args:
        path: PNG, JPEG, WebP or any other format that Pillow reads.
        background: gray level behind transparent pixels, 0 to 1.

    Raises:
        SceneError: there is no such file, or it is no picture.
    """
    pixels = read_rgba(path)
    return pixels[:3] * pixels[3:] + background * (1 - pixels[3:])


def read_rgba(path: Path) -> Tensor:
    """A picture from a file with its transparency, [4, H, W] in [0, 1], colours not multiplied by it.

    Raises:
        SceneError: there is no such file, or it is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            layers = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SceneError(f"{path} is no picture that can be read: {error}.", "Give a PNG or JPEG file.") from error
    return torch.from_numpy(layers).permute(2, 0, 1)


def save_image(
    image: Tensor,  # [3, H, W] in [0, 1]
    path: Path | str,
) -> None:
    """Write one image as PNG.

    Args:
        image: [3, H, W] in [0, 1].
        path: the file to write or replace.

    Raises:
        SceneError: another shape.
        RunError: the system refused the write.
    """
    if image.ndim != 3:
        raise SceneError(f"An image of shape {tuple(image.shape)} is not one picture.", "Use [3, H, W].")
    _save_png(pillow_image(to_bytes(image)), path)


def contact_sheet(
    images: Tensor | Sequence[Tensor],  # [N, 3, H, W] or N times [3, H, W], in [0, 1]
    path: Path | str,
    columns: int = 4,
    labels: Sequence[str] | None = None,
    min_size: int = 160,
) -> None:
    """Write images side by side as one PNG, each with its label under it.

    Args:
        images: N pictures in [0, 1]; they may differ in size (each is scaled to the cell of the first).
        path: the file to write or replace.
        columns: pictures in a row, >= 1.
        labels: N short texts, or none.
        min_size: small pictures are enlarged to at least this height, pixels.

    Raises:
        SceneError: no pictures, no columns, or another number of labels than of pictures.
        RunError: the system refused the write.
    """
    from PIL import Image, ImageDraw, ImageFont

    pictures = [pillow_image(to_bytes(image)) for image in images]
    if not pictures or columns < 1:
        raise SceneError(f"A contact sheet of {len(pictures)} pictures in {columns} columns is empty.", "Use more.")
    if labels is not None and len(labels) != len(pictures):
        raise SceneError(f"There are {len(labels)} labels for {len(pictures)} pictures.", "Give one a picture.")
    factor = max(1.0, min_size / pictures[0].height)
    width, height = round(pictures[0].width * factor), round(pictures[0].height * factor)
    below = _LABEL_SIZE + _MARGIN if labels is not None else 0
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step_x, step_y = width + _MARGIN, height + below + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, rows * step_y + _MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LABEL_SIZE)
    for index, picture in enumerate(pictures):
        x, y = _MARGIN + index % columns * step_x, _MARGIN + index // columns * step_y
        sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (x, y))
        if labels is not None:
            draw.text((x, y + height + 2), _fitting(labels[index], width, font.getlength), fill="black", font=font)
    _save_png(sheet, path)


def render_views(
    scene: Scene,
    cameras: Camera,
    background: Tensor | None = None,
    batch: int = 8,
) -> Iterator[Tensor]:
    """Render many views a few at a time, without gradients.

    Args:
        scene: what to look at.
        cameras: B views.
        background: [3] colour, the scene's own by default.
        batch: views a call, >= 1.

    Yields:
        B images [3, H, W] in [0, 1].
    """
    for start in range(0, len(cameras), batch):
        with torch.no_grad():
            images = scene.render(cameras[start : start + batch], background).image
        yield from images


def _fitting(text: str, width: int, measure: Callable[[str], float]) -> str:
    """The text, cut with an ellipsis if it is wider than `width` pixels."""
    if measure(text) <= width:
        return text
    while text and measure(text + "…") > width:
        text = text[:-1]
    return text + "…"


def pillow_image(pixels: NDArray[np.uint8]) -> Image:
    """[H, W, 3] bytes as a pillow image."""
    from PIL import Image

    return Image.fromarray(pixels, "RGB")


def _save_png(image: Image, path: Path | str) -> None:
    """Write a pillow image as PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
