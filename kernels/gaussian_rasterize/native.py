"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here.

Between the steps, what belongs to one Gaussian in one view travels as a row of eight floats:

- `geometry`: conic (xx, xy, yy), opacity, depth, normal (x, y, z).
- `splats`: the same Gaussian as the inner loops want it (see `Splat` in native.h); gradients of the compositing go to
  `means2d` and `geometry` instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import native_module
from .states import States

_states: States[Any] = States()
"""Tile lists and transmittances, in memory of C++."""


def project_forward(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, view_matrices: Tensor,
    intrinsics: Tensor, numbers: list[float], antialiased: bool, orthographic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`reference.project`: means2d [B, N, 2], geometry [B, N, 8], splats [B, N, 8] and radii [B, N]."""
    shape = (len(view_matrices), len(means))
    means2d, geometry, splats = (means.new_empty(*shape, columns) for columns in (2, 8, 8))
    radii = means.new_empty(shape, dtype=torch.int32)
    inputs = (means, quaternions, scales, opacities, colors, view_matrices, intrinsics)
    module = native_module()
    options = module.ProjectionOptions(*numbers, antialiased, orthographic, torch.get_num_threads())
    module.project_forward(*inputs, options, means2d, geometry, splats, radii)
    return means2d, geometry, splats, radii


def project_backward(
    means: Tensor, quaternions: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, view_matrices: Tensor,
    intrinsics: Tensor, radii: Tensor, d_means2d: Tensor, d_geometry: Tensor, numbers: list[float], antialiased: bool,
    orthographic: bool, of_pose: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of means, quaternions, scales, opacities and view matrices (empty if not asked for)."""
    inputs = (means, quaternions, scales, opacities, colors, view_matrices, intrinsics)
    results = [torch.empty_like(tensor) for tensor in inputs[:4]]
    pose = torch.empty_like(view_matrices) if of_pose else None
    module = native_module()
    options = module.ProjectionOptions(*numbers, antialiased, orthographic, torch.get_num_threads())
    module.project_backward(*inputs, options, radii, d_means2d, d_geometry, *results, pose)
    return *results, means.new_empty(0) if pose is None else pose


def shade_forward(means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, degree: int) -> Tensor:
    """`reference.shade` of spherical harmonics: colours [B, N, 3], zero where culled."""
    colors = means.new_empty(*radii.shape, 3)
    native_module().shade_forward(means, coefficients, view_matrices, radii, colors, degree, torch.get_num_threads())
    return colors


def shade_backward(
    means: Tensor, coefficients: Tensor, view_matrices: Tensor, radii: Tensor, d_colors: Tensor, degree: int,
    of_pose: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of means, coefficients and view matrices (empty if not asked for)."""
    d_means, d_coefficients = torch.empty_like(means), torch.empty_like(coefficients)
    pose = torch.empty_like(view_matrices) if of_pose else None
    inputs = (means, coefficients, view_matrices, radii, d_colors, d_means, d_coefficients, pose)
    native_module().shade_backward(*inputs, degree, torch.get_num_threads())
    return d_means, d_coefficients, means.new_empty(0) if pose is None else pose


def _composite(
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None], width: int, height: int, median_depth: bool
) -> tuple[list[Tensor], Any]:
    splats, _, _, colors, _ = inputs
    shape = (len(splats), height, width)
    outputs = [splats.new_empty(*shape, channels) for channels in (colors.shape[-1], 1, 1, 3)]
    median = splats.new_empty(*shape, 1) if median_depth else None
    state = native_module().composite_forward(*inputs, *outputs, median, torch.get_num_threads())
    return [*outputs, splats.new_empty(0) if median is None else median], state


def composite_forward(
    means2d: Tensor, geometry: Tensor, radii: Tensor, colors: Tensor, background: Tensor | None, splats: Tensor,
    width: int, height: int, median_depth: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """`reference.composite`: image, alpha, depth, normal, median depth (or empty), and the number of the state."""
    outputs, state = _composite((splats, geometry, radii, colors, background), width, height, median_depth)
    return *outputs, _states.add(state, keep)


def composite_backward(
    means2d: Tensor, geometry: Tensor, radii: Tensor, colors: Tensor, background: Tensor | None, splats: Tensor,
    number: Tensor, gradients: list[Tensor | None], width: int, height: int, of_background: bool, absolute: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of means2d, geometry, colours, background, and sums of absolute ones (empty if not asked for)."""
    inputs = (splats, geometry, radii, colors, background)
    state = _states.take(number)
    if state is None:
        _, state = _composite(inputs, width, height, False)
    d_means2d, d_geometry, d_colors = (torch.empty_like(item) for item in (means2d, geometry, colors))
    d_background = None if background is None or not of_background else torch.empty_like(background)
    sums = torch.zeros_like(d_means2d) if absolute else None
    results = (d_means2d, d_geometry, d_colors, d_background, sums)
    native_module().composite_backward(state, *inputs, *gradients, *results, torch.get_num_threads())
    return tuple(splats.new_empty(0) if result is None else result for result in results)
