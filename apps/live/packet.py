"""A frame on its way to viewers: a small header and a JPEG, encoded once for all of them.

| bytes | are |
|---|---|
| 0-3 | "DKF1" |
| 4-7 | the frame's number, little-endian as all that follows |
| 8-11 | the last prompt that this frame obeys, by the number its sender was told; 0 is none |
| 12-19 | when it was ready, milliseconds since 1970, float64 |
| 20- | the JPEG |
"""

from __future__ import annotations

import base64
import io
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"DKF1"
HEADER = struct.Struct("<4sIId")
_QUALITY, _SMALL_QUALITY = 90, 97
_THUMBNAIL = 160
_SMALL = 256
"""Frames up to this side are shown enlarged: they keep a colour for every pixel, and more of everything."""


@dataclass(frozen=True)
class Packet:
    """A frame as viewers get it."""

    number: int
    control: int
    ready_ms: float
    jpeg: bytes

    @cached_property
    def wire(self) -> bytes:
        """Header and JPEG."""
        return HEADER.pack(MAGIC, self.number & 0xFFFFFFFF, self.control & 0xFFFFFFFF, self.ready_ms) + self.jpeg

    def thumbnail(self) -> str:
        """The frame, at most 160 pixels wide and high, as a data: URL."""
        jpeg = self.jpeg
        picture = Image.open(io.BytesIO(jpeg))
        if max(picture.size) > _THUMBNAIL:
            picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
            jpeg = _encoded(picture)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def encode_jpeg(
    pixels: Tensor,  # [H, W, 3] uint8, on the CPU
) -> bytes:
    """A frame as a JPEG."""
    return _encoded(Image.fromarray(pixels.numpy()))


def _encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    is_small = max(picture.size) <= _SMALL
    quality, subsampling = (_SMALL_QUALITY, 0) if is_small else (_QUALITY, 2)
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()
