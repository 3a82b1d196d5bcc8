"""The kernels of a backend as torch operators: `torch.compile` sees through them and autograd differentiates them.

Between them, what belongs to one Gaussian in one view travels as rows: `geometry` [B, N, 8] holds its conic (xx, xy,
yy), opacity, depth and normal (x, y, z), and `places` what else a backend's compositing wants, without a gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels
from .types import Gaussians, Rasterization, Settings, View

OPERATION = "gaussian_rasterize"
DEPTH_COLUMN = 4
PLACES = {"native": (8, torch.float32), "triton": (2, torch.int32)}
"""Columns and dtype of `places`."""


def _plain(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else plain(tensor) for tensor in tensors]


def _zeros_if_missing(gradient: Tensor | None, like: Tensor, columns: int) -> Tensor:
    return like.new_zeros((*like.shape, columns), dtype=torch.float32) if gradient is None else gradient


@torch.library.custom_op("dreamkit::project", mutates_args=())
def project(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor, intrinsics: Tensor,
    colors: Tensor, numbers: list[float], antialiased: bool, orthographic: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Means2d [B, N, 2], geometry, places and radii [B, N]; colours [N, ...] are only checked for being finite."""
    tensors = (means, quaternions, scales, opacities, colors.flatten(1), view_matrices, intrinsics)
    return kernels(OPERATION, backend).project_forward(*_plain(*tensors), numbers, antialiased, orthographic)


