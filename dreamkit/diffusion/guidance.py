"""Classifier-free guidance, in one convention.

With E(y) a model's prediction for the prompt and E(n) for the negative (or empty) prompt, we use everywhere

    D(s) = E(n) + s (E(y) - E(n))

(Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598, as diffusers, DMD2 and rCM write it): s = 0 is
the negative prompt, s = 1 the prompt, s > 1 extrapolates. Others write E(y) + s' (E(y) - E(n)) (Self-Forcing, LongLive,
threestudio without perp-neg), which is D(s' + 1): `from_delta_convention` translates their numbers.

The formula is the same for eps, x0, v and flow: given x_t they are affine in one another, and the weights of E(y) and
E(n) sum to 1. So the network's raw output is guided and converted afterwards, which is exact even at alpha = 0.
"""

from dataclasses import dataclass

from torch import Tensor

from dreamkit.diffusion.schedule import Prediction


@dataclass(frozen=True)
class GuidedPrediction:
    """The predictions of one batched guided call.

    Args:
        guided: D(s) = E(n) + s (E(y) - E(n)).
        positive: E(y), for the prompt.
        negative: E(n), for the negative prompt.
        null: E(0), for the empty prompt; `None` unless it was asked for.
    """

    guided: Prediction
    positive: Prediction
    negative: Prediction
    null: Prediction | None = None


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
