"""Another sample, for another prompt, as the reference: DDS."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.guidance import Repulsion
from dreamkit.objectives.base import Distillation, ObjectiveContext, Terms, Weighting
from dreamkit.objectives.registry import register


@register("dds")
@dataclass(frozen=True)
class DeltaDenoisingScore(Distillation):
    """DDS (Hertz et al., "Delta Denoising Score", arXiv 2304.07090; for scenes: ED-NeRF, arXiv 2310.02712).

        g = w(t) (D(s)(x_t, y) - D(s)(x'_t, y'))        t and e shared

    x' is the source seen by the same camera and y' its prompt. What SDS would do to the source itself is subtracted,
    so that only the difference between the prompts moves x.
    """

    needs_source: ClassVar[bool] = True
    weighting: Weighting = "uniform"
    """w(t): sigma_squared, uniform, sigma_ratio or alpha."""

    def terms(self, x: Tensor, t: Tensor, context: ObjectiveContext) -> Terms:
        """D(s) of the sample and of its source, in one forward pass."""
        assert context.source is not None  # `check` has seen to it
        rows, eps = len(x), context.noise_like(x)
        both = torch.cat([x, context.source.x.to(x)])
        prompts = [context.positive.expanded(rows), context.source.condition.expanded(rows)]
        levels, repulsion = t.repeat(2), context.repulsion
        if repulsion is not None:
            pushing = [condition.repeat(2) for condition in repulsion.conditions]
            repulsion = Repulsion(pushing, repulsion.weights.repeat(1, 2))
        guided = context.teacher.predict_guided(
            context.teacher.schedule.add_noise(both, eps.repeat(2, 1, 1, 1), levels),
            levels,
            Condition.cat(prompts),
            context.negative if len(context.negative) == 1 else context.negative.repeat(2),
            self.scale(context),
            camera=None if context.camera is None else context.camera.repeat(2, 1),
            rescale=self.rescale,
            repulsion=repulsion,
        ).guided
        return Terms(guided.eps[:rows], guided.eps[rows:], guided.x0[:rows], t)
