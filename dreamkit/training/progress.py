"""Progress on the terminal: a live display where there is one, a plain line now and then where there is none.

Both write to stderr, so that stdout stays free for results, and both are callbacks and context managers:

```python
with progress_display() as progress:
    generate(options, [progress])
```
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from dreamkit.training.callbacks import Callback, Level

_STYLES: dict[str, str] = {"info": "default", "warning": "yellow", "error": "bold red"}


def progress_display(stream: TextIO | None = None) -> LiveProgress | PlainProgress:
    """Return the display that fits the stream: live on a terminal, plain lines otherwise.

    Args:
        stream: where to write, stderr by default.
    """
    target = sys.stderr if stream is None else stream
    if target.isatty() and os.environ.get("TERM", "") != "dumb":
        return LiveProgress(target)
    return PlainProgress(target)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Write the loss (or, without one, the first metric) as "loss 0.1234"; empty without metrics."""
    if not metrics:
        return ""
    name = "loss" if "loss" in metrics else next(iter(metrics))
    return f"{name} {float(metrics[name]):.4g}"


def format_duration(seconds: float) -> str:
    """Write a duration in seconds as "0:07", "12:34" or "1:02:03"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class PlainProgress(Callback):
    """A line when a stage begins, one every few seconds, and one at its last step.

    Args:
        stream: where to write.
        interval: seconds between two lines of one stage.
        clock: seconds, monotonic.
    """

    def __init__(self, stream: TextIO, interval: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self.interval = interval
        self.clock = clock
        self._stage = ""
        self._begin = self._last = clock()
        self._first_step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.flush()

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def on_run(self, path: Path) -> None:
        """Print where the run is."""
        self._print(f"run folder: {path}")

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Print the stage's name."""
        self._stage = name
        self._begin = self._last = self.clock()
        self._first_step = 0
        self._print(name if total_steps is None else f"{name} ({total_steps} steps)")

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Print step, loss, rate and time left, when it is time."""
        now = self.clock()
        if self._first_step == 0:
            self._first_step = step  # a resumed job begins in the middle
        if now - self._last < self.interval and step < total:
            return
        self._last = now
        parts = [f"{self._stage} {step}/{total}", format_metrics(metrics)]
        seconds = now - self._begin
        if seconds > 0:
            rate = (step - self._first_step + 1) / seconds
            parts += [f"{rate:.3g} steps/s", f"{format_duration((total - step) / rate)} left"]
        self._print("  " + "  ".join(part for part in parts if part))

    def on_message(self, level: Level, text: str) -> None:
        """Print a sentence."""
        self._print(text if level == "info" else f"{level}: {text}")


class LiveProgress(Callback):
    """A bar a stage, redrawn in place: stage, step, loss, steps a second, time left.

    Args:
        stream: a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self.console = Console(file=stream, highlight=False)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/green]"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[metrics]}", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )
        self._task: Any = None
        self._first_step = 0
        self._begin = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def _finish(self) -> None:
        """Show the current stage as done."""
        if self._task is not None:
            total = self._progress.tasks[-1].total or 1
            self._progress.update(self._task, total=total, completed=total)

    def on_run(self, path: Path) -> None:
        """Print where the run is, above the bars."""
        self.on_message("info", f"run folder: {path}")

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Begin a new bar; it pulses when the number of steps is unknown."""
        self._finish()
        self._task = self._progress.add_task(name, total=total_steps, count="", metrics="", rate="")
        self._first_step = 0
        self._begin = time.monotonic()

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Move the bar."""
        if self._task is None:
            self.on_stage("working", total)
        if self._first_step == 0:
            self._first_step = step
        seconds = time.monotonic() - self._begin
        rate = (step - self._first_step + 1) / seconds if seconds > 0 else 0.0
        self._progress.update(
            self._task,
            total=total,
            completed=step,
            count=f"{step}/{total}",
            metrics=format_metrics(metrics),
            rate=f"{rate:.3g} steps/s",
        )

    def on_message(self, level: Level, text: str) -> None:
        """Print a sentence above the bars."""
        prefix = "" if level == "info" else f"{level}: "
        self.console.print(prefix + text, style=_STYLES[level], markup=False)
