"""What a job tells while it runs: one small interface, and the writers of a run's own files.

A loop calls a `Callback` and knows nothing of terminals, files or web pages. Importing this module is light.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamkit.files import append_jsonl, append_text

if TYPE_CHECKING:
    from torch import Tensor

Level = Literal["info", "warning", "error"]


class Callback:
    """What a job tells; every method does nothing by default, so a subclass writes only what it needs.

    A callback must not change what it is given. It is called from the thread that runs the job.
    """

    def on_run(self, path: Path) -> None:
        """Say that the run folder is there.

        Args:
            path: the run folder.
        """

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Say that a new stage begins; the stage before it is over.

        Args:
            name: what is done, e.g. "optimising", "rendering the turntable".
            total_steps: how many steps it has, None when unknown.
        """

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Say that a step is done.

        Args:
            step: steps done in this stage, 1 to `total`.
            total: steps of this stage.
            metrics: numbers by name, e.g. {"loss": 0.12}; may be empty.
        """

    def wants(self, picture: str, step: int, total: int) -> bool:
        """Whether it wants to be shown a picture of a step that is about to be made, and that costs time.

        Args:
            picture: which, e.g. "target".
            step: the step, 1 to `total`.
            total: steps of this stage.
        """
        return False

    def on_image(self, name: str, image: Tensor) -> None:
        """Show a picture of the step that `on_step` tells of next.

        Args:
            name: what it is: "view", or "target" for what the teacher would rather see there.
            image: [3, H, W], float in [0, 1].
        """

    def on_message(self, level: Level, text: str) -> None:
        """Say something to the user.

        Args:
            level: "info", "warning" or "error".
            text: one sentence.
        """

    def on_end(self, result: Any) -> None:
        """Say that the job ended well.

        Args:
            result: what the job returns.
        """


class CallbackList(Callback):
    """Several callbacks as one, called in their order.

    Args:
        callbacks: who is told.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_run(self, path: Path) -> None:
        """Tell all that the run folder is there."""
        for callback in self.callbacks:
            callback.on_run(path)

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Tell all that a stage begins."""
        for callback in self.callbacks:
            callback.on_stage(name, total_steps)

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Tell all that a step is done."""
        for callback in self.callbacks:
            callback.on_step(step, total, metrics)

    def wants(self, picture: str, step: int, total: int) -> bool:
        """Whether one of them wants the picture; all are asked."""
        answers = [callback.wants(picture, step, total) for callback in self.callbacks]
        return any(answers)

    def on_image(self, name: str, image: Tensor) -> None:
        """Show all a picture."""
        for callback in self.callbacks:
            callback.on_image(name, image)

    def on_message(self, level: Level, text: str) -> None:
        """Tell all a sentence."""
        for callback in self.callbacks:
            callback.on_message(level, text)

    def on_end(self, result: Any) -> None:
        """Tell all that the job ended well."""
        for callback in self.callbacks:
            callback.on_end(result)


class MetricsWriter(Callback):
    """Appends every step's metrics to a JSON Lines file: `{"step": 12, "seconds": 3.4, "loss": 0.12}`.

    Args:
        path: `Run.metrics_file`.
        stage: the stage whose steps are written (rendering a turntable is no metric), None for all.
        every: write each `every`-th step and the last, >= 1.
    """

    def __init__(self, path: Path, stage: str | None = None, every: int = 1) -> None:
        self.path = path
        self.stage = stage
        self.every = max(1, every)
        self._current = stage
        self._start = time.monotonic()

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Note which stage the next steps belong to."""
        self._current = name

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Append a row.

        Raises:
            RunError: the system refused the write.
        """
        wanted = self.stage is None or self._current == self.stage
        if wanted and metrics and (step % self.every == 0 or step == total):
            seconds = round(time.monotonic() - self._start, 3)
            append_jsonl(self.path, {"step": step, "seconds": seconds, **metrics})


class LogWriter(Callback):
    """Appends what is said to a text file, each line with its local date and time.

    Args:
        path: `Run.log_file`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _write(self, level: str, text: str) -> None:
        moment = datetime.now().astimezone().isoformat(timespec="seconds")
        append_text(self.path, f"{moment} {level.upper():7} {text}\n")

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Log that a stage begins."""
        self._write("info", name if total_steps is None else f"{name} ({total_steps} steps)")

    def on_message(self, level: Level, text: str) -> None:
        """Log a sentence."""
        self._write(level, text)

    def on_end(self, result: Any) -> None:
        """Log the end."""
        self._write("info", "done")
