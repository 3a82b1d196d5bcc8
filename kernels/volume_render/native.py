"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dispatch import native_module


def march_count(origins: Tensor, *inputs: object) -> tuple[Tensor, Any]:
    """How many intervals each ray keeps, [N] int64, and the intervals themselves; inputs as in `operators.march`."""
    counts = torch.empty(len(origins), dtype=torch.int64)
    found = native_module().march_count(origins, *inputs, counts, torch.get_num_threads())
    return counts, found


def march_fill(found: Any, offsets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Starts and ends of the intervals that were found."""
    starts, ends = (torch.empty(count) for _ in range(2))
    native_module().march_fill(found, starts, ends, torch.get_num_threads())
    return starts, ends


def weights_forward(starts: Tensor, ends: Tensor, offsets: Tensor, densities: Tensor) -> Tensor:
    """The weight of every sample [S]."""
    weights = torch.empty_like(densities)
    native_module().weights_forward(starts, ends, offsets, densities, weights, torch.get_num_threads())
    return weights


def weights_backward(
    starts: Tensor, ends: Tensor, offsets: Tensor, densities: Tensor, weights: Tensor, d_weights: Tensor
) -> Tensor:
    """The gradient of the densities."""
    d_densities = torch.empty_like(densities)
    inputs = (starts, ends, offsets, densities, weights, d_weights)
    native_module().weights_backward(*inputs, d_densities, torch.get_num_threads())
    return d_densities


def accumulate_forward(starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, values: Tensor) -> Tensor:
    """The sums along rays [N, C]."""
    total = values.new_empty(len(offsets) - 1, values.shape[1])
    native_module().accumulate_forward(starts, ends, offsets, weights, values, total, torch.get_num_threads())
    return total


def accumulate_backward(
    starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, values: Tensor, d_total: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights and values."""
    d_weights, d_values = torch.empty_like(weights), torch.empty_like(values)
    inputs = (starts, ends, offsets, weights, values, d_total)
    native_module().accumulate_backward(*inputs, d_weights, d_values, torch.get_num_threads())
    return d_weights, d_values


def distortion_forward(starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """The loss of every ray [N]."""
    loss = weights.new_empty(len(offsets) - 1)
    native_module().distortion_forward(starts, ends, offsets, weights, loss, torch.get_num_threads())
    return loss


def distortion_backward(starts: Tensor, ends: Tensor, offsets: Tensor, weights: Tensor, d_loss: Tensor) -> Tensor:
    """The gradient of the weights."""
    d_weights = torch.empty_like(weights)
    inputs = (starts, ends, offsets, weights, d_loss)
    native_module().distortion_backward(*inputs, d_weights, torch.get_num_threads())
    return d_weights


def resample(edges: Tensor, weights: Tensor, count: int, jitter: Tensor | None, padding: float) -> Tensor:
    """The new edges [N, count + 1]."""
    result = edges.new_empty(len(edges), count + 1)
    native_module().resample(edges, weights, jitter, padding, result, torch.get_num_threads())
    return result
