"""The native backend: `dreamkit_kernels._native` as torch operators, float32 on the CPU. op.py checks the arguments.

They are registered with `torch.library`, so that `torch.compile` sees through them. Each differentiates once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import native_module
from .types import OccupancyGrid, Rays, Samples


@torch.library.custom_op("dreamkit::march", mutates_args=())
def _march(
    origins: Tensor,
    directions: Tensor,
    occupied: Tensor,
    box: Tensor,
    jitter: Tensor | None,
    step: float,
    near: float,
    far: float,
) -> tuple[Tensor, Tensor, Tensor]:
    module, threads = native_module(), torch.get_num_threads()
    shift = None if jitter is None else plain(jitter)
    inputs = (*(plain(item) for item in (origins, directions, occupied, box)), shift, step, near, far)
    counts = torch.empty(len(origins), dtype=torch.int64)
    module.march_count(*inputs, counts, threads)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    starts, ends = (origins.new_empty(int(offsets[-1])) for _ in range(2))
    module.march_fill(*inputs, offsets, starts, ends, threads)
    return starts, ends, offsets


@_march.register_fake
def _(origins: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    offsets = origins.new_empty(len(origins) + 1, dtype=torch.int64)
    return origins.new_empty(count), origins.new_empty(count), offsets


@torch.library.custom_op("dreamkit::render_weights", mutates_args=())
def _weights(densities: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    weights = torch.empty_like(densities, memory_format=torch.contiguous_format)
    inputs = [plain(item) for item in (starts, ends, offsets, densities)]
    native_module().weights_forward(*inputs, weights, torch.get_num_threads())
    return weights


@torch.library.custom_op("dreamkit::render_weights_backward", mutates_args=())
def _weights_backward(
    densities: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, d_weights: Tensor
) -> Tensor:
    d_densities = torch.empty_like(densities, memory_format=torch.contiguous_format)
    inputs = [plain(item) for item in (starts, ends, offsets, densities, weights, d_weights)]
    native_module().weights_backward(*inputs, d_densities, torch.get_num_threads())
    return d_densities


@torch.library.custom_op("dreamkit::accumulate", mutates_args=())
def _accumulate(weights: Tensor, values: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    total = values.new_empty(len(offsets) - 1, values.shape[1])
    inputs = [plain(item) for item in (starts, ends, offsets, weights, values)]
    native_module().accumulate_forward(*inputs, total, torch.get_num_threads())
    return total


@torch.library.custom_op("dreamkit::accumulate_backward", mutates_args=())
def _accumulate_backward(
    weights: Tensor, values: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, d_total: Tensor
) -> tuple[Tensor, Tensor]:
    d_weights, d_values = (torch.empty_like(item, memory_format=torch.contiguous_format) for item in (weights, values))
    inputs = [plain(item) for item in (starts, ends, offsets, weights, values, d_total)]
    native_module().accumulate_backward(*inputs, d_weights, d_values, torch.get_num_threads())
    return d_weights, d_values


@torch.library.custom_op("dreamkit::distortion", mutates_args=())
def _distortion(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    loss = weights.new_empty(len(offsets) - 1)
    inputs = [plain(item) for item in (starts, ends, offsets, weights)]
    native_module().distortion_forward(*inputs, loss, torch.get_num_threads())
    return loss


@torch.library.custom_op("dreamkit::distortion_backward", mutates_args=())
def _distortion_backward(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, d_loss: Tensor) -> Tensor:
    d_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    inputs = [plain(item) for item in (starts, ends, offsets, weights, d_loss)]
    native_module().distortion_backward(*inputs, d_weights, torch.get_num_threads())
    return d_weights


@torch.library.custom_op("dreamkit::resample", mutates_args=())
def _resample(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None, padding: float) -> Tensor:
    result = edges.new_empty(len(edges), count + 1)
    shift = None if jitter is None else plain(jitter)
    native_module().resample(plain(edges), plain(weights), shift, padding, result, torch.get_num_threads())
    return result


@_weights.register_fake
@_weights_backward.register_fake
@_distortion_backward.register_fake
def _(values: Tensor, *rest: Any) -> Tensor:
    return values.new_empty(values.shape)


@_accumulate.register_fake
def _(weights: Tensor, values: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    return values.new_empty(len(offsets) - 1, values.shape[1])


@_accumulate_backward.register_fake
def _(weights: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), values.new_empty(values.shape)


@_distortion.register_fake
def _(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
    return weights.new_empty(len(offsets) - 1)


@_resample.register_fake
def _(edges: Tensor, weights: Tensor, count: int, *rest: Any) -> Tensor:
    return edges.new_empty(len(edges), count + 1)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _weights_gradient(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
    return _weights_backward(*ctx.saved_tensors, d_weights), None, None, None


def _accumulate_gradient(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
    return *_accumulate_backward(*ctx.saved_tensors, d_total), None, None, None


def _distortion_gradient(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
    return _distortion_backward(*ctx.saved_tensors, d_loss), None, None, None


_weights.register_autograd(_weights_gradient, setup_context=_save_all)
_accumulate.register_autograd(_accumulate_gradient, setup_context=_save_inputs)
_distortion.register_autograd(_distortion_gradient, setup_context=_save_inputs)


def march_native(
    rays: Rays, grid: OccupancyGrid, step: float, near: float, far: float, jitter: Tensor | None
) -> Samples:
    """`reference.march_reference` for float32 tensors on the CPU."""
    box = torch.stack([grid.low, grid.high])
    return Samples(*_march(rays.origins, rays.directions, grid.occupied, box, jitter, step, near, far))


def weights_native(densities: Tensor, samples: Samples) -> Tensor:
    """`reference.weights_reference` for float32 tensors on the CPU."""
    return _weights(densities, samples.starts, samples.ends, samples.offsets)


def accumulate_native(weights: Tensor, values: Tensor, samples: Samples) -> Tensor:
    """`reference.accumulate_reference` for float32 tensors on the CPU."""
    return _accumulate(weights, values, samples.starts, samples.ends, samples.offsets)


def distortion_native(weights: Tensor, samples: Samples) -> Tensor:
    """`reference.distortion_reference` for float32 tensors on the CPU."""
    return _distortion(weights, samples.starts, samples.ends, samples.offsets)


def resample_native(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None, padding: float) -> Tensor:
    """`reference.resample_reference` for float32 tensors on the CPU."""
    return _resample(edges, weights, count, jitter, padding)
