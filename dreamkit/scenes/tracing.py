"""What rays meet in a field: samples, weights, and sums along the rays.

    w_s = T_s alpha_s,   T_s = prod_{r<s} (1 - alpha_r)

with alpha = 1 - exp(-sigma delta) for a density (Mildenhall et al., arXiv 2003.08934) and for VolSDF, and the share of
a sigmoid that the interval crosses for NeuS. Samples that can't be seen are found without gradients first, so that
only those that matter are differentiated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes.field import Field
from dreamkit.scenes.ray_sampling import OccupancySampler, ProposalSampler, RayBundle, proposal_loss
from dreamkit.scenes.shading import Lighting

_MOST_SAMPLES = 2**22
"""Samples of one pass: about 2 GB."""
_TOUCHING = 1e-5
"""World units by which the end of an interval and the start of the next may differ from rounding."""


@dataclass(frozen=True)
class Trace:
    """What N rays met, and what the penalties need of it.

    Args:
        colors: [N, 3] sums of weight times colour: nothing behind.
        alpha: [N] sums of weights.
        depth: [N] sums of weight times distance along the ray.
        normal: [N, 3] sums of weight times normal; zeros where nobody asked.
        samples: packed intervals that were differentiated.
        weights: [S] of those.
        points: [S, 3] their middles.
        directions: [S, 3] of their rays.
        normals: [S, 3] at those, if asked for.
        proposal_loss: of the proposal sampler, if there is one.
    """

    colors: Tensor
    alpha: Tensor
    depth: Tensor
    normal: Tensor
    samples: Any
    weights: Tensor
    points: Tensor
    directions: Tensor
    normals: Tensor | None = None
    proposal_loss: Tensor | None = None


@dataclass(frozen=True)
class Tracer:
    """A field with what finds it.

    Args:
        field: what is there.
        sampler: where to look.
        sharpness: of a signed distance.
    """

    field: Field
    sampler: OccupancySampler | ProposalSampler
    sharpness: float

    def trace(
        self,
        rays: RayBundle,
        views: Tensor,  # [N] int64, the view of each ray
        with_normals: bool,
        lighting: Lighting | None = None,
    ) -> Trace:
        """Follow rays, differentiable in the field.

        Raises:
            SceneError: more samples than memory can be expected to hold.
        """
        from dreamkit_kernels.volume_render import accumulate, render_weights  # type: ignore[import-not-found]

        samples, sampler_loss = self._visible(rays)
        points = rays.points(samples)
        raw, colors = self.field(points)
        weights = render_weights(self._density(samples, rays, raw), samples)
        normals = None
        if with_normals or lighting is not None:
            normals, _ = self.field.normals(points, differentiable=True)
        if lighting is not None and normals is not None:
            colors = lighting.shade(colors, normals, points, views[samples.rays])
        summed = torch.cat([colors, torch.ones_like(weights)[:, None], samples.middles[:, None]], dim=1)
        totals = accumulate(weights, summed, samples)
        if with_normals and normals is not None:
            normal = accumulate(weights, normals, samples)
        else:
            normal = torch.zeros_like(totals[:, :3])
        return Trace(
            colors=totals[:, :3],
            alpha=totals[:, 3],
            depth=totals[:, 4],
            normal=normal,
            samples=samples,
            weights=weights,
            points=points,
            directions=rays.directions[samples.rays],
            normals=normals,
            proposal_loss=sampler_loss,
        )

    def _visible(self, rays: RayBundle) -> tuple[Any, Tensor | None]:
        """The samples that add something to their pixel, and the proposal's loss."""
        from dreamkit_kernels.volume_render import render_weights

        proposed = None
        if isinstance(self.sampler, ProposalSampler):
            samples, *proposed = self.sampler(rays)
        else:
            samples = self.sampler.sample(rays)
        if len(samples.starts) > _MOST_SAMPLES:
            raise SceneError(
                f"The rays of this step have {len(samples.starts):,} samples; {_MOST_SAMPLES:,} fit into memory.",
                "Use fewer views, a lower resolution or a longer nerf.step.",
            )
        with torch.no_grad():
            weights = render_weights(self._density(samples, rays), samples)
        loss = None
        if proposed is not None and torch.is_grad_enabled():
            loss = proposal_loss(samples, weights, *proposed)
        return chosen(samples, weights > self.field.config.weight_threshold), loss

    def _density(self, samples: Any, rays: RayBundle, raw: Tensor | None = None) -> Tensor:
        """The density of each interval, from the raw values in their middles [S], if they are known.

        NeuS has one of the whole interval, from the distances at its two ends.
        """
        if self.field.config.geometry != "neus":
            return self.field.density(self.field.raw(rays.points(samples)) if raw is None else raw, self.sharpness)
        before, behind = torch.sigmoid(self.sharpness * self._at_ends(samples, rays)).unbind()
        opacity = ((before - behind) / (before + 1e-6)).clamp(0, 1 - 1e-6)
        return -torch.log1p(-opacity) / (samples.ends - samples.starts).clamp_min(1e-9)

    def _at_ends(self, samples: Any, rays: RayBundle) -> Tensor:
        """Raw values [2, S] where intervals start and end; where one ends and the next starts is asked once."""
        starts, ends, index = samples.starts, samples.ends, samples.rays
        begins = torch.ones_like(index, dtype=torch.bool)
        begins[1:] = (index[1:] != index[:-1]) | ((starts[1:] - ends[:-1]).abs() > _TOUCHING)
        first = begins.nonzero()[:, 0]
        along = torch.cat([starts[first], ends])[:, None]
        ray = torch.cat([index[first], index])
        values = self.field.raw(rays.origins[ray] + along * rays.directions[ray])
        beginning, behind = values[: len(first)], values[len(first) :]
        return torch.stack([behind.roll(1).index_put((first,), beginning), behind])


def chosen(
    samples: Any,
    keep: Tensor,  # [S] bool
) -> Any:
    """Some of the packed samples."""
    from dreamkit_kernels.volume_render import Samples

    counts = torch.zeros(len(samples.offsets), dtype=torch.int64, device=keep.device)
    counts[1:] = keep.cumsum(dim=0).index_select(0, (samples.offsets[1:] - 1).clamp_min(0)) if len(keep) else 0
    counts[1:] *= samples.offsets[1:] > 0
    return Samples(samples.starts[keep], samples.ends[keep], counts)
