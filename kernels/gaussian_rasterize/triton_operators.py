"""Compositing by Triton's kernels as torch operators: `torch.compile` sees through, autograd differentiates them.

What belongs to one Gaussian in one view travels as a row of eight: centre (x, y), conic (xx, xy, yy), opacity, and two
numbers for the sums of absolute gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels
from .reference import NO_EXTRAS, Extras, Projection, bin_tiles

TILE = 16


@torch.library.custom_op("dreamkit::composite_tiles", mutates_args=())
def composite(
    geometry: Tensor,
    features: Tensor,
    entries: Tensor,
    starts: Tensor,
    counts: Tensor,
    width: int,
    height: int,
    halfway: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Composite the Gaussians of every tile, front to back.

    Args:
        geometry: [B, N, 8].
        features: [B, N, F].
        entries: [M] int32, tile by tile: which rows of the flattened geometry.
        starts: [tiles] int32.
        counts: [tiles] int32.
        width: of the images, pixels.
        height: of the images, pixels.
        halfway: the feature to give where half of the light is gone; -1 is none.

    Returns:
        Sums [B, H, W, F], what is left of the light [B, H, W], the feature at half of it [B, H, W] and how many of its
        tile's entries each pixel looked at [B, H, W] int32.
    """
    inputs = map(plain, (geometry, features, entries, starts, counts))
    return kernels("gaussian_rasterize", "triton").forward(*inputs, width, height, halfway)


@torch.library.custom_op("dreamkit::composite_tiles_backward", mutates_args=())
def _backward(
    geometry: Tensor,
    features: Tensor,
    entries: Tensor,
    starts: Tensor,
    rest: Tensor,
    stops: Tensor,
    d_sums: Tensor,
    d_rest: Tensor,
) -> tuple[Tensor, Tensor]:
    inputs = map(plain, (geometry, features, entries, starts, rest, stops, d_sums, d_rest))
    return kernels("gaussian_rasterize", "triton").backward(*inputs)


@composite.register_fake
def _(geometry: Tensor, features: Tensor, entries: Tensor, starts: Tensor, counts: Tensor, width: int, height: int,
      halfway: int) -> tuple[Tensor, ...]:  # fmt: skip
    shape = (geometry.shape[0], height, width)
    planes = [features.new_empty(shape) for _ in range(2)]
    return features.new_empty(*shape, features.shape[2]), *planes, features.new_empty(shape, dtype=torch.int32)


@_backward.register_fake
def _(geometry: Tensor, features: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return geometry.new_empty(geometry.shape), features.new_empty(features.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, rest, halfway, stops = output
    ctx.save_for_backward(*inputs[:4], rest, stops)
    ctx.mark_non_differentiable(halfway, stops)


def _gradients(ctx: Any, d_sums: Tensor, d_rest: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(*ctx.saved_tensors, d_sums, d_rest), *(None,) * 6


composite.register_autograd(_gradients, setup_context=_save)


class _KeepAbsolute(torch.autograd.Function):
    """The geometry as it is; its backward pass takes the last two columns of the gradient out, into `absolute`."""

    @staticmethod
    def forward(ctx: Any, geometry: Tensor, absolute: Tensor) -> Tensor:
        """Geometry [B, N, 8] and where the sums go, [B * N, 2]."""
        ctx.absolute = absolute
        return geometry.view_as(geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the geometry."""
        ctx.absolute.add_(gradients[0][..., 6:].reshape(-1, 2))
        return gradients[0], None


def composite_triton(
    projection: Projection,
    features: Tensor,
    width: int,
    height: int,
    tile_size: int = TILE,
    extras: Extras = NO_EXTRAS,
) -> tuple[Tensor, Tensor]:
    """`reference.composite` by Triton's kernels, whose tiles are of 16 x 16 pixels whatever `tile_size` is."""
    tiles = bin_tiles(projection, width, height, TILE)
    parts = [projection.means2d, projection.conics, projection.opacities[..., None]]
    geometry = torch.cat([*parts, torch.zeros_like(projection.means2d)], dim=-1)
    if extras.absolute is not None:
        geometry = _KeepAbsolute.apply(geometry, extras.absolute)
    halfway = -1 if extras.halfway is None else extras.halfway
    lists = (tiles.gaussians.int(), tiles.starts.int(), tiles.counts.int())
    sums, rest, middle, _ = composite(geometry, features, *lists, width, height, halfway)
    return (sums if halfway < 0 else torch.cat([sums, middle[..., None]], dim=-1)), rest
