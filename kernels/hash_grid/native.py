"""The native kernels: C++ on contiguous float32 tensors on the CPU. Outputs are allocated here."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..dispatch import native_module
from .types import HashGrid


@functools.cache
def _layout(spec: str) -> Any:
    grid = HashGrid.from_spec(spec)
    numbers = torch.tensor([(level.scale, level.shift) for level in grid.plan], dtype=torch.float32)
    sizes = torch.tensor([(level.resolution, level.size, level.offset) for level in grid.plan])
    return native_module().HashLayout(grid.dims, grid.features, grid.smoothstep, numbers, sizes)


def forward(positions: Tensor, table: Tensor, spec: str) -> Tensor:
    """The code [N, levels * features]."""
    encoded = positions.new_empty(len(positions), HashGrid.from_spec(spec).width)
    native_module().hash_forward(_layout(spec), positions, table, encoded, torch.get_num_threads())
    return encoded


def backward(
    positions: Tensor, table: Tensor, d_encoded: Tensor, spec: str, of_table: bool, of_positions: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of table and positions, where wanted."""
    d_table = torch.empty_like(table) if of_table else None
    d_positions = torch.empty_like(positions) if of_positions else None
    inputs = (_layout(spec), positions, table, d_encoded)
    native_module().hash_backward(*inputs, d_table, d_positions, torch.get_num_threads())
    return d_table, d_positions


def second(
    positions: Tensor, table: Tensor, d_encoded: Tensor, v: Tensor, spec: str, of_table: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of <v, the positions' gradient>: of d_encoded, of the table where wanted, of the positions."""
    d_d_encoded, d_positions = torch.empty_like(d_encoded), torch.empty_like(positions)
    d_table = torch.empty_like(table) if of_table else None
    inputs = (_layout(spec), positions, table, d_encoded, v)
    native_module().hash_second(*inputs, d_d_encoded, d_table, d_positions, torch.get_num_threads())
    return d_d_encoded, d_table, d_positions
