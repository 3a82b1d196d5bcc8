"""A picture as a prompt, for any network with self-attention and without training: fused attention.

The noisy picture runs through the network beside the samples, and in every self-attention layer a sample attends to
its own tokens and to those of the picture:

    softmax(q [K, K_ref]^T / sqrt(d)) [V, V_ref]

(the visual prompt of TV-3DG, and "reference-only" control). A row that refers to itself attends to its own tokens
twice, which changes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreamkit.errors import TeacherError

if TYPE_CHECKING:
    from dreamkit.diffusion.teacher import Query

SELF_ATTENTION = "attn1"  # in diffusers' transformer blocks and in ours


def reference_rows(queries: Sequence["Query"]) -> Tensor:
    """For each row of a pass, the row of the picture that it refers to: itself where there is none.

    The rows are those of the queries in order, then those of the references in order: [rows] int64.
    """
    behind = sum(len(query) for query in queries)
    own, rows = 0, []
    for query in queries:
        first, behind = (own, behind) if query.reference is None else (behind, behind + len(query))
        rows.append(torch.arange(first, first + len(query)))
        own += len(query)
    return torch.cat([*rows, torch.arange(own, behind)])


@contextmanager
def fused_references(
    network: nn.Module,
    rows: Tensor | None,  # [B]
) -> Iterator[None]:
    """While this lasts, row i of a batch also attends to row `rows[i]` in every self-attention layer.

    Args:
        network: a network whose self-attention layers are called `attn1`.
        rows: [B] indices into the batch; `None` does nothing.

    Raises:
        TeacherError: the network has no such layer.
    """
    if rows is None:
        yield
        return
    layers = [module for name, module in network.named_modules() if name.rpartition(".")[2] == SELF_ATTENTION]
    if not layers:
        raise TeacherError(
            f"{type(network).__name__} has no self-attention that a reference image could be fused into.",
            "Use a teacher with transformer blocks, or give no reference image.",
        )

    def fuse(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0]
        both = torch.cat([hidden, hidden[rows.to(hidden.device)]], dim=1)
        if "encoder_hidden_states" in kwargs:  # diffusers
            return args, kwargs | {"encoder_hidden_states": both}
        return (hidden, both), kwargs

    hooks = [layer.register_forward_pre_hook(fuse, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
