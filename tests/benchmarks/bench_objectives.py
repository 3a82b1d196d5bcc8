"""What each objective costs beyond the forward passes it needs: prints JSON.

`python tests/benchmarks/bench_objectives.py [--views 4] [--repeats 8]`. A row an objective: seconds a call, the share
of them inside the network (the critic's passes included), what is left (`overhead`), samples through the network
(`teacher_calls`), forward passes, and the memory that stays allocated after a call, in copies of x (gradient and target
are two). The embedded teacher, four views.
"""

import argparse
import gc
import json
import statistics
import time
from typing import Any

import torch
from dreamkit_kernels.bench import machine

from dreamkit.diffusion.critic import CriticConfig, NetworkCritic
from dreamkit.diffusion.loading import load_teacher
from dreamkit.objectives import ObjectiveContext, Source, objective_class, objective_names
from dreamkit.scenes.cameras import Camera


def measure(name: str, views: int, repeats: int) -> dict[str, Any]:
    """The row of one objective."""
    teacher, kind = load_teacher(device="cpu"), objective_class(name)
    inside: list[float] = []
    call = teacher._call

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = call(*arguments)
        inside.append(time.perf_counter() - start)
        return result

    teacher._call = timed
    critic = NetworkCritic(teacher, CriticConfig()) if kind.needs_critic else None
    x = 2 * torch.rand(views, *teacher.sample_shape, generator=torch.Generator().manual_seed(0)) - 1
    pose = Camera.orbit([360 * view / views for view in range(views)], 15.0, 3.0).pose
    positive = teacher.encode_prompt(["a red mug"] * views)
    null = teacher.null_condition(1)
    objective = kind()

    def run(step: int) -> tuple[Any, float]:
        context = ObjectiveContext(
            *(teacher, positive, null, null, pose, step, repeats, torch.Generator().manual_seed(step)),
            pose=pose,
            critic=critic,
            source=Source(x.flip(0), null) if kind.needs_source else None,
        )
        start = time.perf_counter()
        return objective(x, context), time.perf_counter() - start

    run(0)
    inside.clear()
    before = teacher.calls + (critic.calls if critic else 0)
    shares, seconds, kept = [], [], None
    for step in range(repeats):
        count = len(inside)
        result, spent = run(step)
        seconds.append(spent)
        shares.append(sum(inside[count:]) / spent)
        kept = result
    calls = teacher.calls + (critic.calls if critic else 0) - before
    del result
    gc.collect()
    held = sum(t.untyped_storage().nbytes() for t in (kept.grad, kept.target)) / (x.numel() * x.element_size())
    share = statistics.median(shares)
    return {
        "objective": name,
        "seconds": round(statistics.median(seconds), 4),
        "in_network": round(share, 4),
        "overhead": round(1 / share - 1, 4),
        "teacher_calls": calls / repeats,
        "passes": len(inside) / repeats,
        "held_copies": round(held, 2),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=8)
    options = parser.parse_args()
    rows = [measure(name, options.views, options.repeats) for name in objective_names()]
    print(json.dumps({"machine": machine(), "views": options.views, "rows": rows}))


if __name__ == "__main__":
    main()
