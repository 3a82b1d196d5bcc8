"""What a student's objective is: a sample that a generator made -> a gradient on it.

A student draws x in one step, or in a few; or it is a clip that a causal model streams chunk by chunk. Whatever it is,
an objective noises x, asks what a frozen teacher and a critic see in it, and says which way x should have been:

    x_t = alpha x + sigma e,    R = teacher's x0 for the prompt,  U = without it,  R_w = U + w (R - U)
    F = the critic's x0,        n = mean |x - R_w| of a sample, or of a chunk of a clip

Everything is in predictions of x0, which every network has whatever it predicts; with them a score is
(alpha x0 - x_t) / sigma^2, so F - R is what the difference of two scores is, up to alpha / sigma^2.

**Groups.** An image [B, C, h, w] has one noise level a sample: levels are [B]. A clip [B, C, F, h, w] that is streamed
in chunks has one a chunk, given for every frame: levels are [B, F], equal inside of a chunk. Whatever is counted "per
sample" (the normaliser, an importance, a reward) is counted per such group, so that no chunk scales another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from dreamkit.checks import one_of
from dreamkit.config import Schedule
from dreamkit.diffusion.guidance import guide
from dreamkit.diffusion.schedule import FLOOR, NoiseSchedule
from dreamkit.errors import TeacherError, TrainingError
from dreamkit.objectives.base import require, surrogate_loss

CriticWeighting = Literal["min_snr", "eps", "flow", "v", "x0"]

SNR_LIMIT = 5.0
"""Of min-SNR weighting (Hang et al., arXiv 2303.09556)."""

_SMALLEST_NORMALISER = 1e-6

NEEDS = {
    "critic": ("a critic", "Train one on what the student makes."),
    "discriminator": ("a discriminator", "Give the critic a GAN head."),
    "reward": ("a reward", "Give one number a sample or a frame."),
    "student": ("the student as a denoiser", "Give it, with its gradients."),
    "student_level": ("the level that the student started from", "Give student_level; it is 1 for a one-step student."),
    "sample_level": ("the level of the samples themselves", "Give sample_level; it is 0 for clean samples."),
    "path": ("a path of degraded teachers", "Record one, the nearest to the teacher first."),
}
"""What an objective may need of a context besides the teacher: its field there -> its name, and what to do."""


class Denoiser(Protocol):
    """A network with its prompts bound in: noisy samples and their levels -> clean samples."""

    def predict(self, x_t: Tensor, levels: Tensor) -> Tensor:
        """x0 for the prompt, shaped like x_t [B, C, (F,) h, w]; levels [B] or [B, F]. Differentiable in x_t."""
        ...

    def pair(self, x_t: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """x0 for the prompt and x0 without it, from one forward pass."""
        ...


Discriminator = Callable[[Tensor, Tensor], Tensor]
"""(x_t, levels) -> logits [B] or [B, F]; positive for data. Differentiable in x_t."""


@dataclass(frozen=True)
class MatchingContext:
    """What a student's objective may know besides x.

    Args:
        teacher: frozen; what it believes of noisy samples.
        schedule: the noise that teacher and critic were trained with.
        generator: source of randomness of this step, on the CPU.
        critic: trained on what the student makes now.
        chunk: frames of a chunk of a clip, the last may be shorter; 0 for one level a sample.
        step: steps done, >= 0.
        total: steps of the run, >= 1.
        discriminator: tells noisy data from noisy samples.
        reward: of each sample [B] or chunk [B, F], detached.
        student_level: the level that the student made x from, [B] or [B, F].
        sample_level: the level of x itself, where a rollout stopped before its end, [B] or [B, F]; `None` for clean.
        student: the student as a denoiser, differentiable in its weights.
        data: clean samples shaped like x, for what is learned from data.
        path: teachers on a path of degradation, from the one that is nearest to the teacher on.
    """

    teacher: Denoiser
    schedule: NoiseSchedule
    generator: torch.Generator
    critic: Denoiser | None = None
    chunk: int = 0
    step: int = 0
    total: int = 1
    discriminator: Discriminator | None = None
    reward: Tensor | None = None
    student_level: Tensor | None = None
    sample_level: Tensor | None = None
    student: Denoiser | None = None
    data: Tensor | None = None
    path: Sequence[Denoiser] = ()

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.total

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of the shape of x, from the CPU and the same in every dtype."""
        return torch.randn(x.shape, generator=self.generator).to(x)


