"""Keeps an edit to where it belongs, by comparison with the scene that it started from."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.objectives import Gradient
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.regions import parse_region, rays_through
from dreamkit.scenes.rendering import Rendering
from dreamkit.training.edit_config import EditConfig

_DEPTH_SCALE = 0.1
"""World units of depth that count as much as a pixel's whole opacity."""
_TOLERANCE = 0.05
"""World units behind a surface to which a region still counts as seen."""


class Confinement:
    """What an edit must leave alone.

        L = keep_weight / (2 B)  sum (1 - M) |I - I'|^2
          + shape_weight / (2 B) sum (A - A')^2 + ((D - D') / 0.1)^2

    I, A, D are image, opacity and depth (summed along the ray) of the scene, primes those of its source from the same
    cameras, and M is 1 where a pixel sees into the region. The objective's gradient counts only under M.

    Args:
        config: the region and the weights.

    Raises:
        ConfigError: a region of no known form.
    """

    def __init__(self, config: EditConfig) -> None:
        self.config = config
        self._region = parse_region(config.region) if config.region else None

    @torch.no_grad()
    def mask(self, cameras: Camera, source: Rendering) -> Tensor | None:
        """M [B, 1, H, W] in {0, 1}; `None` where everything may change."""
        if self._region is None:
            return None
        depth = source.depth / source.alpha.clamp_min(1e-6)
        limit = torch.where(source.alpha > 0.5, depth + _TOLERANCE, torch.inf)
        return rays_through(self._region, cameras.to(limit.device), limit).to(limit)

    def confined(self, gradient: Gradient, mask: Tensor | None) -> Gradient:
        """The gradient under the mask alone."""
        if mask is None:
            return gradient
        height, width = gradient.grad.shape[-2:]
        small = functional.adaptive_avg_pool2d(mask, (height, width))
        return replace(gradient, grad=gradient.grad * small)

    def loss(self, rendering: Rendering, source: Rendering, mask: Tensor | None) -> Tensor:
        """L, a scalar."""
        terms = [rendering.image.new_zeros(())]
        if mask is not None:
            terms.append(self.config.keep_weight * ((1 - mask) * (rendering.image - source.image).square()).sum())
        if self.config.shape_weight > 0:
            moved = (rendering.depth - source.depth) / _DEPTH_SCALE
            shape = (rendering.alpha - source.alpha).square() + moved.square()
            terms.append(self.config.shape_weight * shape.sum())
        return torch.stack(terms).sum() / (2 * len(rendering.image))
