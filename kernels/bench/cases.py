"""The cases that are timed. Sizes follow what the field reports; seeds are fixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .. import (
    adam,
    gaussian_rasterize,
    hash_grid,
    mesh_rasterize,
    modulate,
    noise_residual,
    ssim,
    stream_attention,
    volume_render,
)
from ..stream_attention.reference import attend_reference
from .measure import Problem

Make = Callable[[torch.device], Problem]


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Args:
        op: the operation.
        name: of the case.
        make: builds it on a device.
        rival: what its backends are compared with.
    """

    op: str
    name: str
    make: Make
    rival: str = "reference"


def gaussians_in_a_ball(count: int, width: int, height: int, sigma: float) -> Make:
    """Gaussians uniform in the unit ball, three units away, sizes log-normal with a median of `sigma` pixels."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        focal = height / 2 / math.tan(math.radians(20))
        directions = functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
        tensors = [
            directions * torch.rand(count, 1, generator=generator) ** (1 / 3),
            torch.randn(count, 4, generator=generator),
            (sigma * 3 / focal) * torch.exp(0.3 * torch.randn(count, 3, generator=generator)),
            0.05 + 0.9 * torch.rand(count, generator=generator),
            torch.rand(count, 3, generator=generator),
        ]
        inputs = [tensor.to(device).requires_grad_() for tensor in tensors]
        pose = torch.eye(4, device=device)[None].clone()
        pose[:, 2, 3] = 3.0
        lens = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]], device=device)
        view = gaussian_rasterize.View(pose, lens, width, height)
        background = torch.ones(3, device=device)

        def forward(backend: str) -> Sequence[Tensor]:
            settings = gaussian_rasterize.Settings(background=background, backend=backend)
            result = gaussian_rasterize.rasterize(gaussian_rasterize.Gaussians(*inputs), view, settings)
            return result.image, result.alpha

        return Problem(forward, inputs)

    return make


def hash_of_random_points(count: int, with_positions: bool) -> Make:
    """Random positions in the default grid: 16 levels, 16 to 2048 cells, 2^19 entries of two features."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        grid = hash_grid.HashGrid()
        positions = torch.rand(count, 3, generator=generator).to(device).requires_grad_(with_positions)
        table = grid.make_table(generator).to(device).requires_grad_()
        inputs = [positions, table] if with_positions else [table]
        return Problem(lambda backend: [hash_grid.encode(positions, table, grid, backend)], inputs)

    return make


