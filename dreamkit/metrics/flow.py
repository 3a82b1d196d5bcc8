"""Dense optical flow between frames, and what is read from it: tracked points, warped frames, occlusions.

Iterative pyramidal Lucas-Kanade. Around every pixel a window W is registered: with I the first frame, J the second,
g the mean gradient of I and of J moved back by the flow v so far, and m the local mean of v,

    v <- m + (sum_W g g^T + c)^-1 sum_W g (I(x) - J(x + v) + g^T (v - m))

from a coarse pyramid level to the finest. What v takes out of the picture has no say, and the constant c keeps what
has no texture at its neighbours' mean. (Lucas & Kanade, IJCAI 1981; Bouguet, "Pyramidal implementation of the Lucas
Kanade feature tracker", 2001; dense and iterated as in Le Besnerais & Champagnat, ICIP 2005, which is scikit-image's
`optical_flow_ilk`.) Unlike that one, this one takes thousands of pairs of frames at once.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.checks import require, require_integer

_WINDOW = 7
_SMOOTHEST = 1e-5
"""Mean squared gradient, for colours in [0, 1], below which a window has no texture to speak of."""
_COARSEST = 12
"""Pixels along the shorter edge of the coarsest level, at least."""
_OCCLUDED = (0.05, 0.5)
"""A pixel is occluded where flow there and back misses it by more than 0.5 pixels + 5 percent of both lengths."""


def _mean(values: Tensor) -> Tensor:
    """Mean over the window around each pixel; at the border over what there is of it."""
    return functional.avg_pool2d(values, _WINDOW, stride=1, padding=_WINDOW // 2, count_include_pad=False)


def _gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences along x and y of [B, C, H, W], with the border repeated."""
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    horizontal = 0.5 * (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2])
    return horizontal, 0.5 * (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1])


def warp(
    images: Tensor,  # [B, C, H, W]
    flow: Tensor,  # [B, 2, H, W] pixels, x then y
) -> Tensor:  # [B, C, H, W]
    """Read pictures where a flow points, bilinearly: out(x) = image(x + flow(x)), the border repeated outside."""
    return functional.grid_sample(images, _grid(flow), padding_mode="border", align_corners=False)


def _grid(flow: Tensor) -> Tensor:
    """Where a flow points, [B, H, W, 2] from -1 to 1 between the outer edges of the picture."""
    height, width = flow.shape[-2:]
    x = torch.arange(width, dtype=flow.dtype, device=flow.device) + flow[:, 0]
    y = torch.arange(height, dtype=flow.dtype, device=flow.device)[:, None] + flow[:, 1]
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)


def _inside(flow: Tensor) -> Tensor:
    """Whether a flow points into the picture, [B, H, W]."""
    return (_grid(flow).abs() <= 1).all(dim=-1)


def _refine(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """One step of the module's equation at one level."""
    moved = warp(second, flow)
    gx, gy = _gradient(0.5 * (first + moved))
    mean = _mean(flow)
    own = flow - mean
    residual = first - moved + gx * own[:, :1] + gy * own[:, 1:]
    factors = ((gx, gx), (gy, gy), (gx, gy), (gx, residual), (gy, residual))
    products = torch.stack([(a * b).mean(dim=1) for a, b in factors], dim=1) * _inside(flow)[:, None]
    xx, yy, xy, bx, by = _mean(products).unbind(dim=1)
    xx, yy = xx + _SMOOTHEST, yy + _SMOOTHEST
    determinant = xx * yy - xy * xy
    step = torch.stack([yy * bx - xy * by, xx * by - xy * bx], dim=1) / determinant[:, None]
    return mean + step.clamp(-_WINDOW / 2, _WINDOW / 2)


@torch.no_grad()
def optical_flow(
    first: Tensor,  # [B, C, H, W] in [0, 1]
    second: Tensor,  # [B, C, H, W] in [0, 1]
    iterations: int = 4,
) -> Tensor:  # [B, 2, H, W]
    """How far each pixel of the first frames moves to be found in the second, in pixels: x to the right, y down.

    Exact to some hundredths of a pixel for textured pictures that shift by up to a twelfth of their size; a patch
    without texture takes the flow of what surrounds it.

    Args:
        first: frames at least 16 pixels high and wide.
        second: the frames after them.
        iterations: refinements a level, at least 1.

    Raises:
        ConfigError: frames of different shapes, of too few pixels, or not finite.
    """
    require("The shape of the second frames", first.shape == second.shape, tuple(second.shape), f"{tuple(first.shape)}")
    fine = first.ndim == 4 and min(first.shape[-2:]) >= 16
    require("The shape of the frames", fine, tuple(first.shape), "[B, C, H, W] of 16 pixels or more each way")
    finite = bool(torch.isfinite(first).all() and torch.isfinite(second).all())
    require("A frame", finite, "not finite", "numbers in [0, 1]")
    require_integer("The number of iterations", iterations, 1)
    pyramid = [(first.float(), second.float())]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * _COARSEST:
        a, b = pyramid[-1]
        pyramid.append((functional.avg_pool2d(a, 2), functional.avg_pool2d(b, 2)))
    flow = torch.zeros(len(first), 2, *pyramid[-1][0].shape[-2:], device=first.device)
    for a, b in reversed(pyramid):
        if flow.shape[-2:] != a.shape[-2:]:
            flow = 2 * functional.interpolate(flow, a.shape[-2:], mode="bilinear", align_corners=False)
        for _ in range(iterations):
            flow = _refine(a, b, flow)
    return flow


@torch.no_grad()
def consistent(
    there: Tensor,  # [B, 2, H, W] pixels
    back: Tensor,  # [B, 2, H, W] pixels
) -> Tensor:  # [B, 1, H, W] bool
    """Where flow to the next frame and back ends where it began: not hidden there, and not out of the picture.

        |u(x) + v(x + u)| < 0.5 + 0.05 (|u(x)| + |v(x + u)|)    and    x + u inside

    (after Sundaram et al., "Dense point trajectories by GPU-accelerated large displacement optical flow", ECCV 2010.)
    """
    returned = warp(back, there)
    share, pixels = _OCCLUDED
    limit = pixels + share * (there.norm(dim=1) + returned.norm(dim=1))
    return (((there + returned).norm(dim=1) < limit) & _inside(there))[:, None]


@torch.no_grad()
def follow(
    flow: Tensor,  # [T, 2, H, W] pixels, from each frame to the next
    start: Tensor,  # [N, 2] x and y in [0, 1]
) -> Tensor:  # [T + 1, N, 2]
    """Points of the first frame carried along by the flow from frame to frame, x and y in [0, 1] of the picture.

    A point outside moves on like the nearest pixel inside.
    """
    size = flow.new_tensor([flow.shape[3], flow.shape[2]])
    places = [start.to(flow)]
    for field in flow:
        grid = (2 * places[-1] - 1)[None, None]
        moved = functional.grid_sample(field[None], grid, padding_mode="border", align_corners=False)[0, :, 0].T
        places.append(places[-1] + moved / size)
    return torch.stack(places)
