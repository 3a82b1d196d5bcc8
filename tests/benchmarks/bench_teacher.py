"""The embedded teacher's own samples under the judge, and whether it copies: prints JSON.

`python tests/benchmarks/bench_teacher.py [--teacher toyworld] [--count 1000] [--geometry FOLDER]`
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from dreamkit_kernels.bench import machine

from dreamkit.diffusion.loading import load_teacher
from dreamkit.metrics.judge import load_judge
from dreamkit.metrics.samples import nearest_distance, score_teacher
from dreamkit.toyworld.dataset import GeometryConfig, ToyWorld, build_cache


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="toyworld")
    parser.add_argument("--judge", type=Path, default=None)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--train-cache", type=Path, default=None, help="geometry the teacher was trained on")
    options = parser.parse_args()
    scores, samples = score_teacher(
        load_teacher(options.teacher), load_judge(options.judge), options.count, options.steps, options.guidance
    )
    report = {"machine": machine(), "count": options.count, "steps": options.steps, "guidance": options.guidance}
    report["scores"] = {name: round(value, 4) for name, value in scores.items()}
    with tempfile.TemporaryDirectory() as folder:
        cache = options.train_cache or build_cache(GeometryConfig(), Path(folder))
        fresh_cache = build_cache(GeometryConfig(singles=2, pairs=0, views=8, seed=101), Path(folder))
        generator = torch.Generator().manual_seed(0)
        training = ToyWorld(cache).sample(4000, generator, singles_only=True).images
        fresh = ToyWorld(fresh_cache).sample(300, generator, singles_only=True).images
    distances = {
        "samples": nearest_distance(samples[:300], training),
        "fresh_renders": nearest_distance(fresh, training),
        "training_renders": nearest_distance(training[:300], training[300:]),
    }
    report["nearest_training_picture_rms"] = {
        name: {"median": round(float(d.median()), 4), "minimum": round(float(d.min()), 4)}
        for name, d in distances.items()
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
