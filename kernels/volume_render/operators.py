"""The kernels of a backend as torch operators: `torch.compile` sees through them. Each differentiates once."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels

OPERATION = "volume_render"


def _of(backend: str) -> ModuleType:
    return kernels(OPERATION, backend)


def _maybe(item: Tensor | None) -> Tensor | None:
    return None if item is None else plain(item)


@torch.library.custom_op("dreamkit::march", mutates_args=())
def march(
    origins: Tensor,
    directions: Tensor,
    occupied: Tensor,
    box: Tensor,
    jitter: Tensor | None,
    step: float,
    near: float,
    far: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.march_reference` by a backend's kernels, with the corners of the box as [2, 3]: starts, ends, offsets.

    A count first, then what was counted: nothing is larger than what comes out.
    """
    module = _of(backend)
    inputs = (*map(plain, (origins, directions, occupied, box)), _maybe(jitter), step, near, far)
    counts, found = module.march_count(*inputs)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return *module.march_fill(found, offsets, int(offsets[-1])), offsets


@march.register_fake
def _(origins: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = torch.library.get_ctx().new_dynamic_size()
    offsets = origins.new_empty(len(origins) + 1, dtype=torch.int64)
    return origins.new_empty(count), origins.new_empty(count), offsets


@torch.library.custom_op("dreamkit::render_weights", mutates_args=())
def weights(densities: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """`reference.weights_reference` by a backend's kernels."""
    return _of(backend).weights_forward(*map(plain, (starts, ends, offsets, densities)))


@torch.library.custom_op("dreamkit::render_weights_backward", mutates_args=())
def _weights_backward(
    densities: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, made: Tensor, d_weights: Tensor, backend: str
) -> Tensor:
    return _of(backend).weights_backward(*map(plain, (starts, ends, offsets, densities, made, d_weights)))


@torch.library.custom_op("dreamkit::accumulate", mutates_args=())
def accumulate(weights: Tensor, values: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """`reference.accumulate_reference` by a backend's kernels."""
    return _of(backend).accumulate_forward(*map(plain, (starts, ends, offsets, weights, values)))


@torch.library.custom_op("dreamkit::accumulate_backward", mutates_args=())
def _accumulate_backward(
    weights: Tensor, values: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, d_total: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return _of(backend).accumulate_backward(*map(plain, (starts, ends, offsets, weights, values, d_total)))


@torch.library.custom_op("dreamkit::distortion", mutates_args=())
def distortion(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """`reference.distortion_reference` by a backend's kernels."""
    return _of(backend).distortion_forward(*map(plain, (starts, ends, offsets, weights)))


@torch.library.custom_op("dreamkit::distortion_backward", mutates_args=())
def _distortion_backward(
    weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, d_loss: Tensor, backend: str
) -> Tensor:
    return _of(backend).distortion_backward(*map(plain, (starts, ends, offsets, weights, d_loss)))


@torch.library.custom_op("dreamkit::resample", mutates_args=())
def resample(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None, padding: float, backend: str) -> Tensor:
    """`reference.resample_reference` by a backend's kernels."""
    return _of(backend).resample(plain(edges), plain(weights), count, _maybe(jitter), padding)


@weights.register_fake
@_weights_backward.register_fake
@_distortion_backward.register_fake
def _(values: Tensor, *rest: Any) -> Tensor:
    return values.new_empty(values.shape)


@accumulate.register_fake
def _(weights: Tensor, values: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, backend: str) -> Tensor:
    return values.new_empty(len(offsets) - 1, values.shape[1])


@_accumulate_backward.register_fake
def _(weights: Tensor, values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return weights.new_empty(weights.shape), values.new_empty(values.shape)


@distortion.register_fake
def _(weights: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor, backend: str) -> Tensor:
    return weights.new_empty(len(offsets) - 1)


@resample.register_fake
def _(edges: Tensor, weights: Tensor, count: int, *rest: Any) -> Tensor:
    return edges.new_empty(len(edges), count + 1)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[-1]
    ctx.save_for_backward(*inputs[:-1])


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[-1]
    ctx.save_for_backward(*inputs[:-1], output)


def _weights_gradient(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
    return _weights_backward(*ctx.saved_tensors, d_weights, ctx.backend), None, None, None, None


def _accumulate_gradient(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
    return *_accumulate_backward(*ctx.saved_tensors, d_total, ctx.backend), None, None, None, None


def _distortion_gradient(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
    return _distortion_backward(*ctx.saved_tensors, d_loss, ctx.backend), None, None, None, None


weights.register_autograd(_weights_gradient, setup_context=_save_all)
accumulate.register_autograd(_accumulate_gradient, setup_context=_save_inputs)
distortion.register_autograd(_distortion_gradient, setup_context=_save_inputs)
