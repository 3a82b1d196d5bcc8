"""The native backend: autograd around `dreamkit_kernels._native`. float32 on the CPU; the arguments are checked in op.py.

Outputs and gradients are allocated here, in torch; the extension only reads and writes memory it is handed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..dispatch import native_module
from .reference import Projection, project, shade, usable_rows
from .types import Gaussians, Rasterization, Settings, View


def _plain(tensor: Tensor | None) -> Tensor | None:
    """What the extension takes: detached and contiguous."""
    return None if tensor is None else tensor.detach().contiguous()


class _Composite(torch.autograd.Function):
    """`reference.composite` with colours, depth, normal, alpha and background in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,  # [B, N, 2]
        conics: Tensor,  # [B, N, 3]
        opacities: Tensor,  # [B, N]
        depths: Tensor,  # [B, N]
        normals: Tensor,  # [B, N, 3]
        colors: Tensor,  # [B or 1, N, C]
        background: Tensor | None,  # [B, C]
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns image [B, H, W, C], alpha and depth [B, H, W, 1] and normal [B, H, W, 3]."""
        inputs = [_plain(tensor) for tensor in (means2d, conics, opacities, depths, normals, colors, background)]
        shape = (means2d.shape[0], height, width)
        image = means2d.new_empty(*shape, colors.shape[-1])
        alpha, depth, normal = (means2d.new_empty(*shape, channels) for channels in (1, 1, 3))
        ctx.state = native_module().composite_forward(
            *inputs, image, alpha, depth, normal, torch.get_num_threads()
        )
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return image, alpha, depth, normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the tensors, in the order of `forward`."""
        inputs = ctx.saved_tensors
        results = [None if tensor is None else torch.empty_like(tensor) for tensor in inputs]
        incoming = [_plain(gradient) for gradient in gradients]
        native_module().composite_backward(ctx.state, *inputs, *incoming, *results, torch.get_num_threads())
        return *results, None, None


def _usable(gaussians: Gaussians) -> Gaussians:
    """The same Gaussians with unusable rows replaced by culled ones; no copy when there are none."""
    usable = usable_rows(gaussians)
    if bool(usable.all()):
        return gaussians
    keep = [usable.reshape(-1, *[1] * (tensor.dim() - 1)) for tensor in vars(gaussians).values()]
    values = [torch.where(mask, tensor, 0.0) for mask, tensor in zip(keep, vars(gaussians).values(), strict=True)]
    return Gaussians(*values)


def _composite(projection: Projection, colors: Tensor, view: View, settings: Settings) -> Rasterization:
    """Composite projected Gaussians with the extension."""
    background = settings.background
    if background is not None:
        background = background.expand(projection.depths.shape[0], colors.shape[-1])
    image, alpha, depth, normal = _Composite.apply(
        projection.means2d,
        projection.conics,
        projection.opacities,
        projection.depths,
        projection.normals,
        colors,
        background,
        view.width,
        view.height,
    )
    radii = projection.radii.max(dim=-1).values
    return Rasterization(image, alpha, depth, normal, projection.means2d, radii, projection.depths)


def rasterize_native(gaussians: Gaussians, view: View, settings: Settings) -> Rasterization:
    """`rasterize_reference` with the compositing in C++."""
    gaussians = _usable(gaussians)
    projection = project(gaussians, view, settings)
    colors = shade(gaussians.means, gaussians.colors, view.view_matrices, settings.sh_degree)
    return _composite(projection, colors, view, settings)
