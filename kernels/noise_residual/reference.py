"""The definitions, in torch: any float type or device."""

from __future__ import annotations

from torch import Tensor


def over(values: Tensor, like: Tensor) -> Tensor:
    """Numbers of samples [B] in the shape that broadcasts over [B, ...]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def add_noise_reference(x: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """`add_noise` in plain torch operations; levels are [B, 2]: alpha, sigma."""
    alpha, sigma = (over(level, x) for level in levels.to(x.dtype).unbind(dim=1))
    return alpha * x + sigma * noise


def residual_reference(
    positive: Tensor, negative: Tensor, noisy: Tensor, noise: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    """`guided_residual` in plain torch operations; the table is [B, 6], in the order of `Coefficients`."""
    columns = [over(column, noisy) for column in table.to(noisy.dtype).unbind(dim=1)]
    scale, eps_noisy, eps_output, clean_noisy, clean_output, weight = columns
    output = negative + scale * (positive - negative)
    residual = weight * (eps_noisy * noisy + eps_output * output - noise)
    return residual, clean_noisy * noisy + clean_output * output
