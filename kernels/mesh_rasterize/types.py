"""What `rasterize` gives, and the checks that name a wrong argument."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape

MAX_IMAGE_SIDE = 16384
MAX_FACES = 2**31 // 6
"""A number of an edge and of one of its two sides fits in an int32."""
MAX_STEPS = 64
"""Most faces that a search for a silhouette walks over between two neighbouring pixels."""


@dataclass(frozen=True)
class Fragments:
    """What the centres of the pixels of B images see of a mesh."""

    faces: Tensor  # [B, H, W] int32
    """The face that a pixel's centre sees, -1 for none."""
    barycentrics: Tensor  # [B, H, W, 3]
    """Perspective-correct weights of its corners, which add up to 1; 0 where there is none. Gradients reach the
    positions."""
    depth: Tensor  # [B, H, W]
    """z / w in [-1, 1], smaller is nearer; 1 where there is none. No gradient."""


def check_faces(faces: Tensor, count: int | None = None, like: Tensor | None = None) -> None:
    """Check triangles, and if given against the number of vertices and the device of what belongs to them.

    Raises:
        TypeError: no tensor, or neither int32 nor int64.
        ValueError: a wrong shape, device or number of a vertex.
    """
    check_shape("faces", faces, ["F", 3])
    if faces.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"faces must be int32 or int64, got {faces.dtype}.")
    if like is not None and faces.device != like.device:
        raise ValueError(f"faces must be on {like.device}, got {faces.device}.")
    if len(faces) > MAX_FACES:
        raise ValueError(f"faces must not be more than {MAX_FACES}, got {len(faces)}.")
    if torch.compiler.is_compiling() or len(faces) == 0:
        return  # the values are not known while a graph is traced; the native kernels check them too
    low, high = torch.stack(faces.aminmax()).tolist()  # a single wait for a GPU
    count = 2**31 - 1 if count is None else count
    if low < 0 or high >= count:
        raise ValueError(f"faces must hold numbers of the {count} vertices, got {low} to {high}.")


def check_mesh(positions: Tensor, faces: Tensor) -> None:
    """Check vertices and triangles.

    Raises:
        TypeError: tensors of a wrong kind or dtype.
        ValueError: a wrong shape, device or number of a vertex.
    """
    check_float("positions", positions)
    check_shape("positions", positions, ["B", "V", 4])
    check_faces(faces, positions.shape[1], positions)


def check_edges(edges: Tensor, faces: Tensor) -> None:
    """Check what lies beyond edges against the faces that it belongs to.

    Raises:
        TypeError: no tensor, or not int32.
        ValueError: a wrong shape, device or number of an edge.
    """
    check_shape("edges", edges, faces.shape)
    if edges.dtype != torch.int32:
        raise TypeError(f"edges must be int32, got {edges.dtype}.")
    if edges.device != faces.device:
        raise ValueError(f"edges must be on {faces.device}, got {edges.device}.")
    if torch.compiler.is_compiling() or len(edges) == 0:
        return
    low, high = torch.stack(edges.aminmax()).tolist()
    if low < -1 or high >= edges.numel():
        raise ValueError(f"edges must hold -1 or numbers of the {edges.numel()} edges, got {low} to {high}.")


def check_size(views: int, height: int, width: int) -> None:
    """Check the size of B images.

    Raises:
        TypeError: a side that is no int.
        ValueError: a side out of range, or too many pixels in all.
    """
    for name, side in (("height", height), ("width", width)):
        if not isinstance(side, int) or isinstance(side, bool):
            raise TypeError(f"{name} must be an int, got {type(side).__name__}.")
        if not 1 <= side <= MAX_IMAGE_SIDE:
            raise ValueError(f"{name} must be between 1 and {MAX_IMAGE_SIDE}, got {side}.")
    if views * height * width >= 2**31:
        raise ValueError(f"height and width: {views} images of {height}x{width} have 2^31 pixels or more.")


def check_fragments(fragments: Fragments, count: int, name: str, like: Tensor) -> None:
    """Check fragments against the number of faces, and the dtype and device of a named other tensor.

    Raises:
        TypeError: tensors of a wrong kind or dtype.
        ValueError: a wrong shape, device or number of a face.
    """
    seen = fragments.faces
    check_shape("fragments.faces", seen, ["B", "H", "W"])
    if seen.dtype != torch.int32:
        raise TypeError(f"fragments.faces must be int32, got {seen.dtype}.")
    if seen.device != like.device:
        raise ValueError(f"fragments.faces must be on {like.device}, got {seen.device}.")
    check_shape("fragments.barycentrics", fragments.barycentrics, [*seen.shape, 3])
    check_shape("fragments.depth", fragments.depth, seen.shape)
    check_like("fragments.barycentrics", fragments.barycentrics, name, like)
    check_like("fragments.depth", fragments.depth, name, like)
    if torch.compiler.is_compiling() or seen.numel() == 0:
        return
    low, high = torch.stack(seen.aminmax()).tolist()
    if low < -1 or high >= count:
        raise ValueError(f"fragments.faces must hold -1 or numbers of the {count} faces, got {low} to {high}.")
