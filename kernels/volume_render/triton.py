"""The Triton kernels: contiguous float32 tensors on a GPU. Inputs and outputs are those of native.py.

A program walks the samples of one ray, a block at a time, with scans inside a block and a carry between blocks; one
that marches has a ray a lane. No atomics: equal inputs give equal bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Samples that a program takes at a time."""
LANES = 128
"""Rays of a program that marches, quantiles of one that resamples."""
CHANNELS = 8
"""Channels that a program accumulates at a time."""


@triton.jit
def _span(offsets_ptr, ray, count):
    """First sample of a ray and the first of the next one, inside the tensors whatever the offsets say."""
    first = tl.maximum(tl.load(offsets_ptr + ray), 0)
    return first, tl.minimum(tl.load(offsets_ptr + ray + 1), count)


@triton.jit
def _optical(starts_ptr, ends_ptr, densities_ptr, index, exists):
    """Length of intervals and density times length; zero where there is none."""
    length = tl.load(ends_ptr + index, mask=exists, other=0.0) - tl.load(starts_ptr + index, mask=exists, other=0.0)
    return length, length * tl.load(densities_ptr + index, mask=exists, other=0.0)


@triton.jit
def weights_kernel(starts_ptr, ends_ptr, offsets_ptr, densities_ptr, weights_ptr, count, BLOCK: tl.constexpr):
    """Weights, exp(-what is before) (1 - exp(-own)); sums shifted by one sample, as inf - inf is no number."""
    first, last = _span(offsets_ptr, tl.program_id(0), count)
    carry = 0.0
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        _, own = _optical(starts_ptr, ends_ptr, densities_ptr, index, index < last)
        _, previous = _optical(starts_ptr, ends_ptr, densities_ptr, index - 1, (index > first) & (index <= last))
        before = carry + tl.cumsum(previous, axis=0)
        tl.store(weights_ptr + index, tl.exp(-before) * (1.0 - tl.exp(-own)), mask=index < last)
        carry += tl.sum(previous, axis=0)


@triton.jit
def passed_kernel(starts_ptr, ends_ptr, offsets_ptr, densities_ptr, passed_ptr, count, BLOCK: tl.constexpr):
    """The transmittance behind every sample, T_{i+1}."""
    first, last = _span(offsets_ptr, tl.program_id(0), count)
    carry = 0.0
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        _, own = _optical(starts_ptr, ends_ptr, densities_ptr, index, index < last)
        tl.store(passed_ptr + index, tl.exp(-(carry + tl.cumsum(own, axis=0))), mask=index < last)
        carry += tl.sum(own, axis=0)


@triton.jit
def weights_backward_kernel(
    starts_ptr, ends_ptr, offsets_ptr, weights_ptr, d_weights_ptr, passed_ptr, d_densities_ptr, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """d_sigma_i = length_i (d_w_i T_{i+1} - sum_{j>i} d_w_j w_j), from the last sample to the first."""
    first, last = _span(offsets_ptr, tl.program_id(0), count)
    carry = 0.0
    for start in range(0, last - first, BLOCK):
        index = last - 1 - start - tl.arange(0, BLOCK)
        exists = index >= first
        behind = exists & (index + 1 < last)
        w = tl.load(weights_ptr + index + 1, mask=behind, other=0.0)
        product = w * tl.load(d_weights_ptr + index + 1, mask=behind, other=0.0)
        ends, starts = (
            tl.load(ends_ptr + index, mask=exists, other=0.0),
            tl.load(starts_ptr + index, mask=exists, other=0.0),
        )
        passed = tl.load(passed_ptr + index, mask=exists, other=0.0)
        own = tl.load(d_weights_ptr + index, mask=exists, other=0.0) * passed
        d_density = (ends - starts) * (own - (carry + tl.cumsum(product, axis=0)))
        tl.store(d_densities_ptr + index, d_density, mask=exists)
        carry += tl.sum(product, axis=0)


@triton.jit
def accumulate_kernel(
    offsets_ptr, weights_ptr, values_ptr, total_ptr, count, channels, BLOCK: tl.constexpr, CHANNELS: tl.constexpr
):
    """A ray's sums of some channels."""
    ray = tl.program_id(0)
    first, last = _span(offsets_ptr, ray, count)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS], tl.float32)
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        weight = tl.load(weights_ptr + index, mask=index < last, other=0.0)
        inside = (index < last)[:, None] & (channel < channels)[None]
        value = tl.load(values_ptr + index[:, None] * channels + channel[None], mask=inside, other=0.0)
        total += tl.sum(weight[:, None] * value, axis=0)
    tl.store(total_ptr + ray.to(tl.int64) * channels + channel, total, mask=channel < channels)


