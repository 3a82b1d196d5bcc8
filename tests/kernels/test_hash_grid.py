"""The hash grid encoding: layout, the reference against plain loops, the native backend against the reference."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.hash_grid import HashGrid, encode
from dreamkit_kernels.hash_grid.reference import encode_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

SMALL = HashGrid(levels=4, log2_size=9, base_resolution=3, growth=1.9)
GRIDS = [
    SMALL,
    HashGrid(levels=3, log2_size=8, base_resolution=4, growth=2.0, smoothstep=True),
    HashGrid(levels=3, features=4, log2_size=10, base_resolution=5, growth=1.5, smoothstep=True),
    HashGrid(levels=2, features=8, log2_size=6, base_resolution=1, growth=3.0),
    HashGrid(levels=5, features=1, log2_size=8, base_resolution=4, growth=1.7, dims=2, smoothstep=True),
    HashGrid(levels=4, features=2, log2_size=7, base_resolution=2, growth=2.3, dims=2),
    HashGrid(levels=4, log2_size=8, base_resolution=3, growth=1.9, layout="hashed"),
]


def inputs(grid: HashGrid, count: int = 37, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(count, grid.dims, generator=generator, dtype=dtype)
    table = torch.randn(grid.entries, grid.features, generator=generator, dtype=dtype)
    return positions, table


def by_hand(position: Any, table: Any, grid: HashGrid) -> list[float]:
    """One position encoded with loops and Python's integers, as instant-ngp's paper describes it."""
    encoded = []
    for level in grid.plan:
        cell = [min(max(x, 0.0), 1.0) * level.scale + level.shift for x in position]
        low = [math.floor(x) for x in cell]
        share = [x - corner for x, corner in zip(cell, low, strict=True)]
        if grid.smoothstep:
            share = [w * w * (3 - 2 * w) for w in share]
        total = np.zeros(grid.features)
        for bits in itertools.product((0, 1), repeat=grid.dims):
            corner = [a + b for a, b in zip(low, bits, strict=True)]
            if level.resolution:
                index = sum(c * level.resolution**axis for axis, c in enumerate(corner))
            else:
                index = 0
                for c, prime in zip(corner, (1, 2654435761, 805459861), strict=False):
                    index ^= (c * prime) % 2**32
            weight = math.prod(w if bit else 1 - w for w, bit in zip(share, bits, strict=True))
            total += weight * table[level.offset + index % level.size]
        encoded.extend(total.tolist())
    return encoded


@pytest.mark.parametrize("backend", ["reference", "native", pytest.param("triton", marks=needs_triton)])
def test_as_nerfstudio(backend: str) -> None:
    """nerfstudio's own answers, kept by golden/make_nerfstudio.py: 6 levels from 4 to 100 cells, 2^6 entries each."""
    kept = load_file(Path(__file__).parent / "golden" / "nerfstudio_hash.safetensors")
    growth = math.exp((math.log(100) - math.log(4)) / 5)
    grid = HashGrid(levels=6, log2_size=6, base_resolution=4, growth=growth, layout="hashed")
    positions, table = (kept[name].requires_grad_() for name in ("positions", "table"))
    code = encode(positions, table, grid, backend)
    torch.testing.assert_close(code, kept["code"], rtol=0, atol=1e-5)
    d_positions, d_table = torch.autograd.grad(code, (positions, table), kept["incoming"])
    torch.testing.assert_close(d_table, kept["d_table"], rtol=0, atol=1e-5)
    torch.testing.assert_close(d_positions, kept["d_positions"], rtol=1e-5, atol=1e-4)  # up to 400


