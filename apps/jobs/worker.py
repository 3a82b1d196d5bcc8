"""A worker: takes jobs from the queue, one after another, and runs each as a process of its own.

It says every second that it lives; a worker that was not heard of for five has lost its job to the next one, which
goes on from the run's last checkpoint. It has one thread: what keeps the job is what watches it.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dreamkit_apps.jobs.child import Child, fence
from dreamkit_apps.jobs.commands import DREAMKIT, CommandBuilder
from dreamkit_apps.jobs.errors import QueueError
from dreamkit_apps.jobs.gallery import RunFolders
from dreamkit_apps.jobs.job import Job, Progress, State
from dreamkit_apps.jobs.progress import ProgressReader, at_stage, error_of, last_lines, result_of
from dreamkit_apps.jobs.store import JobStore

from dreamkit.errors import DreamkitError

_USERS_ERROR = 2
_GREETING = 5.0  # seconds between two greetings of an idle worker
_QUEUE_PATIENCE = 60.0  # seconds that a worker bears a queue that can't be read


@dataclass(frozen=True)
class WorkerOptions:
    """The times of a worker, seconds.

    Args:
        heartbeat: between two signs of life.
        lease: without one after which the job is another's; several heartbeats.
        poll: between two looks at the process, and at an empty queue.
        grace: that a process has to save and end when it is asked to; then it is killed.
        keeping: for making something to look at of a cancelled job.
        time_limit: that a job may take in one go; `None` for any time.
    """

    heartbeat: float = 1.0
    lease: float = 5.0
    poll: float = 0.2
    grace: float = 30.0
    keeping: float = 120.0
    time_limit: float | None = None


@dataclass(frozen=True)
class _End:
    """How a process ended.

    Args:
        code: its exit code; `None` when the job was another worker's by then.
        why: what the worker had asked it to stop for: "cancel", "stop", "time", or "".
    """

    code: int | None
    why: str = ""


class Worker:
    """Takes and runs jobs until it is stopped.

    Args:
        store: the queue.
        runs: where runs lie.
        commands: makes the command of a job.
        options: times.
        name: of its own among all workers; made up by default.
        say: told what happens, a line each.
    """

    def __init__(
        self,
        store: JobStore,
        runs: RunFolders,
        commands: CommandBuilder,
        options: WorkerOptions | None = None,
        name: str | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store, self.runs, self.commands, self.say = store, runs, commands, say
        self.options = options or WorkerOptions()
        self.name = name or f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._stops = 0
        self._greeted = 0.0

    def stop(self) -> None:
        """End after putting the present job back; the second time, without waiting for it to save."""
        self._stops += 1

    def stop_on_signals(self) -> None:
        """Stop on SIGTERM and on Ctrl-C."""

        def handle(_signal: int, _frame: FrameType | None) -> None:
            self.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle)

    def run(self, until_empty: bool = False) -> int:
        """Work.

        Args:
            until_empty: end when no job waits.

        Returns:
            How many jobs it has had.

        Raises:
            QueueError: the queue could not be read for a minute.
        """
        had, failing_since = 0, None
        while not self._stops:
            try:
                self._greet()
                job = self.store.claim(self.name, self.options.lease)
                if job is not None:
                    had += 1
                    self._work(job)
                failing_since = None
            except QueueError as error:
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > _QUEUE_PATIENCE:
                    raise
                self.say(str(error))
                job = None
                time.sleep(1.0)
            if job is None:
                if until_empty and failing_since is None:
                    break
                time.sleep(self.options.poll)
        self.store.part(self.name)
        return had

    def _greet(self) -> None:
        if time.monotonic() - self._greeted >= _GREETING or not self._greeted:
            self._greeted = time.monotonic()
            self.store.greet(self.name)

    def _work(self, job: Job) -> None:
        """Run a job to whatever end."""
        self.say(f"{job.id} {job.kind}: {job.prompt}")
        logs = self.store.logs(job.id)
        if not fence(job.child):
            self.say(f"{job.id}: a process of its former worker can't be killed")
            self.store.release(job.id, self.name)
            time.sleep(self.options.heartbeat)
            return
        try:
            before = ProgressReader(logs)  # of an earlier attempt, if there was one
            progress = before.poll()
            run = self._begun_run(job, before)
            run_id = None if run is None else self.runs.run_id(run)
            self.store.heartbeat(job.id, self.name, self.options.lease, progress, run_id)
            logs.mkdir(parents=True, exist_ok=True)
            child = Child.start(self.commands.main(job, run, logs), logs)
        except (DreamkitError, OSError) as error:
            if isinstance(error, QueueError):
                raise
            hint = error.hint if isinstance(error, DreamkitError) else None
            text = error.message if isinstance(error, DreamkitError) else str(error)
            self.store.finish(job.id, self.name, "failed", text, hint)
            return
        try:
            end = self._watch(job, child, ProgressReader(logs))
        finally:
            child.kill()
        self._conclude(job, end, logs)

    def _begun_run(self, job: Job, before: ProgressReader) -> Path | None:
        """The run that an earlier attempt began, if it is there: as the queue has it, or as its process said last."""
        if job.run is not None:
            try:
                return self.runs.folder(job.run)
            except DreamkitError:
                return None  # deleted meanwhile
        return before.run if before.run is not None and self.runs.run_id(before.run) else None

    def _watch(self, job: Job, child: Child, reader: ProgressReader) -> _End:
        """Keep the job until its process ends, passing on what its user and ours want."""
        started = beaten = time.monotonic()
        state = self._beat(job, reader, child)
        why, deadline = "", 0.0
        while True:
            if state is None:
                return _End(None)
            code = child.poll()
            if code is not None:
                # The last word on the run, and on whether somebody cancelled it meanwhile.
                state = self._beat(job, reader)
                return _End(None if state is None else code, why or ("cancel" if state == "cancelling" else ""))
            now = time.monotonic()
            if not why:
                why = self._reason(state, now - started)
                if why:
                    child.interrupt()
                    deadline = now + self.options.grace
            elif now > deadline or self._stops > 1:
                child.kill()
            if now - beaten >= self.options.heartbeat:
                try:
                    state, beaten = self._beat(job, reader), now
                except QueueError as error:
                    if now - beaten >= self.options.lease:
                        raise  # by now it may be another's
                    self.say(str(error))
            time.sleep(self.options.poll)

    def _reason(self, state: State, seconds: float) -> str:
        """Why the process has to stop, if it has to."""
        if state == "cancelling":
            return "cancel"
        if self._stops:
            return "stop"
        limit = self.options.time_limit
        return "time" if limit is not None and seconds > limit else ""

    def _beat(self, job: Job, reader: ProgressReader, child: Child | None = None) -> State | None:
        progress = reader.poll()
        run = reader.run or self.commands.run_folder(job)
        run_id = None if run is None else self.runs.run_id(run)
        identity = None if child is None else child.identity
        self._greet()
        return self.store.heartbeat(job.id, self.name, self.options.lease, progress, run_id, identity)

    def _conclude(self, job: Job, end: _End, logs: Path) -> None:
        """Tell the queue how a job's process ended."""
        store, name, code = self.store, self.name, end.code
        if code is None:
            self.say(f"{job.id}: taken over by another worker")
            return
        said: str
        if code == 0:
            store.finish(job.id, name, "done", result=result_of(logs))
            said = "done"
        elif end.why == "cancel":
            self._keep(job)
            store.finish(job.id, name, "cancelled")
            said = "cancelled"
        elif end.why == "time":
            text = f"It took more than {self.options.time_limit:g} s, which is as long as a job may take here."
            store.finish(job.id, name, "failed", text, "Retry goes on from its checkpoint; fewer steps take less.")
            said = "out of time"
        elif code == _USERS_ERROR:
            store.finish(job.id, name, "failed", *error_of(logs))
            said = "failed"
        elif end.why == "stop":
            store.release(job.id, name)
            said = "put back"
        else:
            said = store.crash(job.id, name, _crash_reason(code, logs)) or "lost"
        self.say(f"{job.id}: {said}")

    def _keep(self, job: Job) -> None:
        """Make something to look at of the last checkpoint of a cancelled job, as long as nobody is kept waiting."""
        now = self.store.get(job.id)
        try:
            run = None if now.run is None else self.runs.folder(now.run)
        except DreamkitError:
            return
        deadline = time.monotonic() + self.options.keeping
        progress = at_stage(now.progress, "keeping what there is")
        for words in [] if run is None else self.commands.keeping(job, run):
            if self._stops or time.monotonic() > deadline:
                return
            self._quietly(job, words, progress, deadline)

    def _quietly(self, job: Job, words: list[str], progress: Progress, deadline: float) -> None:
        """Run a command whose failure does not matter, and keep the job meanwhile."""
        try:
            child = Child.start(words, self.store.logs(job.id) / "keeping")
        except DreamkitError as error:
            self.say(str(error))
            return
        try:
            beaten = 0.0
            while child.poll() is None and not self._stops and time.monotonic() < deadline:
                if time.monotonic() - beaten >= self.options.heartbeat:
                    beaten = time.monotonic()
                    identity = child.identity
                    if self.store.heartbeat(job.id, self.name, self.options.lease, progress, None, identity) is None:
                        return
                time.sleep(self.options.poll)
        finally:
            child.kill()


