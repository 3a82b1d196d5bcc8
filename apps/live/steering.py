"""What steers a session now, and which of its controls a frame obeys."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dreamkit_apps.live.joystick import JoystickPath

if TYPE_CHECKING:
    from torch import Tensor

_MAX_PENDING = 64


@dataclass(frozen=True)
class LiveControls:
    """The joystick and the tracks, as they were last given."""

    camera: JoystickPath | None = None
    tracks: Tensor | None = None
    """[F, N, 2]."""
    given_at: int = 0
    """The frame that was shown when the tracks were given."""

    def moved(self, camera: JoystickPath, shown: int) -> LiveControls:
        """The same with the joystick elsewhere, at a frame.

        Tracks that are given anew begin anew: what has been shown of them is cut off. That is a chunk too little or too
        much where a chunk has ended between the two, which no eye sees.
        """
        left = None if self.tracks is None else self.tracks[max(0, shown - self.given_at) :]
        return replace(self, camera=camera, tracks=None if left is None or not len(left) else left, given_at=shown)


class PromptClock:
    """Numbers the prompts that are given and finds the first frame that obeys each. Not locked."""

    def __init__(self) -> None:
        self._given = self.obeyed = 0
        self._pending: deque[tuple[int, str]] = deque(maxlen=_MAX_PENDING)

    def give(self, prompt: str) -> int:
        """Note a prompt that is given now; returns its number."""
        self._given += 1
        self._pending.append((self._given, prompt))
        return self._given

    def take_back(self, number: int) -> None:
        """Forget one that was refused."""
        self._pending = deque((item for item in self._pending if item[0] != number), maxlen=_MAX_PENDING)

    def see(self, prompt: str) -> int:
        """Note the prompt of a frame; returns the number of the last one that it obeys."""
        found = [number for number, text in self._pending if text == prompt]
        if found:
            self.obeyed = found[0]
            self._pending = deque((item for item in self._pending if item[0] > found[0]), maxlen=_MAX_PENDING)
        return self.obeyed

    def forget(self) -> None:
        """Wait for none any more."""
        self._pending.clear()