@torch.library.custom_op("dreamkit::project_backward", mutates_args=())
def _project_backward(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor, intrinsics: Tensor,
    colors: Tensor, radii: Tensor, d_means2d: Tensor, d_geometry: Tensor, numbers: list[float], antialiased: bool,
    orthographic: bool, backend: str, of_pose: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (means, quaternions, scales, opacities, colors.flatten(1), view_matrices, intrinsics)
    inputs = _plain(*tensors, radii, d_means2d, d_geometry)
    return kernels(OPERATION, backend).project_backward(*inputs, numbers, antialiased, orthographic, of_pose)


@project.register_fake
def _(means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor,
      *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    shape = (view_matrices.shape[0], means.shape[0])
    columns, dtype = PLACES[rest[-1]]
    places = means.new_empty(*shape, columns, dtype=dtype)
    return means.new_empty(*shape, 2), means.new_empty(*shape, 8), places, means.new_empty(shape, dtype=torch.int32)


@_project_backward.register_fake
def _(means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor,
      *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    results = [item.new_empty(item.shape) for item in (means, quaternions, scales, opacities)]
    return *results, means.new_empty(view_matrices.shape if rest[-1] else 0)


def _save_projection(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, places, radii = output
    ctx.save_for_backward(*inputs[:7], radii)
    ctx.options = inputs[7:]
    ctx.mark_non_differentiable(places, radii)
    ctx.set_materialize_grads(False)


def _project_gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    radii = ctx.saved_tensors[-1]
    incoming = (_zeros_if_missing(gradients[0], radii, 2), _zeros_if_missing(gradients[1], radii, 8))
    of_pose = ctx.needs_input_grad[4]
    *results, pose = _project_backward(*ctx.saved_tensors, *incoming, *ctx.options, of_pose)
    return *results, pose if of_pose else None, *(None,) * 6


project.register_autograd(_project_gradients, setup_context=_save_projection)


@torch.library.custom_op("dreamkit::shade", mutates_args=())
def shade(
    means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, degree: int, backend: str
) -> Tensor:
    """Colours [B, N, 3] of spherical harmonics, zero where culled."""
    return kernels(OPERATION, backend).shade_forward(*_plain(means, coefficients, view_matrices, radii), degree)


@torch.library.custom_op("dreamkit::shade_backward", mutates_args=())
def _shade_backward(
    means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, d_colors: Tensor, degree: int,
    backend: str, of_pose: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = _plain(means, coefficients, view_matrices, radii, d_colors)
    return kernels(OPERATION, backend).shade_backward(*inputs, degree, of_pose)


@shade.register_fake
def _(means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, *rest: Any) -> Tensor:
    return means.new_empty(*radii.shape, 3)


@_shade_backward.register_fake
def _(means: Tensor, coefficients: Tensor, view_matrices: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    pose = means.new_empty(view_matrices.shape if rest[-1] else 0)
    return means.new_empty(means.shape), coefficients.new_empty(coefficients.shape), pose


def _save_shading(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _shade_gradients(ctx: Any, d_colors: Tensor) -> tuple[Tensor | None, ...]:
    of_pose = ctx.needs_input_grad[2]
    *results, pose = _shade_backward(*ctx.saved_tensors, d_colors, *ctx.options, of_pose)
    return *results, pose if of_pose else None, None, None, None


shade.register_autograd(_shade_gradients, setup_context=_save_shading)


@torch.library.custom_op("dreamkit::composite", mutates_args=())
def composite(
    means2d: Tensor, geometry: Tensor, colors: Tensor, background: Tensor | None, places: Tensor, radii: Tensor,
    absolute: Tensor | None, width: int, height: int, median_depth: bool, keep: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Image, alpha, depth, normal, median depth (or empty), and a number of what is kept for the backward pass.

    Colours are [B or 1, N, C]. The backward pass fills `absolute` [B, N, 2].
    """
    inputs = _plain(means2d, geometry, radii, colors, background, places)
    return kernels(OPERATION, backend).composite_forward(*inputs, width, height, median_depth, keep)


@torch.library.custom_op("dreamkit::composite_backward", mutates_args=())
def _composite_backward(
    means2d: Tensor, geometry: Tensor, colors: Tensor, background: Tensor | None, places: Tensor, radii: Tensor,
    number: Tensor, d_image: Tensor | None, d_alpha: Tensor | None, d_depth: Tensor | None, d_normal: Tensor | None,
    width: int, height: int, backend: str, of_background: bool, absolute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = _plain(means2d, geometry, radii, colors, background, places)
    gradients = _plain(d_image, d_alpha, d_depth, d_normal)
    return kernels(OPERATION, backend).composite_backward(
        *inputs, number, gradients, width, height, of_background, absolute
    )


@composite.register_fake
def _(means2d: Tensor, geometry: Tensor, colors: Tensor, background: Tensor | None, places: Tensor, radii: Tensor,
      absolute: Tensor | None, width: int, height: int, median_depth: bool, *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = (radii.shape[0], height, width)
    planes = [means2d.new_empty(*shape, channels) for channels in (colors.shape[2], 1, 1, 3)]
    median = means2d.new_empty((*shape, 1) if median_depth else 0)
    return *planes, median, torch.empty((), dtype=torch.int64)


@_composite_backward.register_fake
def _(means2d: Tensor, geometry: Tensor, colors: Tensor, background: Tensor | None,
      *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    *_, of_background, absolute = rest
    kept = of_background and background is not None
    return (
        means2d.new_empty(means2d.shape),
        geometry.new_empty(geometry.shape),
        colors.new_empty(colors.shape),
        geometry.new_empty(background.shape if kept and background is not None else 0),
        means2d.new_empty(means2d.shape if absolute else 0),
    )


def _save_composite(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, median, number = output
    ctx.save_for_backward(*inputs[:6], number)
    ctx.absolute, ctx.options = inputs[6], (*inputs[7:9], inputs[11])
    ctx.mark_non_differentiable(median, number)
    ctx.set_materialize_grads(False)


def _composite_gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    of_background = ctx.needs_input_grad[3]
    options = (*ctx.options, of_background, ctx.absolute is not None)
    d_means2d, d_geometry, d_colors, d_background, sums = _composite_backward(
        *ctx.saved_tensors, *gradients[:4], *options
    )
    if ctx.absolute is not None:
        ctx.absolute.copy_(sums)
    return d_means2d, d_geometry, d_colors, d_background if of_background else None, *(None,) * 8


composite.register_autograd(_composite_gradients, setup_context=_save_composite)


def project_gaussians(
    gaussians: Gaussians, view: View, settings: Settings, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`project` of checked arguments; the colours are only asked whether they are finite, and may have any shape."""
    numbers = [float(view.width), float(view.height), view.near, min(view.far, 3e38), settings.eps2d]
    means2d, geometry, places, radii = project(
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales,
        gaussians.opacities,
        view.view_matrices,
        view.intrinsics,
        gaussians.colors.detach(),
        [*numbers, min(settings.radius_clip, 3e38)],
        settings.antialiased,
        view.projection == "orthographic",
        backend,
    )
    return means2d, geometry, places, radii


def rasterize_kernels(gaussians: Gaussians, view: View, settings: Settings, backend: str) -> Rasterization:
    """Render by a backend's kernels. Arguments must have passed `check_arguments` and be what the backend takes."""
    means2d, geometry, places, radii = project_gaussians(gaussians, view, settings, backend)
    colors = gaussians.colors
    if colors.dim() == 3:
        degree = math.isqrt(colors.shape[1]) - 1 if settings.sh_degree is None else settings.sh_degree
        colors = shade(gaussians.means, colors, view.view_matrices, radii, degree, backend)
    else:
        colors = colors[None]
    background = settings.background
    if background is not None:
        background = background.expand(radii.shape[0], colors.shape[-1])
    absolute = torch.zeros_like(means2d) if settings.absolute_gradients else None
    tensors = (means2d, geometry, colors, background)
    keep = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    options = (view.width, view.height, settings.median_depth, keep, backend)
    image, alpha, depth, normal, median, _ = composite(*tensors, places, radii, absolute, *options)
    depths = geometry[..., DEPTH_COLUMN]
    middle = median if settings.median_depth else None
    return Rasterization(image, alpha, depth, normal, means2d, radii, depths, middle, absolute)
