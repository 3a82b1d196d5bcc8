"""The Triton kernels of projection and spherical harmonics. The definitions are reference.project and reference.shade.

A lane holds a Gaussian; three-vectors are tuples of lanes. The backward passes walk the views, so that no sum needs
atomics: equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .types import ALPHA_MIN, MAX_MAGNITUDE

LANES = 128
"""Gaussians of a program."""
POSE = 12
"""Numbers of a pose's gradient: the rotation row by row, then the translation."""
LOWEST, LARGEST = tl.constexpr(ALPHA_MIN), tl.constexpr(MAX_MAGNITUDE)


@triton.jit
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def _cross(a, b):
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


@triton.jit
def _plus(a, b):
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


@triton.jit
def _times(factor, a):
    return (factor * a[0], factor * a[1], factor * a[2])


@triton.jit
def _kept(mask, a):
    return (tl.where(mask, a[0], 0.0), tl.where(mask, a[1], 0.0), tl.where(mask, a[2], 0.0))


@triton.jit
def _three(ptr, exists):
    """A vector of each lane, or of all of them where the pointer is one."""
    return (tl.load(ptr, mask=exists, other=0.0), tl.load(ptr + 1, mask=exists, other=0.0),
            tl.load(ptr + 2, mask=exists, other=0.0))  # fmt: skip


@triton.jit
def _store_three(ptr, a, exists):
    tl.store(ptr, a[0], mask=exists)
    tl.store(ptr + 1, a[1], mask=exists)
    tl.store(ptr + 2, a[2], mask=exists)


@triton.jit
def _pose(poses_ptr, view):
    """Rows of the rotation, the translation and the place of a camera."""
    pose = poses_ptr + view * 16
    w0, w1, w2 = _three(pose, True), _three(pose + 4, True), _three(pose + 8, True)
    t = (tl.load(pose + 3), tl.load(pose + 7), tl.load(pose + 11))
    place = _plus(_plus(_times(-t[0], w0), _times(-t[1], w1)), _times(-t[2], w2))
    return w0, w1, w2, t, place


@triton.jit
def _quaternion(ptr, exists):
    """Unit quaternion of each lane, and what it was multiplied by."""
    w, x = tl.load(ptr, mask=exists, other=0.0), tl.load(ptr + 1, mask=exists, other=0.0)
    y, z = tl.load(ptr + 2, mask=exists, other=0.0), tl.load(ptr + 3, mask=exists, other=0.0)
    inverse = 1.0 / tl.maximum(tl.sqrt(w * w + x * x + y * y + z * z), 1e-12)
    return w * inverse, x * inverse, y * inverse, z * inverse, inverse


@triton.jit
def _axes(w, x, y, z):
    """Columns of the rotation matrix: where the local axes point."""
    return (
        (1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y)),
        (2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x)),
        (2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)),
    )


@triton.jit
def _bounded(value):
    return tl.abs(value) <= LARGEST  # not NaN


@triton.jit
def _all_bounded(a):
    return _bounded(a[0]) & _bounded(a[1]) & _bounded(a[2])


@triton.jit
def _camera(w0, w1, w2, t, mean, seen):
    """Centres in the camera's frame, (0, 0, 1) where not seen."""
    return (
        tl.where(seen, _dot(w0, mean) + t[0], 0.0),
        tl.where(seen, _dot(w1, mean) + t[1], 0.0),
        tl.where(seen, _dot(w2, mean) + t[2], 1.0),
    )


@triton.jit
def _slope(raw, center, focal, size):
    """A slope, clamped to 0.15 image widths outside the image, and whether it was not."""
    margin = 0.15 * size / focal
    low, high = -(center / focal + margin), (size - center) / focal + margin
    return tl.minimum(tl.maximum(raw, low), high), (raw >= low) & (raw <= high)


