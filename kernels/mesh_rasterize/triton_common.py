"""What the Triton kernels share: pixels, vertices, and sums of gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 128
"""Pixels of a program."""


@triton.jit
def centre(pixel, height, width):
    """X and Y of pixels."""
    x = (2 * (pixel % width) + 1).to(tl.float64) / width - 1.0
    y = 1.0 - (2 * (pixel // width % height) + 1).to(tl.float64) / height
    return x, y


@triton.jit
def vertex_at(positions_ptr, view, vertices, vertex, exists):
    """(x, y, w) of vertices."""
    place = (view.to(tl.int64) * vertices + vertex) * 4
    x = tl.load(positions_ptr + place, mask=exists, other=0.0).to(tl.float64)
    y = tl.load(positions_ptr + place + 1, mask=exists, other=0.0).to(tl.float64)
    w = tl.load(positions_ptr + place + 3, mask=exists, other=0.0).to(tl.float64)
    return x, y, w


@triton.jit
def cross(ax, ay, aw, bx, by, bw):
    """Cross products; those of float32 vectors are exact products, rounded once."""
    return ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx


@triton.jit
def corners_of(faces_ptr, face, exists):
    """Numbers of the vertices of faces."""
    place = face.to(tl.int64) * 3
    a = tl.load(faces_ptr + place, mask=exists, other=0)
    b = tl.load(faces_ptr + place + 1, mask=exists, other=0)
    c = tl.load(faces_ptr + place + 2, mask=exists, other=0)
    return a, b, c


@triton.jit
def add_gradient(sums_ptr, view, vertices, vertex, gx, gy, gw, exists):
    """Add to the gradient of vertices, [B, V, 3]."""
    target = sums_ptr + (view.to(tl.int64) * vertices + vertex) * 3
    tl.atomic_add(target, gx, mask=exists, sem="relaxed")
    tl.atomic_add(target + 1, gy, mask=exists, sem="relaxed")
    tl.atomic_add(target + 2, gw, mask=exists, sem="relaxed")


def blocks(pixels: int) -> tuple[int, ...]:
    """Programs for a number of pixels."""
    return (triton.cdiv(pixels, BLOCK),)


def positions_gradient(sums: Tensor) -> Tensor:
    """From sums [B, V, 3] for x, y and w to a gradient [B, V, 4]."""
    d_positions = torch.zeros(*sums.shape[:2], 4, dtype=torch.float32, device=sums.device)
    d_positions[..., [0, 1, 3]] = sums.float()
    return d_positions
