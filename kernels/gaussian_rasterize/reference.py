"""The definition of `gaussian_rasterize` in torch, for any floating dtype and device; autograd differentiates it.

Three steps, each a function on tensors:

1. `project`: EWA splatting (Zwicker et al., 2001) as 3D Gaussian Splatting uses it (Kerbl et al., 2023,
   arXiv 2308.04079), with the opacity-aware bounding box of StopThePop (Radl et al., 2024, arXiv 2402.00525) and the
   antialiasing of Mip-Splatting (Yu et al., 2023, arXiv 2311.16493).
2. `shade`: real spherical harmonics 0-3 (Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013).
3. `composite`: front-to-back alpha compositing, exact at every pixel, tile by tile.

The rules (alpha at most 0.999, alpha below 1/255 skipped, stop before the transmittance falls to 1e-4) are gsplat's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .types import (
    ALPHA_MAX,
    ALPHA_MIN,
    MAX_MAGNITUDE,
    TRANSMITTANCE_MIN,
    Gaussians,
    Rasterization,
    Settings,
    View,
)

SEGMENT_BUDGET = 4_000_000
"""Elements of one [tiles, pixels, Gaussians] block: bounds the memory of `composite` (about 20 of them live)."""


class Projection(NamedTuple):
    """N Gaussians as B cameras see them; all zero where culled."""

    means2d: Tensor  # [B, N, 2] pixels
    conics: Tensor  # [B, N, 3] inverse 2D covariance (xx, xy, yy), 1 / pixels^2
    opacities: Tensor  # [B, N] after the antialiasing compensation
    depths: Tensor  # [B, N] camera z, world units
    normals: Tensor  # [B, N, 3] world space, facing the camera
    radii: Tensor  # [B, N, 2] int32 pixels, half the bounding box


def quaternions_to_matrices(
    quaternions: Tensor,  # [N, 4] wxyz
) -> Tensor:
    """Rotation matrices [N, 3, 3] of quaternions of any norm; zero gives the identity."""
    w, x, y, z = functional.normalize(quaternions, dim=-1, eps=1e-12).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(*quaternions.shape[:-1], 3, 3)


def camera_centers(
    view_matrices: Tensor,  # [B, 4, 4] rigid
) -> Tensor:
    """World positions [B, 3] of the cameras: -R^T t."""
    return -torch.einsum("bji,bj->bi", view_matrices[:, :3, :3], view_matrices[:, :3, 3])


def usable_rows(gaussians: Gaussians) -> Tensor:
    """True [N] for Gaussians whose every parameter is finite and at most `MAX_MAGNITUDE`."""
    usable = gaussians.opacities.abs() <= MAX_MAGNITUDE  # False for NaN
    for tensor in (gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.colors):
        usable = usable & (tensor.abs() <= MAX_MAGNITUDE).flatten(1).all(dim=1)
    return usable


def usable_gaussians(gaussians: Gaussians) -> Gaussians:
    """The Gaussians with every row that `usable_rows` refuses replaced by zeros, which are culled."""
    usable = usable_rows(gaussians)
    default = gaussians.means.new_zeros(())
    return Gaussians(
        means=torch.where(usable[:, None], gaussians.means, default),
        quaternions=torch.where(usable[:, None], gaussians.quaternions, default),
        scales=torch.where(usable[:, None], gaussians.scales, default),
        opacities=torch.where(usable, gaussians.opacities, default),  # opacity 0 is culled
        colors=torch.where(usable.reshape(-1, *[1] * (gaussians.colors.dim() - 1)), gaussians.colors, default),
    )


def _project_axes(
    means_camera: Tensor,  # [B, N, 3]
    factors: Tensor,  # [N, 3, 3] R S: the scaled axes as columns
    view: View,
) -> Tensor:
    """EWA: the scaled axes in the image, P [B, N, 2, 3] = J W R S, so that cov2d = P P^T without the low-pass.

    J is the Jacobian of the perspective projection at the centre, whose direction is clamped to 0.3 image half-widths
    outside the image: far outside, the linearisation has no meaning and blows up. Of an orthographic projection it is
    the focal lengths.
    """
    x, y, z = means_camera.unbind(-1)
    focal_x, focal_y = view.intrinsics[:, 0, 0, None], view.intrinsics[:, 1, 1, None]
    if view.projection == "orthographic":
        scaled = view.intrinsics[:, None, [0, 1], [0, 1], None] * view.view_matrices[:, None, :2, :3]
        return (scaled @ factors).expand(*z.shape, 2, 3)
    center_x, center_y = view.intrinsics[:, 0, 2, None], view.intrinsics[:, 1, 2, None]
    margin_x, margin_y = 0.15 * view.width / focal_x, 0.15 * view.height / focal_y
    slope_x = (x / z).clamp(-(center_x / focal_x + margin_x), (view.width - center_x) / focal_x + margin_x)
    slope_y = (y / z).clamp(-(center_y / focal_y + margin_y), (view.height - center_y) / focal_y + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [focal_x / z, zero, -focal_x * slope_x / z, zero, focal_y / z, -focal_y * slope_y / z], dim=-1
    ).reshape(*z.shape, 2, 3)
    return jacobian @ view.view_matrices[:, None, :3, :3] @ factors


def facing_normals(
    rotations: Tensor,  # [N, 3, 3]
    scales: Tensor,  # [N, 3]
    means: Tensor,  # [N, 3]
    centers: Tensor,  # [B, 3]
) -> Tensor:
    """The shortest axis of each Gaussian (the first, on a tie), flipped towards the camera. [B, N, 3]."""
    index = scales.argmin(dim=-1)[:, None, None].expand(-1, 3, 1)
    axes = rotations.gather(-1, index).squeeze(-1)  # [N, 3]
    away = torch.einsum("ni,bni->bn", axes, means - centers[:, None]) > 0
    return torch.where(away[..., None], -axes, axes)


@torch.no_grad()
def _bounding_radii(
    means2d: Tensor,  # [B, N, 2]
    variances: Tensor,  # [B, N, 2] diagonal of cov2d
    opacities: Tensor,  # [B, N]
    seen: Tensor,  # [B, N] bool
    view: View,
    settings: Settings,
) -> Tensor:
    """Half the bounding boxes in whole pixels, [B, N, 2] int32; 0 for what is not seen or culled by size or place.

    alpha >= 1/255 <=> (p - m)^T conic (p - m) <= 2 ln(255 opacity): an ellipse with these half axes.
    """
    extent = torch.sqrt(2.0 * torch.log(opacities.clamp_min(ALPHA_MIN) / ALPHA_MIN))
    radii = torch.ceil(extent[..., None] * torch.sqrt(variances))
    size = radii.new_tensor([view.width, view.height])
    seen = seen & (opacities >= ALPHA_MIN) & (radii > settings.radius_clip).any(dim=-1)
    seen = seen & ((means2d + radii > 0) & (means2d - radii < size)).all(dim=-1)
    return torch.where(seen[..., None], radii.clamp(min=1, max=1e9), 0).to(torch.int32)


def project(
    gaussians: Gaussians,
    view: View,
    settings: Settings,
) -> Projection:
    """Project Gaussians to the image plane and cull what can't be seen.

    cov2d = J W R S S^T R^T W^T J^T + eps2d I; conic = cov2d^-1. With `antialiased` the opacity is multiplied by
    sqrt(det(cov2d - eps2d I) / det(cov2d)).

    Culled (zero everywhere, no gradient): a projection that is not finite, z outside [near, far], opacity below
    1/255, both radii at most `radius_clip`, bounding box outside the image.

    Args:
        gaussians: [N] Gaussians. Unusable rows must already be replaced (see `rasterize_reference`).
        view: B cameras.
        settings: `antialiased`, `eps2d` and `radius_clip` are used.

    Returns:
        See `Projection`.
    """
    rotations = quaternions_to_matrices(gaussians.quaternions)
    factors = rotations * gaussians.scales[:, None, :]  # [N, 3, 3]

    world_to_camera = view.view_matrices[:, None, :3, :3]
    means_camera = (world_to_camera @ gaussians.means[:, :, None]).squeeze(-1) + view.view_matrices[:, None, :3, 3]
    depths = means_camera[..., 2]
    seen = (depths >= view.near) & (depths <= view.far)  # [B, N]
    placeholder = means_camera.new_tensor([0.0, 0.0, 1.0])
    means_camera = torch.where(seen[..., None], means_camera, placeholder)  # keeps 1 / z finite in the backward

    focal = view.intrinsics[:, None, [0, 1], [0, 1]]
    flat = means_camera[..., :2]
    if view.projection == "perspective":
        flat = flat / means_camera[..., 2:]
    means2d = focal * flat + view.intrinsics[:, None, :2, 2]
    axes_x, axes_y = _project_axes(means_camera, factors, view).unbind(-2)  # [B, N, 3] each
    xx, xy, yy = (axes_x * axes_x).sum(-1), (axes_x * axes_y).sum(-1), (axes_y * axes_y).sum(-1)
    # det(P P^T) = |P_x x P_y|^2, and the low-pass adds eps2d (xx + yy) + eps2d^2: sums of squares, where
    # xx yy - xy^2 would cancel for flat Gaussians.
    determinant_sharp = torch.linalg.cross(axes_x, axes_y).square().sum(-1)
    determinant = determinant_sharp + settings.eps2d * (xx + yy) + settings.eps2d**2
    xx, yy = xx + settings.eps2d, yy + settings.eps2d
    seen = seen & (determinant > 0) & torch.isfinite(determinant) & torch.isfinite(means2d).all(dim=-1)
    determinant = torch.where(seen, determinant, 1.0)
    conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]

    opacities = gaussians.opacities.expand_as(depths)
    if settings.antialiased:
        ratio = determinant_sharp / determinant
        seen = seen & (ratio > 1e-12)  # the square root has no slope at zero
        opacities = opacities * torch.sqrt(torch.where(seen, ratio, 1.0))
    radii = _bounding_radii(means2d, torch.stack([xx, yy], dim=-1), opacities, seen, view, settings)
    seen = (radii > 0).all(dim=-1)
    normals = facing_normals(rotations, gaussians.scales, gaussians.means, camera_centers(view.view_matrices))
    visible = seen[..., None]
    return Projection(
        means2d=torch.where(visible, means2d, 0.0),
        conics=torch.where(visible, conics, 0.0),
        opacities=torch.where(seen, opacities, 0.0),
        depths=torch.where(seen, depths, 0.0),
        normals=torch.where(visible, normals, 0.0),
        radii=radii,
    )


def spherical_harmonics_basis(
    degree: int,
    directions: Tensor,  # [..., 3] unit
) -> Tensor:
    """Real spherical harmonics [..., (degree + 1)^2] in the order and with the signs of gsplat; degree 0 to 3."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.2820947917738781)]
    if degree >= 1:
        basis += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    xx_yy, xy2 = x * x - y * y, 2 * x * y
    if degree >= 2:
        basis += [
            0.5462742152960395 * xy2,
            -1.092548430592079 * z * y,
            0.9461746957575601 * z * z - 0.3153915652525201,
            -1.092548430592079 * z * x,
            0.5462742152960395 * xx_yy,
        ]
    if degree >= 3:
        ring = -2.285228997322329 * z * z + 0.4570457994644658
        basis += [
            -0.5900435899266435 * (x * xy2 + y * xx_yy),
            1.445305721320277 * z * xy2,
            ring * y,
            z * (1.865881662950577 * z * z - 1.119528997770346),
            ring * x,
            1.445305721320277 * z * xx_yy,
            -0.5900435899266435 * (x * xx_yy - y * xy2),
        ]
    return torch.stack(basis, dim=-1)


