"""The kernels of a backend as torch operators: `torch.compile` sees through them and autograd differentiates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels

OPERATION = "stream_attention"


def _plain(*items: Tensor | None) -> list[Tensor | None]:
    return [None if item is None else plain(item) for item in items]


@torch.library.custom_op("dreamkit::stream_attention", mutates_args=())
def stream_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    block: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """`reference.attend_reference` over some stored frames, by a backend's kernels.

    Args:
        q: [B, Nq, H, D], not rotated.
        k: [B, Ns, H, D], everything that is stored, not rotated.
        v: [B, Ns, H, D].
        q_turn: [Nq, D] float32, cosine and sine of every angle side by side.
        k_turn: [Nk, D] float32, the same of the keys that are visible.
        frames: [F] int64, the stored frames that are visible, each once.
        blocks: [B, H, ceil(Nq / block), ceil(Nk / block)] bool, or None for all.
        block: side of the blocks, tokens.
        backend: "native" or "triton".

    Returns:
        out [B, Nq, H, D] and log_sum [B, H, Nq] float32: log2 of the sum of 2^score over the keys.
    """
    return kernels(OPERATION, backend).forward(*_plain(q, k, v, q_turn, k_turn, frames, blocks), block)


@torch.library.custom_op("dreamkit::stream_attention_backward", mutates_args=())
def _backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = _plain(q, k, v, q_turn, k_turn, frames, blocks, out, log_sum, d_out)
    return kernels(OPERATION, backend).backward(*inputs, block)


@stream_attention.register_fake
def _(q: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.options = inputs[7:]
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, d_out: Tensor, d_log_sum: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, d_out, *ctx.options), *(None,) * 6


stream_attention.register_autograd(_gradients, setup_context=_save)
