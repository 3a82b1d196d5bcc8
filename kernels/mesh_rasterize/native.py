"""The native kernels: C++ on contiguous float32 tensors and int32 faces on the CPU. Outputs are allocated here."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dispatch import native_module
from .topology import edges_reference

SPARSE = 64
"""Numbers of vertices a face beyond which a table of the vertices is not worth its room."""


def rasterize_forward(positions: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Faces [B, H, W], barycentrics [B, H, W, 3] and depth [B, H, W]."""
    depth = positions.new_empty(len(positions), height, width)
    seen, barycentrics = torch.empty_like(depth, dtype=torch.int32), depth.new_empty(*depth.shape, 3)
    native_module().mesh_rasterize(positions, faces, seen, barycentrics, depth, torch.get_num_threads())
    return seen, barycentrics, depth


def rasterize_backward(positions: Tensor, faces: Tensor, seen: Tensor, d_barycentrics: Tensor) -> Tensor:
    """The gradient of the positions."""
    d_positions = torch.empty_like(positions)
    inputs = (positions, faces, seen, d_barycentrics)
    native_module().mesh_rasterize_backward(*inputs, d_positions, torch.get_num_threads())
    return d_positions


def interpolate_forward(attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor) -> Tensor:
    """Attributes [B or 1, V, C] at every pixel [B, H, W, C]."""
    image = attributes.new_empty(*seen.shape, attributes.shape[2])
    native_module().mesh_interpolate(attributes, faces, seen, barycentrics, image, torch.get_num_threads())
    return image


def interpolate_backward(
    attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor, d_image: Tensor,
    of_attributes: bool, of_barycentrics: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients of attributes and barycentrics, those that are asked for."""
    d_attributes = torch.empty_like(attributes) if of_attributes else None
    d_barycentrics = torch.empty_like(barycentrics) if of_barycentrics else None
    inputs = (attributes, faces, seen, barycentrics, d_image)
    native_module().mesh_interpolate_backward(*inputs, d_attributes, d_barycentrics, torch.get_num_threads())
    return d_attributes, d_barycentrics


def find_edges(faces: Tensor) -> Tensor:
    """What lies beyond every edge [F, 3]."""
    vertices = int(faces.max()) + 1 if len(faces) else 0
    if vertices > SPARSE * len(faces):
        return edges_reference(faces)
    edges = torch.empty_like(faces)
    native_module().mesh_edges(faces, vertices, edges)
    return edges


def antialias_forward(
    image: Tensor, seen: Tensor, depth: Tensor, positions: Tensor, faces: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """The blended image, and the silhouettes [2, B, H, W] between a pixel and the next one to the right, and below.

    A silhouette is -1 for none, else 2 (3 f + i) for edge i of face f, plus 1 where the next pixel sees the surface.
    """
    result, silhouettes = torch.empty_like(image), seen.new_empty(2, *seen.shape)
    inputs = (image, seen, depth, positions, faces, edges)
    native_module().mesh_antialias(*inputs, result, silhouettes, torch.get_num_threads())
    return result, silhouettes


def antialias_backward(
    image: Tensor, silhouettes: Tensor, positions: Tensor, faces: Tensor, d_result: Tensor, of_positions: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of image and, if asked for, positions."""
    d_image = torch.empty_like(image)
    d_positions = torch.empty_like(positions) if of_positions else None
    inputs = (image, silhouettes, positions, faces, d_result)
    native_module().mesh_antialias_backward(*inputs, d_image, d_positions, torch.get_num_threads())
    return d_image, d_positions
