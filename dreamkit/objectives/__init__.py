"""Score-distillation objectives: pure mathematics, one family a file, found by name."""

from dreamkit.objectives import balanced, classifier, editing, sdi, sds, trajectory, variational
from dreamkit.objectives.base import (
    Distillation,
    Gradient,
    Objective,
    ObjectiveContext,
    Source,
    Terms,
    surrogate_loss,
)
from dreamkit.objectives.registry import objective_class, objective_names, register
from dreamkit.objectives.timesteps import TimestepSchedule

__all__ = [
    "Distillation",
    "Gradient",
    "Objective",
    "ObjectiveContext",
    "Source",
    "Terms",
    "TimestepSchedule",
    "balanced",
    "classifier",
    "editing",
    "objective_class",
    "objective_names",
    "register",
    "sdi",
    "sds",
    "surrogate_loss",
    "trajectory",
    "variational",
]
