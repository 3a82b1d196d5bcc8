"""How far a job's process is, from what it prints and from the metrics of its run."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamkit_apps.jobs.child import STDERR, STDOUT
from dreamkit_apps.jobs.job import Progress

_RUN = re.compile(r"run folder: (?P<path>/.+)")
_STAGE = re.compile(r"(?P<name>[a-z][a-z ,-]{0,99})(?: \((?P<total>\d{1,9}) steps\))?")
_STEP = re.compile(r"  (?P<name>[a-z][a-z ,-]{0,99}) (?P<step>\d{1,9})/(?P<total>\d{1,9})\b.*")
_COMPARED = re.compile(r"\[(?P<step>\d{1,6})/(?P<total>\d{1,6})\] .*")
_OPTIMISING = "optimising"
_CHUNK, _TAIL = 2**18, 2**13  # bytes
_KEPT = ("exports", "seconds", "steps", "scores", "warnings", "teacher_calls", "peak_rss_mb")


class ProgressReader:
    """Follows what a process prints. `dreamkit` prints a line a stage, and now and then a step.

    Args:
        logs: folder of `child.STDERR`.
        clock: seconds, monotonic.
    """

    def __init__(self, logs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.progress = Progress()
        self.run: Path | None = None
        """The folder of the run, once the process has said it."""
        self._file = logs / STDERR
        self._clock = clock
        self._read = 0
        self._rest = b""
        self._first: tuple[int, float] | None = None

    def poll(self) -> Progress:
        """How far it is now."""
        with suppress(OSError), open(self._file, "rb") as file:
            file.seek(self._read)
            while chunk := file.read(_CHUNK):
                self._read += len(chunk)
                *lines, self._rest = re.split(rb"[\r\n]", self._rest + chunk)
                self._rest = self._rest[-_CHUNK:]
                for line in lines:
                    self._line(line.decode("utf-8", errors="replace"))
        if self.progress.stage == _OPTIMISING and self.run is not None:
            self._metrics(self.run / "metrics.jsonl")
        return self.progress

    def _line(self, line: str) -> None:
        if match := _RUN.fullmatch(line):
            self.run = Path(match["path"])
        elif match := _STAGE.fullmatch(line):
            total = None if match["total"] is None else int(match["total"])
            self.progress, self._first = Progress(match["name"], total=total), None
        elif match := _STEP.fullmatch(line):
            self._step(match["name"], int(match["step"]), int(match["total"]))
        elif match := _COMPARED.fullmatch(line):
            self._step("comparing", int(match["step"]), int(match["total"]))

    def _step(self, stage: str, step: int, total: int | None, loss: float | None = None) -> None:
        """Note a step, and guess the time left from the pace since the first one that was seen."""
        if stage == self.progress.stage and step < self.progress.step:
            return  # the printed line is older than the metrics
        now = self._clock()
        if self._first is None or stage != self.progress.stage:
            self._first = (step, now)
        first, moment = self._first
        eta = None
        if total is not None and step > first and now > moment:
            eta = max(0.0, round((total - step) * (now - moment) / (step - first), 1))
        self.progress = Progress(stage, step, total, eta, self.progress.loss if loss is None else loss)

    def _metrics(self, file: Path) -> None:
        """Take the step of the last whole row: it is newer than what is printed every few seconds."""
        row = last_row(file)
        step, loss = row.get("step"), row.get("loss")
        if isinstance(step, int) and step > self.progress.step and step <= (self.progress.total or step):
            self._step(_OPTIMISING, step, self.progress.total, loss if isinstance(loss, float) else None)


def last_row(file: Path) -> dict[str, Any]:
    """The last whole line of a JSON Lines file; empty if there is none."""
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            lines = stream.read().split(b"\n")[:-1]
        row = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def last_said(logs: Path) -> dict[str, Any]:
    """The JSON object that a process printed as its last line: its result, or its error and hint. Empty if none."""
    return last_row(logs / STDOUT) if _is_small(logs / STDOUT) else {}


def _is_small(file: Path) -> bool:
    with suppress(OSError):
        return file.stat().st_size <= _TAIL
    return False


def result_of(logs: Path) -> dict[str, Any]:
    """What is kept of a finished job's result; exports by their names only."""
    said = last_said(logs)
    kept = {name: said[name] for name in _KEPT if name in said}
    if isinstance(kept.get("exports"), dict):
        kept["exports"] = {str(kind): Path(str(path)).name for kind, path in kept["exports"].items()}
    return kept


def error_of(logs: Path) -> tuple[str, str | None]:
    """Why a process ended with a user's error: message and hint, from its JSON or from the end of what it printed."""
    said = last_said(logs)
    if isinstance(said.get("error"), str):
        return said["error"], said["hint"] if isinstance(said.get("hint"), str) else None
    lines = last_lines(logs)
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    return (errors[-1] if errors else "The job could not be done."), (hints[-1] if hints else None)


def last_lines(logs: Path) -> list[str]:
    """The end of what a process printed on stderr."""
    try:
        with open(logs / STDERR, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _TAIL))
            return stream.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def at_stage(progress: Progress, stage: str) -> Progress:
    """The same steps under another stage's name."""
    return replace(progress, stage=stage, eta=None)