def bumpy_sphere(rings: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A mesh of 2 rings^2 faces, three units away: clip positions [1, V, 4] and faces."""
    polar = torch.linspace(0, math.pi, rings + 1)[:, None]
    azimuth = torch.arange(rings) * (2 * math.pi / rings)
    radius = 0.8 + 0.1 * torch.sin(6 * azimuth) * torch.sin(5 * polar)
    x, y = radius * torch.sin(polar) * torch.cos(azimuth), radius * torch.cos(polar)
    depth = 3.0 - radius * torch.sin(polar) * torch.sin(azimuth)
    near, far, focal = 0.1, 10.0, 1 / math.tan(math.radians(20))
    z = ((far + near) * depth - 2 * far * near) / (far - near)
    positions = torch.stack([focal * x, focal * y, z, depth], dim=-1).flatten(0, 1)[None]
    start = torch.arange(rings)[:, None] * rings
    a, b = start + torch.arange(rings), start + (torch.arange(rings) + 1) % rings
    faces = torch.stack([a, b, a + rings, b, b + rings, a + rings], dim=-1).view(-1, 3).int()
    return positions.to(device), faces.to(device)


def rasterize_sphere(rings: int, side: int) -> Make:
    """Faces and barycentrics of a picture; the gradient of the positions."""

    def make(device: torch.device) -> Problem:
        positions, faces = bumpy_sphere(rings, device)
        positions.requires_grad_()
        return Problem(
            lambda backend: [mesh_rasterize.rasterize(positions, faces, side, side, backend).barycentrics], [positions]
        )

    return make


def shade_sphere(rings: int, side: int) -> Make:
    """Three attributes of every vertex in a picture, antialiased; the gradients of attributes and positions."""

    def make(device: torch.device) -> Problem:
        positions, faces = bumpy_sphere(rings, device)
        fragments = mesh_rasterize.rasterize(positions, faces, side, side)
        edges = mesh_rasterize.mesh_edges(faces)
        colors = torch.rand(positions.shape[1], 3, generator=torch.Generator().manual_seed(0)).to(device)
        inputs = [positions.requires_grad_(), colors.requires_grad_()]

        def forward(backend: str) -> Sequence[Tensor]:
            image = mesh_rasterize.interpolate(colors, faces, fragments, backend)
            return [mesh_rasterize.antialias(image, fragments, positions, faces, backend, edges)]

        return Problem(forward, inputs)

    return make


def _rays(count: int, device: torch.device) -> volume_render.Rays:
    generator = torch.Generator().manual_seed(0)
    origins = 3 * functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    targets = 1.2 * torch.rand(count, 3, generator=generator) - 0.6
    return volume_render.Rays(origins.to(device), functional.normalize(targets - origins, dim=-1).to(device))


def _march(count: int) -> Make:
    """Rays through a ball in a grid of 128 cells an axis, 0.01 a step."""

    def make(device: torch.device) -> Problem:
        axis = torch.linspace(-1, 1, 128)
        ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) < 0.5
        box = torch.ones(3, device=device)
        grid = volume_render.OccupancyGrid(ball.to(device), -box, box)
        rays = _rays(count, device)
        return Problem(lambda backend: [volume_render.march(rays, grid, 0.01, 1.0, 5.0, None, backend).starts], [])

    return make


def _render(count: int, samples: int) -> Make:
    """Weights, colour and opacity of packed samples, and the distortion loss."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        edges = torch.rand(count, samples + 1, generator=generator).cumsum(dim=1).to(device) / samples
        packed = volume_render.Samples.dense(edges)
        densities = (20 * torch.rand(count * samples, generator=generator) ** 4).to(device).requires_grad_()
        colors = torch.rand(count * samples, 4, generator=generator).to(device).requires_grad_()

        def forward(backend: str) -> Sequence[Tensor]:
            weights = volume_render.render_weights(densities, packed, backend)
            total = volume_render.accumulate(weights, colors, packed, backend)
            return total, volume_render.distortion_loss(weights, packed, backend)

        return Problem(forward, [densities, colors])

    return make


def _resample(count: int, bins: int, new: int) -> Make:
    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        edges = torch.rand(count, bins + 1, generator=generator).cumsum(dim=1).to(device)
        weights = torch.rand(count, bins, generator=generator).to(device)
        return Problem(lambda backend: [volume_render.resample(edges, weights, new, backend=backend)], [])

    return make


def _ssim(batch: int, side: int) -> Make:
    """Pictures of three channels; the gradient of one."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(2, batch, 3, side, side, generator=generator).to(device)
        x, y = pictures[0].clone().requires_grad_(), pictures[1]
        return Problem(lambda backend: [ssim.ssim(x, y, backend)], [x])

    return make


def _modulate(batch: int, tokens: int, dim: int) -> Make:
    """Tokens of the embedded teacher; the gradients of all three inputs."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, tokens, dim, generator=generator).to(device).requires_grad_()
        scale, shift = (torch.randn(batch, dim, generator=generator).to(device).requires_grad_() for _ in range(2))
        return Problem(lambda backend: [modulate.modulate(x, scale, shift, backend=backend)], [x, scale, shift])

    return make


def _adam(count: int) -> Make:
    """All parameters of Gaussians with colours, half of which a batch of views saw."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        groups = [
            [torch.rand(count, width, generator=generator).to(device) for width in (3, 4, 3, 1, 3)] for _ in range(4)
        ]
        rows = (torch.rand(count, generator=generator) < 0.5).to(device)

        def forward(backend: str) -> Sequence[Tensor]:
            adam.adam_step(*groups, [1e-3] * 5, 10, rows=rows, backend=backend)
            return groups[0]

        return Problem(forward, [])

    return make


def _residual(batch: int, channels: int, side: int) -> Make:
    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        four = torch.randn(4, batch, channels, side, side, generator=generator).to(device)
        table = noise_residual.Coefficients(*torch.rand(6, batch, generator=generator).to(device))
        return Problem(lambda backend: noise_residual.guided_residual(*four, table, backend), [])

    return make


def _stream(height: int, width: int, heads: int, dim: int, frames: int) -> Make:
    """A roll-out of a clip with window 9, sink 3 and chunks of 3, against SDPA under the mask of the whole clip."""
    stream = stream_attention.Stream(height, width, chunk=3, sink=3, window=9)
    rope = stream_attention.Rope3d.split_evenly(dim)

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        shape = (1, frames * stream.tokens, heads, dim)
        q, k, v = (torch.randn(shape, generator=generator).to(device).requires_grad_() for _ in range(3))
        angles = rope.angles(torch.arange(frames, device=device), height, width)
        seen = torch.zeros(frames, frames, dtype=torch.bool, device=device)
        for start in range(0, frames, stream.chunk):
            stop = min(frames, start + stream.chunk)
            seen[start:stop, stream.visible(start, stop)] = True
        allowed = seen.repeat_interleave(stream.tokens, 0).repeat_interleave(stream.tokens, 1)[None, None]

        def forward(backend: str) -> Sequence[Tensor]:
            if backend == "sdpa with mask":
                return [attend_reference(q, k, v, angles, angles, allowed)]
            return [stream_attention.rollout_attention(q, k, v, stream, rope, backend)]

        return Problem(forward, [q, k, v])

    return make


def _chunk(height: int, width: int, heads: int, dim: int, dtype: torch.dtype = torch.float32) -> Make:
    """One chunk of 3 frames over a full cache (sink 3, window 9): what a stream calls, forward only."""
    stream = stream_attention.Stream(height, width)
    rope = stream_attention.Rope3d.split_evenly(dim)

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        q = torch.randn(1, 3 * stream.tokens, heads, dim, generator=generator).to(device)
        k, v = (torch.randn(1, 15 * stream.tokens, heads, dim, generator=generator).to(device) for _ in range(2))
        q, k, v = (item.to(dtype) for item in (q, k, v))
        angles = rope.angles(torch.arange(15, device=device), height, width)
        own = angles[-q.shape[1] :]
        allowed = torch.ones(1, 1, q.shape[1], k.shape[1], dtype=torch.bool, device=device)

        def forward(backend: str) -> Sequence[Tensor]:
            if backend == "sdpa with mask":
                return [attend_reference(q, k, v, own, angles, allowed)]
            return [stream_attention.attend(q, k, v, stream, rope, backend=backend)]

        return Problem(forward, [])

    return make


CASES: tuple[Case, ...] = (
    Case("gaussian_rasterize", "10k at 64x64", gaussians_in_a_ball(10_000, 64, 64, 0.6)),
    Case("gaussian_rasterize", "100k at 512x512", gaussians_in_a_ball(100_000, 512, 512, 0.6)),
    Case("hash_grid", "65,536 points", hash_of_random_points(65_536, False)),
    Case("hash_grid", "65,536 points, positions too", hash_of_random_points(65_536, True)),
    Case("mesh_rasterize", "20,000 faces at 256x256", rasterize_sphere(100, 256)),
    Case("mesh_rasterize", "interpolate and antialias 256x256", shade_sphere(100, 256)),
    Case("adam", "100k Gaussians, half of them seen", _adam(100_000)),
    Case("noise_residual", "4 pictures of 64x64", _residual(4, 3, 64)),
    Case("noise_residual", "4 latents of 16 x 256x256", _residual(4, 16, 256)),
    Case("volume_render", "march 4,096 rays", _march(4096)),
    Case("volume_render", "render 4,096 rays x 64", _render(4096, 64)),
    Case("volume_render", "resample 4,096 rays 64 -> 32", _resample(4096, 64, 32)),
    Case("modulate", "8 x 256 tokens of 128", _modulate(8, 256, 128)),
    Case("modulate", "48 x 64 tokens of 288", _modulate(48, 64, 288)),
    Case("ssim", "four pictures of 64x64", _ssim(4, 64)),
    Case("ssim", "one picture of 512x512", _ssim(1, 512)),
    Case("stream_attention", "chunk of 8x8 frames, 8 heads of 32", _chunk(8, 8, 8, 32), "sdpa with mask"),
    Case(
        "stream_attention",
        "chunk of 8x8 frames, 4 heads of 64, bfloat16",
        _chunk(8, 8, 4, 64, torch.bfloat16),
        "sdpa with mask",
    ),
    Case("stream_attention", "chunk of 15x26 frames, 4 heads of 64", _chunk(15, 26, 4, 64), "sdpa with mask"),
    Case("stream_attention", "roll-out of 30 8x8 frames, 8 heads of 32", _stream(8, 8, 8, 32, 30), "sdpa with mask"),
)
