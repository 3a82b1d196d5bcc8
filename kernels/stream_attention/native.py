"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import native_module


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    """The attended values, and the logarithm of each softmax's sum; see `operators.stream_attention`."""
    out = torch.empty_like(q)
    log_sum = q.new_empty(q.shape[0], q.shape[2], q.shape[1])
    inputs = (q, k, v, q_turn, k_turn, frames, blocks, block)
    native_module().attention_forward(*inputs, out, log_sum, torch.get_num_threads())
    return out, log_sum


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    inputs = (q, k, v, q_turn, k_turn, frames, blocks, block)
    native_module().attention_backward(*inputs, out, log_sum, d_out, d_q, d_k, d_v, torch.get_num_threads())
    return d_q, d_k, d_v
