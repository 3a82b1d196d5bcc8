"""Teachers and critics in closed form: data that is a mixture of Gaussians, whose score is known exactly.

For data sum_k p_k N(mu_k, v_k) in every pixel, x_t = alpha x + sigma e has the density sum_k p_k N(alpha mu_k, s_k),
s_k = alpha^2 v_k + sigma^2, and the exact noise prediction is

    E(x_t, t) = sigma sum_k r_k (x_t - alpha mu_k) / s_k,    r_k = softmax_k(log p_k + log N(x_t; alpha mu_k, s_k))

For one Gaussian that is sigma (x_t - alpha mu) / (alpha^2 v + sigma^2). They are teachers like any other: for tests of
objectives in float64, and for learning what an objective does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.critic import Critic
from dreamkit.diffusion.schedule import NoiseSchedule, Prediction
from dreamkit.diffusion.teacher import Query, Teacher
from dreamkit.errors import TeacherError


@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians over samples, every pixel of the same variance.

    Args:
        means: mu_k, [K, C, h, w].
        variances: v_k, >= 0, [K].
        weights: p_k, > 0 and summing to 1, [K].

    Raises:
        TeacherError: shapes that don't fit, a negative variance, or weights that are no distribution.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        count = self.means.shape[:1]
        if self.means.ndim != 4 or self.variances.shape != count or self.weights.shape != count:
            raise TeacherError(
                f"A mixture has means [K, C, h, w], variances [K] and weights [K], not {tuple(self.means.shape)}, "
                f"{tuple(self.variances.shape)} and {tuple(self.weights.shape)}."
            )
        if bool((self.variances < 0).any()) or bool((self.weights <= 0).any()):
            raise TeacherError("A mixture's variances are >= 0 and its weights > 0.")
        if abs(float(self.weights.sum()) - 1) > 1e-6:
            raise TeacherError(f"A mixture's weights sum to 1, not {float(self.weights.sum())}.")

    @staticmethod
    def gaussian(mean: Tensor, variance: float) -> "Mixture":
        """One Gaussian N(mean, variance), mean [C, h, w]."""
        return Mixture(mean[None], mean.new_full((1,), variance), mean.new_ones(1))

    @staticmethod
    def joined(mixtures: Sequence["Mixture"]) -> "Mixture":
        """All of them, equally likely."""
        return Mixture(
            torch.cat([mixture.means for mixture in mixtures]),
            torch.cat([mixture.variances for mixture in mixtures]),
            torch.cat([mixture.weights for mixture in mixtures]) / len(mixtures),
        )

    def responsibilities(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """r_k of noisy samples [B, C, h, w] at alpha and sigma [B, 1, 1, 1]: [B, K]."""
        return self._logits(x_t, alpha, sigma)[0].softmax(dim=1)

    def eps(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E(x_t, t) for noisy samples [B, C, h, w] at alpha and sigma [B, 1, 1, 1]: [B, C, h, w]."""
        logits, offsets, spread = self._logits(x_t, alpha, sigma)
        share = logits.softmax(dim=1) / spread
        return sigma * torch.einsum("bk,bkchw->bchw", share, offsets)

    def _logits(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log r_k up to a constant [B, K], x_t - alpha mu_k [B, K, C, h, w], and s_k [B, K]."""
        means, variances = self.means.to(x_t), self.variances.to(x_t)
        offsets = x_t[:, None] - alpha[:, None] * means
        spread = alpha.flatten(1).square() * variances + sigma.flatten(1).square()
        spread = spread.clamp_min(torch.finfo(x_t.dtype).tiny ** 0.5)  # data without variance, without noise
        pixels = means[0].numel()
        logits = self.weights.to(x_t).log() - offsets.square().flatten(2).sum(dim=2) / (2 * spread)
        return logits - 0.5 * pixels * spread.log(), offsets, spread


class ExactTeacher(Teacher):
    """The teacher of a distribution that is known.

    A prompt names a distribution of the data. It may differ from view to view: then a camera selects the view by its
    azimuth, V views evenly spaced from 0 (the front), and without a camera all views are mixed, as they are for a
    text-only model, which is where the many-faced "Janus" comes from.

    Args:
        data: prompt -> its distribution, or one for each of V views. "" is the empty prompt, if there is one.
        schedule: alpha(t) and sigma(t).

    Raises:
        TeacherError: no prompt, or distributions that differ in shape or number of views.
    """

    def __init__(self, data: Mapping[str, Mixture | Sequence[Mixture]], schedule: NoiseSchedule | None = None) -> None:
        self._views = {
            prompt: [mixtures] if isinstance(mixtures, Mixture) else list(mixtures) for prompt, mixtures in data.items()
        }
        shapes = {mixture.means.shape[1:] for mixtures in self._views.values() for mixture in mixtures}
        counts = {len(mixtures) for mixtures in self._views.values()}
        if len(shapes) != 1 or len(counts) != 1:
            raise TeacherError(f"The distributions differ: samples of {sorted(shapes)}, views {sorted(counts)}.")
        channels, height, width = shapes.pop()
        self.name = "exact"
        self.schedule = schedule or NoiseSchedule.ddpm("cosine")
        self.prediction_type = "eps"
        self.sample_shape = (channels, height, width)
        self.image_size = height
        self.views = counts.pop()
        self.supports_camera = self.views > 1
        self.calls = 0
        self._prompts = list(self._views)

    @property
    def device(self) -> torch.device:
        """Where it computes: the CPU."""
        return torch.device("cpu")

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """The number of each prompt, [B, 1, 1].

        Raises:
            TeacherError: a prompt that has no distribution.
        """
        unknown = [prompt for prompt in prompts if prompt not in self._views]
        if unknown or not prompts or isinstance(prompts, str):
            raise TeacherError(f"No distribution is known for {unknown or prompts!r}.", f"Known: {self._prompts}.")
        return Condition(torch.tensor([self._prompts.index(p) for p in prompts], dtype=torch.float64)[:, None, None])

    def null_condition(self, n: int = 1) -> Condition:
        """The empty prompt, n rows.

        Raises:
            TeacherError: there is none.
        """
        if "" not in self._views:
            raise TeacherError(f"{self.name} has no empty prompt.", 'Give it a distribution for "".')
        return self.encode_prompt([""] * n)

    def encode_image(self, image: Tensor) -> Tensor:
        """2 image - 1, for images of the teacher's own size."""
        return 2 * image - 1

    def decode(self, x: Tensor) -> Tensor:
        """The inverse of `encode_image`, clamped to [0, 1]."""
        return (x / 2 + 0.5).clamp(0, 1)

    def distribution(self, prompt: str, view: int | None = None) -> Mixture:
        """The distribution of a prompt, seen from one view or from all, equally likely."""
        mixtures = self._views[prompt]
        return Mixture.joined(mixtures) if view is None else mixtures[view]

    def _forward(self, queries: Sequence[Query]) -> list[Tensor]:
        return [self._exact(query) for query in queries]

    def _exact(self, query: Query) -> Tensor:
        rows = len(query)
        alpha, sigma = self.schedule.coefficients(self._times(query.t).expand(rows), query.x_t)
        numbers = query.condition.expanded(rows).embeddings[:, 0, 0]
        prompts = numbers.long().tolist()
        if not torch.equal(numbers, numbers.round()):
            raise TeacherError(f"{self.name} knows no mixture of prompts.", "Leave Perp-Neg out.")
        views = [None] * rows if query.camera is None else view_indices(query.camera, self.views)
        output = torch.empty_like(query.x_t)
        for prompt, view in set(zip(prompts, views, strict=True)):
            chosen = torch.tensor([pair == (prompt, view) for pair in zip(prompts, views, strict=True)])
            mixture = self.distribution(self._prompts[prompt], view)
            output[chosen] = mixture.eps(query.x_t[chosen], alpha[chosen], sigma[chosen])
        return output


class ParticleCritic(Critic):
    """The exact score of a set of samples: each is a point of a distribution without variance.

    With a pose it is that of the samples seen from there, without one that of all.

    Args:
        schedule: alpha(t) and sigma(t).
        views: number of views that azimuths are told apart by.
    """

    def __init__(self, schedule: NoiseSchedule, views: int = 1) -> None:
        self._schedule = schedule
        self._count = views
        self._teacher: ExactTeacher | None = None

    @property
    def calls(self) -> int:
        """Samples that went through it since the last update."""
        return 0 if self._teacher is None else self._teacher.calls

    def predict_all(self, queries: Sequence[Query]) -> list[Prediction]:
        """The exact predictions.

        Raises:
            TeacherError: it was shown no samples yet.
        """
        if self._teacher is None:
            raise TeacherError("The critic has seen no samples.", "Call `update` first.")
        row = self._teacher.encode_prompt(["samples"])
        camera = [query.camera if self._count > 1 else None for query in queries]
        asked = [Query(q.x_t, q.t, row, c) for q, c in zip(queries, camera, strict=True)]
        return self._teacher.predict_all(asked)

    def update(
        self, x: Tensor, condition: Condition, pose: Tensor | None, generator: torch.Generator, progress: float = 0.0
    ) -> dict[str, float]:
        """Take these samples [B, C, h, w], seen from `pose` [B, 12], for all there is.

        Raises:
            TeacherError: a view that no sample was seen from.
        """
        views = [0] * len(x) if pose is None else view_indices(pose, self._count)
        unseen = sorted(set(range(self._count)) - set(views))
        if unseen:
            raise TeacherError(f"No sample was seen from the views {unseen} of {self._count}.", "Give one for each.")
        groups = [x[[v == view for v in views]] for view in range(self._count)]
        mixtures = [
            Mixture(group, x.new_zeros(len(group)), x.new_full((len(group),), 1 / len(group))) for group in groups
        ]
        self._teacher = ExactTeacher({"samples": mixtures}, self._schedule)
        return {}

    def state(self) -> dict[str, Tensor]:
        """Nothing: the next update brings all it knows."""
        return {}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to load."""


def view_indices(camera: Tensor, count: int) -> list[int | None]:
    """The nearest of `count` views evenly spaced in azimuth, for poses [B, 12]; `None` for a row of zeros."""
    x, z = camera[:, 3], camera[:, 11]
    turns = torch.atan2(x, z) / (2 * torch.pi)
    nearest = (turns * count).round().long() % count
    given = camera.abs().sum(dim=1) > 0
    return [int(view) if known else None for view, known in zip(nearest, given, strict=True)]
