"""One who watches: a slot for the latest frame, messages that wait to be sent, and frames that wait to be acknowledged.

Whoever is slow misses frames and holds up nobody: an older frame in the slot is replaced.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from dreamkit_apps.live.packet import Packet

_MAX_MESSAGES = 256
_NEW_SHARE = 0.1


class Viewer:
    """Filled by a session's thread, emptied by the event loop.

    Args:
        wake: called, in any thread, when there is something to send.
        can_control: whether it may steer.
        in_flight: frames that may be sent and not acknowledged, at least 1.
        wants_messages: whether it has a use for them.

    Attributes:
        session_waits: called when a frame was taken; the session sets it.
        round_trip_ms: from sending a frame to hearing that it was shown, the last ones averaged.
    """

    def __init__(
        self, wake: Callable[[], None], can_control: bool = True, in_flight: int = 2, wants_messages: bool = True
    ) -> None:
        self.can_control = can_control
        self.session_waits: Callable[[], None] = _nothing
        self._wake = wake
        self._in_flight = in_flight
        self._wants_messages = wants_messages
        self._lock = threading.Lock()
        self._slot: Packet | None = None
        self._unacknowledged: list[tuple[int, float]] = []
        self.round_trip_ms: float | None = None
        self._messages: dict[str, str] = {}
        self._replies = 0
        self._is_watching = True
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be sent; what waits still is."""
        return self._is_closed

    @property
    def is_watching(self) -> bool:
        """Whether it wants frames: a page in a hidden tab does not."""
        return self._is_watching and not self._is_closed

    @property
    def is_ready(self) -> bool:
        """Whether another frame would be of use."""
        return self.is_watching and self._slot is None

    def watch(self, wants_frames: bool) -> None:
        """Want frames, or none for the time being."""
        with self._lock:
            self._is_watching = wants_frames
            if not wants_frames:
                self._slot = None

    def offer(self, packet: Packet) -> None:
        """Put a frame into the slot, in the place of one that was not sent."""
        with self._lock:
            if not self.is_watching:
                return
            self._slot = packet
        self._wake()

    def tell(self, message: Mapping[str, Any], key: str | None = None) -> None:
        """Let a message be sent; of those with the same key the last one counts. Too many close the viewer."""
        if not self._wants_messages:
            return
        with self._lock:
            if key is None:
                self._replies += 1
                key = f"#{self._replies}"
            self._messages.pop(key, None)  # to the end: the order of what happened
            self._messages[key] = to_json(message)
            if len(self._messages) > _MAX_MESSAGES:
                self._is_closed = True
        self._wake()

    def take(self) -> list[str | bytes]:
        """What is to be sent now: messages, then a frame if few enough are on their way."""
        with self._lock:
            sent: list[str | bytes] = list(self._messages.values())
            self._messages.clear()
            packet = self._slot
            if packet is None or len(self._unacknowledged) >= self._in_flight:
                return sent
            self._slot = None
            self._unacknowledged.append((packet.number, time.perf_counter()))
            sent.append(packet.wire)
        self.session_waits()
        return sent

    def take_jpeg(self) -> bytes | None:
        """The frame in the slot, for who acknowledges nothing; `None` where there is none."""
        with self._lock:
            packet, self._slot = self._slot, None
        self.session_waits()
        return None if packet is None else packet.jpeg

    def acknowledge(self, number: int) -> bool:
        """Note that a frame arrived, with all before it; whether it was on its way."""
        with self._lock:
            place = next((at for at, (sent, _) in enumerate(self._unacknowledged) if sent == number), None)
            if place is None:
                return False
            taken = 1000 * (time.perf_counter() - self._unacknowledged[place][1])
            before = taken if self.round_trip_ms is None else self.round_trip_ms
            self.round_trip_ms = before + _NEW_SHARE * (taken - before)
            del self._unacknowledged[: place + 1]
        self._wake()
        return True

    def close(self) -> None:
        """Send nothing after what waits."""
        self._is_closed = True
        self._wake()


def to_json(message: Mapping[str, Any]) -> str:
    """A message as JSON; numbers that are not finite become null, which is all that JSON has for them."""
    return json.dumps(_finite(message), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _nothing() -> None:
    """Nobody waits yet."""