def shade(
    means: Tensor,  # [N, 3]
    colors: Tensor,  # [N, C] or [N, K, 3]
    view_matrices: Tensor,  # [B, 4, 4]
    sh_degree: int | None,
) -> Tensor:
    """Colours per view: plain ones as they are, [1, N, C]; harmonics as max(0, 1/2 + sum_k c_k Y_k(d)), [B, N, 3].

    d is the unit direction from the camera to the Gaussian, so positions and poses receive gradients through it.
    """
    if colors.dim() == 2:
        return colors[None]
    degree = math.isqrt(colors.shape[1]) - 1 if sh_degree is None else sh_degree
    directions = functional.normalize(means - camera_centers(view_matrices)[:, None], dim=-1, eps=1e-12)
    basis = spherical_harmonics_basis(degree, directions)  # [B, N, K']
    return torch.relu(torch.einsum("bnk,nkc->bnc", basis, colors[:, : basis.shape[-1]]) + 0.5)


class _Tiles(NamedTuple):
    """For each of V * tiles_y * tiles_x tiles, the Gaussians that touch it, front to back."""

    gaussians: Tensor  # [M] int64, index into the flattened [V * N]
    starts: Tensor  # [tiles] int64
    counts: Tensor  # [tiles] int64


@torch.no_grad()
def bin_tiles(
    projection: Projection,
    width: int,
    height: int,
    tile_size: int,
) -> _Tiles:
    """List the Gaussians of every tile in depth order (ties by index), by their bounding boxes."""
    views, count = projection.depths.shape
    tiles_x, tiles_y = -(-width // tile_size), -(-height // tile_size)
    limits = torch.tensor([tiles_x, tiles_y], device=projection.means2d.device)
    order = torch.sort(projection.depths, dim=1, stable=True).indices  # [B, N]
    flat = (order + torch.arange(views, device=order.device)[:, None] * count).flatten()
    means2d, radii = projection.means2d.reshape(-1, 2)[flat], projection.radii.reshape(-1, 2)[flat]
    low = ((means2d - radii) / tile_size).floor().clamp_min(0).to(torch.int64).minimum(limits)
    high = ((means2d + radii) / tile_size).ceil().clamp_min(0).minimum(limits.to(means2d.dtype)).to(torch.int64)
    spans = (high - low).clamp_min(0) * (radii > 0)  # [B * N, 2]
    per_gaussian = spans.prod(dim=-1)
    owner = torch.repeat_interleave(torch.arange(flat.numel(), device=flat.device), per_gaussian)
    offset = torch.arange(owner.numel(), device=flat.device) - (per_gaussian.cumsum(0) - per_gaussian)[owner]
    span_x = spans[owner, 0]
    tile_x = low[owner, 0] + offset % span_x
    tile_y = low[owner, 1] + torch.div(offset, span_x, rounding_mode="floor")
    tile = ((flat[owner] // max(count, 1)) * tiles_y + tile_y) * tiles_x + tile_x
    tile, permutation = torch.sort(tile, stable=True)
    counts = torch.bincount(tile, minlength=views * tiles_x * tiles_y)
    return _Tiles(flat[owner[permutation]], counts.cumsum(0) - counts, counts)


class Extras(NamedTuple):
    """What `composite` gives besides sums."""

    halfway: int | None = None
    """Feature whose value at the Gaussian where half of the light is gone becomes one more feature, without
    gradient."""
    absolute: Tensor | None = None  # [B * N, 2]
    """Where the backward pass adds up |dL/d means2d| over pixels."""


NO_EXTRAS = Extras()


class _Offsets(torch.autograd.Function):
    """pixels - means [t, P, K, 2], whose backward pass also adds up absolute values."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, means: Tensor, index: Tensor, absolute: Tensor) -> Tensor:
        """Pixel centres [t, P, 2] against means [t, K, 2] of the Gaussians `index` [t, K]."""
        ctx.index, ctx.absolute = index, absolute
        return pixels[:, :, None] - means[:, None]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the means."""
        ctx.absolute.index_add_(0, ctx.index.flatten(), gradients[0].abs().sum(dim=1).flatten(0, 1))
        return None, -gradients[0].sum(dim=1), None, None


def _composite_segment(
    pixels: Tensor,  # [t, P, 2] pixel centres
    geometry: Tensor,  # [t, K, 6] mean (2), conic (3), opacity; opacity 0 is padding
    features: Tensor,  # [t, K, F]
    transmittance: Tensor,  # [t, P] before this segment
    stopped: Tensor,  # [t, P] bool
    index: Tensor,  # [t, K] which Gaussians they are
    extras: Extras,
) -> tuple[Tensor, Tensor, Tensor]:
    """Composite K Gaussians, front to back, over t tiles of P pixels, behind what was composited before.

    Returns:
        The features' sum [t, P, F or F + 1], the transmittance after [t, P] and which pixels have stopped [t, P].
    """
    if extras.absolute is None:
        offsets = pixels[:, :, None] - geometry[:, None, :, :2]  # [t, P, K, 2]
    else:
        offsets = _Offsets.apply(pixels, geometry[..., :2], index, extras.absolute)
    dx, dy = offsets.unbind(-1)
    a, b, c, opacity = geometry[:, None, :, 2:].unbind(-1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacity * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    with torch.no_grad():
        used = (sigma >= 0) & (alpha >= ALPHA_MIN)
        trial = transmittance[..., None] * torch.cumprod(1 - torch.where(used, alpha, 0.0), dim=-1)
        alive = (trial > TRANSMITTANCE_MIN) & ~stopped[..., None]
        stopped = ~alive[..., -1]
    alpha = torch.where(used & alive, alpha, 0.0)
    after = transmittance[..., None] * torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([transmittance[..., None], after[..., :-1]], dim=-1)
    total = (alpha * before) @ features
    if extras.halfway is not None:
        halves = ((before > 0.5) & (after <= 0.5)).to(features.dtype)
        total = torch.cat([total, (halves @ features[..., extras.halfway, None]).detach()], dim=-1)
    return total, after[..., -1], stopped


def _composite_tiles(
    flat_geometry: Tensor,  # [V * N, 6]
    flat_features: Tensor,  # [V * N, F]
    tiles: _Tiles,
    members: Tensor,  # [t] tile numbers
    pixels: Tensor,  # [t, P, 2]
    extras: Extras,
) -> tuple[Tensor, Tensor]:
    """Composite a group of tiles, segment by segment; returns features [t, P, F] and transmittance [t, P]."""
    longest = int(tiles.counts[members].max())
    total = pixels.new_zeros(*pixels.shape[:2], flat_features.shape[1] + (extras.halfway is not None))
    transmittance = pixels.new_ones(pixels.shape[:2])
    stopped = torch.zeros_like(transmittance, dtype=torch.bool)
    step = max(1, SEGMENT_BUDGET // (pixels.shape[0] * pixels.shape[1]))
    needs_grad = torch.is_grad_enabled() and (flat_geometry.requires_grad or flat_features.requires_grad)
    for first in range(0, longest, step):
        position = torch.arange(first, min(first + step, longest), device=pixels.device)
        inside = position < tiles.counts[members, None]  # [t, K]
        index = tiles.gaussians[torch.where(inside, tiles.starts[members, None] + position, 0)]
        geometry = flat_geometry[index] * torch.where(inside, 1.0, 0.0).to(pixels.dtype)[..., None]
        arguments = (pixels, geometry, flat_features[index], transmittance, stopped, index, extras)
        if needs_grad:  # recompute in the backward: the [t, P, K] blocks are never all alive at once
            added, transmittance, stopped = checkpoint(_composite_segment, *arguments, use_reentrant=False)
        else:
            added, transmittance, stopped = _composite_segment(*arguments)
        total = total + added
        if bool(stopped.all()):
            break
    return total, transmittance


def composite(
    projection: Projection,
    features: Tensor,  # [B, N, F]
    width: int,
    height: int,
    tile_size: int = 16,
    extras: Extras = NO_EXTRAS,
) -> tuple[Tensor, Tensor]:
    """Front-to-back alpha compositing of F features per Gaussian.

    alpha_i(p) = min(0.999, opacity_i exp(-1/2 (p - m_i)^T conic_i (p - m_i))), skipped below 1/255;
    w_i = alpha_i T_i; T_{i+1} = T_i (1 - alpha_i); a pixel stops before the first i with T_{i+1} <= 1e-4.

    Args:
        projection: what `project` returned.
        features: what is composited.
        width: image width, pixels.
        height: image height, pixels.
        tile_size: side of a tile; bounds memory, does not change the result.
        extras: what else to give.

    Returns:
        sum_i w_i f_i as [B, H, W, F] (with `halfway` one more) and the final transmittance [B, H, W].
    """
    views, count = projection.depths.shape
    channels = features.shape[-1]
    results = channels + (extras.halfway is not None)
    tiles_x, tiles_y = -(-width // tile_size), -(-height // tile_size)
    tiles = bin_tiles(projection, width, height, tile_size)
    flat_geometry = torch.cat([projection.means2d, projection.conics, projection.opacities[..., None]], dim=-1).reshape(
        views * count, 6
    )
    flat_features = features.reshape(views * count, channels)
    side = torch.arange(tile_size, device=features.device)
    local = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).reshape(-1, 2)  # [P, 2]

    order = torch.sort(tiles.counts, descending=True, stable=True).indices
    lengths = tiles.counts[order].tolist()
    numbers, sums, remains = [], [], []
    position, occupied = 0, sum(length > 0 for length in lengths)
    while position < occupied:  # tiles of similar length share a group, so that little is padded
        size = max(1, SEGMENT_BUDGET // (tile_size * tile_size * lengths[position]))
        members = order[position : min(position + size, occupied)]
        corner = torch.stack([members % tiles_x, members // tiles_x % tiles_y], dim=-1) * tile_size
        pixels = (corner[:, None] + local).to(features.dtype) + 0.5
        total, transmittance = _composite_tiles(flat_geometry, flat_features, tiles, members, pixels, extras)
        numbers.append(members)
        sums.append(total)
        remains.append(transmittance)
        position += size
    shape = (views * tiles_y * tiles_x, tile_size * tile_size)
    attached = 0.0 * (flat_geometry.sum() + flat_features.sum())  # nothing visible has gradients too: zeros
    image = features.new_zeros(*shape, results) + attached
    rest = features.new_ones(shape) + attached
    if numbers:
        image = image.index_copy(0, torch.cat(numbers), torch.cat(sums))
        rest = rest.index_copy(0, torch.cat(numbers), torch.cat(remains))
    image = image.reshape(views, tiles_y, tiles_x, tile_size, tile_size, results).transpose(2, 3)
    rest = rest.reshape(views, tiles_y, tiles_x, tile_size, tile_size).transpose(2, 3)
    image = image.reshape(views, tiles_y * tile_size, tiles_x * tile_size, results)
    rest = rest.reshape(views, tiles_y * tile_size, tiles_x * tile_size)
    return image[:, :height, :width], rest[:, :height, :width]


def rasterize_reference(
    gaussians: Gaussians,
    view: View,
    settings: Settings,
) -> Rasterization:
    """Render with `project`, `shade` and `composite`. Arguments must have passed `check_arguments`."""
    safe = usable_gaussians(gaussians)
    projection = project(safe, view, settings)
    views = view.view_matrices.shape[0]
    colors = shade(safe.means, safe.colors, view.view_matrices, settings.sh_degree).expand(views, -1, -1)
    channels = colors.shape[-1]
    features = torch.cat([colors, projection.depths[..., None], projection.normals], dim=-1)
    absolute = features.new_zeros(views * features.shape[1], 2) if settings.absolute_gradients else None
    extras = Extras(channels if settings.median_depth else None, absolute)
    sums, transmittance = composite(projection, features, view.width, view.height, settings.tile_size, extras)
    image, depth, normal, median = sums.split([channels, 1, 3, sums.shape[-1] - channels - 4], dim=-1)
    if settings.background is not None:
        background = settings.background.reshape(-1, 1, 1, channels)
        image = image + transmittance[..., None] * background
    return Rasterization(
        image=image,
        alpha=1 - transmittance[..., None],
        depth=depth,
        normal=normal,
        means2d=projection.means2d,
        radii=projection.radii.max(dim=-1).values,
        depths=projection.depths,
        median_depth=median.detach() if settings.median_depth else None,
        absolute_gradients=None if absolute is None else absolute.view(views, -1, 2),
    )
