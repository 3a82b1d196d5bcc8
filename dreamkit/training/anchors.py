"""Pictures that a scene must agree with while an objective imagines the rest: a few photographs, or a single one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.captures import CaptureOptions, read_capture_set
from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.trainable import Moment, TrainableScene
from dreamkit.training.anchor_config import AnchorConfig
from dreamkit.training.fit import on_device, over

_GRAY = 0.5
_RADIUS, _FOV = 3.0, 40.0
"""The camera of a single picture: that of `dreamkit render`."""


def read_anchors(config: AnchorConfig, resolution: int, device: torch.device | str = "cpu") -> Capture | None:
    """The pictures of the configuration, scaled to a height of `resolution`; `None` where it names none.

    Raises:
        DreamkitError: they can't be read, or a single one is not cut out.
    """
    if not config.pictures:
        return None
    path = Path(config.pictures).expanduser()
    if config.is_set:
        found = read_capture_set(path, CaptureOptions(hold_out=0, background=_GRAY)).training
    else:
        found = _single(path, config)
    return on_device(_scaled(found, resolution), torch.device(device))


class Anchors:
    """The distance between a scene and its pictures.

        L = weight / (2 n)  sum |I - I'|^2 + (A - A')^2

    over n of the pictures, each before a new background. A picture of weight 1 pulls as hard as the clean image that
    SDS with w = sigma_ratio would rather see in one view (Zou et al., "Sparse3D", arXiv 2308.14078, fit a few views by
    such a sum of both; Tang et al., "Make-It-3D", arXiv 2303.14184, a single one).

    Args:
        capture: the pictures.
        config: the weight, and how many a step.
    """

    def __init__(self, capture: Capture, config: AnchorConfig) -> None:
        self.capture = capture
        self.config = config

    def loss(self, scene: TrainableScene, moment: Moment) -> Tensor:
        """L, a scalar with a graph."""
        capture, count = self.capture, min(self.config.views, len(self.capture.cameras))
        chosen = torch.randperm(len(capture.cameras), generator=moment.generator)[:count]
        behind = scene.backgrounds(count, moment.generator)
        if behind is None:  # learned: it has to explain the pictures' own
            behind = capture.background.expand(count, 3)
        behind = behind.to(capture.images)
        alphas = capture.alphas[chosen]
        wanted = over(capture.images[chosen], alphas, capture.background, behind)
        seen = scene.render_training(capture.cameras[chosen], behind, moment)
        distance = (seen.image - wanted).square().sum() + (seen.alpha - alphas).square().sum()
        return self.config.weight / (2 * count) * distance


def _single(path: Path, config: AnchorConfig) -> Capture:
    """One picture as a set; its transparency says what belongs to the subject."""
    from dreamkit.scenes.pictures import read_rgba

    layers = read_rgba(path)
    alpha = layers[None, 3:]
    if bool((alpha > 0.99).all()):
        raise ConfigError(
            f"The picture {path} has no transparency, so nobody knows where the subject ends.",
            "Cut it out of its background: a PNG with an alpha channel.",
        )
    if not bool((alpha > 0.5).any()):
        raise ConfigError(f"The picture {path} is transparent everywhere.", "Leave the subject opaque.")
    camera = Camera.orbit(config.azimuth, config.elevation, _RADIUS, _FOV, *layers.shape[-2:])
    image = layers[None, :3] * alpha + _GRAY * (1 - alpha)
    return Capture(camera, image, alpha, torch.full((3,), _GRAY))


def _scaled(capture: Capture, height: int) -> Capture:
    """The pictures at another height, by areas."""
    cameras = capture.cameras
    if cameras.height == height:
        return capture
    width = max(1, round(height * cameras.width / cameras.height))
    images, alphas = (
        functional.interpolate(layer, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
        for layer in (capture.images, capture.alphas)
    )
    return replace(capture, cameras=cameras.resized(height, width), images=images, alphas=alphas)
