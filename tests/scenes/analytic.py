"""A scene whose pictures are known: a unit-coloured ball, ray-cast in closed form."""

from dataclasses import dataclass

import torch

from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.rendering import Rendering


@dataclass
class Ball:
    """An opaque ball; a ray o + s d (|d| = 1) meets it at s = -o' . d - sqrt((o' . d)^2 - |o'|^2 + r^2)."""

    radius: float = 0.8
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    color: tuple[float, float, float] = (0.9, 0.3, 0.1)

    def render(self, cameras: Camera, background: torch.Tensor | None = None) -> Rendering:
        behind = torch.full((3,), 0.5) if background is None else background
        origins, directions = cameras.rays()
        relative = origins - torch.tensor(self.centre)
        along = (relative * directions).sum(-1)
        under = along**2 - (relative**2).sum(-1) + self.radius**2
        distance = -along - under.clamp_min(0.0).sqrt()
        hit = (under > 0) & (distance > 0)
        points = relative + distance[..., None] * directions
        alpha = hit.float()[:, None]
        depth = distance * torch.einsum("bhwi,bi->bhw", directions, cameras.forward)
        color = torch.tensor(self.color).reshape(1, 3, 1, 1)
        return Rendering(
            image=alpha * color + (1.0 - alpha) * behind.reshape(-1, 3, 1, 1),
            alpha=alpha,
            depth=alpha * depth[:, None],
            normal=alpha * (points / self.radius).movedim(-1, 1),
        )