@triton.jit
def accumulate_backward_kernel(
    offsets_ptr, weights_ptr, values_ptr, d_total_ptr, d_weights_ptr, d_values_ptr, count, channels,
    BLOCK: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A ray's d_w_i = v_i . d_total and d_v_i = w_i d_total."""
    ray = tl.program_id(0)
    first, last = _span(offsets_ptr, ray, count)
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        weight = tl.load(weights_ptr + index, mask=index < last, other=0.0)
        d_weight = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, channels, CHANNELS):
            channel = begin + tl.arange(0, CHANNELS)
            d_total = tl.load(d_total_ptr + ray.to(tl.int64) * channels + channel, mask=channel < channels, other=0.0)
            inside = (index < last)[:, None] & (channel < channels)[None]
            place = index[:, None] * channels + channel[None]
            value = tl.load(values_ptr + place, mask=inside, other=0.0)
            d_weight += tl.sum(value * d_total[None], axis=1)
            tl.store(d_values_ptr + place, weight[:, None] * d_total[None], mask=inside)
        tl.store(d_weights_ptr + index, d_weight, mask=index < last)


@triton.jit
def _interval(starts_ptr, ends_ptr, weights_ptr, index, exists, origin):
    """Weight, middle from `origin` and length of intervals."""
    start = tl.load(starts_ptr + index, mask=exists, other=0.0)
    end = tl.load(ends_ptr + index, mask=exists, other=0.0)
    weight = tl.load(weights_ptr + index, mask=exists, other=0.0)
    return weight, 0.5 * (start + end) - origin, end - start


@triton.jit
def _origin(starts_ptr, ends_ptr, first, last):
    """The middle of a ray's first interval: middles count from there, as their differences are what matters."""
    exists = first < last
    start, end = (
        tl.load(starts_ptr + first, mask=exists, other=0.0),
        tl.load(ends_ptr + first, mask=exists, other=0.0),
    )
    return 0.5 * (start + end)


@triton.jit
def distortion_kernel(starts_ptr, ends_ptr, offsets_ptr, weights_ptr, loss_ptr, count, BLOCK: tl.constexpr):
    """2 sum_i w_i (m_i W_<i - M_<i) + 1/3 sum_i w_i^2 length_i, W and M the sums of w and w m."""
    ray = tl.program_id(0)
    first, last = _span(offsets_ptr, ray, count)
    origin = _origin(starts_ptr, ends_ptr, first, last)
    mass = 0.0
    moment = 0.0
    loss = 0.0
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        w, middle, length = _interval(starts_ptr, ends_ptr, weights_ptr, index, index < last, origin)
        mass_before = mass + tl.cumsum(w, axis=0) - w
        moment_before = moment + tl.cumsum(w * middle, axis=0) - w * middle
        loss += tl.sum(2.0 * w * (middle * mass_before - moment_before) + w * w * length * (1.0 / 3.0), axis=0)
        mass += tl.sum(w, axis=0)
        moment += tl.sum(w * middle, axis=0)
    tl.store(loss_ptr + ray, loss)


