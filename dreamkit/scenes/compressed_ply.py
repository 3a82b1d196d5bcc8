"""The compressed PLY of PlayCanvas and SuperSplat: Gaussians in chunks of 256, 16 bytes each and their harmonics.

The file is a PLY of three elements:

- chunk: lower and upper bounds of its 256 Gaussians, min_x ... max_z (positions), min_scale_x ... (log-scales, within
  20 of 0) and, in all but the oldest files, min_r ... (colours, 1/2 + SH_C0 f_dc).
- vertex: four 32-bit words. packed_position and packed_scale are x, y, z in 11, 10 and 11 bits between the chunk's
  bounds; packed_color is r, g, b in 8 bits between its bounds and the opacity in 8 bits; packed_rotation is the number
  of the largest part of the unit quaternion (wxyz) in 2 bits and the other three, times 1/sqrt(2) plus 1/2, in 10 each.
- sh: f_rest_0, ... in 8 bits, byte floor(256 (value / 8 + 1/2)), channel by channel.

So what is written comes back with these errors at most, beside float rounding:

- position: half a step of its chunk's extent, 1/4094 of it along x and z and 1/2046 along y; log-scale likewise.
- colour: 1/510 of the range in its chunk; opacity: 1/510, and kept within 1e-3 to 1 - 1e-3 by the reader.
- rotation: each of the three small parts sqrt(2) / 2046 = 0.0007, so 0.3 degrees in all.
- harmonics above degree 0: 1/64 between -3.97 and 3.97, 1/32 out to 4, and what is beyond 4 becomes 4.

Gaussians are sorted along a Morton curve, which keeps chunks small; so they come back in another order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreamkit.scenes.gaussians import SH_C0
from dreamkit.scenes.ply_tables import Broken, Tables

ELEMENTS = ("chunk", "vertex", "sh")
CHUNK = 256
MAX_LOG_SCALE = 20.0
_BOUNDS = [
    f"{end}_{what}"
    for group in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
    for end in ("min", "max")
    for what in group
]
_WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_BITS_3, _BITS_4 = (11, 10, 11), (8, 8, 8, 8)
_ROTATION = np.sqrt(2.0)

Floats = NDArray[np.float32]
Words = NDArray[np.uint32]


class Columns(NamedTuple):
    """Gaussians as a file of splats has them."""

    means: Floats  # [N, 3]
    log_scales: Floats  # [N, 3]
    quaternions: Floats  # [N, 4] wxyz
    opacities: Floats  # [N] in [0, 1]
    base: Floats  # [N, 3] f_dc
    rest: Floats  # [N, K - 1, 3]


def encode(columns: Columns) -> bytes:
    """The file of some Gaussians, N >= 1; all finite, quaternions unit."""
    columns = Columns(*(values[morton_order(columns.means)] for values in columns))
    count = len(columns.means)
    scales = np.clip(columns.log_scales, -MAX_LOG_SCALE, MAX_LOG_SCALE)
    colors = (0.5 + SH_C0 * columns.base).astype(np.float32)
    starts = np.arange(0, count, CHUNK)
    bounds, shares = [], []
    for values in (columns.means, scales, colors):
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        bounds += [low, high]
        low, high = (np.repeat(end, CHUNK, axis=0)[:count].astype(np.float64) for end in (low, high))
        shares.append((values - low) / np.where(high > low, high - low, 1.0))
    rgba = np.concatenate([shares[2], columns.opacities[:, None]], axis=1)
    words = [_pack(shares[0], _BITS_3), pack_rotations(columns.quaternions)]
    words += [_pack(shares[1], _BITS_3), _pack(rgba, _BITS_4)]
    rest = columns.rest.transpose(0, 2, 1).reshape(count, -1)
    header = ["ply", "format binary_little_endian 1.0", f"element chunk {len(starts)}"]
    header += [f"property float {name}" for name in _BOUNDS]
    header += [f"element vertex {count}", *(f"property uint {name}" for name in _WORDS)]
    if rest.shape[1]:
        header += [f"element sh {count}", *(f"property uchar f_rest_{k}" for k in range(rest.shape[1]))]
    parts = [np.concatenate(bounds, axis=1).astype("<f4"), np.stack(words, axis=1).astype("<u4")]
    parts.append(np.clip(np.floor(256.0 * (rest / 8.0 + 0.5)), 0.0, 255.0).astype(np.uint8))
    return "\n".join([*header, "end_header", ""]).encode("ascii") + b"".join(part.tobytes() for part in parts)


def decode(tables: Tables, broken: Broken) -> Columns:
    """The Gaussians of a file's elements.

    Raises:
        SceneError: an element or a property is missing, of another type, or too short.
    """
    vertices, chunks = tables["vertex"], tables["chunk"]
    for name in _WORDS:
        if name not in (vertices.dtype.names or ()) or vertices.dtype[name].str[1:] != "u4":
            raise broken(f"its vertex has no {name} of 32 bits")
    colored = "min_r" in (chunks.dtype.names or ())
    groups = 3 if colored else 2
    lacking = [name for name in _BOUNDS[: 6 * groups] if name not in (chunks.dtype.names or ())]
    if lacking:
        raise broken(f"its chunk lacks {', '.join(lacking)}")
    if len(chunks) * CHUNK < len(vertices):
        raise broken(f"its {len(chunks)} chunks of {CHUNK} are too few for {len(vertices)} Gaussians")
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite then is refused by who asked
        table = np.stack([chunks[name].astype(np.float32) for name in _BOUNDS[: 6 * groups]], axis=-1)
        low, high = table.reshape(-1, groups, 2, 3).transpose(2, 1, 0, 3)  # [groups, chunks, 3] each
        rgba = _unpack(vertices["packed_color"], _BITS_4)
        colors = _between(low[2], high[2], rgba[:, :3]) if colored else rgba[:, :3]
        return Columns(
            means=_between(low[0], high[0], _unpack(vertices["packed_position"], _BITS_3)),
            log_scales=_between(low[1], high[1], _unpack(vertices["packed_scale"], _BITS_3)),
            quaternions=unpack_rotations(vertices["packed_rotation"]),
            opacities=rgba[:, 3].astype(np.float32),
            base=((colors - 0.5) / SH_C0).astype(np.float32),
            rest=_harmonics(tables, len(vertices), broken),
        )


def _harmonics(tables: Tables, count: int, broken: Broken) -> Floats:
    """[N, K - 1, 3] of the element sh; K is 1 without one."""
    if "sh" not in tables:
        return np.zeros((count, 0, 3), np.float32)
    rows = tables["sh"]
    width = len(rows.dtype.names or ())
    names = [f"f_rest_{k}" for k in range(width)]
    if len(rows) != count or width not in (9, 24, 45) or set(names) != set(rows.dtype.names or ()):
        raise broken(f"its sh has {len(rows)} rows of {width} values, not {count} of 9, 24 or 45 f_rest")
    if any(rows.dtype[name].str[1:] != "u1" for name in names):
        raise broken("its sh is not of 8 bits")
    codes = np.stack([rows[name] for name in names], axis=-1).astype(np.float32)
    # The outermost bytes stand for the ends, as in PlayCanvas, and the others for the middles of their steps.
    share = np.where(codes == 0, 0.0, np.where(codes == 255, 1.0, (codes + 0.5) / 256.0))
    return ((share - 0.5) * 8.0).astype(np.float32).reshape(count, 3, -1).transpose(0, 2, 1)


def _between(low: Floats, high: Floats, share: NDArray[np.float64]) -> Floats:
    """Values [N, 3] at a share of the way between the bounds [chunks, 3] of their chunks."""
    low, high = (np.repeat(end, CHUNK, axis=0)[: len(share)] for end in (low, high))
    return (low * (1.0 - share) + high * share).astype(np.float32)


def _pack(share: NDArray[np.float64], bits: tuple[int, ...]) -> Words:
    """Numbers [N, D] in [0, 1] as words: the first in the highest bits."""
    word = np.zeros(len(share), np.uint32)
    for column, size in zip(share.T, bits, strict=True):
        top = 2**size - 1
        word = (word << np.uint32(size)) | np.clip(np.floor(column * top + 0.5), 0, top).astype(np.uint32)
    return word


def _unpack(words: NDArray, bits: tuple[int, ...]) -> NDArray[np.float64]:
    """The inverse of `_pack`, [N, D]."""
    words = words.astype(np.uint32)
    columns, shift = [], sum(bits)
    for size in bits:
        shift -= size
        columns.append(((words >> np.uint32(shift)) & np.uint32(2**size - 1)) / (2**size - 1))
    return np.stack(columns, axis=-1)


def pack_rotations(
    quaternions: Floats,  # [N, 4] unit, wxyz
) -> Words:
    """Words [N] of unit quaternions, see the module's docstring."""
    largest = np.abs(quaternions).argmax(axis=1)
    rows = np.arange(len(quaternions))
    signed = quaternions * np.where(quaternions[rows, largest] < 0, -1.0, 1.0)[:, None]
    others = signed[np.arange(4) != largest[:, None]].reshape(-1, 3)
    return (largest.astype(np.uint32) << np.uint32(30)) | _pack(others / _ROTATION + 0.5, (10, 10, 10))


def unpack_rotations(words: NDArray) -> Floats:
    """Unit quaternions [N, 4] wxyz of words; the largest part is what the other three leave."""
    words = words.astype(np.uint32)
    others = (_unpack(words & np.uint32(2**30 - 1), (10, 10, 10)) - 0.5) * _ROTATION
    largest = (words >> np.uint32(30)).astype(np.intp)
    rest = np.sqrt(np.maximum(1.0 - np.square(others).sum(axis=1), 0.0))
    result = np.empty((len(words), 4), np.float32)
    place = np.arange(4) != largest[:, None]
    result[place] = others.reshape(-1)
    result[~place] = rest
    return result


def morton_order(
    means: Floats,  # [N, 3]
) -> NDArray[np.intp]:
    """The turn of each point along a Morton curve through their box, 1024 cells a side."""
    low, high = means.min(axis=0).astype(np.float64), means.max(axis=0).astype(np.float64)
    cells = ((means - low) / np.where(high > low, high - low, 1.0) * 1023.0).astype(np.uint64)
    code = np.zeros(len(means), np.uint64)
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(3 * bit + axis)
    return np.argsort(code, kind="stable")
