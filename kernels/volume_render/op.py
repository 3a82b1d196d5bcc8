"""The public operations: argument checks, then the backend that fits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..dispatch import choose_backend
from . import operators, reference
from .types import MAX_STEPS, OccupancyGrid, Rays, Samples, check_grid, check_samples, check_tensor


@torch.no_grad()
def march(
    rays: Rays,
    grid: OccupancyGrid,
    step: float,
    near: float = 0.0,
    far: float = 1e3,
    jitter: Tensor | None = None,
    backend: str | None = None,
) -> Samples:
    """Samples of equal length along rays, where the occupancy grid says that there may be something.

    Interval k of a ray is [t_k, t_k + step] with t_k = near + (k + jitter) step. It is kept if its middle is nearer
    than `far`, inside the box and in an occupied cell. Samples carry no gradient.

    Args:
        rays: N rays; those with NaN or infinity get no samples.
        grid: cells of a box.
        step: length of an interval, in lengths of a ray's direction.
        near: where the first interval of every ray begins.
        far: where rays end.
        jitter: [N] in [0, 1], shift of each ray's intervals in steps; `None` is 0.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        The kept intervals, packed.

    Raises:
        TypeError: an argument of the wrong kind or dtype (float32 or float64, all alike), by name.
        ValueError: a wrong shape, device or range, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.
    """
    check_grid(rays, grid)
    if not (math.isfinite(near) and math.isfinite(far) and near <= far):
        raise ValueError(f"near and far must be finite with near <= far, got {near} and {far}.")
    if not (step > 0 and (far - near) / step <= MAX_STEPS):
        raise ValueError(f"step must be above 0 and give at most {MAX_STEPS} steps from near to far, got {step}.")
    if jitter is not None:
        check_tensor("jitter", jitter, [len(rays.origins)], ("rays.origins", rays.origins))
    chosen = choose_backend(operators.OPERATION, backend, rays.origins)
    if chosen == "reference":
        return reference.march_reference(rays, grid, step, near, far, jitter)
    box = torch.stack([grid.low, grid.high])
    return Samples(*operators.march(rays.origins, rays.directions, grid.occupied, box, jitter, step, near, far, chosen))


def render_weights(densities: Tensor, samples: Samples, backend: str | None = None) -> Tensor:
    """What every sample adds to its ray (Max, "Optical Models for Direct Volume Rendering", 1995).

        w_i = T_i (1 - exp(-sigma_i delta_i)),   T_i = exp(-sum_{j<i} sigma_j delta_j),   delta_i = end_i - start_i

    Args:
        densities: sigma [S] >= 0, per unit of t. Gradients reach them.
        samples: packed intervals; no gradient reaches their ends.
        backend: as in `march`.

    Returns:
        w [S]. A ray's opacity is `accumulate(w, torch.ones(S, 1), samples)`.
    """
    check_samples(samples)
    check_tensor("densities", densities, samples.starts.shape, ("samples.starts", samples.starts))
    chosen = choose_backend(operators.OPERATION, backend, densities)
    if chosen == "reference":
        return reference.weights_reference(densities, samples)
    return operators.weights(densities, samples.starts, samples.ends, samples.offsets, chosen)


def accumulate(weights: Tensor, values: Tensor, samples: Samples, backend: str | None = None) -> Tensor:
    """Sums along rays: sum_i w_i v_i over each ray's samples; zero for a ray without samples.

    Args:
        weights: [S]. Gradients reach them.
        values: [S, C]: colours, `samples.middles[:, None]` for depth, ones for opacity. Gradients reach them.
        samples: packed intervals.
        backend: as in `march`.

    Returns:
        [N, C].
    """
    check_samples(samples)
    check_tensor("weights", weights, samples.starts.shape, ("samples.starts", samples.starts))
    check_tensor("values", values, [len(weights), "*"], ("weights", weights))
    chosen = choose_backend(operators.OPERATION, backend, weights)
    if chosen == "reference":
        return reference.accumulate_reference(weights, values, samples)
    return operators.accumulate(weights, values, samples.starts, samples.ends, samples.offsets, chosen)


def distortion_loss(weights: Tensor, samples: Samples, backend: str | None = None) -> Tensor:
    """How spread out the weights of each ray are (Barron et al., "Mip-NeRF 360", arXiv 2111.12077, equation 15).

        sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (end_i - start_i),   m_i the middle of interval i

    Args:
        weights: [S]. Gradients reach them.
        samples: packed intervals.
        backend: as in `march`.

    Returns:
        [N], zero for a ray without samples.
    """
    check_samples(samples)
    check_tensor("weights", weights, samples.starts.shape, ("samples.starts", samples.starts))
    chosen = choose_backend(operators.OPERATION, backend, weights)
    if chosen == "reference":
        return reference.distortion_reference(weights, samples)
    return operators.distortion(weights, samples.starts, samples.ends, samples.offsets, chosen)


@torch.no_grad()
def resample(
    edges: Tensor,
    weights: Tensor,
    count: int,
    jitter: Tensor | None = None,
    padding: float = 1e-5,
    backend: str | None = None,
) -> Tensor:
    """New intervals where a coarser pass found weight: inverse transform sampling of its histogram.

    The distribution has mass w_i + padding in bin i, evenly spread. New edges are its quantiles at
    u_k = (k + jitter) / (count + 1), k = 0 ... count. They carry no gradient.

    Args:
        edges: [N, B + 1], ascending along a row.
        weights: [N, B] >= 0.
        count: new intervals a ray, >= 1.
        jitter: [N] in [0, 1]; `None` is one half.
        padding: mass that every bin has at least, > 0.
        backend: as in `march`.

    Returns:
        [N, count + 1] ascending.
    """
    check_tensor("weights", weights, ["*", "*"])
    check_tensor("edges", edges, [len(weights), weights.shape[1] + 1], ("weights", weights))
    if weights.shape[1] < 1:
        raise ValueError("weights must have at least one bin a ray, got shape [N, 0].")
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count must be an int, got {type(count).__name__}.")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    if not 0 < padding < math.inf:
        raise ValueError(f"padding must be above 0 and finite, got {padding}.")
    if jitter is not None:
        check_tensor("jitter", jitter, [len(edges)], ("edges", edges))
    chosen = choose_backend(operators.OPERATION, backend, edges)
    if chosen != "reference":
        return operators.resample(edges, weights, count, jitter, padding, chosen)
    return reference.resample_reference(edges, weights, count, jitter, padding)
