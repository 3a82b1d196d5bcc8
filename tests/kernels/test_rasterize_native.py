"""The native backend against the reference: values, every gradient, determinism and hostile input."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.dispatch import backend_report
from dreamkit_kernels.gaussian_rasterize import Gaussians, Rasterization, Settings, View, rasterize
from dreamkit_kernels.gaussian_rasterize.states import MAX_STATES
from hypothesis import given, settings, strategies
from rasterize_scenes import (
    GRADIENT_NAMES,
    GRADIENT_TOLERANCE,
    OUTPUTS,
    cast_gaussians,
    cast_view,
    compare,
    make_gaussians,
    make_view,
    relative_error,
    run_with_gradients,
)
from torch import Tensor

NATIVE = next(status for status in backend_report() if status.name == "native")
pytestmark = pytest.mark.skipif(not NATIVE.available, reason=NATIVE.reason)


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize(
    ("count", "views", "width", "height", "scale", "channels", "sh_degree"),
    [
        (1, 1, 16, 16, 0.2, 3, None),
        (7, 2, 5, 3, 0.3, 3, None),
        (300, 2, 37, 21, 0.05, 3, None),
        (300, 1, 64, 48, 0.2, 1, None),
        (200, 1, 33, 17, 0.1, 6, None),
        (200, 3, 40, 40, 0.1, 3, 0),
        (200, 1, 40, 40, 0.1, 3, 1),
        (200, 2, 31, 47, 0.1, 3, 2),
        (1500, 2, 48, 48, 0.03, 3, 3),
    ],
)
def test_equals_reference(count, views, width, height, scale, channels, sh_degree, antialiased):
    gaussians = make_gaussians(count, scale=scale, channels=channels, sh_degree=sh_degree)
    view = make_view(views, width, height)
    background = torch.rand(views, channels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    compare(gaussians, view, Settings(background=background, antialiased=antialiased))


@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("sh_degree", [None, 2])
def test_orthographic(sh_degree, antialiased):
    near = make_view(2, 33, 30)
    lens = near.intrinsics.clone()
    lens[:, [0, 1], [0, 1]] /= 3.0
    view = dataclasses.replace(near, intrinsics=lens, projection="orthographic")
    compare(make_gaussians(200, scale=0.1, sh_degree=sh_degree), view, Settings(antialiased=antialiased))


@pytest.mark.parametrize(("views", "width", "height"), [(1, 40, 33), (3, 16, 20), (1, 128, 128)])
def test_median_depth_and_absolute_gradients(views, width, height):
    gaussians, view = make_gaussians(300, scale=0.1), make_view(views, width, height)
    options = Settings(median_depth=True, absolute_gradients=True)
    compare(gaussians, view, options)
    exact, _ = run_with_gradients(gaussians, view, dataclasses.replace(options, backend="reference"))
    single = dataclasses.replace(options, backend="native")
    result, _ = run_with_gradients(cast_gaussians(gaussians, torch.float32), cast_view(view, torch.float32), single)
    differing = ((result.median_depth - exact.median_depth).abs() > 1e-4).double()
    assert float(differing.mean()) < 2e-3  # where the transmittance is one half to the last bits
    assert float((exact.median_depth > 0).double().mean()) > 0.2
    assert relative_error(result.absolute_gradients, exact.absolute_gradients) < GRADIENT_TOLERANCE
    plain, _ = run_with_gradients(cast_gaussians(gaussians, torch.float32), cast_view(view, torch.float32), Settings())
    assert plain.median_depth is None
    assert plain.absolute_gradients is None
    assert torch.equal(plain.image, result.image)


def test_fewer_harmonics_than_held():
    compare(make_gaussians(100, scale=0.1, sh_degree=3), make_view(2, 24, 24), Settings(sh_degree=1))


def test_one_background_for_all_views():
    background = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    compare(make_gaussians(50, scale=0.1), make_view(3, 20, 20), Settings(background=background))


def opaque(gaussians: Gaussians) -> Gaussians:
    return dataclasses.replace(gaussians, opacities=torch.ones_like(gaussians.opacities))


def test_opacity_one_stops_pixels_early():
    compare(opaque(make_gaussians(400, scale=0.2)), make_view(1, 40, 40), Settings())


@pytest.mark.parametrize("scale", [0.0, 1e-6, 3.0, 1e3, 1e6])
def test_degenerate_scales(scale):
    gaussians = make_gaussians(60)
    gaussians = dataclasses.replace(gaussians, scales=torch.full_like(gaussians.scales, scale))
    compare(gaussians, make_view(2, 30, 20), Settings())


def test_scales_beyond_float32_are_culled():
    gaussians = cast_gaussians(make_gaussians(20), torch.float32)
    gaussians = dataclasses.replace(gaussians, scales=torch.full_like(gaussians.scales, 1e11))
    for backend in ("reference", "native"):
        result, gradients = run_with_gradients(
            gaussians, cast_view(make_view(1, 20, 20), torch.float32), Settings(backend=backend)
        )
        assert not result.radii.any()
        assert all(not gradient.any() for gradient in gradients.values() if gradient is not None)


def test_needles():
    """Long thin Gaussians: the conics are nearly singular. float32 may put a pixel on the other side of 1/255."""
    gaussians = make_gaussians(60)
    scales = torch.tensor([[2.0, 1e-4, 1e-4]], dtype=torch.float64).expand(60, 3).contiguous()
    compare(dataclasses.replace(gaussians, scales=scales), make_view(1, 64, 64), Settings(), flips=2e-3)


def test_many_small_gaussians():
    """Enough pixels for some to sit on a threshold. Worst share seen: 0."""
    compare(make_gaussians(5000, scale=0.02), make_view(1, 70, 50), Settings(), flips=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (16, 1), (1, 33), (17, 16)])
def test_odd_image_sizes(shape):
    compare(make_gaussians(30, scale=0.2), make_view(1, *shape), Settings())


def nothing_visible() -> dict[str, tuple[Gaussians, View, Settings]]:
    gaussians, view = make_gaussians(20, scale=0.1), make_view(2, 20, 12)
    behind = view.view_matrices.clone()
    behind[:, 2, 3] -= 10.0
    return {
        "no Gaussians": (Gaussians(*(tensor[:0] for tensor in vars(gaussians).values())), view, Settings()),
        "no views": (gaussians, View(view.view_matrices[:0], view.intrinsics[:0], 20, 12), Settings()),
        "behind": (gaussians, dataclasses.replace(view, view_matrices=behind), Settings()),
        "opacity 0": (
            dataclasses.replace(gaussians, opacities=torch.zeros_like(gaussians.opacities)),
            view,
            Settings(),
        ),
        "clipped": (gaussians, view, Settings(radius_clip=1e6)),
    }


@pytest.mark.parametrize("name", list(nothing_visible()))
def test_nothing_visible(name):
    gaussians, view, options = nothing_visible()[name]
    options = dataclasses.replace(options, background=torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64))
    compare(gaussians, view, options)
    single = dataclasses.replace(options, background=options.background.float())
    result, gradients = run_with_gradients(
        cast_gaussians(gaussians, torch.float32), cast_view(view, torch.float32), single
    )
    assert not result.alpha.any()
    assert (result.image == single.background).all()
    assert all(not gradients[key].any() for key in GRADIENT_NAMES if key != "background")


def test_bad_gaussians_are_culled_and_the_others_are_not_touched():
    gaussians = cast_gaussians(make_gaussians(40, scale=0.1, sh_degree=1), torch.float32)
    view = cast_view(make_view(2, 30, 30), torch.float32)
    bad = Gaussians(*(tensor.clone() for tensor in vars(gaussians).values()))
    bad.means[3, 1] = float("nan")
    bad.quaternions[7, 0] = float("inf")
    bad.scales[11, 2] = float("nan")
    bad.opacities[13] = float("nan")
    bad.colors[17, 2, 1] = -float("inf")
    bad.means[19] = 1e13
    rows = [3, 7, 11, 13, 17, 19]
    kept = torch.tensor([index not in rows for index in range(40)])
    expected = {backend: rasterize(gaussians, view, Settings(backend=backend)) for backend in ("reference", "native")}
    for backend, whole in expected.items():
        result, gradients = run_with_gradients(bad, view, Settings(backend=backend))
        assert not result.radii[:, rows].any()
        assert torch.equal(result.radii[:, kept], whole.radii[:, kept])
        for output in OUTPUTS:
            assert torch.isfinite(getattr(result, output)).all(), (backend, output)
        subset = Gaussians(*(tensor[kept] for tensor in vars(gaussians).values()))
        alone, alone_gradients = run_with_gradients(subset, view, Settings(backend=backend))
        assert torch.equal(result.image, alone.image)
        for name, gradient in gradients.items():
            if gradient is None:
                continue
            assert torch.isfinite(gradient).all(), (backend, name)
            if name in ("means", "quaternions", "scales", "opacities", "colors"):
                assert not gradient[rows].any(), (backend, name)
                assert relative_error(gradient[kept], alone_gradients[name]) <= 1e-5


def test_zero_quaternion_is_the_identity():
    gaussians = cast_gaussians(make_gaussians(10, scale=0.2), torch.float32)
    view = cast_view(make_view(1, 20, 20), torch.float32)
    zero = dataclasses.replace(gaussians, quaternions=torch.zeros(10, 4))
    identity = dataclasses.replace(gaussians, quaternions=torch.tensor([[1.0, 0, 0, 0]]).repeat(10, 1))
    result, gradients = run_with_gradients(zero, view, Settings())
    assert torch.equal(result.image, rasterize(identity, view).image)
    assert not gradients["quaternions"].any()


def all_tensors(result: Rasterization, gradients: dict[str, Tensor | None]) -> list[Tensor]:
    values = [value.detach() for value in vars(result).values() if value is not None]
    return values + [gradient for gradient in gradients.values() if gradient is not None]


@pytest.mark.parametrize("views", [1, 2, 3])
def test_equal_bits_from_run_to_run_and_for_any_number_of_threads(views):
    gaussians = cast_gaussians(make_gaussians(6000, scale=0.05, sh_degree=1), torch.float32)
    view = cast_view(make_view(views, 70, 50), torch.float32)
    background = torch.rand(views, 3, generator=torch.Generator().manual_seed(0))
    options = Settings(background=background, median_depth=True, absolute_gradients=True)
    threads = torch.get_num_threads()
    try:
        runs = []
        for count in (1, 1, 2, 2, 3, 5):
            torch.set_num_threads(count)
            runs.append(all_tensors(*run_with_gradients(gaussians, view, options)))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(first, second) for first, second in zip(runs[0], run, strict=True))


def test_backward_twice_and_missing_gradients():
    gaussians = cast_gaussians(make_gaussians(50, scale=0.1), torch.float32)
    means = gaussians.means.requires_grad_()
    result = rasterize(gaussians, cast_view(make_view(2, 20, 20), torch.float32))
    (first,) = torch.autograd.grad(result.image.sum(), means, retain_graph=True)
    (second,) = torch.autograd.grad(result.image.sum(), means, retain_graph=True)
    assert torch.equal(first, second)
    zero = (result.alpha.sum() + result.depth.sum() + result.normal.sum()) * 0
    (padded,) = torch.autograd.grad(result.image.sum() + zero, means, retain_graph=True)
    assert relative_error(padded, first) <= 1e-5
    (from_depths,) = torch.autograd.grad(result.depths.sum(), means, retain_graph=True)
    assert from_depths.abs().sum() > 0
    with pytest.raises(RuntimeError):
        torch.autograd.grad(torch.autograd.grad(result.image.sum(), means, create_graph=True)[0].sum(), means)


def test_strided_inputs():
    gaussians = cast_gaussians(make_gaussians(30, scale=0.1), torch.float32)
    view = cast_view(make_view(1, 20, 20), torch.float32)
    strided = Gaussians(
        means=gaussians.means.t().contiguous().t(),
        quaternions=torch.stack([gaussians.quaternions] * 2, dim=2)[..., 0],
        scales=torch.cat([gaussians.scales, gaussians.scales], dim=1)[:, :3],
        opacities=torch.stack([gaussians.opacities] * 2, dim=1)[:, 0],
        colors=gaussians.colors.t().contiguous().t(),
    )
    assert not strided.means.is_contiguous()
    assert torch.equal(rasterize(strided, view).image, rasterize(gaussians, view).image)


def scene_for_instruction_sets() -> list[Tensor]:
    """Outputs and gradients of a scene that uses every kernel."""
    gaussians = cast_gaussians(make_gaussians(300, scale=0.1, sh_degree=2), torch.float32)
    view = cast_view(make_view(2, 37, 29), torch.float32)
    return all_tensors(*run_with_gradients(gaussians, view, Settings(antialiased=True, backend="native")))


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_agrees(instruction_set, tmp_path):
    """The same scene in a process that is held to a smaller instruction set."""
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_rasterize_native as tests\n"
        "from dreamkit_kernels.dispatch import native_module\n"
        "torch.save([native_module().instruction_set(), *tests.scene_for_instruction_sets()], sys.argv[2])"
    )
    path = tmp_path / "results.pt"
    environment = os.environ | {"DREAMKIT_SIMD": instruction_set, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(path)]
    subprocess.run(command, check=True, env=environment)
    used, *limited = torch.load(path)
    assert used in ("baseline", instruction_set)  # a processor without AVX2 stays on the baseline
    for value, expected in zip(limited, scene_for_instruction_sets(), strict=True):
        assert relative_error(value, expected) <= 1e-4  # worst seen 2e-6


@settings(max_examples=30)
@given(
    seed=strategies.integers(0, 10_000),
    count=strategies.integers(0, 60),
    views=strategies.integers(0, 3),
    width=strategies.integers(1, 40),
    height=strategies.integers(1, 40),
    log_scale=strategies.floats(-4, 1),
    sh_degree=strategies.sampled_from([None, 0, 1, 2, 3]),
    antialiased=strategies.booleans(),
    radius=strategies.floats(0.3, 5.0),
)
def test_any_small_scene(seed, count, views, width, height, log_scale, sh_degree, antialiased, radius):
    """Cameras may be inside the scene: Gaussians of any size, before and behind."""
    gaussians = make_gaussians(count, seed=seed, scale=10.0**log_scale, sh_degree=sh_degree)
    view = make_view(views, width, height, radius=radius)
    # Near the camera a Gaussian is so large that float32 moves threshold crossings by whole pixels.
    view = dataclasses.replace(view, near=0.2)
    compare(gaussians, view, Settings(antialiased=antialiased), flips=0.02)


@pytest.mark.slow
def test_two_hundred_thousand() -> None:
    """As many as a large asset has. One pixel in a thousand may have a Gaussian at a threshold."""
    gaussians, view = make_gaussians(200_000, scale=0.01, sh_degree=1), make_view(1, 250, 190)
    compare(gaussians, view, Settings(), flips=1e-3)


@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=needs_triton)])
class TestOperators:
    def test_it_compiles(self, backend: str) -> None:
        gaussians = cast_gaussians(make_gaussians(20, scale=0.2, sh_degree=1), torch.float32)
        view = cast_view(make_view(2, 20, 18), torch.float32)

        def loss(means: Tensor, colors: Tensor) -> Tensor:
            moved = dataclasses.replace(gaussians, means=means, colors=colors)
            result = rasterize(moved, view, Settings(backend=backend))
            return result.image.square().sum() + result.depth.sum()

        leaves = [gaussians.means.clone().requires_grad_(), gaussians.colors.clone().requires_grad_()]
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected, found = (torch.autograd.grad(run(*leaves), leaves) for run in (loss, compiled))
        torch.testing.assert_close(found, expected)

    def test_a_state_that_is_gone_is_computed_again(self, backend: str) -> None:
        """More forward passes than states are kept, then their backward passes; and a second one of the same."""
        gaussians, view = (
            cast_gaussians(make_gaussians(9), torch.float32),
            cast_view(make_view(1, 16, 16), torch.float32),
        )
        means = gaussians.means.clone().requires_grad_()
        images = [
            rasterize(dataclasses.replace(gaussians, means=means), view, Settings(backend=backend)).image
            for _ in range(MAX_STATES + 2)
        ]
        gradients = [torch.autograd.grad(image.sum(), means, retain_graph=True)[0] for image in [*images, images[-1]]]
        for other in gradients[1:]:  # the last bits differ where atomics reorder, not in the interpreter
            torch.testing.assert_close(gradients[0], other, rtol=1e-5, atol=1e-6)
        assert bool(gradients[0].any())

    def test_they_are_registered_well(self, backend: str) -> None:
        gaussians = cast_gaussians(make_gaussians(6, scale=0.2, sh_degree=1), torch.float32)
        view = cast_view(make_view(2, 18, 10), torch.float32)
        leaves = [tensor.requires_grad_() for tensor in list(vars(gaussians).values())[:4]]
        pose = view.view_matrices.requires_grad_()
        operators = torch.ops.dreamkit
        numbers = [18.0, 10.0, 0.01, 100.0, 0.3, 0.0]
        options = (gaussians.colors, numbers, True, False, backend)
        torch.library.opcheck(operators.project.default, (*leaves, pose, view.intrinsics, *options))
        with torch.no_grad():
            means2d, geometry, places, radii = operators.project(*leaves, pose, view.intrinsics, *options)
        coefficients = gaussians.colors.clone().requires_grad_()
        torch.library.opcheck(operators.shade.default, (leaves[0], coefficients, pose, radii, 1, backend))
        colors = torch.rand(1, 6, 3).requires_grad_()
        background = torch.rand(2, 3).requires_grad_()
        arguments = (means2d.requires_grad_(), geometry.requires_grad_(), colors, background, places, radii, None)
        # The number of the state differs from call to call, which the other checks would not forgive.
        checks = ("test_schema", "test_autograd_registration")
        torch.library.opcheck(operators.composite.default, (*arguments, 18, 10, True, True, backend), test_utils=checks)
