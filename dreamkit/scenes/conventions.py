"""Camera poses and lenses of other programs: OpenCV (gsplat), COLMAP and nerfstudio, to and from a `Camera`.

| | pose | camera axes | world |
|---|---|---|---|
| DreamKit | camera to world [4, 4] | OpenGL: x right, y up, z backward | y up, front +z |
| OpenCV, gsplat | world to camera [4, 4] | x right, y down, z forward | as it is |
| COLMAP | world to camera: qvec (w, x, y, z), tvec | x right, y down, z forward | as it is |
| nerfstudio | camera to world [3, 4] | OpenGL: x right, y up, z backward | z up |

Lenses are matrices K of pixels [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in all four, the first pixel's centre at
(1/2, 1/2). Only nerfstudio's world is turned: its point (x, y, z) is ours at (x, z, -y), so its -y is our front. What
COLMAP reconstructed seldom has y up, and is taken as it is.

A `Camera` has square pixels and its principal point in the middle of the picture; other lenses are refused
(`dreamkit.captures` resamples their pictures).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.mesh import quaternion_matrices

_RIGID = 1e-3  # largest error of R^T R against the identity: files round their numbers
_PIXELS = 1e-2  # how far a principal point may be off the middle
_FLIP = (1.0, -1.0, -1.0)  # of the camera's axes, between OpenGL and OpenCV
Z_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
"""Rows of the turn from a world whose z is up to ours, as glTF's exporters make it: what faced -y faces +z."""


def to_opencv(cameras: Camera) -> tuple[Tensor, Tensor]:
    """World to camera [B, 4, 4] in OpenCV's axes, and K [B, 3, 3]: gsplat's `viewmats` and `Ks`."""
    return cameras.view_matrix, cameras.intrinsics


def from_opencv(
    view_matrices: Tensor,  # [B, 4, 4]
    intrinsics: Tensor,  # [B, 3, 3] pixels
    width: int,
    height: int,
) -> Camera:
    """The inverse of `to_opencv`.

    Args:
        view_matrices: world to camera, rigid.
        intrinsics: K of each.
        width: pixels.
        height: pixels.

    Raises:
        SceneError: wrong shapes, a matrix that is not rigid, or a lens that no `Camera` has.
    """
    _check_rigid(view_matrices)
    rotation = view_matrices[:, :3, :3].transpose(1, 2)
    position = -(rotation @ view_matrices[:, :3, 3:])
    flipped = rotation * rotation.new_tensor(_FLIP)
    return _camera(torch.cat([flipped, position], dim=2), intrinsics, width, height)


def to_colmap(cameras: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Give qvec [B, 4] (unit, w, x, y, z, w >= 0) and tvec [B, 3] of COLMAP's images.txt, and K [B, 3, 3].

    The parameters of its PINHOLE cameras are fx, fy, cx, cy: K[0, 0], K[1, 1], K[0, 2], K[1, 2].
    """
    view, intrinsics = to_opencv(cameras)
    return matrix_quaternions(view[:, :3, :3]), view[:, :3, 3], intrinsics


def from_colmap(
    qvec: Tensor,  # [B, 4] wxyz
    tvec: Tensor,  # [B, 3] world units
    intrinsics: Tensor,  # [B, 3, 3] pixels
    width: int,
    height: int,
) -> Camera:
    """The inverse of `to_colmap`; quaternions of any length.

    Raises:
        SceneError: wrong shapes, a quaternion of no length, or a lens that no `Camera` has.
    """
    if qvec.ndim != 2 or qvec.shape[1:] != (4,) or tvec.shape != (len(qvec), 3):
        raise SceneError(f"qvec and tvec are {tuple(qvec.shape)} and {tuple(tvec.shape)}.", "Use [B, 4] and [B, 3].")
    length = qvec.norm(dim=1, keepdim=True)
    if not bool((length > 1e-6).all()):
        raise SceneError("A quaternion of no length is no rotation.", "Check the file's qvec.")
    view = torch.eye(4, dtype=qvec.dtype, device=qvec.device).repeat(len(qvec), 1, 1)
    view[:, :3, :3], view[:, :3, 3] = quaternion_matrices(qvec / length), tvec
    return from_opencv(view, intrinsics, width, height)


def to_nerfstudio(cameras: Camera) -> tuple[Tensor, Tensor]:
    """Camera to world [B, 3, 4] in a world with z up, and K [B, 3, 3]: what nerfstudio's `Cameras` is made of."""
    turn = cameras.camera_to_world.new_tensor(Z_UP).T
    return turn @ cameras.camera_to_world[:, :3], cameras.intrinsics


def from_nerfstudio(
    camera_to_worlds: Tensor,  # [B, 3, 4] or [B, 4, 4]
    intrinsics: Tensor,  # [B, 3, 3] pixels
    width: int,
    height: int,
) -> Camera:
    """The inverse of `to_nerfstudio`.

    Raises:
        SceneError: wrong shapes, a matrix that is not rigid, or a lens that no `Camera` has.
    """
    _check_rigid(camera_to_worlds)
    turn = camera_to_worlds.new_tensor(Z_UP)
    return _camera(turn @ camera_to_worlds[:, :3], intrinsics, width, height)


def points_to_nerfstudio(
    points: Tensor,  # [..., 3]
) -> Tensor:
    """Points of our world in one with z up."""
    return points @ points.new_tensor(Z_UP)


def points_from_nerfstudio(
    points: Tensor,  # [..., 3]
) -> Tensor:
    """Points of a world with z up in ours."""
    return points @ points.new_tensor(Z_UP).T


def matrix_quaternions(
    rotations: Tensor,  # [B, 3, 3]
) -> Tensor:
    """Unit quaternions [B, 4] wxyz of rotation matrices, w >= 0 (the inverse of `quaternion_matrices`).

    4 q q^T can be read off R, and its longest row is the most exact multiple of q (Shepperd, 1978).
    """
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotations.unbind(-2))
    outer = torch.stack(
        [
            1 + a + e + i, h - f, c - g, d - b,
            h - f, 1 + a - e - i, b + d, c + g,
            c - g, b + d, 1 - a + e - i, f + h,
            d - b, c + g, f + h, 1 - a - e + i,
        ],
        dim=-1,
    ).reshape(-1, 4, 4)  # fmt: skip
    longest = outer.norm(dim=2).argmax(dim=1)
    rows = outer[torch.arange(len(outer), device=outer.device), longest]
    sign = torch.where(rows[:, :1] < 0, -1.0, 1.0)
    return sign * rows / rows.norm(dim=1, keepdim=True)


