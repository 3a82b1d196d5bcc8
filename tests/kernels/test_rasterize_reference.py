"""The torch definition: against gsplat's own torch functions, a naive loop, closed forms and finite differences."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from dreamkit_kernels.gaussian_rasterize import Gaussians, Settings, View, rasterize, reference
from rasterize_scenes import make_gaussians, make_view, relative_error
from torch import Tensor

ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN = 0.999, 1 / 255, 1e-4


@pytest.mark.parametrize(
    ("channels", "sh_degree", "antialiased", "batched_background"),
    [(3, None, False, False), (1, None, True, True), (5, None, False, True), (3, 0, False, False), (3, 1, True, False),
     (3, 2, False, True), (3, 3, True, False)],
)  # fmt: skip
def test_gradients_equal_finite_differences(channels, sh_degree, antialiased, batched_background):
    gaussians = make_gaussians(4, scale=0.3, channels=channels, sh_degree=sh_degree, seed=3)
    view = make_view(2, 5, 4)
    background = torch.rand(*([2] if batched_background else []), channels, dtype=torch.float64)
    settings = Settings(antialiased=antialiased, tile_size=4)

    def render(*tensors: Tensor) -> tuple[Tensor, ...]:
        *parameters, pose, behind = tensors
        result = rasterize(
            Gaussians(*parameters),
            dataclasses.replace(view, view_matrices=pose),
            dataclasses.replace(settings, background=behind),
        )
        return result.image, result.alpha, result.depth, result.normal, result.means2d, result.depths

    inputs = [*vars(gaussians).values(), view.view_matrices, background]
    # Every entry for the first case; for the others a random projection of the Jacobian, which is much faster.
    every_entry = (channels, sh_degree, antialiased) == (3, None, False)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(render, leaves, fast_mode=not every_entry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_equals_gsplat(dtype):
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    gaussians = make_gaussians(500, scale=0.1)
    view = make_view(3, 50, 40)
    gaussians = Gaussians(*(tensor.to(dtype) for tensor in vars(gaussians).values()))
    view = dataclasses.replace(view, view_matrices=view.view_matrices.to(dtype), intrinsics=view.intrinsics.to(dtype))
    covariances, _ = gsplat._quat_scale_to_covar_preci(gaussians.quaternions, gaussians.scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = gsplat._fully_fused_projection(
        gaussians.means, covariances, view.view_matrices, view.intrinsics, 50, 40, calc_compensations=True
    )
    ours = reference.project(gaussians, view, Settings(antialiased=True))
    seen = (ours.radii > 0).all(-1)
    assert seen.float().mean() > 0.5
    assert relative_error(ours.means2d[seen], means2d[seen]) <= 1e-5  # worst seen 1e-7 in float32
    assert relative_error(ours.depths[seen], depths[seen]) <= 1e-5  # 1e-7
    assert relative_error(ours.conics[seen], conics[seen]) <= 1e-5  # 2e-6
    expected = (gaussians.opacities * compensations)[seen]
    assert relative_error(ours.opacities[seen], expected) <= 1e-5  # 2e-6
    # gsplat's box covers 3.33 standard deviations; ours is that or less, by opacity.
    assert (ours.radii <= radii)[seen].all()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_equal_gsplat(degree):
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    gaussians = make_gaussians(200, sh_degree=3)
    view = make_view(2, 8, 8)
    colors = reference.shade(gaussians.means, gaussians.colors, view.view_matrices, degree)
    centers = torch.linalg.inv(view.view_matrices)[:, None, :3, 3]
    coefficients = gaussians.colors.expand(2, -1, -1, -1)
    expected = gsplat._spherical_harmonics(degree, gaussians.means - centers, coefficients)
    assert relative_error(colors, (expected + 0.5).clamp_min(0)) <= 1e-7  # float64; gsplat's constants have 15 digits


def naive_composite(
    projection: reference.Projection, features: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """One pixel and one Gaussian after the other, as the formula reads."""
    views = projection.depths.shape[0]
    image = torch.zeros(views, height, width, features.shape[-1], dtype=features.dtype)
    rest = torch.ones(views, height, width, dtype=features.dtype)
    for view in range(views):
        order = [
            index
            for index in torch.sort(projection.depths[view], stable=True).indices.tolist()
            if projection.radii[view, index].min() > 0
        ]
        for row in range(height):
            for column in range(width):
                left = 1.0
                for index in order:
                    dx = column + 0.5 - projection.means2d[view, index, 0].item()
                    dy = row + 0.5 - projection.means2d[view, index, 1].item()
                    a, b, c = projection.conics[view, index].tolist()
                    sigma = torch.tensor(0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy, dtype=torch.float64)
                    alpha = min(ALPHA_MAX, projection.opacities[view, index].item() * torch.exp(-sigma).item())
                    if alpha < ALPHA_MIN:
                        continue
                    if left * (1 - alpha) <= TRANSMITTANCE_MIN:
                        break
                    image[view, row, column] += alpha * left * features[view, index]
                    left *= 1 - alpha
                rest[view, row, column] = left
    return image, rest


@pytest.mark.parametrize(("tile_size", "budget"), [(4, 4_000_000), (16, 200), (3, 60)])
def test_compositing_equals_naive_loop(tile_size, budget, monkeypatch):
    monkeypatch.setattr(reference, "SEGMENT_BUDGET", budget)
    gaussians = make_gaussians(40, scale=0.3, seed=5)
    gaussians = dataclasses.replace(gaussians, opacities=gaussians.opacities.sqrt())  # opaque enough to stop
    view = make_view(2, 9, 7)
    projection = reference.project(gaussians, view, Settings())
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 40, 2, generator=generator, dtype=torch.float64)
    image, rest = reference.composite(projection, features, 9, 7, tile_size)
    expected, expected_rest = naive_composite(projection, features, 9, 7)
    assert expected_rest.min() < 1e-3
    assert relative_error(image, expected) <= 1e-12
    assert relative_error(rest, expected_rest) <= 1e-12


def test_gradients_do_not_depend_on_segments(monkeypatch):
    gaussians, view = make_gaussians(50, scale=0.2), make_view(1, 20, 17)
    means = gaussians.means.clone().requires_grad_()
    gradients = []
    for budget in (4_000_000, 300):
        monkeypatch.setattr(reference, "SEGMENT_BUDGET", budget)
        result = rasterize(dataclasses.replace(gaussians, means=means), view)
        gradients.append(torch.autograd.grad(result.image.square().sum(), means)[0])
    assert relative_error(gradients[0], gradients[1]) <= 1e-12


def one_gaussian(**changes: Tensor) -> Gaussians:
    base = Gaussians(
        means=torch.zeros(1, 3, dtype=torch.float64),
        quaternions=torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64),
        scales=torch.full((1, 3), 0.1, dtype=torch.float64),
        opacities=torch.tensor([0.8], dtype=torch.float64),
        colors=torch.tensor([[0.2, 0.5, 1.0]], dtype=torch.float64),
    )
    return dataclasses.replace(base, **changes)


def front_view(distance: float = 4.0, focal: float = 50.0, size: int = 33) -> View:
    pose = torch.eye(4, dtype=torch.float64)[None].clone()
    pose[:, 2, 3] = distance
    lens = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)[None]
    return View(pose, lens, size, size)


def test_one_gaussian_in_closed_form():
    result = rasterize(one_gaussian(), front_view(), Settings(background=torch.ones(3, dtype=torch.float64)))
    variance = (50.0 / 4.0 * 0.1) ** 2 + 0.3
    offset = torch.arange(33, dtype=torch.float64) - 16
    squared = offset[:, None] ** 2 + offset[None, :] ** 2
    alpha = 0.8 * torch.exp(-0.5 * squared / variance)
    alpha = torch.where(alpha < ALPHA_MIN, 0.0, alpha)[None, ..., None]
    assert relative_error(result.alpha, alpha) <= 1e-12
    assert relative_error(result.depth, 4.0 * alpha) <= 1e-12
    color = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    assert relative_error(result.image, alpha * color + 1 - alpha) <= 1e-12
    assert result.radii.item() == math.ceil(math.sqrt(2 * math.log(0.8 * 255) * variance))


@pytest.mark.parametrize("antialiased", [False, True])
def test_antialiasing_keeps_the_light_of_a_tiny_gaussian(antialiased):
    """With the compensation, the sum of alpha is opacity times the Gaussian's own area, 2 pi sigma^2."""
    sigma = 0.05
    scales = torch.full((1, 3), sigma * 4 / 50, dtype=torch.float64)
    gaussians = one_gaussian(scales=scales, opacities=torch.tensor([1.0], dtype=torch.float64))
    projection = reference.project(gaussians, front_view(), Settings(antialiased=antialiased))
    determinant = projection.conics[0, 0, 0] * projection.conics[0, 0, 2] - projection.conics[0, 0, 1] ** 2
    light = projection.opacities[0, 0] / determinant.sqrt()
    expected = sigma**2 if antialiased else sigma**2 + 0.3
    assert light.item() == pytest.approx(expected, rel=1e-9)


