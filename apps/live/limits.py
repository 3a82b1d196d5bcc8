"""What live video may take of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LiveLimits:
    """What live video may take of a server."""

    sessions: int = 4
    """At the same time."""
    viewers: int = 64
    """Of a session."""
    idle_s: float = 300.0
    """Until a session that nobody watches is closed."""
    unattended_s: float = 1800.0
    """Until one that is watched, and that nobody steers, rests."""
    record_mb: int = 256
    """Size of a recording."""
    recordings: int = 4
    """Kept of a session; the oldest leaves."""
    moments: int = 12
    """To go back to."""
    reach: int = 300
    """Frames that going back may compute again."""
