"""`dreamkit bench kernels`: how fast the kernels are on this machine, against their rivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from dreamkit.checks import require_choice, require_number
from dreamkit.cli.output import print_json
from dreamkit.cli.parsing import Device, parse, require_device
from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from dreamkit_kernels.bench import Row

COLUMNS = ("op", "case", "threads", "backend", "pass", "ms", "peak_mb", "against", "against_ms", "ratio")


@dataclass(frozen=True)
class BenchKernels:
    """Time every kernel, forward and backward apart, against its rival in the same process."""

    op: Annotated[str, tyro.conf.arg(metavar="NAME")] = "all"
    """Which operation, or all."""
    threads: Annotated[str, tyro.conf.arg(metavar="N,N")] = "1,2"
    """CPU threads, one run for each, separated by commas."""
    seconds: Annotated[float, tyro.conf.arg(metavar="F")] = 1.0
    """Time for each median, 0.01 to 60."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def thread_counts(self) -> list[int]:
        """The numbers of threads asked for.

        Raises:
            ConfigError: not numbers from 1 to 1024.
        """
        parts = self.threads.split(",")
        if not all(part.strip().isdecimal() and 1 <= int(part) <= 1024 for part in parts):
            raise ConfigError(f"--threads is {self.threads!r}.", "Give numbers from 1 to 1024 like 1,2.")
        return [int(part) for part in parts]


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `bench kernels`.

    Returns:
        The exit code.
    """
    command = parse(BenchKernels, "bench kernels", arguments)
    require_device(command.device)
    require_number("--seconds", command.seconds, 0.01, 60)
    counts = command.thread_counts()
    from dreamkit_kernels.bench import CASES, machine, run_case
    from dreamkit_kernels.dispatch import DEVICES, backend_report

    from dreamkit.diffusion.loading import resolve_device

    require_choice("--op", command.op, ("all", *dict.fromkeys(case.op for case in CASES)))
    device = resolve_device(command.device)
    rows: list[Row] = []
    for case in CASES:
        if command.op not in ("all", case.op):
            continue
        backends = [
            status.name
            for status in backend_report()
            if status.operation == case.op
            and status.available
            and status.name != case.rival
            and DEVICES.get(status.name, device.type) == device.type
        ]
        problem = case.make(device)
        for threads in counts:
            new = run_case(case.op, case.name, problem, backends, case.rival, device, threads, command.seconds)
            rows.extend(new)
            if not command.json:
                _print_rows(new, header=len(rows) == len(new))
    if command.json:
        print_json({"machine": machine(), "rows": [row.plain() for row in rows]})
    return 0


def _print_rows(rows: Sequence[Row], header: bool) -> None:
    """Print lines of a table whose columns have fixed widths, so that it can grow as results come in."""
    widths = (18, 41, 7, 9, 8, 9, 8, 14, 10, 6)
    if header:
        print("  ".join(f"{name:<{width}}" for name, width in zip(COLUMNS, widths, strict=True)).rstrip())
    for row in rows:
        plain = row.plain()
        cells = ["-" if plain[name] is None else str(plain[name]) for name in COLUMNS]
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)
