"""The Triton kernels: contiguous float32 tensors on a GPU. Inputs and outputs are those of native.py.

Faces are cut into tiles of pixels, a program a tile; the nearest face of a pixel is the minimum of depth and number in
one int64, whatever the order. Gradients of vertices are added up by atomics in float64, so that the last bit of a
float32 gradient can depend on their order, rarely; everything else gives equal bits for equal inputs. Coverage is
computed in float64 like that of the reference, by the same operations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import ROUNDING, set_up
from .triton_antialias import antialias_backward, antialias_forward
from .triton_common import BLOCK, add_gradient, blocks, centre, corners_of, cross, positions_gradient, vertex_at

__all__ = [
    "antialias_backward",
    "antialias_forward",
    "interpolate_backward",
    "interpolate_forward",
    "rasterize_backward",
    "rasterize_forward",
]

TILE = 8
"""Side of a tile in pixels."""
NOTHING = 2**63 - 1
"""The key of a pixel that sees no face."""


@triton.jit
def _on_the_side(functions_ptr, x, y, EDGE: tl.constexpr, ROUNDING: tl.constexpr):
    """Where an edge function of a face has its pixels inside; of edges through a centre, one side counts."""
    nx = tl.load(functions_ptr + 3 * EDGE) + tl.zeros_like(x)
    ny = tl.load(functions_ptr + 3 * EDGE + 1) + tl.zeros_like(x)
    nw = tl.load(functions_ptr + 3 * EDGE + 2) + tl.zeros_like(x)
    e = nx * x + ny * y + nw
    keeps = (nx > 0.0) | ((nx == 0.0) & (ny > 0.0))
    rounding = ROUNDING * (tl.abs(nx) + tl.abs(ny) + tl.abs(nw))
    return tl.where(keeps, e >= -rounding, e > rounding)


@triton.jit
def cover_kernel(
    functions_ptr,
    low_ptr,
    sizes_ptr,
    owners_ptr,
    first_ptr,
    keys_ptr,
    count,
    height,
    width,
    TILE: tl.constexpr,
    ROUNDING: tl.constexpr,
):
    """Offer a face to the pixels of one of its tiles."""
    index = tl.program_id(0).to(tl.int64)
    face = tl.load(owners_ptr + index)  # of a view
    tile = index - tl.load(first_ptr + face)
    columns = tl.load(sizes_ptr + 2 * face)
    across = (columns + TILE - 1) // TILE
    lane = tl.arange(0, TILE * TILE)
    column = tile % across * TILE + lane % TILE
    row = tile // across * TILE + lane // TILE
    inside = (column < columns) & (row < tl.load(sizes_ptr + 2 * face + 1))
    pixel = (tl.load(low_ptr + 2 * face + 1) + row) * width + tl.load(low_ptr + 2 * face) + column
    x, y = centre(pixel, height, width)
    functions_ptr += face * 12
    inside &= _on_the_side(functions_ptr, x, y, 0, ROUNDING)
    inside &= _on_the_side(functions_ptr, x, y, 1, ROUNDING)
    inside &= _on_the_side(functions_ptr, x, y, 2, ROUNDING)
    depth = tl.load(functions_ptr + 9) * x + tl.load(functions_ptr + 10) * y + tl.load(functions_ptr + 11)
    depth = depth.to(tl.float32)
    inside &= (depth >= -1.0) & (depth <= 1.0)
    depth = tl.where(depth == 0.0, 0.0, depth)  # not -0
    bits = depth.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    key = (ordered.to(tl.int64) << 32) | (face % count)
    tl.atomic_min(keys_ptr + face // count * height * width + pixel, key, mask=inside, sem="relaxed")


@triton.jit
def _functions(positions_ptr, faces_ptr, view, vertices, face, exists, x, y):
    """Corners of faces, r_i = q_i x P of each, and the edge functions e_i."""
    a, b, c = corners_of(faces_ptr, face, exists)
    ax, ay, aw = vertex_at(positions_ptr, view, vertices, a, exists)
    bx, by, bw = vertex_at(positions_ptr, view, vertices, b, exists)
    cx, cy, cw = vertex_at(positions_ptr, view, vertices, c, exists)
    nx, ny, nw = cross(bx, by, bw, cx, cy, cw)
    e0 = nx * x + ny * y + nw
    nx, ny, nw = cross(cx, cy, cw, ax, ay, aw)
    e1 = nx * x + ny * y + nw
    nx, ny, nw = cross(ax, ay, aw, bx, by, bw)
    e2 = nx * x + ny * y + nw
    return a, b, c, ax, ay, aw, bx, by, bw, cx, cy, cw, e0, e1, e2


@triton.jit
def fragments_kernel(
    keys_ptr, positions_ptr, faces_ptr, seen_ptr, barycentrics_ptr, depth_ptr, pixels, vertices, height, width, nothing,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Face, barycentrics and depth of each pixel from its key."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    key = tl.load(keys_ptr + pixel, mask=exists, other=0)
    found = exists & (key != nothing)
    face = tl.where(found, key & 0x7FFFFFFF, 0).to(tl.int32)
    ordered = (key >> 32).to(tl.int32)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    x, y = centre(pixel, height, width)
    view = pixel // (height * width)
    _, _, _, _, _, _, _, _, _, _, _, _, e0, e1, e2 = _functions(
        positions_ptr, faces_ptr, view, vertices, face, found, x, y
    )
    scale = 1.0 / tl.where(found, e0 + e1 + e2, 1.0)
    tl.store(seen_ptr + pixel, tl.where(found, face, -1), mask=exists)
    tl.store(depth_ptr + pixel, tl.where(found, bits.to(tl.float32, bitcast=True), 1.0), mask=exists)
    tl.store(barycentrics_ptr + pixel * 3, (e0 * scale).to(tl.float32), mask=exists)
    tl.store(barycentrics_ptr + pixel * 3 + 1, (e1 * scale).to(tl.float32), mask=exists)
    tl.store(barycentrics_ptr + pixel * 3 + 2, (e2 * scale).to(tl.float32), mask=exists)


@triton.jit
def barycentrics_backward_kernel(
    positions_ptr, faces_ptr, seen_ptr, d_barycentrics_ptr, sums_ptr, pixels, vertices, height, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """d_e_i = (g_i - sum_j g_j b_j) / sum_j e_j, and d_q_0 = d_e_2 r_1 - d_e_1 r_2 and so on."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    face = tl.load(seen_ptr + pixel, mask=pixel < pixels, other=-1)
    found = face >= 0
    x, y = centre(pixel, height, width)
    view = pixel // (height * width)
    a, b, c, ax, ay, aw, bx, by, bw, cx, cy, cw, e0, e1, e2 = _functions(
        positions_ptr, faces_ptr, view, vertices, face, found, x, y
    )
    g0 = tl.load(d_barycentrics_ptr + pixel * 3, mask=found, other=0.0).to(tl.float64)
    g1 = tl.load(d_barycentrics_ptr + pixel * 3 + 1, mask=found, other=0.0).to(tl.float64)
    g2 = tl.load(d_barycentrics_ptr + pixel * 3 + 2, mask=found, other=0.0).to(tl.float64)
    scale = 1.0 / tl.where(found, e0 + e1 + e2, 1.0)
    mean = (g0 * e0 + g1 * e1 + g2 * e2) * scale
    d0, d1, d2 = (g0 - mean) * scale, (g1 - mean) * scale, (g2 - mean) * scale
    ax, ay, aw = cross(ax, ay, aw, x, y, 1.0)
    bx, by, bw = cross(bx, by, bw, x, y, 1.0)
    cx, cy, cw = cross(cx, cy, cw, x, y, 1.0)
    add_gradient(sums_ptr, view, vertices, a, d2 * bx - d1 * cx, d2 * by - d1 * cy, d2 * bw - d1 * cw, found)
    add_gradient(sums_ptr, view, vertices, b, d0 * cx - d2 * ax, d0 * cy - d2 * ay, d0 * cw - d2 * aw, found)
    add_gradient(sums_ptr, view, vertices, c, d1 * ax - d0 * bx, d1 * ay - d0 * by, d1 * aw - d0 * bw, found)


