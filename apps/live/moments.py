"""Moments of a stream to go back to, a picture of each, and only as many as going back to is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Moment:
    """A frame that was shown."""

    frame: int
    image: str
    """A small picture of it, as a data: URL."""
    is_asked: bool
    """Whether a person asked to keep it."""


class Moments:
    """The kept ones, in order. Not locked: whoever holds it sees to that.

    Args:
        room: how many are kept; those nobody asked for leave first, then the oldest.
        reach: frames that may have to be computed again on the way to one.
    """

    def __init__(self, room: int, reach: int) -> None:
        self._room, self._reach = room, reach
        self._kept: list[Moment] = []

    @property
    def frames(self) -> list[int]:
        """Their frames, the earliest first."""
        return [item.frame for item in self._kept]

    def listing(self) -> list[dict[str, Any]]:
        """Their frames and pictures."""
        return [{"frame": item.frame, "image": item.image} for item in self._kept]

    def add(self, moment: Moment, snapshots: Sequence[int]) -> None:
        """Keep one, and forget those that have come out of reach.

        Args:
            moment: of the frame that is shown.
            snapshots: frames that the stream can begin at without computing.
        """
        others = [item for item in self._kept if item.frame != moment.frame and self.reaches(item.frame, snapshots)]
        self._kept = sorted([*others, moment], key=lambda item: item.frame)
        while len(self._kept) > self._room:
            self._kept.remove(min(self._kept, key=lambda item: (item.is_asked, item.frame)))

    def reaches(self, frame: int, snapshots: Sequence[int]) -> bool:
        """Whether going back to a frame computes no more than `reach` frames; the beginning is always a snapshot."""
        return frame - max((item for item in snapshots if item <= frame), default=0) <= self._reach

    def forget_after(self, frame: int) -> None:
        """Forget later ones: their frames have not been shown any more."""
        self._kept = [item for item in self._kept if item.frame <= frame]

    def clear(self) -> None:
        """Forget all."""
        self._kept = []
