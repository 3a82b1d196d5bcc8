"""A job's process and its worker without torch: what the tests of the queue run, kill and count.

`python toy_jobs.py job OUT PROMPT STEPS [RUN]` behaves like `dreamkit generate` (and `resume`): a run folder, a line a
stage, metrics, a checkpoint every third step, 130 after Ctrl-C. `python toy_jobs.py worker OUT` is a worker of such
jobs, a process of its own.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS = 0.02


def main_job(out: str, prompt: str, steps: str, run: str = "") -> int:
    """Do a job as its prompt says: "crash", "mistake" and "deaf" are not what they seem."""
    words, total = prompt.split(), int(steps)
    if "deaf" in words:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "mistake" in words:
        print(json.dumps({"error": "This can't be.", "hint": "Ask for something else."}))
        return 2
    folder = Path(run) if run else Path(out) / "a-toy" / "sds" / f"{time.time_ns()}Z"
    if not run:
        hidden = folder.with_name(f".{folder.name}")
        (hidden / "exports").mkdir(parents=True)
        (hidden / "config.yaml").write_text("format_version: 1\nconfig: {prompt: a toy}\n")
        hidden.rename(folder)
    lock = open(folder / ".lock", "w")  # noqa: SIM115 - held until the process ends
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (folder / "TWO-WRITERS").touch()
        return 3
    print(f"run folder: {folder}", file=sys.stderr, flush=True)
    if "crash" in words:
        print("Traceback: boom", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    saved = folder / "checkpoint"
    first = int(saved.read_text()) if saved.exists() else 0
    print(f"optimising ({total} steps)", file=sys.stderr, flush=True)
    with open(folder / "starts", "a") as starts:
        starts.write(f"{os.getpid()} {first}\n")
    step = first
    try:
        for step in range(first + 1, total + 1):
            time.sleep(STEP_SECONDS)
            with open(folder / "metrics.jsonl", "a") as metrics:
                metrics.write(json.dumps({"step": step, "loss": 1.0 / step}) + "\n")
            if step % 3 == 0 or step == total:
                _save(saved, step)
    except KeyboardInterrupt:
        _save(saved, step)
        return 130
    (folder / "exports" / "scene.ply").write_text("done")
    print(json.dumps({"run": str(folder), "seconds": 1.0, "exports": {"ply": str(folder / "exports/scene.ply")}}))
    return 0


def _save(path: Path, step: int) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(str(step))
    temporary.rename(path)


def toy_commands(out: Path):
    """A `CommandBuilder` of these jobs; a cancelled one gets a file `kept`."""
    program = [sys.executable, "-I", "-S", str(Path(__file__).absolute())]

    class ToyCommands:
        def main(self, job, run, logs):
            steps = str(job.settings.get("steps") or 30)
            return [*program, "job", str(out), job.prompt, steps, *([] if run is None else [str(run)])]

        def run_folder(self, job):
            return None

        def keeping(self, job, run):
            return [[sys.executable, "-I", "-S", "-c", f"open({str(run / 'kept')!r}, 'w')"]]

    return ToyCommands()


def toy_worker(out: Path, **options):
    """A worker of these jobs on the queue in a folder; its times are short unless others are given."""
    from dreamkit_apps.jobs.gallery import RunFolders
    from dreamkit_apps.jobs.store import QUEUE_FILE, JobStore
    from dreamkit_apps.jobs.worker import Worker, WorkerOptions

    chosen = WorkerOptions(**({"heartbeat": 0.2, "lease": 2.0, "poll": 0.02, "grace": 5.0, "keeping": 10.0} | options))
    return Worker(JobStore(out / QUEUE_FILE, busy=1.0), RunFolders(out), toy_commands(out), chosen)


def main_worker(out: str, as_shipped: str = "") -> int:
    """Run a worker, maybe with the times that `dreamkit jobs worker` has."""
    worker = toy_worker(Path(out))
    if as_shipped:
        worker.options = type(worker.options)()
    worker.stop_on_signals()
    worker.run()
    return 0


if __name__ == "__main__":
    sys.exit({"job": main_job, "worker": main_worker}[sys.argv[1]](*sys.argv[2:]))
