"""The Triton kernels: contiguous float32 tensors on a GPU.

A program takes a block of positions: on one level where levels are apart (the code, the table's gradient), on all of
them one after the other where they add up (the positions' gradient). Every kernel walks the corners of a cell with
their factors, F = prod_d (c_d ? w_d : 1 - w_d) or the derivative of F along a direction. Only the gradient of the table
is not the same bits every time: atomics reorder its sums.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .types import PRIMES, HashGrid

BLOCK = 128
"""Positions of a program."""
PRIME_1, PRIME_2 = tl.constexpr(PRIMES[1]), tl.constexpr(PRIMES[2])


@functools.cache
def _plan(spec: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, and resolution, size and offset, of every level."""
    plan = HashGrid.from_spec(spec).plan
    numbers = torch.tensor([(level.scale, level.shift) for level in plan], dtype=torch.float32)
    sizes = torch.tensor([(level.resolution, level.size, level.offset) for level in plan], dtype=torch.int32)
    return numbers.to(device), sizes.to(device)


@triton.jit
def _column(ptr, row, exists, AXIS: tl.constexpr, AXES: tl.constexpr):
    """One coordinate of rows [*, AXES]; zero for an axis that there is not."""
    return tl.load(ptr + row * AXES + AXIS, mask=exists & (AXIS < AXES), other=0.0)


@triton.jit
def _positions(positions_ptr, row, exists, AXES: tl.constexpr):
    """Coordinates of rows, and which of them count: those without NaN and infinity."""
    x = _column(positions_ptr, row, exists, 0, AXES)
    y = _column(positions_ptr, row, exists, 1, AXES)
    z = _column(positions_ptr, row, exists, 2, AXES)
    infinity = float("inf")
    counts = exists & (tl.abs(x) < infinity) & (tl.abs(y) < infinity) & (tl.abs(z) < infinity)
    return x, y, z, counts


@triton.jit
def _axis(x, counts, scale, shift, SMOOTH: tl.constexpr, PRESENT: tl.constexpr):
    """Lower grid point of a coordinate, the upper one's share w, and dw/dx and d2w/dx2; no slope outside [0, 1]."""
    inside = tl.where(counts, tl.minimum(tl.maximum(x, 0.0), 1.0), 0.0)
    cell = inside * scale + shift
    if not PRESENT:
        cell = inside
    low = tl.floor(cell)
    share = cell - low
    free = tl.where(counts & (x >= 0.0) & (x <= 1.0), scale, 0.0)
    if not PRESENT:
        free = inside
    if SMOOTH:
        slope, curve = 6.0 * share * (1.0 - share) * free, (6.0 - 12.0 * share) * free * free
        share = share * share * (3.0 - 2.0 * share)
    else:
        slope, curve = free, 0.0 * free
    return low.to(tl.int32), share, slope, curve


@triton.jit
def _entry(i, j, k, resolution, size, offset):
    """Places in the table of grid points of a level: row-major where it is dense, else hashed (its size is 2^n)."""
    if resolution > 0:
        index = (i + j * resolution + k * resolution * resolution) % size
    else:
        mixed = i.to(tl.uint32) ^ (j.to(tl.uint32) * PRIME_1) ^ (k.to(tl.uint32) * PRIME_2)
        index = (mixed & (size - 1).to(tl.uint32)).to(tl.int32)
    return (offset + index).to(tl.int64)


@triton.jit
def _side(share, slope, curve, BIT: tl.constexpr):
    """Weight of a corner along an axis and its derivatives: w and w', w'', or 1 - w and -w', -w''."""
    if BIT:
        weight = share
    else:
        weight, slope, curve = 1.0 - share, -slope, -curve
    return weight, slope, curve


