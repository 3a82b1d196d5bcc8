"""A picture as the prompt of a run, for teachers that read pictures: what they are told of each training view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.training.anchors import read_anchors
from dreamkit.training.fit import over
from dreamkit.training.settings import SceneSettings


class VisualPrompt:
    """The pictures that a scene must agree with, as a teacher reads them. Of several, each view is told the nearest.

    Args:
        teacher: one that reads pictures.
        pictures: one or more, with their cameras.

    Raises:
        TeacherError: the teacher reads words.
    """

    def __init__(self, teacher: Teacher, pictures: Capture) -> None:
        white = torch.ones_like(pictures.background).expand(len(pictures.images), 3)
        images = over(pictures.images, pictures.alphas, pictures.background, white)
        poses = pictures.cameras.pose
        self._conditions = Condition.cat(
            [teacher.encode_picture(image, pose) for image, pose in zip(images, poses, strict=True)]
        )
        self._directions = _directions(pictures.cameras)

    def seen_from(self, cameras: Camera) -> Condition:
        """The condition of each of B cameras, B rows: the picture taken from nearest its direction."""
        directions = _directions(cameras)
        nearest = (directions @ self._directions.to(directions).T).argmax(dim=1)
        return self._conditions.index_select(nearest)


def read_visual_prompt(settings: SceneSettings, teacher: Teacher) -> VisualPrompt | None:
    """The visual prompt of a run; `None` where the teacher reads words.

    Raises:
        ConfigError: there is no picture, or the settings ask for what can't be asked of such a teacher.
        DreamkitError: the picture can't be read.
    """
    if not teacher.reads_pictures:
        return None
    unread = {
        "negative": bool(settings.negative),
        "source_prompt": bool(settings.source_prompt),
        "perp_neg": settings.perp_neg,
    }
    for name, given in unread.items():
        if given:
            raise ConfigError(f"{teacher.name} reads a picture, not words: {name} can't be used.", f"Leave {name} out.")
    if teacher.supports_camera and not settings.camera_conditioning:
        raise ConfigError(
            f"{teacher.name} reads a picture together with the camera of each view: camera_conditioning can't be off.",
            "Leave camera_conditioning as it is.",
        )
    pictures = read_anchors(settings.anchors, teacher.image_size, teacher.device)
    if pictures is None:
        raise ConfigError(
            f"{teacher.name} reads a picture, and there is none.",
            "Give one, cut out of its background: --pictures FILE --pictures-from AZIMUTH ELEVATION.",
        )
    return VisualPrompt(teacher, pictures)


def _directions(cameras: Camera) -> Tensor:
    """[B, 3] unit, from the origin to the cameras."""
    return functional.normalize(cameras.position, dim=1)
