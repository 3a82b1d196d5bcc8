"""The definition of attention over a stream's cache, in torch: any float type or device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn pairs of channels: (a, b) -> (a cos - b sin, a sin + b cos).

    Args:
        x: [B, N, H, D].
        angles: [N, D / 2] radians.
    """
    cos, sin = (part.to(x.dtype)[:, None] for part in (angles.cos(), angles.sin()))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, q_angles: Tensor, k_angles: Tensor, allowed: Tensor | None
) -> Tensor:
    """softmax(rotate(q) rotate(k)^T / sqrt(D)) v, a head at a time.

    Args:
        q: [B, Nq, H, D], not rotated.
        k: [B, Nk, H, D], not rotated.
        v: [B, Nk, H, D].
        q_angles: [Nq, D / 2].
        k_angles: [Nk, D / 2].
        allowed: [B or 1, H or 1, Nq, Nk] bool, or `None` for all. A query that may see nothing gets zero.

    Returns:
        [B, Nq, H, D].
    """
    queries, keys, values = (item.transpose(1, 2) for item in (rotate(q, q_angles), rotate(k, k_angles), v))
    out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
    if allowed is not None:
        out = out.masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)
    return out.transpose(1, 2)
