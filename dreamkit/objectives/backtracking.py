"""Distribution matching along a path: the teacher is stepped back to where the student starts, and comes forward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from dreamkit.objectives.base import require
from dreamkit.objectives.dmd import DistributionMatching
from dreamkit.objectives.matching import Denoiser, Direction, MatchingContext
from dreamkit.objectives.registry import register_student


@register_student("disback")
@dataclass(frozen=True)
class DistributionBacktracking(DistributionMatching):
    """DisBack (Zhang et al., "Distribution Backtracking Builds A Faster Convergence Trajectory", arXiv 2408.15991).

        g = DMD's with R_w of the teacher's copy on a path, then of the teacher itself

    The path is recorded first: a copy of the teacher learns what the untrained student makes, and is kept now and then
    on its way down. The student goes the way back: in the first `way_back` of the run it meets the copies in turn, the
    most degraded one first, and the teacher after that.
    """

    needs_path: ClassVar[bool] = True
    way_back: float = 0.5
    """Share of the run in which the copies are met, each for as long; 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.way_back <= 1, "way_back", self.way_back, "0 to 1; 0 is DMD")

    def teacher_at(self, context: MatchingContext) -> tuple[Denoiser, int]:
        """Who teaches at this point of the run, and how many steps back from the teacher that is."""
        count = len(context.path)
        if context.progress >= self.way_back:
            return context.teacher, 0
        back = count - int(context.progress / self.way_back * count)
        return context.path[back - 1], back

    def gradient(self, x: Tensor, context: MatchingContext) -> Direction:
        """DMD's, under the teacher of the hour."""
        teacher, back = self.teacher_at(context)
        direction = super().gradient(x, replace(context, teacher=teacher))
        return replace(direction, diagnostics={**direction.diagnostics, "steps_back": float(back)})
