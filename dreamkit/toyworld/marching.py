"""Sphere tracing of a distance function along many rays at once.

J. C. Hart, "Sphere Tracing: A Geometric Method for the Antialiased Ray Tracing of Implicit Surfaces", 1996.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# A ray has arrived when it is this close to the surface, in world units (a pixel is about 0.02).
TOLERANCE = 5e-4
_MAX_STEPS = 96
# Rays that graze a surface would creep; a step is at least this long, and walks back if that was too far.
_MIN_STEP = 4e-3
# Finished rays are dropped this often: dropping costs about as much as a cheap distance evaluation.
_STEPS_BETWEEN_COMPACTIONS = 3


def march(
    distance: Callable[[Tensor, Tensor, Tensor], Tensor],
    origins: Tensor,  # [3, R] world units
    directions: Tensor,  # [3, R] unit vectors
    near: Tensor,  # [R] where each ray starts
    far: Tensor,  # [R] where each ray gives up
) -> tuple[Tensor, Tensor]:  # depth [R], hit [R] bool
    """Depth at which each ray meets the surface, and whether it does.

    A step is the distance itself, so a ray that went too far (a field that overestimates) walks back. At a hit the
    absolute distance is below 2 x `TOLERANCE`. Depth is `far` or beyond where there is no hit.
    """
    depth = near.clone()
    hit = torch.zeros_like(near, dtype=torch.bool)
    index = torch.arange(near.shape[0], device=near.device)
    # One packed tensor, so that a compaction is one gather: origin, direction, depth, far.
    state = torch.cat((origins, directions, near[None], far[None]))
    remaining = torch.full_like(near, torch.inf)
    for step in range(_MAX_STEPS):
        if index.numel() == 0:
            break
        ox, oy, oz, dx, dy, dz, t, end = state
        remaining = distance(torch.addcmul(ox, t, dx), torch.addcmul(oy, t, dy), torch.addcmul(oz, t, dz))
        t += torch.where(remaining > TOLERANCE, remaining.clamp(min=_MIN_STEP), remaining)
        if (step + 1) % _STEPS_BETWEEN_COMPACTIONS == 0:
            arrived = remaining.abs() < TOLERANCE
            finished = arrived | (t > end)
            depth[index] = t
            hit[index] = arrived & (t <= end)
            keep = (~finished).nonzero().squeeze(1)
            index, state, remaining = index[keep], state[:, keep], remaining[keep]
    if index.numel():
        # Grazing rays that creep along a surface: close enough counts as a hit.
        depth[index] = state[6]
        hit[index] = remaining.abs() < 2 * TOLERANCE
    return depth, hit


def march_cones(
    distance: Callable[[Tensor, Tensor, Tensor], Tensor],
    origins: Tensor,  # [3, R] world units
    directions: Tensor,  # [3, R] unit vectors
    near: Tensor,  # [R] where each cone starts
    far: Tensor,  # [R] where each cone gives up
    radius: Tensor,  # [R] of the cone at depth 0, world units
    spread: Tensor,  # [R] growth of the radius per unit of depth
) -> Tensor:  # [R]
    """Depth up to which a whole cone of rays is surely free; beyond `far` where the cone misses everything.

    One cone stands for a tile of neighbouring pixels, whose rays then start close to the surface.
    """
    result = near.clone()
    index = torch.arange(near.shape[0], device=near.device)
    state = torch.cat((origins, directions, near[None], far[None], radius[None], spread[None]))
    for step in range(_MAX_STEPS // 2):
        if index.numel() == 0:
            break
        ox, oy, oz, dx, dy, dz, t, end, base, growth = state
        width = torch.addcmul(base, growth, t)
        free = distance(torch.addcmul(ox, t, dx), torch.addcmul(oy, t, dy), torch.addcmul(oz, t, dz))
        free = free - width
        t += free.clamp(min=0.0) / (1.0 + growth)
        if (step + 1) % _STEPS_BETWEEN_COMPACTIONS == 0:
            result[index] = t
            keep = ((free > 0.2 * width) & (t < end)).nonzero().squeeze(1)
            index, state = index[keep], state[:, keep]
    if index.numel():
        result[index] = state[6]
    return result
