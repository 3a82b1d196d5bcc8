"""The public operation: argument checks, then the backend that fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape
from ..dispatch import choose_backend
from . import operators
from .reference import adam_reference


@dataclass(frozen=True)
class Adam:
    """The constants of Adam."""

    beta_first: float = 0.9
    """Decay of the mean of gradients, from 0 to below 1."""
    beta_second: float = 0.999
    """Decay of the mean of their squares, from 0 to below 1."""
    eps: float = 1e-8
    """Added to the root, >= 0."""

    def __post_init__(self) -> None:
        for name, value in (("beta_first", self.beta_first), ("beta_second", self.beta_second)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}.")
        if not 0 <= self.eps < math.inf:
            raise ValueError(f"eps must be at least 0 and finite, got {self.eps}.")


@torch.no_grad()
def adam_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    rates: Sequence[float],
    step: int,
    constants: Adam | None = None,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """One step of Adam on several tensors of N rows (means, scales, colours ... of N Gaussians), in place.

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        p <- p - rate / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)

    Rows that the mask leaves out keep parameters and moments as they are: a Gaussian that no view of the batch saw has
    no gradient, which is not the same as a gradient of zero. All rows together is `torch.optim.Adam`.

    Args:
        parameters: [N, ...] each, contiguous; changed.
        gradients: like the parameters.
        first: m, like the parameters; changed.
        second: v, like the parameters; changed.
        rates: learning rate of each parameter.
        step: t, counting from 1.
        constants: decay rates and eps; the defaults of `torch.optim.Adam` if left out.
        rows: [N] bool, which rows to change; `None` is all.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Raises:
        TypeError: no floating tensors, or of different dtypes, or a mask that is not bool.
        ValueError: a wrong shape, device, layout, rate or step, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980; Mallick et al., "Taming 3DGS:
    High-Quality Radiance Fields with Limited Resources", arXiv 2406.15643 (the mask).
    """
    constants = constants or Adam()
    _check_tensors(parameters, gradients, first, second, rates)
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"step must be a whole number from 1 on, got {step!r}.")
    if not parameters:
        return
    if rows is not None:
        _check_rows(rows, parameters[0])
    sizes = [rate / (1 - constants.beta_first**step) for rate in rates]
    numbers = (constants.beta_first, constants.beta_second, constants.eps, math.sqrt(1 - constants.beta_second**step))
    tensors = (list(parameters), list(gradients), list(first), list(second), rows)
    chosen = choose_backend(operators.OPERATION, backend, parameters[0])
    if chosen == "reference":
        adam_reference(*tensors, sizes, *numbers)
    else:
        operators.adam(*tensors, sizes, *numbers, chosen)


def _check_tensors(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    rates: Sequence[float],
) -> None:
    groups = {"gradients": gradients, "first": first, "second": second}
    for name, group in {**groups, "rates": rates}.items():
        if len(group) != len(parameters):
            raise ValueError(f"{name} must be as many as the parameters, {len(parameters)}, got {len(group)}.")
    for index, parameter in enumerate(parameters):
        own = f"parameters[{index}]"
        check_float(own, parameter)
        check_like(own, parameter, "parameters[0]", parameters[0])
        if parameter.ndim < 1 or len(parameter) != len(parameters[0]):
            raise ValueError(f"{own} must have the rows of parameters[0], got shape {list(parameter.shape)}.")
        if not math.isfinite(rates[index]):
            raise ValueError(f"rates[{index}] must be finite, got {rates[index]}.")
        for name, group in groups.items():
            check_like(f"{name}[{index}]", group[index], own, parameter)
            check_shape(f"{name}[{index}]", group[index], parameter.shape)
        for name, changed in ((own, parameter), (f"first[{index}]", first[index]), (f"second[{index}]", second[index])):
            if not changed.is_contiguous():
                raise ValueError(f"{name} must be contiguous: it is changed in place.")


def _check_rows(rows: Tensor, parameter: Tensor) -> None:
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
        raise TypeError("rows must be a bool torch.Tensor.")
    check_shape("rows", rows, [len(parameter)])
    if rows.device != parameter.device:
        raise ValueError(f"rows must be on the device of the parameters, {parameter.device}, got {rows.device}.")
