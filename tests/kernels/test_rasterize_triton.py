"""The Triton backend against the reference: values and every gradient, in the interpreter where there is no GPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.gaussian_rasterize import Gaussians, Settings, View, rasterize
from hypothesis import given, settings, strategies
from rasterize_scenes import (
    GRADIENT_TOLERANCE,
    cast_gaussians,
    cast_view,
    compare,
    make_gaussians,
    make_view,
    relative_error,
    run_with_gradients,
)

pytestmark = needs_triton
TRITON = Settings(backend="triton")


def single(gaussians: Gaussians, view: View) -> tuple[Gaussians, View]:
    return cast_gaussians(gaussians, torch.float32), cast_view(view, torch.float32)


@pytest.mark.parametrize(
    ("count", "views", "width", "height", "scale", "channels", "sh_degree"),
    [
        (1, 1, 16, 16, 0.2, 3, None),
        (7, 2, 5, 3, 0.3, 3, None),
        (60, 2, 37, 21, 0.1, 3, None),
        (100, 1, 24, 20, 0.3, 1, None),
        (60, 1, 33, 17, 0.1, 6, None),
        (60, 2, 20, 20, 0.1, 3, 2),
    ],
)
def test_equals_reference(
    count: int, views: int, width: int, height: int, scale: float, channels: int, sh_degree: int | None
) -> None:
    gaussians = make_gaussians(count, scale=scale, channels=channels, sh_degree=sh_degree)
    background = torch.rand(views, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    compare(gaussians, make_view(views, width, height), Settings(background=background), backend="triton")


def test_orthographic_and_antialiased() -> None:
    near = make_view(1, 33, 30)
    lens = near.intrinsics.clone()
    lens[:, [0, 1], [0, 1]] /= 3.0
    view = dataclasses.replace(near, intrinsics=lens, projection="orthographic")
    compare(make_gaussians(50, scale=0.1), view, Settings(antialiased=True), backend="triton")


def test_pixels_stop() -> None:
    """Opaque walls one behind the other, more of them than a block holds."""
    gaussians = make_gaussians(120, scale=0.5)
    gaussians = dataclasses.replace(gaussians, opacities=torch.full_like(gaussians.opacities, 0.9))
    compare(gaussians, make_view(1, 20, 20), Settings(), flips=2e-2, backend="triton")


def test_median_depth_and_absolute_gradients() -> None:
    gaussians, view = make_gaussians(80, scale=0.15), make_view(1, 30, 20)
    options = Settings(median_depth=True, absolute_gradients=True)
    compare(gaussians, view, options, backend="triton")
    exact, _ = run_with_gradients(gaussians, view, dataclasses.replace(options, backend="reference"))
    result, _ = run_with_gradients(*single(gaussians, view), dataclasses.replace(options, backend="triton"))
    assert result.median_depth is not None
    assert exact.median_depth is not None
    assert float(((result.median_depth - exact.median_depth).abs() > 1e-4).double().mean()) < 4e-3
    assert float((exact.median_depth > 0).double().mean()) > 0.2
    assert relative_error(result.absolute_gradients, exact.absolute_gradients) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("change", ["behind", "transparent", "not a number", "none", "no views"])
def test_nothing_to_see(change: str) -> None:
    gaussians, view = single(make_gaussians(0 if change == "none" else 5), make_view(1, 20, 9))
    if change == "behind":
        gaussians = dataclasses.replace(gaussians, means=gaussians.means * 0 + view.view_matrices[0, 2, :3] * -9)
    elif change == "transparent":
        gaussians = dataclasses.replace(gaussians, opacities=gaussians.opacities * 0)
    elif change == "not a number":
        gaussians = dataclasses.replace(gaussians, scales=gaussians.scales * float("nan"))
    elif change == "no views":
        view = dataclasses.replace(view, view_matrices=view.view_matrices[:0], intrinsics=view.intrinsics[:0])
    result, gradients = run_with_gradients(gaussians, view, dataclasses.replace(TRITON, background=torch.ones(3)))
    assert bool((result.image == 1).all())
    assert not result.alpha.any()
    for name, gradient in gradients.items():
        assert name in ("background", "view_matrices") or gradient is None or not gradient.any(), name


@settings(max_examples=6, deadline=None)
@given(
    strategies.integers(0, 40),
    strategies.integers(1, 2),
    strategies.integers(1, 24),
    strategies.integers(1, 24),
    strategies.floats(-4, 0),
    strategies.integers(0, 10**6),
)
def test_any_scene(count: int, views: int, width: int, height: int, log_scale: float, seed: int) -> None:
    """Values only: a pixel at a threshold may fall to either side, and its gradients with it."""
    gaussians, view = single(make_gaussians(count, seed=seed, scale=10**log_scale), make_view(views, width, height))
    results: list[Any] = [rasterize(gaussians, view, Settings(backend=name)) for name in ("triton", "reference")]
    for name in ("image", "alpha", "depth"):
        ours, theirs = (getattr(result, name) for result in results)
        assert float(((ours - theirs).abs() > 1e-3).double().mean()) <= 2 / (width * height * views), name
