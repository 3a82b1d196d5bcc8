"""The public operation: argument checks, then the backend that fits."""

from __future__ import annotations

from torch import Tensor

from ..checks import check_float, check_like, check_shape
from ..dispatch import choose_backend
from . import operators
from .reference import ssim_reference


def ssim(x: Tensor, y: Tensor, backend: str | None = None) -> Tensor:
    """Structural similarity of pictures in [0, 1], pixel by pixel.

        S = (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_xx + s_yy + C2))

    with means m and (co)variances s under a Gaussian window of 11 pixels, sigma 1.5, that sees zeros beyond the
    border; C1 = 0.01^2 and C2 = 0.03^2. `ssim(x, y).mean()` is the score, as 3D Gaussian Splatting trains with.
    Native and Triton kernels are deterministic: equal inputs give equal bits, for any number of threads.

    Args:
        x: [B, C, H, W]. Gradients reach x and y.
        y: the same shape.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        [B, C, H, W] in [-1, 1].

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004.
    """
    check_float("x", x, None)
    check_shape("x", x, ["B", "C", "H", "W"])
    check_like("y", y, "x", x)
    check_shape("y", y, x.shape)
    chosen = choose_backend("ssim", backend, x)
    if chosen == "reference":
        return ssim_reference(x, y)
    return operators.ssim(x, y, chosen)