@dataclass(frozen=True)
class StudentLoss:
    """What a student's objective returns.

    Args:
        loss: a number; d loss / dx = grad / B. Call its `backward`. Where the objective needs the student, its weights
            get a gradient through it as well.
        grad: before the division by the number of samples, shaped like x, detached. (Of scm: see there.)
        target: the clean sample that the teacher would rather see, shaped like x, detached.
        diagnostics: numbers for the log.
    """

    loss: Tensor
    grad: Tensor
    target: Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Direction:
    """Where a sample should go: the gradient (pointing away), the clean sample it leads to, and numbers for the log."""

    grad: Tensor
    target: Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """R, U (`None` where guidance is 1), R_w and F at one x_t, shaped like it."""

    conditional: Tensor
    unconditional: Tensor | None
    guided: Tensor
    critic: Tensor


# Groups: levels and whatever is counted per sample or per chunk ------------------------------------------------------


def spread(groups: Tensor, x: Tensor) -> Tensor:
    """A number a group, broadcast over x and in its dtype: [B] as [B, 1, ...], [B, F] as [B, 1, F, 1, 1]."""
    shape = (len(groups), 1, -1, 1, 1) if groups.ndim == 2 else (len(groups),) + (1,) * (x.ndim - 1)
    return groups.to(x).reshape(shape)


def group_sum(value: Tensor, chunk: int = 0) -> Tensor:
    """Sum over a group: a sample, [B]; or with `chunk` each chunk of a clip, given for all its frames, [B, F]."""
    if not chunk:
        return value.flatten(1).sum(dim=1)
    parts = value.sum(dim=(1, 3, 4)).split(chunk, dim=1)
    return torch.cat([part.sum(dim=1, keepdim=True).expand_as(part) for part in parts], dim=1)


def group_mean(value: Tensor, chunk: int = 0) -> Tensor:
    """Mean over a group, as `group_sum`: [B], or [B, F]."""
    return group_sum(value, chunk) / group_sum(torch.ones_like(value), chunk)


def as_groups(value: Tensor, x: Tensor, chunk: int, what: str) -> Tensor:
    """A number a sample or a frame as one a group, [B] or [B, F].

    Raises:
        TeacherError: another shape; the message says of `what`.
    """
    shape = (x.shape[0], x.shape[2]) if chunk else (x.shape[0],)
    if value.shape == x.shape[:1]:
        value = value[:, None].expand(shape) if chunk else value
    if value.shape != shape:
        raise TeacherError(f"The {what} has shape {tuple(value.shape)}.", f"Give one of {shape} or {(x.shape[0],)}.")
    return value.to(x.device)


def shifted(levels: Tensor, shift: float) -> Tensor:
    """Levels shift t / (1 + (shift - 1) t) for t in [0, 1]: towards noise by a shift above 1; 1 / shift moves back."""
    return NoiseSchedule.flow(shift).sigma(levels)


def draw_levels(
    x: Tensor, context: MatchingContext, low: float | Tensor, high: float | Tensor, shift: float, shared: bool
) -> Tensor:
    """Levels in [low, high], uniform before the shift, one a group: [B] or [B, F], float64.

    Args:
        x: what they are for.
        context: chunk and generator.
        low: smallest, a number or one a group.
        high: largest, a number or one a group.
        shift: of the levels towards noise; 1 for none.
        shared: whether all chunks of a clip get the same.
    """
    batch, chunk = x.shape[0], context.chunk
    groups = -(-x.shape[2] // chunk) if chunk else 1
    place = torch.rand(batch, 1 if shared else groups, generator=context.generator, dtype=torch.float64)
    place = place.expand(batch, groups).repeat_interleave(chunk, dim=1)[:, : x.shape[2]] if chunk else place[:, 0]
    place = place.to(x.device)
    bottom, top = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in (low, high))
    bottom, top = shifted(bottom, 1 / shift), shifted(top, 1 / shift)
    return shifted(bottom + (top - bottom) * place, shift)


