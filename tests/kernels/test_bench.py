"""The benchmark of the kernels: what its figures mean, and its command, on a case that takes no time."""

import json
from typing import Any

import pytest
import torch
from dreamkit_kernels import bench
from dreamkit_kernels.bench import CASES, Case, machine, measure, run_case
from dreamkit_kernels.bench.measure import LEAST_RUNS, Pass, Problem, median_ms, passes, peak_mb
from dreamkit_kernels.dispatch import OPERATIONS
from dreamkit_kernels.hash_grid import HashGrid, encode

from dreamkit.cli.main import main

CPU = torch.device("cpu")


def small(device: torch.device) -> Problem:
    grid = HashGrid(levels=2, log2_size=6, base_resolution=2)
    positions = torch.rand(20, 3, device=device)
    table = grid.make_table().to(device).requires_grad_()
    return Problem(lambda backend: [encode(positions, table, grid, backend)], [table])


class TestMeasure:
    def test_median_of_at_least_three(self) -> None:
        calls = []
        ms = median_ms(Pass(lambda _: calls.append(1)), CPU, 0.0)
        assert ms >= 0
        assert len(calls) == LEAST_RUNS + 1  # one warms up

    def test_what_comes_before_is_given_and_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]

        def prepare() -> list[torch.Tensor]:
            clock[0] += 10.0
            return [torch.full((1,), 2.0)]

        def work(given: list[torch.Tensor]) -> None:
            clock[0] += float(given[0])

        monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
        assert median_ms(Pass(work, prepare), CPU, 0.0) == 2000.0

    def test_backward_runs_once_after_each_forward(self) -> None:
        forward = []

        def run(backend: str) -> list[torch.Tensor]:
            forward.append(backend)
            return [values.square()]

        values = torch.ones(3, requires_grad=True)
        work = passes(Problem(run, [values]), "native")["backward"]
        for _ in range(2):  # a graph that was kept would let it run twice
            (grad,) = work.run(work.prepare())
            assert torch.equal(grad, torch.full((3,), 2.0))
        assert forward == ["native"] * 2

    def test_peak_memory_sees_an_allocation(self) -> None:
        peak = peak_mb(Pass(lambda _: torch.ones(50 * 2**20 // 4).sum()), CPU)
        assert peak is None or 40 < peak < 200

    def test_peak_memory_sees_what_reuses_freed_memory(self) -> None:
        def work(_: object) -> None:
            parts = [torch.ones(2**14) for _ in range(800)]  # 50 MB in blocks that stay with the process when freed
            assert len(parts) == 800

        work(None)
        peak = peak_mb(Pass(work), CPU)
        assert peak is None or 40 < peak < 200

    def test_rows(self) -> None:
        threads = torch.get_num_threads()
        rows = run_case("hash_grid", "small", small(CPU), ["native"], "reference", CPU, 1, 0.01)
        assert torch.get_num_threads() == threads
        assert [(row.backend, row.pass_) for row in rows] == [("native", "forward"), ("native", "backward")]
        for row in rows:
            assert row.ratio == pytest.approx(row.against_ms / row.ms, rel=0.05)
            assert (row.threads, row.against, row.device) == (1, "reference", "cpu")

    def test_no_backward_without_inputs(self) -> None:
        problem = Problem(lambda backend: [torch.ones(3)], [])
        rows = run_case("x", "y", problem, ["native"], "reference", CPU, 1, 0.01)
        assert [row.pass_ for row in rows] == ["forward"]


def test_every_operation_has_a_case() -> None:
    assert {case.op for case in CASES} == set(OPERATIONS)
    assert len({(case.op, case.name) for case in CASES}) == len(CASES)


def test_machine() -> None:
    told = machine()
    assert told["torch"] == torch.__version__
    assert {"date", "commit", "cpu", "gpu", "threads"} <= set(told)


class TestCommand:
    @pytest.fixture(autouse=True)
    def one_case(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench, "CASES", (Case("hash_grid", "small", small),))

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "kernels", "--device", "cpu", "--threads", "1,2", "--seconds", "0.01", "--json"]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert set(told) == {"machine", "rows"}
        assert {row["threads"] for row in told["rows"]} == {1, 2}
        assert set(told["rows"][0]) == {
            *("op", "case", "device", "threads", "backend", "pass", "ms", "peak_mb", "against", "against_ms", "ratio")
        }

    def test_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "kernels", "--device", "cpu", "--threads", "1", "--seconds", "0.01"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split()[:3] == ["op", "case", "threads"]
        assert len(lines) == 3

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--threads", "0"], "--threads is '0'"),
            (["--threads", "two"], "--threads is 'two'"),
            (["--seconds", "0"], "--seconds"),
            (["--op", "sort"], "--op"),
            (["--device", "tpu"], "--device"),
        ],
    )
    def test_mistakes(self, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "kernels", *options]) == 2
        assert said in capsys.readouterr().err


def test_the_gpu_benchmark_runs_on_tiny_shapes(tmp_path, monkeypatch) -> None:
    """Every case and rival but those that need a GPU; one that fails is named, not lost."""
    from dreamkit_kernels.bench import gpu

    monkeypatch.setattr(gpu, "median_ms", lambda work, device, seconds: (work.run(work.prepare()), 1.0)[1])
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    shown: list[dict[str, object]] = []
    found = gpu.run_gpu(CPU, 0.0, small=True, report=shown.extend)
    assert found["rows"] == shown
    seen = {(row["op"], row["backend"], row["against"], row["pass"]) for row in shown}
    assert {("stream_attention", "native", "sdpa", name) for name in ("forward", "backward")} <= seen
    assert ("modulate", "native", "inductor", "backward") in seen
    assert ("gaussian_rasterize", "native", "reference", "forward") in seen
    forward = [row for row in shown if row["pass"] == "forward"]
    assert all(row["share"] > 0 for row in forward)
    failed = [name for name in found["missing"] if ": " in name]
    assert not failed, found["missing"]


def test_a_failing_case_does_not_stop_the_others(monkeypatch) -> None:
    from dreamkit_kernels.bench import gpu

    def broken(device: torch.device) -> Problem:
        raise RuntimeError("no such kernel")

    cases = [
        gpu.GpuCase("hash_grid", "broken", broken, ("reference",)),
        gpu.GpuCase("hash_grid", "small", small, ("reference",), bytes=1e3),
    ]
    monkeypatch.setattr(gpu, "gpu_cases", lambda small: cases)
    found = gpu.run_gpu(CPU, 0.0, small=True, report=lambda rows: None)
    assert found["missing"]["hash_grid: broken"] == "RuntimeError: no such kernel"
    assert {row["case"] for row in found["rows"]} == {"small"}
