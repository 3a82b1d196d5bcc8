"""Small value types that configurations are made of. A schedule is data, so that a preset can carry one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dreamkit.errors import ConfigError

Curve = Literal["linear", "exponential", "sqrt", "step"]

_FORMS = (
    "a number, or [start_step, start_value, end_value, end_step] with a curve as an optional fifth "
    "(linear, exponential, sqrt or step)"
)


@dataclass(frozen=True)
class Schedule:
    """A number that changes over a run, in the form threestudio made usual: [start_step, v0, v1, end_step].

    With p = clip((step - start_step) / (end_step - start_step), 0, 1) the value is

        linear       v0 + p (v1 - v0)
        exponential  v0 (v1 / v0)^p      (v0, v1 > 0)
        sqrt         v0 + sqrt(p) (v1 - v0)
        step         v0 up to start_step, v1 after it

    Bounds are steps; when `end_step` is at most 1 both are fractions of the run instead, so that a preset
    keeps its meaning when the number of steps changes. A constant has v0 = v1.

    Raises:
        ConfigError: a value that is not finite, bounds out of order, or an exponential through zero.
    """

    start_step: float = 0.0
    """Where the value starts to move: a step, or a fraction of the run when end_step is at most 1."""
    start_value: float = 0.0
    """The value up to there."""
    end_value: float = 0.0
    """The value from end_step on."""
    end_step: float = 1.0
    """Where the value stops to move: a step, or a fraction of the run when at most 1."""
    curve: Curve = "linear"
    """How it moves in between: linear, exponential, sqrt or step."""

    def __post_init__(self) -> None:
        numbers = (self.start_step, self.start_value, self.end_value, self.end_step)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in numbers):
            raise ConfigError(f"A schedule of {numbers} is not made of numbers.", f"Use {_FORMS}.")
        if not all(math.isfinite(v) for v in numbers):
            raise ConfigError(f"A schedule of {numbers} is not finite.", f"Use {_FORMS}.")
        if not 0 <= self.start_step < self.end_step:
            raise ConfigError(
                f"A schedule from step {self.start_step} to {self.end_step} runs backward.",
                "Use 0 <= start_step < end_step.",
            )
        if self.curve not in get_args(Curve):
            raise ConfigError(f"The curve {self.curve!r} is not known.", f"Use one of {', '.join(get_args(Curve))}.")
        if self.curve == "exponential" and min(self.start_value, self.end_value) <= 0:
            raise ConfigError(
                f"An exponential schedule from {self.start_value} to {self.end_value} goes through zero.",
                "Use positive values, or the linear curve.",
            )

    @classmethod
    def constant(cls, value: float) -> Schedule:
        """A value that does not change."""
        return cls(0.0, value, value, 1.0)

    @classmethod
    def parse(cls, value: Schedule | float | str | Sequence[Any] | Mapping[str, Any]) -> Schedule:
        """A schedule from any form that a file or a command line gives it in.

        Args:
            value: a schedule; a number (constant); [start_step, v0, v1, end_step] with an optional curve; the
                same as text ("0, 1e-2, 1e-3, 300"); or a mapping of the field names.

        Returns:
            The schedule.

        Raises:
            ConfigError: none of these forms, or values that don't make a schedule.
        """
        if isinstance(value, Schedule):
            return value
        if isinstance(value, Mapping):
            try:
                return cls(**value)
            except TypeError:
                raise ConfigError(f"A schedule has no such fields: {sorted(value)}.", f"Use {_FORMS}.") from None
        if isinstance(value, str):
            parts: list[Any] = [part.strip() for part in value.strip().strip("[]()").split(",")]
            value = parts if len(parts) > 1 else parts[0]
        items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if len(items) == 1:
            return cls.constant(_number(items[0]))
        if len(items) not in (4, 5):
            raise ConfigError(f"A schedule of {len(items)} values ({value}) is not known.", f"Use {_FORMS}.")
        start_step, start_value, end_value, end_step = (_number(item) for item in items[:4])
        curve = str(items[4]).strip("'\" ") if len(items) == 5 else "linear"
        return cls(start_step, start_value, end_value, end_step, curve)  # type: ignore[arg-type]

    @property
    def is_fractional(self) -> bool:
        """Whether the bounds are fractions of the run rather than steps."""
        return self.end_step <= 1

    def at(self, progress: float, total_steps: int | None = None) -> float:
        """The value at a point of the run.

        Args:
            progress: how much of the run is done, 0 to 1 (step / total_steps).
            total_steps: the length of the run; only a schedule in steps needs it.

        Returns:
            The value.

        Raises:
            ConfigError: the bounds are steps and the length of the run is not given.
        """
        if self.start_value == self.end_value:
            return self.start_value
        position = progress
        if not self.is_fractional:
            if total_steps is None:
                raise ConfigError(
                    f"The schedule {self.data()} is in steps, and the length of the run is not known here.",
                    "Use fractions of the run (end_step at most 1).",
                )
            position = progress * total_steps
        p = min(max((position - self.start_step) / (self.end_step - self.start_step), 0.0), 1.0)
        if self.curve == "exponential":
            return self.start_value * (self.end_value / self.start_value) ** p
        if self.curve == "sqrt":
            p = math.sqrt(p)
        elif self.curve == "step":
            p = float(p > 0)
        return self.start_value + p * (self.end_value - self.start_value)

    def data(self) -> float | list[float | str]:
        """The shortest plain form, for YAML and JSON; `parse` takes it back to an equal schedule."""
        if self == Schedule.constant(self.start_value):
            return self.start_value
        numbers: list[float | str] = [self.start_step, self.start_value, self.end_value, self.end_step]
        return numbers if self.curve == "linear" else [*numbers, self.curve]


def _number(value: Any) -> float:
    """`value` as a float, or one clear error."""
    if isinstance(value, bool):
        raise ConfigError(f"{value!r} is no number for a schedule.", f"Use {_FORMS}.")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{value!r} is no number for a schedule.", f"Use {_FORMS}.") from None
