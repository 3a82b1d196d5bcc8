"""What a teacher's network is told besides the noisy sample and the time: the encoded prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """A batch of encoded prompts.

    Args:
        embeddings: text tokens, [B, L, D]; the one token of a picture, [B, 1, D].
        pooled: one vector a prompt, [B, P], for networks that take it (SDXL).
        extra: further tensors a network takes, each [B, ...]; SDXL's "time_ids" (H, W, 0, 0, H, W), Zero123's
            "source_latents" and "source_pose".
    """

    embeddings: Tensor  # [B, L, D]
    pooled: Tensor | None = None  # [B, P]
    extra: dict[str, Tensor] = field(default_factory=dict)  # each [B, ...]

    def __len__(self) -> int:
        return self.embeddings.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> "Condition":
        """Rows of the batch; one row keeps its batch dimension."""
        rows = [index] if isinstance(index, int) else index
        return self._map(lambda tensor: tensor[rows])

    def index_select(self, index: Tensor) -> "Condition":
        """Rows by a tensor of indices [N], repeats allowed."""
        return self._map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))

    def repeat(self, n: int) -> "Condition":
        """The whole batch n times over, in the order of `Tensor.repeat`: (a, b) -> (a, b, a, b)."""
        return self._map(lambda tensor: tensor.repeat(n, *(1,) * (tensor.ndim - 1)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Condition":
        """Every tensor on a device and in a dtype."""
        return self._map(lambda tensor: tensor.to(device=device, dtype=dtype))

    def in_dtype(self, dtype: torch.dtype) -> "Condition":
        """Text in a network's compute dtype; what a network takes besides (SDXL's time ids) stays as it is."""
        pooled = None if self.pooled is None else self.pooled.to(dtype)
        return Condition(self.embeddings.to(dtype), pooled, self.extra)

    def expanded(self, n: int) -> "Condition":
        """A batch of n rows: itself if it has them, its only row n times over if it has one."""
        return self.repeat(n) if len(self) == 1 and n != 1 else self

    @staticmethod
    def mixed(conditions: Sequence["Condition"], shares: Sequence[float]) -> "Condition":
        """A weighted sum of the texts; what a network takes besides is the first one's."""
        pooled = [share * c.pooled for c, share in zip(conditions, shares, strict=True) if c.pooled is not None]
        embeddings = [share * c.embeddings for c, share in zip(conditions, shares, strict=True)]
        return Condition(
            torch.stack(embeddings).sum(dim=0),
            torch.stack(pooled).sum(dim=0) if pooled else None,
            conditions[0].extra,
        )

    @staticmethod
    def cat(conditions: Sequence["Condition"]) -> "Condition":
        """Join batches that come from the same teacher."""
        first = conditions[0]
        pooled = [condition.pooled for condition in conditions if condition.pooled is not None]
        return Condition(
            torch.cat([condition.embeddings for condition in conditions]),
            torch.cat(pooled) if pooled else None,
            {name: torch.cat([condition.extra[name] for condition in conditions]) for name in first.extra},
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        return Condition(
            function(self.embeddings),
            None if self.pooled is None else function(self.pooled),
            {name: function(tensor) for name, tensor in self.extra.items()},
        )
