"""The Triton kernel: contiguous float32 tensors on a GPU, changed in place. One launch a tensor."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers of one program."""


@triton.jit
def step_kernel(
    parameter_ptr, gradient_ptr, first_ptr, second_ptr, rows_ptr, total, width, step_size, beta_first, beta_second, eps,
    correction, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one tensor's numbers; `MASKED` leaves rows out."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < total
    if MASKED:
        inside &= tl.load(rows_ptr + index // width, mask=inside, other=0) != 0
    gradient = tl.load(gradient_ptr + index, mask=inside, other=0.0)
    first = beta_first * tl.load(first_ptr + index, mask=inside, other=0.0) + (1.0 - beta_first) * gradient
    second = tl.load(second_ptr + index, mask=inside, other=0.0)
    second = beta_second * second + (1.0 - beta_second) * gradient * gradient
    parameter = tl.load(parameter_ptr + index, mask=inside, other=0.0)
    parameter -= step_size * first / (tl.sqrt(second) / correction + eps)
    tl.store(first_ptr + index, first, mask=inside)
    tl.store(second_ptr + index, second, mask=inside)
    tl.store(parameter_ptr + index, parameter, mask=inside)


def step(
    parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor],
    rows: Tensor | None, sizes: list[float], numbers: tuple[float, float, float, float],
) -> None:  # fmt: skip
    """Change parameters and moments; numbers are beta_1, beta_2, eps and the correction of the root."""
    for parameter, gradient, m, v, size in zip(parameters, gradients, first, second, sizes, strict=True):
        total = parameter.numel()
        if not total:
            continue
        mask = parameter if rows is None else rows.view(torch.uint8)
        tensors = (parameter, gradient, m, v, mask)
        options = {"MASKED": rows is not None, "BLOCK": BLOCK}
        step_kernel[triton.cdiv(total, BLOCK),](*tensors, total, total // len(parameter), size, *numbers, **options)
