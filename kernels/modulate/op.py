"""The public operation: argument checks, then the backend that fits."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_float, check_like, check_shape
from ..dispatch import choose_backend
from . import operators
from .reference import modulate_reference


def modulate(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5, backend: str | None = None) -> Tensor:
    """Layer norm whose scale and shift come from a condition (adaLN).

        y = (x - mean(x)) / sqrt(var(x) + eps) (1 + scale) + shift

    with mean and variance over the channels of a token. Native and Triton kernels are deterministic: equal
    inputs give equal bits, for any number of threads.

    Args:
        x: [B, N, D] tokens. Gradients reach x, scale and shift.
        scale: [B, D].
        shift: [B, D].
        eps: added to the variance, >= 0.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        [B, N, D].

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Peebles and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.
    """
    check_float("x", x, None)
    check_shape("x", x, ["B", "N", "D"])
    if x.shape[2] < 1:
        raise ValueError(f"x must have shape [B, N, D] with D at least 1, got {list(x.shape)}.")
    for name, tensor in (("scale", scale), ("shift", shift)):
        check_like(name, tensor, "x", x)
        check_shape(name, tensor, [x.shape[0], x.shape[2]])
    chosen = choose_backend("modulate", backend, x)
    if chosen == "reference":
        return modulate_reference(x, scale, shift, eps)
    return operators.modulate(x, scale, shift, eps, chosen)
