"""Stand-ins for a run of a comparison, importable by the worker processes that tests start."""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import torch

from dreamkit.errors import TeacherError
from dreamkit.runs import RunInterrupted
from dreamkit.training.callbacks import Callback
from dreamkit.training.compare.plan import Task
from dreamkit.training.compare.work import described, row_head, save_views
from dreamkit.training.generate import settings_for


def fake_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """A row without a run: figures from the seed, a turntable of noise, a call noted in `calls/`."""
    (task.folder / "calls").mkdir(exist_ok=True)
    with open(task.folder / "calls" / task.key, "a") as file:
        file.write("x")
    for callback in callbacks:
        callback.on_step(1, 2, {})
    generator = torch.Generator().manual_seed(task.options.seed)
    frames = torch.rand(task.frames, 3, task.size, task.size, generator=generator)
    save_views(task, frames, torch.nn.functional.normalize(torch.rand(24, 8, generator=generator), dim=-1))
    fronted = "duck" in task.options.prompt
    return row_head(task) | {
        "r_precision": 0.5 + 0.25 * task.options.seed,
        "object": 0.75,
        "colour": 1.0,
        "janus": 0.25 if fronted else None,
        "fronts": 1 + (task.mode == "text") if fronted else None,
        "many_faced": task.mode == "text" if fronted else None,
        "view_agreement": 0.75 if fronted else None,
        "saturation": 0.5,
        "contrast": 0.1,
        "seconds": 2.0,
        "teacher_calls": 80,
        "steps": 2,
        "run": "runs/a",
        "error": None,
        "settings": described(settings_for(task.options)),
    }


def failing_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Fails for the column csd: with a message for seed 0, with a bug for others."""
    if task.label == "csd" and not os.environ.get("DREAMKIT_TEST_MENDED"):
        if task.options.seed == 0:
            raise TeacherError("The <teacher> is out.", "Wait.")
        raise ValueError("oops")
    return fake_job(task, callbacks)


def dying_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Kills its own process for the column csd."""
    if task.label == "csd":
        os.kill(os.getpid(), signal.SIGKILL)
    return fake_job(task, callbacks)


def interrupted_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """The user stops the second run."""
    if task.label == "csd":
        raise RunInterrupted(task.folder, 1)
    return fake_job(task, callbacks)


def slow_job(task: Task, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Tells that it runs, then never ends by itself."""
    for callback in callbacks:
        callback.on_step(1, 2, {})
    time.sleep(300)
    raise AssertionError
