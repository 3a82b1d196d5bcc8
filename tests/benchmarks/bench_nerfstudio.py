"""Our NeRF against nerfstudio's, both on one thread of a CPU, the same pictures and the same time: prints JSON.

`.venv-nerfstudio/bin/python tests/benchmarks/bench_nerfstudio.py [--steps 800] [--configs small,...] [--clock cpu]`,
in the environment that `bash .ci/nerfstudio` makes. A striped mug is fitted to 24 pictures of 128x128 and measured on
12 others, by `dreamkit.training.fit.fit_nerf` as it comes, and then, for as many seconds, by nerfstudio's nerfacto with
its fields in torch (`implementation="torch"`): the model's own samplers, renderers and losses, each configuration from
a fresh start. Nerfstudio gets what suits a small object: no scene contraction, rays cut to the scene's box, random
backgrounds, no appearance embedding, no camera optimiser, a learning rate that falls over just this time, and in all
but the last configuration a grid of about our size and batches small enough for many steps. Its instant-ngp
can't take part: nerfacc marches rays on CUDA only.

Seconds are those of the process (`--clock cpu`), so that other work on the machine does not decide; `--clock wall`
counts those of the clock on the wall. What draws and measures the 12 pictures in the end is counted for neither.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dreamkit.scenes.capture import Capture
from dreamkit.toyworld.capture import capture_cameras, capture_object
from dreamkit.training.fit import FitOptions, fit_nerf, held_out_psnr
from dreamkit.training.particles import seeded

try:
    from dreamkit_kernels.bench import machine
    from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
    from nerfstudio.cameras.rays import RayBundle
    from nerfstudio.data.scene_box import SceneBox
    from nerfstudio.model_components.scene_colliders import AABBBoxCollider
    from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
except ImportError as error:
    sys.exit(f"{error}. Run `bash .ci/nerfstudio` once, then this with .venv-nerfstudio/bin/python.")

LAST_RATE = 0.01
"""Of the first learning rate, at the end: as nerfacto's own schedule."""


@dataclass(frozen=True)
class Rival:
    """A configuration of nerfacto, and how it is trained."""

    rays: int = 1024
    levels: int = 8
    log2_size: int = 16
    finest: int = 128
    hidden: int = 32
    proposal_samples: tuple[int, ...] = (32,)
    samples: int = 16
    density: float = 1.0
    rate: float = 1e-2
    anneal: float = 0.1
    """Share of the run over which the samples concentrate on what the proposal fields found."""


RIVALS = {
    # A grid of the size of ours, and samples by one proposal field.
    "small": Rival(),
    # Fewer levels cost less; a larger rate makes up for fewer steps.
    "few-levels": Rival(levels=5, proposal_samples=(24,), samples=12, rate=2e-2),
    # The same with half as many rays a step, and with a quarter: more steps.
    "half-rays": Rival(rays=512, levels=5, proposal_samples=(24,), samples=12, rate=2e-2),
    "quarter-rays": Rival(rays=256, levels=5, proposal_samples=(24,), samples=12, rate=2e-2),
    # The best of those tried by hand for 43 seconds: a coarser grid, fewer samples, a larger rate.
    "tuned": Rival(768, 5, 16, 96, 32, (16,), 12, rate=3e-2, anneal=0.05),
    # More samples, found in two rounds as nerfacto does, and wider layers.
    "two-rounds": Rival(proposal_samples=(48, 24), samples=16, hidden=64),
    # As the first with as many rays a step as ours, and fewer steps.
    "many-rays": Rival(rays=4096),
    # Nerfacto's own grid and layers; with its 400 samples a ray it would not get to a hundred steps.
    "own-grid": Rival(1024, 16, 19, 2048, 64, (64,), 32, 0.01),
}


class Budget:
    """A clock that can be stopped.

    Args:
        clock: what counts, seconds.
        seconds: how many there are.
    """

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock, self._seconds, self._start = clock, seconds, clock()

    @property
    def share(self) -> float:
        """How much of it is used up, 0 and more."""
        return (self._clock() - self._start) / self._seconds


