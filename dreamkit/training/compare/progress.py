"""How far a comparison is: a live display on a terminal, a line a run elsewhere; both on stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from dreamkit.training.progress import format_duration

Clock = Callable[[], float]


class Task(Protocol):
    """What a display knows of a run."""

    @property
    def key(self) -> str:
        """Names its row."""

    @property
    def title(self) -> str:
        """The run in a few words."""


Describe = Callable[[Any, Mapping[str, Any]], str]
"""A finished run, a task and its row, in one line."""


class Listener:
    """What a comparison tells; every method does nothing by default."""

    def on_start(self, total: int, done: int) -> None:
        """Say how many runs there are, and how many of them are done already."""

    def on_begin(self, task: Task) -> None:
        """Say that a run begins."""

    def on_steps(self, task: Task, step: int, total: int) -> None:
        """Say how far a run is."""

    def on_row(self, task: Task, row: Mapping[str, Any]) -> None:
        """Say that a run is done, well or not."""


class Tally(Listener):
    """Counts runs and shares of runs, and guesses from them how long the rest takes.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.total = self.done = self.failed = 0
        self.running: dict[str, tuple[Task, int, int]] = {}
        self._skipped = 0
        self._begin = clock()

    def on_start(self, total: int, done: int) -> None:
        """Note the numbers."""
        self.total, self.done, self._skipped, self._begin = total, done, done, self.clock()

    def on_begin(self, task: Task) -> None:
        """Note what runs."""
        self.running[task.key] = (task, 0, 0)

    def on_steps(self, task: Task, step: int, total: int) -> None:
        """Note how far it is."""
        self.running[task.key] = (task, step, total)

    def on_row(self, task: Task, row: Mapping[str, Any]) -> None:
        """Count it."""
        self.running.pop(task.key, None)
        self.done += 1
        self.failed += row.get("error") is not None

    def seconds_left(self) -> float | None:
        """Time for the rest at the pace so far; `None` before anything can be said."""
        shares = sum(step / total for _, step, total in self.running.values() if total)
        finished = self.done - self._skipped + shares
        if finished <= 0:
            return None
        return (self.clock() - self._begin) * (self.total - self._skipped - finished) / finished

    def time_left(self) -> str:
        """The same as text: "12:34 left"; empty before anything can be said."""
        seconds = self.seconds_left()
        return "" if seconds is None else f"{format_duration(max(0.0, seconds))} left"


def describe_scores(task: Task, row: Mapping[str, Any]) -> str:
    """A finished run in one line."""
    if row.get("error") is not None:
        return f"{task.title}: failed: {row['error']}"
    score = "-" if row.get("r_precision") is None else f"{row['r_precision']:.2f}"
    fronts = f", fronts {row['fronts']}" if row.get("fronts") is not None else ""
    seconds = f", {row['seconds']:.1f} s" if row.get("seconds") is not None else ""
    return f"{task.title}: R-precision {score}{fronts}{seconds}"


class PlainCompare(Tally):
    """A line for each run that is done, and one now and then for those that go on.

    Args:
        stream: where to write.
        interval: seconds without a line after which the current runs are named.
        clock: seconds, monotonic.
        describe: what to say of a finished run.
    """

    def __init__(
        self,
        stream: TextIO,
        interval: float = 30.0,
        clock: Clock = time.monotonic,
        describe: Describe = describe_scores,
    ) -> None:
        super().__init__(clock)
        self.stream, self.interval, self.describe = stream, interval, describe
        self._last = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.flush()

    def _print(self, text: str) -> None:
        self._last = self.clock()
        print(text, file=self.stream, flush=True)

    def message(self, text: str) -> None:
        """Print a sentence."""
        self._print(text)

    def on_start(self, total: int, done: int) -> None:
        """Print the numbers."""
        super().on_start(total, done)
        self._print(f"{total} runs" + (f", {done} of them done already" if done else ""))

    def on_steps(self, task: Task, step: int, total: int) -> None:
        """Print what runs, when nothing was printed for long."""
        super().on_steps(task, step, total)
        if self.clock() - self._last >= self.interval:
            current = "; ".join(f"{task.title} {step}/{total}" for task, step, total in self.running.values() if total)
            self._print("  " + "  ".join(filter(None, (current, self.time_left()))))

    def on_row(self, task: Task, row: Mapping[str, Any]) -> None:
        """Print the run."""
        super().on_row(task, row)
        said = "  ".join(filter(None, (self.describe(task, row), self.time_left())))
        self._print(f"[{self.done}/{self.total}] {said}")


class LiveCompare(Tally):
    """A bar for the comparison and one for each run that goes on; finished runs scroll by above.

    Args:
        stream: a terminal.
        describe: what to say of a finished run.
    """

    def __init__(self, stream: TextIO, describe: Describe = describe_scores) -> None:
        super().__init__()
        self.describe = describe
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=self.console,
        )
        self._all: Any = None
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def message(self, text: str) -> None:
        """Print a sentence above the bars."""
        self.console.print(text, markup=False)

    def _show(self) -> None:
        failed = f", {self.failed} failed" if self.failed else ""
        count = f"{self.done}/{self.total}{failed}"
        self._progress.update(self._all, total=self.total, completed=self.done, count=count, left=self.time_left())

    def on_start(self, total: int, done: int) -> None:
        """Begin the bar of the comparison."""
        super().on_start(total, done)
        self._all = self._progress.add_task("all runs", total=total, count="", left="")
        self._show()

    def on_begin(self, task: Task) -> None:
        """Begin a bar."""
        super().on_begin(task)
        self._bars[task.key] = self._progress.add_task(task.title, total=None, count="", left="")

    def on_steps(self, task: Task, step: int, total: int) -> None:
        """Move a bar."""
        super().on_steps(task, step, total)
        self._progress.update(self._bars[task.key], total=total, completed=step, count=f"{step}/{total}")
        self._show()

    def on_row(self, task: Task, row: Mapping[str, Any]) -> None:
        """End a bar and print the run."""
        super().on_row(task, row)
        self._progress.remove_task(self._bars.pop(task.key))
        style = "red" if row.get("error") is not None else None
        self.console.print(self.describe(task, row), style=style, markup=False)
        self._show()


def compare_display(stream: TextIO | None = None, describe: Describe = describe_scores) -> PlainCompare | LiveCompare:
    """The display that fits the stream (stderr by default): live on a terminal, plain lines otherwise."""
    target = sys.stderr if stream is None else stream
    if target.isatty() and os.environ.get("TERM", "") != "dumb":
        return LiveCompare(target, describe)
    return PlainCompare(target, describe=describe)