def coefficients(schedule: NoiseSchedule, levels: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma at levels [B] or [B, F], broadcast over x."""
    return spread(schedule.alpha(levels), x), spread(schedule.sigma(levels), x)


def normaliser(x: Tensor, guided: Tensor, chunk: int = 0) -> Tensor:
    """The n = mean |x - R_w| of a group + 1e-6, broadcast over x, detached (Yin et al., arXiv 2311.18828, eq. 8)."""
    distance = group_mean((x - guided).detach().abs(), chunk)
    return spread(distance, x) + _SMALLEST_NORMALISER


def working(x: Tensor) -> Tensor:
    """The sample detached, in the precision that objectives compute in: float64 stays, all else is float32."""
    return x.detach() if x.dtype == torch.float64 else x.detach().float()


def require_finite(objective: str, step: int, terms: dict[str, Tensor | None]) -> None:
    """Stop a training before it spoils its weights.

    Args:
        objective: its name.
        step: of the run.
        terms: by name; `None` is passed over.

    Raises:
        TrainingError: a term has a NaN or an infinity; the message names it.
    """
    for name, value in terms.items():
        if value is not None and not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"The {name} of {objective} is not finite at step {step}.",
                "A lower learning rate or guidance may help, or another seed; the last checkpoint is sound.",
            )


# Objectives -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching(ABC):
    """A student's objective: pure mathematics on x, knowing no student, optimiser or file."""

    name: ClassVar[str]
    needs_critic: ClassVar[bool] = False
    """Whether `context.critic` is used."""
    needs_discriminator: ClassVar[bool] = False
    """Whether `context.discriminator` is used whatever the options."""
    needs_reward: ClassVar[bool] = False
    """Whether `context.reward` is used."""
    needs_student: ClassVar[bool] = False
    """Whether `context.student` is used; then the loss has a gradient for the student's weights by itself."""
    needs_student_level: ClassVar[bool] = False
    """Whether `context.student_level` is used."""
    needs_sample_level: ClassVar[bool] = False
    """Whether x is noisy still, at `context.sample_level`."""
    needs_path: ClassVar[bool] = False
    """Whether `context.path` is used."""
    differentiates_scores: ClassVar[bool] = False
    """Whether gradients flow through teacher and critic to x_t: frozen, but not under `no_grad`."""

    guidance: Schedule = field(default_factory=lambda: Schedule.constant(4.0))
    """Guidance scale w of U + w (R - U) over the run, >= 0; 1 is no guidance, and a Self-Forcing "3.0" is 4 here."""
    critic_guided: bool = False
    """Whether the critic gets the teacher's guidance, too."""
    t_min: float = 0.02
    """Smallest noise level that teacher and critic are asked at, above 0."""
    t_max: float = 0.98
    """Largest noise level that teacher and critic are asked at, at most 1."""
    shift: float = 1.0
    """Shift of the noise levels, above 0: t becomes shift t / (1 + (shift - 1) t), above 1 towards noise."""
    shared_level: bool = False
    """Whether all chunks of a clip get one noise level, for a teacher that takes one a sample."""
    critic_t_min: float = 0.001
    """Smallest noise level that the critic is trained at, above 0."""
    critic_t_max: float = 1.0
    """Largest noise level that the critic is trained at, at most 1."""
    critic_weighting: CriticWeighting = "min_snr"
    """What the critic's error is measured in: eps, flow, v, x0, as it predicts; or min_snr, x0 times min(SNR, 5)."""

    def __post_init__(self) -> None:
        for value in (self.guidance.start_value, self.guidance.end_value):
            require(value >= 0, "guidance scale", value, "a number >= 0; 1 is no guidance")
        for low, high, of in ((self.t_min, self.t_max, ""), (self.critic_t_min, self.critic_t_max, "critic's ")):
            require(0 < low <= high <= 1, f"{of}range of levels", (low, high), "0 < smallest <= largest <= 1")
        require(0 < self.shift < float("inf"), "shift", self.shift, "a number above 0; 1 is none")
        one_of("The critic's weighting", self.critic_weighting, get_args(CriticWeighting))

    @abstractmethod
    def __call__(self, x: Tensor, context: MatchingContext) -> StudentLoss:
        """The loss of samples x [B, C, h, w], or of clips [B, C, F, h, w], that the student made, with their graph.

        Raises:
            TeacherError: the context lacks something, or shapes don't fit.
            TrainingError: a term is not finite.
        """

    @property
    def learns_from_data(self) -> bool:
        """Whether there is a discriminator, which data trains (`adversarial.Adversarial.discriminator_loss`)."""
        return False

    def check(self, context: MatchingContext) -> None:
        """Say before the first step what the context lacks.

        Raises:
            TeacherError: it lacks something.
        """
        for part, (what, hint) in NEEDS.items():
            given = getattr(context, part)
            lacking = given is None or (isinstance(given, Sequence) and not given)
            if getattr(self, f"needs_{part}") and lacking:
                raise TeacherError(f"{self.name} needs {what}.", hint)

    def check_sample(self, x: Tensor, context: MatchingContext) -> None:
        """Say what is wrong with the shape of x.

        Raises:
            TeacherError: x is neither a batch of images nor of clips, or chunks are asked of images.
        """
        if x.ndim not in (4, 5) or 0 in x.shape:
            raise TeacherError(f"A student's samples are [B, C, h, w] or [B, C, F, h, w], not {tuple(x.shape)}.")
        if context.chunk < 0 or (context.chunk and x.ndim != 5):
            raise TeacherError(f"Chunks of {context.chunk} frames don't fit samples of {tuple(x.shape)}.", "Use 0.")
        if context.data is not None and context.data.shape != x.shape:
            raise TeacherError(f"The data has shape {tuple(context.data.shape)} for samples of {tuple(x.shape)}.")

    def scale(self, x: Tensor, context: MatchingContext) -> float | Tensor:
        """The guidance scale w of this step: a number, or one a group."""
        return self.guidance.at(context.progress, context.total)

    def level_range(self, x: Tensor, context: MatchingContext) -> tuple[float | Tensor, float | Tensor]:
        """Smallest and largest level that x is judged at, numbers or one a group."""
        return self.t_min, self.t_max

    def critic_range(self, x: Tensor, context: MatchingContext) -> tuple[float | Tensor, float | Tensor]:
        """Smallest and largest level that the critic is trained at, numbers or one a group."""
        return self.critic_t_min, self.critic_t_max

    def draw(self, x: Tensor, context: MatchingContext, low: float | Tensor, high: float | Tensor) -> Tensor:
        """Levels in a range, [B] or [B, F], see `draw_levels`."""
        return draw_levels(x, context, low, high, self.shift, self.shared_level)

    def diffuse(self, x: Tensor, levels: Tensor, context: MatchingContext) -> tuple[Tensor, Tensor]:
        """x_t = alpha x + sigma e, and the clean sample that a critic should see in it, both shaped like x."""
        alpha, sigma = coefficients(context.schedule, levels, x)
        return alpha * x + sigma * context.noise_like(x), x

    def scores(self, x_t: Tensor, levels: Tensor, context: MatchingContext, scale: float | Tensor) -> Scores:
        """R, U, R_w and F at x_t, in its dtype, finite; without gradients if the caller says so.

        Args:
            x_t: noisy samples.
            levels: theirs, [B] or [B, F].
            context: teacher and critic.
            scale: w, a number or one a group.

        Raises:
            TrainingError: a prediction that is not finite.
        """
        assert context.critic is not None  # `check` has seen to it
        guided = isinstance(scale, Tensor) or scale != 1
        w = spread(scale, x_t) if isinstance(scale, Tensor) else scale

        def ask(denoiser: Denoiser, with_empty: bool) -> tuple[Tensor, Tensor | None]:
            if not with_empty:
                return denoiser.predict(x_t, levels).to(x_t.dtype), None
            full, empty = denoiser.pair(x_t, levels)
            return full.to(x_t.dtype), empty.to(x_t.dtype)

        real, empty = ask(context.teacher, guided)
        fake, fake_empty = ask(context.critic, guided and self.critic_guided)
        real_w = real if empty is None else guide(real, empty, w)
        fake_w = fake if fake_empty is None else guide(fake, fake_empty, w)
        require_finite(
            self.name, context.step, {"teacher's prediction": real_w.detach(), "critic's prediction": fake_w.detach()}
        )
        return Scores(real, empty, real_w, fake_w)

    def critic_loss(self, x: Tensor, context: MatchingContext, weights: Tensor | None = None) -> Tensor:
        """What the critic minimises on samples x that the student makes now: w(t) ||F(x_t, t) - x||^2, a number.

        Its minimum is F = E[x | x_t], whatever w. The gradient goes to the critic only.

        Args:
            x: clean samples [B, C, h, w] or clips [B, C, F, h, w]; detached here.
            context: critic, schedule, generator.
            weights: of each sample [B] or frame [B, F], >= 0; 0 leaves it out.

        Raises:
            TeacherError: no critic, or shapes that don't fit.
            TrainingError: an error that is not finite.
        """
        self.check(context)
        self.check_sample(x, context)
        if context.critic is None:
            raise TeacherError(f"{self.name} has no critic to train.", "Give one, or train none.")
        clean = working(x)
        with torch.no_grad():
            levels = self.draw(clean, context, *self.critic_range(clean, context))
            x_t, truth = self.diffuse(clean, levels, context)
            weight = self.critic_weight(clean, levels, context)
            if weights is not None:
                weight = weight * as_groups(weights, clean, context.chunk, "weights")
        error = (context.critic.predict(x_t, levels).to(clean.dtype) - truth).square()
        loss = (spread(weight, clean) * error).mean()
        require_finite(self.name, context.step, {"critic's loss": loss.detach()})
        return loss

    def critic_weight(self, x: Tensor, levels: Tensor, context: MatchingContext) -> Tensor:
        """The w(t) on ||F - x||^2 that `critic_weighting` stands for, [B] or [B, F].

        Given x_t, an error of x0 is one of eps times -alpha / sigma, of the flow times -(alpha + sigma) / sigma and of
        v times -(alpha^2 + sigma^2) / sigma.
        """
        alpha, sigma = context.schedule.alpha(levels), context.schedule.sigma(levels).clamp_min(FLOOR)
        if self.critic_weighting == "min_snr":
            return context.schedule.snr(levels).clamp_max(SNR_LIMIT)
        factor = {
            "eps": alpha,
            "flow": alpha + sigma,
            "v": alpha.square() + sigma.square(),
            "x0": sigma,
        }[self.critic_weighting]
        return (factor / sigma).square()


@dataclass(frozen=True)
class GradientMatching(Matching):
    """An objective that is a gradient on what the student made; a subclass says which."""

    needs_critic: ClassVar[bool] = True

    @abstractmethod
    def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
        """The gradient on samples x (detached; float32 or float64), before the division by the number of samples."""

    def __call__(self, x: Tensor, context: MatchingContext) -> StudentLoss:
        """The loss whose gradient on x [B, C, (F,) h, w] is `gradient` / B.

        Raises:
            TeacherError: the context lacks something, or shapes don't fit.
            TrainingError: a term is not finite.
        """
        self.check(context)
        self.check_sample(x, context)
        direction = self.gradient(working(x), context)
        require_finite(self.name, context.step, {"gradient": direction.grad})
        diagnostics = {"grad_rms": float(direction.grad.square().mean().sqrt()), **direction.diagnostics}
        # In the precision of the gradient: half precision can't hold the sum of a sample's squares.
        loss = surrogate_loss(x.to(direction.grad.dtype), direction.grad)
        return StudentLoss(loss, direction.grad.to(x.dtype), direction.target.to(x.dtype), diagnostics)
