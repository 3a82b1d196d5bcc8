"""Classifier-free guidance, in one convention.

With E(y) a model's prediction for the prompt and E(n) for the negative (or empty) prompt, we use everywhere

    D(s) = E(n) + s (E(y) - E(n))

(Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598, as diffusers, DMD2 and rCM write it): s = 0 is
the negative prompt, s = 1 the prompt, s > 1 extrapolates. Others write E(y) + s' (E(y) - E(n)) (Self-Forcing, LongLive,
threestudio without perp-neg), which is D(s' + 1): `from_delta_convention` translates their numbers.

The formula is the same for eps, x0, v and flow: given x_t they are affine in one another, and the weights of E(y) and
E(n) sum to 1. So the network's raw output is guided and converted afterwards, which is exact even at alpha = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.schedule import Prediction


@dataclass(frozen=True)
class GuidedPrediction:
    """The predictions of one batched guided call.

    Args:
        guided: D(s) = E(n) + s (E(y) - E(n)).
        positive: E(y), for the prompt.
        negative: E(n), for the negative prompt.
        null: E(0), for the empty prompt; `None` unless it was asked for.
        also: answers to the other questions of the same forward pass.
    """

    guided: Prediction
    positive: Prediction
    negative: Prediction
    null: Prediction | None = None
    also: list[Prediction] = field(default_factory=list)


@dataclass(frozen=True)
class Repulsion:
    """Views that a prediction is pushed away from.

    Args:
        conditions: K batches of prompts that name other views, B rows each.
        weights: how strongly each pushes, >= 0, [K, B].
    """

    conditions: Sequence[Condition]
    weights: Tensor  # [K, B]


def guide(
    positive: Tensor,  # [B, ...]
    negative: Tensor,  # [B, ...]
    scale: float | Tensor,  # one number or [B]
) -> Tensor:
    """D(s) = E(n) + s (E(y) - E(n)), [B, ...].

    Args:
        positive: prediction for the prompt, [B, ...].
        negative: prediction for the negative or empty prompt, [B, ...].
        scale: s, one number or one per sample [B]; 1 returns `positive`.
    """
    if isinstance(scale, Tensor) and scale.ndim == 1:
        scale = scale.reshape(-1, *(1,) * (positive.ndim - 1))
    return negative + scale * (positive - negative)


def from_delta_convention(scale: float) -> float:
    """Our scale for a scale s' of the convention E(y) + s' (E(y) - E(n)): s' + 1.

    Args:
        scale: s' as Self-Forcing, LongLive and others write it; their 3.0 is our 4.0.
    """
    return scale + 1.0


def guidance_rescale(
    guided: Tensor,  # [B, ...]
    positive: Tensor,  # [B, ...]
    strength: float = 0.7,
) -> Tensor:
    """Pull the guided prediction's spread back to the unguided one's, against over-exposure at high scales.

    guided * (strength std(positive) / std(guided) + 1 - strength), the standard deviation taken per sample
    (Lin et al., arXiv 2305.08891, section 3.4).

    Args:
        guided: D(s), [B, ...].
        positive: E(y), [B, ...].
        strength: 0 leaves `guided` as it is, 1 matches the spread fully.
    """
    dims = tuple(range(1, guided.ndim))
    spread = guided.std(dim=dims, keepdim=True).clamp_min(1e-12)
    ratio = positive.std(dim=dims, keepdim=True) / spread
    return guided * (strength * ratio + (1 - strength))


def perpendicular(
    u: Tensor,  # [B, ...]
    v: Tensor,  # [B, ...]
) -> Tensor:
    """The part of u that says nothing about v, per sample: u - (<u, v> / ||v||^2) v, [B, ...]."""
    flat_u, flat_v = u.flatten(1), v.flatten(1)
    share = (flat_u * flat_v).sum(dim=1) / flat_v.square().sum(dim=1).clamp_min(1e-12)
    return u - share.reshape(-1, *(1,) * (u.ndim - 1)) * v


def repelled(
    guided: Tensor,  # [B, ...]
    positive: Tensor,  # [B, ...]
    negative: Tensor,  # [B, ...]
    views: Sequence[Tensor],  # K of [B, ...]
    weights: Tensor,  # [K, B]
    scale: float | Tensor,
) -> Tensor:
    """Perp-Neg: push a guided prediction away from other views, but never against the prompt.

        D - s sum_k w_k perp(E(n_k) - E(n), E(y) - E(n))

    (Armandpour et al., "Re-imagine the Negative Prompt Algorithm", arXiv 2304.04968.)

    Args:
        guided: D(s), [B, ...].
        positive: E(y), [B, ...].
        negative: E(n), [B, ...].
        views: E(n_k) for prompts that name other views.
        weights: w_k, [K, B].
        scale: s, one number or [B].
    """
    towards = positive - negative
    for view, w in zip(views, weights, strict=True):
        amount = (scale * w.to(guided)).reshape(-1, *(1,) * (guided.ndim - 1))
        guided = guided - amount * perpendicular(view - negative, towards)
    return guided
