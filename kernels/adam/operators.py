"""The kernels of a backend as a torch operator that changes its arguments: `torch.compile` sees through it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels

OPERATION = "adam"


@torch.library.custom_op("dreamkit::adam", mutates_args=("parameters", "first", "second"))
def adam(
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
    backend: str,
) -> None:
    """`reference.adam_reference` by a backend's kernels."""
    changed = ([tensor.detach() for tensor in group] for group in (parameters, first, second))
    mask = None if rows is None else plain(rows)
    numbers = (beta_first, beta_second, eps, correction)
    targets, means, squares = changed
    kernels(OPERATION, backend).step(targets, [*map(plain, gradients)], means, squares, mask, list(sizes), numbers)


@adam.register_fake
def _(parameters: Sequence[Tensor], *rest: object) -> None:
    return None
