"""Edits of finished runs to another colour: prints JSON; `--sheet` draws before and after.

`python tests/benchmarks/bench_heldout.py --out RUNS`, then
`python tests/benchmarks/bench_edits.py RUNS [--objective dds|sds] [--shape-weight W] [--region R] [--count N] ...`.
sds with `--shape-weight 0` is plain re-optimisation of the same scene. With more than one job `seconds` are longer than
an edit alone takes.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from dreamkit_kernels.bench import machine
from torch import Tensor

from dreamkit.diffusion.loading import load_teacher
from dreamkit.metrics.geometry import chamfer_distance
from dreamkit.prompts import slug
from dreamkit.scenes.cameras import turntable
from dreamkit.scenes.conversion import mesh_of
from dreamkit.scenes.pictures import contact_sheet
from dreamkit.scenes.regions import parse_region, rays_through
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.scenes.triangles import sample_surface_evenly
from dreamkit.toyworld.captions import HELD_OUT, composition
from dreamkit.training.deliver import score_scene
from dreamkit.training.edit import EditOptions, beginning_of, edit_settings
from dreamkit.training.scene import SceneTrainer

COLOURS = ("red", "blue", "green", "yellow", "purple", "pink", "orange", "cyan", "white", "brown", "gray", "black")
_GRAY = 0.85


def surface(scene: TrainableScene) -> Tensor:
    """[20000, 3] points all over the scene's surface."""
    return sample_surface_evenly(mesh_of(scene), 20_000, torch.Generator().manual_seed(0))[0].float()


@torch.no_grad()
def outside_change(before: TrainableScene, after: TrainableScene, region: str) -> float | None:
    """Mean absolute difference of the pictures' object pixels that do not see into the region."""
    if not region:
        return None
    cameras, behind = turntable(12, height=96, width=96), torch.full((3,), _GRAY)
    old, new = before.render(cameras, behind), after.render(cameras, behind)
    limit = torch.where(old.alpha > 0.5, old.depth / old.alpha.clamp_min(1e-6) + 0.05, torch.inf)
    counted = ~rays_through(parse_region(region), cameras, limit) & (old.alpha > 0.5)
    return float(((old.image - new.image).abs().mean(dim=1, keepdim=True) * counted).sum() / counted.sum())


def make(colour: str, name: str, options: argparse.Namespace) -> tuple[dict[str, Any], Tensor]:
    """One edit: its row of figures, and four views before and after [8, 3, 96, 96]."""
    source = sorted((options.runs / slug(composition(colour, name))).glob("*/*"))[-1]
    prompt = composition(COLOURS[(COLOURS.index(colour) + 1) % len(COLOURS)], name)
    beginning = beginning_of(str(source))
    wanted = EditOptions(str(source), prompt, objective=options.objective, region=options.region)
    wanted = EditOptions(**vars(wanted) | {"shape_weight": options.shape_weight, "options": tuple(options.option)})
    settings = edit_settings(wanted, beginning)
    dtype = None if settings.precision == "auto" else getattr(torch, settings.precision)
    started = time.perf_counter()
    trainer = SceneTrainer(settings, load_teacher(settings.teacher, "cpu", dtype), None, beginning.scene)
    while trainer.step_index < settings.steps:
        trainer.step()
    seconds = time.perf_counter() - started
    before, after = surface(beginning.scene), surface(trainer.scene)
    size = float((before.amax(dim=0) - before.amin(dim=0)).norm())
    scores = score_scene(trainer.scene, prompt)
    row = {"prompt": prompt, "source": composition(colour, name), "seconds": round(seconds, 1)}
    row |= {key: scores[key] for key in ("object", "colour", "r_precision")}
    row["object_before"] = score_scene(beginning.scene, composition(colour, name))["object"]
    row["moved"] = chamfer_distance(before, after) / size
    row["outside"] = outside_change(beginning.scene, trainer.scene, options.region)
    print(json.dumps(row), flush=True)
    with torch.no_grad():
        cameras, behind = turntable(4, height=96, width=96), torch.full((3,), _GRAY)
        return row, torch.cat([scene.render(cameras, behind).image for scene in (beginning.scene, trainer.scene)])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--objective", default="dds")
    parser.add_argument("--shape-weight", type=float, default=None)
    parser.add_argument("--region", default="")
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--count", type=int, default=len(HELD_OUT))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sheet", type=Path, default=None)
    options = parser.parse_args()
    pairs = HELD_OUT[: options.count]
    context = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, torch.set_num_threads, (1,)) as pool:
        colours, names = zip(*pairs, strict=True)
        results = list(pool.map(make, colours, names, [options] * len(pairs)))
    rows = [row for row, _ in results]
    if options.sheet is not None:
        labels = [label for row in rows for label in (row["source"], *[""] * 3, row["prompt"], *[""] * 3)]
        contact_sheet(torch.cat([views for _, views in results]), options.sheet, columns=8, labels=labels)
    keys = ("object_before", "object", "colour", "r_precision", "moved", "outside", "seconds")
    known = {key: [row[key] for row in rows if row[key] is not None] for key in keys}
    summary = {key: round(sum(values) / len(values), 4) for key, values in known.items() if values}
    print(json.dumps({"machine": machine(), "objective": options.objective, "rows": rows, "summary": summary}))


if __name__ == "__main__":
    main()
