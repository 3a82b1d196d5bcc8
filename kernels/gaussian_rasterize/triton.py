"""The Triton kernels of compositing: contiguous float32 tensors on a GPU. The definition is reference.composite.

A program holds the 256 pixels of a tile and takes a block of its Gaussians at a time, with scans along the block in
place of a walk. Gradients of Gaussians are summed by atomics, which reorder: their last bits differ from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .types import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

TILE = tl.constexpr(16)
BLOCK = 16
"""Gaussians that a program takes at a time."""
CHUNK = 8
"""Features that a program of the forward pass sums; for more of them tiles are walked again."""
HIGHEST, LOWEST, STOP = tl.constexpr(ALPHA_MAX), tl.constexpr(ALPHA_MIN), tl.constexpr(TRANSMITTANCE_MIN)


@triton.jit
def _pixels(tile, width, height):
    """Place in the planes [B, H, W], whether it is inside, and centres of a tile's pixels."""
    across, down = tl.cdiv(width, TILE), tl.cdiv(height, TILE)
    pixel = tl.arange(0, TILE * TILE)
    x = tile % across * TILE + pixel % TILE
    y = tile // across % down * TILE + pixel // TILE
    place = (tile // (across * down)).to(tl.int64) * width * height + y * width + x
    return place, (x < width) & (y < height), x + 0.5, y + 0.5


@triton.jit
def _alphas(geometry_ptr, index, exists, x, y):
    """Offsets to the pixels, conic, opacity exp(-sigma), and whether that counts, of some Gaussians [pixels, block]."""
    row = geometry_ptr + index.to(tl.int64) * 8
    dx = x[:, None] - tl.load(row, mask=exists, other=0.0)[None]
    dy = y[:, None] - tl.load(row + 1, mask=exists, other=0.0)[None]
    a = tl.load(row + 2, mask=exists, other=0.0)[None]
    b = tl.load(row + 3, mask=exists, other=0.0)[None]
    c = tl.load(row + 4, mask=exists, other=0.0)[None]
    opacity = tl.load(row + 5, mask=exists, other=0.0)[None]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacity * tl.exp(-sigma)
    return dx, dy, a, b, c, raw, (sigma >= 0.0) & (raw >= LOWEST)


@triton.jit
def forward_kernel(
    geometry_ptr,
    features_ptr,
    entries_ptr,
    starts_ptr,
    counts_ptr,
    sums_ptr,
    rest_ptr,
    middle_ptr,
    stops_ptr,
    width,
    height,
    features,
    halfway,
    MEDIAN: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A tile's sums of some features, and by the first program of a tile everything else."""
    tile, chunk = tl.program_id(0), tl.program_id(1)
    place, inside, x, y = _pixels(tile, width, height)
    first, count = tl.load(starts_ptr + tile), tl.load(counts_ptr + tile)
    rest = tl.full([TILE * TILE], 1.0, tl.float32)
    live = inside
    stops = tl.zeros([TILE * TILE], tl.int32)
    middle = tl.zeros([TILE * TILE], tl.float32)
    sums = tl.zeros([TILE * TILE, CHUNK], tl.float32)
    own = tl.arange(0, CHUNK)
    position = 0
    while (position < count) & (tl.max(live.to(tl.int32), axis=0) > 0):
        entry = position + tl.arange(0, BLOCK)
        exists = entry < count
        index = tl.load(entries_ptr + first + entry, mask=exists, other=0)
        _, _, _, _, _, raw, used = _alphas(geometry_ptr, index, exists, x, y)
        alpha = tl.where(used & exists[None], tl.minimum(raw, HIGHEST), 0.0)
        alive = (rest[:, None] * tl.cumprod(1.0 - alpha, axis=1) > STOP) & live[:, None]
        alpha = tl.where(alive, alpha, 0.0)
        after = rest[:, None] * tl.cumprod(1.0 - alpha, axis=1)
        before = after / (1.0 - alpha)
        weight = alpha * before
        row = features_ptr + index.to(tl.int64) * features
        for f in tl.static_range(CHUNK):
            feature = chunk * CHUNK + f
            value = tl.load(row + feature, mask=exists & (feature < features), other=0.0)
            sums += tl.sum(weight * value[None], axis=1)[:, None] * (own == f)[None]
        if MEDIAN:
            depth = tl.load(row + halfway, mask=exists, other=0.0)
            middle += tl.sum(tl.where((before > 0.5) & (after <= 0.5), depth[None], 0.0), axis=1)
        stops += tl.sum((alive & exists[None]).to(tl.int32), axis=1)
        rest = tl.min(after, axis=1)
        live = tl.min(alive.to(tl.int32), axis=1) > 0
        position += BLOCK
    channel = chunk * CHUNK + own
    mask = inside[:, None] & (channel < features)[None]
    tl.store(sums_ptr + place[:, None] * features + channel[None], sums, mask=mask)
    if chunk == 0:
        tl.store(rest_ptr + place, rest, mask=inside)
        tl.store(middle_ptr + place, middle, mask=inside)
        tl.store(stops_ptr + place, stops, mask=inside)


@triton.jit
def backward_kernel(
    geometry_ptr,
    features_ptr,
    entries_ptr,
    starts_ptr,
    rest_ptr,
    stops_ptr,
    d_sums_ptr,
    d_rest_ptr,
    d_geometry_ptr,
    d_features_ptr,
    width,
    height,
    features,
    BLOCK: tl.constexpr,
):
    """What a tile adds to the gradients of its Gaussians, back to front.

    With g the gradient of a pixel's sums: d_alpha_i = T_i (g . f_i) - behind_i / (1 - alpha_i), where behind_i is
    sum_{j>i} w_j (g . f_j) + T dL/dT.
    """
    tile = tl.program_id(0)
    place, inside, x, y = _pixels(tile, width, height)
    first = tl.load(starts_ptr + tile)
    rest = tl.load(rest_ptr + place, mask=inside, other=1.0)
    stops = tl.load(stops_ptr + place, mask=inside, other=0)
    behind = rest * tl.load(d_rest_ptr + place, mask=inside, other=0.0)
    last = tl.max(stops, axis=0)
    blocks = tl.cdiv(last, BLOCK)
    for reverse in range(blocks):
        entry = (blocks - 1 - reverse) * BLOCK + tl.arange(0, BLOCK)
        exists = entry < last
        index = tl.load(entries_ptr + first + entry, mask=exists, other=0)
        dx, dy, a, b, c, raw, used = _alphas(geometry_ptr, index, exists, x, y)
        used &= entry[None] < stops[:, None]
        alpha = tl.where(used, tl.minimum(raw, HIGHEST), 0.0)
        before = rest[:, None] / tl.cumprod(1.0 - alpha, axis=1, reverse=True)
        weight = alpha * before
        row = index.to(tl.int64) * features
        product = tl.zeros_like(weight)
        for f in range(features):
            gradient = tl.load(d_sums_ptr + place * features + f, mask=inside, other=0.0)
            value = tl.load(features_ptr + row + f, mask=exists, other=0.0)
            product += gradient[:, None] * value[None]
            tl.atomic_add(
                d_features_ptr + row + f, tl.sum(weight * gradient[:, None], axis=0), mask=exists, sem="relaxed"
            )
        added = weight * product
        further = behind[:, None] + tl.cumsum(added, axis=1, reverse=True) - added
        d_alpha = before * product - further / (1.0 - alpha)
        d_sigma = tl.where(used & (raw <= HIGHEST), -raw * d_alpha, 0.0)
        slope_x, slope_y = d_sigma * (a * dx + b * dy), d_sigma * (b * dx + c * dy)
        target = d_geometry_ptr + index.to(tl.int64) * 8
        tl.atomic_add(target, -tl.sum(slope_x, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 1, -tl.sum(slope_y, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 2, 0.5 * tl.sum(d_sigma * dx * dx, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 3, tl.sum(d_sigma * dx * dy, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 4, 0.5 * tl.sum(d_sigma * dy * dy, axis=0), mask=exists, sem="relaxed")
        opacity = tl.load(geometry_ptr + index.to(tl.int64) * 8 + 5, mask=exists, other=1.0)
        d_opacity = -tl.sum(d_sigma, axis=0) / tl.where(opacity > 0.0, opacity, 1.0)
        tl.atomic_add(target + 5, d_opacity, mask=exists, sem="relaxed")
        tl.atomic_add(target + 6, tl.sum(tl.abs(slope_x), axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 7, tl.sum(tl.abs(slope_y), axis=0), mask=exists, sem="relaxed")
        rest = tl.max(before, axis=1)  # the first of the block has the most light
        behind += tl.sum(added, axis=1)


def forward(
    geometry: Tensor,
    features: Tensor,
    entries: Tensor,
    starts: Tensor,
    counts: Tensor,
    width: int,
    height: int,
    halfway: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums, what is left of the light, the feature at half of it, and stops; see `operators.composite`."""
    shape, channels = (len(geometry), height, width), features.shape[2]
    sums = features.new_empty(*shape, channels)
    rest, middle = (features.new_empty(shape) for _ in range(2))
    stops = torch.empty(shape, dtype=torch.int32, device=features.device)
    grid = (len(starts), triton.cdiv(channels, CHUNK))
    if len(starts):
        forward_kernel[grid](
            geometry, features, entries, starts, counts, sums, rest, middle, stops, width, height, channels,
            max(halfway, 0), MEDIAN=halfway >= 0, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=8,
        )  # fmt: skip
    return sums, rest, middle, stops


def backward(
    geometry: Tensor,
    features: Tensor,
    entries: Tensor,
    starts: Tensor,
    rest: Tensor,
    stops: Tensor,
    d_sums: Tensor,
    d_rest: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of geometry (the last two columns: sums of absolute values of the first two) and of features."""
    d_geometry, d_features = torch.zeros_like(geometry), torch.zeros_like(features)
    height, width = rest.shape[1:]
    if len(starts):
        backward_kernel[len(starts),](
            geometry, features, entries, starts, rest, stops, d_sums, d_rest, d_geometry, d_features, width, height,
            features.shape[2], BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
    return d_geometry, d_features
