"""From world to clip space: where rasterisers of triangles want their vertices."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera


def projection_matrix(cameras: Camera) -> Tensor:
    """From camera axes (OpenCV: x right, y down, z forward) to OpenGL's clip space (x right, y up).

    With focal lengths f and the principal point c of the intrinsics, an image of W x H pixels, near n and far m:

        x' = (2 f_x / W) x + (2 c_x / W - 1) z
        y' = -(2 f_y / H) y - (2 c_y / H - 1) z
        z' = ((m + n) z - 2 m n) / (m - n)
        w' = z

    so that x' / w' runs from -1 at the left border to 1 at the right one, y' / w' from -1 at the bottom to 1 at the
    top, and z' / w' from -1 at the near plane to 1 at the far one.

    Args:
        cameras: B views.

    Returns:
        [B, 4, 4], differentiable with respect to the field of view.
    """
    intrinsics, near, far = cameras.intrinsics, cameras.near, cameras.far
    matrices = torch.zeros(len(cameras), 4, 4, device=intrinsics.device, dtype=intrinsics.dtype)
    matrices[:, 0, 0] = 2.0 * intrinsics[:, 0, 0] / cameras.width
    matrices[:, 0, 2] = 2.0 * intrinsics[:, 0, 2] / cameras.width - 1.0
    matrices[:, 1, 1] = -2.0 * intrinsics[:, 1, 1] / cameras.height
    matrices[:, 1, 2] = 1.0 - 2.0 * intrinsics[:, 1, 2] / cameras.height
    matrices[:, 2, 2] = (far + near) / (far - near)
    matrices[:, 2, 3] = -2.0 * far * near / (far - near)
    matrices[:, 3, 2] = 1.0
    return matrices


def clip_positions(
    cameras: Camera,
    vertices: Tensor,  # [V, 3] world units
) -> Tensor:
    """Vertices in OpenGL's clip space: P view (x, y, z, 1), see `projection_matrix`.

    A vertex is drawn where -w <= x, y, z <= w. Its pixel is ((x / w + 1) W / 2, (1 - y / w) H / 2), the same as
    `Camera.project` says; w is its depth along the viewing axis, world units.

    Args:
        cameras: B views.
        vertices: [V, 3] world units; gradients reach them and the cameras.

    Returns:
        [B, V, 4].

    Raises:
        SceneError: the vertices have another shape.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise SceneError(f"Vertices of shape {tuple(vertices.shape)} are no points.", "Use [V, 3].")
    matrices = projection_matrix(cameras) @ cameras.view_matrix  # [B, 4, 4]
    return vertices @ matrices[:, :, :3].transpose(1, 2) + matrices[:, None, :, 3]
