"""The gsplat backend without a GPU: our reference plays gsplat, so that it is the adapter that is tested.

`test_on_a_gpu` compares with the real kernels where there are any.
"""

from dataclasses import replace
from typing import Any

import gsplat
import pytest
import torch
from dreamkit_kernels import dispatch
from dreamkit_kernels.gaussian_rasterize import Gaussians, Settings, View, rasterize
from dreamkit_kernels.gaussian_rasterize.gsplat_backend import rasterize_gsplat
from dreamkit_kernels.gaussian_rasterize.reference import composite, project, rasterize_reference
from rasterize_scenes import cast_gaussians, cast_view, make_gaussians, make_view
from torch import Tensor


def stand_in(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float, far_plane: float, radius_clip: float, eps2d: float, packed: bool,
    backgrounds: Tensor | None, render_mode: str, rasterize_mode: str, camera_model: str,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """`gsplat.rasterization` as its documentation has it, for the arguments that we give."""
    assert (packed, render_mode) == (False, "RGB+D")
    assert bool((quats.norm(dim=-1) > 0).all())
    kinds: dict[str, Any] = {"pinhole": "perspective", "ortho": "orthographic"}
    view = View(viewmats, Ks, width, height, near_plane, far_plane, kinds[camera_model])
    settings = Settings(antialiased=rasterize_mode == "antialiased", eps2d=eps2d, radius_clip=radius_clip)
    projection = project(Gaussians(means, quats, scales, opacities, torch.zeros(len(means), 1)), view, settings)
    features = torch.cat([colors, projection.depths[..., None]], dim=-1)
    image, left = composite(projection, features, width, height)
    if backgrounds is not None:
        behind = torch.cat([backgrounds, torch.zeros_like(backgrounds[:, :1])], dim=-1)
        image = image + left[..., None] * behind[:, None, None]
    about = {"means2d": projection.means2d, "radii": projection.radii, "depths": projection.depths}
    return image, 1 - left[..., None], about


def scene(harmonics: bool, device: str = "cpu") -> tuple[Gaussians, View]:
    gaussians = cast_gaussians(make_gaussians(60), torch.float32)
    view = cast_view(make_view(2, 24, 20), torch.float32)
    colors = gaussians.colors if gaussians.colors.ndim == 2 else gaussians.colors[:, 0]
    if harmonics:
        colors = torch.randn(len(colors), 9, 3, generator=torch.Generator().manual_seed(1)) / 3
    quaternions = gaussians.quaternions.clone()
    quaternions[3] = 0
    means = gaussians.means.clone()
    means[5] = float("nan")
    parts = (means, quaternions, gaussians.scales, gaussians.opacities, colors)
    placed = [part.detach().to(device).requires_grad_() for part in parts]
    return Gaussians(*placed), View(view.view_matrices.to(device), view.intrinsics.to(device), view.width, view.height)


def compare(gaussians: Gaussians, view: View, settings: Settings, tolerance: float) -> None:
    results = []
    for run in (rasterize_gsplat, rasterize_reference):
        out = run(gaussians, view, settings)
        parts = [out.image, out.alpha, out.depth, out.normal]
        incoming = [torch.linspace(-1, 1, part.numel(), device=part.device).view_as(part) for part in parts]
        gradients = torch.autograd.grad(parts, list(vars(gaussians).values()), incoming)
        results.append([*(part.detach() for part in parts), *gradients, out.radii])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("harmonics", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(background=torch.tensor([0.2, 0.5, 0.9]), antialiased=True),
        Settings(background=torch.rand(2, 3, generator=torch.Generator().manual_seed(2)), radius_clip=1.0, eps2d=0.1),
    ],
)
def test_the_adapter(harmonics: bool, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat, "rasterization", stand_in)
    compare(*scene(harmonics), settings, 1e-5)


def test_orthographic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat, "rasterization", stand_in)
    gaussians, view = scene(False)
    lens = view.intrinsics.clone()
    lens[:, [0, 1], [0, 1]] /= 3
    compare(gaussians, replace(view, intrinsics=lens, projection="orthographic"), Settings(), 1e-5)


def test_what_it_does_not_give() -> None:
    gaussians, view = scene(False)
    for settings in (Settings(median_depth=True), Settings(absolute_gradients=True)):
        with pytest.raises(ValueError, match="use another one"):
            rasterize_gsplat(gaussians, view, settings)


def test_its_arguments_are_gsplats() -> None:
    import inspect

    real, ours = (inspect.signature(function).parameters for function in (gsplat.rasterization, stand_in))
    assert set(ours) <= set(real)


def test_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        """What the choice looks at."""

        device = torch.device("cuda")
        dtype = torch.float32

        def is_floating_point(self) -> bool:
            return True

    monkeypatch.delenv(dispatch.BACKEND_VARIABLE, raising=False)
    tensor: Any = OnCuda()
    monkeypatch.setattr(dispatch, "_gsplat_state", lambda: (True, "there"))
    assert dispatch.choose_backend("gaussian_rasterize", None, tensor) == "gsplat"
    assert dispatch.choose_backend("gaussian_rasterize", "reference", tensor) == "reference"
    monkeypatch.setattr(dispatch, "_gsplat_state", lambda: (False, "no nvcc"))
    monkeypatch.setattr(dispatch, "_triton_state", lambda: (True, "there"))
    assert dispatch.choose_backend("gaussian_rasterize", None, tensor) == "triton"
    monkeypatch.setattr(dispatch, "_triton_state", lambda: (False, "not installed"))
    assert dispatch.choose_backend("gaussian_rasterize", None, tensor) == "reference"
    with pytest.raises(RuntimeError, match="backend 'gsplat' is not available: no nvcc"):
        dispatch.choose_backend("gaussian_rasterize", "gsplat", tensor)


def test_refused_on_the_cpu() -> None:
    gaussians, view = scene(False)
    with pytest.raises(ValueError, match="backend 'gsplat' takes float32 tensors on a GPU"):
        rasterize(gaussians, view, Settings(backend="gsplat"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    compare(*scene(False, "cuda"), Settings(), 1e-3)
