"""Penalties on the Gaussians themselves, each a mean over N so that a weight means the same at any count."""

from __future__ import annotations

import torch
from torch import Tensor


def opacity_sparsity(
    opacities: Tensor,  # [N] in [0, 1]
) -> Tensor:
    """Few Gaussians should be visible at all: (1/N) sum log(1 + 2 o^2).

    The Cauchy penalty of SNeRG (arXiv 2103.14645), on opacities instead of densities: it presses on weak and
    strong ones alike, as a count does, rather than most on the strongest, as a square does.

    Args:
        opacities: [N] in [0, 1].

    Returns:
        A scalar, 0 (nothing) to log 3 (all opaque).
    """
    return torch.log1p(2.0 * opacities.square()).mean()


def opacity_entropy(
    opacity_logits: Tensor,  # [N]
) -> Tensor:
    """A Gaussian should be there or not: (1/N) sum -o log o - (1 - o) log(1 - o), with o = sigmoid(logit).

    Surfaces come out sharper, and a mesh cut from them is less arbitrary. As in SuGaR (arXiv 2311.12775).

    Args:
        opacity_logits: [N] any values (logits keep the logarithms finite).

    Returns:
        A scalar, 0 (all 0 or 1) to log 2 (all 0.5).
    """
    opacities = torch.sigmoid(opacity_logits)
    softplus = torch.nn.functional.softplus
    return (opacities * softplus(-opacity_logits) + (1.0 - opacities) * softplus(opacity_logits)).mean()


def scale_size(
    log_scales: Tensor,  # [N, 3] log of world units
    limit: float,
) -> Tensor:
    """No Gaussian should be larger than `limit`: (1/N) sum_i max(0, max_k s_ik / limit - 1)^2.

    Args:
        log_scales: [N, 3] log standard deviations along the axes.
        limit: the largest standard deviation that costs nothing, world units, > 0.

    Returns:
        A scalar, >= 0.
    """
    largest = log_scales.amax(dim=-1).exp()
    return torch.relu(largest / limit - 1.0).square().mean()


def scale_anisotropy(
    log_scales: Tensor,  # [N, 3] log of world units
    limit: float,
) -> Tensor:
    """No Gaussian should be a needle: (1/N) sum_i max(0, log(max_k s_ik / mid_k s_ik) - log limit).

    After PhysGaussian (arXiv 2311.12198), with two changes. The ratio is of the largest axis to the MIDDLE
    one: a flat disc is what a surface wants, a needle is what shows as a spike. And its logarithm is taken,
    which keeps the gradient on log-scales at 1 instead of the ratio itself.

    Args:
        log_scales: [N, 3] log standard deviations along the axes.
        limit: the largest ratio that costs nothing, >= 1.

    Returns:
        A scalar, >= 0.
    """
    ordered = log_scales.sort(dim=-1).values
    return torch.relu(ordered[:, 2] - ordered[:, 1] - torch.log(ordered.new_tensor(limit))).mean()
