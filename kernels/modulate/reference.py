"""The definition of the modulated layer norm, in torch: any float type or device."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def modulate_reference(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """`modulate` in plain torch operations; see there."""
    return functional.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]
