"""What forward passes keep for their backward passes, besides tensors that autograd saves."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Generic, TypeVar

import torch
from torch import Tensor

MAX_STATES = 4

State = TypeVar("State")


class States(Generic[State]):
    """The states of the last forward passes, by number.

    An operator gives tensors of known shapes only, and what a compiler moves about can't own memory. So a state stays
    here under a number, which travels as a tensor; one that is gone is computed again by the backward pass.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[int, State] = OrderedDict()
        self._numbers = itertools.count()

    def add(self, state: State, keep: bool) -> Tensor:
        """Keep a state, if wanted, and drop the oldest one; returns its number, [] int64 on the CPU."""
        number = next(self._numbers)
        if keep:
            self._states[number] = state
            while len(self._states) > MAX_STATES:
                self._states.popitem(last=False)
        return torch.tensor(number)

    def take(self, number: Tensor) -> State | None:
        """The state of a number, which is forgotten; None if it is gone."""
        return self._states.pop(int(number), None)