def test_normal_is_the_shortest_axis_facing_the_camera():
    thin_x = torch.tensor([[0.01, 0.3, 0.3]], dtype=torch.float64)
    turned = torch.tensor([[2.0, 0, 2.0, 0]], dtype=torch.float64)  # 90 degrees about y: local x becomes world -z
    for sign in (1.0, -1.0):
        result = rasterize(one_gaussian(scales=thin_x, quaternions=sign * turned), front_view())
        expected = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)  # the camera is on -z
        center = result.normal[0, 16, 16] / result.alpha[0, 16, 16]
        assert relative_error(center, expected) <= 1e-12


def test_gradient_of_means2d_is_per_pixel():
    """Shifting the principal point by one pixel moves every projected centre by one pixel."""
    gaussians, view = make_gaussians(20, scale=0.2), make_view(1, 24, 24)

    def loss(shift: float, *, keep: bool = False) -> tuple[Tensor, Tensor]:
        intrinsics = view.intrinsics.clone()
        intrinsics[:, 0, 2] += shift
        leaf = gaussians.means.clone().requires_grad_(keep)
        result = rasterize(dataclasses.replace(gaussians, means=leaf), dataclasses.replace(view, intrinsics=intrinsics))
        return result.image.square().sum(), result.means2d

    value, means2d = loss(0.0, keep=True)
    means2d.retain_grad()
    value.backward()
    step = 1e-6
    numeric = (loss(step)[0] - loss(-step)[0]) / (2 * step)
    assert means2d.grad[..., 0].sum().item() == pytest.approx(numeric.item(), rel=1e-6)


