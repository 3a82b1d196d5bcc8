"""What is behind a scene when it is learned: a colour for every direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_HEIGHT = 16  # rows of the learned picture: only soft light, or objects would move into it
_HIDDEN = 16


class LearnedBackground(nn.Module):
    """A small network from direction to colour, after DreamFusion (arXiv 2209.14988); gray at the start.

    Args:
        generator: the only source of randomness.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(_HIDDEN, 9, generator=generator) / 3)
        self.outer = nn.Parameter(torch.zeros(3, _HIDDEN))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(
        self,
        directions: Tensor,  # [N, 3] unit
    ) -> Tensor:
        """Colours [N, 3] in [0, 1]."""
        hidden = functional.relu(functional.linear(_harmonics(directions), self.inner))
        return torch.sigmoid(functional.linear(hidden, self.outer, self.bias))


class EnvironmentMap(nn.Module):
    """A learned picture all round, 16 rows of latitude by 32 columns of longitude; gray at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.zeros(3, _HEIGHT, 2 * _HEIGHT))

    def forward(
        self,
        directions: Tensor,  # [N, 3] unit
    ) -> Tensor:
        """Colours [N, 3] in [0, 1], bilinear between the picture's points; up is the first row, +z its middle."""
        longitude = torch.atan2(directions[:, 0], directions[:, 2]) / math.pi
        latitude = torch.asin(directions[:, 1].clamp(-1, 1)) / (0.5 * math.pi)
        # One column from the other side at either end, so that there is no seam behind.
        columns = 2 * _HEIGHT
        wrapped = torch.cat([self.picture[..., -1:], self.picture, self.picture[..., :1]], dim=2)
        place = torch.stack([longitude * columns / (columns + 2), -latitude], dim=1)
        picked = functional.grid_sample(
            wrapped[None], place[None, None], mode="bilinear", padding_mode="border", align_corners=False
        )
        return torch.sigmoid(picked[0, :, 0].T)


def _harmonics(d: Tensor) -> Tensor:
    """The real spherical harmonics up to degree 2, unnormalised: [N, 9]."""
    x, y, z = d.unbind(dim=1)
    return torch.stack([torch.ones_like(x), x, y, z, x * y, y * z, x * z, x * x - y * y, 3 * z * z - 1], dim=1)
