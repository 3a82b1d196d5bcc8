"""The native backend: autograd around `dreamkit_kernels._native`, float32 on the CPU. op.py checks the arguments.

Outputs and gradients are allocated here, in torch; the extension reads and writes the memory it is handed. Between its
steps, what belongs to one Gaussian in one view travels as a row of eight floats:

- `geometry`: conic (xx, xy, yy), opacity, depth, normal (x, y, z). Differentiable.
- `splats`: the same Gaussian as the inner loops want it (see `Splat` in native.h). Not differentiable: gradients of the
  compositing go to `means2d` and `geometry`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..checks import plain
from ..dispatch import native_module
from .types import Gaussians, Rasterization, Settings, View

DEPTH_COLUMN = 4


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else plain(tensor)


def _zeros_if_missing(gradient: Tensor | None, *shape: int) -> Tensor:
    return torch.zeros(shape) if gradient is None else gradient.contiguous()


class _Project(torch.autograd.Function):
    """`reference.project`. Returns means2d [B, N, 2], geometry [B, N, 8], splats [B, N, 8] and radii [B, N]."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,  # [N, 3]
        quaternions: Tensor,  # [N, 4]
        scales: Tensor,  # [N, 3]
        opacities: Tensor,  # [N]
        view_matrices: Tensor,  # [B, 4, 4]
        colors: Tensor,  # [N, ...] only checked for being finite
        view: View,
        settings: Settings,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project every Gaussian into every view."""
        inputs = [_plain(tensor) for tensor in (means, quaternions, scales, opacities)]
        inputs += [_plain(tensor) for tensor in (colors.flatten(1), view_matrices, view.intrinsics)]
        ctx.options = (
            *(float(view.width), float(view.height), view.near, min(view.far, 3e38)),
            *(settings.eps2d, min(settings.radius_clip, 3e38), settings.antialiased),
            view.projection == "orthographic",
        )
        shape = (view_matrices.shape[0], means.shape[0])
        means2d, geometry, splats = (means.new_empty(*shape, columns) for columns in (2, 8, 8))
        radii = means.new_empty(shape, dtype=torch.int32)
        module = native_module()
        options = module.ProjectionOptions(*ctx.options, torch.get_num_threads())
        module.project_forward(*inputs, options, means2d, geometry, splats, radii)
        ctx.save_for_backward(*inputs, radii)
        ctx.mark_non_differentiable(splats, radii)
        ctx.set_materialize_grads(False)
        return means2d, geometry, splats, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of means, quaternions, scales, opacities and view matrices."""
        *inputs, radii = ctx.saved_tensors
        results = [torch.empty_like(tensor) for tensor in inputs[:4]]
        pose = torch.empty_like(inputs[5]) if ctx.needs_input_grad[4] else None
        module = native_module()
        options = module.ProjectionOptions(*ctx.options, torch.get_num_threads())
        incoming = (_zeros_if_missing(gradients[0], *radii.shape, 2), _zeros_if_missing(gradients[1], *radii.shape, 8))
        module.project_backward(*inputs, options, radii, *incoming, *results, pose)
        return *results, pose, None, None, None


class _Shade(torch.autograd.Function):
    """`reference.shade` for spherical harmonics. Returns colours [B, N, 3], zero where culled."""

    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,  # [N, 3]
        coefficients: Tensor,  # [N, K, 3]
        view_matrices: Tensor,  # [B, 4, 4]
        radii: Tensor,  # [B, N]
        degree: int,
    ) -> Tensor:
        """Evaluate the harmonics in the direction from each camera."""
        inputs = [_plain(tensor) for tensor in (means, coefficients, view_matrices, radii)]
        colors = means.new_empty(*radii.shape, 3)
        native_module().shade_forward(*inputs, colors, degree, torch.get_num_threads())
        ctx.save_for_backward(*inputs)
        ctx.degree = degree
        return colors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means, coefficients and view matrices."""
        inputs = ctx.saved_tensors
        results = [torch.empty_like(tensor) for tensor in inputs[:2]]
        pose = torch.empty_like(inputs[2]) if ctx.needs_input_grad[2] else None
        incoming = gradients[0].contiguous()
        native_module().shade_backward(*inputs, incoming, *results, pose, ctx.degree, torch.get_num_threads())
        return *results, pose, None, None


class _Composite(torch.autograd.Function):
    """`reference.composite` of colours, depth and normal, with alpha and the background, in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,  # [B, N, 2] its values are also in splats; here for its gradient
        geometry: Tensor,  # [B, N, 8]
        colors: Tensor,  # [B or 1, N, C]
        background: Tensor | None,  # [B, C]
        splats: Tensor,  # [B, N, 8]
        radii: Tensor,  # [B, N]
        width: int,
        height: int,
        median_depth: bool,
        absolute: Tensor | None,  # [B, N, 2] filled by the backward pass
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Returns image [B, H, W, C], alpha, depth [B, H, W, 1], normal [B, H, W, 3] and median depth."""
        inputs = [_plain(tensor) for tensor in (splats, geometry, radii, colors, background)]
        shape = (means2d.shape[0], height, width)
        image = means2d.new_empty(*shape, colors.shape[-1])
        alpha, depth, normal = (means2d.new_empty(*shape, channels) for channels in (1, 1, 3))
        median = torch.empty_like(depth) if median_depth else None
        outputs = (image, alpha, depth, normal, median)
        ctx.state = native_module().composite_forward(*inputs, *outputs, torch.get_num_threads())
        ctx.absolute = absolute
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        if median is not None:
            ctx.mark_non_differentiable(median)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of means2d, geometry, colours and background."""
        inputs = ctx.saved_tensors
        splats, geometry, _, colors, background = inputs
        d_means2d = splats.new_empty(*splats.shape[:2], 2)
        d_geometry, d_colors = torch.empty_like(geometry), torch.empty_like(colors)
        d_background = None if background is None or not ctx.needs_input_grad[3] else torch.empty_like(background)
        incoming = [_plain(gradient) for gradient in gradients[:4]]
        results = (d_means2d, d_geometry, d_colors, d_background, ctx.absolute)
        native_module().composite_backward(ctx.state, *inputs, *incoming, *results, torch.get_num_threads())
        return d_means2d, d_geometry, d_colors, d_background, None, None, None, None, None, None


def rasterize_native(gaussians: Gaussians, view: View, settings: Settings) -> Rasterization:
    """Render in C++. Arguments must have passed `check_arguments` and be float32 on the CPU."""
    colors = gaussians.colors
    means2d, geometry, splats, radii = _Project.apply(
        gaussians.means,
        gaussians.quaternions,
        gaussians.scales,
        gaussians.opacities,
        view.view_matrices,
        colors.detach(),
        view,
        settings,
    )
    if colors.dim() == 3:
        degree = math.isqrt(colors.shape[1]) - 1 if settings.sh_degree is None else settings.sh_degree
        colors = _Shade.apply(gaussians.means, colors, view.view_matrices, radii, degree)
    else:
        colors = colors[None]
    background = settings.background
    if background is not None:
        background = background.expand(radii.shape[0], colors.shape[-1])
    absolute = torch.zeros_like(means2d) if settings.absolute_gradients else None
    options = (view.width, view.height, settings.median_depth, absolute)
    image, alpha, depth, normal, median = _Composite.apply(
        means2d, geometry, colors, background, splats, radii, *options
    )
    depths = geometry[..., DEPTH_COLUMN]
    return Rasterization(image, alpha, depth, normal, means2d, radii, depths, median, absolute)
