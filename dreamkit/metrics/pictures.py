"""What pictures of an asset tell without a prompt: colourfulness, contrast, how many fronts, how seeds differ.

Views are taken on a plain background; alpha weights take the background out of every mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.metrics.judge import IMAGE_SIZE, VIEWS, Judge, level_views
from dreamkit.scenes.cameras import view_name

LUMA = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in luminance (Rec. 709)."""
_THINNEST = 1 / 255
"""Coverage below what an 8-bit picture can hold is no foreground."""


def foreground(
    image: Tensor,  # [B, 3, H, W] in [0, 1]
    alpha: Tensor,  # [B, 1, H, W] in [0, 1]
    background: Tensor | float,
) -> Tensor:  # [B, 3, H, W] in [0, 1]
    """The colour of what stands before the background: c = (image - (1 - a) b) / a, in [0, 1]; 0 where a = 0."""
    solid = alpha > _THINNEST
    colour = (image - (1 - alpha) * background) / alpha.clamp_min(_THINNEST)
    return torch.where(solid, colour, 0.0).clamp(0, 1)


def weighted_mean(values: Tensor, weights: Tensor) -> float | None:
    """The mean sum w v / sum w over all pixels, in float64; `None` where nothing has weight."""
    weights = torch.where(weights > _THINNEST, weights, 0.0).double()
    total = float(weights.sum())
    return float((weights * values.double()).sum()) / total if total > 0 else None


def saturation(
    colour: Tensor,  # [B, 3, H, W] in [0, 1]
    alpha: Tensor,  # [B, 1, H, W] in [0, 1]
) -> float | None:
    """Mean HSV saturation of the foreground, weighted by alpha:  S = (max - min) / max over R, G, B; 0 for black.

    Args:
        colour: of the foreground alone (`foreground`).
        alpha: its coverage.

    Returns:
        A number in [0, 1], or `None` where nothing covers any pixel.
    """
    high, low = colour.amax(dim=1, keepdim=True), colour.amin(dim=1, keepdim=True)
    return weighted_mean(torch.where(high > 0, (high - low) / high.clamp_min(1e-12), 0.0), alpha)


def contrast(
    colour: Tensor,  # [B, 3, H, W] in [0, 1]
    alpha: Tensor,  # [B, 1, H, W] in [0, 1]
) -> float | None:
    """RMS contrast of the foreground, weighted by alpha:  sqrt(E[(Y - E[Y])^2]),  Y = 0.2126 R + 0.7152 G + 0.0722 B.

    Args:
        colour: of the foreground alone (`foreground`).
        alpha: its coverage.

    Returns:
        A number in [0, 0.5], or `None` where nothing covers any pixel.
    """
    luma = (colour * colour.new_tensor(LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    mean = weighted_mean(luma, alpha)
    if mean is None:
        return None
    variance = weighted_mean((luma - mean).square(), alpha)
    return None if variance is None else variance**0.5


@torch.no_grad()
def looks_front(judge: Judge, images: Tensor) -> Tensor:
    """Whether each of [B, 3, H, W] views at a moderate elevation looks like a front to the judge, [B] booleans."""
    return level_views(judge.verdicts(images)[1]) == VIEWS.index("front")


@torch.no_grad()
def view_agreement(judge: Judge, images: Tensor) -> float:
    """How well the sides of an object with a front can be told apart, whichever way it faces.

    max over rotations r of the share of views i whose judged name is that of azimuth_i + r: 1 for a faithful object,
    1/2 at most for one that looks the same all round.

    Args:
        judge: who names the views (front, side or back; overhead is no answer at a moderate elevation).
        images: [B, 3, H, W] views at B equal steps of a turn.
    """
    judged = level_views(judge.verdicts(images)[1])
    names = [view_name(360 * index / len(images), 0.0).removesuffix(" view") for index in range(len(images))]
    true = torch.tensor([VIEWS.index(name) for name in names])
    return max(float((judged == true.roll(turn)).float().mean()) for turn in range(len(images)))


def count_fronts(looks: Sequence[bool] | Tensor) -> int:
    """How many separate fronts a turn of equally spaced views shows; an asset should have one.

    A front is a run of consecutive views, around the end of the turn too, that look like one. A face is visible from
    half of the turn at most, so a run of k of n views counts ceil(k / (n / 2)) times: the runs' number, plus one for
    each that is longer than half a turn.

    Args:
        looks: for each view of the turn in its order, whether it looks like a front.
    """
    flags = [bool(flag) for flag in looks]
    if all(flags):
        return 2 if len(flags) > 1 else len(flags)
    first = flags.index(False)
    fronts, length = 0, 0
    for flag in [*flags[first:], *flags[:first], False]:
        if flag:
            length += 1
        elif length:
            fronts += -(-2 * length // len(flags))
            length = 0
    return fronts


@torch.no_grad()
def image_embeddings(judge: Judge, images: Tensor) -> Tensor:
    """The judge's unit embeddings [B, E] of pictures [B, 3, H, W] in [0, 1]."""
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        images = functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="area")
    return judge.network.encode_images(images.float().cpu())[0]


def view_variety(embeddings: Tensor) -> float:
    """How different the sides of one asset are:  mean over pairs of views i != j of  1 - cos(f_i, f_j).

    A judge that names views can't see a face that is smeared all round: it calls every side a side. An asset that looks
    the same from everywhere has a variety near 0, whatever is on it. After the variety that ESD is measured by (Wang et
    al., "Taming Mode Collapse in Score Distillation", arXiv 2401.00909), on embeddings instead of class probabilities.

    Args:
        embeddings: [V, E] of V >= 2 views at equal steps of a turn.

    Returns:
        A number in [0, 2].
    """
    unit = functional.normalize(embeddings.double(), dim=-1)
    count = len(unit)
    return float(1 - ((unit @ unit.T).sum() - count) / (count * (count - 1)))


def diversity(embeddings: Sequence[Tensor]) -> float | None:
    """How different several assets of one prompt are:  mean over pairs and views of  1 - cos(f_i(view), f_j(view)).

    Args:
        embeddings: for each asset, [V, E] embeddings of the same V views.

    Returns:
        A number in [0, 2], 0 for equal assets; `None` for fewer than two.
    """
    if len(embeddings) < 2:
        return None
    stacked = functional.normalize(torch.stack(list(embeddings)).double(), dim=-1)
    distances = [
        1 - (stacked[i] * stacked[j]).sum(dim=-1).mean()
        for i in range(len(stacked))
        for j in range(i + 1, len(stacked))
    ]
    return float(torch.stack(distances).mean())
