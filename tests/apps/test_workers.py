"""Workers that a server keeps: begun anew when they die, and gone when it goes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from dreamkit_apps.workers import Workers

from dreamkit.errors import ConfigError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends what a server leaves behind")

PATIENT = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / str(time.monotonic_ns())).touch()
def leave(*_):
    (folder / "put back").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
time.sleep(60)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_that_is_killed_comes_again(tmp_path: Path) -> None:
    told: list[str] = []
    with Workers([sys.executable, "-c", PATIENT, str(tmp_path)], 2, say=told.append) as workers:
        first = set(workers.processes)
        assert len(first) == 2
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        os.kill(min(first), signal.SIGKILL)
        until(lambda: len(set(workers.processes) - first) == 1)
        until(lambda: len(list(tmp_path.iterdir())) == 3)
        last = workers.processes
    assert not any(is_alive(pid) for pid in last)
    assert (tmp_path / "put back").exists()
    assert told == ["A worker ended (exit code -9); another one comes in 0 s."]


def test_one_that_dies_at_once_comes_ever_later() -> None:
    told: list[str] = []
    with Workers([sys.executable, "-c", "raise SystemExit(3)"], say=told.append):
        until(lambda: len(told) == 2)
        time.sleep(1.2)
    assert told[0].endswith("in 0 s.")
    assert told[1].endswith("in 4 s.")
    assert len(told) == 2


def test_one_that_does_not_go_is_killed(tmp_path: Path) -> None:
    with Workers([sys.executable, "-c", STUBBORN], grace=0.3) as workers:
        time.sleep(0.3)
        last = workers.processes
    assert last
    assert not any(is_alive(pid) for pid in last)


def test_they_die_with_a_server_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom dreamkit_apps.workers import Workers\n"
        "with Workers([sys.executable, '-c', sys.argv[1], sys.argv[2]]) as workers:\n"
        "    print(workers.processes[0], flush=True)\n    time.sleep(60)\n"
    )
    words = [sys.executable, "-c", script, PATIENT, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        assert is_alive(worker)
        server.kill()
    until(lambda: not is_alive(worker))


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    told: list[str] = []
    with Workers([str(tmp_path / "none")], say=told.append) as workers:
        assert workers.processes == []
    assert "A worker can't be started: No such file or directory." in told[0]


@pytest.mark.parametrize("count", [-1, 65, 1.5])
def test_a_number_of_them(count: int) -> None:
    with pytest.raises(ConfigError, match="number of workers"):
        Workers(["x"], count)


def test_none_is_a_number() -> None:
    with Workers(["x"], 0) as workers:
        assert workers.processes == []
