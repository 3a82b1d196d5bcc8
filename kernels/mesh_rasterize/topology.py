"""Which faces meet at an edge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def edges_reference(faces: Tensor) -> Tensor:
    """`mesh_edges` in plain torch operations; see there."""
    corners = faces.long()
    ends = torch.stack([corners[:, [1, 2, 0]], corners[:, [2, 0, 1]]]).flatten(1)
    keys, order = ((ends.amin(0) << 32) + ends.amax(0)).sort(stable=True)  # equal edges are neighbours now
    same = keys.diff(prepend=keys.new_tensor([-1]), append=keys.new_tensor([-1])) == 0  # as the one before
    pair = same & ~functional.pad(same, (1, 0))[:-1] & ~functional.pad(same, (0, 1))[1:]  # the only one that is
    beyond = torch.where(pair[:-1], order.roll(1), torch.where(pair[1:], order.roll(-1), -1))
    return torch.empty_like(beyond).scatter_(0, order, beyond).int().view(-1, 3)
