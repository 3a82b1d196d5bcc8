import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dreamkit_apps.jobs import child as children
from dreamkit_apps.jobs.child import Child, fence
from dreamkit_apps.jobs.job import Job, Progress
from dreamkit_apps.jobs.progress import ProgressReader, error_of, last_row, result_of
from dreamkit_apps.jobs.settings import GenerateSettings
from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore
from dreamkit_apps.jobs.worker import Worker
from toy_jobs import toy_worker

TOY = str(Path(__file__).parents[1] / "toy_jobs.py")
PATIENCE = 10.0  # seconds within which a lost job must be running again


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / QUEUE_FILE)


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts workers, processes of their own; what is left of them goes at the end."""
    started: list[subprocess.Popen] = []

    def start(*options: str) -> subprocess.Popen:
        started.append(subprocess.Popen([sys.executable, TOY, "worker", str(tmp_path), *options]))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 60.0, what: str = "the condition") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        time.sleep(0.02)


def submit(store: JobStore, prompt: str = "a toy", steps: int = 30) -> str:
    return store.submit(GenerateSettings(prompt=prompt, steps=steps)).id


def run_folder(store: JobStore, job: Job) -> Path:
    assert job.run is not None
    return store.path.parents[1].joinpath(*job.run.split("~"))


def starts_of(folder: Path) -> list[int]:
    """The step at which each process began to work on a run."""
    return [int(line.split()[1]) for line in (folder / "starts").read_text().splitlines()]


def is_step(store: JobStore, job_id: str, step: int) -> bool:
    return store.get(job_id).progress.step >= step


def run_and_cancel(worker: Worker, store: JobStore, job_id: str) -> None:
    """Let a worker run a job that is cancelled after two steps."""
    beat = worker.store.heartbeat

    def cancel_soon(*arguments: Any, **options: Any) -> Any:
        if is_step(store, job_id, 2) and store.get(job_id).state == "running":
            store.cancel(job_id)
        return beat(*arguments, **options)

    worker.store.heartbeat = cancel_soon
    worker.run(until_empty=True)


def test_a_job_is_done(tmp_path: Path, store: JobStore) -> None:
    job_id = submit(store)
    assert toy_worker(tmp_path).run(until_empty=True) == 1
    job = store.get(job_id)
    assert (job.state, job.attempts, job.error) == ("done", 0, None)
    assert job.result == {"exports": {"ply": "scene.ply"}, "seconds": 1.0}
    assert job.progress.stage == "optimising"
    assert starts_of(run_folder(store, job)) == [0]


@pytest.mark.parametrize("prompt", ["-h", "--help", "-- --out=/", "$(touch x) `id` ; rm -rf ~ | '\"\\", "%s{0}"])
def test_any_prompt_is_only_a_prompt(tmp_path: Path, store: JobStore, prompt: str) -> None:
    job_id = submit(store, prompt, 1)
    toy_worker(tmp_path).run(until_empty=True)
    assert store.get(job_id).state == "done"


def test_a_users_mistake_is_no_crash(tmp_path: Path, store: JobStore) -> None:
    job_id = submit(store, "a mistake")
    toy_worker(tmp_path).run(until_empty=True)
    job = store.get(job_id)
    assert (job.state, job.attempts) == ("failed", 0)
    assert (job.error, job.hint) == ("This can't be.", "Ask for something else.")


def test_a_job_that_crashes_twice_is_quarantined(tmp_path: Path, store: JobStore) -> None:
    job_id = submit(store, "a crash")
    after = submit(store)
    assert toy_worker(tmp_path).run(until_empty=True) == 3
    job = store.get(job_id)
    assert (job.state, job.attempts, job.crashes) == ("quarantined", 2, 2)
    assert job.error == "Its process was killed by SIGSEGV. It said last: Traceback: boom"
    assert store.get(after).state == "done"
    assert toy_worker(tmp_path).run(until_empty=True) == 0  # also after a restart
    store.retry(job_id)
    assert toy_worker(tmp_path).run(until_empty=True) == 2


def test_a_cancel_keeps_what_there_is(store: JobStore, start_worker: Callable[[], subprocess.Popen]) -> None:
    start_worker()
    job_id = submit(store, steps=3000)
    wait_for(lambda: is_step(store, job_id, 5))
    assert store.cancel(job_id).state == "cancelling"
    wait_for(lambda: store.get(job_id).state == "cancelled")
    job = store.get(job_id)
    folder = run_folder(store, job)
    assert (job.attempts, job.error) == (0, None)
    assert int((folder / "checkpoint").read_text()) >= 5
    assert (folder / "kept").exists()
    saved = int((folder / "checkpoint").read_text())
    store.retry(job_id)
    wait_for(lambda: len(starts_of(folder)) == 2)
    assert starts_of(folder) == [0, saved]


def test_a_cancel_is_a_cancel_even_if_nothing_can_be_kept(tmp_path: Path, store: JobStore) -> None:
    worker = toy_worker(tmp_path)
    job_id = submit(store, steps=3000)
    store.logs(job_id).mkdir(parents=True)
    (store.logs(job_id) / "keeping").touch()  # a file where its folder should be
    run_and_cancel(worker, store, job_id)
    assert store.get(job_id).state == "cancelled"


def test_a_process_that_does_not_listen_is_killed(tmp_path: Path, store: JobStore) -> None:
    worker = toy_worker(tmp_path, grace=0.3)
    job_id = submit(store, "deaf", steps=3000)
    run_and_cancel(worker, store, job_id)
    job = store.get(job_id)
    assert job.state == "cancelled"
    assert (run_folder(store, job) / "kept").exists()


def test_a_job_that_takes_too_long_is_stopped(tmp_path: Path, store: JobStore) -> None:
    job_id = submit(store, steps=3000)
    toy_worker(tmp_path, time_limit=1.0).run(until_empty=True)
    job = store.get(job_id)
    assert (job.state, job.attempts) == ("failed", 0)
    assert "more than 1 s" in (job.error or "")
    assert int((run_folder(store, job) / "checkpoint").read_text()) > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_puts_its_job_back(
    store: JobStore, start_worker: Callable[[], subprocess.Popen], number: signal.Signals
) -> None:
    worker = start_worker()
    job_id = submit(store, steps=60)
    wait_for(lambda: is_step(store, job_id, 5))
    worker.send_signal(number)
    assert worker.wait(PATIENCE) == 0
    job = store.get(job_id)
    assert (job.state, job.attempts, job.error) == ("queued", 0, None)
    assert store.workers() == 0
    saved = int((run_folder(store, job) / "checkpoint").read_text())
    assert saved >= 5
    start_worker()
    wait_for(lambda: store.get(job_id).state == "done")
    assert starts_of(run_folder(store, job)) == [0, saved]


def alive(pid: int) -> bool:
    stat = children._stat(pid)
    return stat is not None and stat[0] != "Z"


def test_a_killed_workers_child_dies_and_another_worker_goes_on(
    store: JobStore, start_worker: Callable[[], subprocess.Popen]
) -> None:
    first = start_worker()
    job_id = submit(store, steps=100)
    wait_for(lambda: is_step(store, job_id, 10))
    process = store.get(job_id).child
    assert process is not None
    start_worker()
    first.kill()
    wait_for(lambda: not alive(process["pid"]), PATIENCE, "the child's end")
    wait_for(lambda: store.get(job_id).attempts == 1, PATIENCE, "the other worker")
    wait_for(lambda: store.get(job_id).state == "done")
    folder = run_folder(store, store.get(job_id))
    assert len(starts_of(folder)) == 2
    assert starts_of(folder)[1] >= 9
    assert not (folder / "TWO-WRITERS").exists()


def test_a_frozen_worker_loses_its_job_and_its_child(
    store: JobStore, start_worker: Callable[[], subprocess.Popen]
) -> None:
    first = start_worker()
    job_id = submit(store, steps=250)
    wait_for(lambda: is_step(store, job_id, 10))
    first.send_signal(signal.SIGSTOP)  # its child goes on writing
    start_worker()
    wait_for(lambda: store.get(job_id).attempts == 1, PATIENCE, "the other worker")
    first.send_signal(signal.SIGCONT)
    wait_for(lambda: store.get(job_id).state == "done")
    job = store.get(job_id)
    folder = run_folder(store, job)
    assert job.crashes == 0
    assert len(starts_of(folder)) == 2
    assert not (folder / "TWO-WRITERS").exists()
    assert first.poll() is None  # and is ready for the next


def test_two_workers_share_a_queue(store: JobStore, start_worker: Callable[[], subprocess.Popen]) -> None:
    ids = [submit(store, steps=20) for _ in range(6)]
    start_worker()
    start_worker()
    wait_for(lambda: store.workers() == 2)
    wait_for(lambda: all(store.get(job_id).state == "done" for job_id in ids))
    for job_id in ids:
        assert starts_of(run_folder(store, store.get(job_id))) == [0]


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_nothing(
    store: JobStore, start_worker: Callable[[str], subprocess.Popen]
) -> None:
    chance = random.Random(7)
    job_id = submit(store, steps=1500)
    waits, begun, last = [], time.monotonic(), None
    for _ in range(20):
        worker = start_worker("--as-shipped")
        wait_for(lambda last=last: has_new_process(store.get(job_id), last), PATIENCE, "its process")
        last = store.get(job_id).child
        waits.append(time.monotonic() - begun)
        time.sleep(chance.uniform(0.0, 1.5))
        worker.kill()
        begun = time.monotonic()
        worker.wait()
    print(json.dumps({"kills": 20, "longest_wait_s": round(max(waits), 2), "shortest_wait_s": round(min(waits), 2)}))
    start_worker("--as-shipped")
    wait_for(lambda: store.get(job_id).state == "done", 120.0)
    job = store.get(job_id)
    folder = run_folder(store, job)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(steps) == set(range(1, 1501))
    begins = starts_of(folder)
    assert begins == sorted(begins)  # never behind what was saved
    assert (job.attempts, job.crashes) == (20, 0)
    assert not (folder / "TWO-WRITERS").exists()


def has_new_process(job: Job, last: dict | None) -> bool:
    """Whether a job has a process, another than the last."""
    return job.child is not None and job.child != last and alive(job.child["pid"])


def test_a_worker_waits_for_a_locked_queue(tmp_path: Path, store: JobStore) -> None:
    job_id = submit(store, steps=5)
    worker = toy_worker(tmp_path)
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(2.5, lambda: other.execute("ROLLBACK")).start()
    said: list[str] = []
    worker.say = said.append
    while store.get(job_id).state != "done":
        worker.run(until_empty=True)
    assert "locked by another process" in said[0]


def test_a_deleted_run_is_begun_anew(tmp_path: Path, store: JobStore) -> None:
    job_id = submit(store, steps=3000)
    toy_worker(tmp_path, time_limit=0.5).run(until_empty=True)
    first = run_folder(store, store.get(job_id))
    shutil.rmtree(first)
    store.retry(job_id)
    toy_worker(tmp_path, time_limit=0.5).run(until_empty=True)
    assert run_folder(store, store.get(job_id)) != first


def test_fence_kills_what_a_process_started_and_nobody_else(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); print(1, flush=True); {sleep}"
    child = Child.start([sys.executable, "-c", code], tmp_path)
    wait_for(lambda: (tmp_path / "stdout.txt").read_text())
    family = children._session(child.process.pid, child.identity["started"])
    assert len(family) == 2
    other = {**child.identity, "started": child.identity["started"] - 1}
    assert fence(other)  # a number that another process has by now
    assert fence({**child.identity, "machine": "another"})
    assert fence(None)
    assert all(map(alive, family))
    assert fence(child.identity)
    assert not any(map(alive, family))
    assert child.kill() == -signal.SIGKILL


def test_a_child_can_be_interrupted_whatever_its_worker_ignores(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        child = Child.start([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: (tmp_path / "stdout.txt").read_text())
    child.interrupt()
    wait_for(lambda: child.poll() is not None)
    assert "KeyboardInterrupt" in (tmp_path / "stderr.txt").read_text()


def test_progress_is_read_from_what_generate_prints(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    log = tmp_path / "stderr.txt"
    now = [0.0]
    reader = ProgressReader(tmp_path, clock=lambda: now[0])
    assert reader.poll() == Progress()

    def say(text: str) -> None:
        with open(log, "a") as file:
            file.write(text)

    say("loading the teacher\nrun fol")
    assert reader.poll() == Progress("loading the teacher")
    say(f"der: {run}\nwarning: This teacher does not know 'x'.\noptimising (250 steps)\n")
    assert reader.poll() == Progress("optimising", total=250)
    assert reader.run == run
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 10, "lo')
    assert reader.poll() == Progress("optimising", 1, 250, None, 2.5)
    now[0] = 18.0
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 10, "loss": 1.5}\n')
    assert reader.poll() == Progress("optimising", 10, 250, 480.0, 1.5)
    say("  optimising 9/250  loss 1.2  2 steps/s  2:00 left\n")  # older than the metrics
    assert reader.poll().step == 10
    say("rendering the turntable (72 steps)\n  rendering the turntable 30/72  200 steps/s  0:00 left\n")
    assert (reader.poll().stage, reader.progress.step, reader.progress.total) == ("rendering the turntable", 30, 72)
    say("[2/6] sds, camera, a red mug, seed 0: R-precision 1.00  1:00 left\n")
    assert (reader.poll().stage, reader.progress.step, reader.progress.total) == ("comparing", 2, 6)


@pytest.mark.parametrize("content", [b"", b"\n", b"[1]\n", b"{\n", b"\xff\xfe\n", b"[" * 5000 + b"\n", b"{}"])
def test_broken_metrics_and_results_are_no_news(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stdout.txt").write_bytes(content)
    (tmp_path / "stderr.txt").write_bytes(content)
    assert last_row(tmp_path / "stdout.txt") == {}
    assert result_of(tmp_path) == {}
    assert error_of(tmp_path)[0] == "The job could not be done."
    assert ProgressReader(tmp_path).poll().step == 0


def test_an_error_without_json_is_found_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "stderr.txt").write_text("loading\nerror: 1 of 2 runs failed.\nhint: Try again.\n")
    assert error_of(tmp_path) == ("1 of 2 runs failed.", "Try again.")


@pytest.mark.slow
def test_a_real_job_survives_the_death_of_its_worker(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dreamkit.cli.main", "jobs"]
    here = ["--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    asked = ["--steps", "120", "--resolution", "16", "--views", "1", "--", "a red mug"]
    subprocess.run([*words, "submit", *here, *asked], check=True, env=environment, stdout=subprocess.DEVNULL)
    store = JobStore(tmp_path / QUEUE_FILE)
    (job,) = store.find().jobs
    first = subprocess.Popen([*words, "worker", *here], env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: is_step(store, job.id, 25), 120.0)
    finally:
        first.kill()
        first.wait()
    second = subprocess.Popen([*words, "worker", *here], env=environment, stderr=subprocess.DEVNULL)
    try:
        killed = time.monotonic()
        wait_for(lambda: store.get(job.id).attempts == 1, PATIENCE)
        print(json.dumps({"taken_over_after_s": round(time.monotonic() - killed, 2)}))
        wait_for(lambda: store.get(job.id).state == "done", 240.0)
    finally:
        second.terminate()
        second.wait()
    done = store.get(job.id)
    folder = run_folder(store, done)
    rows = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == list(range(1, 121))
    assert done.attempts == 1
    assert (folder / "exports" / "scene.ply").exists()
    assert (folder / "run.log").read_text().count("optimising") == 2
