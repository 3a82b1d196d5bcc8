"""Volume rendering: the reference against plain loops, the kernels against the reference."""

import math
from collections.abc import Callable
from typing import Any

import nerfacc
import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.volume_render import (
    OccupancyGrid,
    Rays,
    Samples,
    accumulate,
    distortion_loss,
    march,
    render_weights,
    resample,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

NAN, INF = float("nan"), float("inf")
KERNELS = ["native", pytest.param("triton", marks=needs_triton)]


def fewer(counts: list[int], kernels: str) -> list[int]:
    """The interpreter takes milliseconds a ray."""
    return counts if kernels == "native" else counts[:20]


def packed(counts: list[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Samples:
    """Intervals of random lengths with gaps between them."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    total = int(offsets[-1])
    steps = torch.rand(total, 2, generator=generator, dtype=dtype) * 0.2 + 0.01
    starts, ends = torch.empty(total, dtype=dtype), torch.empty(total, dtype=dtype)
    for first, last in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        places = steps[first:last].flatten().cumsum(0)
        starts[first:last], ends[first:last] = places[0::2], places[1::2]
    return Samples(starts, ends, offsets)


def random_rays(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Rays:
    """Rays from around a box of half width 1, most of which meet it."""
    generator = torch.Generator().manual_seed(seed)
    origins = 3 * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator, dtype=dtype), dim=-1)
    targets = 1.2 * torch.rand(count, 3, generator=generator, dtype=dtype) - 0.6
    return Rays(origins, (targets - origins) / 3)


def random_grid(size: tuple[int, int, int] = (7, 5, 9), dtype: torch.dtype = torch.float32) -> OccupancyGrid:
    occupied = torch.rand(size, generator=torch.Generator().manual_seed(3)) < 0.4
    return OccupancyGrid(
        occupied, torch.tensor([-1.0, -0.8, -1.1], dtype=dtype), torch.tensor([1.0, 0.9, 0.7], dtype=dtype)
    )


def on_threads(work: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(work())
        return results
    finally:
        torch.set_num_threads(threads)


class TestMarch:
    def test_it_is_what_it_says(self) -> None:
        """Every interval of every ray, asked one by one."""
        rays, grid, step, near, far = (
            random_rays(20, dtype=torch.float64),
            random_grid(dtype=torch.float64),
            0.13,
            0.4,
            3.7,
        )
        jitter = torch.rand(20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        samples = march(rays, grid, step, near, far, jitter)
        expected: list[list[float]] = []
        size = grid.occupied.shape
        for o, d, shift in zip(rays.origins.tolist(), rays.directions.tolist(), jitter.tolist(), strict=True):
            kept = []
            for k in range(math.ceil((far - near) / step)):
                start = near + (k + shift) * step
                t = start + step / 2
                cell = [
                    math.floor((o[a] + t * d[a] - float(grid.low[a])) / float(grid.high[a] - grid.low[a]) * size[a])
                    for a in range(3)
                ]
                if t < far and all(0 <= c < s for c, s in zip(cell, size, strict=True)) and grid.occupied[tuple(cell)]:
                    kept.append(start)
            expected.append(kept)
        assert samples.offsets.diff().tolist() == [len(kept) for kept in expected]
        assert len(samples.starts) > 50
        starts = torch.tensor([start for kept in expected for start in kept], dtype=torch.float64)
        torch.testing.assert_close(samples.starts, starts)
        torch.testing.assert_close(samples.ends, samples.starts + step)

    @pytest.mark.parametrize("jittered", [False, True])
    @pytest.mark.parametrize("kernels", KERNELS)
    def test_kernels(self, kernels: str, jittered: bool) -> None:
        """Intervals whose middle is on a border of cells may fall to either side by rounding: one in a thousand may."""
        rays, grid = random_rays(500), random_grid()
        jitter = torch.rand(500, generator=torch.Generator().manual_seed(5)) if jittered else None
        marched, reference = (march(rays, grid, 0.03, 0.5, 6.0, jitter, name) for name in (kernels, "reference"))
        assert len(reference.starts) > 5000

        def keys(samples: Samples) -> set[tuple[int, int]]:
            shift = torch.zeros(()) if jitter is None else jitter[samples.rays]
            steps = ((samples.starts - 0.5) / 0.03 - shift).round().long()
            return set(zip(samples.rays.tolist(), steps.tolist(), strict=True))

        differing = keys(marched) ^ keys(reference)
        assert len(differing) <= len(reference.starts) / 1000, len(differing)
        torch.testing.assert_close(
            marched.ends - marched.starts, torch.full_like(marched.starts, 0.03), rtol=0, atol=1e-5
        )
        assert bool((marched.starts.diff()[marched.rays.diff() == 0] > 0).all())

    @pytest.mark.parametrize("backend", [*KERNELS, "reference"])
    def test_rays_along_axes_from_inside_and_nonsense(self, backend: str) -> None:
        grid = OccupancyGrid(torch.ones(4, 4, 4, dtype=torch.bool), torch.full((3,), -1.0), torch.full((3,), 1.0))
        origins = torch.tensor([[-3.0, 0.1, 0.1], [0.1, 0.1, 0.1], [-3, 2, 0], [NAN, 0, 0], [0.1, 0, 0], [0.1, 0.1, 3]])
        directions = torch.tensor([[1.0, 0, 0], [0, 0, -1], [1, 0, 0], [1, 0, 0], [INF, 0, 0], [0, 0, 1]])
        samples = march(Rays(origins, directions), grid, 0.25, 0.0, 10.0, backend=backend)
        assert samples.offsets.diff().tolist() == [8, 4, 0, 0, 0, 0]
        assert float(samples.starts[0]) == 2.0
        empty = march(Rays(origins[:0], directions[:0]), grid, 0.25, 0.0, 10.0, backend=backend)
        assert empty.offsets.tolist() == [0]
        nothing = OccupancyGrid(torch.zeros(1, 1, 1, dtype=torch.bool), grid.low, grid.high)
        assert len(march(Rays(origins, directions), nothing, 0.25, backend=backend).starts) == 0
        assert len(march(Rays(origins, directions), grid, 0.25, 2.0, 2.0, backend=backend).starts) == 0

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"step": 0.0}, ValueError, "step must be above 0"),
            ({"step": NAN}, ValueError, "step must be above 0"),
            ({"step": 1e-9}, ValueError, "at most 1048576 steps"),
            ({"far": INF}, ValueError, "near and far must be finite"),
            ({"near": 3.0, "far": 2.0}, ValueError, "near <= far"),
            ({"jitter": torch.zeros(2)}, ValueError, r"jitter must have shape \[5\]"),
            ({"rays": Rays(torch.zeros(5, 2), torch.zeros(5, 2))}, ValueError, "rays.origins must have shape"),
            ({"rays": Rays(torch.zeros(5, 3), torch.zeros(4, 3))}, ValueError, "rays.directions must have shape"),
            ({"grid": OccupancyGrid(torch.ones(2, 2, 2), torch.zeros(3), torch.ones(3))}, TypeError, "must be a bool"),
            ({"grid": OccupancyGrid(torch.ones(2, 2, 2) > 0, torch.ones(3), torch.ones(3))}, ValueError, "below"),
            ({"grid": OccupancyGrid(torch.ones(2, 0, 2) > 0, torch.zeros(3), torch.ones(3))}, ValueError, "them 0"),
            ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments = {"rays": random_rays(5), "grid": random_grid(), "step": 0.1} | change
        with pytest.raises(error, match=message):
            march(**arguments)


class TestWeights:
    def test_by_hand(self) -> None:
        samples = packed([3, 0, 5], dtype=torch.float64)
        densities = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 9
        expected = []
        for first, last in ((0, 3), (3, 8)):
            left = 1.0
            for i in range(first, last):
                alpha = 1 - math.exp(-float(densities[i] * (samples.ends[i] - samples.starts[i])))
                expected.append(left * alpha)
                left *= 1 - alpha
        torch.testing.assert_close(render_weights(densities, samples), torch.tensor(expected, dtype=torch.float64))

    def test_gradients_of_the_reference(self) -> None:
        samples = packed([4, 0, 1, 6], dtype=torch.float64)
        densities = (5 * torch.rand(11, dtype=torch.float64)).requires_grad_()
        assert gradcheck(lambda d: render_weights(d, samples), (densities,))

    @pytest.mark.parametrize("counts", [[], [0], [1], [3, 0, 9, 1, 0, 17], [50] * 300])
    @pytest.mark.parametrize("kernels", KERNELS)
    def test_kernels(self, kernels: str, counts: list[int]) -> None:
        samples = packed(fewer(counts, kernels))
        generator = torch.Generator().manual_seed(2)
        densities = 20 * torch.rand(len(samples.starts), generator=generator) ** 3
        incoming = torch.randn(len(densities), generator=generator)
        results = []
        for backend in (kernels, "reference"):
            given = densities.clone().requires_grad_()
            weights = render_weights(given, samples, backend)
            results.append((weights.detach(), torch.autograd.grad(weights, given, incoming)[0]))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=1e-6)

    @pytest.mark.parametrize("kernels", KERNELS)
    def test_extreme_densities(self, kernels: str) -> None:
        samples = Samples(torch.zeros(5), torch.ones(5), torch.arange(6))
        densities = torch.tensor([0.0, 1e-30, 88.0, 1e30, INF])
        weights = render_weights(densities, samples, kernels)
        torch.testing.assert_close(weights, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]))
        again = render_weights(torch.tensor([NAN, 1.0, 1.0, -5.0, NAN]), samples, kernels)
        assert again.shape == (5,)  # defined, if not useful: no crash


@pytest.mark.parametrize("backend", ["reference", "native", pytest.param("triton", marks=needs_triton)])
def test_as_nerfacc(backend: str) -> None:
    """Dense weights and sums by nerfacc, whose torch functions run on a CPU."""
    generator = torch.Generator().manual_seed(9)
    edges = torch.rand(7, 13, generator=generator).cumsum(dim=1)
    samples = Samples.dense(edges)
    densities = 6 * torch.rand(7, 12, generator=generator)
    colors = torch.rand(7, 12, 3, generator=generator)
    expected, _, _ = nerfacc.render_weight_from_density(edges[:, :-1], edges[:, 1:], densities)
    weights = render_weights(densities.flatten(), samples, backend)
    torch.testing.assert_close(weights, expected.flatten(), rtol=0, atol=1e-5)
    total = accumulate(weights, colors.flatten(0, 1), samples, backend)
    torch.testing.assert_close(total, nerfacc.accumulate_along_rays(expected, colors), rtol=0, atol=1e-5)


class TestAccumulate:
    @pytest.mark.parametrize("channels", [0, 1, 3, 4, 7])
    @pytest.mark.parametrize("counts", [[], [0], [2, 0, 5], [40] * 200])
    @pytest.mark.parametrize("kernels", KERNELS)
    def test_kernels(self, kernels: str, channels: int, counts: list[int]) -> None:
        counts = fewer(counts, kernels)
        samples = packed(counts)
        generator = torch.Generator().manual_seed(2)
        weights = torch.rand(len(samples.starts), generator=generator)
        values = torch.randn(len(weights), channels, generator=generator)
        incoming = torch.randn(len(counts), channels, generator=generator)
        results = []
        for backend in (kernels, "reference"):
            given = [item.clone().requires_grad_() for item in (weights, values)]
            total = accumulate(*given, samples, backend)
            results.append((total.detach(), *torch.autograd.grad(total, given, incoming)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_a_constant_field(self) -> None:
        """Opacity 1 - exp(-sigma length), depth by the closed form, for even intervals."""
        edges = torch.linspace(1, 3, 2001, dtype=torch.float64)[None]
        samples = Samples.dense(edges)
        weights = render_weights(torch.full((2000,), 1.3, dtype=torch.float64), samples)
        opacity = accumulate(weights, torch.ones(2000, 1, dtype=torch.float64), samples)
        assert float(opacity) == pytest.approx(1 - math.exp(-2.6), rel=1e-9)
        depth = accumulate(weights, samples.middles[:, None], samples)
        exact = 1 + 1 / 1.3 - (3 + 1 / 1.3) * math.exp(-2.6)
        assert float(depth) == pytest.approx(exact, rel=1e-5)


class TestDistortion:
    def test_by_hand(self) -> None:
        samples = packed([4, 0, 3], dtype=torch.float64)
        weights = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        expected = []
        for first, last in ((0, 4), (4, 4), (4, 7)):
            total = 0.0
            for i in range(first, last):
                total += float(weights[i] ** 2 * (samples.ends[i] - samples.starts[i])) / 3
                for j in range(first, last):
                    total += float(weights[i] * weights[j] * (samples.middles[i] - samples.middles[j]).abs())
            expected.append(total)
        torch.testing.assert_close(distortion_loss(weights, samples), torch.tensor(expected, dtype=torch.float64))

    @pytest.mark.parametrize("counts", [[], [0], [1], [4, 0, 11], [64] * 100])
    @pytest.mark.parametrize("kernels", KERNELS)
    def test_kernels(self, kernels: str, counts: list[int]) -> None:
        samples = packed(fewer(counts, kernels))
        far_away = Samples(samples.starts + 50, samples.ends + 50, samples.offsets)  # cancellation
        generator = torch.Generator().manual_seed(2)
        weights = torch.rand(len(samples.starts), generator=generator) / 10
        incoming = torch.randn(len(samples.offsets) - 1, generator=generator)
        for chosen in (samples, far_away):
            results = []
            for backend in (kernels, "reference"):
                given = weights.clone().requires_grad_()
                loss = distortion_loss(given, chosen, backend)
                results.append((loss.detach(), torch.autograd.grad(loss, given, incoming)[0]))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class TestResample:
    def test_quantiles_of_an_even_distribution(self) -> None:
        edges = torch.linspace(2, 6, 9, dtype=torch.float64).expand(3, 9)
        new = resample(edges, torch.ones(3, 8, dtype=torch.float64), 3)
        torch.testing.assert_close(new, torch.tensor([2.5, 3.5, 4.5, 5.5], dtype=torch.float64).expand(3, 4))

    def test_samples_go_where_the_weight_is(self) -> None:
        weights = torch.zeros(1, 10)
        weights[0, 7] = 1.0
        new = resample(torch.arange(11.0)[None], weights, 8)
        assert 7 <= float(new.min()) < float(new.max()) <= 8

    @pytest.mark.parametrize(("rays", "bins", "count"), [(0, 3, 2), (1, 1, 1), (7, 5, 3), (200, 64, 48)])
    @pytest.mark.parametrize("jittered", [False, True])
    @pytest.mark.parametrize("kernels", KERNELS)
    def test_kernels(self, kernels: str, rays: int, bins: int, count: int, jittered: bool) -> None:
        generator = torch.Generator().manual_seed(8)
        edges = torch.rand(rays, bins + 1, generator=generator).cumsum(dim=1)
        weights = torch.rand(rays, bins, generator=generator) ** 4
        jitter = torch.rand(rays, generator=generator) if jittered else None
        edges_by = [resample(edges, weights, count, jitter, 1e-3, name) for name in (kernels, "reference")]
        torch.testing.assert_close(*edges_by, rtol=1e-3, atol=1e-3)
        assert bool((edges_by[0].diff(dim=1) >= 0).all())

    @pytest.mark.parametrize("kernels", KERNELS)
    def test_weights_that_are_zero_or_nonsense(self, kernels: str) -> None:
        edges = torch.arange(5.0).expand(2, 5)
        for backend in (kernels, "reference"):
            even = resample(edges, torch.zeros(2, 4), 3, backend=backend)
            torch.testing.assert_close(even, torch.tensor([0.5, 1.5, 2.5, 3.5]).expand(2, 4))
        broken = resample(edges, torch.tensor([[NAN, 1, 1, 1], [INF, 1, 1, 1]]), 3, backend=kernels)
        assert broken.shape == (2, 4)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"count": 0}, ValueError, "count must be at least 1"),
            ({"count": 2.0}, TypeError, "count must be an int"),
            ({"padding": 0.0}, ValueError, "padding must be above 0"),
            ({"edges": torch.zeros(2, 4)}, ValueError, r"edges must have shape \[2, 5\]"),
            ({"weights": torch.zeros(2, 0), "edges": torch.zeros(2, 1)}, ValueError, "at least one bin"),
        ],
    )
    def test_what_is_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments = {"edges": torch.zeros(2, 5), "weights": torch.zeros(2, 4), "count": 3} | change
        with pytest.raises(error, match=message):
            resample(**arguments)


class TestSamples:
    @pytest.mark.parametrize(
        ("samples", "error", "message"),
        [
            (Samples(torch.zeros(3), torch.zeros(2), torch.tensor([0, 3])), ValueError, "samples.ends must have shape"),
            (Samples(torch.zeros(3), torch.zeros(3), torch.tensor([0, 2])), ValueError, "must rise from 0 to 3"),
            (Samples(torch.zeros(3), torch.zeros(3), torch.tensor([0, 4, 3])), ValueError, "must rise from 0 to 3"),
            (Samples(torch.zeros(3), torch.zeros(3), torch.tensor([1, 3])), ValueError, "must rise from 0 to 3"),
            (Samples(torch.zeros(0), torch.zeros(0), torch.tensor([])), TypeError, "int64"),
            (Samples(torch.zeros(3), torch.zeros(3), torch.tensor([0, 3]).int()), TypeError, "int64"),
        ],
    )
    def test_what_is_refused(self, samples: Samples, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            render_weights(torch.zeros(3), samples)

    def test_rays(self) -> None:
        assert packed([2, 0, 3]).rays.tolist() == [0, 0, 2, 2, 2]


def render(densities: Tensor, colors: Tensor, samples: Samples, backend: str | None = None) -> Tensor:
    weights = render_weights(densities, samples, backend)
    return (
        accumulate(weights, colors, samples, backend).square().sum() + distortion_loss(weights, samples, backend).sum()
    )


@pytest.mark.parametrize("kernels", KERNELS)
class TestKernels:
    def test_the_bits_do_not_depend_on_the_threads(self, kernels: str) -> None:
        samples = packed(fewer([37] * 400, kernels))
        step = 0.02 if kernels == "native" else 0.2
        generator = torch.Generator().manual_seed(2)
        densities = (5 * torch.rand(len(samples.starts), generator=generator)).requires_grad_()
        colors = torch.rand(len(densities), 3, generator=generator).requires_grad_()

        def work() -> list[Tensor]:
            marched = march(random_rays(500), random_grid(), step, 0.0, 6.0, backend=kernels)
            loss = render(densities, colors, samples, kernels)
            return [loss, *torch.autograd.grad(loss, (densities, colors)), marched.starts, marched.offsets]

        first, *others = on_threads(work)
        for other in others:
            assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))

    def test_it_compiles(self, kernels: str) -> None:
        samples = packed([5, 0, 9])
        densities = torch.rand(14).requires_grad_()
        colors = torch.rand(14, 3)

        def loss(densities: Tensor, starts: Tensor, ends: Tensor, offsets: Tensor) -> Tensor:
            return render(densities, colors, Samples(starts, ends, offsets), kernels)

        inputs = (densities, samples.starts, samples.ends, samples.offsets)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected, gradient = (torch.autograd.grad(run(*inputs), densities)[0] for run in (loss, compiled))
        torch.testing.assert_close(gradient, expected)

    def test_the_operators_are_registered_well(self, kernels: str) -> None:
        samples = packed([5, 0, 9])
        rest = (samples.starts, samples.ends, samples.offsets)
        densities = torch.rand(14, requires_grad=True)
        operators = torch.ops.dreamkit
        torch.library.opcheck(operators.render_weights.default, (densities, *rest, kernels))
        torch.library.opcheck(
            operators.accumulate.default, (densities, torch.rand(14, 3, requires_grad=True), *rest, kernels)
        )
        torch.library.opcheck(operators.distortion.default, (densities, *rest, kernels))
        edges, weights = torch.rand(3, 5).cumsum(1), torch.rand(3, 4)
        torch.library.opcheck(operators.resample.default, (edges, weights, 6, None, 1e-4, kernels))

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 20), max_size=12), st.integers(0, 5), st.integers(0, 10**6))
    def test_any_samples(self, kernels: str, counts: list[int], channels: int, seed: int) -> None:
        samples = packed(counts, seed)
        generator = torch.Generator().manual_seed(seed)
        densities = 10 * torch.rand(len(samples.starts), generator=generator)
        values = torch.rand(len(densities), channels, generator=generator)
        made, reference = (
            accumulate(render_weights(densities, samples, backend), values, samples, backend)
            for backend in (kernels, "reference")
        )
        torch.testing.assert_close(made, reference, rtol=1e-4, atol=1e-5)
