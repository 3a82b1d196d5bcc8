"""The twenty held-out compositions through the main job: prints JSON, writes a contact sheet.

`python tests/benchmarks/bench_heldout.py [--preset draft] [--out outputs] [--sheet sheet.png] [--jobs 1] ...`
With more than one job, processes of one thread each share the machine: sooner done, but `seconds` are then longer than
a run alone takes.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from dreamkit_kernels.bench import machine
from torch import Tensor

from dreamkit.runs import Run
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.pictures import contact_sheet
from dreamkit.toyworld.captions import HELD_OUT, composition
from dreamkit.training.generate import GenerateOptions, generate, load_scene

SHEET_AZIMUTHS = (25.0, 115.0, 205.0, 295.0)


def make(prompt: str, options: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """One asset: its row of figures and its four views [4, 3, 128, 128]."""
    chosen = {name: getattr(options, name) for name in ("preset", "guidance", "steps", "seed", "out", "teacher")}
    result = generate(GenerateOptions(prompt, **chosen))
    row = {"prompt": prompt, "seconds": round(result.seconds, 1), **result.scores}
    print(json.dumps(row), flush=True)
    scene = load_scene(Run.open(result.run))
    with torch.no_grad():
        cameras = Camera.orbit(list(SHEET_AZIMUTHS), 15.0, 3.0, 40.0, 128, 128)
        return row, scene.render(cameras, torch.full((3,), 0.85)).image


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--out", default="outputs/heldout")
    parser.add_argument("--teacher", default="toyworld")
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(HELD_OUT))
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    prompts = [composition(colour, name) for colour, name in HELD_OUT[: options.count]]
    if options.jobs == 1:
        results = [make(prompt, options) for prompt in prompts]
    else:
        context = get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
            results = list(pool.map(make, prompts, [options] * len(prompts)))
    rows = [row for row, _ in results]
    if options.sheet is not None:
        labels = [label for prompt in prompts for label in (prompt, "", "", "")]
        views = [view for _, images in results for view in images]
        contact_sheet(views, options.sheet, columns=8, labels=labels)

    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row[key] is not None]
        return round(sum(values) / len(values), 4) if values else None

    summary = {key: mean(key) for key in ("r_precision", "object", "colour", "janus", "seconds")}
    report = {"machine": machine(), "preset": options.preset, "jobs": options.jobs, "rows": rows, "summary": summary}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
