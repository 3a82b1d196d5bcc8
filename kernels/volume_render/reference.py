"""The definitions of volume rendering, in torch: any float type or device, differentiable any number of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .types import OccupancyGrid, Rays, Samples


def march_reference(
    rays: Rays, grid: OccupancyGrid, step: float, near: float, far: float, jitter: Tensor | None
) -> Samples:
    """`march` in plain torch operations; see there."""
    count, steps = len(rays.origins), math.ceil((far - near) / step)
    first = torch.arange(steps, device=rays.origins.device, dtype=rays.origins.dtype).expand(count, steps)
    starts = near + (first + (0 if jitter is None else jitter[:, None])) * step
    middles = starts + 0.5 * step
    points = rays.origins[:, None] + middles[..., None] * rays.directions[:, None]
    size = torch.tensor(grid.occupied.shape, device=points.device)
    cells = (points - grid.low) / (grid.high - grid.low) * size
    inside = ((cells >= 0) & (cells < size)).all(dim=-1) & (middles < far)  # NaN is nowhere
    index = torch.where(inside[..., None], cells, torch.zeros_like(cells)).long()
    kept = inside & grid.occupied[tuple(index.unbind(dim=-1))]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64, device=kept.device), kept.sum(dim=1).cumsum(dim=0)])
    return Samples(starts[kept], starts[kept] + step, offsets)


def _padded(values: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """Values [S] as rows of one length [N, M], filled up with zeros, and where the values are."""
    counts = samples.offsets.diff()
    longest = int(counts.max()) if len(counts) else 0
    present = torch.arange(longest, device=values.device) < counts[:, None]
    return values.new_zeros(present.shape).masked_scatter(present, values), present


def weights_reference(densities: Tensor, samples: Samples) -> Tensor:
    """`render_weights` in plain torch operations; see there."""
    optical, present = _padded(densities * (samples.ends - samples.starts), samples)
    before = optical.cumsum(dim=1) - optical
    return (torch.exp(-before) * -torch.expm1(-optical))[present]


def accumulate_reference(weights: Tensor, values: Tensor, samples: Samples) -> Tensor:
    """`accumulate` in plain torch operations; see there."""
    total = values.new_zeros(len(samples.offsets) - 1, values.shape[1])
    return total.index_add(0, samples.rays, weights[:, None] * values)


def distortion_reference(weights: Tensor, samples: Samples) -> Tensor:
    """`distortion_loss` in plain torch operations; see there."""
    (w, _), (m, _) = _padded(weights, samples), _padded(samples.middles, samples)
    length, _ = _padded(samples.ends - samples.starts, samples)
    apart = (m[:, :, None] - m[:, None, :]).abs()
    return torch.einsum("ni,nj,nij->n", w, w, apart) + (w.square() * length).sum(dim=1) / 3


def resample_reference(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None, padding: float) -> Tensor:
    """`resample` in plain torch operations; see there."""
    mass = weights + padding
    cdf = mass.cumsum(dim=1)
    cdf = torch.cat([torch.zeros_like(cdf[:, :1]), cdf / cdf[:, -1:]], dim=1)
    shift = 0.5 if jitter is None else jitter[:, None]
    u = (torch.arange(count + 1, device=edges.device, dtype=edges.dtype) + shift) / (count + 1)
    u = u.expand(len(edges), count + 1).contiguous()
    above = torch.searchsorted(cdf, u, right=True).clamp(1, cdf.shape[1] - 1)
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    share = ((u - low) / (high - low).clamp_min(torch.finfo(u.dtype).tiny)).clamp(0, 1)
    first, last = edges.gather(1, above - 1), edges.gather(1, above)
    return first + share * (last - first)
