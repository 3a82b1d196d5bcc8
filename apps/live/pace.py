"""When the next frame is due."""

from __future__ import annotations

from dreamkit.checks import require_number

MIN_SPEED, MAX_SPEED = 0.1, 4.0


class Pace:
    """Frames at a steady rate. What comes late is late: no burst makes up for it.

    Attributes:
        speed: times the model's frame rate.
    """

    def __init__(self) -> None:
        self.speed = 1.0
        self._due = 0.0

    def set_speed(self, speed: float) -> None:
        """Go on at another speed.

        Raises:
            ConfigError: not 0.1 to 4.
        """
        require_number("The speed", speed, MIN_SPEED, MAX_SPEED)
        self.speed = speed
        self.reset()

    def reset(self) -> None:
        """Let the next frame be due at once."""
        self._due = 0.0

    def wait(self, now: float, fps: int) -> float:
        """Seconds until a frame that is ready now is due; counts it as shown then."""
        interval = 1 / (fps * self.speed)
        if self._due < now - interval:
            self._due = now
        left = max(0.0, self._due - now)
        self._due += interval
        return left
