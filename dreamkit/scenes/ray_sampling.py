"""Where along a ray to look: a grid that remembers where something was, or a proposal field that learns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.errors import CheckpointError
from dreamkit.scenes.field import Field, HashNetwork
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.ray_losses import interlevel
from dreamkit.scenes.rendering import Rendering

_VISIBLE = 0.01
"""A sample of less opacity than this is empty space to the occupancy grid."""


@dataclass(frozen=True)
class RayBundle:
    """N rays through the cube of a scene.

    Args:
        origins: [N, 3] world units.
        directions: [N, 3] unit.
        near: world units along a ray, from where the cube may begin.
        far: where it has ended.
        jitter: [N] in [0, 1], shifts of the samples; `None` puts every ray's at the same place.
    """

    origins: Tensor
    directions: Tensor
    near: float
    far: float
    jitter: Tensor | None = None

    def points(self, samples: Any) -> Tensor:
        """[S, 3] middles of packed samples."""
        rays = samples.rays
        return self.origins[rays] + samples.middles[:, None] * self.directions[rays]


class OccupancySampler:
    """Equal steps along a ray through the cells that were dense lately. After Instant NGP (arXiv 2201.05989).

    A cell keeps the largest density that was found in it, which fades: v <- max(decay v, sigma(x)). It is occupied
    while a step through it would have an opacity of more than 1 %, or more than the mean cell where all is thin.

    Args:
        config: resolution, step and decay.
        values: [R, R, R] densities of the cells.
    """

    def __init__(self, config: NerfConfig, values: Tensor) -> None:
        self.config = config
        self.values = values

    @classmethod
    def full(cls, config: NerfConfig, device: torch.device) -> OccupancySampler:
        """A grid that calls everything occupied, until the first update."""
        return cls(config, torch.full((config.occupancy_resolution,) * 3, 1e6, device=device))

    @property
    def occupied(self) -> Tensor:
        """[R, R, R] bool: the dense cells and their neighbours, which a surface can reach before the next update."""
        threshold = min(float(self.values.mean()), _VISIBLE / self.config.step)
        dense = (self.values > threshold).float()[None, None]
        return functional.max_pool3d(dense, 3, stride=1, padding=1)[0, 0] > 0

    def sample(self, rays: RayBundle) -> Any:
        """Packed intervals."""
        from dreamkit_kernels.volume_render import OccupancyGrid, Rays, march  # type: ignore[import-not-found]

        half = rays.origins.new_full((3,), self.config.half)
        grid = OccupancyGrid(self.occupied, -half, half)
        bundle = Rays(rays.origins, rays.directions)
        return march(bundle, grid, self.config.step, rays.near, rays.far, rays.jitter)

    @torch.no_grad()
    def update(self, field: Field, sharpness: float, generator: torch.Generator, share: float = 1.0) -> None:
        """Look into cells again, at a random place in each.

        Args:
            field: what is there now.
            sharpness: of a signed distance.
            generator: the only source of randomness.
            share: how many of the cells, 0 to 1.
        """
        size, device = self.config.occupancy_resolution, self.values.device
        total = size**3
        cells = torch.arange(total)
        if share < 1:
            cells = torch.randperm(total, generator=generator)[: round(total * share)]
        place = torch.stack([cells // size**2, cells // size % size, cells % size], dim=1)
        inside = (place + torch.rand(len(cells), 3, generator=generator)) / size
        points = ((2 * inside - 1) * self.config.half).to(device)
        density = field.density(field.raw(points), sharpness)
        flat, cells = self.values.view(-1), cells.to(device)
        flat[cells] = torch.maximum(flat[cells] * self.config.occupancy_decay, density)

    def refresh(self, field: Field, sharpness: float, generator: torch.Generator) -> None:
        """Forget, and look into every cell."""
        self.values.zero_()
        self.update(field, sharpness, generator)


class ProposalSampler(nn.Module):
    """A histogram from a small field of density, then samples where it has weight. After mip-NeRF 360.

    Args:
        config: samples a ray.
        generator: the only source of randomness.
    """

    def __init__(self, config: NerfConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        grid = config.grid
        finest = max(grid.coarsest, grid.finest // 2)
        small = replace(grid, levels=min(grid.levels, 5), finest=finest, hidden=16)
        self.network = HashNetwork(small, config.half, 1, generator)

    def forward(self, rays: RayBundle) -> tuple[Any, Tensor, Tensor]:
        """Packed intervals, `samples` a ray, with the proposal's edges [N, P + 1] and weights [N, P]."""
        from dreamkit_kernels.volume_render import Samples, render_weights, resample

        count, half = self.config.samples, self.config.half
        near, far = box_range(rays.origins, rays.directions, half)
        shift = 0.0 if rays.jitter is None else (rays.jitter[:, None] - 0.5) / count
        share = torch.linspace(0, 1, count + 1, device=near.device)[None] + shift
        share[:, 0], share[:, -1] = 0.0, 1.0
        edges = near[:, None] + (far - near)[:, None] * share
        coarse = Samples.dense(edges)
        raw = self.network(rays.points(coarse))[:, 0]
        density = self.config.density_scale * functional.softplus(raw)
        weights = render_weights(density, coarse).view(len(edges), count)
        fine = resample(edges, weights.detach(), count, rays.jitter, padding=1e-3)
        return Samples.dense(fine), edges, weights


