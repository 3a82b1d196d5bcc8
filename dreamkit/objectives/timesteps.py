"""Which noise levels a run visits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from dreamkit.config import Schedule
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from dreamkit.objectives.base import ObjectiveContext

Order = Literal["level", "dreamtime"]


@dataclass(frozen=True)
class TimestepSchedule:
    """Which noise levels a run visits.

    At progress p in [0, 1] the level is drawn from U[t(p) - jitter(p), t(p) + jitter(p)], clipped to [t_min, t_max],
    with t(p) falling along `level` or, for `order="dreamtime"`, as DreamTime has it (see `dreamtime_level`). A constant
    `level` of 0.5 with jitter 0.48 is the classic U[0.02, 0.98]; `NAMED` has this and the other usual ones. What is
    drawn may be moved to the nearest of a few `levels`: a student of few steps knows no others.
    """

    level: Schedule = field(default_factory=lambda: Schedule(0.0, 0.98, 0.08, 1.0))
    """Centre of the noise level t over the run."""
    jitter: Schedule = field(default_factory=lambda: Schedule.constant(0.02))
    """Half width of the range that a step draws from, over the run."""
    t_min: float = 0.02
    """Smallest noise level that is drawn."""
    t_max: float = 0.98
    """Largest noise level that is drawn."""
    order: Order = "level"
    """What sets the centre: level, or dreamtime."""
    levels: tuple[float, ...] = ()
    """The only noise levels to ask at, each in (0, 1): the nearest to what is drawn; none for any. Further levels that
    an objective derives from this one (cds, ism, tsm, asd, csm, sdi) are not moved."""

    def __post_init__(self) -> None:
        numbers = all(isinstance(value, int | float) for value in (self.t_min, self.t_max))
        if not (numbers and 0 < self.t_min <= self.t_max < 1):
            raise ConfigError(f"Noise levels from {self.t_min} to {self.t_max} make no range inside (0, 1).",
                              "Use 0 < t_min <= t_max < 1.")  # fmt: skip
        for value in (self.jitter.start_value, self.jitter.end_value):
            if not 0 <= value <= 1:
                raise ConfigError(f"A jitter of {value} is not in [0, 1].", "Use 0.02, or 0 for none.")
        if self.order not in get_args(Order):
            raise ConfigError(f"The order {self.order!r} of noise levels is not known.", "Use level or dreamtime.")
        if not (isinstance(self.levels, tuple) and all(map(_is_level, self.levels))):
            raise ConfigError(f"levels is {self.levels!r}.", "Use a list of numbers in (0, 1), or [] for any level.")

    @classmethod
    def parse(cls, value: TimestepSchedule | str | Mapping[str, Any]) -> TimestepSchedule:
        """A schedule from a name in `NAMED` or a mapping of fields.

        Raises:
            ConfigError: neither, or values that make no schedule.
        """
        if isinstance(value, TimestepSchedule):
            return value
        if isinstance(value, str):
            if value not in NAMED:
                raise ConfigError(f"The timestep schedule {value!r} is not known.", f"Known: {', '.join(NAMED)}.")
            return NAMED[value]
        if not isinstance(value, Mapping) or not set(value) <= set(cls.__dataclass_fields__):
            raise ConfigError(
                f"{value!r} makes no timestep schedule.",
                f"Use a name ({', '.join(NAMED)}) or the fields {', '.join(cls.__dataclass_fields__)}.",
            )
        schedules = {name: Schedule.parse(value[name]) for name in ("level", "jitter") if name in value}
        levels = value.get("levels", ())
        return cls(**{**value, **schedules, "levels": tuple(levels) if isinstance(levels, list) else levels})

    def sample(self, count: int, context: ObjectiveContext) -> Tensor:
        """Noise levels of one step, [count] float64 on the teacher's device, stratified over the batch.

        With `levels` they are the nearest ones, the first listed of two that are as near.
        """
        strata = (torch.arange(count) + torch.rand(count, generator=context.generator, dtype=torch.float64)) / count
        order = torch.randperm(count, generator=context.generator)
        if self.order == "dreamtime":
            centre = dreamtime_level(context.teacher.schedule, context.progress, self.t_min, self.t_max)
        else:
            centre = self.level.at(context.progress, context.total)
        t = centre + self.jitter.at(context.progress, context.total) * (2 * strata[order] - 1)
        t = t.clamp(self.t_min, self.t_max)
        if self.levels:
            known = torch.tensor(self.levels, dtype=torch.float64)
            t = known[(t[:, None] - known).abs().argmin(dim=1)]
        return t.to(context.teacher.device)


def _is_level(value: object) -> bool:
    """Whether a value is a noise level between no noise and nothing else."""
    return isinstance(value, int | float) and 0 < value < 1


def dreamtime_level(schedule: NoiseSchedule, progress: float, t_min: float, t_max: float) -> float:
    """The level that DreamTime visits at a point of the run.

    t falls so that the time spent near t is proportional to

        W(t) = (sigma / alpha) * (exp(-(t - 0.8)^2 / (2 0.3^2)) above 0.8, 1 between,
                                  exp(-(t - 0.5)^2 / (2 0.1^2)) below 0.5)

    (Huang et al., "DreamTime", arXiv 2306.12422, with its m1, m2, s1, s2 = 800, 500, 300, 100 of 1000).

    Args:
        schedule: alpha(t) and sigma(t).
        progress: share of the run that is done, 0 to 1.
        t_min: last level.
        t_max: first level.
    """
    t = torch.linspace(t_max, t_min, 1001, dtype=torch.float64)
    spread = torch.where(t > 0.8, 0.3, 0.1)
    distance = torch.where(t > 0.8, t - 0.8, torch.where(t < 0.5, t - 0.5, torch.zeros_like(t)))
    time_spent = schedule.sigma_ratio(t) * torch.exp(-distance.square() / (2 * spread.square()))
    done = time_spent.cumsum(0) / time_spent.sum()
    return float(t[min(int(torch.searchsorted(done, progress)), len(t) - 1)])


NAMED: dict[str, TimestepSchedule] = {
    "uniform": TimestepSchedule(Schedule.constant(0.5), Schedule.constant(0.48)),
    "linear": TimestepSchedule(Schedule(0.0, 0.98, 0.02, 1.0), Schedule.constant(0.0)),
    "sqrt": TimestepSchedule(Schedule(0.0, 0.98, 0.02, 1.0, "sqrt"), Schedule.constant(0.0)),
    "two_phase": TimestepSchedule(Schedule(0.2, 0.50, 0.26, 1.0, "step"), Schedule(0.2, 0.48, 0.24, 1.0, "step")),
    "dreamtime": TimestepSchedule(jitter=Schedule.constant(0.0), order="dreamtime"),
}
"""DreamFusion's, dreamgaussian's, HiFA's, ProlificDreamer's (up to 0.98, after a fifth of the run up to 0.5) and
DreamTime's noise levels."""
