"""The Triton kernels of antialiasing: silhouettes between neighbouring pixels, and colours blended across them.

A program of `silhouettes_kernel` has pairs of pixels, those of the others have pixels: each gathers from the four pairs
that it is in. Only the gradient of the positions takes atomics, as in triton.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import DEGENERATE, ROUNDING
from .triton_common import BLOCK, add_gradient, blocks, centre, corners_of, cross, positions_gradient, vertex_at
from .types import MAX_STEPS


@triton.jit
def _side(bx, by, bw, cx, cy, cw, x0, y0, x1, y1, sign, open_, ROUNDING: tl.constexpr):
    """One edge of a face: n, and how far along the segment from P_0 to P_1 it is left there, infinity if it is not."""
    nx, ny, nw = cross(bx, by, bw, cx, cy, cw)
    here = sign * (nx * x0 + ny * y0 + nw)
    there = sign * (nx * x1 + ny * y1 + nw)
    rounding = ROUNDING * (tl.abs(nx) + tl.abs(ny) + tl.abs(nw))
    leaves = open_ & (there <= rounding) & (here - there > rounding)
    share = tl.where(leaves, here / tl.where(leaves, here - there, 1.0), float("inf"))
    return nx, ny, nw, share


@triton.jit
def silhouettes_kernel(
    seen_ptr, depth_ptr, positions_ptr, faces_ptr, edges_ptr, silhouettes_ptr, pixels, vertices, height, width,
    MAX_STEPS: tl.constexpr, DEGENERATE: tl.constexpr, ROUNDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The silhouette edge between a pixel and the next one, or -1; `reference.silhouettes`."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.program_id(1)
    along_row = axis == 0
    has_next = tl.where(along_row, pixel % width < width - 1, pixel // width % height < height - 1)
    pair = (pixel < pixels) & has_next
    step = tl.where(along_row, 1, width)
    first = tl.load(seen_ptr + pixel, mask=pair, other=-1)
    second = tl.load(seen_ptr + pixel + step, mask=pair, other=-1)
    first_depth = tl.load(depth_ptr + pixel, mask=pair, other=1.0)
    second_depth = tl.load(depth_ptr + pixel + step, mask=pair, other=1.0)
    swapped = ~((second < 0) | ((first >= 0) & (first_depth <= second_depth)))
    x0, y0 = centre(tl.where(swapped, pixel + step, pixel), height, width)
    x1, y1 = centre(tl.where(swapped, pixel, pixel + step), height, width)
    view = pixel // (height * width)
    face = tl.where(swapped, second, first)
    entered = tl.full([BLOCK], -1, tl.int32)
    found = tl.full([BLOCK], -1, tl.int32)
    walks = (pair & (first != second)).to(tl.int32)
    steps = 0
    while (steps < MAX_STEPS) & (tl.max(walks, axis=0) > 0):
        on = walks > 0
        a, b, c = corners_of(faces_ptr, face, on)
        ax, ay, aw = vertex_at(positions_ptr, view, vertices, a, on)
        bx, by, bw = vertex_at(positions_ptr, view, vertices, b, on)
        cx, cy, cw = vertex_at(positions_ptr, view, vertices, c, on)
        nx, ny, nw = cross(bx, by, bw, cx, cy, cw)
        det = ax * nx + ay * ny + aw * nw
        least = DEGENERATE * (tl.abs(ax * nx) + tl.abs(ay * ny) + tl.abs(aw * nw))
        sign = tl.where(det > least, 1.0, tl.where(det < -least, -1.0, 0.0)).to(tl.float64)
        nx, ny, nw, share = _side(bx, by, bw, cx, cy, cw, x0, y0, x1, y1, sign, on & (entered != 0), ROUNDING)
        edge = tl.zeros([BLOCK], tl.int32)
        mx, my, mw, other = _side(cx, cy, cw, ax, ay, aw, x0, y0, x1, y1, sign, on & (entered != 1), ROUNDING)
        sooner = other < share
        edge = tl.where(sooner, 1, edge)
        share = tl.where(sooner, other, share)
        nx, ny, nw = tl.where(sooner, mx, nx), tl.where(sooner, my, ny), tl.where(sooner, mw, nw)
        mx, my, mw, other = _side(ax, ay, aw, bx, by, bw, x0, y0, x1, y1, sign, on & (entered != 2), ROUNDING)
        sooner = other < share
        edge = tl.where(sooner, 2, edge)
        share = tl.where(sooner, other, share)
        nx, ny, nw = tl.where(sooner, mx, nx), tl.where(sooner, my, ny), tl.where(sooner, mw, nw)
        left = on & (share < float("inf"))
        code = 3 * face + edge
        beyond = tl.load(edges_ptr + code, mask=left, other=-1)
        behind = left & (beyond >= 0)
        apex = tl.load(faces_ptr + beyond, mask=behind, other=0)
        px, py, pw = vertex_at(positions_ptr, view, vertices, apex, behind)
        goes_on = behind & (sign * (nx * px + ny * py + nw * pw) < 0.0)
        across, down = tl.abs(nx) / width, tl.abs(ny) / height
        steep = tl.where(along_row, across >= down, down > across)
        found = tl.where(left & ~goes_on & steep, 2 * code + swapped.to(tl.int32), found)
        face = tl.where(goes_on, beyond // 3, face)
        entered = tl.where(goes_on, beyond % 3, entered)
        walks = (goes_on & (face != tl.where(swapped, first, second))).to(tl.int32)
        steps += 1
    tl.store(silhouettes_ptr + axis.to(tl.int64) * pixels + pixel, found, mask=pixel < pixels)


@triton.jit
def _crossing(positions_ptr, faces_ptr, vertices, code, first, step, height, width, crosses):
    """Of silhouettes between pixels `first` and `first + step`: vertices, and e at the own and at the other centre."""
    place = code // 2
    face, edge = place // 3, place % 3
    b = tl.load(faces_ptr + face.to(tl.int64) * 3 + (edge + 1) % 3, mask=crosses, other=0)
    c = tl.load(faces_ptr + face.to(tl.int64) * 3 + (edge + 2) % 3, mask=crosses, other=0)
    view = first // (height * width)
    bx, by, bw = vertex_at(positions_ptr, view, vertices, b, crosses)
    cx, cy, cw = vertex_at(positions_ptr, view, vertices, c, crosses)
    nx, ny, nw = cross(bx, by, bw, cx, cy, cw)
    swapped = code % 2 != 0
    own, other = tl.where(swapped, first + step, first), tl.where(swapped, first, first + step)
    x0, y0 = centre(own, height, width)
    x1, y1 = centre(other, height, width)
    here = nx * x0 + ny * y0 + nw
    there = nx * x1 + ny * y1 + nw
    return b, c, bx, by, bw, cx, cy, cw, own, other, x0, y0, x1, y1, here, there


@triton.jit
def _share(here, there, crosses):
    return (here / tl.where(crosses, here - there, 1.0)).to(tl.float32)


@triton.jit
def _weight(silhouettes_ptr, positions_ptr, faces_ptr, vertices, first, step, height, width, exists):
    """What is blended between two pixels, |1/2 - t|, and into which of them; 0 where there is no silhouette."""
    code = tl.load(silhouettes_ptr + first, mask=exists, other=-1)
    crosses = code >= 0
    _, _, _, _, _, _, _, _, own, other, _, _, _, _, here, there = _crossing(
        positions_ptr, faces_ptr, vertices, code, first, step, height, width, crosses
    )
    share = _share(here, there, crosses)
    return tl.where(crosses, tl.abs(0.5 - share), 0.0), tl.where(share < 0.5, own, other)


@triton.jit
def blend_kernel(
    image_ptr, silhouettes_ptr, positions_ptr, faces_ptr, result_ptr, pixels, vertices, height, width, channels,
    BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Blend an image, or `BACKWARD` the gradient of the result into that of the image."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = pixel < pixels
    column, row = pixel % width, pixel // width % height
    down_ptr = silhouettes_ptr + pixels
    # The next one to the right, the one to the left, the one below, the one above.
    rw, r_target = _weight(
        silhouettes_ptr, positions_ptr, faces_ptr, vertices, pixel, 1, height, width, exists & (column + 1 < width)
    )
    lw, l_target = _weight(
        silhouettes_ptr, positions_ptr, faces_ptr, vertices, pixel - 1, 1, height, width, exists & (column > 0)
    )
    bw, b_target = _weight(
        down_ptr, positions_ptr, faces_ptr, vertices, pixel, width, height, width, exists & (row + 1 < height)
    )
    aw, a_target = _weight(
        down_ptr, positions_ptr, faces_ptr, vertices, pixel - width, width, height, width, exists & (row > 0)
    )
    r_here, l_here, b_here, a_here = r_target == pixel, l_target == pixel, b_target == pixel, a_target == pixel
    if BACKWARD:  # what a pixel gives to its neighbours is what comes back from them
        kept = (
            tl.where(r_here, rw, 0.0)
            + tl.where(l_here, lw, 0.0)
            + tl.where(b_here, bw, 0.0)
            + tl.where(a_here, aw, 0.0)
        )
        rw, lw = tl.where(r_here, 0.0, rw), tl.where(l_here, 0.0, lw)
        bw, aw = tl.where(b_here, 0.0, bw), tl.where(a_here, 0.0, aw)
    else:
        rw, lw = tl.where(r_here, rw, 0.0), tl.where(l_here, lw, 0.0)
        bw, aw = tl.where(b_here, bw, 0.0), tl.where(a_here, aw, 0.0)
        kept = rw + lw + bw + aw
    for channel in range(channels):
        place = image_ptr + pixel * channels + channel
        value = tl.load(place, mask=exists, other=0.0)
        total = (1.0 - kept) * value
        total += rw * tl.load(place + channels, mask=rw > 0.0, other=0.0)
        total += lw * tl.load(place - channels, mask=lw > 0.0, other=0.0)
        total += bw * tl.load(place + width * channels, mask=bw > 0.0, other=0.0)
        total += aw * tl.load(place - width * channels, mask=aw > 0.0, other=0.0)
        tl.store(result_ptr + pixel * channels + channel, total, mask=exists)


@triton.jit
def edges_backward_kernel(
    image_ptr, silhouettes_ptr, positions_ptr, faces_ptr, d_result_ptr, sums_ptr, pixels, vertices, height, width,
    channels, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of the vertices of silhouettes: t = here / (here - there) and n = q_1 x q_2."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    axis = tl.program_id(1)
    code = tl.load(silhouettes_ptr + axis.to(tl.int64) * pixels + pixel, mask=pixel < pixels, other=-1)
    crosses = code >= 0
    step = tl.where(axis == 0, 1, width)
    b, c, bx, by, bw, cx, cy, cw, own, other, x0, y0, x1, y1, here, there = _crossing(
        positions_ptr, faces_ptr, vertices, code, pixel, step, height, width, crosses
    )
    target = tl.where(_share(here, there, crosses) < 0.5, own, other)
    d_share = tl.zeros([BLOCK], tl.float64)
    for channel in range(channels):
        incoming = tl.load(d_result_ptr + target * channels + channel, mask=crosses, other=0.0)
        change = tl.load(image_ptr + other * channels + channel, mask=crosses, other=0.0)
        change -= tl.load(image_ptr + own * channels + channel, mask=crosses, other=0.0)
        d_share -= incoming.to(tl.float64) * change
    span = tl.where(crosses, here - there, 1.0)
    d_here, d_there = -d_share * there / (span * span), d_share * here / (span * span)
    gx, gy, gw = d_here * x0 + d_there * x1, d_here * y0 + d_there * y1, d_here + d_there
    view = pixel // (height * width)
    dx, dy, dw = cross(cx, cy, cw, gx, gy, gw)
    add_gradient(sums_ptr, view, vertices, b, dx, dy, dw, crosses)
    dx, dy, dw = cross(gx, gy, gw, bx, by, bw)
    add_gradient(sums_ptr, view, vertices, c, dx, dy, dw, crosses)


def antialias_forward(
    image: Tensor, seen: Tensor, depth: Tensor, positions: Tensor, faces: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """The blended image, and the silhouettes [2, B, H, W] between pixels and their next ones."""
    silhouettes = seen.new_empty(2, *seen.shape)
    if seen.numel():
        sizes = (seen.numel(), positions.shape[1], *seen.shape[1:])
        inputs = (seen, depth, positions, faces, edges, silhouettes, *sizes)
        # Fused operations round otherwise than the reference.
        options = {
            "MAX_STEPS": MAX_STEPS,
            "DEGENERATE": DEGENERATE,
            "ROUNDING": ROUNDING,
            "BLOCK": BLOCK,
            "enable_fp_fusion": False,
        }
        silhouettes_kernel[(*blocks(seen.numel()), 2)](*inputs, **options)
    return _blend(image, silhouettes, positions, faces, backward=False), silhouettes


def _blend(image: Tensor, silhouettes: Tensor, positions: Tensor, faces: Tensor, backward: bool) -> Tensor:
    result = image.new_empty(image.shape)
    if image.numel():
        pixels = silhouettes[0].numel()
        sizes = (pixels, positions.shape[1], *image.shape[1:])
        inputs = (image, silhouettes, positions, faces, result, *sizes)
        blend_kernel[blocks(pixels)](*inputs, BACKWARD=backward, BLOCK=BLOCK)
    return result


def antialias_backward(
    image: Tensor, silhouettes: Tensor, positions: Tensor, faces: Tensor, d_result: Tensor, of_positions: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the image and, if wanted, of the positions."""
    d_image = _blend(d_result, silhouettes, positions, faces, backward=True)
    if not of_positions:
        return d_image, None
    sums = positions.new_zeros(*positions.shape[:2], 3, dtype=torch.float64)
    if image.numel():
        pixels = silhouettes[0].numel()
        inputs = (image, silhouettes, positions, faces, d_result, sums, pixels, positions.shape[1], *image.shape[1:])
        edges_backward_kernel[(*blocks(pixels), 2)](*inputs, BLOCK=BLOCK)
    return d_image, positions_gradient(sums)
