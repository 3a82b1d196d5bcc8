"""The definition of the hash grid encoding, in torch: any float type or device, differentiable any number of times."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from .types import PRIMES, HashGrid, Level


def entry_index(corner: Tensor, level: Level) -> Tensor:
    """Entries of grid points within their level: row-major where it is dense, else a spatial hash.

    Args:
        corner: [..., D] integer grid points, int64, >= 0.
        level: the level.

    Returns:
        [...] int64 in [0, level.size).
    """
    index = torch.zeros_like(corner[..., 0])
    for axis in range(corner.shape[-1]):
        if level.resolution:
            index = index + corner[..., axis] * level.resolution**axis
        else:
            index = index ^ (corner[..., axis] * PRIMES[axis] & 0xFFFFFFFF)
    return index % level.size


def encode_reference(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """`encode` in plain torch operations; see there."""
    finite = torch.isfinite(positions).all(dim=-1, keepdim=True)
    inside = torch.where(finite, positions, torch.zeros_like(positions)).clamp(0, 1)
    encoded = []
    for level in grid.plan:
        cell = inside * level.scale + level.shift
        lowest = cell.detach().floor()
        share = cell - lowest
        if grid.smoothstep:
            share = share * share * (3 - 2 * share)
        total = positions.new_zeros(len(positions), grid.features)
        for bits in itertools.product((0, 1), repeat=grid.dims):
            offset = torch.tensor(bits, device=positions.device)
            index = level.offset + entry_index(lowest.long() + offset, level)
            weight = torch.where(offset == 1, share, 1 - share).prod(dim=-1, keepdim=True)
            total = total + weight * table[index]
        encoded.append(total)
    return torch.where(finite, torch.cat(encoded, dim=-1), torch.zeros((), dtype=table.dtype, device=table.device))
