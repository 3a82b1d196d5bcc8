"""DDIM inversion: noise that a model itself would have seen in a clean sample, instead of random noise."""

import math
from dataclasses import dataclass

from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.schedule import Prediction
from dreamkit.diffusion.teacher import Teacher


@dataclass(frozen=True)
class Inversion:
    """Where an inversion arrived.

    Args:
        x_t: noisy samples, [B, C, h, w].
        last: the prediction that the last step followed, at the level before; `None` when no step was taken.
    """

    x_t: Tensor
    last: Prediction | None


def invert(
    teacher: Teacher,
    x: Tensor,  # [B, C, h, w]
    t: Tensor,  # [B]
    condition: Condition,
    negative: Condition | None = None,
    scale: float = 1.0,
    camera: Tensor | None = None,  # [B, 12]
    steps: int | None = None,
    stride: float = 0.2,
) -> Inversion:
    """Walk from clean samples up to noise level t along the deterministic DDIM path.

        x_{t'} = alpha(t') x0(x_t, t) + sigma(t') E(x_t, t),   t < t', from t = 0

    (Song et al., arXiv 2010.02502, reversed in time; for a flow model Euler's method.) Every row climbs in equal
    steps of its own, as many as the highest needs, so that rows of different t share their forward passes.

    Args:
        teacher: the model.
        x: clean samples, [B, C, h, w].
        t: the level to reach, [B] in (0, 1].
        condition: what the prediction is conditioned on, B or 1 rows; LucidDreamer's is the empty prompt.
        negative: base of guidance, where there is any.
        scale: s of E(n) + s (E(y) - E(n)); only with `negative`. Negative scales walk away from the prompt.
        camera: poses, [B, 12].
        steps: number of steps, >= 1; by default as few as make no step longer than `stride`.
        stride: longest step in t, LucidDreamer's 200 of 1000.
    """
    count = steps or max(1, math.ceil(float(t.max()) / stride - 1e-9))
    prediction = None
    for index in range(count):
        here, there = t * (index / count), t * ((index + 1) / count)
        if negative is None:
            prediction = teacher.predict(x, here, condition, camera)
        else:
            prediction = teacher.predict_guided(x, here, condition, negative, scale, camera).guided
        x = teacher.schedule.add_noise(prediction.x0, prediction.eps, there)
    return Inversion(x, prediction)


def implied_noise(
    teacher: Teacher,
    x: Tensor,  # [B, C, h, w]
    x_t: Tensor,  # [B, C, h, w]
    t: Tensor,  # [B]
) -> Tensor:
    """The noise that turns x into x_t: (x_t - alpha x) / sigma, [B, C, h, w]; t > 0."""
    alpha, sigma = teacher.schedule.coefficients(t, x)
    return (x_t - alpha * x) / sigma
