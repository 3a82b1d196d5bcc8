"""The Triton kernels of compositing: contiguous float32 tensors on a GPU. The definition is reference.composite.

A program holds the 256 pixels of a tile and takes a block of its Gaussians at a time, with scans along the block in
place of a walk. Gradients of Gaussians are summed by atomics, which reorder: their last bits differ from run to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Projection, bin_tiles
from .states import States
from .triton_project import project_backward, project_forward, shade_backward, shade_forward
from .types import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

__all__ = [
    "composite_backward",
    "composite_forward",
    "project_backward",
    "project_forward",
    "shade_backward",
    "shade_forward",
]

SIDE = 16
TILE = tl.constexpr(SIDE)
BLOCK = 16
"""Gaussians that a program takes at a time."""
CHUNK = 8
"""Features that a program of the forward pass sums; for more of them tiles are walked again."""
HIGHEST, LOWEST, STOP = tl.constexpr(ALPHA_MAX), tl.constexpr(ALPHA_MIN), tl.constexpr(TRANSMITTANCE_MIN)
EXTRA = 4
"""Features besides the colours: depth and normal."""

_states: States[tuple[Tensor, Tensor, Tensor, Tensor]] = States()
"""Lists of tiles, where they begin, what is left of the light, and how far each pixel went."""


@triton.jit
def _pixels(tile, width, height):
    """View, place in the planes [B, H, W], whether it is inside, and centres of a tile's pixels."""
    across, down = tl.cdiv(width, TILE), tl.cdiv(height, TILE)
    pixel = tl.arange(0, TILE * TILE)
    x = tile % across * TILE + pixel % TILE
    y = tile // across % down * TILE + pixel // TILE
    view = (tile // (across * down)).to(tl.int64)
    return view, view * width * height + y * width + x, (x < width) & (y < height), x + 0.5, y + 0.5


@triton.jit
def _alphas(means2d_ptr, geometry_ptr, index, exists, x, y):
    """Offsets to the pixels, conic, opacity exp(-sigma), and whether that counts, of some Gaussians [pixels, block]."""
    mean, row = means2d_ptr + index * 2, geometry_ptr + index * 8
    dx = x[:, None] - tl.load(mean, mask=exists, other=0.0)[None]
    dy = y[:, None] - tl.load(mean + 1, mask=exists, other=0.0)[None]
    a = tl.load(row, mask=exists, other=0.0)[None]
    b = tl.load(row + 1, mask=exists, other=0.0)[None]
    c = tl.load(row + 2, mask=exists, other=0.0)[None]
    opacity = tl.load(row + 3, mask=exists, other=0.0)[None]
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    raw = opacity * tl.exp(-sigma)
    return dx, dy, a, b, c, raw, (sigma >= 0.0) & (raw >= LOWEST)


@triton.jit
def _feature(colors_ptr, geometry_ptr, row, index, feature, channels, exists):
    """A feature of some Gaussians: a colour, else depth or a part of the normal."""
    color = tl.load(colors_ptr + row * channels + feature, mask=exists & (feature < channels), other=0.0)
    rest = exists & (feature >= channels) & (feature < channels + 4)
    return color + tl.load(geometry_ptr + index * 8 + 4 + feature - channels, mask=rest, other=0.0)


@triton.jit
def forward_kernel(
    means2d_ptr, geometry_ptr, colors_ptr, background_ptr, entries_ptr, starts_ptr, counts_ptr, image_ptr, alpha_ptr,
    depth_ptr, normal_ptr, median_ptr, rest_ptr, stops_ptr, width, height, channels, color_rows,
    MEDIAN: tl.constexpr, BEHIND: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile's sums of some features, and by the first program of a tile everything else."""
    tile, chunk = tl.program_id(0), tl.program_id(1)
    view, place, inside, x, y = _pixels(tile, width, height)
    first, count = tl.load(starts_ptr + tile), tl.load(counts_ptr + tile)
    rest = tl.full([TILE * TILE], 1.0, tl.float32)
    live = inside
    stops = tl.zeros([TILE * TILE], tl.int32)
    median = tl.zeros([TILE * TILE], tl.float32)
    sums = tl.zeros([TILE * TILE, CHUNK], tl.float32)
    own = tl.arange(0, CHUNK)
    position = 0
    while (position < count) & (tl.max(live.to(tl.int32), axis=0) > 0):
        entry = position + tl.arange(0, BLOCK)
        exists = entry < count
        index = tl.load(entries_ptr + first + entry, mask=exists, other=0).to(tl.int64)
        _, _, _, _, _, raw, used = _alphas(means2d_ptr, geometry_ptr, index, exists, x, y)
        alpha = tl.where(used & exists[None], tl.minimum(raw, HIGHEST), 0.0)
        alive = (rest[:, None] * tl.cumprod(1.0 - alpha, axis=1) > STOP) & live[:, None]
        alpha = tl.where(alive, alpha, 0.0)
        after = rest[:, None] * tl.cumprod(1.0 - alpha, axis=1)
        before = after / (1.0 - alpha)
        weight = alpha * before
        for f in tl.static_range(CHUNK):
            value = _feature(colors_ptr, geometry_ptr, index % color_rows, index, chunk * CHUNK + f, channels, exists)
            sums += tl.sum(weight * value[None], axis=1)[:, None] * (own == f)[None]
        if MEDIAN:
            depth = tl.load(geometry_ptr + index * 8 + 4, mask=exists, other=0.0)
            median += tl.sum(tl.where((before > 0.5) & (after <= 0.5), depth[None], 0.0), axis=1)
        stops += tl.sum((alive & exists[None]).to(tl.int32), axis=1)
        rest = tl.min(after, axis=1)
        live = tl.min(alive.to(tl.int32), axis=1) > 0
        position += BLOCK
    channel = chunk * CHUNK + own
    colored = inside[:, None] & (channel < channels)[None]
    if BEHIND:
        behind = tl.load(background_ptr + view * channels + channel, mask=channel < channels, other=0.0)
        tl.store(
            image_ptr + place[:, None] * channels + channel[None], sums + rest[:, None] * behind[None], mask=colored
        )
    else:
        tl.store(image_ptr + place[:, None] * channels + channel[None], sums, mask=colored)
    tl.store(depth_ptr + place[:, None] + 0 * channel[None], sums, mask=inside[:, None] & (channel == channels)[None])
    part = channel - channels - 1
    facing = inside[:, None] & ((part >= 0) & (part < 3))[None]
    tl.store(normal_ptr + place[:, None] * 3 + part[None], sums, mask=facing)
    if chunk == 0:
        tl.store(alpha_ptr + place, 1.0 - rest, mask=inside)
        tl.store(rest_ptr + place, rest, mask=inside)
        tl.store(stops_ptr + place, stops, mask=inside)
        if MEDIAN:
            tl.store(median_ptr + place, median, mask=inside)


@triton.jit
def backward_kernel(
    means2d_ptr, geometry_ptr, colors_ptr, entries_ptr, starts_ptr, rest_ptr, stops_ptr, d_image_ptr, d_rest_ptr,
    d_depth_ptr, d_normal_ptr, d_means2d_ptr, d_geometry_ptr, d_colors_ptr, absolute_ptr, width, height, channels,
    color_rows, features, ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What a tile adds to the gradients of its Gaussians, back to front.

    With g the gradient of a pixel's sums: d_alpha_i = T_i (g . f_i) - behind_i / (1 - alpha_i), where behind_i is
    sum_{j>i} w_j (g . f_j) + T dL/dT.
    """
    tile = tl.program_id(0)
    _, place, inside, x, y = _pixels(tile, width, height)
    first = tl.load(starts_ptr + tile)
    rest = tl.load(rest_ptr + place, mask=inside, other=1.0)
    stops = tl.load(stops_ptr + place, mask=inside, other=0)
    behind = rest * tl.load(d_rest_ptr + place, mask=inside, other=0.0)
    last = tl.max(stops, axis=0)
    blocks = tl.cdiv(last, BLOCK)
    for reverse in range(blocks):
        entry = (blocks - 1 - reverse) * BLOCK + tl.arange(0, BLOCK)
        exists = entry < last
        index = tl.load(entries_ptr + first + entry, mask=exists, other=0).to(tl.int64)
        dx, dy, a, b, c, raw, used = _alphas(means2d_ptr, geometry_ptr, index, exists, x, y)
        used &= entry[None] < stops[:, None]
        alpha = tl.where(used, tl.minimum(raw, HIGHEST), 0.0)
        before = rest[:, None] / tl.cumprod(1.0 - alpha, axis=1, reverse=True)
        weight = alpha * before
        row = index % color_rows
        target = d_geometry_ptr + index * 8
        product = tl.zeros_like(weight)
        for f in range(features):
            colored, part = f < channels, f - channels - 1
            gradient = tl.load(d_image_ptr + place * channels + f, mask=inside & colored, other=0.0)
            gradient += tl.load(d_depth_ptr + place, mask=inside & (part == -1), other=0.0)
            gradient += tl.load(d_normal_ptr + place * 3 + part, mask=inside & (part >= 0), other=0.0)
            value = _feature(colors_ptr, geometry_ptr, row, index, f, channels, exists)
            product += gradient[:, None] * value[None]
            added = tl.sum(weight * gradient[:, None], axis=0)
            tl.atomic_add(d_colors_ptr + row * channels + f, added, mask=exists & colored, sem="relaxed")
            tl.atomic_add(target + 5 + part, added, mask=exists & (part >= -1), sem="relaxed")
        share = weight * product
        further = behind[:, None] + tl.cumsum(share, axis=1, reverse=True) - share
        d_alpha = before * product - further / (1.0 - alpha)
        d_sigma = tl.where(used & (raw <= HIGHEST), -raw * d_alpha, 0.0)
        slope_x, slope_y = d_sigma * (a * dx + b * dy), d_sigma * (b * dx + c * dy)
        tl.atomic_add(d_means2d_ptr + index * 2, -tl.sum(slope_x, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(d_means2d_ptr + index * 2 + 1, -tl.sum(slope_y, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target, 0.5 * tl.sum(d_sigma * dx * dx, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 1, tl.sum(d_sigma * dx * dy, axis=0), mask=exists, sem="relaxed")
        tl.atomic_add(target + 2, 0.5 * tl.sum(d_sigma * dy * dy, axis=0), mask=exists, sem="relaxed")
        opacity = tl.load(geometry_ptr + index * 8 + 3, mask=exists, other=1.0)
        d_opacity = -tl.sum(d_sigma, axis=0) / tl.where(opacity > 0.0, opacity, 1.0)
        tl.atomic_add(target + 3, d_opacity, mask=exists, sem="relaxed")
        if ABSOLUTE:
            tl.atomic_add(absolute_ptr + index * 2, tl.sum(tl.abs(slope_x), axis=0), mask=exists, sem="relaxed")
            tl.atomic_add(absolute_ptr + index * 2 + 1, tl.sum(tl.abs(slope_y), axis=0), mask=exists, sem="relaxed")
        rest = tl.max(before, axis=1)  # the first of the block has the most light
        behind += tl.sum(share, axis=1)


def _composite(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor], width: int, height: int, median_depth: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    means2d, geometry, _, colors, background, boxes = inputs
    views, count, channels = len(means2d), means2d.shape[1], colors.shape[2]
    seen = Projection(means2d, geometry, geometry, geometry[..., 4], geometry, boxes)
    tiles = bin_tiles(seen, width, height, SIDE)
    entries, starts, counts = (item.int() for item in tiles)
    outputs = [means2d.new_empty(views, height, width, size) for size in (channels, 1, 1, 3)]
    median = means2d.new_empty((views, height, width, 1) if median_depth else 0)
    rest = means2d.new_empty(views, height, width)
    stops = torch.empty(views, height, width, dtype=torch.int32, device=means2d.device)
    if views:
        forward_kernel[len(starts), triton.cdiv(channels + EXTRA, CHUNK)](
            means2d, geometry, colors, colors if background is None else background, entries, starts, counts, *outputs,
            median, rest, stops, width, height, channels, max(len(colors) * count, 1), MEDIAN=median_depth,
            BEHIND=background is not None, BLOCK=BLOCK, CHUNK=CHUNK, num_warps=16,
        )  # fmt: skip
    return [*outputs, median], (entries, starts, rest, stops)


def composite_forward(
    means2d: Tensor, geometry: Tensor, radii: Tensor, colors: Tensor, background: Tensor | None, boxes: Tensor,
    width: int, height: int, median_depth: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`reference.composite`: image, alpha, depth, normal, median depth (or empty), and the number of the state."""
    outputs, state = _composite((means2d, geometry, radii, colors, background, boxes), width, height, median_depth)
    return *outputs, _states.add(state, keep)


def composite_backward(
    means2d: Tensor, geometry: Tensor, radii: Tensor, colors: Tensor, background: Tensor | None, boxes: Tensor,
    number: Tensor, gradients: list[Tensor | None], width: int, height: int, of_background: bool, absolute: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of means2d, geometry, colours, background, and sums of absolute ones (empty if not asked for)."""
    state = _states.take(number)
    if state is None:
        _, state = _composite((means2d, geometry, radii, colors, background, boxes), width, height, False)
    entries, starts, rest, stops = state
    channels = colors.shape[2]
    d_image, d_alpha, d_depth, d_normal = gradients
    features = channels + (EXTRA if d_depth is not None or d_normal is not None else 0)
    shape = rest.shape
    image = rest.new_zeros(*shape, channels) if d_image is None else d_image
    depth = rest.new_zeros(shape if d_depth is None and features > channels else 0) if d_depth is None else d_depth
    normal = rest.new_zeros(*shape, 3) if d_normal is None and features > channels else d_normal
    d_rest = torch.zeros_like(rest) if d_alpha is None else -d_alpha[..., 0]
    d_background = None
    if background is not None:
        d_rest = d_rest + torch.einsum("bhwc,bc->bhw", image, background)
        d_background = torch.einsum("bhwc,bhw->bc", image, rest) if of_background else None
    d_means2d, d_geometry, d_colors = (torch.zeros_like(item) for item in (means2d, geometry, colors))
    sums = torch.zeros_like(means2d) if absolute else None
    if len(starts):
        backward_kernel[len(starts),](
            means2d, geometry, colors, entries, starts, rest, stops, image, d_rest.contiguous(), depth,
            rest if normal is None else normal, d_means2d, d_geometry, d_colors, rest if sums is None else sums, width,
            height, channels, max(len(colors) * means2d.shape[1], 1), features, ABSOLUTE=absolute, BLOCK=BLOCK,
            num_warps=8,
        )  # fmt: skip
    results = (d_means2d, d_geometry, d_colors, d_background, sums)
    return tuple(rest.new_empty(0) if result is None else result for result in results)
