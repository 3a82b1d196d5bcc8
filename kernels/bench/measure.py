"""How a case is measured: warm-up, medians, forward and backward apart, peak memory, the rival in the same process."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LEAST_RUNS, MOST_RUNS = 3, 200


@dataclass(frozen=True)
class Problem:
    """A case made for a device.

    Args:
        forward: takes a backend's or a rival's name and returns what has a gradient (or is just computed).
        inputs: what gradients are taken for; empty where there is no backward pass.
    """

    forward: Callable[[str], Sequence[Tensor]]
    inputs: Sequence[Tensor]


@dataclass(frozen=True)
class Row:
    """One measurement, as `dreamkit bench kernels --json` prints it."""

    op: str
    case: str
    device: str
    threads: int
    backend: str
    pass_: str
    ms: float
    peak_mb: float | None
    against: str
    against_ms: float
    ratio: float
    """against_ms / ms: above 1 is faster than the rival."""

    def plain(self) -> dict[str, object]:
        """The row with the names of the JSON."""
        return {name.rstrip("_"): value for name, value in vars(self).items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Pass:
    """What is timed, and what comes before it untimed.

    Args:
        run: called with what `prepare` returns.
        prepare: called before every run.
    """

    run: Callable[[Sequence[Tensor]], object]
    prepare: Callable[[], Sequence[Tensor]] = lambda: ()


def median_ms(work: Pass, device: torch.device, seconds: float) -> float:
    """Median wall time of a run in milliseconds: one warm-up, then as many as fit in the time, at least three."""
    work.run(work.prepare())
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < LEAST_RUNS or (time.perf_counter() - began < seconds and len(times) < MOST_RUNS):
        prepared = work.prepare()
        _synchronise(device)
        start = time.perf_counter()
        work.run(prepared)
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def resident_mib(field: str) -> float | None:
    """A field of this process's status on Linux in MiB, such as VmRSS or VmHWM (the peak); `None` elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)


def _release_freed_memory() -> None:
    """Give freed memory back to the system where it can be asked for (glibc): a run that reuses it would take none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_mb(work: Pass, device: torch.device) -> float | None:
    """Most memory a run takes beyond what is in use before, MB; `None` where the system does not tell."""
    prepared = work.prepare()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work.run(prepared)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not Path("/proc/self/clear_refs").exists():  # not Linux
        return None
    _release_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        return None
    before_mb = resident_mib("VmRSS")
    work.run(prepared)
    highest = resident_mib("VmHWM")
    return None if before_mb is None or highest is None else max(0.0, highest - before_mb)


def passes(problem: Problem, name: str) -> dict[str, Pass]:
    """What to time: `forward`, and where there are gradients `backward`, once after each forward pass."""
    work = {"forward": Pass(lambda _: problem.forward(name))}
    if problem.inputs:

        def backward(outputs: Sequence[Tensor]) -> object:
            incoming = [torch.ones_like(output) for output in outputs]
            # A rival may have parameters of its own.
            return torch.autograd.grad(outputs, problem.inputs, incoming, allow_unused=True)

        work["backward"] = Pass(backward, lambda: problem.forward(name))
    return work


def run_case(
    op: str,
    case: str,
    problem: Problem,
    backends: Sequence[str],
    rival: str,
    device: torch.device,
    threads: int,
    seconds: float = 1.0,
) -> list[Row]:
    """Measure the backends of a case and its rival.

    Args:
        op: name of the operation.
        case: name of the case.
        problem: what to run.
        backends: names that `problem.forward` takes; the rival's own row is left out.
        rival: the name to compare with.
        device: where it runs.
        threads: CPU threads for all of them.
        seconds: time for each median.

    Returns:
        One row a backend and pass.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rivals = {name: median_ms(work, device, seconds) for name, work in passes(problem, rival).items()}
        rows = []
        for backend in backends:
            for name, work in passes(problem, backend).items():
                ms = median_ms(work, device, seconds)
                against = rivals[name]
                memory = peak_mb(work, device)
                rows.append(
                    Row(
                        *(op, case, str(device), threads, backend, name, round(ms, 4)),
                        None if memory is None else round(memory, 1),
                        *(rival, round(against, 4), round(against / ms, 3)),
                    )
                )
        return rows
    finally:
        torch.set_num_threads(before)
