"""The native backend: `dreamkit_kernels._native` as torch operators, float32 on the CPU. op.py checks the arguments."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import native_module
from .reference import window


@functools.cache
def _window() -> Tensor:
    return torch.tensor(window(), dtype=torch.float32)


def _planes(x: Tensor) -> Tensor:
    """What the extension takes: [B * C, H, W], detached and contiguous."""
    return plain(x).flatten(0, 1)


@torch.library.custom_op("dreamkit::ssim", mutates_args=())
def _ssim(x: Tensor, y: Tensor) -> Tensor:
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    native_module().ssim_forward(_planes(x), _planes(y), _window(), result.flatten(0, 1), torch.get_num_threads())
    return result


@torch.library.custom_op("dreamkit::ssim_backward", mutates_args=())
def _backward(x: Tensor, y: Tensor, d_map: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor, Tensor]:
    results = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if wanted else x.new_empty(0)
        for wanted in (of_x, of_y)
    ]
    outputs = [result.flatten(0, 1) if result.ndim == 4 else None for result in results]
    native_module().ssim_backward(_planes(x), _planes(y), _window(), _planes(d_map), *outputs, torch.get_num_threads())
    return results[0], results[1]


@_ssim.register_fake
def _(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(x: Tensor, y: Tensor, d_map: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if of_x else 0), x.new_empty(x.shape if of_y else 0)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_map: Tensor) -> tuple[Tensor | None, Tensor | None]:
    of_x, of_y = ctx.needs_input_grad
    d_x, d_y = _backward(*ctx.saved_tensors, d_map, of_x, of_y)
    return d_x if of_x else None, d_y if of_y else None


_ssim.register_autograd(_gradients, setup_context=_save)


def ssim_native(x: Tensor, y: Tensor) -> Tensor:
    """`reference.ssim_reference` for float32 tensors on the CPU."""
    return _ssim(x, y)
