"""The definitions of the rasteriser, in torch: any float type or device, differentiable any number of times.

A vertex is q = (x, y, w) in homogeneous screen coordinates. With n_i = q_j x q_k (i, j, k cyclic) the edge functions of
a face at the pixel P = (X, Y, 1) are e_i = n_i . P, and with det = q_0 . n_0

    sum_i e_i q_i = det P,

so the face is seen in front of the camera where all e_i have the sign of det, its perspective-correct barycentrics are
e_i / sum_j e_j, and z / w = sum_i e_i z_i / det. Nothing is divided by w, and nothing needs clipping (Olano and Greer,
"Triangle Scan Conversion using 2D Homogeneous Coordinates", 1997).

All of it is computed in float64. Products of float32 numbers are exact there, so that two faces that share an edge see
edge functions that are exactly opposite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .types import MAX_STEPS

DEGENERATE = 1e-14
"""A determinant that is no larger than this share of the sizes of its terms is that of a face without an area."""
ROUNDING = 1e-14
"""A centre is on an edge if the edge function is no larger than this share of the sizes of its coefficients: far above
its rounding error, so that it does not depend on the order of operations, and far below what can be seen."""
PAIRS = 2**21
"""Pairs of a face and a pixel that are looked at together."""


def centres(pixels: Tensor, height: int, width: int) -> Tensor:
    """P = (X, Y, 1) [..., 3] float64 of pixels that are numbered row by row, image by image."""
    row, column = pixels // width % height, pixels % width
    x = (2 * column + 1).double() / width - 1
    y = 1 - (2 * row + 1).double() / height
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def edge_functions(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Edge functions n [..., 3, 3] and det [...] of faces from the clip positions [..., 3, 4] of their corners.

    The determinant is 0 for faces that are not drawn: those without an area, those with NaN or infinity.
    """
    q = corners[..., [0, 1, 3]]
    n = torch.linalg.cross(q[..., [1, 2, 0], :], q[..., [2, 0, 1], :])
    terms = q[..., 0, :] * n[..., 0, :]
    det = terms.sum(-1)
    return n, torch.where(det.abs() > DEGENERATE * terms.abs().sum(-1), det, 0.0)


