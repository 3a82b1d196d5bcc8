"""Penalties on what rays see, each a mean, so that a weight means the same at any number of rays."""

from __future__ import annotations

import torch
from torch import Tensor


def opacity_sparsity(
    opacities: Tensor,  # any shape, in [0, 1]
) -> Tensor:
    """Less should be there: mean sqrt(o^2 + 0.01). As threestudio regularises DreamFusion (arXiv 2209.14988).

    Returns:
        A scalar, 0.1 (nothing) to 1.005 (all opaque).
    """
    return (opacities.square() + 0.01).sqrt().mean()


def opacity_entropy(
    opacities: Tensor,  # any shape, in [0, 1]
) -> Tensor:
    """A pixel should be full or empty: mean -o log o - (1 - o) log(1 - o).

    Returns:
        A scalar, 0 (all 0 or 1) to log 2; opacities within 1e-3 of 0 or 1 get no gradient.
    """
    o = opacities.clamp(1e-3, 1 - 1e-3)
    return -(o * o.log() + (1 - o) * (1 - o).log()).mean()


def orientation(
    weights: Tensor,  # [S]
    normals: Tensor,  # [S, 3] unit
    directions: Tensor,  # [S, 3] unit, from the camera
    rays: int,
) -> Tensor:
    """What is seen should face the camera: (1/R) sum_s w_s max(0, n_s . d_s)^2.

    The weights are held fixed, as DreamFusion does, or the penalty would make things vanish instead of turn. Verbin et
    al., "Ref-NeRF" (arXiv 2112.03907), equation 11.

    Args:
        weights: what each sample adds to its pixel.
        normals: outward.
        directions: of the samples' rays.
        rays: R, how many rays there are.

    Returns:
        A scalar, 0 to 1.
    """
    facing_away = (normals * directions).sum(dim=1).clamp_min(0)
    return (weights.detach() * facing_away.square()).sum() / max(rays, 1)


def eikonal(
    gradients: Tensor,  # [N, 3]
) -> Tensor:
    """A signed distance rises by one a unit: mean (|grad f| - 1)^2. Gropp et al. (arXiv 2002.10099)."""
    return (gradients.square().sum(dim=1).add(1e-12).sqrt() - 1).square().mean()


def interlevel(
    edges: Tensor,  # [N, K + 1] ascending
    weights: Tensor,  # [N, K]
    proposal_edges: Tensor,  # [N, P + 1] ascending
    proposal_weights: Tensor,  # [N, P]
) -> Tensor:
    """A proposal should cover what the field found: mean over rays of sum_k max(0, w_k - bound_k)^2 / (w_k + eps).

    bound_k is the sum of the proposal's weights over the intervals that touch interval k. Only the proposal learns from
    it. Barron et al., "Mip-NeRF 360" (arXiv 2111.12077), equation 13.
    """
    edges, weights = edges.detach().contiguous(), weights.detach()
    total = torch.cat([torch.zeros_like(proposal_weights[:, :1]), proposal_weights.cumsum(dim=1)], dim=1)
    last = proposal_edges.shape[1] - 1
    proposal_edges = proposal_edges.contiguous()
    first = (torch.searchsorted(proposal_edges, edges[:, :-1].contiguous(), right=True) - 1).clamp(0, last)
    behind = torch.searchsorted(proposal_edges, edges[:, 1:].contiguous()).clamp(0, last)
    bound = total.gather(1, behind) - total.gather(1, first)
    return ((weights - bound).clamp_min(0).square() / (weights + 1e-5)).sum(dim=1).mean()
