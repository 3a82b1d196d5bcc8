"""What goes into and comes out of `rasterize`, and the checks that name a wrong argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape

ALPHA_MAX = 0.999
"""No single Gaussian is fully opaque, so that the transmittance stays invertible in the backward pass."""
ALPHA_MIN = 1.0 / 255.0
"""A Gaussian whose alpha at a pixel is below this is skipped there."""
TRANSMITTANCE_MIN = 1e-4
"""A pixel stops at the first Gaussian that would bring its transmittance to this or below (exclusive)."""
MAX_MAGNITUDE = 1e12
"""A Gaussian with a parameter that is NaN, infinite or larger than this is culled: float32 squares stay finite."""
MAX_SH_DEGREE = 3
MAX_IMAGE_SIDE = 16384


@dataclass(frozen=True)
class Gaussians:
    """N three-dimensional Gaussians, all tensors of one floating dtype and on one device.

    A Gaussian with any parameter that is NaN, infinite or above `MAX_MAGNITUDE` is culled: it adds nothing and
    receives zero gradients.
    """

    means: Tensor  # [N, 3] world units
    """Centres."""
    quaternions: Tensor  # [N, 4]
    """Rotations as (w, x, y, z); normalised inside. A zero quaternion means the identity."""
    scales: Tensor  # [N, 3] world units, > 0
    """Standard deviations along the rotated axes."""
    opacities: Tensor  # [N] in [0, 1]
    """Peak alpha. Below 1/255 a Gaussian is culled."""
    colors: Tensor  # [N, C] or [N, K, 3]
    """Plain channels, or real spherical-harmonic coefficients, K = 1, 4, 9 or 16 (gsplat's basis and order)."""


@dataclass(frozen=True)
class View:
    """B cameras that share an image size, clipping planes and projection; tensors like those of `Gaussians`."""

    view_matrices: Tensor  # [B, 4, 4]
    """World to camera, rigid, OpenCV axes (x right, y down, z forward). Receives gradients (pose)."""
    intrinsics: Tensor  # [B, 3, 3] pixels
    """Focal lengths and principal point; no gradient. Pixel (0, 0) has its centre at (0.5, 0.5). Of an orthographic
    camera the focal lengths are pixels per world unit."""
    width: int
    height: int
    near: float = 0.01
    """Gaussians whose centre is nearer than this (camera z, world units) are culled. > 0."""
    far: float = 1e10
    """Gaussians whose centre is farther than this are culled."""
    projection: Literal["perspective", "orthographic"] = "perspective"
    """Perspective divides by depth, orthographic does not. Harmonics and normals look from the camera's position."""


@dataclass(frozen=True)
class Settings:
    """How to rasterise."""

    background: Tensor | None = None  # [C] or [B, C]
    """Colour behind everything; receives gradients. None is black."""
    sh_degree: int | None = None
    """Use only the harmonics up to this degree (0 to 3). None takes all that `colors` holds."""
    antialiased: bool = False
    """Scale each opacity by sqrt(det(cov) / det(cov + eps2d I)), as Mip-Splatting does."""
    eps2d: float = 0.3
    """Low-pass added to the diagonal of the projected covariance, pixels squared."""
    radius_clip: float = 0.0
    """Gaussians whose projected radius is at most this many pixels are culled."""
    median_depth: bool = False
    """Also give the depth at which half of the light is gone."""
    absolute_gradients: bool = False
    """Also sum the absolute values of what each pixel wants of a projected centre."""
    tile_size: int = 16
    """Side of the tiles of the reference backend, pixels. The result does not depend on it."""
    backend: str | None = None
    """"reference", "native" (CPU), "gsplat", "triton" (GPU). None: DREAMKIT_BACKEND, else the fastest that applies."""


@dataclass(frozen=True)
class Rasterization:
    """Rendered images of B views and what density control needs to know about N Gaussians in each."""

    image: Tensor  # [B, H, W, C]
    """sum_i w_i c_i + T background, with w_i = alpha_i prod_{j<i} (1 - alpha_j) and T what is left."""
    alpha: Tensor  # [B, H, W, 1]
    """Coverage, 1 - T."""
    depth: Tensor  # [B, H, W, 1] world units
    """sum_i w_i z_i, NOT divided by alpha: zero where nothing is hit. Expected depth is `depth / alpha`."""
    normal: Tensor  # [B, H, W, 3]
    """sum_i w_i n_i, world space, not normalised. n_i: the shortest axis, flipped to face the camera."""
    means2d: Tensor  # [B, N, 2] pixels
    """Projected centres, in the graph: call `.retain_grad()` before backward and `.grad` is the loss gradient
    per PIXEL of movement (gsplat's strategies multiply it by width / 2 and height / 2). Zero where culled."""
    radii: Tensor  # [B, N] int32 pixels
    """Half the longer side of the bounding box of what can be seen; 0 where culled."""
    depths: Tensor  # [B, N] world units
    """Camera z of each centre, in the graph; zero where culled."""
    median_depth: Tensor | None = None  # [B, H, W, 1] world units
    """Depth of the Gaussian at which the transmittance falls to one half, zero where it never does; no gradient.
    `None` unless the settings ask for it."""
    absolute_gradients: Tensor | None = None  # [B, N, 2] pixels
    """Filled by the backward pass: sum over pixels of |dL/d means2d| (AbsGS, arXiv 2404.10484). `None` unless the
    settings ask for it."""


def _check_colors(colors: Tensor, count: int, sh_degree: int | None) -> None:
    """Check plain colours against spherical harmonics and the degree asked for."""
    if not isinstance(colors, Tensor):
        raise TypeError(f"colors must be a torch.Tensor, got {type(colors).__name__}.")
    if colors.dim() == 2:
        check_shape("colors", colors, [count, "*"])
        if colors.shape[1] == 0:
            raise ValueError("colors must have at least one channel, got shape [N, 0].")
        if sh_degree is not None:
            raise ValueError(f"sh_degree is {sh_degree}, but colors has shape [N, C] (no harmonics).")
        return
    check_shape("colors", colors, [count, "*", 3])
    bases = colors.shape[1]
    if bases not in (1, 4, 9, 16):
        raise ValueError(f"colors as harmonics must be [N, K, 3] with K = 1, 4, 9 or 16, got K = {bases}.")
    if sh_degree is not None and not (0 <= sh_degree <= MAX_SH_DEGREE and (sh_degree + 1) ** 2 <= bases):
        raise ValueError(f"sh_degree must be between 0 and what colors holds (K = {bases}), got {sh_degree}.")


def _check_view(view: View) -> None:
    """Check shapes, image size and clipping planes."""
    check_shape("view_matrices", view.view_matrices, ["*", 4, 4])
    check_shape("intrinsics", view.intrinsics, [view.view_matrices.shape[0], 3, 3])
    for name, side in (("width", view.width), ("height", view.height)):
        if not isinstance(side, int) or isinstance(side, bool):
            raise TypeError(f"{name} must be an int, got {type(side).__name__}.")
        if not 1 <= side <= MAX_IMAGE_SIDE:
            raise ValueError(f"{name} must be between 1 and {MAX_IMAGE_SIDE}, got {side}.")
    if view.projection not in ("perspective", "orthographic"):
        raise ValueError(f"projection must be 'perspective' or 'orthographic', got {view.projection!r}.")
    if not 0.0 < view.near < view.far:
        raise ValueError(f"near and far must satisfy 0 < near < far, got {view.near} and {view.far}.")
    if torch.compiler.is_compiling():
        return  # the values are not known while a graph is traced
    for name, tensor in (("view_matrices", view.view_matrices), ("intrinsics", view.intrinsics)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity.")
    if not bool((view.intrinsics[:, [0, 1], [0, 1]] > 0).all()):
        raise ValueError("intrinsics must have positive focal lengths [:, 0, 0] and [:, 1, 1].")


def _check_settings(settings: Settings, views: int, channels: int) -> None:
    """Check the background's shape and the numeric ranges."""
    if settings.background is not None:
        batched = settings.background.dim() == 2 if isinstance(settings.background, Tensor) else False
        check_shape("background", settings.background, [views, channels] if batched else [channels])
    if not 0.0 <= settings.eps2d < float("inf"):
        raise ValueError(f"eps2d must be finite and not negative, got {settings.eps2d}.")
    if not 0.0 <= settings.radius_clip < float("inf"):
        raise ValueError(f"radius_clip must be finite and not negative, got {settings.radius_clip}.")
    if not 1 <= settings.tile_size <= 256:
        raise ValueError(f"tile_size must be between 1 and 256, got {settings.tile_size}.")


def check_arguments(gaussians: Gaussians, view: View, settings: Settings) -> None:
    """Check every argument of `rasterize`.

    Raises:
        TypeError: an argument of the wrong kind or dtype, by name.
        ValueError: a wrong shape, device, range or non-finite camera, by name and with the value.
    """
    check_shape("means", gaussians.means, ["*", 3])
    count = gaussians.means.shape[0]
    check_shape("quaternions", gaussians.quaternions, [count, 4])
    check_shape("scales", gaussians.scales, [count, 3])
    check_shape("opacities", gaussians.opacities, [count])
    _check_colors(gaussians.colors, count, settings.sh_degree)
    _check_view(view)
    channels = gaussians.colors.shape[-1]
    _check_settings(settings, view.view_matrices.shape[0], channels)

    check_float("means", gaussians.means)  # half a pixel of a large image is lost in less
    named = {
        "quaternions": gaussians.quaternions,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "colors": gaussians.colors,
        "view_matrices": view.view_matrices,
        "intrinsics": view.intrinsics,
        "background": settings.background,
    }
    for name, tensor in named.items():
        if tensor is not None:
            check_like(name, tensor, "means", gaussians.means)
    if count * max(view.view_matrices.shape[0], 1) >= 2**31:
        raise ValueError(f"means: {count} Gaussians in {view.view_matrices.shape[0]} views overflow int32.")
