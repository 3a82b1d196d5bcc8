"""The Triton kernels: contiguous float32 tensors on a GPU.

The window is separable: sums along rows go through memory once, sums along columns follow in the kernel that uses them.
Neighbouring taps come from the cache. Products of matrices with the window's band, which would save that pass, made
registers spill on every GPU they were compiled for. Each output belongs to one program: equal inputs give equal bits.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import C1, C2, WINDOW, window

BLOCK = 256
"""Pixels of a program."""
MOMENTS, SLOPES = 4, 4
"""Planes of means of x, y, xy and x^2 + y^2, and of the gradients of those four."""


@functools.cache
def _weights(device: torch.device) -> Tensor:
    return torch.tensor(window(), dtype=torch.float32, device=device)


@triton.jit
def _pixel(pixels, BLOCK: tl.constexpr):
    """Numbers of this program's pixels, and which exist."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return pixel, pixel < pixels


@triton.jit
def _line(ptr, pixel, position, length, stride, exists, weights_ptr, WINDOW: tl.constexpr):
    """Weighted sum of what is around each pixel along a line: `position` in a line of `length`, `stride` apart."""
    total = tl.zeros(pixel.shape, tl.float32)
    for tap in tl.static_range(WINDOW):
        step = tap - WINDOW // 2
        inside = exists & (position + step >= 0) & (position + step < length)
        total += tl.load(weights_ptr + tap) * tl.load(ptr + pixel + step * stride, mask=inside, other=0.0)
    return total


