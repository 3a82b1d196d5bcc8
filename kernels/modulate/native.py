"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import native_module


def forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The modulated tokens [B, N, D]."""
    out = torch.empty_like(x)
    native_module().modulate_forward(x, scale, shift, eps, out, torch.get_num_threads())
    return out


def backward(x: Tensor, scale: Tensor, shift: Tensor, d_out: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and shift."""
    d_x, d_scale, d_shift = (torch.empty_like(item) for item in (x, scale, shift))
    native_module().modulate_backward(x, scale, shift, eps, d_out, d_x, d_scale, d_shift, torch.get_num_threads())
    return d_x, d_scale, d_shift
