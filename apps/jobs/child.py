"""A process that does a job, and that never outlives its worker.

On Linux the kernel kills it when the worker dies, however that dies (PR_SET_PDEATHSIG). Should it live on all the
same, whoever takes over the job kills it first (`fence`), so that no two processes work on one run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from dreamkit.files import write_error

STDOUT, STDERR = "stdout.txt", "stderr.txt"
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PROC = Path("/proc")


def tied_to_this_process() -> Callable[[], None]:
    """What a new process calls (`preexec_fn`) to be killed when the thread that started it ends."""
    parent = os.getpid()

    def tie() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died just before
                os._exit(1)
        # A worker in the background of a shell ignores Ctrl-C, and a program that is started so would too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    return tie


class Child:
    """A running process, the leader of a session of its own.

    Args:
        process: the process.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.identity = _identity(process.pid)

    @classmethod
    def start(cls, words: Sequence[str], logs: Path, environment: Mapping[str, str] | None = None) -> Self:
        """Start a program.

        Args:
            words: the program and its arguments.
            logs: folder for what it prints: `STDOUT` and `STDERR`, begun anew; made if missing.
            environment: of the process; this one's by default.

        Raises:
            RunError: the folder can't be written.
        """
        try:
            logs.mkdir(parents=True, exist_ok=True)
            with open(logs / STDOUT, "wb") as out, open(logs / STDERR, "wb") as err:
                return cls(
                    subprocess.Popen(  # files, not pipes: they outlive us, and tell a successor where the run is
                        list(words),
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        env=None if environment is None else dict(environment),
                        start_new_session=True,
                        preexec_fn=tied_to_this_process(),  # safe: a worker has one thread
                    )
                )
        except OSError as error:
            raise write_error(logs, error) from error

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that killed it), `None` while it runs."""
        return self.process.poll()

    def interrupt(self) -> None:
        """Ask it to save what it has and go, as Ctrl-C does."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)

    def kill(self) -> int:
        """Kill it with all its own processes, and wait for it; returns its exit code."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        fence(self.identity)
        return code


def _identity(pid: int) -> dict[str, Any] | None:
    """What tells a process from any other that has or will have its number; `None` where that can't be known."""
    started = _started(pid)
    return None if started is None else {"machine": _machine(), "pid": pid, "started": started}


def fence(identity: Mapping[str, Any] | None, patience: float = 5.0) -> bool:
    """Kill what is left of a process and of those it started.

    Args:
        identity: `Child.identity` of a process, of whichever worker.
        patience: seconds to wait until they are gone.

    Returns:
        Whether nothing of it runs (any more), as far as this machine can tell.
    """
    if identity is None or identity.get("machine") != _machine():
        return True
    deadline = time.monotonic() + patience
    while left := _session(int(identity["pid"]), int(identity["started"])):
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _machine() -> str | None:
    """This boot of this machine (or container), in which process numbers mean something; `None` if unknown."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _session(leader: int, started: int) -> list[int]:
    """The living processes of a session whose leader started at a moment; the number is not given again before."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        about = _stat(int(folder.name))
        if about is not None and int(about[3]) == leader and about[0] not in ("Z", "X") and int(about[19]) >= started:
            found.append(int(folder.name))
    if leader in found and _started(leader) != started:
        return []  # another process, long after ours
    return found


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot."""
    about = _stat(pid)
    return None if about is None else int(about[19])


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state (the third of proc(5)) on; the name before may hold anything."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