@triton.jit
def interpolate_kernel(
    attributes_ptr, faces_ptr, seen_ptr, barycentrics_ptr, image_ptr, pixels, vertices, area, channels,
    SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the corners' attributes."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    face = tl.load(seen_ptr + pixel, mask=exists, other=-1)
    found = face >= 0
    a, b, c = corners_of(faces_ptr, face, found)
    start = tl.zeros([BLOCK], tl.int64) if SHARED else pixel // area * vertices
    b0 = tl.load(barycentrics_ptr + pixel * 3, mask=found, other=0.0)
    b1 = tl.load(barycentrics_ptr + pixel * 3 + 1, mask=found, other=0.0)
    b2 = tl.load(barycentrics_ptr + pixel * 3 + 2, mask=found, other=0.0)
    for channel in range(channels):
        value = b0 * tl.load(attributes_ptr + (start + a) * channels + channel, mask=found, other=0.0)
        value += b1 * tl.load(attributes_ptr + (start + b) * channels + channel, mask=found, other=0.0)
        value += b2 * tl.load(attributes_ptr + (start + c) * channels + channel, mask=found, other=0.0)
        tl.store(image_ptr + pixel * channels + channel, tl.where(found, value, 0.0), mask=exists)


@triton.jit
def _to_corner(attributes_ptr, sums_ptr, place, weight, d_value, found, OF_ATTRIBUTES: tl.constexpr):
    """Add to the gradient of an attribute; returns that of its weight."""
    if OF_ATTRIBUTES:
        tl.atomic_add(sums_ptr + place, weight.to(tl.float64) * d_value, mask=found, sem="relaxed")
    return d_value * tl.load(attributes_ptr + place, mask=found, other=0.0)


@triton.jit
def interpolate_backward_kernel(
    attributes_ptr, faces_ptr, seen_ptr, barycentrics_ptr, d_image_ptr, sums_ptr, d_barycentrics_ptr,
    pixels, vertices, area, channels, SHARED: tl.constexpr, OF_ATTRIBUTES: tl.constexpr,
    OF_BARYCENTRICS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of attributes, in float64, and of barycentrics."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    face = tl.load(seen_ptr + pixel, mask=exists, other=-1)
    found = face >= 0
    a, b, c = corners_of(faces_ptr, face, found)
    start = tl.zeros([BLOCK], tl.int64) if SHARED else pixel // area * vertices
    b0 = tl.load(barycentrics_ptr + pixel * 3, mask=found, other=0.0)
    b1 = tl.load(barycentrics_ptr + pixel * 3 + 1, mask=found, other=0.0)
    b2 = tl.load(barycentrics_ptr + pixel * 3 + 2, mask=found, other=0.0)
    d0 = tl.zeros([BLOCK], tl.float32)
    d1 = tl.zeros([BLOCK], tl.float32)
    d2 = tl.zeros([BLOCK], tl.float32)
    for channel in range(channels):
        g = tl.load(d_image_ptr + pixel * channels + channel, mask=found, other=0.0)
        d0 += _to_corner(attributes_ptr, sums_ptr, (start + a) * channels + channel, b0, g, found, OF_ATTRIBUTES)
        d1 += _to_corner(attributes_ptr, sums_ptr, (start + b) * channels + channel, b1, g, found, OF_ATTRIBUTES)
        d2 += _to_corner(attributes_ptr, sums_ptr, (start + c) * channels + channel, b2, g, found, OF_ATTRIBUTES)
    if OF_BARYCENTRICS:
        tl.store(d_barycentrics_ptr + pixel * 3, d0, mask=exists)
        tl.store(d_barycentrics_ptr + pixel * 3 + 1, d1, mask=exists)
        tl.store(d_barycentrics_ptr + pixel * 3 + 2, d2, mask=exists)


def rasterize_forward(positions: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Faces, barycentrics and depth of every pixel."""
    shape = (len(positions), height, width)
    keys = torch.full(shape, NOTHING, dtype=torch.int64, device=positions.device)
    functions, low, sizes = set_up(positions, faces, height, width)
    tiles = (sizes + TILE - 1).div(TILE, rounding_mode="floor").prod(-1)
    owners = torch.repeat_interleave(tiles)
    if len(owners):
        first = tiles.cumsum(0) - tiles
        inputs = (functions, low, sizes, owners, first, keys, len(faces), height, width)
        cover_kernel[len(owners),](*inputs, TILE=TILE, ROUNDING=ROUNDING, num_warps=2)
    seen = torch.empty(shape, dtype=torch.int32, device=positions.device)
    barycentrics, depth = positions.new_empty(*shape, 3), positions.new_empty(shape)
    if seen.numel():
        outputs = (seen, barycentrics, depth, seen.numel(), positions.shape[1], height, width, NOTHING)
        fragments_kernel[blocks(seen.numel())](keys, positions, faces, *outputs, BLOCK=BLOCK)
    return seen, barycentrics, depth


def rasterize_backward(positions: Tensor, faces: Tensor, seen: Tensor, d_barycentrics: Tensor) -> Tensor:
    """The gradient of the positions."""
    sums = positions.new_zeros(*positions.shape[:2], 3, dtype=torch.float64)
    if seen.numel():
        sizes = (seen.numel(), positions.shape[1], *seen.shape[1:])
        inputs = (positions, faces, seen, d_barycentrics, sums, *sizes)
        barycentrics_backward_kernel[blocks(seen.numel())](*inputs, BLOCK=BLOCK)
    return positions_gradient(sums)


def interpolate_forward(attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor) -> Tensor:
    """Attributes [B, H, W, C] of every pixel."""
    channels = attributes.shape[2]
    image = attributes.new_empty(*seen.shape, channels)
    if image.numel():
        sizes = (seen.numel(), attributes.shape[1], seen.shape[1] * seen.shape[2], channels)
        inputs = (attributes, faces, seen, barycentrics, image, *sizes)
        interpolate_kernel[blocks(seen.numel())](*inputs, SHARED=len(attributes) == 1, BLOCK=BLOCK)
    return image


def interpolate_backward(
    attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor, d_image: Tensor,
    of_attributes: bool, of_barycentrics: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients that are wanted."""
    sums = torch.zeros_like(attributes, dtype=torch.float64) if of_attributes else None
    d_barycentrics = torch.empty_like(barycentrics) if of_barycentrics else None
    if seen.numel():
        # A gradient that nobody wants is not stored: any pointer will do.
        outputs = (attributes if sums is None else sums, barycentrics if d_barycentrics is None else d_barycentrics)
        sizes = (seen.numel(), attributes.shape[1], seen.shape[1] * seen.shape[2], attributes.shape[2])
        interpolate_backward_kernel[blocks(seen.numel())](
            attributes, faces, seen, barycentrics, d_image, *outputs, *sizes, SHARED=len(attributes) == 1,
            OF_ATTRIBUTES=of_attributes, OF_BARYCENTRICS=of_barycentrics, BLOCK=BLOCK,
        )  # fmt: skip
    return None if sums is None else sums.float(), d_barycentrics
