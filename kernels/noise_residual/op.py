"""The public operations: argument checks, then the backend that fits."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape
from ..dispatch import choose_backend
from . import operators
from .reference import add_noise_reference, residual_reference


@dataclass(frozen=True)
class Coefficients:
    """Per sample: the guidance scale, how a network's output o and its input x_t combine, and the weight.

        eps = eps_noisy x_t + eps_output o,   x0 = clean_noisy x_t + clean_output o

    Every kind of prediction is a case of that: for eps, eps_output = 1, clean_noisy = 1 / alpha and
    clean_output = -sigma / alpha; for v of a variance-preserving schedule, eps_noisy = sigma, eps_output = alpha,
    clean_noisy = alpha and clean_output = -sigma.
    """

    scale: Tensor  # [B]
    eps_noisy: Tensor  # [B]
    eps_output: Tensor  # [B]
    clean_noisy: Tensor  # [B]
    clean_output: Tensor  # [B]
    weight: Tensor  # [B]


def add_noise(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, backend: str | None = None) -> Tensor:
    """Noisy samples x_t = alpha x + sigma e.

    Args:
        x: [B, ...] clean samples. Gradients reach x and the noise, not alpha and sigma.
        noise: e, [B, ...].
        alpha: [B] float32 or float64.
        sigma: [B], like alpha.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        [B, ...] of the dtype of x.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.
    """
    _check_samples(x=x, noise=noise)
    levels = _stack(x, alpha=alpha, sigma=sigma)
    chosen = choose_backend(operators.OPERATION, backend, x)
    if chosen == "reference":
        return add_noise_reference(x, noise, levels)
    return operators.add_noise(x, noise, levels, chosen)


def guided_residual(
    positive: Tensor,
    negative: Tensor,
    noisy: Tensor,
    noise: Tensor,
    coefficients: Coefficients,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual of score distillation, and the clean sample that the teacher would rather see.

        o = negative + scale (positive - negative)
        residual = weight (eps_noisy x_t + eps_output o - e),   clean = clean_noisy x_t + clean_output o

    Four reads and two writes a number, in place of a pass over memory for each operation. Nothing is differentiable:
    score distillation takes the residual for the gradient (Poole et al., "DreamFusion", arXiv 2209.14988).

    Args:
        positive: [B, ...] what the network said for the prompt.
        negative: [B, ...] for the negative prompt.
        noisy: x_t, [B, ...].
        noise: e, [B, ...].
        coefficients: numbers of every sample, float32 or float64.
        backend: as in `add_noise`.

    Returns:
        residual and clean, [B, ...] of the dtype of noisy.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: a wrong shape or device, a tensor that wants a gradient, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.
    """
    samples = {"noisy": noisy, "noise": noise, "positive": positive, "negative": negative}
    _check_samples(**samples)
    if torch.is_grad_enabled():
        for name, tensor in samples.items():
            if tensor.requires_grad:
                raise ValueError(f"{name} requires a gradient, and guided_residual has none: detach it.")
    names = Coefficients.__dataclass_fields__
    table = _stack(noisy, **dict(zip(names, astuple(coefficients), strict=True)))
    chosen = choose_backend(operators.OPERATION, backend, noisy)
    if chosen == "reference":
        return residual_reference(positive, negative, noisy, noise, table)
    return operators.residual(positive, negative, noisy, noise, table, chosen)


def _check_samples(**samples: Tensor) -> None:
    """Check that all are floating, of one shape [B, ...], dtype and device."""
    first, like = next(iter(samples.items()))
    for name, tensor in samples.items():
        check_float(name, tensor, None)
        check_like(name, tensor, first, like)
        if tensor.ndim < 1:
            raise ValueError(f"{name} must have shape [B, ...], got [].")
        check_shape(name, tensor, like.shape)


def _stack(like: Tensor, **numbers: Tensor) -> Tensor:
    """Numbers [B] side by side, [B, count], in double precision if the samples are, else in float32."""
    for name, tensor in numbers.items():
        check_float(name, tensor)
        check_shape(name, tensor, [like.shape[0]])
        if tensor.device != like.device:
            raise ValueError(f"{name} must be on the device of the samples ({like.device}), got {tensor.device}.")
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.stack([tensor.detach().to(dtype) for tensor in numbers.values()], dim=1)
