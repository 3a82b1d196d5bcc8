"""Wrong arguments give an error that names them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from dreamkit_kernels.gaussian_rasterize import Gaussians, Settings, View, rasterize
from rasterize_scenes import cast_gaussians, cast_view, make_gaussians, make_view

GAUSSIANS = cast_gaussians(make_gaussians(4), torch.float32)
VIEW = cast_view(make_view(2, 8, 6), torch.float32)
HARMONICS = dataclasses.replace(GAUSSIANS, colors=torch.zeros(4, 4, 3))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"means": torch.zeros(4, 2)}, ValueError, r"means must have shape \[\*, 3\], got \[4, 2\]"),
        ({"means": [[0.0, 0, 0]]}, TypeError, "means must be a torch.Tensor, got list"),
        ({"quaternions": torch.zeros(4, 3)}, ValueError, r"quaternions must have shape \[4, 4\]"),
        ({"scales": torch.zeros(3, 3)}, ValueError, r"scales must have shape \[4, 3\]"),
        ({"opacities": torch.zeros(4, 1)}, ValueError, r"opacities must have shape \[4\]"),
        ({"opacities": torch.zeros(4).double()}, TypeError, "opacities must have the dtype of means"),
        ({"means": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "means must be float32 or float64"),
        ({"means": torch.zeros(4, 3, dtype=torch.bfloat16)}, TypeError, "means must be float32 or float64"),
        ({"scales": torch.zeros(4, 3, device="meta")}, ValueError, "scales must be on the device of means"),
        ({"colors": torch.zeros(4)}, ValueError, "colors must have shape"),
        ({"colors": torch.zeros(4, 0)}, ValueError, "colors must have at least one channel"),
        ({"colors": torch.zeros(4, 5, 3)}, ValueError, "K = 1, 4, 9 or 16, got K = 5"),
        ({"colors": torch.zeros(4, 4, 2)}, ValueError, "colors must have shape"),
        ({"colors": None}, TypeError, "colors must be a torch.Tensor"),
    ],
)
def test_gaussians(changes: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        rasterize(dataclasses.replace(GAUSSIANS, **changes), VIEW)


def broken(tensor: torch.Tensor, value: float, *index: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"view_matrices": torch.eye(4)}, ValueError, r"view_matrices must have shape \[\*, 4, 4\]"),
        ({"view_matrices": broken(VIEW.view_matrices, float("nan"), 1, 0, 3)}, ValueError, "view_matrices must be"),
        ({"intrinsics": torch.eye(3)[None]}, ValueError, r"intrinsics must have shape \[2, 3, 3\]"),
        ({"intrinsics": broken(VIEW.intrinsics, float("inf"), 0, 0, 2)}, ValueError, "intrinsics must be finite"),
        ({"intrinsics": broken(VIEW.intrinsics, 0.0, 0, 1, 1)}, ValueError, "positive focal lengths"),
        ({"intrinsics": VIEW.intrinsics.double()}, TypeError, "intrinsics must have the dtype"),
        ({"width": 0}, ValueError, "width must be between 1 and 16384, got 0"),
        ({"height": 10**6}, ValueError, "height must be between"),
        ({"height": 6.0}, TypeError, "height must be an int, got float"),
        ({"width": True}, TypeError, "width must be an int, got bool"),
        ({"near": 0.0}, ValueError, "near and far must satisfy 0 < near < far"),
        ({"near": 2.0, "far": 1.0}, ValueError, "near and far"),
        ({"far": float("nan")}, ValueError, "near and far"),
    ],
)  # fmt: skip
def test_view(changes: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        rasterize(GAUSSIANS, dataclasses.replace(VIEW, **changes))


@pytest.mark.parametrize(
    ("gaussians", "settings", "error", "message"),
    [
        (GAUSSIANS, Settings(background=torch.zeros(4)), ValueError, r"background must have shape \[3\], got \[4\]"),
        (GAUSSIANS, Settings(background=torch.zeros(3, 3)), ValueError, r"background must have shape \[2, 3\]"),
        (GAUSSIANS, Settings(background=torch.zeros(3).double()), TypeError, "background must have the dtype"),
        (GAUSSIANS, Settings(background=(0, 0, 0)), TypeError, "background must be a torch.Tensor"),
        (GAUSSIANS, Settings(sh_degree=0), ValueError, r"sh_degree is 0, but colors has shape \[N, C\]"),
        (HARMONICS, Settings(sh_degree=2), ValueError, r"sh_degree must be between 0 and what colors holds \(K = 4\)"),
        (HARMONICS, Settings(sh_degree=-1), ValueError, "sh_degree must be"),
        (GAUSSIANS, Settings(eps2d=-0.1), ValueError, "eps2d must be finite and not negative, got -0.1"),
        (GAUSSIANS, Settings(radius_clip=float("nan")), ValueError, "radius_clip must be"),
        (GAUSSIANS, Settings(tile_size=0), ValueError, "tile_size must be between 1 and 256, got 0"),
        (GAUSSIANS, Settings(backend="cuda"), ValueError, "backend must be one of reference, native"),
    ],
)
def test_settings(gaussians: Gaussians, settings: Settings, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        rasterize(gaussians, VIEW, settings)


def test_native_arrays_are_checked_again():
    """A direct caller of the extension can't reach memory outside an array."""
    native = pytest.importorskip("dreamkit_kernels._native")
    options = native.ProjectionOptions(8.0, 6.0, 0.01, 100.0, 0.3, 0.0, False, False, 1)
    tensors = [tensor.flatten(1) if tensor.dim() > 2 else tensor for tensor in vars(GAUSSIANS).values()]
    tensors += [VIEW.view_matrices, VIEW.intrinsics]
    outputs = [torch.empty(2, 4, 2), torch.empty(2, 4, 8), torch.empty(2, 4, 8), torch.empty(2, 4, dtype=torch.int32)]
    native.project_forward(*tensors, options, *outputs)
    with pytest.raises(ValueError, match="means2d has the wrong shape"):
        native.project_forward(*tensors, options, torch.empty(2, 3, 2), *outputs[1:])
    with pytest.raises(TypeError):
        native.project_forward(*tensors, options, outputs[0].double(), *outputs[1:])
    with pytest.raises(TypeError):
        native.project_forward(*tensors, options, torch.empty(2, 4, 4)[..., ::2], *outputs[1:])


def test_defaults_work():
    image = rasterize(GAUSSIANS, VIEW).image
    assert image.shape == (2, 6, 8, 3)
    assert image.dtype == torch.float32
    assert isinstance(VIEW, View)
