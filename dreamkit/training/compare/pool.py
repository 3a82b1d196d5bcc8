"""Workers for a comparison: processes that live through many runs, so that one that dies costs one run only."""

import os
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from dreamkit.errors import DreamkitError
from dreamkit.runs import RunInterrupted
from dreamkit.training.callbacks import Callback
from dreamkit.training.checkpoints import InterruptGuard, guard_interrupts
from dreamkit.training.compare import progress
from dreamkit.training.compare.progress import Listener
from dreamkit.training.compare.work import error_row


class Task(progress.Task, Protocol):
    """What the workers know of a run; it can be pickled."""

    @property
    def folder(self) -> Path:
        """Folder of the comparison."""


Row = dict[str, Any]
Job = Callable[[Any, Sequence[Callback]], Row]
Keeper = Callable[[Any, Row], None]
Failed = Callable[[Any, str], Row]
"""The row of a task that failed, and why."""
_STEP_INTERVAL = 0.5  # seconds between two messages of one worker
_POLL = 0.5  # seconds between two looks at whether the user wants to stop
_PATIENCE = 60.0  # seconds that a worker gets to save its run


class ComparisonInterrupted(KeyboardInterrupt):
    """The user stopped a comparison; the same command continues it."""


def run_tasks(
    tasks: Sequence[Task], job: Job, jobs: int, keep: Keeper, listener: Listener, failed: Failed = error_row
) -> None:
    """Do every task; one that fails becomes a row with its `error`.

    Args:
        tasks: what to do, in this order.
        job: a function of a module, so that another process can find it.
        jobs: how many at once; one is done in this process, more in processes of (cores / jobs) threads each.
        keep: given every row as it comes.
        listener: told of what happens.
        failed: makes the row of a task that fails, a function of a module too.

    Raises:
        ComparisonInterrupted: Ctrl-C or a termination signal; what runs has been saved.
    """
    with guard_interrupts() as interrupt:
        if jobs == 1:
            _run_here(tasks, job, keep, listener, interrupt, failed)
        elif tasks:
            threads = max(1, (os.cpu_count() or 1) // jobs)
            with _Crew(min(jobs, len(tasks)), job, threads, failed) as crew:
                crew.run(tasks, keep, listener, interrupt)


def attempt(job: Job, task: Task, callbacks: Sequence[Callback], failed: Failed = error_row) -> Row:
    """The row of a task, whatever happens; only an interruption passes. A bug leaves its traceback in `errors/`."""
    try:
        return job(task, callbacks)
    except DreamkitError as error:
        return failed(task, str(error))
    except Exception as error:
        with suppress(OSError):
            (task.folder / "errors").mkdir(parents=True, exist_ok=True)
            (task.folder / "errors" / f"{task.key}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return failed(task, f"{type(error).__name__}: {error} (a bug: see errors/{task.key}.txt)")


class _Steps(Callback):
    """Passes on how far a run is.

    Args:
        tell: called with (step, total), now and then.
    """

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell
        self._last = -_STEP_INTERVAL

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Tell, if it is time."""
        if monotonic() - self._last >= _STEP_INTERVAL:
            self._last = monotonic()
            self._tell(step, total)


def _run_here(
    tasks: Sequence[Task], job: Job, keep: Keeper, listener: Listener, interrupt: InterruptGuard, failed: Failed
) -> None:
    for task in tasks:
        listener.on_begin(task)
        try:
            row = attempt(job, task, [_Steps(partial(listener.on_steps, task))], failed)
        except RunInterrupted as stop:
            raise ComparisonInterrupted from stop
        keep(task, row)
        listener.on_row(task, row)
        if interrupt.requested:
            raise ComparisonInterrupted


class _Worker:
    """A process that does one task after another, as its parent sees it.

    Args:
        job: what it does with a task.
        threads: CPU threads it may use.
        failed: makes the row of a task that fails.
    """

    def __init__(self, job: Job, threads: int, failed: Failed) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, job, threads, failed), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None

    def begin(self, task: Task) -> None:
        """Give it a task."""
        self.task = task
        with suppress(OSError):  # it died: the next `receive` says so
            self.connection.send(task)

    def receive(self) -> tuple[str, Any]:
        """What it says: ("step", (step, total)), ("row", row) or ("died", why)."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(_PATIENCE)
            code = self.process.exitcode
            why = f"signal {-code}, out of memory perhaps" if code is not None and code < 0 else f"exit code {code}"
            return "died", f"The worker process ended in the middle of the run ({why})."

    def join(self) -> None:
        """Wait for its end, which it has been asked for, and let go of it."""
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class _Crew:
    """Workers that are gone when the block is over, however it ends.

    Args:
        count: how many.
        job: what they do.
        threads: CPU threads of each.
        failed: makes the row of a task that fails.
    """

    def __init__(self, count: int, job: Job, threads: int, failed: Failed) -> None:
        self._job, self._threads, self._failed = job, threads, failed
        self._workers: list[_Worker] = []
        self._count = count

    def __enter__(self) -> Self:
        self._workers = [_Worker(self._job, self._threads, self._failed) for _ in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:  # all are asked first: each may have a checkpoint to write
            worker.process.terminate()
        for worker in self._workers:
            worker.join()

    def run(self, tasks: Sequence[Task], keep: Keeper, listener: Listener, interrupt: InterruptGuard) -> None:
        """Hand out the tasks and gather the rows."""
        waiting = list(reversed(tasks))
        while waiting or any(worker.task for worker in self._workers):
            for worker in self._workers:
                if worker.task is None and waiting:
                    worker.begin(waiting.pop())
                    if worker.task is not None:
                        listener.on_begin(worker.task)
            busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
            for connection in wait(list(busy), _POLL):
                self._hear(busy[connection], keep, listener)  # type: ignore[index]
            if interrupt.requested:
                raise ComparisonInterrupted

    def _hear(self, worker: _Worker, keep: Keeper, listener: Listener) -> None:
        """Act on what a busy worker says."""
        task = worker.task
        if task is None:
            return
        kind, content = worker.receive()
        if kind == "step":
            listener.on_steps(task, *content)
            return
        if kind == "died":
            worker.join()
            self._workers[self._workers.index(worker)] = _Worker(self._job, self._threads, self._failed)
            content = self._failed(task, content)
        worker.task = None
        keep(task, content)
        listener.on_row(task, content)


def _work(connection: Connection, job: Job, threads: int, failed: Failed) -> None:
    """What a worker process does until it is told to end, or its parent is gone."""
    with suppress(AttributeError, OSError):
        os.setpgid(0, 0)  # a Ctrl-C is for the parent, which then asks every worker, once
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    import torch

    torch.set_num_threads(threads)
    callbacks = [_Steps(lambda step, total: connection.send(("step", (step, total))))]
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            task: Task = connection.recv()
            connection.send(("row", attempt(job, task, callbacks, failed)))
