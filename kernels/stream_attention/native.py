"""The native kernels: C++ on contiguous float32 or bfloat16 tensors on the CPU. Outputs are allocated here.

Forwards, bfloat16 is multiplied as it is where the processor can; elsewhere, with blocks, and backwards, the same
numbers go through the kernels of float32, turned queries and keys rounded as they are in bfloat16.
"""

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
    module, threads = native_module(), torch.get_num_threads()
    log_sum = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    if q.dtype == torch.bfloat16 and blocks is None and module.has_bfloat16():
        out = torch.empty_like(q)
        module.attention_forward_half(*_bits(q, k, v), q_turn, k_turn, frames, *_bits(out), log_sum, threads)
        return out, log_sum
    wide = torch.empty_like(q, dtype=torch.float32)
    inputs = (q.float(), k.float(), v.float(), q_turn, k_turn, frames, blocks, block, q.dtype == torch.bfloat16)
    module.attention_forward(*inputs, wide, log_sum, threads)
    return wide.to(q.dtype), log_sum


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
    q_wide, k_wide, v_wide = q.float(), k.float(), v.float()
    gradients = torch.empty_like(q_wide), torch.zeros_like(k_wide), torch.zeros_like(v_wide)
    inputs = (q_wide, k_wide, v_wide, q_turn, k_turn, frames, blocks, block, q.dtype == torch.bfloat16)
    known = (out.float(), log_sum, d_out.float())
    native_module().attention_backward(*inputs, *known, *gradients, torch.get_num_threads())
    d_q, d_k, d_v = (item.to(q.dtype) for item in gradients)
    return d_q, d_k, d_v


def _bits(*items: Tensor) -> list[Tensor]:
    """The same memory as whole numbers: a dtype that every array library knows."""
    return [item.view(torch.uint16) for item in items]
