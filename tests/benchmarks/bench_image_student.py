"""An image student beside its teacher, on the same captions and the same noise, by the embedded judge: prints JSON.

`python tests/benchmarks/bench_image_student.py --student outputs/students/image/student [--teacher toyworld]
[--count 500] [--steps 50] [--guidance 4]`
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from dreamkit_kernels.bench import machine

from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.students import NetworkStudent
from dreamkit.metrics.judge import Judge, load_judge
from dreamkit.metrics.samples import score_teacher

BATCH = 50


def measured(model: NetworkTeacher, judge: Judge, count: int, steps: int, guidance: float, seed: int) -> dict[str, Any]:
    """Object and colour accuracy of a model's samples, and how long one takes, the judge's time included."""
    score_teacher(model, judge, 1, steps, guidance, seed)  # what is done once is not counted
    model.calls = 0
    started = time.perf_counter()
    scores, _ = score_teacher(model, judge, count, steps, guidance, seed, BATCH)
    seconds = time.perf_counter() - started
    return {
        "steps": steps,
        "guidance": guidance,
        "calls_a_sample": model.calls / count,
        "seconds_a_sample": round(seconds / count, 5),
        "scores": {name: round(value, 4) for name, value in scores.items()},
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", default="toyworld")
    parser.add_argument("--judge", type=Path, default=None)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--steps", type=int, default=50, help="of the teacher")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the teacher")
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    judge, student = load_judge(options.judge), load_teacher(options.student, options.device)
    if not isinstance(student, NetworkStudent):
        parser.error(f"{options.student} holds no student")
    teacher = load_teacher(options.teacher, options.device)
    own, count, seed = student.student, options.count, options.seed
    report = {
        "machine": machine(),
        "count": count,
        "batch": BATCH,
        "objective": own.objective,
        "student": measured(student, judge, count, own.steps, own.guidance, seed),
        "teacher": measured(teacher, judge, count, options.steps, options.guidance, seed),
    }
    report["speedup"] = round(report["teacher"]["seconds_a_sample"] / report["student"]["seconds_a_sample"], 2)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
