"""The kernels of a backend as torch operators: `torch.compile` sees through them. Each differentiates once.

Faces are int32 here, and attributes always [B or 1, V, C].
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..checks import plain
from ..dispatch import kernels

OPERATION = "mesh_rasterize"


def _of(backend: str) -> ModuleType:
    return kernels(OPERATION, backend)


def _or_empty(result: Tensor | None, like: Tensor) -> Tensor:
    """An operator always gives tensors: one without elements for a gradient that nobody asked for."""
    return like.new_empty(0) if result is None else result


@torch.library.custom_op("dreamkit::mesh_rasterize", mutates_args=())
def rasterize(positions: Tensor, faces: Tensor, height: int, width: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.rasterize_reference` by a backend's kernels: barycentrics, depth and faces."""
    seen, barycentrics, depth = _of(backend).rasterize_forward(plain(positions), plain(faces), height, width)
    return barycentrics, depth, seen


@torch.library.custom_op("dreamkit::mesh_rasterize_backward", mutates_args=())
def _rasterize_backward(positions: Tensor, faces: Tensor, seen: Tensor, d_barycentrics: Tensor, backend: str) -> Tensor:
    return _of(backend).rasterize_backward(*map(plain, (positions, faces, seen, d_barycentrics)))


@torch.library.custom_op("dreamkit::mesh_interpolate", mutates_args=())
def interpolate(attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor, backend: str) -> Tensor:
    """`reference.interpolate_reference` by a backend's kernels."""
    return _of(backend).interpolate_forward(*map(plain, (attributes, faces, seen, barycentrics)))


@torch.library.custom_op("dreamkit::mesh_interpolate_backward", mutates_args=())
def _interpolate_backward(
    attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor, d_image: Tensor, backend: str,
    of_attributes: bool, of_barycentrics: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    inputs = map(plain, (attributes, faces, seen, barycentrics, d_image))
    results = _of(backend).interpolate_backward(*inputs, of_attributes, of_barycentrics)
    return _or_empty(results[0], attributes), _or_empty(results[1], attributes)


@torch.library.custom_op("dreamkit::mesh_edges", mutates_args=())
def find_edges(faces: Tensor) -> Tensor:
    """`topology.edges_reference` by the native kernels. On a GPU torch's sort is as good."""
    return _of("native").find_edges(plain(faces))


@torch.library.custom_op("dreamkit::mesh_antialias", mutates_args=())
def antialias(
    image: Tensor, seen: Tensor, depth: Tensor, positions: Tensor, faces: Tensor, edges: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    """`reference.antialias_reference` by a backend's kernels, and the silhouettes that they found."""
    return _of(backend).antialias_forward(*map(plain, (image, seen, depth, positions, faces, edges)))


@torch.library.custom_op("dreamkit::mesh_antialias_backward", mutates_args=())
def _antialias_backward(
    image: Tensor, silhouettes: Tensor, positions: Tensor, faces: Tensor, d_result: Tensor, backend: str,
    of_positions: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    inputs = map(plain, (image, silhouettes, positions, faces, d_result))
    d_image, d_positions = _of(backend).antialias_backward(*inputs, of_positions)
    return d_image, _or_empty(d_positions, positions)


@rasterize.register_fake
def _(positions: Tensor, faces: Tensor, height: int, width: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = (positions.shape[0], height, width)
    seen = positions.new_empty(shape, dtype=torch.int32)
    return positions.new_empty(*shape, 3), positions.new_empty(shape), seen


@_rasterize_backward.register_fake
def _(positions: Tensor, *rest: Any) -> Tensor:
    return positions.new_empty(positions.shape)


@interpolate.register_fake
def _(attributes: Tensor, faces: Tensor, seen: Tensor, *rest: Any) -> Tensor:
    return attributes.new_empty(*seen.shape, attributes.shape[2])


@_interpolate_backward.register_fake
def _(attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    of_attributes, of_barycentrics = rest[-2:]
    return (
        attributes.new_empty(attributes.shape if of_attributes else 0),
        attributes.new_empty(barycentrics.shape if of_barycentrics else 0),
    )


@find_edges.register_fake
def _(faces: Tensor) -> Tensor:
    return faces.new_empty(faces.shape)


@antialias.register_fake
def _(image: Tensor, seen: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), seen.new_empty(2, *seen.shape)


@_antialias_backward.register_fake
def _(image: Tensor, silhouettes: Tensor, positions: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return image.new_empty(image.shape), positions.new_empty(positions.shape if rest[-1] else 0)


def _save_fragments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, depth, seen = output
    ctx.backend = inputs[-1]
    ctx.save_for_backward(*inputs[:2], seen)
    ctx.mark_non_differentiable(seen, depth)


def _rasterize_gradient(ctx: Any, d_barycentrics: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _rasterize_backward(*ctx.saved_tensors, d_barycentrics, ctx.backend), None, None, None, None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.backend = inputs[-1]
    ctx.save_for_backward(*inputs[:-1])


def _interpolate_gradients(ctx: Any, d_image: Tensor) -> tuple[Tensor | None, ...]:
    wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[3])
    d_attributes, d_barycentrics = _interpolate_backward(*ctx.saved_tensors, d_image, ctx.backend, *wanted)
    return d_attributes if wanted[0] else None, None, None, d_barycentrics if wanted[1] else None, None


def _save_silhouettes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    image, _, _, positions, faces, _, ctx.backend = inputs
    ctx.save_for_backward(image, output[1], positions, faces)
    ctx.mark_non_differentiable(output[1])


def _antialias_gradients(ctx: Any, d_result: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad[3]
    d_image, d_positions = _antialias_backward(*ctx.saved_tensors, d_result, ctx.backend, wanted)
    return d_image, None, None, d_positions if wanted else None, None, None, None


rasterize.register_autograd(_rasterize_gradient, setup_context=_save_fragments)
interpolate.register_autograd(_interpolate_gradients, setup_context=_save_inputs)
antialias.register_autograd(_antialias_gradients, setup_context=_save_silhouettes)
