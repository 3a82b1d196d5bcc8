"""Pictures of a scene for people: a turntable video, a contact sheet, a PNG. Each file is written atomically."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.files import atomic_path
from dreamkit.scenes.cameras import Camera, turntable
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
    from PIL import Image

    try:
        with Image.open(path) as picture:
            layers = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    except (OSError, Image.DecompressionBombError) as error:
        raise SceneError(f"{path} is no picture that can be read: {error}.", "Give a PNG or JPEG file.") from error
    pixels = torch.from_numpy(layers).permute(2, 0, 1)
    return pixels[:3] * pixels[3:] + background * (1 - pixels[3:])


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
    _save_png(_pillow(to_bytes(image)), path)


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

    pictures = [_pillow(to_bytes(image)) for image in images]
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


def turntable_video(
    scene: Scene,
    path: Path | str,
    frames: int = 120,
    fps: int = 30,
    size: int = 256,
    elevation: float = 15.0,
    radius: float = 3.0,
    fov_y: float = 40.0,
    background: Tensor | None = None,
) -> None:
    """Write a video of one turn round the scene, starting in front, as mp4 (H.264) that loops smoothly.

    Args:
        scene: what to look at.
        path: the .mp4 file to write or replace.
        frames: pictures in the turn, >= 1.
        fps: frames a second, >= 1.
        size: image side in pixels.
        elevation: degrees.
        radius: distance to the origin, world units.
        fov_y: vertical field of view, degrees.
        background: [3] colour, the scene's own by default.

    Raises:
        SceneError: a value out of range, or the encoder failed.
        RunError: the system refused the write.
    """
    cameras = turntable(frames, elevation, radius, fov_y, size, size)
    write_video(render_views(scene, cameras, background), path, fps)


def write_video(
    frames: Iterable[Tensor],  # each [3, H, W] in [0, 1]
    path: Path | str,
    fps: int = 30,
) -> None:
    """Encode frames as mp4 (H.264, yuv420p: plays everywhere), one at a time; the same frames give the same bytes.

    Args:
        frames: [3, H, W] in [0, 1], all of one size; odd sizes are extended by their last row or column.
        path: the .mp4 file to write or replace.
        fps: frames a second, >= 1.

    Raises:
        SceneError: no frames, frames of different sizes, `fps` below 1, or the encoder failed.
        RunError: the system refused the write.
    """
    if fps < 1:
        raise SceneError(f"{fps} frames a second is no video.", "Use at least 1.")
    iterator = (_even(to_bytes(frame)) for frame in frames)
    first = next(iterator, None)
    if first is None:
        raise SceneError("A video of no frames can't be written.", "Give at least one frame.")
    with atomic_path(path) as temporary:
        try:
            _encode(temporary, first, iterator, fps)
        except RuntimeError as error:  # imageio-ffmpeg's word for a failed encoder, with its whole log
            reason = str(error).strip().splitlines()[-1]
            raise SceneError(f"{path}: the video encoder failed: {reason}.", "Check the disk and ffmpeg.") from error


def _encode(path: Path, first: NDArray[np.uint8], rest: Iterator[NDArray[np.uint8]], fps: int) -> None:
    """Feed the encoder, one frame after the other."""
    import imageio_ffmpeg  # type: ignore[import-untyped]

    height, width = first.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", "16", "-threads", "1", "-fflags", "+bitexact", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        writer.send(first)
        for frame in rest:
            if frame.shape != first.shape:
                raise SceneError(f"A frame is {frame.shape[:2]}, the first was {first.shape[:2]}.", "Use one size.")
            writer.send(frame)
    finally:
        writer.close()


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row or column where the side is odd: H.264 halves the colour planes."""
    height, width = pixels.shape[:2]
    return np.ascontiguousarray(np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _fitting(text: str, width: int, measure: Callable[[str], float]) -> str:
    """The text, cut with an ellipsis if it is wider than `width` pixels."""
    if measure(text) <= width:
        return text
    while text and measure(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _pillow(pixels: NDArray[np.uint8]) -> Image:
    """[H, W, 3] bytes as a pillow image."""
    from PIL import Image

    return Image.fromarray(pixels, "RGB")


def _save_png(image: Image, path: Path | str) -> None:
    """Write a pillow image as PNG, atomically."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")
