"""How good a text-to-image teacher of the toy world is, by the judge; and whether it copies its training pictures."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreamkit.diffusion.teacher import Teacher
from dreamkit.metrics.judge import COMPOSITIONS, Judge
from dreamkit.toyworld.captions import COLOURS, HELD_OUT, MATERIALS, OBJECTS, CaptionWriter, Thing

VIEW_NAMES = ("front", "side", "back", "overhead")


def single_captions(count: int, seed: int) -> tuple[list[str], list[Thing]]:
    """Captions of one object each, every composition equally likely, wording, material and view varied."""
    writer = CaptionWriter(torch.Generator().manual_seed(seed))
    captions, things = [], []
    for _ in range(count):
        material = writer.choose(MATERIALS) if writer.chance(0.5) else "plain"
        thing = Thing(writer.choose(OBJECTS), writer.choose(tuple(COLOURS)), material)
        view = writer.choose(VIEW_NAMES) if writer.chance(0.5) else None
        captions.append(writer.caption([thing], view=view))
        things.append(thing)
    return captions, things


def score_teacher(
    teacher: Teacher,
    judge: Judge,
    count: int = 1000,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 0,
    batch: int = 50,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, float], Tensor]:
    """Draw a sample for each of `count` captions and let the judge say what it shows.

    Args:
        teacher: a teacher that knows the toy world's words.
        judge: who says what a picture shows.
        count: captions.
        steps: DDIM steps a sample.
        guidance: scale s of E(n) + s (E(y) - E(n)).
        seed: of captions and noise.
        batch: samples a call.
        report: called with (samples done, samples in all).

    Returns:
        `object`, `colour` and `composition` accuracy over all, the same with `held_out_` before them over the
        compositions that training never showed, and the samples [count, 3, 64, 64].
    """
    captions, things = single_captions(count, seed)
    generator = torch.Generator().manual_seed(seed)
    images = []
    for start in range(0, count, batch):
        images.append(teacher.sample(captions[start : start + batch], steps, guidance, generator).cpu())
        report(min(start + batch, count), count)
    samples = torch.cat(images)
    logits, _ = judge.verdicts(samples)
    said = [COMPOSITIONS[index] for index in logits.argmax(dim=-1).tolist()]
    scores = _accuracies(said, things)
    held_out = [index for index, thing in enumerate(things) if (thing.colour, thing.name) in HELD_OUT]
    if held_out:
        picked = _accuracies([said[index] for index in held_out], [things[index] for index in held_out])
        scores |= {f"held_out_{name}": value for name, value in picked.items()}
    return scores, samples


def _accuracies(said: Sequence[tuple[str, str]], things: Sequence[Thing]) -> dict[str, float]:
    pairs = list(zip(said, things, strict=True))
    return {
        "object": sum(name == thing.name for (_, name), thing in pairs) / len(pairs),
        "colour": sum(colour == thing.colour for (colour, _), thing in pairs) / len(pairs),
        "composition": sum(what == (thing.colour, thing.name) for what, thing in pairs) / len(pairs),
    }


def nearest_distance(
    images: Tensor,  # [B, 3, H, W] in [0, 1]
    references: Tensor,  # [N, 3, H, W] in [0, 1]
) -> Tensor:  # [B]
    """Root mean square pixel difference from each image to its nearest reference, in [0, 1].

    A teacher that copies its training set has samples far nearer to it than fresh renders of the same world are.
    """
    flat = references.flatten(1)
    chunks = [torch.cdist(chunk.flatten(1), flat).amin(dim=1) for chunk in images.split(64)]
    return torch.cat(chunks) / flat.shape[1] ** 0.5
