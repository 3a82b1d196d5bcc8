"""Time and memory of the main job: `python tests/benchmarks/bench_generate.py [--preset draft]` prints JSON.

The share that is neither the teacher's network nor the renderer (forward and backward) is measured by wrapping
both, in the optimisation loop alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from dreamkit_kernels.bench import machine

from dreamkit.diffusion.loading import load_teacher
from dreamkit.training.generate import GenerateOptions, generate, settings_for
from dreamkit.training.scene import SceneTrainer


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The function, adding its seconds to `spent`."""

    def wrapper(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        spent.append(time.perf_counter() - start)
        return result

    return wrapper


def loop_shares(prompt: str, preset: str, steps: int) -> dict[str, float]:
    """Seconds a step in the teacher, in the renderer and elsewhere."""
    trainer = SceneTrainer(settings_for(GenerateOptions(prompt, preset=preset)), load_teacher())
    teacher: list[float] = []
    renderer: list[float] = []
    trainer.teacher._call = timed(trainer.teacher._call, teacher)
    trainer.scene.render = timed(trainer.scene.render, renderer)  # type: ignore[method-assign]
    backward = torch.Tensor.backward
    for _ in range(3):
        trainer.step()
    teacher.clear()
    renderer.clear()
    torch.Tensor.backward = timed(backward, renderer)  # type: ignore[method-assign]
    start = time.perf_counter()
    try:
        for _ in range(steps):
            trainer.step()
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    total = time.perf_counter() - start
    return {
        "seconds_a_step": total / steps,
        "teacher": sum(teacher) / total,
        "renderer": sum(renderer) / total,
        "overhead": 1 - (sum(teacher) + sum(renderer)) / total,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="a red mug")
    parser.add_argument("--preset", default="draft")
    parser.add_argument("--loop-steps", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        result = generate(GenerateOptions(options.prompt, preset=options.preset, out=out))
    report = {
        "machine": machine(),
        "prompt": options.prompt,
        "preset": options.preset,
        "seconds": round(result.seconds, 1),
        "steps": result.steps,
        "peak_rss_mb": round(result.peak_rss_mb),
        "scores": result.scores,
        "loop": {k: round(v, 4) for k, v in loop_shares(options.prompt, options.preset, options.loop_steps).items()},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
