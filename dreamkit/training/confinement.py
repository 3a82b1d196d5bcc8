"""Keeps an edit to where it belongs, by comparison with the scene that it started from."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.objectives import Gradient
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.regions import holds_surface, parse_region, rays_through
from dreamkit.scenes.rendering import Rendering
from dreamkit.training.edit_config import EditConfig

_DEPTH_SCALE = 0.1
"""World units of depth that count as much as a pixel's whole opacity."""
_TOLERANCE = 0.05
"""World units from a surface to which a region still counts as seen."""


@dataclass(frozen=True)
class Masks:
    """Where views may change, and where they must not.

    A pixel that sees through an empty part of the region to a surface outside is in neither: what would grow there may
    hide the surface, but nothing may pull at the surface itself.

    Args:
        changing: [B, 1, H, W] in {0, 1}, pixels whose surface lies in the region, or that see nothing behind it.
        kept: [B, 1, H, W] in {0, 1}, pixels that don't see into the region.
    """

    changing: Tensor
    kept: Tensor


class Confinement:
    """What an edit must leave alone.

        L = keep_weight / (2 B)  sum K |I - I'|^2
          + shape_weight / (2 B) sum (A - A')^2 + ((D - D') / 0.1)^2

    I, A, D are image, opacity and depth (summed along the ray) of the scene, primes those of its source from the same
    cameras, and K is 1 where a pixel doesn't see into the region. The objective's gradient counts only under
    `Masks.changing`.

    Args:
        config: the region and the weights.

    Raises:
        ConfigError: a region of no known form.
    """

    def __init__(self, config: EditConfig) -> None:
        self.config = config
        self._region = parse_region(config.region) if config.region else None

    @torch.no_grad()
    def masks(self, cameras: Camera, source: Rendering) -> Masks | None:
        """The masks of some views; `None` where everything may change."""
        if self._region is None:
            return None
        opaque, depth = source.alpha > 0.5, source.depth / source.alpha.clamp_min(1e-6)
        cameras = cameras.to(depth.device)
        seen = rays_through(self._region, cameras, torch.where(opaque, depth + _TOLERANCE, torch.inf))
        changing = seen & (~opaque | holds_surface(self._region, cameras, depth, _TOLERANCE))
        return Masks(changing.to(depth), (~seen).to(depth))

    def confined(self, gradient: Gradient, masks: Masks | None) -> Gradient:
        """The gradient where views may change."""
        if masks is None:
            return gradient
        height, width = gradient.grad.shape[-2:]
        small = functional.adaptive_avg_pool2d(masks.changing, (height, width))
        return replace(gradient, grad=gradient.grad * small)

    def loss(self, rendering: Rendering, source: Rendering, masks: Masks | None) -> Tensor:
        """L, a scalar."""
        terms = [rendering.image.new_zeros(())]
        if masks is not None:
            terms.append(self.config.keep_weight * (masks.kept * (rendering.image - source.image).square()).sum())
        if self.config.shape_weight > 0:
            moved = (rendering.depth - source.depth) / _DEPTH_SCALE
            shape = (rendering.alpha - source.alpha).square() + moved.square()
            terms.append(self.config.shape_weight * shape.sum())
        return torch.stack(terms).sum() / (2 * len(rendering.image))
