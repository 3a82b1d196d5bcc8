"""What the prompts say about the views: their names, and Perp-Neg's mixtures and repulsions."""

import math
from collections.abc import Sequence

import torch

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import Repulsion
from dreamkit.diffusion.teacher import Teacher
from dreamkit.prompts import view_prompt
from dreamkit.scenes.cameras import view_name

# (a, b, c) of w(r) = a exp(-b r) + c: how strongly a view that is a share r there already repels. threestudio's values.
_FRONT_FROM_SIDE = _SIDE_FROM_FRONT = (4.0, 0.5, -2.426)
_SIDE_FROM_BACK = (1.0, 0.5, -0.606)
_FRONT_FROM_BACK = (1.0, 0.5, 0.967)


def perp_neg(
    teacher: Teacher, prompt: str, azimuths: Sequence[float], elevations: Sequence[float]
) -> tuple[Condition, Repulsion]:
    """Prompts that turn with the camera, and the views each is pushed away from.

    Between front and side (and side and back) the text embedding is interpolated by the azimuth; the front view pushes
    away wherever it is not asked for, which is what keeps a face from appearing on every side (Armandpour et al.,
    arXiv 2304.04968). A camera from above keeps its own prompt and is not pushed.

    Args:
        teacher: who reads the prompts.
        prompt: a cleaned prompt without a view.
        azimuths: B angles in degrees, 0 is the front.
        elevations: B angles in degrees.

    Returns:
        The prompts, B rows, and the repulsion by K = 2 views each.
    """
    plans = [_plan(azimuth, elevation) for azimuth, elevation in zip(azimuths, elevations, strict=True)]
    views = {
        name: teacher.encode_prompt([view_prompt(prompt, name)])
        for name in {name for plan in plans for name in (*plan[0], *plan[1])}
    }

    def mixed(shares: dict[str, float]) -> Condition:
        return Condition.mixed([views[name] for name in shares], list(shares.values()))

    against = [list(plan[1]) for plan in plans]
    return Condition.cat([mixed(plan[0]) for plan in plans]), Repulsion(
        [Condition.cat([views[names[k]] for names in against]) for k in range(2)],
        torch.tensor([[list(plan[1].values())[k] for plan in plans] for k in range(2)]),
    )


def _plan(azimuth: float, elevation: float) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the views in a camera's prompt, and how strongly two views repel it."""
    if view_name(azimuth, elevation) == "overhead view":
        return {"overhead view": 1.0}, {"front view": 0.0, "side view": 0.0}
    turn = abs((azimuth + 180.0) % 360.0 - 180.0)
    if turn < 90:
        front = 1 - turn / 90
        shares = {"front view": front, "side view": 1 - front}
        repelling = {"front view": _decay(_FRONT_FROM_SIDE, front), "side view": _decay(_SIDE_FROM_FRONT, 1 - front)}
    else:
        side = 2 - turn / 90
        shares = {"side view": side, "back view": 1 - side}
        repelling = {"side view": _decay(_SIDE_FROM_BACK, side), "front view": _decay(_FRONT_FROM_BACK, side)}
    return shares, {name: max(value, 0.0) for name, value in repelling.items()}


def _decay(constants: tuple[float, float, float], share: float) -> float:
    a, b, c = constants
    return a * math.exp(-b * share) + c
