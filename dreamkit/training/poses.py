"""Cameras whose poses are a little wrong, corrected while a scene is fitted to their pictures.

Each view has six numbers, a rotation vector w and a shift v, and its camera becomes

    camera_to_world' = [exp(w^), v; 0, 1] camera_to_world

a motion about the origin, where the subject is: a shift moves the picture, a rotation shows another side. (About the
camera itself the two could hardly be told apart.) After BARF (Lin et al., arXiv 2104.06405).

If all corrections were the same, the scene could move along and nothing would be gained or lost. So their mean is held
at zero, and corrected cameras stay in the frame of those given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dreamkit.checks import require
from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError
from dreamkit.scenes.cameras import Camera

_EPSILON = 1e-12


@dataclass(frozen=True)
class PoseConfig:
    """Whether and how the poses of the views are corrected along with the scene."""

    enabled: bool = False
    """Whether they are."""
    start: float = 0.05
    """Share of the run before which they stay: a scene that shows nothing yet would send cameras anywhere. 0 to 1."""
    rate: Schedule = field(default=Schedule(0.0, 3e-3, 1e-4, 1.0, "exponential"))
    """Learning rate, radians and world units a step in which a view is seen."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the first and second moment, each from 0 to below 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", Schedule.parse(self.rate))
        object.__setattr__(self, "betas", tuple(self.betas))
        require("The poses' start", 0 <= self.start <= 1, self.start, "0 to 1")
        lowest = min(self.rate.start_value, self.rate.end_value)
        require("The poses' rate", lowest >= 0, self.rate.data(), "no value below 0")
        fine = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require("The poses' betas", fine, self.betas, "two numbers from 0 to below 1")


def rotation(
    vectors: Tensor,  # [V, 3] radians
) -> Tensor:
    """exp(w^) = I + sin a / a w^ + (1 - cos a) / a^2 w^ w^ with a = |w| (Rodrigues), [V, 3, 3]; smooth at 0."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    square = vectors.square().sum(dim=-1)[:, None, None]
    angle = (square + _EPSILON).sqrt()
    half = 0.5 * angle
    first, second = torch.sin(angle) / angle, 0.5 * (torch.sin(half) / half).square()
    return torch.eye(3, dtype=vectors.dtype, device=vectors.device) + first * cross + second * cross @ cross


class PoseRefiner:
    """The corrections of V cameras and what Adam remembers of them.

    Each view has an Adam of its own, which rests while the view is not seen: moments that decayed in between would
    make steps that no picture asked for.

    Args:
        cameras: as given.
        config: how they learn.
        centred: whether the mean correction is held at zero.
    """

    def __init__(self, cameras: Camera, config: PoseConfig, centred: bool = True) -> None:
        self.given = cameras
        self.config = config
        self.centred = centred
        self.corrections = torch.zeros(len(cameras), 6, device=cameras.fov_y.device, requires_grad=True)
        self._first = torch.zeros_like(self.corrections, requires_grad=False)
        self._second = torch.zeros_like(self._first)
        self._steps = torch.zeros(len(cameras), 1, device=cameras.fov_y.device)

    def cameras(self) -> Camera:
        """The corrected cameras, differentiable in `corrections`."""
        turn, shift = rotation(self.corrections[:, :3]), self.corrections[:, 3:]
        given = self.given.camera_to_world
        axes = turn @ given[:, :3, :3]
        place = (turn @ given[:, :3, 3:])[..., 0] + shift
        upper = torch.cat([axes, place[..., None]], dim=2)
        return replace(self.given, camera_to_world=torch.cat([upper, given[:, 3:]], dim=1))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the views that the last loss saw, by one step of Adam each.

        Args:
            rate: the learning rate now.
        """
        gradient = self.corrections.grad
        if gradient is None:
            return
        seen = (gradient != 0).any(dim=1, keepdim=True) & torch.isfinite(gradient).all(dim=1, keepdim=True)
        beta, gamma = self.config.betas
        self._steps += seen
        self._first = torch.where(seen, beta * self._first + (1 - beta) * gradient, self._first)
        self._second = torch.where(seen, gamma * self._second + (1 - gamma) * gradient.square(), self._second)
        steps = self._steps.clamp_min(1)
        first, second = self._first / (1 - beta**steps), self._second / (1 - gamma**steps)
        self.corrections -= rate * torch.where(seen, first / (second.sqrt() + 1e-15), torch.zeros_like(first))
        if self.centred:
            self.corrections -= self.corrections.mean(dim=0)
        self.corrections.grad = None

    def state(self) -> dict[str, Tensor]:
        """A copy of the corrections and of Adam's moments."""
        return {
            "corrections": self.corrections.detach().clone(),
            "first": self._first.clone(),
            "second": self._second.clone(),
            "steps": self._steps.clone(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned.

        Raises:
            CheckpointError: it is of another number of views.
        """
        own = self.state()
        if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
            raise CheckpointError(
                f"The checkpoint's corrections are not those of {len(self.given)} views.",
                "Fit the same pictures as before.",
            )
        device = self.corrections.device
        self.corrections = state["corrections"].detach().to(device).clone().requires_grad_(True)
        self._first, self._second, self._steps = (state[name].to(device) for name in ("first", "second", "steps"))


def aligned(
    cameras: Camera,
    loss_of: Callable[[Camera], Tensor],
    steps: int,
    rate: float = 1.5e-2,
) -> Camera:
    """Cameras moved to where a finished scene looks most like their pictures: only poses change.

    Pictures that are held out have poses as wrong as the others had, so a scene from corrected cameras can't be
    measured with them as they are; this is the customary way out (BARF, NeRF--: "test-time pose optimisation").

    Args:
        cameras: as given.
        loss_of: how much the scene differs from the pictures; each call may look at some of them.
        steps: of Adam.
        rate: learning rate at the start; it falls to a hundredth.
    """
    schedule = Schedule(0.0, rate, 0.01 * rate, 1.0, "exponential")
    refiner = PoseRefiner(cameras, PoseConfig(enabled=True), centred=False)
    for step in range(steps):
        loss_of(refiner.cameras()).backward()
        refiner.step(schedule.at(step / steps))
    moved = refiner.cameras()
    return replace(moved, camera_to_world=moved.camera_to_world.detach())
