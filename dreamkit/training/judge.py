"""Trains the embedded judge on clean renders of the toy world: `dreamkit teachers train judge`.

Contrastive over all object x colour captions (wording varied), plus the elevation, and of objects that have a front
the azimuth, in bins. Pictures are blurred, dimmed, zoomed and shifted a little, so that the judge looks at what is
shown and not at how crisp or large it is; some are mirrored, which makes new shapes of the old ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.metrics.judge import (
    COMPOSITIONS,
    VIEWS,
    Judge,
    JudgeNetwork,
    azimuth_bin,
    elevation_bin,
    load_network,
    save_judge,
)
from dreamkit.toyworld.captions import FRONTED, SYNONYMS, CaptionWriter, composition
from dreamkit.toyworld.dataset import Batch, GeometryConfig, ToyWorld, build_cache
from dreamkit.toyworld.muon import Muon


@dataclass(frozen=True)
class JudgeOptions:
    """How to train the judge."""

    out: Path = Path("outputs/teachers/judge")
    """Folder of the training run."""
    start: Path | None = None
    """Judge folder (as this command writes it) whose weights to start from; none starts from noise."""
    steps: int = 2200
    """Optimiser steps."""
    batch: int = 64
    """Pictures a step."""
    lr: float = 3e-3
    """Peak learning rate (Muon for the image tower, AdamW for the rest; cosine)."""
    seed: int = 7919
    """Seed of weights and data; another one than the teacher's."""
    workers: int = 2
    """Processes that trace geometry."""
    geometry: GeometryConfig = field(default_factory=lambda: GeometryConfig(seed=2, pairs=0))
    """What it is trained on."""
    test_geometry: GeometryConfig = field(default_factory=lambda: GeometryConfig(seed=3, pairs=0, singles=3))
    """What its own accuracy is measured on: other shapes, cameras and colours."""


def targets(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Classes of a batch of single objects: composition [B], view [B], whether the view counts [B]."""
    pairs = [(scene[0].colour, scene[0].name) for scene in batch.things]
    label = torch.tensor([COMPOSITIONS.index(pair) for pair in pairs])
    view = torch.tensor([VIEWS.index(name) for name in batch.views])
    fronted = torch.tensor([name in FRONTED for _, name in pairs])
    return label, view, fronted


def angle_loss(azimuth: Tensor, elevation: Tensor, angles: Tensor, fronted: Tensor) -> Tensor:
    """Cross-entropy of the angle bins.

    Args:
        azimuth: logits [B, 32].
        elevation: logits [B, 14].
        angles: [B, 2] true azimuth and elevation, degrees.
        fronted: [B] whether the object has a front whose azimuth counts.
    """
    loss = functional.cross_entropy(elevation, elevation_bin(angles[:, 1]))
    each = functional.cross_entropy(azimuth, azimuth_bin(angles[:, 0]), reduction="none")
    return loss + (each * fronted).sum() / fronted.sum().clamp_min(1)


def mirror(images: Tensor, fronted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror a third of the pictures, left to right.

    That keeps objects, colours and elevations, but not azimuths: a mug's handle changes sides.

    Returns:
        The pictures, and `fronted` without the mirrored ones: whose azimuth counts.
    """
    mirrored = torch.rand(len(images), generator=generator) < 1 / 3
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images), fronted & ~mirrored


