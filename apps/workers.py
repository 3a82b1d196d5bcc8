"""Workers that live as long as a server: each a process of its own, begun anew when it dies."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dreamkit_apps.jobs.child import tied_to_this_process

from dreamkit.checks import require_integer

_LOOK_S = 0.5
"""Seconds between two looks at the workers."""
_LIVED_S = 10.0
"""Seconds that a worker must have lived for its successor to come at once."""
_LONGEST_WAIT_S = 30.0


@dataclass
class _Place:
    """One worker's place: the process in it, and when the next one may come."""

    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    deaths: int = 0
    not_before: float = 0.0


class Workers:
    """Keeps a number of workers running.

    A thread starts them and looks after them. On Linux they are killed when it ends, however the server does; whatever
    job they had goes to the next worker.

    Args:
        words: the command of a worker, see `jobs.worker.worker_words`.
        count: of them, 0 to 64.
        grace: seconds that they have to put their jobs back when the server stops.
        say: told of deaths, a line each.
    """

    def __init__(
        self,
        words: Sequence[str],
        count: int = 1,
        grace: float = 40.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        require_integer("The number of workers", count, 0, 64)
        self.words, self.grace, self.say = list(words), grace, say
        self._places = [_Place() for _ in range(count)]
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="dreamkit-workers", daemon=True)

    @property
    def processes(self) -> list[int]:
        """Numbers of the processes that run."""
        alive = (place.process for place in self._places)
        return [process.pid for process in alive if process is not None and process.poll() is None]

    def __enter__(self) -> Self:
        """Start them."""
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask them to put their jobs back and go, and wait for it."""
        self._stopping.set()
        self._thread.join()

    def _look_after(self) -> None:
        self._fill()
        self._started.set()
        while not self._stopping.wait(_LOOK_S):
            self._fill()
        self._end()

    def _fill(self) -> None:
        """Start a worker in every place that is empty and may be filled."""
        now = time.monotonic()
        for place in self._places:
            if place.process is not None and place.process.poll() is not None:
                lived = now - place.began
                place.deaths = 0 if lived > _LIVED_S else place.deaths + 1
                wait = 0.0 if place.deaths <= 1 else min(_LONGEST_WAIT_S, 2.0**place.deaths)
                place.not_before = now + wait
                self.say(f"A worker ended (exit code {place.process.returncode}); another one comes in {wait:g} s.")
                place.process = None
            if place.process is None and now >= place.not_before:
                self._start(place, now)

    def _start(self, place: _Place, now: float) -> None:
        try:
            place.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which then stops them
                preexec_fn=tied_to_this_process(),
            )
            place.began = now
        except OSError as error:
            place.not_before = now + _LONGEST_WAIT_S
            self.say(f"A worker can't be started: {error.strerror}. The next try is in {_LONGEST_WAIT_S:g} s.")

    def _end(self) -> None:
        running = [place.process for place in self._places if place.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + self.grace
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