@triton.jit
def encode_kernel(
    positions_ptr,
    table_ptr,
    numbers_ptr,
    sizes_ptr,
    encoded_ptr,
    count,
    levels,
    AXES: tl.constexpr,
    FEATURES: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The code of a block of positions on one level."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    level, feature = tl.program_id(1), tl.arange(0, FEATURES)
    scale, shift = tl.load(numbers_ptr + 2 * level), tl.load(numbers_ptr + 2 * level + 1)
    resolution, size = tl.load(sizes_ptr + 3 * level), tl.load(sizes_ptr + 3 * level + 1)
    offset = tl.load(sizes_ptr + 3 * level + 2)
    x, y, z, counts = _positions(positions_ptr, row, row < count, AXES)
    i, share_x, _, _ = _axis(x, counts, scale, shift, SMOOTH, True)
    j, share_y, _, _ = _axis(y, counts, scale, shift, SMOOTH, True)
    k, share_z, _, _ = _axis(z, counts, scale, shift, SMOOTH, AXES == 3)
    total = tl.zeros([BLOCK, FEATURES], tl.float32)
    for corner in tl.static_range(1 << AXES):
        weight_x, _, _ = _side(share_x, 0.0, 0.0, corner % 2)
        weight_y, _, _ = _side(share_y, 0.0, 0.0, corner // 2 % 2)
        weight_z, _, _ = _side(share_z, 0.0, 0.0, corner // 4)
        entry = _entry(i + corner % 2, j + corner // 2 % 2, k + corner // 4, resolution, size, offset)
        values = tl.load(table_ptr + entry[:, None] * FEATURES + feature, mask=counts[:, None], other=0.0)
        total += (weight_x * weight_y * weight_z)[:, None] * values
    place = row[:, None] * levels * FEATURES + level * FEATURES + feature
    tl.store(encoded_ptr + place, total, mask=(row < count)[:, None])


@triton.jit
def table_kernel(
    positions_ptr,
    v_ptr,
    d_encoded_ptr,
    numbers_ptr,
    sizes_ptr,
    d_table_ptr,
    count,
    levels,
    ALONG: tl.constexpr,
    AXES: tl.constexpr,
    FEATURES: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What positions add to the gradient of a level's entries; `ALONG` v, through the positions' gradient."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    level, feature = tl.program_id(1), tl.arange(0, FEATURES)
    scale, shift = tl.load(numbers_ptr + 2 * level), tl.load(numbers_ptr + 2 * level + 1)
    resolution, size = tl.load(sizes_ptr + 3 * level), tl.load(sizes_ptr + 3 * level + 1)
    offset = tl.load(sizes_ptr + 3 * level + 2)
    x, y, z, counts = _positions(positions_ptr, row, row < count, AXES)
    i, share_x, slope_x, _ = _axis(x, counts, scale, shift, SMOOTH, True)
    j, share_y, slope_y, _ = _axis(y, counts, scale, shift, SMOOTH, True)
    k, share_z, slope_z, _ = _axis(z, counts, scale, shift, SMOOTH, AXES == 3)
    if ALONG:
        slope_x *= _column(v_ptr, row, counts, 0, AXES)
        slope_y *= _column(v_ptr, row, counts, 1, AXES)
        slope_z *= _column(v_ptr, row, counts, 2, AXES)
    place = row[:, None] * levels * FEATURES + level * FEATURES + feature
    gradient = tl.load(d_encoded_ptr + place, mask=counts[:, None], other=0.0)
    for corner in tl.static_range(1 << AXES):
        weight_x, along_x, _ = _side(share_x, slope_x, 0.0, corner % 2)
        weight_y, along_y, _ = _side(share_y, slope_y, 0.0, corner // 2 % 2)
        weight_z, along_z, _ = _side(share_z, slope_z, 0.0, corner // 4)
        factor = weight_x * weight_y * weight_z
        if ALONG:
            factor = (along_x * weight_y + weight_x * along_y) * weight_z + weight_x * weight_y * along_z
        entry = _entry(i + corner % 2, j + corner // 2 % 2, k + corner // 4, resolution, size, offset)
        target = d_table_ptr + entry[:, None] * FEATURES + feature
        tl.atomic_add(target, factor[:, None] * gradient, mask=counts[:, None], sem="relaxed")


@triton.jit
def positions_kernel(
    positions_ptr,
    table_ptr,
    v_ptr,
    d_encoded_ptr,
    numbers_ptr,
    sizes_ptr,
    d_d_encoded_ptr,
    d_positions_ptr,
    count,
    levels,
    ALONG: tl.constexpr,
    AXES: tl.constexpr,
    FEATURES: tl.constexpr,
    SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of a block of positions over all levels; `ALONG` v, that of its product with v, and of d_encoded."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    feature = tl.arange(0, FEATURES)
    x, y, z, counts = _positions(positions_ptr, row, row < count, AXES)
    v_x = _column(v_ptr, row, counts, 0, AXES)
    v_y = _column(v_ptr, row, counts, 1, AXES)
    v_z = _column(v_ptr, row, counts, 2, AXES)
    d_x = tl.zeros([BLOCK], tl.float32)
    d_y = tl.zeros([BLOCK], tl.float32)
    d_z = tl.zeros([BLOCK], tl.float32)
    for level in range(levels):
        scale, shift = tl.load(numbers_ptr + 2 * level), tl.load(numbers_ptr + 2 * level + 1)
        resolution, size = tl.load(sizes_ptr + 3 * level), tl.load(sizes_ptr + 3 * level + 1)
        offset = tl.load(sizes_ptr + 3 * level + 2)
        i, share_x, slope_x, curve_x = _axis(x, counts, scale, shift, SMOOTH, True)
        j, share_y, slope_y, curve_y = _axis(y, counts, scale, shift, SMOOTH, True)
        k, share_z, slope_z, curve_z = _axis(z, counts, scale, shift, SMOOTH, AXES == 3)
        place = row[:, None] * levels * FEATURES + level * FEATURES + feature
        gradient = tl.load(d_encoded_ptr + place, mask=counts[:, None], other=0.0)
        d_gradient = tl.zeros([BLOCK, FEATURES], tl.float32)
        for corner in tl.static_range(1 << AXES):
            weight_x, a, aa = _side(share_x, slope_x, curve_x, corner % 2)
            weight_y, b, bb = _side(share_y, slope_y, curve_y, corner // 2 % 2)
            weight_z, c, cc = _side(share_z, slope_z, curve_z, corner // 4)
            entry = _entry(i + corner % 2, j + corner // 2 % 2, k + corner // 4, resolution, size, offset)
            values = tl.load(table_ptr + entry[:, None] * FEATURES + feature, mask=counts[:, None], other=0.0)
            dot = tl.sum(gradient * values, axis=1)
            if ALONG:
                by_x, by_y, by_z = a * weight_y * weight_z, weight_x * b * weight_z, weight_x * weight_y * c
                d_gradient += (v_x * by_x + v_y * by_y + v_z * by_z)[:, None] * values
                xy, xz, yz = a * b * weight_z, a * weight_y * c, weight_x * b * c
                d_x += dot * (v_x * aa * weight_y * weight_z + v_y * xy + v_z * xz)
                d_y += dot * (v_x * xy + v_y * weight_x * bb * weight_z + v_z * yz)
                d_z += dot * (v_x * xz + v_y * yz + v_z * weight_x * weight_y * cc)
            else:
                d_x += dot * a * weight_y * weight_z
                d_y += dot * weight_x * b * weight_z
                d_z += dot * weight_x * weight_y * c
        if ALONG:
            tl.store(d_d_encoded_ptr + place, d_gradient, mask=(row < count)[:, None])
    tl.store(d_positions_ptr + row * AXES, d_x, mask=row < count)
    tl.store(d_positions_ptr + row * AXES + 1, d_y, mask=row < count)
    if AXES == 3:
        tl.store(d_positions_ptr + row * AXES + 2, d_z, mask=row < count)


def _options(grid: HashGrid) -> dict[str, int | bool]:
    return {"AXES": grid.dims, "FEATURES": grid.features, "SMOOTH": grid.smoothstep, "BLOCK": BLOCK}


def forward(positions: Tensor, table: Tensor, spec: str) -> Tensor:
    """The code [N, levels * features]."""
    grid = HashGrid.from_spec(spec)
    encoded = positions.new_empty(len(positions), grid.width)
    if len(positions):
        launch = (triton.cdiv(len(positions), BLOCK), grid.levels)
        plan = _plan(spec, positions.device)
        encode_kernel[launch](positions, table, *plan, encoded, len(positions), grid.levels, **_options(grid))
    return encoded


def _scatter(positions: Tensor, table: Tensor, v: Tensor | None, d_encoded: Tensor, spec: str) -> Tensor:
    grid = HashGrid.from_spec(spec)
    d_table = torch.zeros_like(table)
    if len(positions):
        launch = (triton.cdiv(len(positions), BLOCK), grid.levels)
        inputs = (positions, positions if v is None else v, d_encoded, *_plan(spec, positions.device))
        table_kernel[launch](*inputs, d_table, len(positions), grid.levels, v is not None, **_options(grid))
    return d_table


def _differentiate(
    positions: Tensor, table: Tensor, v: Tensor | None, d_encoded: Tensor, spec: str
) -> tuple[Tensor, Tensor]:
    """What `second` gives for d_encoded and positions; without v, the second is the positions' gradient."""
    grid = HashGrid.from_spec(spec)
    d_d_encoded, d_positions = torch.empty_like(d_encoded), torch.empty_like(positions)
    if len(positions):
        launch = (triton.cdiv(len(positions), BLOCK),)
        inputs = (positions, table, positions if v is None else v, d_encoded, *_plan(spec, positions.device))
        sizes = (len(positions), grid.levels)
        positions_kernel[launch](*inputs, d_d_encoded, d_positions, *sizes, v is not None, **_options(grid))
    return d_d_encoded, d_positions


def backward(
    positions: Tensor, table: Tensor, d_encoded: Tensor, spec: str, of_table: bool, of_positions: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of table and positions, where wanted."""
    d_table = _scatter(positions, table, None, d_encoded, spec) if of_table else None
    return d_table, _differentiate(positions, table, None, d_encoded, spec)[1] if of_positions else None


def second(
    positions: Tensor, table: Tensor, d_encoded: Tensor, v: Tensor, spec: str, of_table: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of <v, the positions' gradient>: of d_encoded, of the table where wanted, of the positions."""
    d_d_encoded, d_positions = _differentiate(positions, table, v, d_encoded, spec)
    return d_d_encoded, _scatter(positions, table, v, d_encoded, spec) if of_table else None, d_positions
