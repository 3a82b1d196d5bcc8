"""Those who watch a session, and what all of them are told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from dreamkit_apps.live.packet import Packet
from dreamkit_apps.live.viewer import Viewer

from dreamkit.errors import ConfigError


class Audience:
    """A bounded set of viewers.

    Args:
        room: how many there may be.
        changed: the session's; notified when a viewer has taken a frame.
        clock: seconds, monotonic.

    Attributes:
        last: the frame that was shown last.
    """

    def __init__(self, room: int, changed: threading.Condition, clock: Callable[[], float]) -> None:
        self.last: Packet | None = None
        self._room, self._changed, self._clock = room, changed, clock
        self._viewers: set[Viewer] = set()
        self._left_at: float | None = clock()

    def __len__(self) -> int:
        return len(self._viewers)

    @property
    def is_watching(self) -> bool:
        """Whether somebody looks."""
        with self._changed:
            return any(viewer.is_watching for viewer in self._viewers)

    @property
    def is_ready(self) -> bool:
        """Whether somebody could take another frame."""
        with self._changed:
            return any(viewer.is_ready for viewer in self._viewers)

    @property
    def shown(self) -> int:
        """Number of the frame that was shown last, 0 before the first."""
        return 0 if self.last is None else self.last.number

    @property
    def away_for(self) -> float:
        """Seconds since somebody was there; 0 while somebody is."""
        left_at = self._left_at
        return 0.0 if left_at is None else self._clock() - left_at

    def join(self, viewer: Viewer, hello: Mapping[str, Any]) -> None:
        """Let somebody in, who is told how things are and sees the last frame at once.

        Raises:
            ConfigError: there is no room.
        """
        with self._changed:
            if len(self._viewers) >= self._room:
                raise ConfigError(f"{self._room} people watch this stream, and no more can.", "Try again later.")
            viewer.session_waits = self._notify
            self._viewers.add(viewer)
            self._left_at = None
            viewer.tell(hello)
            if self.last is not None:
                viewer.offer(self.last)

    def leave(self, viewer: Viewer) -> None:
        """Let somebody go."""
        with self._changed:
            self._viewers.discard(viewer)
            if not self._viewers and self._left_at is None:
                self._left_at = self._clock()

    def look(self, viewer: Viewer, wants_frames: bool) -> None:
        """Somebody looks, or looks away."""
        with self._changed:
            viewer.watch(wants_frames)
            if wants_frames and self.last is not None:
                viewer.offer(self.last)

    def show(self, packet: Packet) -> None:
        """Show a frame to all."""
        with self._changed:
            self.last = packet
            for viewer in self._viewers:
                viewer.offer(packet)

    def tell(self, message: Mapping[str, Any], key: str | None = None) -> None:
        """Tell all; of messages with the same key the last one counts."""
        with self._changed:
            for viewer in self._viewers:
                viewer.tell(message, key)

    def tell_statistics(self, message: Mapping[str, Any]) -> None:
        """Tell all, each with the time its own frames take."""
        with self._changed:
            for viewer in self._viewers:
                viewer.tell({**message, "round_trip_ms": viewer.round_trip_ms}, "stats")

    def dismiss(self, reason: str) -> None:
        """Tell all that it is over, and why."""
        with self._changed:
            for viewer in self._viewers:
                viewer.tell({"type": "bye", "reason": reason})
                viewer.close()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
