"""The native backend: `dreamkit_kernels._native` as torch operators, float32 on the CPU. op.py checks the arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import native_module


@torch.library.custom_op("dreamkit::modulate", mutates_args=())
def _modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    native_module().modulate_forward(plain(x), plain(scale), plain(shift), eps, out, torch.get_num_threads())
    return out


@torch.library.custom_op("dreamkit::modulate_backward", mutates_args=())
def _backward(x: Tensor, scale: Tensor, shift: Tensor, eps: float, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    results = [torch.empty_like(item, memory_format=torch.contiguous_format) for item in (x, scale, shift)]
    inputs = [plain(item) for item in (x, scale, shift)]
    native_module().modulate_backward(*inputs, eps, plain(d_out), *results, torch.get_num_threads())
    return results[0], results[1], results[2]


@_modulate.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.eps = inputs[3]
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, ctx.eps, d_out), None


_modulate.register_autograd(_gradients, setup_context=_save)


def modulate_native(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`reference.modulate_reference` for float32 tensors on the CPU."""
    return _modulate(x, scale, shift, eps)
