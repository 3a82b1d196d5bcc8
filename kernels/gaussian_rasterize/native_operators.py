"""The native kernels as torch operators: `torch.compile` sees through them and autograd differentiates them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from . import native
from .types import Gaussians, Rasterization, Settings, View

DEPTH_COLUMN = 4


def _plain(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else plain(tensor) for tensor in tensors]


def _zeros_if_missing(gradient: Tensor | None, like: Tensor, columns: int) -> Tensor:
    return like.new_zeros((*like.shape, columns), dtype=torch.float32) if gradient is None else gradient


@torch.library.custom_op("dreamkit::project", mutates_args=())
def project(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor, intrinsics: Tensor,
    colors: Tensor, numbers: list[float], antialiased: bool, orthographic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `native.project_forward`; colours [N, ...] are only checked for being finite."""
    tensors = (means, quaternions, scales, opacities, colors.flatten(1), view_matrices, intrinsics)
    return native.project_forward(*_plain(*tensors), numbers, antialiased, orthographic)


@torch.library.custom_op("dreamkit::project_backward", mutates_args=())
def _project_backward(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor, intrinsics: Tensor,
    colors: Tensor, radii: Tensor, d_means2d: Tensor, d_geometry: Tensor, numbers: list[float], antialiased: bool,
    orthographic: bool, of_pose: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (means, quaternions, scales, opacities, colors.flatten(1), view_matrices, intrinsics)
    inputs = _plain(*tensors, radii, d_means2d, d_geometry)
    return native.project_backward(*inputs, numbers, antialiased, orthographic, of_pose)


@project.register_fake
def _(means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor,
      *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    shape = (view_matrices.shape[0], means.shape[0])
    rows = [means.new_empty(*shape, columns) for columns in (2, 8, 8)]
    return *rows, means.new_empty(shape, dtype=torch.int32)


@_project_backward.register_fake
def _(means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, view_matrices: Tensor,
      *rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    results = [item.new_empty(item.shape) for item in (means, quaternions, scales, opacities)]
    return *results, means.new_empty(view_matrices.shape if rest[-1] else 0)


def _save_projection(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, splats, radii = output
    ctx.save_for_backward(*inputs[:7], radii)
    ctx.options = inputs[7:]
    ctx.mark_non_differentiable(splats, radii)
    ctx.set_materialize_grads(False)


def _project_gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    radii = ctx.saved_tensors[-1]
    incoming = (_zeros_if_missing(gradients[0], radii, 2), _zeros_if_missing(gradients[1], radii, 8))
    of_pose = ctx.needs_input_grad[4]
    *results, pose = _project_backward(*ctx.saved_tensors, *incoming, *ctx.options, of_pose)
    return *results, pose if of_pose else None, *(None,) * 5


project.register_autograd(_project_gradients, setup_context=_save_projection)


@torch.library.custom_op("dreamkit::shade", mutates_args=())
def shade(means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, degree: int) -> Tensor:
    """See `native.shade_forward`."""
    return native.shade_forward(*_plain(means, coefficients, view_matrices, radii), degree)


@torch.library.custom_op("dreamkit::shade_backward", mutates_args=())
def _shade_backward(
    means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, d_colors: Tensor, degree: int,
    of_pose: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = _plain(means, coefficients, view_matrices, radii, d_colors)
    return native.shade_backward(*inputs, degree, of_pose)


@shade.register_fake
def _(means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, degree: int) -> Tensor:
    return means.new_empty(*radii.shape, 3)


@_shade_backward.register_fake
def _(means: Tensor, coefficients: Tensor, view_matrices: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    pose = means.new_empty(view_matrices.shape if rest[-1] else 0)
    return means.new_empty(means.shape), coefficients.new_empty(coefficients.shape), pose


def _save_shading(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.degree = inputs[4]


def _shade_gradients(ctx: Any, d_colors: Tensor) -> tuple[Tensor | None, ...]:
    of_pose = ctx.needs_input_grad[2]
    *results, pose = _shade_backward(*ctx.saved_tensors, d_colors, ctx.degree, of_pose)
    return *results, pose if of_pose else None, None, None


shade.register_autograd(_shade_gradients, setup_context=_save_shading)


@torch.library.custom_op("dreamkit::composite", mutates_args=())
def composite(
    means2d: Tensor, geometry: Tensor, colors: Tensor, background: Tensor | None, splats: Tensor, radii: Tensor,
    absolute: Tensor | None, width: int, height: int, median_depth: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """See `native.composite_forward`.

    The values of means2d are in splats too: it is here for its gradient. The backward pass fills `absolute` [B, N, 2].
    """
    inputs = _plain(splats, geometry, radii, colors, background)
    return native.composite_forward(*inputs, width, height, median_depth, keep)


@torch.library.custom_op("dreamkit::composite_backward", mutates_args=())
def _composite_backward(
    geometry: Tensor, colors: Tensor, background: Tensor | None, splats: Tensor, radii: Tensor, number: Tensor,
    d_image: Tensor | None, d_alpha: Tensor | None, d_depth: Tensor | None, d_normal: Tensor | None, width: int,
    height: int, of_background: bool, absolute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    inputs = _plain(splats, geometry, radii, colors, background)
    gradients = _plain(d_image, d_alpha, d_depth, d_normal)
    return native.composite_backward(*inputs, number, gradients, width, height, of_background, absolute)


@composite.register_fake
def _(means2d: Tensor, geometry: Tensor, colors: Tensor, background: Tensor | None, splats: Tensor, radii: Tensor,
      absolute: Tensor | None, width: int, height: int, median_depth: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = (radii.shape[0], height, width)
    planes = [means2d.new_empty(*shape, channels) for channels in (colors.shape[2], 1, 1, 3)]
    median = means2d.new_empty((*shape, 1) if median_depth else 0)
    return *planes, median, torch.empty((), dtype=torch.int64)


@_composite_backward.register_fake
def _(geometry: Tensor, colors: Tensor, background: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *_, of_background, absolute = rest
    means2d = (*geometry.shape[:2], 2)
    kept = of_background and background is not None
    return (
        geometry.new_empty(means2d),
        geometry.new_empty(geometry.shape),
        colors.new_empty(colors.shape),
        geometry.new_empty(background.shape if kept and background is not None else 0),
        geometry.new_empty(means2d if absolute else 0),
    )


def _save_composite(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, median, number = output
    ctx.save_for_backward(*inputs[1:6], number)
    ctx.absolute, ctx.size = inputs[6], inputs[7:9]
    ctx.mark_non_differentiable(median, number)
    ctx.set_materialize_grads(False)


def _composite_gradients(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    of_background = ctx.needs_input_grad[3]
    options = (*ctx.size, of_background, ctx.absolute is not None)
    d_means2d, d_geometry, d_colors, d_background, sums = _composite_backward(
        *ctx.saved_tensors, *gradients[:4], *options
    )
    if ctx.absolute is not None:
        ctx.absolute.copy_(sums)
    return d_means2d, d_geometry, d_colors, d_background if of_background else None, *(None,) * 7


composite.register_autograd(_composite_gradients, setup_context=_save_composite)


def rasterize_native(gaussians: Gaussians, view: View, settings: Settings) -> Rasterization:
    """Render in C++. Arguments must have passed `check_arguments` and be float32 on the CPU."""
    numbers = [float(view.width), float(view.height), view.near, min(view.far, 3e38), settings.eps2d]
    means2d, geometry, splats, radii = project(
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
    )
    colors = gaussians.colors
    if colors.dim() == 3:
        degree = math.isqrt(colors.shape[1]) - 1 if settings.sh_degree is None else settings.sh_degree
        colors = shade(gaussians.means, colors, view.view_matrices, radii, degree)
    else:
        colors = colors[None]
    background = settings.background
    if background is not None:
        background = background.expand(radii.shape[0], colors.shape[-1])
    absolute = torch.zeros_like(means2d) if settings.absolute_gradients else None
    tensors = (means2d, geometry, colors, background)
    keep = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    options = (view.width, view.height, settings.median_depth, keep)
    image, alpha, depth, normal, median, _ = composite(*tensors, splats, radii, absolute, *options)
    depths = geometry[..., DEPTH_COLUMN]
    middle = median if settings.median_depth else None
    return Rasterization(image, alpha, depth, normal, means2d, radii, depths, middle, absolute)
