"""What an objective is: (x, context) -> gradient on x; and the form that all methods share.

Every score-distillation method moves a clean sample x by

    g = w(t) * (target - reference)

where the target is the teacher's guided prediction at x_t and the reference is what the method subtracts: the noise
itself (SDS), a critic (VSD), the teacher at another time (CDS, ISM) or for another prompt (CSD, DDS). So a method is a
`Distillation` whose `terms` returns the two; weights, clipping and the image-space term are the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.critic import Critic
from dreamkit.diffusion.guidance import GuidedPrediction, Repulsion
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.teacher import Query, Teacher
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.objectives.timesteps import NAMED, TimestepSchedule

Weighting = Literal["sigma_squared", "uniform", "sigma_ratio", "alpha"]


@dataclass(frozen=True)
class Source:
    """What an edit starts from.

    Args:
        x: the unedited scene seen by the same cameras, [B, C, h, w].
        condition: the prompts that describe it, B rows or 1.
    """

    x: Tensor
    condition: Condition


@dataclass(frozen=True)
class ObjectiveContext:
    """What an objective may know besides x.

    Args:
        teacher: the frozen diffusion model.
        positive: the prompts, B rows.
        negative: the negative prompts, B rows or 1; `null` itself where there are none.
        null: the empty prompt, 1 row.
        camera: poses [B, 12] for the teacher, or `None` for a teacher that takes none.
        step: steps done, >= 0.
        total: steps of the run, >= 1.
        generator: source of randomness of this step, on the CPU.
        pose: poses [B, 12] for the critic, whether or not the teacher gets them.
        critic: the trainable score of what the generator makes now.
        source: what an edit starts from.
        reference: an image (as x) that the result should resemble, [1, C, h, w] or [B, C, h, w].
        repulsion: views that guidance pushes away from (Perp-Neg).
        seed: seed of the run, for what is drawn once and kept.
    """

    teacher: Teacher
    positive: Condition
    negative: Condition
    null: Condition
    camera: Tensor | None
    step: int
    total: int
    generator: torch.Generator
    pose: Tensor | None = None
    critic: Critic | None = None
    source: Source | None = None
    reference: Tensor | None = None
    repulsion: Repulsion | None = None
    seed: int = 0

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.total

    def noise_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of the shape of x, drawn on the CPU so that a seed means one thing everywhere."""
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)

    def kept_noise(self, x: Tensor) -> Tensor:
        """One standard normal noise for the whole run, the same for every view: [1, C, h, w]."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(1, *x.shape[1:], generator=generator, dtype=x.dtype).to(x.device)


@dataclass(frozen=True)
class Gradient:
    """What an objective returns.

    Args:
        grad: dL/dx before the division by the batch size, [B, C, h, w], detached.
        target: the clean sample the teacher would rather see, [B, C, h, w], for showing.
        diagnostics: numbers for the log.
        image_pull: weight of the image-space term, 0 for none: the loop adds
            image_pull / 2 ||image - decode(target)||^2 to the loss.
    """

    grad: Tensor
    target: Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)
    image_pull: float = 0.0


def surrogate_loss(x: Tensor, grad: Tensor) -> Tensor:
    """A loss whose gradient is the given one: L = 1/2 sum ||x - sg(x - g)||^2 / B, so dL/dx = g / B.

    Args:
        x: [B, ...], with a graph.
        grad: [B, ...], detached.
    """
    return 0.5 * (x - (x - grad).detach()).square().sum() / x.shape[0]


def weight(schedule: NoiseSchedule, t: Tensor, kind: Weighting, like: Tensor) -> Tensor:
    """w(t) on a difference of noise predictions, [B, 1, 1, 1] in the dtype of `like`.

    Args:
        schedule: alpha(t) and sigma(t).
        t: [B] in [0, 1].
        kind: `sigma_squared`: sigma^2 (DreamFusion); `uniform`: 1 (SJC); `alpha`: alpha (PlacidDreamer);
            `sigma_ratio`: sigma / alpha, which makes the gradient of SDS x - x0(x_t), the step to the teacher's clean
            image, whatever the noise level.
        like: x.

    Raises:
        ConfigError: another kind.
    """
    if kind == "sigma_squared":
        w = schedule.sigma(t).square()
    elif kind == "sigma_ratio":
        w = schedule.sigma_ratio(t)
    elif kind == "alpha":
        w = schedule.alpha(t)
    elif kind == "uniform":
        w = torch.ones_like(t)
    else:
        raise ConfigError(f"The weighting {kind!r} is not known.", f"Use one of {', '.join(get_args(Weighting))}.")
    return w.to(like)[:, None, None, None]


def clip_pixels(grad: Tensor, limit: float) -> Tensor:
    """Shorten each pixel's gradient to a norm of at most `limit`, over channels: [B, C, h, w].

    g min(1, limit / ||g||) (Pan et al., "Enhancing High-Resolution 3D Generation through Pixel-wise Gradient
    Clipping", arXiv 2310.12474).
    """
    norm = grad.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return grad * (limit / norm).clamp_max(1.0)


class Objective(ABC):
    """A score-distillation method: pure mathematics on x, knowing no scene, optimiser or file."""

    name: ClassVar[str]
    needs_critic: ClassVar[bool] = False
    """Whether `context.critic` is used."""
    needs_source: ClassVar[bool] = False
    """Whether `context.source` is used."""
    reads_reference: ClassVar[bool] = False
    """Whether `context.reference` is used."""

    @abstractmethod
    def __call__(self, x: Tensor, context: ObjectiveContext) -> Gradient:
        """The gradient that moves clean samples x [B, C, h, w] the way the teacher wants."""

    def check(self, context: ObjectiveContext) -> None:
        """Say before the first step what the context lacks.

        Raises:
            TeacherError: no critic or source for a method that needs one, a reference for one that reads none.
        """
        if self.needs_critic and context.critic is None:
            raise TeacherError(f"{self.name} needs a critic.", "Give one: lora or copy.")
        if self.needs_source and context.source is None:
            raise TeacherError(f"{self.name} edits: it needs a source.", "Give the scene to start from and its prompt.")
        if context.reference is not None and not self.reads_reference:
            raise TeacherError(f"{self.name} reads no reference image.", "Use csm, or give no image.")


@dataclass(frozen=True)
class Terms:
    """The two sides of a method's difference, as noise predictions.

    Args:
        target: [B, C, h, w].
        reference: [B, C, h, w].
        x0: the clean sample that the teacher sees in x_t, [B, C, h, w].
        t: the level whose weight counts, [B].
        diagnostics: numbers for the log.
    """

    target: Tensor
    reference: Tensor
    x0: Tensor
    t: Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Distillation(Objective):
    """A method of the form g = w(t) (target - reference); a subclass says what the two are."""

    guidance: Schedule = field(default_factory=lambda: Schedule.constant(7.5))
    """Guidance scale s of E(n) + s (E(y) - E(n)) over the run, >= 0."""
    timesteps: TimestepSchedule = field(default_factory=lambda: NAMED["uniform"])
    """Noise levels over the run: a name (uniform, linear, sqrt, two_phase, dreamtime) or the fields."""
    weighting: Weighting = "sigma_squared"
    """w(t): sigma_squared, uniform, sigma_ratio or alpha."""
    rescale: float = 0.0
    """Strength of guidance rescaling in [0, 1]; 0 is none."""
    pixel_clip: float = 0.0
    """Largest norm of a pixel's gradient over its channels; 0 for no limit."""
    image_term: float = 0.0
    """Weight of HiFA's image-space term ||image - decode(x0)||^2 / 2 (arXiv 2305.18766); 0 is none."""

    def __post_init__(self) -> None:
        if self.weighting not in get_args(Weighting):
            raise ConfigError(
                f"The weighting {self.weighting!r} is not known.", f"Use one of {', '.join(get_args(Weighting))}."
            )
        for value in (self.guidance.start_value, self.guidance.end_value):
            require(value >= 0, "guidance scale", value, "a number >= 0; 1 is no guidance")
        require(0 <= self.rescale <= 1, "guidance rescaling", self.rescale, "0 to 1; 0 is none")
        require(0 <= self.pixel_clip < float("inf"), "pixel_clip", self.pixel_clip, "a number >= 0; 0 is no limit")
        require(0 <= self.image_term < float("inf"), "image_term", self.image_term, "a number >= 0; 0 is none")

    @abstractmethod
    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """Target and reference for clean samples x [B, C, h, w] (detached) at levels t [B]."""

    def __call__(self, x: Tensor, context: ObjectiveContext) -> Gradient:
        """The gradient w(t) (target - reference) on clean samples x [B, C, h, w]."""
        self.check(context)
        clean = x.detach()
        terms = self.terms(clean, self.timesteps.sample(len(clean), context), context)
        grad = weight(context.teacher.schedule, terms.t, self.weighting, clean) * (terms.target - terms.reference)
        if self.pixel_clip:
            grad = clip_pixels(grad, self.pixel_clip)
        diagnostics = {
            "t": float(terms.t.mean()),
            "guidance": self.scale(context),
            "grad_rms": float(torch.sqrt(grad.square().mean())),
            **terms.diagnostics,
        }
        return Gradient(grad.to(clean.dtype), terms.x0.to(clean.dtype), diagnostics, self.image_term)

    def scale(self, context: ObjectiveContext) -> float:
        """The guidance scale of this step."""
        return self.guidance.at(context.progress, context.total)

    def ask(
        self,
        x_t: Tensor,
        t: Tensor,
        context: ObjectiveContext,
        scale: float | None = None,
        with_null: bool = False,
        reference: Tensor | None = None,
        also: Sequence[Query] = (),
    ) -> GuidedPrediction:
        """The teacher's guided prediction at x_t, with E(y), E(n) and more from the same forward pass.

        Args:
            x_t: noisy samples, [B, C, h, w].
            t: their level, [B].
            context: prompts and cameras.
            scale: guidance, the schedule's value by default.
            with_null: whether E(0) is wanted too; free where there is no negative prompt.
            reference: noisy reference image for E(y), [B, C, h, w].
            also: further questions.
        """
        return context.teacher.predict_guided(
            *(x_t, t, context.positive, context.negative, self.scale(context) if scale is None else scale),
            camera=context.camera,
            null=context.null if with_null else None,
            rescale=self.rescale,
            reference=reference,
            repulsion=context.repulsion,
            also=also,
        )


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Check an option.

    Raises:
        ConfigError: the condition does not hold (NaN never does).
    """
    if not holds:
        raise ConfigError(f"The objective's {name} is {value}.", f"Use {wanted}.")
