"""Students' worlds in which every answer is known: exact teachers, critics and discriminators, and no chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from closed_form import COSINE, gaussian
from torch import Tensor, nn

from dreamkit.diffusion.exact import Mixture
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.objectives import Denoiser, Matching, MatchingContext, student_objective_class

PIXEL = (1, 1, 1)


class ExactDenoiser:
    """E[x0 | x_t] of a known distribution, and of another without the prompt; the frames of a clip are independent."""

    def __init__(self, data: Mixture, schedule: NoiseSchedule = COSINE, empty: Mixture | None = None) -> None:
        self.data, self.empty, self.schedule = data, empty or data, schedule

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return self._clean(self.data, x_t, levels)

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self._clean(self.data, x_t, levels), self._clean(self.empty, x_t, levels)

    def _clean(self, data: Mixture, x_t: Tensor, levels: Tensor) -> Tensor:
        frames, times = as_frames(x_t, levels)
        alpha, sigma = self.schedule.coefficients(times, frames)
        clean = (frames - sigma * data.eps(frames, alpha, sigma)) / alpha
        return clean if x_t.ndim == 4 else clean.unflatten(0, (x_t.shape[0], x_t.shape[2])).movedim(1, 2)


class ExactRatio:
    """The best discriminator: log p(x_t) / q(x_t), of a sample [B], or of a frame [B, F] where levels are given so."""

    def __init__(self, data: Mixture, made: Mixture, schedule: NoiseSchedule = COSINE) -> None:
        self.data, self.made, self.schedule = data, made, schedule

    def __call__(self, x_t: Tensor, levels: Tensor) -> Tensor:
        frames, times = as_frames(x_t, levels)
        alpha, sigma = self.schedule.coefficients(times, frames)
        ratio = log_density(self.data, frames, alpha, sigma) - log_density(self.made, frames, alpha, sigma)
        if x_t.ndim == 4:
            return ratio
        of_frames = ratio.unflatten(0, (x_t.shape[0], x_t.shape[2]))
        return of_frames if levels.ndim == 2 else of_frames.sum(dim=1)


class Trainable(nn.Module):
    """A denoiser with a weight: c times another's answer, c = 1."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__()
        self.inner, self.factor = inner, nn.Parameter(torch.ones((), dtype=torch.float64))

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return self.factor.to(x_t.dtype) * self.inner.predict(x_t, levels)

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        full, empty = self.inner.pair(x_t, levels)
        return self.factor.to(x_t.dtype) * full, self.factor.to(x_t.dtype) * empty


class Linear(nn.Module):
    """b + k x_t: at one level all that a Gaussian's critic can be."""

    def __init__(self, b: float = 0.0, k: float = 0.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([b, k], dtype=torch.float64))

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        return self.weights[0] + self.weights[1] * x_t

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x_t, levels), self.predict(x_t, levels)


@dataclass(frozen=True)
class FixedContext(MatchingContext):
    """A context whose noise is given: one for all that is noised."""

    eps: Tensor | None = None

    def noise_like(self, x: Tensor) -> Tensor:
        return super().noise_like(x) if self.eps is None else self.eps.to(x)


def as_frames(x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The frames of a clip as images [B F, C, h, w] with levels [B F]; images as they are."""
    if x_t.ndim == 4:
        return x_t, levels
    times = levels if levels.ndim == 2 else levels[:, None].expand(-1, x_t.shape[2])
    return x_t.movedim(2, 1).flatten(0, 1), times.flatten()


def log_density(data: Mixture, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Log p(x_t) of images, [B]."""
    means, variances = data.means.to(x_t), data.variances.to(x_t)
    spread = alpha.flatten(1).square() * variances + sigma.flatten(1).square()
    square = (x_t[:, None] - alpha[:, None] * means).square().flatten(2).sum(dim=2)
    size = means[0].numel()
    return torch.logsumexp(
        data.weights.to(x_t).log() - square / (2 * spread) - 0.5 * size * (2 * math.pi * spread).log(), dim=1
    )


def context(teacher: Denoiser, critic: Denoiser | None = None, seed: int = 0, **more: Any) -> FixedContext:
    """A context without prompts."""
    settings: dict[str, Any] = {"schedule": COSINE, "generator": torch.Generator().manual_seed(seed), "total": 100}
    return FixedContext(teacher=teacher, critic=critic, **{**settings, **more})


def at_level(name: str, t: float, w: float = 1.0, **options: Any) -> Matching:
    """A registered objective at one level and a constant guidance."""
    from dreamkit.config import Schedule

    levels = {"t_min": t, "t_max": t, "critic_t_min": t, "critic_t_max": t}
    return student_objective_class(name)(**{"guidance": Schedule.constant(w), **levels, **options})


def made(mean: float, spread: float) -> Mixture:
    """What a generator x = mean + spread z makes, samples of one number."""
    return gaussian(mean, spread**2, PIXEL)


def numbers(values: Tensor) -> Tensor:
    """A list of numbers as samples [B, 1, 1, 1]."""
    return values.to(torch.float64).reshape(-1, 1, 1, 1)


def quadrature(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (z, e) of standard normal numbers and their weights, which sum to 1, [nodes^2] each (Gauss and Hermite)."""
    places, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(nodes))
    weights = weights / weights.sum()
    z, e = torch.meshgrid(places, places, indexing="ij")
    return z.flatten(), e.flatten(), torch.outer(weights, weights).flatten()


def signs(count: int = 2) -> tuple[Tensor, ...]:
    """All combinations of -1 and 1: numbers of mean 0 and variance 1, without correlation."""
    grids = torch.meshgrid(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * count, indexing="ij")
    return tuple(grid.flatten() for grid in grids)


def modes(means: Sequence[float], spread: float, shares: Sequence[float] | None = None) -> Mixture:
    """A mixture over samples of one number."""
    count = len(means)
    weights = torch.tensor(shares or [1 / count] * count, dtype=torch.float64)
    variances = torch.full((count,), spread**2, dtype=torch.float64)
    return Mixture(numbers(torch.tensor(means)), variances, weights)
