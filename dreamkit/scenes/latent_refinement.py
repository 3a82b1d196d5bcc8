"""What rays can't know of a latent picture: a small network over the whole of it, which starts as nothing.

After the refinement layer of Park et al., "ED-NeRF", ICLR 2024, arXiv 2310.02712: an encoder looks at whole pictures,
so its latents have borders, halos and long ranges that a field, which is asked ray by ray, can't have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.checks import require
from dreamkit.config import Schedule

_GROUPS = 8
_MOST_KEYS = 32
"""Places along a side of what attention looks at; more are averaged, for its cost is places times keys."""


@dataclass(frozen=True)
class RefinementConfig:
    """Size of the refinement layer, and how it learns."""

    width: int = 32
    """Channels of the layer, a multiple of 8 up to 512; 0 for no layer."""
    refinement_rate: Schedule = field(default=Schedule(0.0, 1e-3, 1e-4, 1.0))
    """Learning rate of the layer."""

    def __post_init__(self) -> None:
        width = self.width
        fits = isinstance(width, int) and 0 <= width <= 512 and width % _GROUPS == 0
        require("The refinement's width", fits, width, "a multiple of 8 from 0 to 512")
        rate = Schedule.parse(self.refinement_rate)
        object.__setattr__(self, "refinement_rate", rate)
        lowest = min(rate.start_value, rate.end_value)
        require("The refinement's refinement_rate", lowest >= 0, rate.data(), "no value below 0")


class RefinementLayer(nn.Module):
    """z + f(z): a residual block and self-attention, as in the middle of an autoencoder.

        h = conv3(z);  h = h + conv3(s(conv3(s(h))));  h = h + attention(h);  f(z) = conv3(s(h))

    with s(h) = SiLU(GroupNorm(h)). The last convolution starts at zero: the layer starts as the identity.

    Args:
        channels: C of the latents.
        width: channels inside, a multiple of 8.
        generator: the only source of randomness.
    """

    def __init__(self, channels: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.enter = _convolution(channels, width, 3, generator)
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for _ in range(4))
        self.first = _convolution(width, width, 3, generator)
        self.second = _convolution(width, width, 3, generator)
        self.query = _convolution(width, width, 1, generator)
        self.key_value = _convolution(width, 2 * width, 1, generator)
        self.mix = _convolution(width, width, 1, generator)
        self.leave = _convolution(width, channels, 3, generator)
        nn.init.zeros_(self.leave.weight)

    def forward(
        self,
        latents: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """Refined latents [B, C, h, w], of any h and w."""
        hidden = self.enter(latents)
        block = self.first(self._activated(0, hidden))
        hidden = hidden + self.second(self._activated(1, block))
        hidden = hidden + self._attended(self.norms[2](hidden))
        refined: Tensor = latents + self.leave(self._activated(3, hidden))
        return refined

    def _activated(self, norm: int, hidden: Tensor) -> Tensor:
        return functional.silu(self.norms[norm](hidden))

    def _attended(self, hidden: Tensor) -> Tensor:
        """Attention of all places to all, these averaged where they are many."""
        height, width = hidden.shape[-2:]
        seen = functional.adaptive_avg_pool2d(hidden, (min(height, _MOST_KEYS), min(width, _MOST_KEYS)))
        query = self.query(hidden).flatten(2).transpose(1, 2)
        key, value = self.key_value(seen).flatten(2).transpose(1, 2).chunk(2, dim=-1)
        found = functional.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.mix(found.transpose(1, 2).reshape(hidden.shape))
        return mixed


def _convolution(inputs: int, outputs: int, size: int, generator: torch.Generator) -> nn.Conv2d:
    """A convolution that keeps the picture's size: normal weights of variance 1 / fan-in, no bias at first."""
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, size, padding=size // 2)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs * size**2), generator=generator)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