@triton.jit
def _rows(w0, w1, w2, camera, fx, fy, cx, cy, width, height, ORTHOGRAPHIC: tl.constexpr):
    """Rows of J W, the inverse depth, and both slopes with whether they are free."""
    if ORTHOGRAPHIC:
        inverse = camera[2] * 0.0 + 1.0
        slope_x, slope_y = camera[2] * 0.0, camera[2] * 0.0
        free_x, free_y = slope_x > 0.0, slope_y > 0.0
    else:
        inverse = 1.0 / camera[2]
        slope_x, free_x = _slope(camera[0] * inverse, cx, fx, width)
        slope_y, free_y = _slope(camera[1] * inverse, cy, fy, height)
    row_x = _times(fx * inverse, _plus(w0, _times(-slope_x, w2)))
    row_y = _times(fy * inverse, _plus(w1, _times(-slope_y, w2)))
    return row_x, row_y, inverse, slope_x, slope_y, free_x, free_y


@triton.jit
def _local(row, axes, scales):
    """A row against the axes, and the same scaled."""
    local = (_dot(row, axes[0]), _dot(row, axes[1]), _dot(row, axes[2]))
    return local, (local[0] * scales[0], local[1] * scales[1], local[2] * scales[2])


@triton.jit
def _covariance(px, py, eps2d):
    """cov2d (xx, xy, yy) with the low-pass, its determinant, the one without, and the cross product."""
    normal = _cross(px, py)
    xx, xy, yy = _dot(px, px), _dot(px, py), _dot(py, py)
    sharp = _dot(normal, normal)
    return xx + eps2d, xy, yy + eps2d, sharp + eps2d * (xx + yy) + eps2d * eps2d, sharp, normal


@triton.jit
def _normal(axes, scales, mean, place):
    """The shortest axis towards the camera, its sign, and which axis it is (the first on a tie)."""
    third = (scales[2] < scales[0]) & (scales[2] < scales[1])
    second = (scales[1] < scales[0]) & (third == 0)
    x = tl.where(third, axes[2][0], tl.where(second, axes[1][0], axes[0][0]))
    y = tl.where(third, axes[2][1], tl.where(second, axes[1][1], axes[0][1]))
    z = tl.where(third, axes[2][2], tl.where(second, axes[1][2], axes[0][2]))
    away = _dot((x, y, z), _plus(mean, _times(-1.0, place)))
    sign = tl.where(away > 0.0, -1.0, 1.0)
    return (sign * x, sign * y, sign * z), sign, second, third