def test_culling_rules():
    gaussians, view = one_gaussian(), front_view()
    cases = {
        "behind": (one_gaussian(means=torch.tensor([[0.0, 0, -5.0]], dtype=torch.float64)), view, Settings()),
        "before near": (gaussians, dataclasses.replace(view, near=4.5), Settings()),
        "beyond far": (gaussians, dataclasses.replace(view, far=3.5), Settings()),
        "radius": (gaussians, view, Settings(radius_clip=5.0)),
        "transparent": (one_gaussian(opacities=torch.tensor([0.0039], dtype=torch.float64)), view, Settings()),
        "outside": (one_gaussian(means=torch.tensor([[3.0, 0, 0]], dtype=torch.float64)), view, Settings()),
    }
    for name, (scene, camera, settings) in cases.items():
        result = rasterize(scene, camera, settings)
        assert result.radii.item() == 0, name
        assert result.alpha.max() == 0, name
        assert not result.means2d.any(), name
    assert rasterize(gaussians, view).radii.item() > 0


def test_ties_in_depth_keep_the_order_given():
    two = Gaussians(*(tensor.repeat(2, *[1] * (tensor.dim() - 1)) for tensor in vars(one_gaussian()).values()))
    two = dataclasses.replace(two, colors=torch.eye(3, dtype=torch.float64)[:2])
    image = rasterize(two, front_view()).image[0, 16, 16]
    assert image[0] == pytest.approx(0.8)
    assert image[1] == pytest.approx(0.16)


def test_runs_without_gradients_and_in_a_batch_of_none():
    gaussians, view = make_gaussians(5), make_view(1, 8, 8)
    with torch.no_grad():
        assert not rasterize(gaussians, view).image.requires_grad
    empty = View(view.view_matrices[:0], view.intrinsics[:0], 8, 8)
    assert rasterize(gaussians, empty).image.shape == (0, 8, 8, 3)
    nobody = Gaussians(*(tensor[:0] for tensor in vars(gaussians).values()))
    assert rasterize(nobody, view, Settings(background=torch.ones(3, dtype=torch.float64))).image.min() == 1


