"""The definition of structural similarity, in torch: any float type or device, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2


def window() -> list[float]:
    """Weights of the Gaussian window, eleven that add up to one."""
    place = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    return (weights / weights.sum()).tolist()


def blur(x: Tensor) -> Tensor:
    """Gaussian means of [B, C, H, W]; beyond the border there is zero."""
    channels = x.shape[1]
    line = torch.tensor(window(), dtype=x.dtype, device=x.device).expand(channels, 1, 1, WINDOW)
    across = functional.conv2d(x, line, padding=(0, WINDOW // 2), groups=channels)
    return functional.conv2d(across, line.transpose(2, 3), padding=(WINDOW // 2, 0), groups=channels)


def ssim_reference(x: Tensor, y: Tensor) -> Tensor:
    """`ssim` in plain torch operations; see there."""
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    return likeness / ((mean_x**2 + mean_y**2 + C1) * (variance_x + variance_y + C2))