@triton.jit
def distortion_backward_kernel(
    starts_ptr, ends_ptr, offsets_ptr, weights_ptr, d_loss_ptr, d_weights_ptr, count, BLOCK: tl.constexpr
):
    """d/dw_i = 2 (m_i (W_<i - W_>i) - (M_<i - M_>i)) + 2/3 w_i length_i."""
    ray = tl.program_id(0)
    first, last = _span(offsets_ptr, ray, count)
    origin = _origin(starts_ptr, ends_ptr, first, last)
    d_loss = tl.load(d_loss_ptr + ray)
    all_mass = 0.0
    all_moment = 0.0
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        w, middle, _ = _interval(starts_ptr, ends_ptr, weights_ptr, index, index < last, origin)
        all_mass += tl.sum(w, axis=0)
        all_moment += tl.sum(w * middle, axis=0)
    mass = 0.0
    moment = 0.0
    for start in range(first, last, BLOCK):
        index = start + tl.arange(0, BLOCK)
        w, middle, length = _interval(starts_ptr, ends_ptr, weights_ptr, index, index < last, origin)
        upto, moment_upto = mass + tl.cumsum(w, axis=0), moment + tl.cumsum(w * middle, axis=0)
        # W_<i - W_>i = 2 W_<=i - w_i - W
        slope = middle * (2.0 * upto - w - all_mass) - (2.0 * moment_upto - w * middle - all_moment)
        tl.store(d_weights_ptr + index, d_loss * (2.0 * slope + w * length * (2.0 / 3.0)), mask=index < last)
        mass += tl.sum(w, axis=0)
        moment += tl.sum(w * middle, axis=0)


@triton.jit
def _axis(vectors_ptr, ray, exists, AXIS: tl.constexpr):
    return tl.load(vectors_ptr + ray * 3 + AXIS, mask=exists, other=float("nan"))


@triton.jit
def _clip(origin, direction, low, high, enter, leave):
    """What is left of the range from `enter` to `leave`, float64, between two planes."""
    o, d = origin.to(tl.float64), direction.to(tl.float64)
    moving = d != 0.0
    a = (low - o) / tl.where(moving, d, 1.0)
    b = (high - o) / tl.where(moving, d, 1.0)
    outside = (o < low) | (o > high)
    enter = tl.where(moving, tl.maximum(enter, tl.minimum(a, b)), enter)
    leave = tl.where(moving, tl.minimum(leave, tl.maximum(a, b)), tl.where(outside, enter - 1.0, leave))
    return enter, leave


@triton.jit
def _cell(origin, direction, middle, low, high, size):
    """Cell along an axis, and whether it is inside."""
    place = (origin + middle * direction - low) / (high - low) * size
    inside = (place >= 0.0) & (place < size)
    return tl.where(inside, place, 0.0).to(tl.int32), inside


