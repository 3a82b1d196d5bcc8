"""Time `gaussian_rasterize` forward and backward: native against the torch reference. Prints one JSON object.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_rasterize.py --threads 1
    python tests/benchmarks/bench_rasterize.py --cases 10k@64 4x5k@64 --threads 2

The scene: Gaussians uniform in the unit ball, three units from the cameras (field of view 40 degrees), with log-normal
scales whose median projects to `sigma` pixels, opacities uniform in 0.05..0.95, plain colours. The loss reaches image
and alpha, as in the main job. A figure is the minimum over the repetitions, in milliseconds: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

import torch
from dreamkit_kernels.gaussian_rasterize import Gaussians, Settings, View, rasterize
from machine import machine

CASES: dict[str, tuple[int, int, int, float]] = {
    # name: views, Gaussians, side, sigma in pixels of the median Gaussian
    "10k@64": (1, 10_000, 64, 0.6),
    "10k@128": (1, 10_000, 128, 0.6),
    "10k@128 large": (1, 10_000, 128, 2.0),
    "4x2k@64": (4, 2_000, 64, 1.2),
    "4x5k@64": (4, 5_000, 64, 1.0),
    "4x10k@128": (4, 10_000, 128, 1.0),
    "100k@512": (1, 100_000, 512, 0.6),
    "100k@512 large": (1, 100_000, 512, 2.0),
}


def make_scene(views: int, count: int, side: int, sigma: float) -> tuple[Gaussians, View]:
    """The scene described at the top, with gradients enabled."""
    generator = torch.Generator().manual_seed(0)
    focal = side / 2 / math.tan(math.radians(20))
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    means = directions * torch.rand(count, 1, generator=generator) ** (1 / 3)
    scales = (sigma * 3 / focal) * torch.exp(0.3 * torch.randn(count, 3, generator=generator))
    tensors = (
        means,
        torch.randn(count, 4, generator=generator),
        scales,
        0.05 + 0.9 * torch.rand(count, generator=generator),
        torch.rand(count, 3, generator=generator),
    )
    angles = torch.arange(views) * (2 * math.pi / views)
    pose = torch.eye(4).repeat(views, 1, 1)
    pose[:, 0, 0], pose[:, 0, 2] = angles.cos(), angles.sin()
    pose[:, 2, 0], pose[:, 2, 2] = -angles.sin(), angles.cos()
    pose[:, 2, 3] = 3.0
    intrinsics = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]]).repeat(views, 1, 1)
    return Gaussians(*(tensor.requires_grad_() for tensor in tensors)), View(pose, intrinsics, side, side)


def measure(gaussians: Gaussians, view: View, backend: str, repetitions: int) -> dict[str, float]:
    """Minimum forward and backward times in milliseconds."""
    forward, backward = [], []
    background = torch.ones(3)
    for _ in range(repetitions):
        start = time.perf_counter()
        result = rasterize(gaussians, view, Settings(background=background, backend=backend))
        middle = time.perf_counter()
        gradients = [torch.ones_like(result.image), torch.ones_like(result.alpha)]
        before = time.perf_counter()
        torch.autograd.grad([result.image, result.alpha], list(vars(gaussians).values()), gradients)
        end = time.perf_counter()
        forward.append(middle - start)
        backward.append(end - before)
    return {"forward_ms": round(min(forward) * 1e3, 3), "backward_ms": round(min(backward) * 1e3, 3)}


def main() -> None:
    """Run the cases asked for and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--backends", nargs="+", choices=["native", "reference"], default=["native", "reference"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for case in options.cases:
        gaussians, view = make_scene(*CASES[case])
        for backend in options.backends:
            repetitions = options.repetitions if backend == "native" else max(2, options.repetitions // 25)
            row = {"case": case, "backend": backend, "threads": options.threads}
            rows.append(row | measure(gaussians, view, backend, repetitions))
            print(rows[-1], file=sys.stderr)
    print(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
