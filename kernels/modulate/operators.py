"""The kernels of a backend as torch operators: `torch.compile` sees through them and autograd differentiates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels


@torch.library.custom_op("dreamkit::modulate", mutates_args=())
def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float, backend: str) -> Tensor:
    """`reference.modulate_reference` by a backend's kernels."""
    return kernels("modulate", backend).forward(plain(x), plain(scale), plain(shift), eps)


@torch.library.custom_op("dreamkit::modulate_backward", mutates_args=())
def _backward(
    x: Tensor, scale: Tensor, shift: Tensor, d_out: Tensor, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels("modulate", backend).backward(*map(plain, (x, scale, shift, d_out)), eps)


@modulate.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _(x: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(scale.shape), scale.new_empty(scale.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[3:]
    ctx.save_for_backward(*inputs[:3])


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, d_out, *ctx.options), None, None


modulate.register_autograd(_gradients, setup_context=_save)
