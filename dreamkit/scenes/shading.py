"""Light on a scene in training, so that a picture tells shape and not only paint.

After DreamFusion (Poole et al., arXiv 2209.14988).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Lighting:
    """How each of B views is lit.

    Args:
        lamps: [B, 3] positions, world units.
        lit: [B] 1 where the lamp is on, else 0: plain albedo.
        painted: [B] 1 where the albedo shows, 0 where everything is white.
        ambient: light from everywhere where the lamp is on, 0 to 1.
    """

    lamps: Tensor
    lit: Tensor
    painted: Tensor
    ambient: float

    @property
    def is_plain(self) -> bool:
        """Whether every view shows plain albedo, so that no normal is needed."""
        return not bool(self.lit.any())

    def shade(
        self,
        albedo: Tensor,  # [S, 3]
        normals: Tensor,  # [S, 3] unit, outward
        points: Tensor,  # [S, 3]
        views: Tensor,  # [S] int64
    ) -> Tensor:
        """Colours [S, 3]: albedo (ambient + (1 - ambient) max(0, n . l)) with l the direction to the view's lamp."""
        towards = functional.normalize(self.lamps[views] - points, dim=1)
        light = self.ambient + (1 - self.ambient) * (normals * towards).sum(dim=1, keepdim=True).clamp_min(0)
        painted, lit = self.painted[views, None], self.lit[views, None]
        return (painted * albedo + 1 - painted) * (lit * light + 1 - lit)


def draw_lighting(
    positions: Tensor,  # [B, 3] of the cameras
    lambertian: float,
    textureless: float,
    ambient: float,
    generator: torch.Generator,
) -> Lighting:
    """Light for B views: each is plain, lit, or lit and white, at random.

    A lamp stands at its camera's distance, in the camera's direction plus a normal offset of standard deviation 0.5 an
    axis, so that what faces the camera is lit most often.

    Args:
        positions: of the cameras, world units.
        lambertian: share of lit views.
        textureless: share of lit and white views.
        ambient: see `Lighting`.
        generator: the only source of randomness.
    """
    count = len(positions)
    draw = torch.rand(count, generator=generator).to(positions)
    offsets = torch.randn(count, 3, generator=generator).to(positions)
    distance = positions.norm(dim=1, keepdim=True)
    lamps = functional.normalize(positions / distance + 0.5 * offsets, dim=1) * distance
    white = draw < textureless
    lit = draw < textureless + lambertian
    return Lighting(lamps, lit.float(), (~white).float(), ambient)