def _check_rigid(poses: Tensor) -> None:
    """Check that matrices [B, 3 or 4, 4] are rotations and shifts.

    Raises:
        SceneError: another shape, not finite, or not rigid.
    """
    if poses.ndim != 3 or poses.shape[1:] not in ((3, 4), (4, 4)):
        raise SceneError(f"Poses of shape {tuple(poses.shape)} are no matrices.", "Use [B, 4, 4] or [B, 3, 4].")
    rotation = poses[:, :3, :3].double()
    defect = (rotation.transpose(1, 2) @ rotation - torch.eye(3, dtype=torch.float64, device=poses.device)).abs()
    rigid = bool((defect < _RIGID).all()) and bool((torch.linalg.det(rotation) > 0).all())
    if not rigid or not bool(torch.isfinite(poses).all()):
        raise SceneError("A camera's matrix is no rotation and shift.", "Take scales and mirrors out of it.")


def _camera(poses: Tensor, intrinsics: Tensor, width: int, height: int) -> Camera:
    """Cameras of poses [B, 3, 4] in our convention and of lenses.

    Raises:
        SceneError: a lens that no `Camera` has.
    """
    if intrinsics.shape != (len(poses), 3, 3) or not bool(torch.isfinite(intrinsics).all()):
        raise SceneError(f"Intrinsics of shape {tuple(intrinsics.shape)} are no lenses.", "Use finite [B, 3, 3].")
    focal_x, focal_y = intrinsics[:, 0, 0], intrinsics[:, 1, 1]
    middle = intrinsics.new_tensor([0.5 * width, 0.5 * height])
    square = ((focal_x - focal_y).abs() <= 1e-4 * focal_y) & (focal_y > 0) & (intrinsics[:, 0, 1].abs() < _PIXELS)
    centred = ((intrinsics[:, :2, 2] - middle).abs() <= _PIXELS).all(dim=1)
    if not bool((square & centred).all()):
        index = int((~(square & centred)).nonzero()[0])
        raise SceneError(
            f"Lens {index} has the focal lengths {float(focal_x[index]):.6g} and {float(focal_y[index]):.6g} and its "
            f"principal point at ({float(intrinsics[index, 0, 2]):.6g}, {float(intrinsics[index, 1, 2]):.6g}) of "
            f"{width} x {height} pixels.",
            "Use square pixels about the middle of the picture, or `dreamkit.captures`, which resamples pictures.",
        )
    last = poses.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(poses), 1, 4)
    fov_y = torch.rad2deg(2.0 * torch.atan(0.5 * height / focal_y))
    return Camera(torch.cat([poses, last], dim=1), fov_y, int(height), int(width))
