"""Meshes that the tests of mesh_rasterize look at, and what rays find of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def perspective(points: Tensor, near: float = 0.5, far: float = 10.0, focal: float = 1.5) -> Tensor:
    """Clip positions [..., 4] of points [..., 3] in a camera's coordinates: x right, y up, z towards it."""
    x, y, z = points.unbind(-1)
    depth = (far + near) / (near - far) * z + 2 * far * near / (near - far)
    return torch.stack([focal * x, focal * y, depth, -z], dim=-1)


def soup(faces: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Triangles anywhere around a camera, many through its near plane or behind it: points [V, 3] and faces [F, 3]."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(faces, 1, 3, generator=generator, dtype=dtype) + torch.tensor([0, 0, -1.5], dtype=dtype)
    points = middles + 0.8 * torch.randn(faces, 3, 3, generator=generator, dtype=dtype)
    return points.flatten(0, 1), torch.arange(3 * faces).view(faces, 3)


def sphere(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The unit sphere by latitude and longitude: points [V, 3] and faces [F, 3], closed."""
    latitude = torch.linspace(0, math.pi, rows + 1, dtype=dtype)[1:-1, None]
    longitude = torch.arange(columns, dtype=dtype) * (2 * math.pi / columns)
    height = latitude.cos().expand(-1, columns)
    ring = torch.stack([latitude.sin() * longitude.cos(), height, latitude.sin() * longitude.sin()], dim=-1)
    poles = torch.tensor([[0, 1, 0], [0, -1, 0]], dtype=dtype)
    number = torch.arange((rows - 1) * columns).view(rows - 1, columns)
    upper, lower = number[:-1].flatten(), number[1:].flatten()
    upper_next, lower_next = number[:-1].roll(-1, 1).flatten(), number[1:].roll(-1, 1).flatten()
    caps = [
        torch.stack([torch.full((columns,), number.numel() + i), row.roll(-1), row], dim=1)
        for i, row in enumerate((number[0], number[-1]))
    ]
    bands = [torch.stack([upper, upper_next, lower], 1), torch.stack([upper_next, lower_next, lower], 1)]
    return torch.cat([ring.flatten(0, 1), poles]), torch.cat([*bands, *caps])


def square(cells: int, jitter: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The square [-1, 1]^2 in clip space, w = 1, cut into 2 cells^2 triangles: positions [V, 4] and faces [F, 3]."""
    axis = torch.linspace(-1, 1, cells + 1, dtype=dtype)
    y, x = (item.clone() for item in torch.meshgrid(axis, axis, indexing="ij"))
    move = jitter * (torch.rand(2, cells - 1, cells - 1, generator=torch.Generator().manual_seed(seed)) - 0.5)
    x[1:-1, 1:-1] += move[0]
    y[1:-1, 1:-1] += move[1]
    positions = torch.stack([x, y, torch.zeros_like(x), torch.ones_like(x)], dim=-1).flatten(0, 1)
    number = torch.arange((cells + 1) ** 2).view(cells + 1, cells + 1)
    a, b, c, d = (part.flatten() for part in (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]))
    return positions, torch.cat([torch.stack([a, b, c], 1), torch.stack([b, d, c], 1)])


def polygon(corners: int, radius: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """A regular polygon in clip space, a fan about its middle [2]; differentiable in both."""
    angle = torch.arange(corners, dtype=radius.dtype) * (2 * math.pi / corners) + 0.1
    border = middle + radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    flat = torch.cat([border, middle[None]])
    positions = torch.cat([flat, torch.zeros_like(flat[:, :1]), torch.ones_like(flat[:, :1])], dim=1)
    first = torch.arange(corners)
    return positions, torch.stack([first, (first + 1) % corners, torch.full_like(first, corners)], dim=1)


def trace(
    points: Tensor, faces: Tensor, height: int, width: int, near: float = 0.5, far: float = 10.0, focal: float = 1.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What rays from the eye of `perspective` meet first (Moeller and Trumbore, 1997), one pixel and face at a time.

    Returns:
        Faces [H, W], barycentrics [H, W, 3] and depth in [-1, 1] [H, W].
    """
    seen, weights, depths = np.full((height, width), -1), np.zeros((height, width, 3)), np.ones((height, width))
    corners = points.double().numpy()[faces.numpy()]
    for row in range(height):
        for column in range(width):
            ray = np.array([((2 * column + 1) / width - 1) / focal, (1 - (2 * row + 1) / height) / focal, -1.0])
            nearest = math.inf
            for number, (a, b, c) in enumerate(corners):
                across = np.cross(ray, c - a)
                area = np.dot(b - a, across)
                u = np.dot(-a, across) / area
                around = np.cross(-a, b - a)
                v, distance = np.dot(ray, around) / area, np.dot(c - a, around) / area
                if min(u, v, 1 - u - v) < 0 or not near <= distance <= far or distance >= nearest:
                    continue
                nearest = distance
                seen[row, column], weights[row, column] = number, (1 - u - v, u, v)
                depths[row, column] = ((far + near) - 2 * far * near / distance) / (far - near)
    return seen, weights, depths
