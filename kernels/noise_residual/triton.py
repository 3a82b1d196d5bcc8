"""The Triton kernels: contiguous float32, float16 or bfloat16 samples on a GPU, computed in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers of one program."""


@triton.jit
def _block(ptr, place, inside):
    return tl.load(ptr + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def add_noise_kernel(x_ptr, noise_ptr, levels_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """A block of one sample."""
    sample = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = sample * size + index
    alpha, sigma = tl.load(levels_ptr + 2 * sample), tl.load(levels_ptr + 2 * sample + 1)
    out = alpha * _block(x_ptr, place, index < size) + sigma * _block(noise_ptr, place, index < size)
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=index < size)


@triton.jit
def residual_kernel(
    positive_ptr, negative_ptr, noisy_ptr, noise_ptr, table_ptr, out_ptr, clean_ptr, size, BLOCK: tl.constexpr
):
    """A block of one sample; the table's rows are in the order of `op.Coefficients`."""
    sample = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    place = sample * size + index
    row = table_ptr + 6 * sample
    scale, eps_noisy, eps_output = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    clean_noisy, clean_output, weight = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    negative, noisy = _block(negative_ptr, place, inside), _block(noisy_ptr, place, inside)
    output = negative + scale * (_block(positive_ptr, place, inside) - negative)
    residual = weight * (eps_noisy * noisy + eps_output * output - _block(noise_ptr, place, inside))
    clean = clean_noisy * noisy + clean_output * output
    tl.store(out_ptr + place, residual.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(clean_ptr + place, clean.to(clean_ptr.dtype.element_ty), mask=inside)


def _launch(kernel: triton.JITFunction, like: Tensor, *tensors: Tensor) -> None:
    if like.numel():
        size = like[0].numel()
        kernel[triton.cdiv(size, BLOCK), len(like)](*tensors, size, BLOCK=BLOCK)


def add_noise(x: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """The noisy samples."""
    out = torch.empty_like(x)
    _launch(add_noise_kernel, x, x, noise, levels, out)
    return out


def residual(positive: Tensor, negative: Tensor, noisy: Tensor, noise: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted residual, and the clean sample."""
    out, clean = torch.empty_like(noisy), torch.empty_like(noisy)
    _launch(residual_kernel, noisy, positive, negative, noisy, noise, table, out, clean)
    return out, clean