@triton.jit
def march_kernel(
    origins_ptr, directions_ptr, occupied_ptr, box_ptr, jitter_ptr, offsets_ptr, counts_ptr, starts_ptr, ends_ptr,
    rays, size_x, size_y, size_z, steps, step, near, far,
    JITTERED: tl.constexpr, FILL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Count what rays keep, or `FILL` their intervals. A lane a ray; all lanes walk as far as any of them has to."""
    ray = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    exists = ray < rays
    ox, oy, oz = (
        _axis(origins_ptr, ray, exists, 0),
        _axis(origins_ptr, ray, exists, 1),
        _axis(origins_ptr, ray, exists, 2),
    )
    dx, dy, dz = (
        _axis(directions_ptr, ray, exists, 0),
        _axis(directions_ptr, ray, exists, 1),
        _axis(directions_ptr, ray, exists, 2),
    )
    low_x, low_y, low_z = tl.load(box_ptr), tl.load(box_ptr + 1), tl.load(box_ptr + 2)
    high_x, high_y, high_z = tl.load(box_ptr + 3), tl.load(box_ptr + 4), tl.load(box_ptr + 5)
    shift = tl.zeros([LANES], tl.float32)
    if JITTERED:
        shift = tl.load(jitter_ptr + ray, mask=exists, other=0.0)
    # A sum that is finite has finite terms; too large a ray is nowhere near the box either.
    sum_of_all = tl.abs(ox) + tl.abs(oy) + tl.abs(oz) + tl.abs(dx) + tl.abs(dy) + tl.abs(dz) + tl.abs(shift)
    exists &= sum_of_all < float("inf")
    enter = tl.zeros([LANES], tl.float64) + near
    leave = tl.zeros([LANES], tl.float64) + far
    enter, leave = _clip(ox, dx, low_x, high_x, enter, leave)
    enter, leave = _clip(oy, dy, low_y, high_y, enter, leave)
    enter, leave = _clip(oz, dz, low_z, high_z, enter, leave)
    exists &= enter <= leave
    # One interval and a half to spare on both sides.
    begin = tl.where(exists, (enter - near) / step - shift - 1.5, steps)
    end = tl.where(exists, (leave - near) / step - shift + 1.5, 0.0)
    first = tl.floor(tl.minimum(tl.maximum(begin, 0.0), steps)).to(tl.int32)
    last = tl.ceil(tl.minimum(tl.maximum(end, 0.0), steps)).to(tl.int32)
    kept = tl.zeros([LANES], tl.int64)
    offset = tl.zeros([LANES], tl.int64)
    room = tl.zeros([LANES], tl.int64)
    if FILL:
        offset = tl.load(offsets_ptr + ray, mask=exists, other=0)
        room = tl.load(offsets_ptr + ray + 1, mask=exists, other=0) - offset
    for k in range(tl.min(first, axis=0), tl.max(last, axis=0)):
        start = near + (k * 1.0 + shift) * step
        middle = start + 0.5 * step
        x, in_x = _cell(ox, dx, middle, low_x, high_x, size_x)
        y, in_y = _cell(oy, dy, middle, low_y, high_y, size_y)
        z, in_z = _cell(oz, dz, middle, low_z, high_z, size_z)
        inside = exists & in_x & in_y & in_z & (middle < far) & (k >= first) & (k < last)
        cell = (x.to(tl.int64) * size_y + y) * size_z + z
        inside &= tl.load(occupied_ptr + cell, mask=inside, other=0) != 0
        if FILL:
            inside &= kept < room
            tl.store(starts_ptr + offset + kept, start, mask=inside)
            tl.store(ends_ptr + offset + kept, start + step, mask=inside)
        kept += inside.to(tl.int64)
    if not FILL:
        tl.store(counts_ptr + ray, kept, mask=ray < rays)


@triton.jit
def resample_kernel(
    edges_ptr, cdf_ptr, jitter_ptr, result_ptr, total, bins, count, rounds, JITTERED: tl.constexpr, LANES: tl.constexpr
):
    """A quantile a lane: the bin by bisection of the row's cdf [N, B], in which F_b is the mass up to bin b."""
    lane = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    exists = lane < total
    ray, k = lane // (count + 1), lane % (count + 1)
    shift = tl.full([LANES], 0.5, tl.float32)
    if JITTERED:
        shift = tl.load(jitter_ptr + ray, mask=exists, other=0.0)
    u = (k.to(tl.float32) + shift) / (count + 1)
    row = ray * bins
    low = tl.zeros([LANES], tl.int64)  # the first bin with F_b > u, or the last one
    high = low + bins - 1
    for _ in range(rounds):
        middle = (low + high) // 2
        above = tl.load(cdf_ptr + row + middle, mask=exists, other=0.0) > u
        low, high = tl.where(above, low, tl.minimum(middle + 1, bins - 1)), tl.where(above, middle, high)
    below = tl.load(cdf_ptr + row + low - 1, mask=exists & (low > 0), other=0.0)
    mass = tl.load(cdf_ptr + row + low, mask=exists, other=0.0) - below
    share = tl.minimum(tl.maximum((u - below) / tl.maximum(mass, 1.17549435e-38), 0.0), 1.0)
    left = tl.load(edges_ptr + row + ray + low, mask=exists, other=0.0)
    right = tl.load(edges_ptr + row + ray + low + 1, mask=exists, other=0.0)
    tl.store(result_ptr + lane, left + share * (right - left), mask=exists)


def _march(
    origins: Tensor, directions: Tensor, occupied: Tensor, box: Tensor, jitter: Tensor | None,
    step: float, near: float, far: float, results: tuple[Tensor, ...], fill: bool,
) -> None:  # fmt: skip
    rays = len(origins)
    if not rays:
        return
    steps = math.ceil((far - near) / step)
    march_kernel[triton.cdiv(rays, LANES),](
        origins, directions, occupied.view(torch.uint8), box, origins if jitter is None else jitter, *results,
        rays, *occupied.shape, steps, step, near, far, JITTERED=jitter is not None, FILL=fill, LANES=LANES, num_warps=4,
    )  # fmt: skip


def march_count(origins: Tensor, *inputs: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """How many intervals each ray keeps, [N] int64, and what `march_fill` asks for; inputs as in `operators.march`."""
    counts = torch.empty(len(origins), dtype=torch.int64, device=origins.device)
    _march(origins, *inputs, (counts, counts, origins, origins), fill=False)
    return counts, (origins, *inputs)


def march_fill(inputs: tuple[Any, ...], offsets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Starts and ends of the intervals."""
    starts, ends = (inputs[0].new_empty(count) for _ in range(2))
    _march(*inputs, (offsets, offsets, starts, ends), fill=True)
    return starts, ends


def _along_rays(kernel: triton.JITFunction, offsets: Tensor, *arguments: object, **options: object) -> None:
    """Run a kernel with a program a ray."""
    if len(offsets) > 1:
        kernel[len(offsets) - 1,](*arguments, BLOCK=BLOCK, num_warps=1, **options)


def weights_forward(starts: Tensor, ends: Tensor, offsets: Tensor, densities: Tensor) -> Tensor:
    """The weight of every sample [S]."""
    weights = torch.empty_like(densities)
    _along_rays(weights_kernel, offsets, starts, ends, offsets, densities, weights, len(starts))
    return weights


def weights_backward(
    starts: Tensor, ends: Tensor, offsets: Tensor, densities: Tensor, weights: Tensor, d_weights: Tensor
) -> Tensor:
    """The gradient of the densities."""
    passed, d_densities = torch.empty_like(densities), torch.empty_like(densities)
    _along_rays(passed_kernel, offsets, starts, ends, offsets, densities, passed, len(starts))
    inputs = (starts, ends, offsets, weights, d_weights, passed)
    _along_rays(weights_backward_kernel, offsets, *inputs, d_densities, len(starts))
    return d_densities


def _channels(channels: int) -> int:
    return min(triton.next_power_of_2(max(channels, 1)), CHANNELS)


def accumulate_forward(starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """The sums along rays [N, C]."""
    channels = values.shape[1]
    total = values.new_empty(len(offsets) - 1, channels)
    if total.numel():
        width = _channels(channels)
        grid = (len(total), triton.cdiv(channels, width))
        inputs = (offsets, weights, values, total, len(weights), channels)
        accumulate_kernel[grid](*inputs, BLOCK=BLOCK, CHANNELS=width, num_warps=1)
    return total


def accumulate_backward(
    starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, values: Tensor, d_total: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and values."""
    d_weights, d_values = torch.empty_like(weights), torch.empty_like(values)
    channels = values.shape[1]
    inputs = (offsets, weights, values, d_total, d_weights, d_values, len(weights), channels)
    _along_rays(accumulate_backward_kernel, offsets, *inputs, CHANNELS=_channels(channels))
    return d_weights, d_values


def distortion_forward(starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """The loss of every ray [N]."""
    loss = weights.new_empty(len(offsets) - 1)
    _along_rays(distortion_kernel, offsets, starts, ends, offsets, weights, loss, len(weights))
    return loss


def distortion_backward(starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, d_loss: Tensor) -> Tensor:
    """The gradient of the weights."""
    d_weights = torch.empty_like(weights)
    _along_rays(distortion_backward_kernel, offsets, starts, ends, offsets, weights, d_loss, d_weights, len(weights))
    return d_weights


def resample(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None, padding: float) -> Tensor:
    """The new edges [N, count + 1]."""
    result = edges.new_empty(len(edges), count + 1)
    if result.numel():
        mass = (weights + padding).cumsum(dim=1)
        bins = weights.shape[1]
        resample_kernel[triton.cdiv(result.numel(), LANES),](
            edges, mass / mass[:, -1:], edges if jitter is None else jitter, result, result.numel(), bins, count,
            max(bins - 1, 1).bit_length(), JITTERED=jitter is not None, LANES=LANES, num_warps=4,
        )  # fmt: skip
    return result
