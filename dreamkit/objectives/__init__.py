"""Score-distillation objectives: pure mathematics, one family a file, found by name."""

from dreamkit.objectives import sds
from dreamkit.objectives.base import (
    Gradient,
    Objective,
    ObjectiveContext,
    TimestepSchedule,
    objective_class,
    objective_names,
    register,
    surrogate_loss,
)

__all__ = [
    "Gradient",
    "Objective",
    "ObjectiveContext",
    "TimestepSchedule",
    "objective_class",
    "objective_names",
    "register",
    "sds",
    "surrogate_loss",
]
