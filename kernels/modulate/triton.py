"""The Triton kernels: contiguous float32, float16 or bfloat16 tensors on a GPU; sums are in float32.

A program holds whole tokens, so that a row is read once. The gradients of scale and shift are summed over `ROWS` tokens
a program, and the parts by torch: no atomics, so equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Tokens of one program of the backward pass."""


@triton.jit
def _normalise(x_ptr, row, dim, eps, channel, BLOCK: tl.constexpr):
    """Row `row` of x [rows, dim] with mean 0 and variance 1, and the factor that made it so."""
    x = tl.load(x_ptr + row * dim + channel, mask=channel < dim, other=0.0).to(tl.float32)
    centred = tl.where(channel < dim, x - tl.sum(x, axis=0) / dim, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / dim + eps)
    return centred * inverse, inverse


@triton.jit
def forward_kernel(x_ptr, scale_ptr, shift_ptr, out_ptr, tokens, dim, eps, BLOCK: tl.constexpr):
    """One token: out = normalised (1 + scale) + shift."""
    row = tl.program_id(0).to(tl.int64)
    sample = row // tokens
    channel = tl.arange(0, BLOCK)
    inside = channel < dim
    normal, _ = _normalise(x_ptr, row, dim, eps, channel, BLOCK)
    scale = tl.load(scale_ptr + sample * dim + channel, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + sample * dim + channel, mask=inside, other=0.0).to(tl.float32)
    out = normal * (1.0 + scale) + shift
    tl.store(out_ptr + row * dim + channel, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    x_ptr,
    scale_ptr,
    d_out_ptr,
    d_x_ptr,
    d_scale_ptr,
    d_shift_ptr,
    tokens,
    dim,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`ROWS` tokens of one sample: their d_x, and their part of d_scale and d_shift [B, parts, D]."""
    part, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < dim
    gain = 1.0 + tl.load(scale_ptr + sample * dim + channel, mask=inside, other=0.0).to(tl.float32)
    d_scale = tl.zeros([BLOCK], tl.float32)
    d_shift = tl.zeros([BLOCK], tl.float32)
    for token in range(part * ROWS, min(part * ROWS + ROWS, tokens)):
        row = sample * tokens + token
        normal, inverse = _normalise(x_ptr, row, dim, eps, channel, BLOCK)
        d_out = tl.load(d_out_ptr + row * dim + channel, mask=inside, other=0.0).to(tl.float32)
        d_normal = d_out * gain
        mean = tl.sum(d_normal, axis=0) / dim
        along = tl.sum(d_normal * normal, axis=0) / dim
        d_x = inverse * (d_normal - mean - normal * along)
        tl.store(d_x_ptr + row * dim + channel, d_x.to(d_x_ptr.dtype.element_ty), mask=inside)
        d_scale += d_out * normal
        d_shift += d_out
    place = (sample * tl.num_programs(0) + part) * dim + channel
    tl.store(d_scale_ptr + place, d_scale, mask=inside)
    tl.store(d_shift_ptr + place, d_shift, mask=inside)


def _launch(dim: int) -> dict[str, int]:
    """The block that holds a row, and warps for about 8 channels a thread."""
    block = triton.next_power_of_2(dim)
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 16)}


def forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The modulated tokens [B, N, D]."""
    batch, tokens, dim = x.shape
    out = torch.empty_like(x)
    if x.numel():
        forward_kernel[(batch * tokens,)](x, scale, shift, out, tokens, dim, eps, **_launch(dim))
    return out


def backward(x: Tensor, scale: Tensor, shift: Tensor, d_out: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, scale and shift."""
    batch, tokens, dim = x.shape
    parts = triton.cdiv(tokens, ROWS)
    d_x = torch.empty_like(x)
    d_scale, d_shift = (torch.zeros(batch, parts, dim, device=x.device) for _ in range(2))
    if x.numel():
        results = (d_x, d_scale, d_shift)
        backward_kernel[(parts, batch)](x, scale, d_out, *results, tokens, dim, eps, ROWS=ROWS, **_launch(dim))
    return d_x, d_scale.sum(dim=1).to(x.dtype), d_shift.sum(dim=1).to(x.dtype)
