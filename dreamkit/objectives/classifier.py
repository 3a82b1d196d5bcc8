"""The implicit classifier alone: CSD, and CSM, which takes the random noise out of it."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.inversion import implied_noise, invert
from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, require
from dreamkit.objectives.registry import register


@register("csd")
@dataclass(frozen=True)
class ClassifierScoreDistillation(Distillation):
    """CSD (Yu et al., "Text-to-3D with Classifier Score Distillation", arXiv 2310.19415).

        g = w(t) s (E(y) - [(1 - r) E(0) + r E(n)])

    The generative part E(0) - e of SDS is dropped. r anneals from 0 to 1 where there is a negative prompt. s is a plain
    factor: 1 in the paper, whose scale sits in the learning rate.
    """

    guidance: Schedule = field(default_factory=lambda: Schedule.constant(1.0))
    """The factor s over the run, >= 0."""
    negative_share: Schedule = field(default_factory=lambda: Schedule(0.0, 0.0, 1.0, 1.0))
    """r over the run, 0 to 1; without a negative prompt it changes nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (self.negative_share.start_value, self.negative_share.end_value):
            require(0 <= value <= 1, "negative_share", value, "0 to 1")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """S E(y) and s times the interpolated E(0) and E(n)."""
        return self.classify(context.teacher.schedule.add_noise(x, context.noise_like(x), t), t, context)

    def classify(self, x_t: Tensor, t: Tensor, context: ObjectiveContext, reference: Tensor | None = None) -> Terms:
        """The classifier's two sides at x_t; E(y) also looks at a noisy reference image where there is one."""
        answer = self.ask(x_t, t, context, scale=1.0, with_null=True, reference=reference)
        share = self.negative_share.at(context.progress, context.total)
        null = answer.negative if answer.null is None else answer.null
        against = (1 - share) * null.eps + share * answer.negative.eps
        scale = self.scale(context)
        # guided is E(y) at scale 1, with whatever rescaling or repulsion the run asks for.
        return Terms(scale * answer.guided.eps, scale * against, answer.guided.x0, t)


@register("csm")
@dataclass(frozen=True)
class ClassifierScoreMatching(ClassifierScoreDistillation):
    """CSM (Yang et al., "TV-3DG: Mastering Text-to-3D Customized Generation with Visual Prompt", arXiv 2410.21299).

        x_t by DDIM inversion of x with the empty prompt
        g = w(t) s (E(y) - E(0))

    SDS is (s - 1)(E(y) - E(0)) + (E(y) - e): CSM drops the difference term and replaces the random noise by the
    inversion's. With a reference image E(y) attends to it too, noised by what the inversion found (the visual prompt).
    """

    reads_reference: ClassVar[bool] = True
    stride: float = 0.2
    """Longest step of the inversion in t, above 0, at most 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.stride <= 1, "stride", self.stride, "a number above 0, at most 1")

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """The classifier's two sides at the inverted x_t."""
        teacher = context.teacher
        x_t = invert(teacher, x, t, context.null, camera=context.camera, stride=self.stride).x_t
        reference = None
        if context.reference is not None:
            noise = implied_noise(teacher, x, x_t, t)
            reference = teacher.schedule.add_noise(context.reference.to(x).expand_as(x), noise, t)
        return self.classify(x_t, t, context, reference)