class TestOrthographic:
    """Parallel rays: what is seen does not depend on the distance."""

    def view(self, views: int = 2) -> View:
        near = make_view(views, 20, 16)
        lens = near.intrinsics.clone()
        lens[:, [0, 1], [0, 1]] /= 3.0  # as large at distance 3 as in perspective
        return dataclasses.replace(near, intrinsics=lens, projection="orthographic")

    def test_moving_back_changes_only_the_depth(self) -> None:
        gaussians, view = make_gaussians(40), self.view()
        farther = view.view_matrices.clone()
        farther[:, 2, 3] += 5.0
        one = reference.rasterize_reference(gaussians, view, Settings())
        two = reference.rasterize_reference(gaussians, dataclasses.replace(view, view_matrices=farther), Settings())
        torch.testing.assert_close(one.image, two.image)
        torch.testing.assert_close(two.depth, one.depth + 5.0 * one.alpha)

    def test_a_perspective_from_far_away(self) -> None:
        """The limit of a telephoto lens."""
        gaussians, view = make_gaussians(40), self.view()
        far = view.view_matrices.clone()
        far[:, 2, 3] = 3e4
        lens = view.intrinsics.clone()
        lens[:, [0, 1], [0, 1]] *= 3e4
        perspective = View(far, lens, view.width, view.height)
        one = reference.rasterize_reference(gaussians, view, Settings())
        two = reference.rasterize_reference(gaussians, perspective, Settings())
        torch.testing.assert_close(one.image, two.image, rtol=0, atol=2e-3)

    def test_gradients(self) -> None:
        gaussians, view = make_gaussians(4, scale=0.3), self.view(1)
        inputs = [tensor.requires_grad_() for tensor in (*vars(gaussians).values(), view.view_matrices)]

        def run(*tensors: Tensor) -> Tensor:
            seen = dataclasses.replace(view, view_matrices=tensors[5], width=6, height=5)
            out = reference.rasterize_reference(Gaussians(*tensors[:5]), seen, Settings())
            return torch.cat([out.image, out.depth], dim=-1)

        assert torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-4)


class TestExtras:
    def test_median_depth(self) -> None:
        """Three discs in a row: the second takes the light below one half."""
        means = torch.tensor([[0.0, 0, 0.5], [0, 0, 0], [0, 0, -0.5]], dtype=torch.float64)
        view = dataclasses.replace(make_view(1, 9, 9), view_matrices=torch.eye(4, dtype=torch.float64)[None].clone())
        view.view_matrices[0, 2, 3] = 3.0
        view.view_matrices[0, 1, 1] = view.view_matrices[0, 2, 2] = -1.0
        quaternions = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).expand(3, 4)
        for opacities, expected in (([0.3, 0.6, 0.9], 3.0), ([0.9, 0.6, 0.9], 2.5), ([0.2, 0.2, 0.1], 0.0)):
            seen = torch.tensor(opacities, dtype=torch.float64)
            gaussians = Gaussians(means, quaternions, torch.full_like(means, 0.5), seen, torch.zeros_like(means))
            out = reference.rasterize_reference(gaussians, view, Settings(median_depth=True))
            assert out.median_depth is not None
            assert float(out.median_depth[0, 4, 4]) == pytest.approx(expected)
        assert reference.rasterize_reference(gaussians, view, Settings()).median_depth is None

    def test_absolute_gradients(self) -> None:
        """Pixel by pixel: the gradient that each wants of the means, by autograd, in absolute values."""
        gaussians, view = make_gaussians(5, scale=0.3), make_view(1, 4, 3)
        gaussians.means.requires_grad_()
        incoming = torch.randn(1, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        settings = Settings(absolute_gradients=True)
        out = reference.rasterize_reference(gaussians, view, settings)
        total = torch.zeros_like(out.means2d)
        for row in range(3):
            for column in range(4):
                value = (out.image[:, row, column] * incoming[:, row, column]).sum()
                total += torch.autograd.grad(value, out.means2d, retain_graph=True)[0].abs()
        assert out.absolute_gradients is not None
        out.absolute_gradients.zero_()
        torch.autograd.grad((out.image * incoming).sum(), gaussians.means)
        torch.testing.assert_close(out.absolute_gradients, total)
        assert bool((out.absolute_gradients > 0).any())
