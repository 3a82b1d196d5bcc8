"""What the tests of comparisons of video students share: folders of students and runs, and a stand-in for the work."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dreamkit.files import append_jsonl
from dreamkit.runs import RunInterrupted
from dreamkit.training.callbacks import Callback
from dreamkit.training.checkpoints import save_checkpoint
from dreamkit.training.compare_video.measures import MEASURES, SPEED, STREAM
from dreamkit.training.compare_video.plan import Task
from dreamkit.training.compare_video.work import CLIPS_FOLDER, clip_file, row_head
from dreamkit.video.students import INDEX_FILE, STREAM_KEY

STREAM_SETTINGS = {
    "size": [16, 16],
    "chunk": 3,
    "window": 9,
    "sink": 3,
    "sink_kind": "first",
    "times": [1.0, 0.5],
    "shift": 5.0,
}


def write_student(folder: Path, weight: float = 1.0, **changes: Any) -> Path:
    """As much of a student's folder as a plan reads."""
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((2, 3), weight), "b": torch.zeros(4)}, folder / "transformer" / "model.safetensors")
    index = {"_class_name": "DreamKitVideoPipeline", STREAM_KEY: STREAM_SETTINGS | changes}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    return folder


def write_run(folder: Path, options: dict[str, Any], seconds: Sequence[float], **changes: Any) -> Path:
    """A run of a student with its folder, which is returned; a step for each number of seconds."""
    student = write_student(folder / "student", **changes)
    save_checkpoint(folder / "checkpoints", len(seconds), {"w": torch.zeros(1)}, {"steps": len(seconds), **options})
    for step, value in enumerate(seconds, start=1):
        append_jsonl(folder / "metrics.jsonl", {"step": step, "loss": 1.0, "seconds": value})
    return student


def made_row(task: Task, **values: Any) -> dict[str, Any]:
    """A row with the given values and nothing else."""
    empty = dict.fromkeys(measure.name for measure in MEASURES)
    return row_head(task) | empty | {"seconds": 1.0, "error": None} | values


def fake_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """A row without a model: figures from the student's name, a call noted in `calls/`, clips of no video."""
    (task.folder / "calls").mkdir(exist_ok=True)
    with open(task.folder / "calls" / task.key, "a") as file:
        file.write("x")
    for callback in callbacks:
        callback.on_step(1, 2, {})
    if task.kind == SPEED:
        return made_row(task, denoise_fps=30.0, end_to_end_fps=25.0, peak_rss_mb=500.0)
    better = 0.1 if task.student == "a" else 0.0
    if task.shown:
        (task.folder / CLIPS_FOLDER).mkdir(exist_ok=True)
        for name in ("first", "last") if task.kind == STREAM else ("first",):
            clip_file(task.folder, task.key, name).write_bytes(b"mp4")
    noise = (task.noise_seed % 7) / 100
    curve = [
        {"start": start, "end": start + 100, "prompt": 0.9 - start / 1000 - noise, "sharpness": 0.01 + better}
        for start in range(0, 300, 100)
    ]
    return made_row(
        task,
        prompt_first=0.8 + better - noise,
        prompt_last=0.6 + better - noise,
        motion_magnitude=0.5 + better + noise,
        sharpness=0.01,
        drift_last=0.2 - better + noise,
        curve=curve,
    )


def interrupted_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """The user stops the comparison in the second student."""
    if task.student == "b":
        raise RunInterrupted(task.folder)
    return fake_job(task, callbacks)
