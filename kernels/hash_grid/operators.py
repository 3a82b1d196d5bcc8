"""The kernels of a backend as torch operators: `torch.compile` sees through them and autograd differentiates them.

Twice: the gradient of the positions is an operator with a gradient of its own (normals of a signed distance function
need it).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels
from .types import HashGrid

OPERATION = "hash_grid"


def _or_empty(value: Tensor | None, like: Tensor) -> Tensor:
    """What an operator returns in place of nothing."""
    return like.new_empty(0) if value is None else value


@torch.library.custom_op("dreamkit::hash_encode", mutates_args=())
def encode(positions: Tensor, table: Tensor, grid: str, backend: str) -> Tensor:
    """`reference.encode_reference` by a backend's kernels."""
    return kernels(OPERATION, backend).forward(plain(positions), plain(table), grid)


@torch.library.custom_op("dreamkit::hash_encode_backward", mutates_args=())
def _backward(
    positions: Tensor, table: Tensor, d_encoded: Tensor, grid: str, of_table: bool, of_positions: bool, backend: str
) -> tuple[Tensor, Tensor]:
    inputs = map(plain, (positions, table, d_encoded))
    d_table, d_positions = kernels(OPERATION, backend).backward(*inputs, grid, of_table, of_positions)
    return _or_empty(d_table, table), _or_empty(d_positions, positions)


@torch.library.custom_op("dreamkit::hash_encode_second", mutates_args=())
def _second(
    positions: Tensor, table: Tensor, d_encoded: Tensor, v: Tensor, grid: str, of_table: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = map(plain, (positions, table, d_encoded, v))
    d_d_encoded, d_table, d_positions = kernels(OPERATION, backend).second(*inputs, grid, of_table)
    return d_d_encoded, _or_empty(d_table, table), d_positions


@encode.register_fake
def _(positions: Tensor, table: Tensor, grid: str, backend: str) -> Tensor:
    return positions.new_empty(len(positions), HashGrid.from_spec(grid).width)


@_backward.register_fake
def _(
    positions: Tensor, table: Tensor, d_encoded: Tensor, grid: str, of_table: bool, of_positions: bool, backend: str
) -> tuple[Tensor, Tensor]:
    d_table = torch.empty_like(table) if of_table else table.new_empty(0)
    return d_table, torch.empty_like(positions) if of_positions else positions.new_empty(0)


@_second.register_fake
def _(
    positions: Tensor, table: Tensor, d_encoded: Tensor, v: Tensor, grid: str, of_table: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    d_table = torch.empty_like(table) if of_table else table.new_empty(0)
    return torch.empty_like(d_encoded), d_table, torch.empty_like(positions)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(item for item in inputs if isinstance(item, Tensor)))
    ctx.options = [item for item in inputs if not isinstance(item, Tensor)]


def _encode_gradients(ctx: Any, d_encoded: Tensor) -> tuple[Tensor | None, ...]:
    positions, table = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[1], ctx.needs_input_grad[0])
    grid, backend = ctx.options
    d_table, d_positions = _backward(positions, table, d_encoded, grid, *wanted, backend)
    return d_positions if wanted[1] else None, d_table if wanted[0] else None, None, None


def _backward_gradients(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of <u, d_table> + <v, d_positions>.

    The first is what encoding u as a table would give with the same gradient: <u, d_table(x, g)> = <encode(x, u), g>.
    """
    positions, table, d_encoded = ctx.saved_tensors
    grid, of_table, of_positions, backend = ctx.options
    parts: list[Tensor | None] = [None, None, None]

    def add(index: int, value: Tensor) -> None:
        known = parts[index]
        parts[index] = value if known is None else known + value

    if of_table and u is not None:
        add(2, encode(positions, u.contiguous(), grid, backend))
        if ctx.needs_input_grad[0]:
            add(0, _backward(positions, u.contiguous(), d_encoded, grid, False, True, backend)[1])
    if of_positions and v is not None:
        d_d_encoded, d_table, d_positions = _second(
            positions, table, d_encoded, v, grid, ctx.needs_input_grad[1], backend
        )
        add(2, d_d_encoded)
        add(0, d_positions)
        if ctx.needs_input_grad[1]:
            add(1, d_table)
    return *parts, None, None, None, None


encode.register_autograd(_encode_gradients, setup_context=_save)
_backward.register_autograd(_backward_gradients, setup_context=_save)