@triton.jit
def rows_kernel(x_ptr, y_ptr, weights_ptr, sums_ptr, pixels, width, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Sums along rows of x, y, xy and x^2 + y^2: four planes."""
    pixel, exists = _pixel(pixels, BLOCK)
    column = pixel % width
    sum_x = tl.zeros([BLOCK], tl.float32)
    sum_y = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for tap in tl.static_range(WINDOW):
        step = tap - WINDOW // 2
        inside = exists & (column + step >= 0) & (column + step < width)
        weight = tl.load(weights_ptr + tap)
        x = tl.load(x_ptr + pixel + step, mask=inside, other=0.0)
        y = tl.load(y_ptr + pixel + step, mask=inside, other=0.0)
        sum_x += weight * x
        sum_y += weight * y
        products += weight * x * y
        squares += weight * (x * x + y * y)
    tl.store(sums_ptr + pixel, sum_x, mask=exists)
    tl.store(sums_ptr + pixels + pixel, sum_y, mask=exists)
    tl.store(sums_ptr + 2 * pixels + pixel, products, mask=exists)
    tl.store(sums_ptr + 3 * pixels + pixel, squares, mask=exists)


@triton.jit
def _factors(sums_ptr, pixel, exists, pixels, height, width, weights_ptr, C1, C2, WINDOW: tl.constexpr):
    """Means of x and y, and the four factors of S = a1 a2 / (b1 b2), from the sums along rows."""
    row = pixel // width % height
    mean_x = _line(sums_ptr, pixel, row, height, width, exists, weights_ptr, WINDOW)
    mean_y = _line(sums_ptr + pixels, pixel, row, height, width, exists, weights_ptr, WINDOW)
    products = _line(sums_ptr + 2 * pixels, pixel, row, height, width, exists, weights_ptr, WINDOW)
    squares = _line(sums_ptr + 3 * pixels, pixel, row, height, width, exists, weights_ptr, WINDOW)
    mean_product, mean_squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    a1, a2 = 2 * mean_product + C1, 2 * (products - mean_product) + C2
    b1, b2 = mean_squares + C1, squares - mean_squares + C2
    return mean_x, mean_y, a1, a2, b1, b2


@triton.jit
def map_kernel(
    sums_ptr, weights_ptr, map_ptr, pixels, height, width, C1, C2, WINDOW: tl.constexpr, BLOCK: tl.constexpr
):
    """The map, from the sums along rows."""
    pixel, exists = _pixel(pixels, BLOCK)
    factors = _factors(sums_ptr, pixel, exists, pixels, height, width, weights_ptr, C1, C2, WINDOW)
    _, _, a1, a2, b1, b2 = factors
    tl.store(map_ptr + pixel, a1 * a2 / (b1 * b2), mask=exists)


@triton.jit
def slopes_kernel(
    sums_ptr,
    weights_ptr,
    d_map_ptr,
    slopes_ptr,
    pixels,
    height,
    width,
    C1,
    C2,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the four means at each pixel: four planes."""
    pixel, exists = _pixel(pixels, BLOCK)
    factors = _factors(sums_ptr, pixel, exists, pixels, height, width, weights_ptr, C1, C2, WINDOW)
    mean_x, mean_y, a1, a2, b1, b2 = factors
    d_map = tl.load(d_map_ptr + pixel, mask=exists, other=0.0)
    scale = 2 * d_map / (b1 * b2)
    cross, along = scale * (a2 - a1), scale * a1 * a2 * (1 / b2 - 1 / b1)
    tl.store(slopes_ptr + pixel, cross * mean_y + along * mean_x, mask=exists)
    tl.store(slopes_ptr + pixels + pixel, cross * mean_x + along * mean_y, mask=exists)
    tl.store(slopes_ptr + 2 * pixels + pixel, scale * a1, mask=exists)
    tl.store(slopes_ptr + 3 * pixels + pixel, -0.5 * scale * a1 * a2 / b2, mask=exists)


@triton.jit
def slope_rows_kernel(slopes_ptr, weights_ptr, sums_ptr, pixels, width, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Sums along rows of one of the gradients' planes, which the second axis of the grid counts."""
    pixel, exists = _pixel(pixels, BLOCK)
    plane = tl.program_id(1) * pixels
    total = _line(slopes_ptr + plane, pixel, pixel % width, width, 1, exists, weights_ptr, WINDOW)
    tl.store(sums_ptr + plane + pixel, total, mask=exists)


@triton.jit
def gradient_kernel(
    sums_ptr,
    weights_ptr,
    x_ptr,
    y_ptr,
    d_x_ptr,
    d_y_ptr,
    pixels,
    height,
    width,
    OF_X: tl.constexpr,
    OF_Y: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of the pictures; the window is symmetric, so the gradient of a mean is spread by the same sums."""
    pixel, exists = _pixel(pixels, BLOCK)
    row = pixel // width % height
    of_product = _line(sums_ptr + 2 * pixels, pixel, row, height, width, exists, weights_ptr, WINDOW)
    of_squares = _line(sums_ptr + 3 * pixels, pixel, row, height, width, exists, weights_ptr, WINDOW)
    x = tl.load(x_ptr + pixel, mask=exists, other=0.0)
    y = tl.load(y_ptr + pixel, mask=exists, other=0.0)
    if OF_X:
        of_mean = _line(sums_ptr, pixel, row, height, width, exists, weights_ptr, WINDOW)
        tl.store(d_x_ptr + pixel, of_mean + 2 * x * of_squares + y * of_product, mask=exists)
    if OF_Y:
        of_mean = _line(sums_ptr + pixels, pixel, row, height, width, exists, weights_ptr, WINDOW)
        tl.store(d_y_ptr + pixel, of_mean + 2 * y * of_squares + x * of_product, mask=exists)


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    sums = x.new_empty(MOMENTS, x.numel())
    grid = (triton.cdiv(x.numel(), BLOCK),)
    rows_kernel[grid](x, y, _weights(x.device), sums, x.numel(), x.shape[3], WINDOW=WINDOW, BLOCK=BLOCK)
    return sums


def forward(x: Tensor, y: Tensor) -> Tensor:
    """The map [B, C, H, W]."""
    result = torch.empty_like(x)
    if x.numel():
        sizes = (x.numel(), *x.shape[2:], C1, C2)
        grid = (triton.cdiv(x.numel(), BLOCK),)
        map_kernel[grid](_row_sums(x, y), _weights(x.device), result, *sizes, WINDOW=WINDOW, BLOCK=BLOCK)
    return result


def backward(x: Tensor, y: Tensor, d_map: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of those pictures that want one."""
    d_x, d_y = (torch.empty_like(x) if wanted else None for wanted in (of_x, of_y))
    if x.numel():
        count, blocks, options = x.numel(), triton.cdiv(x.numel(), BLOCK), {"WINDOW": WINDOW, "BLOCK": BLOCK}
        weights, sums, slopes = _weights(x.device), _row_sums(x, y), x.new_empty(SLOPES, count)
        slopes_kernel[(blocks,)](sums, weights, d_map, slopes, count, *x.shape[2:], C1, C2, **options)
        slope_rows_kernel[(blocks, SLOPES)](slopes, weights, sums, count, x.shape[3], **options)
        # A gradient that nobody wants is not stored: any pointer will do.
        outputs = (x if d_x is None else d_x, x if d_y is None else d_y)
        gradient_kernel[(blocks,)](sums, weights, x, y, *outputs, count, *x.shape[2:], of_x, of_y, **options)
    return d_x, d_y