class TestLayout:
    def test_instant_ngp(self) -> None:
        """16 to 2048 in 16 levels with 2^19 entries: resolutions of the paper, dense while the points fit."""
        plan = HashGrid().plan
        assert plan[0].scale == 15
        assert plan[0].resolution == 16
        assert plan[0].size == 4096
        assert plan[-1].scale == pytest.approx(2047, abs=0.01)
        dense = [level for level in plan if level.resolution]
        assert [level.resolution for level in dense] == [16, 23, 31, 43, 59]
        assert all(level.size >= level.resolution**3 and level.size % 8 == 0 for level in dense)
        assert all(level.size == 2**19 for level in plan[len(dense) :])
        assert [level.offset for level in plan[1:]] == [level.offset + level.size for level in plan[:-1]]

    def test_hashed(self) -> None:
        grid = HashGrid(layout="hashed")
        assert [level.scale for level in grid.plan[:4]] == [16, 22, 30, 42]
        assert all((level.resolution, level.shift, level.size) == (0, 0, 2**19) for level in grid.plan)

    def test_weights_of_tiny_cuda_nn(self) -> None:
        flat = torch.arange(SMALL.entries * 2, dtype=torch.float16)
        table = SMALL.load_table(flat)
        assert table.dtype == torch.float32
        assert torch.equal(table[5], flat[10:12].float())
        with pytest.raises(ValueError, match="weights must hold"):
            SMALL.load_table(flat[:-1])

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            ({"levels": 0}, ValueError, "levels must be between 1 and 64, got 0"),
            ({"levels": 2.0}, TypeError, "levels must be an int"),
            ({"features": 3}, ValueError, "features must be one of"),
            ({"dims": 4}, ValueError, "dims must be between 2 and 3"),
            ({"growth": 0.5}, ValueError, "growth must be between"),
            ({"growth": float("nan")}, ValueError, "growth must be between"),
            ({"growth": 4.0}, ValueError, "the finest level"),
            ({"layout": "dense"}, ValueError, "layout must be"),
            ({"log2_size": 24, "levels": 64, "layout": "hashed", "growth": 1.1}, ValueError, "entries; at most"),
        ],
    )
    def test_what_is_refused(self, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            HashGrid(**wrong)


class TestReference:
    @pytest.mark.parametrize("grid", GRIDS)
    def test_it_is_what_the_paper_says(self, grid: HashGrid) -> None:
        positions, table = inputs(grid, dtype=torch.float64)
        positions[:2] = torch.tensor([[0.0], [1.0]])
        positions[2, 0] = -0.5
        expected = [by_hand(row, table.numpy(), grid) for row in positions.tolist()]
        torch.testing.assert_close(encode_reference(positions, table, grid), torch.tensor(expected).double())

    @pytest.mark.parametrize("grid", GRIDS)
    def test_gradients(self, grid: HashGrid) -> None:
        positions, table = inputs(grid, 5, dtype=torch.float64)
        positions = (0.05 + 0.9 * positions).requires_grad_()
        table.requires_grad_()
        assert gradcheck(lambda x, t: encode_reference(x, t, grid), (positions, table), fast_mode=True)
        assert gradgradcheck(lambda x, t: encode_reference(x, t, grid), (positions, table), fast_mode=True)

    def test_it_is_linear_between_grid_points(self) -> None:
        """A table that holds a linear function of the grid points is that function, on a dense level."""
        grid = HashGrid(levels=1, features=1, log2_size=12, base_resolution=8, growth=1.0)
        level = grid.plan[0]
        points = torch.arange(level.size)
        axes = torch.stack([points // level.resolution**axis % level.resolution for axis in range(3)], dim=-1).double()
        slope = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
        positions = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.9
        expected = (positions * level.scale + level.shift) @ slope[:, None]
        torch.testing.assert_close(encode_reference(positions, (axes @ slope)[:, None], grid), expected)


def twice(positions: Tensor, table: Tensor, grid: HashGrid, backend: str) -> list[Tensor]:
    """The code, its gradients, and the gradients of a function of the position's gradient."""
    x, t = positions.clone().requires_grad_(), table.clone().requires_grad_()
    generator = torch.Generator().manual_seed(9)
    g = torch.randn(len(x), grid.width, generator=generator, dtype=x.dtype).requires_grad_()
    u = torch.randn(table.shape, generator=generator, dtype=x.dtype)
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    code = encode(x, t, grid, backend)
    d_x, d_t = torch.autograd.grad(code, (x, t), g, create_graph=True)
    second = torch.autograd.grad((d_x * v).sum() + (d_t * u).sum(), (x, t, g))
    return [code.detach(), d_x.detach(), d_t.detach(), *second]


@pytest.mark.parametrize("backend", ["native", pytest.param("triton", marks=needs_triton)])
class TestKernels:
    @pytest.mark.parametrize("grid", GRIDS)
    @pytest.mark.parametrize("count", [0, 1, 8, 61, 300])
    def test_as_the_reference(self, backend: str, grid: HashGrid, count: int) -> None:
        positions, table = inputs(grid, count)
        results, reference = (twice(positions, table, grid, name) for name in (backend, "reference"))
        for name, one, other in zip(("code", "dx", "dt", "ddx", "ddt", "dg"), results, reference, strict=True):
            scale = float(other.abs().max()) if other.numel() else 0.0
            torch.testing.assert_close(
                one, other, rtol=1e-4, atol=3e-5 * scale, msg=lambda m, name=name: f"{name}: {m}"
            )

    def test_borders_outside_and_nonsense(self, backend: str) -> None:
        grid = GRIDS[1]
        _, table = inputs(grid)
        nan, inf = float("nan"), float("inf")
        rows = [[0, 0, 0], [1, 1, 1], [0, 1, 0.5], [-3, 0.2, 7], [nan, 0.5, 0.5], [0.5, inf, 0.5], [0.1, 0.2, -inf]]
        rows.append([3e38, -3e38, 0.5])
        positions = torch.tensor(rows)
        results, reference = (twice(positions, table, grid, name) for name in (backend, "reference"))
        for one, other in zip(results, reference, strict=True):
            assert bool(torch.isfinite(one).all())
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert not results[0][4:7].any()
        assert not results[1][4:7].any()
        assert float(results[1][3, 0]) == float(results[1][3, 2]) == 0

    def test_a_gradient_of_nonsense_rows_goes_nowhere(self, backend: str) -> None:
        """Rows that do not count may have a gradient that is NaN."""
        grid = GRIDS[0]
        positions, table = inputs(grid, 10)
        positions[3] = float("nan")
        table.requires_grad_()
        g = torch.ones(10, grid.width)
        g[3] = float("nan")
        (d_table,) = torch.autograd.grad(encode(positions, table, grid, backend), table, g)
        assert bool(torch.isfinite(d_table).all())

    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), st.integers(1, 11), st.integers(1, 40), st.floats(1, 2.5),
        st.sampled_from([2, 3]), st.booleans(), st.sampled_from(["instant_ngp", "hashed"]), st.integers(0, 40),
    )  # fmt: skip
    def test_any_layout(
        self, backend: str, levels: int, features: int, log2_size: int, base: int, growth: float, dims: int,
        smoothstep: bool, layout: Any, count: int,
    ) -> None:  # fmt: skip
        grid = HashGrid(levels, features, log2_size, base, growth, dims, smoothstep, layout)
        positions, table = inputs(grid, count, seed=count)
        code = encode(positions, table, grid, backend)
        torch.testing.assert_close(code, encode_reference(positions, table, grid), rtol=1e-3, atol=2e-3)


class TestNative:
    def test_the_bits_do_not_depend_on_the_threads(self) -> None:
        grid = GRIDS[2]
        positions, table = inputs(grid, 3001)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                results.append(twice(positions, table, grid, "native"))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))

    def test_strided_inputs(self) -> None:
        positions, table = inputs(SMALL)
        strided = positions.T.contiguous().T
        wide = torch.cat([table, table], dim=1)[:, : SMALL.features]
        assert torch.equal(encode(strided, wide, SMALL, "native"), encode(positions, table, SMALL, "native"))

    def test_it_compiles(self) -> None:
        positions, table = inputs(SMALL)
        x = positions.requires_grad_()

        def loss(x: Tensor, table: Tensor) -> Tensor:
            return encode(x, table, SMALL, "native").square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        (expected,) = torch.autograd.grad(loss(x, table), x)
        (gradient,) = torch.autograd.grad(compiled(x, table), x)
        torch.testing.assert_close(gradient, expected)

    def test_the_operators_are_registered_well(self) -> None:
        positions, table = inputs(SMALL)
        arguments = (positions.requires_grad_(), table.requires_grad_(), SMALL.spec, "native")
        torch.library.opcheck(torch.ops.dreamkit.hash_encode.default, arguments)


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"positions": None}, TypeError, "positions must be a torch.Tensor, got NoneType"),
            ({"positions": torch.zeros(3, 3, dtype=torch.float16)}, TypeError, "positions must be float32 or float64"),
            ({"table": torch.zeros(SMALL.entries, 2).double()}, TypeError, "table must have the dtype of positions"),
            ({"positions": torch.zeros(3, 2)}, ValueError, r"positions must have shape \[N, 3\], got \[3, 2\]"),
            ({"positions": torch.zeros(3)}, ValueError, "positions must have shape"),
            ({"table": torch.zeros(7, 2)}, ValueError, "table must have shape"),
            ({"table": torch.zeros(SMALL.entries, 2, device="meta")}, ValueError, "table must be on the device"),
            ({"backend": "cuda"}, ValueError, "backend must be one of reference, native"),
        ],
    )
    def test_what_is_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments = {"positions": torch.zeros(3, 3), "table": torch.zeros(SMALL.entries, 2), "grid": SMALL} | change
        with pytest.raises(error, match=message):
            encode(**arguments)

    def test_float64_runs_on_the_reference(self) -> None:
        positions, table = inputs(SMALL, dtype=torch.float64)
        assert encode(positions, table, SMALL).dtype == torch.float64
        with pytest.raises(ValueError, match="float32"):
            encode(positions, table, SMALL, "native")
