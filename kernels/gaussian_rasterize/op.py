"""The public operation: argument checks, then the backend that fits."""

from __future__ import annotations

from ..dispatch import choose_backend
from .gsplat_backend import rasterize_gsplat
from .operators import rasterize_kernels
from .reference import rasterize_reference
from .types import Gaussians, Rasterization, Settings, View, check_arguments

DEFAULT_SETTINGS = Settings()


def rasterize(gaussians: Gaussians, view: View, settings: Settings = DEFAULT_SETTINGS) -> Rasterization:
    """Render 3D Gaussians as B cameras see them.

    Each Gaussian is projected (EWA), coloured (plain channels or spherical harmonics) and composited front to back by
    the depth of its centre:

        alpha_i(p) = min(0.999, o_i exp(-1/2 (p - m_i)^T cov_i^-1 (p - m_i))), skipped below 1/255
        image(p) = sum_i alpha_i T_i c_i + T background, with T_i = prod_{j<i} (1 - alpha_j), stopped before T <= 1e-4

    Gradients reach means, quaternions, scales, opacities, colours, background and view matrices. The native backend
    (float32 on the CPU) is deterministic: equal inputs give equal bits, for any number of threads. On a GPU atomics
    reorder the sums of gradients.

    Args:
        gaussians: N Gaussians; N may be 0. Rows that hold NaN or infinity are culled.
        view: B cameras of one image size; B may be 0.
        settings: background, harmonics degree, antialiasing, backend.

    Returns:
        Images [B, H, W, ...] and, for density control, `means2d`, `radii` and `depths` [B, N, ...].

    Raises:
        TypeError: an argument of the wrong kind or dtype (float32 or float64, all alike), by name.
        ValueError: a wrong shape, device or range, a non-finite camera, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Example:
        >>> means = torch.zeros(1, 3, requires_grad=True)
        >>> one = Gaussians(means, torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2), torch.ones(1),
        ...                 torch.tensor([[1.0, 0.5, 0.0]]))
        >>> pose = torch.eye(4)[None].clone()
        >>> pose[:, 2, 3] = 3.0  # three units in front of the camera
        >>> lens = torch.tensor([[[80.0, 0, 32], [0, 80, 32], [0, 0, 1]]])
        >>> rasterize(one, View(pose, lens, width=64, height=64)).image.shape
        torch.Size([1, 64, 64, 3])

    Papers: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023 (arXiv 2308.04079).
    """
    check_arguments(gaussians, view, settings)
    backend = choose_backend("gaussian_rasterize", settings.backend, gaussians.means)
    if backend == "reference":
        return rasterize_reference(gaussians, view, settings)
    if backend == "gsplat":
        return rasterize_gsplat(gaussians, view, settings)
    return rasterize_kernels(gaussians, view, settings, backend)