@triton.jit
def project_kernel(
    means_ptr, quaternions_ptr, scales_ptr, opacities_ptr, usable_ptr, poses_ptr, lenses_ptr, means2d_ptr,
    geometry_ptr, boxes_ptr, radii_ptr, count, width, height, near, far, eps2d, radius_clip,
    ANTIALIASED: tl.constexpr, ORTHOGRAPHIC: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Gaussians of a block in one view."""
    index = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    view = tl.program_id(1).to(tl.int64)
    exists = index < count
    w0, w1, w2, t, place = _pose(poses_ptr, view)
    lens = lenses_ptr + view * 9
    fx, fy, cx, cy = tl.load(lens), tl.load(lens + 4), tl.load(lens + 2), tl.load(lens + 5)
    mean, scales = _three(means_ptr + 3 * index, exists), _three(scales_ptr + 3 * index, exists)
    w, x, y, z, inverse = _quaternion(quaternions_ptr + 4 * index, exists)
    opacity = tl.load(opacities_ptr + index, mask=exists, other=0.0)
    seen = exists & (tl.load(usable_ptr + index, mask=exists, other=0) != 0)
    depth = _dot(w2, mean) + t[2]
    seen &= (depth >= near) & (depth <= far)
    camera = _camera(w0, w1, w2, t, mean, seen)
    row_x, row_y, inverse, _, _, _, _ = _rows(w0, w1, w2, camera, fx, fy, cx, cy, width, height, ORTHOGRAPHIC)
    axes = _axes(w, x, y, z)
    _, px = _local(row_x, axes, scales)
    _, py = _local(row_y, axes, scales)
    xx, xy, yy, determinant, sharp, _ = _covariance(px, py, eps2d)
    u, v = fx * camera[0] * inverse + cx, fy * camera[1] * inverse + cy
    seen &= (determinant > 0.0) & (determinant < float("inf"))
    determinant = tl.where(seen, determinant, 1.0)
    if ANTIALIASED:
        ratio = sharp / determinant
        seen &= ratio > 1e-12
        opacity = opacity * tl.sqrt(tl.where(seen, ratio, 1.0))
    seen &= opacity >= LOWEST
    extent = tl.sqrt(2.0 * tl.log(tl.maximum(opacity, LOWEST) / LOWEST))
    radius_x = tl.ceil(tl.minimum(extent * tl.sqrt(xx), 1e9))
    radius_y = tl.ceil(tl.minimum(extent * tl.sqrt(yy), 1e9))
    seen &= (radius_x > radius_clip) | (radius_y > radius_clip)
    seen &= (u + radius_x > 0.0) & (u - radius_x < width) & (v + radius_y > 0.0) & (v - radius_y < height)
    normal, _, _, _ = _normal(axes, scales, mean, place)
    row = view * count + index
    tl.store(means2d_ptr + 2 * row, tl.where(seen, u, 0.0), mask=exists)
    tl.store(means2d_ptr + 2 * row + 1, tl.where(seen, v, 0.0), mask=exists)
    target = geometry_ptr + 8 * row
    _store_three(target, _kept(seen, _times(1.0 / determinant, (yy, -xy, xx))), exists)
    tl.store(target + 3, tl.where(seen, opacity, 0.0), mask=exists)
    tl.store(target + 4, tl.where(seen, depth, 0.0), mask=exists)
    _store_three(target + 5, _kept(seen, normal), exists)
    box_x = tl.where(seen, tl.maximum(radius_x, 1.0), 0.0).to(tl.int32)
    box_y = tl.where(seen, tl.maximum(radius_y, 1.0), 0.0).to(tl.int32)
    tl.store(boxes_ptr + 2 * row, box_x, mask=exists)
    tl.store(boxes_ptr + 2 * row + 1, box_y, mask=exists)
    tl.store(radii_ptr + row, tl.maximum(box_x, box_y), mask=exists)


@triton.jit
def _covariance_backward(px, py, xx, xy, yy, determinant, sharp, normal, g, opacity, eps2d, ANTIALIASED: tl.constexpr):
    """Gradients of both rows of P and of the opacity, from those of the conic and of what the opacity became."""
    inverse = 1.0 / determinant
    a, b, c = yy * inverse, -xy * inverse, xx * inverse
    # d(cov^-1) = -cov^-1 d(cov) cov^-1
    d_xx = -(a * a * g[0] + a * b * g[1] + b * b * g[2])
    d_xy = -(2.0 * a * b * g[0] + (a * c + b * b) * g[1] + 2.0 * b * c * g[2])
    d_yy = -(b * b * g[0] + b * c * g[1] + c * c * g[2])
    d_opacity = g[3]
    d_sharp = g[3] * 0.0
    if ANTIALIASED:
        ratio = sharp * inverse
        root = tl.sqrt(tl.maximum(ratio, 1e-12))
        d_opacity = g[3] * root
        d_ratio = g[3] * opacity * 0.5 / root
        d_determinant = -d_ratio * ratio * inverse
        d_sharp = d_ratio * inverse + d_determinant
        d_xx += eps2d * d_determinant
        d_yy += eps2d * d_determinant
    d_px = _plus(_plus(_times(2.0 * d_xx, px), _times(d_xy, py)), _times(2.0 * d_sharp, _cross(py, normal)))
    d_py = _plus(_plus(_times(2.0 * d_yy, py), _times(d_xy, px)), _times(2.0 * d_sharp, _cross(normal, px)))
    return d_px, d_py, d_opacity


@triton.jit
def _quaternion_backward(w, x, y, z, inverse, d0, d1, d2):
    """Gradient of the quaternion as given, from those of the columns of the matrix."""
    dw = 2.0 * (z * (d0[1] - d1[0]) + y * (d2[0] - d0[2]) + x * (d1[2] - d2[1]))
    dx = 2.0 * (y * (d1[0] + d0[1]) + z * (d2[0] + d0[2]) + w * (d1[2] - d2[1])) - 4.0 * x * (d1[1] + d2[2])
    dy = 2.0 * (x * (d1[0] + d0[1]) + z * (d2[1] + d1[2]) + w * (d2[0] - d0[2])) - 4.0 * y * (d0[0] + d2[2])
    dz = 2.0 * (x * (d2[0] + d0[2]) + y * (d2[1] + d1[2]) + w * (d0[1] - d1[0])) - 4.0 * z * (d0[0] + d1[1])
    radial = w * dw + x * dx + y * dy + z * dz  # the length has no effect
    return (dw - w * radial) * inverse, (dx - x * radial) * inverse, (dy - y * radial) * inverse, \
        (dz - z * radial) * inverse  # fmt: skip


@triton.jit
def _store_sums(ptr, a):
    """Sums over the lanes of a vector."""
    tl.store(ptr, tl.sum(a[0], axis=0))
    tl.store(ptr + 1, tl.sum(a[1], axis=0))
    tl.store(ptr + 2, tl.sum(a[2], axis=0))


@triton.jit
def project_backward_kernel(
    means_ptr, quaternions_ptr, scales_ptr, opacities_ptr, poses_ptr, lenses_ptr, radii_ptr, d_means2d_ptr,
    d_geometry_ptr, d_means_ptr, d_quaternions_ptr, d_scales_ptr, d_opacities_ptr, d_poses_ptr, count, views, width,
    height, eps2d, ANTIALIASED: tl.constexpr, ORTHOGRAPHIC: tl.constexpr, OF_POSE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Gaussians of a block over all views; of the poses their part, [programs, B, 12]."""
    index = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    exists = index < count
    mean, scales = _three(means_ptr + 3 * index, exists), _three(scales_ptr + 3 * index, exists)
    w, x, y, z, inverse_norm = _quaternion(quaternions_ptr + 4 * index, exists)
    opacity = tl.load(opacities_ptr + index, mask=exists, other=0.0)
    axes = _axes(w, x, y, z)
    zero = tl.zeros([LANES], tl.float32)
    d_mean, d_scales, d_opacity = (zero, zero, zero), (zero, zero, zero), zero
    d0, d1, d2 = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
    for view in range(views):
        row = view * count + index
        seen = tl.load(radii_ptr + row, mask=exists, other=0) > 0
        w0, w1, w2, t, place = _pose(poses_ptr, view)
        lens = lenses_ptr + view * 9
        fx, fy, cx, cy = tl.load(lens), tl.load(lens + 4), tl.load(lens + 2), tl.load(lens + 5)
        camera = _camera(w0, w1, w2, t, mean, seen)
        row_x, row_y, inverse, slope_x, slope_y, free_x, free_y = _rows(
            w0, w1, w2, camera, fx, fy, cx, cy, width, height, ORTHOGRAPHIC
        )
        local_x, px = _local(row_x, axes, scales)
        local_y, py = _local(row_y, axes, scales)
        xx, xy, yy, determinant, sharp, cross = _covariance(px, py, eps2d)
        determinant = tl.where(seen, determinant, 1.0)
        source = d_geometry_ptr + 8 * row
        conic = _three(source, seen)
        g = (conic[0], conic[1], conic[2], tl.load(source + 3, mask=seen, other=0.0))
        d_px, d_py, d_own = _covariance_backward(
            px, py, xx, xy, yy, determinant, sharp, cross, g, opacity, eps2d, ANTIALIASED
        )
        d_opacity += tl.where(seen, d_own, 0.0)
        # P[., k] = (row . axis[k]) scale[k]
        by_scale = (
            d_px[0] * local_x[0] + d_py[0] * local_y[0],
            d_px[1] * local_x[1] + d_py[1] * local_y[1],
            d_px[2] * local_x[2] + d_py[2] * local_y[2],
        )
        d_scales = _plus(d_scales, _kept(seen, by_scale))
        weight_x = (d_px[0] * scales[0], d_px[1] * scales[1], d_px[2] * scales[2])
        weight_y = (d_py[0] * scales[0], d_py[1] * scales[1], d_py[2] * scales[2])
        d0 = _plus(d0, _kept(seen, _plus(_times(weight_x[0], row_x), _times(weight_y[0], row_y))))
        d1 = _plus(d1, _kept(seen, _plus(_times(weight_x[1], row_x), _times(weight_y[1], row_y))))
        d2 = _plus(d2, _kept(seen, _plus(_times(weight_x[2], row_x), _times(weight_y[2], row_y))))
        d_row_x = _plus(_plus(_times(weight_x[0], axes[0]), _times(weight_x[1], axes[1])), _times(weight_x[2], axes[2]))
        d_row_y = _plus(_plus(_times(weight_y[0], axes[0]), _times(weight_y[1], axes[1])), _times(weight_y[2], axes[2]))
        # row_x = fx / z (W_0 - slope_x W_2), and likewise y
        scale_x, scale_y = fx * inverse, fy * inverse
        d_slope_x = tl.where(free_x, -scale_x * _dot(d_row_x, w2), 0.0)
        d_slope_y = tl.where(free_y, -scale_y * _dot(d_row_y, w2), 0.0)
        d_u = tl.load(d_means2d_ptr + 2 * row, mask=seen, other=0.0) * fx + d_slope_x
        d_v = tl.load(d_means2d_ptr + 2 * row + 1, mask=seen, other=0.0) * fy + d_slope_y
        d_z = tl.load(source + 4, mask=seen, other=0.0)
        if not ORTHOGRAPHIC:
            d_z -= inverse * (_dot(d_row_x, row_x) + _dot(d_row_y, row_y))
            d_z -= inverse * inverse * (d_u * camera[0] + d_v * camera[1])
        d_camera = _kept(seen, (d_u * inverse, d_v * inverse, d_z))
        by_camera = _plus(_plus(_times(d_camera[0], w0), _times(d_camera[1], w1)), _times(d_camera[2], w2))
        d_mean = _plus(d_mean, by_camera)
        _, sign, second, third = _normal(axes, scales, mean, place)
        d_normal = _times(sign, _three(source + 5, seen))
        d0 = _plus(d0, _kept((second | third) == 0, d_normal))
        d1 = _plus(d1, _kept(second, d_normal))
        d2 = _plus(d2, _kept(third, d_normal))
        if OF_POSE:
            d_w0, d_w1 = _kept(seen, _times(scale_x, d_row_x)), _kept(seen, _times(scale_y, d_row_y))
            target = d_poses_ptr + (tl.program_id(0) * views + view) * 12
            own = _kept(seen, mean)
            _store_sums(target, _plus(d_w0, _times(d_camera[0], own)))
            _store_sums(target + 3, _plus(d_w1, _times(d_camera[1], own)))
            by_slope = _plus(_times(-slope_x, d_w0), _times(-slope_y, d_w1))
            _store_sums(target + 6, _plus(by_slope, _times(d_camera[2], own)))
            _store_sums(target + 9, d_camera)
    _store_three(d_means_ptr + 3 * index, d_mean, exists)
    _store_three(d_scales_ptr + 3 * index, d_scales, exists)
    tl.store(d_opacities_ptr + index, d_opacity, mask=exists)
    dw, dx, dy, dz = _quaternion_backward(w, x, y, z, inverse_norm, d0, d1, d2)
    usable = _bounded(dw) & _bounded(dx) & _bounded(dy) & _bounded(dz)  # rows that are no numbers were never seen
    target = d_quaternions_ptr + 4 * index
    tl.store(target, tl.where(usable, dw, 0.0), mask=exists)
    _store_three(target + 1, _kept(usable, (dx, dy, dz)), exists)


@triton.jit
def _basis(x, y, z, K: tl.constexpr):
    """Y_k(d), in gsplat's order and signs."""
    if K == 0:
        value = x * 0.0 + 0.2820947917738781
    elif K == 1:
        value = -0.48860251190292 * y
    elif K == 2:
        value = 0.48860251190292 * z
    elif K == 3:
        value = -0.48860251190292 * x
    elif K == 4:
        value = 1.0925484305920792 * x * y
    elif K == 5:
        value = -1.092548430592079 * z * y
    elif K == 6:
        value = 0.9461746957575601 * z * z - 0.3153915652525201
    elif K == 7:
        value = -1.092548430592079 * z * x
    elif K == 8:
        value = 0.5462742152960395 * (x * x - y * y)
    elif K == 9:
        value = -0.5900435899266435 * y * (3.0 * x * x - y * y)
    elif K == 10:
        value = 2.890611442640554 * z * x * y
    elif K == 11:
        value = (0.4570457994644658 - 2.285228997322329 * z * z) * y
    elif K == 12:
        value = z * (1.865881662950577 * z * z - 1.119528997770346)
    elif K == 13:
        value = (0.4570457994644658 - 2.285228997322329 * z * z) * x
    elif K == 14:
        value = 1.445305721320277 * z * (x * x - y * y)
    else:
        value = -0.5900435899266435 * x * (x * x - 3.0 * y * y)
    return value


@triton.jit
def _basis_slope(x, y, z, K: tl.constexpr):
    """The gradient of Y_k at d."""
    zero = x * 0.0
    if K == 0:
        slope = (zero, zero, zero)
    elif K == 1:
        slope = (zero, zero - 0.48860251190292, zero)
    elif K == 2:
        slope = (zero, zero, zero + 0.48860251190292)
    elif K == 3:
        slope = (zero - 0.48860251190292, zero, zero)
    elif K == 4:
        slope = (1.0925484305920792 * y, 1.0925484305920792 * x, zero)
    elif K == 5:
        slope = (zero, -1.092548430592079 * z, -1.092548430592079 * y)
    elif K == 6:
        slope = (zero, zero, 1.8923493915151202 * z)
    elif K == 7:
        slope = (-1.092548430592079 * z, zero, -1.092548430592079 * x)
    elif K == 8:
        slope = (1.092548430592079 * x, -1.092548430592079 * y, zero)
    elif K == 9:
        slope = (-3.540261539559861 * x * y, -1.7701307697799305 * (x * x - y * y), zero)
    elif K == 10:
        slope = (2.890611442640554 * z * y, 2.890611442640554 * z * x, 2.890611442640554 * x * y)
    elif K == 11:
        slope = (zero, 0.4570457994644658 - 2.285228997322329 * z * z, -4.570457994644658 * z * y)
    elif K == 12:
        slope = (zero, zero, 5.597644988851731 * z * z - 1.119528997770346)
    elif K == 13:
        slope = (0.4570457994644658 - 2.285228997322329 * z * z, zero, -4.570457994644658 * z * x)
    elif K == 14:
        slope = (2.890611442640554 * z * x, -2.890611442640554 * z * y, 1.445305721320277 * (x * x - y * y))
    else:
        slope = (-1.7701307697799305 * (x * x - y * y), 3.540261539559861 * x * y, zero)
    return slope


@triton.jit
def _direction(mean, place):
    """Unit vectors from a camera to the Gaussians, and the inverse distances."""
    offset = _plus(mean, _times(-1.0, place))
    inverse = 1.0 / tl.maximum(tl.sqrt(_dot(offset, offset)), 1e-12)
    return _times(inverse, offset), inverse


@triton.jit
def _shaded(coefficients_ptr, d, seen, USED: tl.constexpr):
    """1/2 + sum_k c_k Y_k(d), from where each lane's coefficients begin."""
    half = d[0] * 0.0 + 0.5
    color = (half, half, half)
    for k in tl.static_range(USED):
        color = _plus(color, _times(_basis(d[0], d[1], d[2], k), _three(coefficients_ptr + 3 * k, seen)))
    return color


@triton.jit
def shade_kernel(
    means_ptr, coefficients_ptr, poses_ptr, radii_ptr, colors_ptr, count, held, USED: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Colours of a block of Gaussians in one view, zero where culled."""
    index = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    view = tl.program_id(1).to(tl.int64)
    row = view * count + index
    exists = index < count
    seen = tl.load(radii_ptr + row, mask=exists, other=0) > 0
    _, _, _, _, place = _pose(poses_ptr, view)
    d, _ = _direction(_three(means_ptr + 3 * index, seen), place)
    color = _shaded(coefficients_ptr + index * held * 3, d, seen, USED)
    color = (tl.maximum(color[0], 0.0), tl.maximum(color[1], 0.0), tl.maximum(color[2], 0.0))
    _store_three(colors_ptr + 3 * row, _kept(seen, color), exists)


@triton.jit
def shade_backward_kernel(
    means_ptr, coefficients_ptr, poses_ptr, radii_ptr, d_colors_ptr, d_means_ptr, d_coefficients_ptr, d_places_ptr,
    count, views, held, USED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """A block of Gaussians over all views; d_coefficients are zero before, of the cameras' places its part."""
    index = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    exists = index < count
    mean = _three(means_ptr + 3 * index, exists)
    own = coefficients_ptr + index * held * 3
    target = d_coefficients_ptr + index * held * 3
    zero = tl.zeros([LANES], tl.float32)
    d_mean = (zero, zero, zero)
    for view in range(views):
        row = view * count + index
        seen = tl.load(radii_ptr + row, mask=exists, other=0) > 0
        _, _, _, _, place = _pose(poses_ptr, view)
        d, inverse = _direction(_kept(seen, mean), place)
        color = _shaded(own, d, seen, USED)
        g = _three(d_colors_ptr + 3 * row, seen)
        g = (
            tl.where(color[0] > 0.0, g[0], 0.0),
            tl.where(color[1] > 0.0, g[1], 0.0),
            tl.where(color[2] > 0.0, g[2], 0.0),
        )
        d_direction = (zero, zero, zero)
        for k in tl.static_range(USED):
            along = _dot(g, _three(own + 3 * k, seen))
            d_direction = _plus(d_direction, _times(along, _basis_slope(d[0], d[1], d[2], k)))
            added = _times(_basis(d[0], d[1], d[2], k), g)
            _store_three(target + 3 * k, _plus(_three(target + 3 * k, seen), added), seen)
        radial = _dot(d, d_direction)
        d_offset = _kept(seen, _times(inverse, _plus(d_direction, _times(-radial, d))))
        d_mean = _plus(d_mean, d_offset)
        _store_sums(d_places_ptr + (tl.program_id(0) * views + view) * 3, _times(-1.0, d_offset))
    _store_three(d_means_ptr + 3 * index, d_mean, exists)


def project_forward(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, view_matrices: Tensor,
    intrinsics: Tensor, numbers: list[float], antialiased: bool, orthographic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`reference.project`: means2d [B, N, 2], geometry [B, N, 8], boxes [B, N, 2] int32 and radii [B, N] int32."""
    views, count = len(view_matrices), len(means)
    means2d, geometry = (means.new_empty(views, count, columns) for columns in (2, 8))
    boxes = torch.empty(views, count, 2, dtype=torch.int32, device=means.device)
    radii = torch.empty(views, count, dtype=torch.int32, device=means.device)
    usable = opacities.abs() <= MAX_MAGNITUDE
    for tensor in (means, quaternions, scales, colors):
        usable = usable & (tensor.abs() <= MAX_MAGNITUDE).all(dim=1)
    if views * count:
        project_kernel[triton.cdiv(count, LANES), views](
            means, quaternions, scales, opacities, usable.view(torch.uint8), view_matrices, intrinsics, means2d,
            geometry, boxes, radii, count, *numbers, ANTIALIASED=antialiased, ORTHOGRAPHIC=orthographic, LANES=LANES,
        )  # fmt: skip
    return means2d, geometry, boxes, radii


def project_backward(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, view_matrices: Tensor,
    intrinsics: Tensor, radii: Tensor, d_means2d: Tensor, d_geometry: Tensor, numbers: list[float], antialiased: bool,
    orthographic: bool, of_pose: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of means, quaternions, scales, opacities and view matrices (empty if not asked for)."""
    views, count = radii.shape
    results = [torch.zeros_like(tensor) for tensor in (means, quaternions, scales, opacities)]
    programs = triton.cdiv(count, LANES)
    parts = means.new_zeros(programs if of_pose else 0, views, POSE)
    width, height, _, _, eps2d, _ = numbers
    if views * count:
        project_backward_kernel[programs,](
            means, quaternions, scales, opacities, view_matrices, intrinsics, radii, d_means2d, d_geometry, *results,
            parts, count, views, width, height, eps2d, ANTIALIASED=antialiased, ORTHOGRAPHIC=orthographic,
            OF_POSE=of_pose, LANES=LANES,
        )  # fmt: skip
    if not of_pose:
        return *results, means.new_empty(0)
    pose = torch.zeros_like(view_matrices)
    sums = parts.sum(dim=0)
    pose[:, :3, :3], pose[:, :3, 3] = sums[:, :9].unflatten(1, (3, 3)), sums[:, 9:]
    return *results, pose


def shade_forward(means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, degree: int) -> Tensor:
    """`reference.shade` of spherical harmonics: colours [B, N, 3], zero where culled."""
    views, count = radii.shape
    colors = means.new_empty(views, count, 3)
    if views * count:
        inputs = (means, coefficients, view_matrices, radii, colors, count, coefficients.shape[1])
        shade_kernel[triton.cdiv(count, LANES), views](*inputs, USED=(degree + 1) ** 2, LANES=LANES)
    return colors


def shade_backward(
    means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, d_colors: Tensor, degree: int,
    of_pose: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of means, coefficients and view matrices (empty if not asked for)."""
    views, count = radii.shape
    d_means, d_coefficients = torch.zeros_like(means), torch.zeros_like(coefficients)
    programs = triton.cdiv(count, LANES)
    parts = means.new_zeros(programs, views, 3)
    if views * count:
        inputs = (means, coefficients, view_matrices, radii, d_colors, d_means, d_coefficients, parts)
        sizes = (count, views, coefficients.shape[1])
        shade_backward_kernel[programs,](*inputs, *sizes, USED=(degree + 1) ** 2, LANES=LANES)
    if not of_pose:
        return d_means, d_coefficients, means.new_empty(0)
    places = parts.sum(dim=0)  # place = -R^T t
    pose = torch.zeros_like(view_matrices)
    pose[:, :3, :3] = -view_matrices[:, :3, 3, None] * places[:, None]
    pose[:, :3, 3] = -(view_matrices[:, :3, :3] @ places[..., None])[..., 0]
    return d_means, d_coefficients, pose