def _crash_reason(code: int, logs: Path) -> str:
    """What is known of a crash: exit code or signal, and the last line it said."""
    if code < 0:
        try:
            how = f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"was killed by signal {-code}"
    else:
        how = f"ended with exit code {code}"
    # Of a traceback the last line but the request to report it.
    lines = [line.strip() for line in last_lines(logs) if line.strip() and not line.startswith("This is a bug")]
    return f"Its process {how}." + (f" It said last: {lines[-1][:300]}" if lines else "")


def worker_words(runs_root: Path | str, queue: Path | str | None = None, device: str = "auto") -> list[str]:
    """The command that starts a worker as a process of its own, for `subprocess`.

    Args:
        runs_root: where runs go.
        queue: the queue's file, by default the one in `runs_root`.
        device: auto, cpu or cuda.
    """
    flags = [f"--out={runs_root}", f"--device={device}"] + ([] if queue is None else [f"--queue={queue}"])
    return [*DREAMKIT, "jobs", "worker", *flags]


def say_on_stderr(line: str) -> None:
    """Print a line on stderr, with the time; what can't be shown is escaped."""
    moment = time.strftime("%H:%M:%S")
    print(f"{moment} {line.encode('ascii', 'backslashreplace').decode()}", file=sys.stderr, flush=True)
