"""How a joystick moves the camera: the moves of training, mixed and slowed down by how far it is pushed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreamkit.checks import require_number

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class JoystickPath:
    """A camera path (`dreamkit.video.camera_paths.CameraPath`) for as long as the joystick is held like this.

        C(t) = O(|x| t) D(|y| t) P(|z| t)

    O, D and P are the poses of an orbit, a dolly and a pan: a stick pushed half way goes at half the speed, so what the
    network sees stays within what it was trained on. The path begins where the camera is; all zeros is standing still.

    Raises:
        ConfigError: a number that is not in [-1, 1].
    """

    orbit: float = 0.0
    """-1 to 1, right is positive."""
    dolly: float = 0.0
    """-1 to 1, towards the object is positive."""
    pan: float = 0.0
    """-1 to 1, right is positive."""

    def __post_init__(self) -> None:
        for name in ("orbit", "dolly", "pan"):
            require_number(f"The joystick's {name}", getattr(self, name), -1, 1)

    def poses(self, times: Tensor) -> Tensor:
        """[n, 4, 4] float64 camera_to_world at times [n] in frames of video."""
        from dreamkit.video.camera_paths import MovePath

        times = times.double()
        orbit = MovePath("orbit-right" if self.orbit > 0 else "orbit-left").poses(abs(self.orbit) * times)
        dolly = MovePath("dolly-in" if self.dolly > 0 else "dolly-out").poses(abs(self.dolly) * times)
        pan = MovePath("pan-right" if self.pan > 0 else "pan-left").poses(abs(self.pan) * times)
        return orbit @ dolly @ pan