def rival_model(rival: Rival, views: int) -> NerfactoModel:
    """Nerfacto in torch for an object in the cube [-1, 1]^3."""
    proposals = [
        {"hidden_dim": 16, "log2_hashmap_size": min(17, rival.log2_size), "num_levels": 5, "max_res": finest}
        for finest in (min(128, rival.finest), min(256, rival.finest))
    ]
    config = NerfactoModelConfig(
        implementation="torch",
        background_color="random",
        disable_scene_contraction=True,
        proposal_initial_sampler="uniform",
        use_appearance_embedding=False,
        camera_optimizer=CameraOptimizerConfig(mode="off"),
        distortion_loss_mult=0.0,
        hidden_dim=rival.hidden,
        hidden_dim_color=rival.hidden,
        num_levels=rival.levels,
        base_res=min(16, rival.finest // 16),
        max_res=rival.finest,
        log2_hashmap_size=rival.log2_size,
        num_proposal_iterations=len(rival.proposal_samples),
        num_proposal_samples_per_ray=rival.proposal_samples,
        num_nerf_samples_per_ray=rival.samples,
        proposal_net_args_list=proposals[: len(rival.proposal_samples)],
        proposal_warmup=500,
        average_init_density=rival.density,
    )
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    # The perceptual metric, which nobody asks for here, would download its weights.
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity"):
        model = NerfactoModel(config, box, views)
    model.collider = AABBBoxCollider(box)
    return model


def bundle(origins: Tensor, directions: Tensor) -> RayBundle:
    """Rays [N, 3] in nerfstudio's form."""
    return RayBundle(
        origins=origins,
        directions=directions,
        pixel_area=torch.ones_like(origins[:, :1]),
        camera_indices=torch.zeros_like(origins[:, :1], dtype=torch.int64),
    )


def fit_rival(rival: Rival, capture: Capture, budget_of: Callable[[], Budget]) -> tuple[NerfactoModel, int]:
    """Train nerfacto until the time is up, as its Trainer and callbacks do; returns it and the steps made."""
    torch.manual_seed(0)
    budget = budget_of()
    model = rival_model(rival, len(capture.cameras)).train()
    optimizers = [torch.optim.Adam(group, lr=rival.rate, eps=1e-15) for group in model.get_param_groups().values()]
    origins, directions = (part.reshape(-1, 3) for part in capture.cameras.rays())
    alphas = capture.alphas.reshape(-1, 1)
    colors = capture.images.permute(0, 2, 3, 1).reshape(-1, 3)
    colors = (colors - (1 - alphas) * capture.background) / alphas.clamp_min(1e-3)  # theirs are not multiplied yet
    pictures = torch.cat([colors.clamp(0, 1), alphas], dim=1)
    steps, slope = 0, model.config.proposal_weights_anneal_slope
    while (share := budget.share) < 1:
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rival.rate * LAST_RATE**share
        done = min(share / rival.anneal, 1.0)
        model.proposal_sampler.set_anneal(slope * done / ((slope - 1) * done + 1))
        chosen = torch.randint(len(pictures), (rival.rays,), generator=seeded(0, 2, steps))
        outputs = model(bundle(origins[chosen], directions[chosen]))
        losses = model.get_loss_dict(outputs, {"image": pictures[chosen]}, {"distortion": 0.0})
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(losses.values()).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.proposal_sampler.step_cb(steps)
        steps += 1
    return model.eval(), steps


@torch.no_grad()
def rival_psnr(model: NerfactoModel, capture: Capture, chunk: int = 4096) -> float:
    """Mean over pictures of -10 log10 MSE, dB, as `held_out_psnr`."""
    errors = []
    for view in range(len(capture.cameras)):
        origins, directions = (part.reshape(-1, 3) for part in capture.cameras[view : view + 1].rays())
        image = capture.background.expand_as(origins).clone()
        rays = model.collider(bundle(origins, directions))
        inside = (rays.fars - rays.nears)[:, 0] > 1e-4  # the others see only what is behind
        for piece in inside.nonzero()[:, 0].split(chunk):
            outputs = model(bundle(origins[piece], directions[piece]))
            image[piece] = outputs["rgb"] + (1 - outputs["accumulation"]) * capture.background
        wanted = capture.images[view].permute(1, 2, 0).reshape(-1, 3)
        errors.append((image - wanted).square().mean())
    return float(-10 * torch.stack(errors).log10().mean())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="steps of our fit, which set the time for all")
    parser.add_argument("--configs", default=",".join(RIVALS), help="of nerfacto")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    options = SimpleNamespace(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    capture = capture_object("red", "mug", capture_cameras(24, 128), "striped")
    held_out = capture_object("red", "mug", capture_cameras(12, 128, turn=77.0), "striped")

    start, wall = clock(), time.perf_counter()
    scene = fit_nerf(capture, FitOptions(steps=options.steps))
    seconds, wall = clock() - start, time.perf_counter() - wall
    ours = {
        "psnr": held_out_psnr(scene, held_out),
        "steps": options.steps,
        "rays": FitOptions().rays,
        "wall_seconds": wall,
    }
    print(json.dumps({"ours": ours, "seconds": seconds}), flush=True)
    rows: dict[str, dict[str, Any]] = {}
    for name in options.configs.split(","):
        wall = time.perf_counter()
        model, steps = fit_rival(RIVALS[name], capture, lambda: Budget(clock, seconds))
        wall = time.perf_counter() - wall
        rows[name] = {"psnr": rival_psnr(model, held_out), "steps": steps, "wall_seconds": wall}
        print(json.dumps({name: rows[name]}), flush=True)
    best = max(rows, key=lambda name: rows[name]["psnr"])
    report = {
        "machine": machine(),
        "versions": {name: version(name) for name in ("dreamkit", "nerfstudio", "torch")},
        "clock": options.clock,
        "seconds": seconds,
        "ours": ours,
        "theirs": {"config": best, **rows[best], **asdict(RIVALS[best])},
        "ahead_db": ours["psnr"] - rows[best]["psnr"],
        "all_theirs": rows,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