def zoom(images: Tensor, generator: torch.Generator) -> Tensor:
    """Show half of the pictures up to an eighth larger or smaller."""
    size = torch.exp(math.log(9 / 8) * (2 * torch.rand(len(images), generator=generator) - 1))
    scale = torch.diag_embed(torch.stack([1 / size, 1 / size], dim=1))
    grid = functional.affine_grid(functional.pad(scale, (0, 1)), list(images.shape), align_corners=False)
    zoomed = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, zoomed, images)


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zoom and blur some pictures, dim or brighten all a little and shift them by up to three pixels."""
    images = zoom(images, generator)
    blurred = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blurred = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.3, blurred, images)
    coarse = functional.interpolate(functional.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    blurred = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.2, coarse, blurred)
    gain = 0.85 + 0.3 * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = 0.02 * torch.randn(images.shape, generator=generator)
    dy, dx = torch.randint(-3, 4, (2,), generator=generator).tolist()
    return torch.roll(blurred * gain + noise, (dy, dx), dims=(2, 3)).clamp(0, 1)


def make_optimizers(network: JudgeNetwork) -> list[torch.optim.Optimizer]:
    """Muon for the image tower's matrices and convolutions, AdamW for words, heads and vectors."""
    tower = [p for part in (network.stages, network.flatten) for p in part.parameters() if p.ndim > 1]
    chosen = {id(p) for p in tower}
    rest = [p for p in network.parameters() if id(p) not in chosen]
    return [Muon(tower, lr=0.0), torch.optim.AdamW(rest, lr=0.0, weight_decay=0.0)]


def train_judge(
    options: JudgeOptions, report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
) -> tuple[Path, dict[str, float]]:
    """Train a judge and measure it.

    Args:
        options: settings.
        report: called after every step with the step and its metrics.

    Returns:
        The judge's folder and its accuracies on held-out renders, see `measure_judge`.
    """
    world = ToyWorld(build_cache(options.geometry, options.out / "geometry", options.workers), hold_out=False)
    torch.manual_seed(options.seed)
    network = JudgeNetwork() if options.start is None else load_network(options.start)
    optimizers = make_optimizers(network)
    for step in range(options.steps):
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        batch = world.sample(options.batch, generator, singles_only=True)
        label, _, fronted = targets(batch)
        writer = CaptionWriter(generator)
        captions = [composition(*pair) for pair in COMPOSITIONS]
        if writer.chance(0.5):
            word = writer.choose(tuple(SYNONYMS))
            synonym = writer.choose(SYNONYMS[word])
            captions = [caption.replace(word, synonym) for caption in captions]
        images, turned = mirror(batch.images, fronted, generator)
        logits, azimuth, elevation = network(disturb(images, generator), captions)
        loss = functional.cross_entropy(logits, label)
        loss = loss + angle_loss(azimuth, elevation, world.angles(batch.rows), turned)
        factor = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        loss.backward()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = options.lr * factor
            optimizer.step()
            optimizer.zero_grad()
        report(step + 1, {"loss": float(loss.detach())})
    folder = options.out / "judge"
    save_judge(network, folder)
    return folder, measure_judge(Judge(network), options)


def measure_judge(judge: Judge, options: JudgeOptions, count: int = 4000) -> dict[str, float]:
    """Accuracies of a judge on `count` renders of shapes it was not trained on.

    `view` is over all four names; `turn` over front, side and back where the camera is known not to be overhead, as
    in the renders that `janus` scores come from.
    """
    world = ToyWorld(build_cache(options.test_geometry, options.out / "geometry", options.workers), hold_out=False)
    generator = torch.Generator().manual_seed(1)
    verdicts = []
    for start in range(0, count, 250):  # thousands of pictures at once would take gigabytes
        batch = world.sample(min(250, count - start), generator, singles_only=True)
        logits, views = judge.verdicts(batch.images)
        verdicts.append((logits.argmax(dim=-1), views, *targets(batch)))
    best, views, label, view, fronted = (torch.cat(parts) for parts in zip(*verdicts, strict=True))
    level = fronted & (view != VIEWS.index("overhead"))
    said = [COMPOSITIONS[index] for index in best.tolist()]
    truth = [COMPOSITIONS[index] for index in label.tolist()]
    return {
        "object": sum(a[1] == b[1] for a, b in zip(said, truth, strict=True)) / count,
        "colour": sum(a[0] == b[0] for a, b in zip(said, truth, strict=True)) / count,
        "composition": sum(a == b for a, b in zip(said, truth, strict=True)) / count,
        "view": float((views.argmax(dim=-1) == view)[fronted].float().mean()),
        "turn": float((views[:, :3].argmax(dim=-1) == view)[level].float().mean()),
    }
