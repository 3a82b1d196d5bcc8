"""The prompt of a stream as its network reads it: at once, or a new one coming in over some chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamkit.checks import require


@dataclass(frozen=True)
class SpokenState:
    """All that the next chunk's prompt depends on.

    Args:
        now: [R, L, D] what was read last.
        before: what was read when a new prompt was given, while that comes in.
        after: the new prompt.
        done: chunks since.
    """

    now: Tensor
    before: Tensor | None = None
    after: Tensor | None = None
    done: int = 0


class SpokenText:
    """Text [R, L, D] for the next chunk: R = 1, or with guidance 2, the prompt's and that of no prompt.

    Args:
        text: [1, L, D] the first prompt.
        null: [1, L, D] of no prompt, where there is guidance.
        chunks: over which a new prompt comes in gradually, at least 1.

    Raises:
        ConfigError: text of another shape than that of no prompt.
    """

    def __init__(self, text: Tensor, null: Tensor | None, chunks: int) -> None:
        self._null = null
        self._chunks = chunks
        self.state = SpokenState(self._rows(text))

    def say(self, text: Tensor, gradually: bool = False) -> Tensor:
        """Take a new prompt [1, L, D], from the next chunk on or gradually; returns it as the network will read it.

        Raises:
            ConfigError: text of another shape.
        """
        after = self._rows(text)
        self.state = SpokenState(self.state.now, self.state.now, after) if gradually else SpokenState(after)
        return after

    def next(self) -> Tensor:
        """The text of the next chunk: before + (k / chunks) (after - before) in the k-th chunk of a new prompt."""
        state = self.state
        if state.before is not None and state.after is not None:
            done = state.done + 1
            if done >= self._chunks:
                self.state = SpokenState(state.after)
            else:
                now = torch.lerp(state.before, state.after, done / self._chunks)
                self.state = replace(state, now=now, done=done)
        return self.state.now

    def _rows(self, text: Tensor) -> Tensor:
        if self._null is None:
            return text
        require("The prompt's tokens", text.shape == self._null.shape, list(text.shape), f"{list(self._null.shape)}")
        return torch.cat([text, self._null])
