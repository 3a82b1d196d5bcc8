"""Worlds in which every expectation is known: exact teachers and critics, and contexts without chance.

For Gaussian data N(mu, v) in every pixel the exact noise prediction is E(x_t) = k (x_t - alpha mu) with
k = sigma / (alpha^2 v + sigma^2), and x_t - alpha mu = alpha (x - mu) + sigma e.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.critic import Critic
from dreamkit.diffusion.exact import ExactTeacher, Mixture
from dreamkit.diffusion.schedule import NoiseSchedule, Prediction
from dreamkit.diffusion.teacher import Query
from dreamkit.objectives import Objective, ObjectiveContext, TimestepSchedule, objective_class

COSINE, FLOW = NoiseSchedule.ddpm("cosine"), NoiseSchedule.flow(3.0)


@dataclass(frozen=True)
class FixedLevels(TimestepSchedule):
    """The same levels at every step: one for each row, or one for all. Draws nothing."""

    values: tuple[float, ...] = (0.5,)

    def sample(self, count: int, context: ObjectiveContext) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64).expand(count)


@dataclass(frozen=True)
class FixedContext(ObjectiveContext):
    """A context whose noise is given: `eps` for `noise_like`, `kept` for the noise of the whole run."""

    eps: Tensor | None = None
    kept: Tensor | None = None

    def noise_like(self, x: Tensor) -> Tensor:
        return super().noise_like(x) if self.eps is None else self.eps.to(x)

    def kept_noise(self, x: Tensor) -> Tensor:
        return super().kept_noise(x) if self.kept is None else self.kept.to(x)


class ExactCritic(Critic):
    """The critic of a generator whose distribution is known: one for each view, or one for all."""

    def __init__(self, made: Mixture | Sequence[Mixture], schedule: NoiseSchedule) -> None:
        self.teacher = ExactTeacher({"made": made}, schedule)

    @property
    def calls(self) -> int:
        return self.teacher.calls

    def predict_all(self, queries: Sequence[Query]) -> list[Prediction]:
        row = self.teacher.encode_prompt(["made"])
        camera = [query.camera if self.teacher.supports_camera else None for query in queries]
        return self.teacher.predict_all([Query(q.x_t, q.t, row, c) for q, c in zip(queries, camera, strict=True)])

    def update(
        self, x: Tensor, condition: Condition, pose: Tensor | None, generator: torch.Generator, progress: float = 0.0
    ) -> dict[str, float]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        pass


def make(name: str, t: float | Sequence[float] = 0.5, scale: float | None = None, **options: Any) -> Objective:
    """A registered objective at fixed levels, with a constant guidance scale."""
    values = (float(t),) if isinstance(t, int | float) else tuple(t)
    if scale is not None:
        options["guidance"] = Schedule.constant(scale)
    return objective_class(name)(timesteps=FixedLevels(values=values), **options)


def gaussian(mean: float | Tensor, variance: float, shape: tuple[int, int, int] = (1, 2, 2)) -> Mixture:
    """N(mean, variance) in every pixel."""
    mu = mean if isinstance(mean, Tensor) else torch.full(shape, mean, dtype=torch.float64)
    return Mixture.gaussian(mu, variance)


def gaussians(
    prompt: float = 0.4,
    negative: float = -0.1,
    null: float = 0.1,
    variance: float = 0.25,
    schedule: NoiseSchedule = COSINE,
    shape: tuple[int, int, int] = (1, 2, 2),
) -> ExactTeacher:
    """A teacher of one Gaussian for each of the three prompts "y", "n" and ""."""
    means = {"y": prompt, "n": negative, "": null}
    return ExactTeacher({name: gaussian(mean, variance, shape) for name, mean in means.items()}, schedule)


def patterned(schedule: NoiseSchedule = COSINE, shape: tuple[int, int, int] = (1, 2, 2)) -> ExactTeacher:
    """A teacher of Gaussians whose means differ from pixel to pixel, for "y", "n" and ""."""
    means = 0.5 * normal(3, shape, seed=20)
    return ExactTeacher(
        {name: Mixture.gaussian(mean, 0.25) for name, mean in zip(("y", "n", ""), means, strict=True)}, schedule
    )


def context(teacher: ExactTeacher, rows: int, seed: int = 0, **more: Any) -> FixedContext:
    """A context for `rows` samples of the prompt "y" against "n" (`negative=None`: against nothing)."""
    null = teacher.null_condition(1)
    negative = more.pop("negative", "n")
    return FixedContext(
        **{
            "teacher": teacher,
            "positive": teacher.encode_prompt([more.pop("prompt", "y")] * rows),
            "negative": null if negative is None else teacher.encode_prompt([negative]),
            "null": null,
            "camera": None,
            "step": 0,
            "total": 100,
            "generator": torch.Generator().manual_seed(seed),
            **more,
        }
    )


def normal(rows: int, shape: Sequence[int] = (1, 2, 2), seed: int = 7) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pose(azimuths: Sequence[float]) -> Tensor:
    """Poses [B, 12] that look at the origin from these azimuths, degrees; only the position is filled in."""
    rows = torch.zeros(len(azimuths), 12, dtype=torch.float64)
    radians = torch.tensor([math.radians(a) for a in azimuths], dtype=torch.float64)
    rows[:, 3], rows[:, 11] = radians.sin(), radians.cos()
    return rows


def coefficients(schedule: NoiseSchedule, t: float) -> tuple[float, float]:
    """Alpha and sigma as floats."""
    exact = torch.tensor(t, dtype=torch.float64)
    return float(schedule.alpha(exact)), float(schedule.sigma(exact))


def mean_error(grad: Tensor, expected: float | Tensor) -> float:
    """The largest distance of a mean over rows from what it should be, in standard errors."""
    error = grad.std(dim=0) / len(grad) ** 0.5
    return float(((grad.mean(dim=0) - expected).abs() / error.clamp_min(1e-12)).max())
