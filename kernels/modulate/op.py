"""The public operation: argument checks, then the backend that fits."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import choose_backend
from .native import modulate_native
from .reference import modulate_reference


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5, backend: str | None = None) -> Tensor:
    """Layer norm whose scale and shift come from a condition (adaLN).

        y = (x - mean(x)) / sqrt(var(x) + eps) (1 + scale) + shift

    with mean and variance over the channels of a token. The native backend is deterministic: equal inputs give equal
    bits, for any number of threads.

    Args:
        x: [B, N, D] tokens. Gradients reach x, scale and shift.
        scale: [B, D].
        shift: [B, D].
        eps: added to the variance, >= 0.
        backend: "reference" or "native". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        [B, N, D].

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.
    """
    for name, tensor in (("x", x), ("scale", scale), ("shift", shift)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}.")
        if not tensor.is_floating_point() or tensor.dtype != x.dtype:
            raise TypeError(f"{name} must be floating and of the dtype of x, {x.dtype}, got {tensor.dtype}.")
        if tensor.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}.")
    if x.ndim != 3 or x.shape[2] < 1:
        raise ValueError(f"x must have shape [B, N, D], got {list(x.shape)}.")
    for name, tensor in (("scale", scale), ("shift", shift)):
        if tensor.shape != (x.shape[0], x.shape[2]):
            raise ValueError(f"{name} must have shape {[x.shape[0], x.shape[2]]}, got {list(tensor.shape)}.")
    if choose_backend("modulate", backend, x) == "native":
        return modulate_native(x, scale, shift, eps)
    return modulate_reference(x, scale, shift, eps)
