"""A few pictures of an object, alone and with score distillation: PSNR of views that neither saw. Prints JSON.

`python tests/benchmarks/bench_sparse.py [--objects red mug,blue duck] [--views 3,4,6] [--jobs N]`. Alone, Gaussians are
fitted to the pictures (`dreamkit fit`); with distillation they are generated from the prompt and the pictures
(`dreamkit generate --pictures`).
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from dreamkit_kernels.bench import machine

from dreamkit.captures.write import write_pictures, write_transforms
from dreamkit.scenes.cameras import Camera
from dreamkit.toyworld.capture import capture_cameras, capture_object
from dreamkit.training.fit import FitOptions, fit_gaussians, held_out_scores
from dreamkit.training.generate import GenerateOptions, settings_for, teacher_of
from dreamkit.training.scene import SceneTrainer

_SIZE, _HELD_OUT = 64, 24


def measure(subject: str, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """One object from `count` pictures: a row of figures."""
    colour, name = subject.split(" ", 1)
    cameras = Camera.orbit([30.0 + 360.0 * k / count for k in range(count)], 15.0, 3.0, 40.0, _SIZE, _SIZE)
    capture = capture_object(colour, name, cameras)
    held_out = capture_object(colour, name, capture_cameras(_HELD_OUT, _SIZE, (-10.0, 45.0), turn=77.0))
    started = time.perf_counter()
    alone = fit_gaussians(capture, FitOptions(steps=options.fit_steps))
    between = time.perf_counter()
    with TemporaryDirectory() as folder:
        files = write_pictures(capture, Path(folder))
        write_transforms(capture.cameras, files, Path(folder) / "transforms.json")
        wanted = GenerateOptions(f"a {subject}", steps=options.steps, pictures=folder, options=tuple(options.option))
        settings = settings_for(wanted)
        trainer = SceneTrainer(settings, teacher_of(settings))
    while trainer.step_index < settings.steps:
        trainer.step()
    row = {"object": subject, "views": count, "alone_seconds": round(between - started, 1)}
    row |= {"with_seconds": round(time.perf_counter() - between, 1)}
    row |= {f"alone_{key}": value for key, value in held_out_scores(alone, held_out).items()}
    row |= {f"with_{key}": value for key, value in held_out_scores(trainer.scene, held_out).items()}
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", default="red mug,blue duck,green car")
    parser.add_argument("--views", default="3,4,6")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--fit-steps", type=int, default=1000)
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    pairs = [(subject, int(count)) for count in options.views.split(",") for subject in options.objects.split(",")]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        subjects, counts = zip(*pairs, strict=True)
        rows = list(pool.map(measure, subjects, counts, [options] * len(pairs)))
    table = {}
    for count in dict.fromkeys(counts):
        own = [row for row in rows if row["views"] == count]
        table[count] = {key: sum(row[key] for row in own) / len(own) for key in ("alone_psnr", "with_psnr")}
    print(json.dumps({"machine": machine(), "rows": rows, "table": table}))


if __name__ == "__main__":
    main()
