"""The native backend: `dreamkit_kernels._native` as torch operators, float32 on the CPU. op.py checks the arguments.

They are registered with `torch.library`, so that `torch.compile` sees through them, and differentiate twice: the
gradient of the positions is an operator with a gradient of its own (normals of a signed distance function need it).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import native_module
from .types import HashGrid


@functools.cache
def _layout(spec: str) -> Any:
    grid = HashGrid.from_spec(spec)
    numbers = torch.tensor([(level.scale, level.shift) for level in grid.plan], dtype=torch.float32)
    sizes = torch.tensor([(level.resolution, level.size, level.offset) for level in grid.plan])
    return native_module().HashLayout(grid.dims, grid.features, grid.smoothstep, numbers, sizes)


@torch.library.custom_op("dreamkit::hash_encode", mutates_args=())
def _encode(positions: Tensor, table: Tensor, grid: str) -> Tensor:
    out = positions.new_empty(len(positions), HashGrid.from_spec(grid).width)
    native_module().hash_forward(_layout(grid), plain(positions), plain(table), out, torch.get_num_threads())
    return out


@torch.library.custom_op("dreamkit::hash_encode_backward", mutates_args=())
def _backward(
    positions: Tensor, table: Tensor, d_encoded: Tensor, grid: str, of_table: bool, of_positions: bool
) -> tuple[Tensor, Tensor]:
    d_table = torch.empty_like(table) if of_table else table.new_empty(0)
    d_positions = torch.empty_like(positions) if of_positions else positions.new_empty(0)
    native_module().hash_backward(
        *(_layout(grid), plain(positions), plain(table), plain(d_encoded)),
        *(d_table if of_table else None, d_positions if of_positions else None, torch.get_num_threads()),
    )
    return d_table, d_positions


@torch.library.custom_op("dreamkit::hash_encode_second", mutates_args=())
def _second(
    positions: Tensor, table: Tensor, d_encoded: Tensor, v: Tensor, grid: str, of_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_d_encoded, d_positions = torch.empty_like(d_encoded), torch.empty_like(positions)
    d_table = torch.empty_like(table) if of_table else table.new_empty(0)
    native_module().hash_second(
        *(_layout(grid), plain(positions), plain(table), plain(d_encoded), plain(v)),
        *(d_d_encoded, d_table if of_table else None, d_positions, torch.get_num_threads()),
    )
    return d_d_encoded, d_table, d_positions


@_encode.register_fake
def _(positions: Tensor, table: Tensor, grid: str) -> Tensor:
    return positions.new_empty(len(positions), HashGrid.from_spec(grid).width)


@_backward.register_fake
def _(
    positions: Tensor, table: Tensor, d_encoded: Tensor, grid: str, of_table: bool, of_positions: bool
) -> tuple[Tensor, Tensor]:
    d_table = torch.empty_like(table) if of_table else table.new_empty(0)
    return d_table, torch.empty_like(positions) if of_positions else positions.new_empty(0)


@_second.register_fake
def _(
    positions: Tensor, table: Tensor, d_encoded: Tensor, v: Tensor, grid: str, of_table: bool
) -> tuple[Tensor, Tensor, Tensor]:
    d_table = torch.empty_like(table) if of_table else table.new_empty(0)
    return torch.empty_like(d_encoded), d_table, torch.empty_like(positions)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(item for item in inputs if isinstance(item, Tensor)))
    ctx.options = [item for item in inputs if not isinstance(item, Tensor)]


def _encode_gradients(ctx: Any, d_encoded: Tensor) -> tuple[Tensor | None, ...]:
    positions, table = ctx.saved_tensors
    wanted = (ctx.needs_input_grad[1], ctx.needs_input_grad[0])
    d_table, d_positions = _backward(positions, table, d_encoded, ctx.options[0], *wanted)
    return d_positions if wanted[1] else None, d_table if wanted[0] else None, None


def _backward_gradients(ctx: Any, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of <u, d_table> + <v, d_positions>.

    The first is what encoding u as a table would give with the same gradient: <u, d_table(x, g)> = <encode(x, u), g>.
    """
    positions, table, d_encoded = ctx.saved_tensors
    grid, of_table, of_positions = ctx.options
    parts: list[Tensor | None] = [None, None, None]

    def add(index: int, value: Tensor) -> None:
        known = parts[index]
        parts[index] = value if known is None else known + value

    if of_table and u is not None:
        add(2, _encode(positions, u.contiguous(), grid))
        if ctx.needs_input_grad[0]:
            add(0, _backward(positions, u.contiguous(), d_encoded, grid, False, True)[1])
    if of_positions and v is not None:
        d_d_encoded, d_table, d_positions = _second(positions, table, d_encoded, v, grid, ctx.needs_input_grad[1])
        add(2, d_d_encoded)
        add(0, d_positions)
        if ctx.needs_input_grad[1]:
            add(1, d_table)
    return *parts, None, None, None


_encode.register_autograd(_encode_gradients, setup_context=_save)
_backward.register_autograd(_backward_gradients, setup_context=_save)


def encode_native(positions: Tensor, table: Tensor, grid: HashGrid) -> Tensor:
    """`reference.encode_reference` for float32 tensors on the CPU."""
    return _encode(positions, table, grid.spec)
