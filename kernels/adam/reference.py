"""The definition of a masked step of Adam, in torch: any float type or device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def adam_reference(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    rows: Tensor | None,
    sizes: Sequence[float],
    beta_first: float,
    beta_second: float,
    eps: float,
    correction: float,
) -> None:
    """`adam_step` in plain torch operations, in place; see there.

    The size of a parameter's step is its rate / (1 - beta_1^t), and the correction of the root sqrt(1 - beta_2^t).
    """
    for parameter, gradient, m, v, size in zip(parameters, gradients, first, second, sizes, strict=True):
        mean = beta_first * m + (1 - beta_first) * gradient
        square = beta_second * v + (1 - beta_second) * gradient.square()
        moved = parameter - size * mean / (square.sqrt() / correction + eps)
        for target, value in ((m, mean), (v, square), (parameter, moved)):
            if rows is not None:
                value = torch.where(rows.reshape(-1, *(1,) * (target.ndim - 1)), value, target)
            target.copy_(value)
