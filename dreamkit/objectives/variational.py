"""A trained critic as the reference: VSD, and ESD, which keeps the views different."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dreamkit.diffusion.schedule import Prediction
from dreamkit.diffusion.teacher import Query
from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, require
from dreamkit.objectives.registry import register
from dreamkit.objectives.timesteps import NAMED, TimestepSchedule


@register("vsd")
@dataclass(frozen=True)
class VariationalScoreDistillation(Distillation):
    """VSD (Wang et al., "ProlificDreamer", arXiv 2305.16213).

        g = w(t) (D(s) - E_phi(x_t, t, y, camera))

    E_phi, the critic, is trained meanwhile on what the generator renders: g is the gradient of KL(q || p), where SDS
    has that of a single sample.
    """

    needs_critic: ClassVar[bool] = True
    timesteps: TimestepSchedule = field(default_factory=lambda: NAMED["two_phase"])
    """Noise levels over the run: a name (uniform, linear, sqrt, two_phase, dreamtime) or the fields."""

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) and the critic's noise."""
        x_t = context.teacher.schedule.add_noise(x, context.noise_like(x), t)
        guided = self.ask(x_t, t, context).guided
        return Terms(guided.eps, self.reference(x_t, t, context), guided.x0, t)

    def reference(self, x_t: Tensor, t: Tensor, context: ObjectiveContext) -> Tensor:
        """What the critic, who knows where each view was taken from, predicts."""
        return ask_critic(context, [Query(x_t, t, context.positive, context.pose)])[0].eps


@register("esd")
@dataclass(frozen=True)
class EntropicScoreDistillation(VariationalScoreDistillation):
    """ESD (Wang et al., "Taming Mode Collapse in Score Distillation for Text-to-3D Generation", arXiv 2401.00909).

        g = w(t) (D(s) - [lambda E_phi(x_t) + (1 - lambda) E_phi(x_t, camera)])

    E_phi without the camera is the score of all views together; following it away keeps their entropy up, so that not
    every view shows the same face. lambda = 0 is VSD, lambda = 1 pure entropy. The critic must have been trained
    without the camera some of the time.
    """

    lambda_: float = 0.5
    """Weight of the entropy over views, 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.lambda_ <= 1, "lambda", self.lambda_, "0 to 1; 0 is VSD")

    def reference(self, x_t: Tensor, t: Tensor, context: ObjectiveContext) -> Tensor:
        """What the critic predicts, not knowing (lambda) and knowing (1 - lambda) the camera."""
        queries = [Query(x_t, t, context.positive), Query(x_t, t, context.positive, context.pose)]
        without, with_camera = ask_critic(context, queries)
        return self.lambda_ * without.eps + (1 - self.lambda_) * with_camera.eps


def ask_critic(context: ObjectiveContext, queries: list[Query]) -> list[Prediction]:
    """The critic's predictions, in one forward pass."""
    assert context.critic is not None  # `check` has seen to it
    return context.critic.predict_all(queries)
