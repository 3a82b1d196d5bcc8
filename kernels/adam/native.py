"""The native kernel: C++ on contiguous float32 tensors on the CPU, changed in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import native_module

_Numbers = tuple[float, float, float, float]


def step(
    parameters: list[Tensor], gradients: list[Tensor], first: list[Tensor], second: list[Tensor],
    rows: Tensor | None, sizes: list[float], numbers: _Numbers,
) -> None:  # fmt: skip
    """Change parameters and moments; numbers are beta_1, beta_2, eps and the correction of the root."""
    count = len(parameters[0])
    tensors = ([tensor.view(count, -1) if tensor.numel() else tensor.new_empty(count, 0) for tensor in group]
               for group in (parameters, gradients, first, second))  # fmt: skip
    native_module().adam_step(*tensors, rows, sizes, *numbers, torch.get_num_threads())
