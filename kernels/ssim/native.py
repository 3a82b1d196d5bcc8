"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..dispatch import native_module
from .reference import window


@functools.cache
def _window() -> Tensor:
    return torch.tensor(window(), dtype=torch.float32)


def forward(x: Tensor, y: Tensor) -> Tensor:
    """The map [B, C, H, W]."""
    result = torch.empty_like(x)
    planes = [item.flatten(0, 1) for item in (x, y, result)]
    native_module().ssim_forward(*planes[:2], _window(), planes[2], torch.get_num_threads())
    return result


def backward(x: Tensor, y: Tensor, d_map: Tensor, of_x: bool, of_y: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of those pictures that want one."""
    d_x, d_y = (torch.empty_like(x) if wanted else None for wanted in (of_x, of_y))
    outputs = [None if result is None else result.flatten(0, 1) for result in (d_x, d_y)]
    planes = [item.flatten(0, 1) for item in (x, y, d_map)]
    native_module().ssim_backward(*planes[:2], _window(), planes[2], *outputs, torch.get_num_threads())
    return d_x, d_y