def proposal_loss(
    samples: Any,
    weights: Tensor,  # [S]
    edges: Tensor,  # [N, P + 1]
    proposal_weights: Tensor,  # [N, P]
) -> Tensor:
    """What a proposal has to learn from the field's weights on the samples it gave, the same number a ray."""
    rays = len(edges)
    fine = torch.cat([samples.starts.view(rays, -1), samples.ends.view(rays, -1)[:, -1:]], dim=1)
    return interlevel(fine, weights.view(rays, -1), edges, proposal_weights)


def box_range(
    origins: Tensor,  # [N, 3]
    directions: Tensor,  # [N, 3]
    half: float,
) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the cube [-half, half]^3: near and far [N], equal (0) for rays that miss it."""
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    first, second = (-half - origins) / safe, (half - origins) / safe
    near = torch.minimum(first, second).amax(dim=1).clamp_min(0)
    far = torch.maximum(first, second).amin(dim=1)
    hit = far > near
    return near * hit, far * hit


@dataclass(frozen=True)
class OccupancyChange:
    """What an update of the occupancy grid left."""

    share: float
    """Cells that are occupied, 0 to 1."""

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        return {"occupied": self.share}


class OccupancyUpkeep:
    """Updates the occupancy grid of a NeRF every few steps.

    Args:
        config: how often.
        generator: the only source of randomness (its state is part of `state()`).
    """

    def __init__(self, config: NerfConfig, generator: torch.Generator) -> None:
        self.config = config
        self.generator = generator

    def before_backward(self, rendering: Rendering) -> None:
        """Nothing to prepare."""

    def after_step(self, scene: Any, rendering: Rendering, step: int, total_steps: int) -> OccupancyChange:
        """Update a quarter of the cells if it is time."""
        if self.config.sampler == "occupancy" and (step + 1) % self.config.occupancy_interval == 0:
            scene.update_occupancy((step + 1) / total_steps, total_steps, self.generator, share=0.25)
        return OccupancyChange(scene.occupied_share)

    def state(self) -> dict[str, Tensor]:
        """The generator; the grid itself is part of the scene."""
        return {"generator": self.generator.get_state().clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises:
            CheckpointError: it is missing.
        """
        if "generator" not in state:
            raise CheckpointError("The state of the occupancy grid is incomplete.", "Use an earlier checkpoint.")
        self.generator.set_state(state["generator"].detach().to("cpu", torch.uint8))
