"""Muon: momentum, orthogonalised, for matrices and convolutions (taken as matrices: output channels x the rest).

    M <- beta M + G,   W <- W - lr * 0.2 sqrt(max(rows, columns)) * orthogonalise(G + beta M)

(Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the factor that matches AdamW's
update size: Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982.) `torch.optim.Muon` always works in
bfloat16, which is hundreds of times slower on a CPU without bfloat16 instructions; this one keeps the matrices'
own type.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly, by a quintic Newton-Schulz iteration.

    X <- a X + (b A + c A^2) X with A = X X^T, which drives every singular value into about [0.7, 1.2].

    Args:
        matrices: [N, rows, columns].
        steps: iterations.

    Returns:
        [N, rows, columns].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions or more; those of one shape are orthogonalised in one batch.

    Args:
        params: matrices [rows, columns], or convolutions [rows, ...].
        lr: step size, on AdamW's scale.
        momentum: beta, in [0, 1).
        weight_decay: decoupled decay per unit of lr.

    Raises:
        ValueError: a parameter that is a vector.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(p.ndim < 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon takes matrices and convolutions; give vectors to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """Take one step; `closure`, where given, is evaluated first and its value returned."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append((p, p.grad))
            for shape, params in by_shape.items():
                updates = []
                for p, gradient in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.mul_(group["momentum"]).add_(gradient)
                    updates.append(gradient.add(buffer, alpha=group["momentum"]))
                matrices = torch.stack(updates).flatten(2)
                scale = group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
                for (p, _), update in zip(params, orthogonalise(matrices), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update.view(shape), alpha=-scale)
        return loss
