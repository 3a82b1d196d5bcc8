"""Scores of a picture or a scene against its prompt, by the embedded judge.

R-precision: share of views whose best caption among all object x colour compositions is the prompt's own (Park et
al., "Benchmark for Compositional Text-to-Image Synthesis", 2021; used for 3D by DreamFusion, arXiv 2209.14988).
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.metrics.judge import COMPOSITIONS, VIEWS, Judge, level_views
from dreamkit.toyworld.captions import COLOURS, FRONTED, OBJECTS, SYNONYMS

FRONT_ARC = 60.0
"""Azimuths further than this from the front, in degrees, should not look like a front."""

_CANONICAL = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}


@dataclass(frozen=True)
class Target:
    """What a prompt asks for, as far as the judge can tell.

    Args:
        name: object, or `None` where the prompt names none of the toy world's.
        colour: colour of that object, or `None`.
    """

    name: str | None
    colour: str | None

    @classmethod
    def from_prompt(cls, prompt: str) -> "Target":
        """The first object that the prompt names, and the last colour before it.

        Without one, the first colour after it (`a mug that is red`), unless another object follows that the colour
        may belong to (`a mug on a red table`).
        """
        words = [_CANONICAL.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower())]
        positions = [i for i, word in enumerate(words) if word in OBJECTS]
        if not positions:
            return cls(None, None)
        position = positions[0]
        before = [word for word in words[:position] if word in COLOURS]
        after = [word for word in words[position:] if word in COLOURS and len(positions) == 1]
        return cls(words[position], before[-1] if before else next(iter(after), None))


def score_views(judge: Judge, images: Tensor, azimuths: Tensor, prompt: str) -> dict[str, float | None]:
    """Scores of views of one asset.

    Args:
        judge: who says what a view shows.
        images: [B, 3, H, W] in [0, 1], views at a moderate elevation.
        azimuths: [B] degrees, 0 is the front.
        prompt: what was asked for.

    Returns:
        `r_precision`, `object` and `colour` accuracy over the views, and `janus`: the share of views more than
        `FRONT_ARC` from the front that look like a front. A score is `None` where the prompt does not decide it:
        no known object or colour, or an object without a front.
    """
    target = Target.from_prompt(prompt)
    logits, view_logits = judge.verdicts(images)
    best = [COMPOSITIONS[index] for index in logits.argmax(dim=-1).tolist()]
    scores: dict[str, float | None] = dict.fromkeys(("r_precision", "object", "colour", "janus"))
    if target.name is None:
        return scores

    def share(hits: list[bool]) -> float:
        return sum(hits) / len(hits)

    scores["object"] = share([name == target.name for _, name in best])
    if target.colour is not None:
        scores["colour"] = share([colour == target.colour for colour, _ in best])
        scores["r_precision"] = share([pair == (target.colour, target.name) for pair in best])
    else:
        scores["r_precision"] = scores["object"]
    if target.name in FRONTED:
        away = (torch.remainder(azimuths + 180, 360) - 180).abs() > FRONT_ARC
        looks_front = level_views(view_logits) == VIEWS.index("front")
        scores["janus"] = share(looks_front[away].tolist()) if bool(away.any()) else None
    return scores
