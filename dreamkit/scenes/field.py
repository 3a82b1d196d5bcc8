"""The field of a NeRF: a hash grid and two small layers, which tell density (or signed distance) and colour.

After Instant NGP (Mueller et al., arXiv 2201.05989); signed distances after VolSDF (Yariv et al., arXiv 2106.12052) and
NeuS (Wang et al., arXiv 2106.10689); the ball of fog it starts as, after DreamFusion (Poole et al., arXiv 2209.14988).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.nerf_config import NerfConfig


class HashNetwork(nn.Module):
    """A hash grid over the cube [-half, half]^3 and two layers behind it.

    Args:
        config: layout of the grid and width of the layers.
        half: half the edge of the cube, world units.
        outputs: numbers a point.
        generator: the only source of randomness.
        smooth: whether first derivatives are continuous.
    """

    def __init__(
        self, config: HashNetworkConfig, half: float, outputs: int, generator: torch.Generator, smooth: bool = False
    ) -> None:
        from dreamkit_kernels.hash_grid import HashGrid  # type: ignore[import-not-found]

        super().__init__()
        self.extent = half
        self.grid: Any = HashGrid(
            levels=config.levels,
            features=config.features,
            log2_size=config.log2_size,
            base_resolution=config.coarsest,
            growth=config.growth,
            smoothstep=smooth,
        )
        self.table = nn.Parameter(self.grid.make_table(generator))
        self.inner = nn.Parameter(_layer(config.hidden, self.grid.width + 3, generator))
        # Close to zero: a scene starts as its blob, in gray.
        self.outer = nn.Parameter(0.1 * _layer(outputs, config.hidden, generator))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self,
        points: Tensor,  # [N, 3] world units
    ) -> Tensor:
        """Outputs [N, outputs]; the position itself enters beside the grid, so that coarse shape needs no table."""
        from dreamkit_kernels.hash_grid import encode

        encoded = encode(points * (0.5 / self.extent) + 0.5, self.table, self.grid)
        hidden = functional.softplus(functional.linear(torch.cat([encoded, points], dim=1), self.inner), beta=20.0)
        return functional.linear(hidden, self.outer, self.bias)


def _layer(outputs: int, inputs: int, generator: torch.Generator) -> Tensor:
    """He initialisation: normal with variance 2 / inputs."""
    return torch.randn(outputs, inputs, generator=generator) * math.sqrt(2.0 / inputs)


class Field(nn.Module):
    """What is at a point: a raw value that density or signed distance comes from, and a colour.

        density:  sigma = density_scale softplus(raw),  raw = network + max(blob (1 - |x| / blob_radius), blob_floor)
        signed:   f = network / 10 + |x| - blob_radius                     (negative inside)

    Args:
        config: its kind and size.
        generator: the only source of randomness.
    """

    def __init__(self, config: NerfConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        # The normal of a signed distance is a derivative: let it be continuous.
        self.network = HashNetwork(config.grid, config.half, 4, generator, smooth=config.signed)

    def forward(
        self,
        points: Tensor,  # [N, 3] world units
    ) -> tuple[Tensor, Tensor]:
        """Raw values [N] (signed distances in a signed mode) and colours [N, 3] in [0, 1]."""
        out = self.network(points)
        return self._shaped(out[:, 0], points), torch.sigmoid(out[:, 1:])

    def raw(self, points: Tensor) -> Tensor:
        """Raw values [N], or signed distances, alone."""
        return self._shaped(self.network(points)[:, 0], points)

    def colors(self, points: Tensor) -> Tensor:
        """Colours [N, 3] alone."""
        return torch.sigmoid(self.network(points)[:, 1:])

    def _shaped(self, raw: Tensor, points: Tensor) -> Tensor:
        config = self.config
        radius = points.square().sum(dim=1).add(1e-12).sqrt()
        if config.signed:
            return 0.1 * raw + radius - config.blob_radius
        return raw + (config.blob * (1 - radius / config.blob_radius)).clamp_min(config.blob_floor)

    def density(
        self,
        raw: Tensor,  # [N]
        sharpness: float,
    ) -> Tensor:
        """Density of raw values, per world unit.

        VolSDF: sigma = s Psi(-f s) with Psi the distribution function of Laplace's law (its beta is 1 / s). NeuS has no
        density at a point; where one is needed (occupancy, samplers, surfaces) its limit for small steps against the
        distance is taken, s sigmoid(-s f).

        Args:
            raw: [N], from `raw` or `forward`.
            sharpness: s.
        """
        config = self.config
        if not config.signed:
            return config.density_scale * functional.softplus(raw)
        scaled = raw * sharpness
        if config.geometry == "neus":
            return sharpness * torch.sigmoid(-scaled)
        tail = 0.5 * torch.exp(-scaled.abs())
        return sharpness * torch.where(scaled > 0, tail, 1 - tail)

    def raw_of(self, density: float) -> float:
        """The raw value that has a density, in density mode: log(exp(sigma / density_scale) - 1)."""
        ratio = density / self.config.density_scale
        return ratio + math.log(-math.expm1(-ratio))

    def inside(
        self,
        points: Tensor,  # [N, 3] world units
        level: float,
    ) -> Tensor:
        """A field that is negative inside the surface: the signed distance, or `level` - raw for a density."""
        raw = self.raw(points)
        return raw if self.config.signed else level - raw

    def normals(
        self,
        points: Tensor,  # [N, 3] world units
        differentiable: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Outward unit normals and the gradient that they come from, both [N, 3].

        The gradient of the signed distance, or minus that of the raw density. `normals="finite"` takes the four corners
        of a tetrahedron of half a finest cell about the point, which smooths what the grid can't resolve anyway
        (Li et al., "Neuralangelo", arXiv 2306.03092); "analytic" differentiates.

        Args:
            points: where.
            differentiable: whether losses on them shall reach the parameters.
        """
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            gradient = self._differences(points) if self.config.normals == "finite" else self._derivative(points)
        if not self.config.signed:
            gradient = -gradient
        return functional.normalize(gradient, dim=1, eps=1e-6), gradient

    def _differences(self, points: Tensor) -> Tensor:
        # f(x + h c_k) over the corners c_k of a tetrahedron: sum_k c_k c_k^T = 4 I.
        reach = self.config.half / self.config.grid.finest
        corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
        values = self.raw((points[:, None] + reach * corners).reshape(-1, 3)).reshape(-1, 4)
        return values @ corners / (4 * reach)

    def _derivative(self, points: Tensor) -> Tensor:
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            at = points.detach().requires_grad_(True)
            raw = self.raw(at)
            (gradient,) = torch.autograd.grad(raw.sum(), at, create_graph=create)
        return gradient
