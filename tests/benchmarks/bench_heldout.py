"""The twenty held-out compositions through the main job: prints JSON, writes a contact sheet.

`python tests/benchmarks/bench_heldout.py [--preset draft] [--out outputs] [--sheet sheet.png] [--guidance ...]`
A composition that is there already (same --out) is not made again.
"""

import argparse
import json
from pathlib import Path

import torch
from dreamkit_kernels.bench import machine

from dreamkit.runs import Run
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.pictures import contact_sheet
from dreamkit.toyworld.captions import HELD_OUT, composition
from dreamkit.training.generate import GenerateOptions, generate, load_scene

SHEET_AZIMUTHS = (25.0, 115.0, 205.0, 295.0)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--out", default="outputs/heldout")
    parser.add_argument("--sheet", type=Path, default=None)
    parser.add_argument("--guidance", type=float, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(HELD_OUT))
    options = parser.parse_args()
    rows, views, labels = [], [], []
    for colour, name in HELD_OUT[: options.count]:
        prompt = composition(colour, name)
        result = generate(
            GenerateOptions(
                prompt,
                preset=options.preset,
                guidance=options.guidance,
                steps=options.steps,
                seed=options.seed,
                out=options.out,
            )
        )
        rows.append({"prompt": prompt, "seconds": round(result.seconds, 1), **result.scores})
        print(json.dumps(rows[-1]), flush=True)
        scene = load_scene(Run.open(result.run))
        with torch.no_grad():
            cameras = Camera.orbit(list(SHEET_AZIMUTHS), 15.0, 3.0, 40.0, 128, 128)
            views.extend(scene.render(cameras, torch.full((3,), 0.85)).image)
        labels.extend([prompt, "", "", ""])
    if options.sheet is not None:
        contact_sheet(views, options.sheet, columns=8, labels=labels)

    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row[key] is not None]
        return round(sum(values) / len(values), 4) if values else None

    summary = {key: mean(key) for key in ("r_precision", "object", "colour", "janus", "seconds")}
    print(json.dumps({"machine": machine(), "preset": options.preset, "rows": rows, "summary": summary}))


if __name__ == "__main__":
    main()
