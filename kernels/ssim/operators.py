"""The kernels of a backend as torch operators: `torch.compile` sees through them and autograd differentiates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels


@torch.library.custom_op("dreamkit::ssim", mutates_args=())
def ssim(x: Tensor, y: Tensor, backend: str) -> Tensor:
    """`reference.ssim_reference` by a backend's kernels."""
    return kernels("ssim", backend).forward(plain(x), plain(y))


@torch.library.custom_op("dreamkit::ssim_backward", mutates_args=())
def _backward(x: Tensor, y: Tensor, d_map: Tensor, of_x: bool, of_y: bool, backend: str) -> tuple[Tensor, Tensor]:
    results = kernels("ssim", backend).backward(plain(x), plain(y), plain(d_map), of_x, of_y)
    return tuple(x.new_empty(0) if result is None else result for result in results)


@ssim.register_fake
def _(x: Tensor, y: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(x: Tensor, y: Tensor, d_map: Tensor, of_x: bool, of_y: bool, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if of_x else 0), x.new_empty(x.shape if of_y else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[2]
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, d_map: Tensor) -> tuple[Tensor | None, ...]:
    of_x, of_y = ctx.needs_input_grad[:2]
    d_x, d_y = _backward(*ctx.saved_tensors, d_map, of_x, of_y, ctx.backend)
    return d_x if of_x else None, d_y if of_y else None, None


ssim.register_autograd(_gradients, setup_context=_save)
