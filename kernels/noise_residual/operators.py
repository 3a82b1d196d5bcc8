"""The kernels of a backend as torch operators: `torch.compile` sees through them. Adding noise has a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels

OPERATION = "noise_residual"


@torch.library.custom_op("dreamkit::add_noise", mutates_args=())
def add_noise(x: Tensor, noise: Tensor, levels: Tensor, backend: str) -> Tensor:
    """`reference.add_noise_reference` by a backend's kernels."""
    return kernels(OPERATION, backend).add_noise(plain(x), plain(noise), plain(levels))


@torch.library.custom_op("dreamkit::guided_residual", mutates_args=())
def residual(
    positive: Tensor, negative: Tensor, noisy: Tensor, noise: Tensor, table: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """`reference.residual_reference` by a backend's kernels."""
    return kernels(OPERATION, backend).residual(*map(plain, (positive, negative, noisy, noise, table)))


@add_noise.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@residual.register_fake
def _(positive: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return positive.new_empty(positive.shape), positive.new_empty(positive.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    (levels,) = ctx.saved_tensors
    alpha, sigma = levels.to(d_out.dtype).reshape(-1, 2, *(1,) * (d_out.ndim - 1)).unbind(dim=1)
    of_x, of_noise = ctx.needs_input_grad[:2]
    return alpha * d_out if of_x else None, sigma * d_out if of_noise else None, None, None


add_noise.register_autograd(_gradients, setup_context=_save)
