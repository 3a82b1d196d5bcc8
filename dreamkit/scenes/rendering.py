"""What every scene returns when a camera looks at it, and what may stand behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from dreamkit.errors import BackendError, ConfigError, SceneError
from dreamkit.scenes.cameras import Camera

BackgroundMode = Literal["black", "white", "gray", "neutral", "random"]

_CONSTANT = {"black": 0.0, "white": 1.0, "gray": 0.5}


@dataclass
class Rendering:
    """The pictures of a scene from a batch of B cameras.

    Args:
        image: [B, 3, H, W] colour over the background, in [0, 1].
        alpha: [B, 1, H, W] coverage in [0, 1]; 1 is opaque.
        depth: [B, 1, H, W] sum of weight times depth along the viewing axis, world units; divide by `alpha`
            for the expected depth of what is there.
        normal: [B, 3, H, W] sum of weight times outward normal, world axes; its length is at most `alpha`.
        info: what the renderer keeps for density control (a Gaussian scene: the kernels' `Rasterization`).
    """

    image: Tensor  # [B, 3, H, W]
    alpha: Tensor  # [B, 1, H, W]
    depth: Tensor  # [B, 1, H, W] world units
    normal: Tensor  # [B, 3, H, W] world axes
    info: Any = None


class Scene(Protocol):
    """Anything that cameras can look at."""

    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Render from B cameras over [3] or [B, 3] background colours."""
        ...


def check_backend(operation: str = "gaussian_rasterize") -> None:
    """Make sure that the kernel backend the user asked for (DREAMKIT_BACKEND) exists on this machine.

    Args:
        operation: the kernel that is needed.

    Raises:
        BackendError: an unknown backend, or one that is not available, with the reason.
    """
    from dreamkit_kernels.dispatch import choose_backend

    try:
        choose_backend(operation, None, torch.zeros(0))
    except (ValueError, RuntimeError) as error:
        raise BackendError(str(error), "Unset DREAMKIT_BACKEND, or see `dreamkit doctor`.") from error


def background_colors(
    mode: BackgroundMode,
    n: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One solid colour a view.

    Args:
        mode: black, white, gray (0.5); or, with a new colour a view so that the scene cannot hide in its
            background, neutral: a gray level in [0.15, 0.95], or random: uniform in the RGB cube.
        n: how many views.
        generator: the source of randomness of the last two modes; without it the colour is gray, the mean.
        device: where the colours are wanted.

    Returns:
        [n, 3] in [0, 1].

    Raises:
        ConfigError: the mode is not known.
    """
    if mode == "random" and generator is not None:
        return torch.rand(n, 3, generator=generator, device=generator.device).to(device)
    if mode == "neutral" and generator is not None:
        level = 0.15 + 0.8 * torch.rand(n, 1, generator=generator, device=generator.device)
        return level.expand(n, 3).to(device)
    if mode not in get_args(BackgroundMode):
        raise ConfigError(
            f"The background {mode!r} is not known.", f"Use one of {', '.join(get_args(BackgroundMode))}."
        )
    return torch.full((n, 3), _CONSTANT.get(mode, 0.5), device=device)


def expand_background(
    background: Tensor,  # [3] or [B, 3]
    n: int,
) -> Tensor:
    """`background` as [n, 3].

    Raises:
        SceneError: the shape is neither [3] nor [1, 3] nor [n, 3].
    """
    if background.shape in ((3,), (1, 3), (n, 3)):
        return background.expand(n, 3)
    raise SceneError(f"A background of shape {tuple(background.shape)} doesn't fit {n} views.", f"Use [3] or [{n}, 3].")
