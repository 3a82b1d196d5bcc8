"""The parts of a Wan video transformer (Wan Team, arXiv 2503.20314), with the parameter names of diffusers.

How tokens look at one another is left to the caller: a block makes queries, keys and values, and `Mix` combines them,
over a whole clip, block-causally, or over a stream's cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from dreamkit_kernels.modulate import modulate
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.embeddings import timestep_features
from dreamkit.video.wan_config import WanConfig

KeysValues = tuple[Tensor, Tensor]
"""[B, L, H, D] each."""

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each [B, N, H, D] and not yet rotated -> [B, N, H, D] in the dtype of v."""


def at_least_single(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64: norms and gates lose too much in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Layer norm with a scale and shift for each group of tokens (all, or those of a frame), in float32.

    Args:
        x: [B, G * n, D] tokens, group after group.
        scale: [B, G, D].
        shift: [B, G, D].
        eps: added to the variance.

    Returns:
        [B, G * n, D], float32 (or float64).
    """
    groups = at_least_single(x).reshape(scale.shape[0] * scale.shape[1], -1, x.shape[-1])
    out = modulate(groups, scale.flatten(0, 1).to(groups.dtype), shift.flatten(0, 1).to(groups.dtype), eps)
    return out.view_as(x)


def gated(x: Tensor, gate: Tensor) -> Tensor:
    """`x` [B, G * n, D] times a gate [B, G, D] for each group of tokens."""
    return (at_least_single(x).unflatten(1, (gate.shape[1], -1)) * gate[:, :, None]).flatten(1, 2)


def _normalised(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """RMS norm in the dtype of its weights, so that under autocast it is one fused operation in float32."""
    return norm(x.to(norm.weight.dtype))


class WanAttention(nn.Module):
    """Projections of multi-head attention, queries and keys RMS-normalised over all heads.

    Args:
        dim: width of a token and of all heads.
        heads: number of heads.
        eps: of the norms.
    """

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q, self.norm_k = (nn.RMSNorm(dim, eps=eps) for _ in range(2))

    def queries(self, x: Tensor) -> Tensor:
        """[B, N, dim] to [B, N, H, D]."""
        return _normalised(self.to_q(x), self.norm_q).unflatten(2, (self.heads, -1))

    def keys_values(self, x: Tensor) -> KeysValues:
        """[B, N, dim] to keys and values, [B, N, H, D] each."""
        keys, values = _normalised(self.to_k(x), self.norm_k), self.to_v(x)
        return keys.unflatten(2, (self.heads, -1)), values.unflatten(2, (self.heads, -1))

    def output(self, x: Tensor) -> Tensor:
        """[B, N, H, D] to [B, N, dim]."""
        return self.to_out[0](x.flatten(2))


class _GeluProjection(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two layers with a GELU between, [..., dim] to [..., dim]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # The place between is a dropout in diffusers: it has a number and no weights.
        self.net = nn.ModuleList([_GeluProjection(dim, hidden), nn.Identity(), nn.Linear(hidden, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.net[2](self.net[0](x))


class TwoLayers(nn.Module):
    """linear_2(activation(linear_1(x))), as diffusers embeds timesteps (SiLU) and text (GELU).

    Args:
        inputs: width of x.
        dim: width of the result.
        activation: between the layers.
    """

    def __init__(self, inputs: int, dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, dim)
        self.activation = activation
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, in the dtype of its weights."""
        return self.linear_2(self.activation(self.linear_1(x.to(self.linear_1.weight.dtype))))


class ConditionEmbedder(nn.Module):
    """Timesteps to modulations, and text tokens to the width of the transformer."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLayers(config.freq_dim, config.dim, nn.SiLU())
        self.time_proj = nn.Linear(config.dim, config.dim * 6)
        self.text_embedder = TwoLayers(config.text_dim, config.dim, nn.GELU(approximate="tanh"))

    def forward(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Embed timesteps [B, G].

        Returns:
            The embedding [B, G, dim], and the modulation of every block [B, G, 6, dim].
        """
        embedded = self.time_embedder(timestep_features(timesteps, self.freq_dim)).to(self.time_proj.weight.dtype)
        return embedded, self.time_proj(functional.silu(embedded)).unflatten(2, (6, -1))


class WanBlock(nn.Module):
    """Self-attention, cross-attention to the text, and a feed-forward layer; the time modulates the first and last."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.attn1 = WanAttention(dim, config.num_attention_heads, config.eps)
        self.attn2 = WanAttention(dim, config.num_attention_heads, config.eps)
        self.norm2 = nn.LayerNorm(dim, config.eps) if config.cross_attn_norm else None
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x: Tensor,  # [B, G * n, dim]
        text: Tensor | KeysValues,  # [B, L, dim] embedded tokens, or the keys and values that were made of them
        modulation: Tensor,  # [B, G, 6, dim]
        layer: int,
        mix: Mix,
    ) -> Tensor:
        """Apply the block; returns [B, G * n, dim] in the dtype of x."""
        table = at_least_single(self.scale_shift_table)[None] + at_least_single(modulation)
        shift, scale, gate, late_shift, late_scale, late_gate = table.unbind(dim=2)
        tokens = modulated_norm(x, scale, shift, self.eps).to(x.dtype)
        mixed = mix(layer, self.attn1.queries(tokens), *self.attn1.keys_values(tokens))
        x = (at_least_single(x) + gated(self.attn1.output(mixed), gate)).to(x.dtype)
        x = x + self._look_at_text(x, text)
        tokens = modulated_norm(x, late_scale, late_shift, self.eps).to(x.dtype)
        return (at_least_single(x) + gated(self.ffn(tokens), late_gate)).to(x.dtype)

    def _look_at_text(self, x: Tensor, text: Tensor | KeysValues) -> Tensor:
        tokens = x
        if self.norm2 is not None:
            wide = at_least_single(x)
            weight, bias = (item.to(wide.dtype) for item in (self.norm2.weight, self.norm2.bias))
            tokens = functional.layer_norm(wide, wide.shape[-1:], weight, bias, self.eps).to(x.dtype)
        keys, values = self.attn2.keys_values(text) if isinstance(text, Tensor) else text
        return self.attn2.output(scaled_attention(self.attn2.queries(tokens), keys, values))


def scaled_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over all keys; [B, N, H, D] each, in the dtype of v."""
    queries, keys, values = (item.to(v.dtype).transpose(1, 2) for item in (q, k, v))
    return functional.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