def _boxes(corners: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """First column and row, and the numbers of columns and rows [..., 2] of the pixels that faces may cover."""
    w = corners[..., 3:]
    outside = (corners[..., :3] > w).all(-2).any(-1) | (corners[..., :3] < -w).all(-2).any(-1)
    size = torch.tensor([width, height], device=corners.device)
    flip = torch.tensor([1.0, -1.0], device=corners.device)
    places = ((corners[..., :2] / w * flip + 1) * size - 1) / 2
    crossing = (w <= 0).any(-2)
    margin = 1e-3  # far above all rounding
    low = torch.where(crossing, 0.0, places.amin(-2) - margin).ceil().clamp_min(0)
    high = torch.where(crossing, size - 1.0, places.amax(-2) + margin).floor().minimum(size - 1.0)
    drawn = ~outside & corners.isfinite().flatten(-2).all(-1)
    counts = torch.where(drawn[..., None], high - low + 1, 0.0).clamp_min(0)
    counts = torch.where(counts.amin(-1, keepdim=True) > 0, counts, 0.0)
    return torch.where(counts > 0, low, 0.0).long(), counts.long()


@torch.no_grad()
def set_up(positions: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What drawing needs to know of every face in every view [B F, ...], float64.

    Returns:
        n [..., 3, 3], positive inside, with the plane of z / w below it: [..., 4, 3]; then the first column and row
        [..., 2] of the pixels that the face may cover, and how many columns and rows [..., 2], 0 if it is not drawn.
    """
    corners = positions.double()[:, faces.long()].flatten(0, 1)
    n, det = edge_functions(corners)
    n = n * det.sign()[:, None, None]
    plane = (n * corners[..., 2:3]).sum(-2, keepdim=True) / det.abs()[:, None, None]
    low, sizes = _boxes(corners, height, width)
    return torch.cat([n, plane], dim=-2), low, sizes * (det != 0)[:, None]


@torch.no_grad()
def visible(positions: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The nearest face [B, H, W] int32 and its depth [B, H, W] at every pixel's centre.

    A centre on an edge belongs to the side to which the edge function rises with X, or with Y if it does not change
    with X: to one of the two faces that share it.
    """
    views, count = len(positions), len(faces)
    functions, low, sizes = set_up(positions, faces, height, width)
    n = functions[:, :3]
    keeps = (n[..., 0] > 0) | (n[..., 0] == 0) & (n[..., 1] > 0)
    rounding = ROUNDING * n.abs().sum(-1)  # as X and Y are at most 1
    totals = sizes.prod(-1).cumsum(0)
    best = positions.new_full((views * height * width,), torch.inf)
    seen = torch.full(best.shape, -1, dtype=torch.int64, device=best.device)
    begin, done = 0, 0
    while begin < len(totals):
        end = max(begin + 1, int(torch.searchsorted(totals, done + PAIRS, right=True)))
        counts = totals[begin:end].diff(prepend=totals.new_tensor([done]))
        begins = counts.cumsum(0) - counts
        face = torch.repeat_interleave(torch.arange(begin, end, device=best.device), counts)
        place = torch.arange(len(face), device=best.device) - begins[face - begin]
        column = low[face, 0] + place % sizes[face, 0]
        row = low[face, 1] + place // sizes[face, 0]
        pixel = (face // count * height + row) * width + column
        values = (functions[face] * centres(pixel, height, width)[:, None]).sum(-1)
        e, depth = values[:, :3], values[:, 3].to(best.dtype)
        on_the_side = torch.where(keeps[face], e >= -rounding[face], e > rounding[face])
        inside = on_the_side.all(-1) & (depth.abs() <= 1)
        face, pixel, depth = face[inside], pixel[inside], depth[inside]
        before = best.clone()
        best.scatter_reduce_(0, pixel, depth, "amin")
        nearest = (depth == best[pixel]) & (depth < before[pixel])  # faces before these win a tie
        lowest = torch.full_like(seen, len(totals)).scatter_reduce_(0, pixel[nearest], face[nearest], "amin")
        seen = torch.where(best < before, lowest, seen)
        begin, done = end, int(totals[end - 1])
    found = seen >= 0
    seen = torch.where(found, seen % max(count, 1), seen).int()
    return seen.view(views, height, width), torch.where(found, best, 1.0).view(views, height, width)


def _corners(positions: Tensor, faces: Tensor, face: Tensor, pixels: Tensor, area: int) -> Tensor:
    """Clip positions [..., 3, 4] float64 of the corners of the faces that pixels of images of an area see."""
    return positions[(pixels // area)[..., None], faces.long()[face.long()]].double()


def barycentrics_reference(positions: Tensor, faces: Tensor, seen: Tensor) -> Tensor:
    """Barycentrics [B, H, W, 3] of the seen faces [B, H, W]; 0 where there is none."""
    height, width = seen.shape[1:]
    pixels = (seen.flatten() >= 0).nonzero()[:, 0]
    corners = _corners(positions, faces, seen.flatten()[pixels], pixels, height * width)
    n, _ = edge_functions(corners)
    e = (n * centres(pixels, height, width)[:, None]).sum(-1)
    values = (e / e.sum(-1, keepdim=True)).to(positions.dtype)
    return positions.new_zeros(seen.numel(), 3).index_copy(0, pixels, values).view(*seen.shape, 3)


def rasterize_reference(positions: Tensor, faces: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Faces, barycentrics and depth of `rasterize` in plain torch operations; see there."""
    seen, depth = visible(positions, faces, height, width)
    return seen, barycentrics_reference(positions, faces, seen), depth


def interpolate_reference(attributes: Tensor, faces: Tensor, seen: Tensor, barycentrics: Tensor) -> Tensor:
    """`interpolate` in plain torch operations, attributes [B or 1, V, C]; see there."""
    pixels = (seen.flatten() >= 0).nonzero()[:, 0]
    view = pixels // (seen.shape[1] * seen.shape[2]) if len(attributes) > 1 else torch.zeros_like(pixels)
    corners = faces.long()[seen.flatten()[pixels].long()]
    weights = barycentrics.reshape(-1, 3)[pixels]
    values = torch.einsum("pi,pic->pc", weights, attributes[view[:, None], corners])
    channels = attributes.shape[-1]
    return attributes.new_zeros(seen.numel(), channels).index_copy(0, pixels, values).view(*seen.shape, channels)


def neighbours(shape: torch.Size, axis: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Numbers of the pixels [N] of images [B, H, W] that have a next one along an axis (1 down, 2 right), and of it."""
    number = torch.arange(shape.numel(), device=device).view(shape)
    length = shape[axis] - 1
    return number.narrow(axis, 0, length).flatten(), number.narrow(axis, 1, length).flatten()


@torch.no_grad()
def silhouettes(
    seen: Tensor, depth: Tensor, positions: Tensor, faces: Tensor, edges: Tensor, axis: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The silhouette edges that cross the segments between neighbouring centres that see different faces.

    Where both see one, the nearer counts. From it, the search walks over the surface along the segment, from a face to
    its neighbour, until it finds an edge behind which the surface turns back or ends, or comes to the face that the
    other centre sees. A centre on an edge is beyond it.

    Returns:
        For each crossing: the pixel that sees the nearer surface, the other one, a face and which of its edges.
    """
    height, width = seen.shape[1:]
    flat, flat_depth = seen.flatten().long(), depth.flatten()
    first, second = neighbours(seen.shape, axis, seen.device)
    differ = flat[first] != flat[second]
    first, second = first[differ], second[differ]
    first_is_nearer = (flat[second] < 0) | (flat[first] >= 0) & (flat_depth[first] <= flat_depth[second])
    own, other = torch.where(first_is_nearer, first, second), torch.where(first_is_nearer, second, first)
    face, entered = flat[own], torch.full_like(own, -1)
    size = torch.tensor([width, height], device=seen.device)
    found: list[tuple[Tensor, ...]] = [(own[:0],) * 4]
    for _ in range(MAX_STEPS):
        n, det = edge_functions(_corners(positions, faces, face, own, height * width))
        n = n * det.sign()[:, None, None]
        here = (n * centres(own, height, width)[:, None]).sum(-1)
        there = (n * centres(other, height, width)[:, None]).sum(-1)
        rounding = ROUNDING * n.abs().sum(-1)
        leaves = (there <= rounding) & (here - there > rounding)
        leaves &= torch.arange(3, device=own.device) != entered[:, None]
        share, edge = torch.where(leaves, here / (here - there), torch.inf).min(-1)
        left = share.isfinite()
        own, other, face, edge, n = own[left], other[left], face[left], edge[left], n[left]
        n = n[torch.arange(len(edge), device=own.device), edge]
        beyond = edges.long()[face, edge]
        opposite = faces.long().flatten()[beyond.clamp_min(0)]
        apex = positions[own // (height * width), opposite].double()[:, [0, 1, 3]]
        silhouette = (beyond < 0) | ~((n * apex).sum(-1) < 0)
        slope = n[:, :2].abs() / size  # by a step of a pixel
        steep = slope[:, 0] >= slope[:, 1] if axis == 2 else slope[:, 1] > slope[:, 0]
        hit = silhouette & steep
        found.append((own[hit], other[hit], face[hit], edge[hit]))
        goes_on = ~silhouette & (beyond // 3 != flat[other])
        own, other = own[goes_on], other[goes_on]
        face, entered = beyond[goes_on] // 3, beyond[goes_on] % 3
        if len(own) == 0:
            break
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def antialias_reference(
    image: Tensor, seen: Tensor, depth: Tensor, positions: Tensor, faces: Tensor, edges: Tensor
) -> Tensor:
    """`antialias` in plain torch operations; see there."""
    height, width = seen.shape[1:]
    colors = image.flatten(0, 2)
    result = colors
    for axis in (2, 1):
        own, other, face, edge = silhouettes(seen, depth, positions, faces, edges, axis)
        n, _ = edge_functions(_corners(positions, faces, face, own, height * width))
        n = n[torch.arange(len(edge), device=edge.device), edge]
        here = (n * centres(own, height, width)).sum(-1)
        there = (n * centres(other, height, width)).sum(-1)
        share = (here / (here - there)).to(image.dtype)[:, None]  # of the segment that the nearer surface covers
        change = (0.5 - share) * (colors[other] - colors[own])  # where share is below one half, `own` is too full
        target = torch.where(share[:, 0] < 0.5, own, other)
        result = result.index_add(0, target, change)
    return result.view(image.shape)
