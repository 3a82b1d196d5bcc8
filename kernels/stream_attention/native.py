"""The native backend: `dreamkit_kernels._native` as torch operators, float32 on the CPU. op.py checks the arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import native_module


@torch.library.custom_op("dreamkit::stream_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    log_sum = q.new_empty(q.shape[0], q.shape[2], q.shape[1])
    inputs = [plain(item) for item in (q, k, v, q_turn, k_turn, frames)]
    allowed = None if blocks is None else plain(blocks)
    native_module().attention_forward(*inputs, allowed, block, out, log_sum, torch.get_num_threads())
    return out, log_sum


@torch.library.custom_op("dreamkit::stream_attention_backward", mutates_args=())
def _attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    block: int,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    d_q = torch.empty_like(q, memory_format=torch.contiguous_format)
    d_k, d_v = (torch.zeros_like(item, memory_format=torch.contiguous_format) for item in (k, v))
    inputs = [plain(item) for item in (q, k, v, q_turn, k_turn, frames)]
    allowed = None if blocks is None else plain(blocks)
    known = [plain(item) for item in (out, log_sum, d_out)]
    native_module().attention_backward(*inputs, allowed, block, *known, d_q, d_k, d_v, torch.get_num_threads())
    return d_q, d_k, d_v


@_attend.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], q.shape[1])


@_attend_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.block = inputs[7]
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, d_out: Tensor, d_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, out, log_sum = ctx.saved_tensors
    return *_attend_backward(*inputs, ctx.block, out, log_sum, d_out), None, None, None, None, None


_attend.register_autograd(_gradients, setup_context=_save)


def _turns(angles: Tensor) -> Tensor:
    """Cosine and sine of every angle side by side, float32: [N, D / 2] to [N, D]."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1).float()


def attend_native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_angles: Tensor,
    k_angles: Tensor,
    frames: list[int],
    blocks: Tensor | None,
    block: int,
) -> Tensor:
    """`reference.attend_reference` over the stored frames listed, for float32 tensors on the CPU."""
    chosen = torch.tensor(frames, dtype=torch.int64)
    return _attend(q, k, v, _turns(q_angles), _turns(k_angles), chosen, blocks, block)[0]
