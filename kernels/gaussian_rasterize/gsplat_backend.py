"""The gsplat backend: the CUDA kernels of gsplat behind our signature, float32 on a GPU. op.py checks the arguments.

Colours are evaluated here, so that normals can travel as three more channels of one pass. What gsplat does not cull
(rows that hold NaN) is replaced by Gaussians of opacity zero, as in the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .reference import camera_centers, facing_normals, quaternions_to_matrices, shade, usable_gaussians
from .types import Gaussians, Rasterization, Settings, View


def rasterize_gsplat(gaussians: Gaussians, view: View, settings: Settings) -> Rasterization:
    """`reference.rasterize_reference` by `gsplat.rasterization`.

    Raises:
        ValueError: the settings ask for what gsplat does not give.
    """
    if settings.median_depth or settings.absolute_gradients:
        raise ValueError("backend 'gsplat' gives no median_depth and no absolute_gradients; use another one for them.")
    from gsplat import rasterization

    safe = usable_gaussians(gaussians)
    views, count = len(view.view_matrices), len(safe.means)
    colors = shade(safe.means, safe.colors, view.view_matrices, settings.sh_degree).expand(views, count, -1)
    rotations = quaternions_to_matrices(safe.quaternions)
    normals = facing_normals(rotations, safe.scales, safe.means, camera_centers(view.view_matrices))
    channels = colors.shape[-1]
    background = None
    if settings.background is not None:
        flat = settings.background.expand(views, channels)
        background = torch.cat([flat, flat.new_zeros(views, 3)], dim=-1)
    # gsplat leaves a zero quaternion NaN; ours means the identity.
    identity = safe.quaternions.new_tensor([1.0, 0.0, 0.0, 0.0])
    turned = safe.quaternions.norm(dim=-1, keepdim=True) > 1e-12
    result: tuple[Tensor, Tensor, dict[str, Any]] = rasterization(
        means=safe.means,
        quats=torch.where(turned, safe.quaternions, identity),
        scales=safe.scales,
        opacities=safe.opacities,
        colors=torch.cat([colors, normals], dim=-1),
        viewmats=view.view_matrices,
        Ks=view.intrinsics,
        width=view.width,
        height=view.height,
        near_plane=view.near,
        far_plane=view.far,
        radius_clip=settings.radius_clip,
        eps2d=settings.eps2d,
        packed=False,
        backgrounds=background,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if settings.antialiased else "classic",
        camera_model="pinhole" if view.projection == "perspective" else "ortho",
    )
    image, alpha, about = result
    color, normal, depth = image.split([channels, 3, 1], dim=-1)
    radii = about["radii"]
    return Rasterization(
        image=color,
        alpha=alpha,
        depth=depth,
        normal=normal,
        means2d=about["means2d"],
        radii=(radii.amax(dim=-1) if radii.ndim == 3 else radii).to(torch.int32),
        depths=about["depths"],
    )
