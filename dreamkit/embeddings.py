"""Sinusoidal features of timesteps, which the networks of pictures and of videos have in common."""

import math

import torch
from torch import Tensor


def timestep_features(timesteps: Tensor, dim: int) -> Tensor:
    """Cos and sin of t 10000^(-k / half), k = 0 .. half - 1 (Vaswani et al., arXiv 1706.03762).

    Args:
        timesteps: [...] in [0, 1000], fractions allowed.
        dim: even number of features, twice `half`.

    Returns:
        [..., dim] float32, cosines first.
    """
    half = dim // 2
    index = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    angles = timesteps.float()[..., None] * torch.exp(index * -math.log(10000))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
