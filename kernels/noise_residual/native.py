"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import native_module


def _rows(tensor: Tensor) -> Tensor:
    """Samples as rows of numbers, [B, M]."""
    return tensor.reshape(len(tensor), -1) if tensor.numel() else tensor.new_empty(len(tensor), 0)


def add_noise(x: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """The noisy samples."""
    out = torch.empty_like(x)
    native_module().add_noise(_rows(x), _rows(noise), levels, _rows(out), torch.get_num_threads())
    return out


def residual(positive: Tensor, negative: Tensor, noisy: Tensor, noise: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted residual, and the clean sample."""
    out, clean = torch.empty_like(noisy), torch.empty_like(noisy)
    inputs = map(_rows, (positive, negative, noisy, noise))
    native_module().guided_residual(*inputs, table, _rows(out), _rows(clean), torch.get_num_threads())
    return out, clean
