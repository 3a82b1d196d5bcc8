"""What an image student is taught to draw: prompts and cameras, and pictures where an objective learns from data.

The embedded teacher has the toy world's own captions (never one of a held-out composition) and cameras; any other one
has sentences from a file. Pictures are renders of the toy world, with their captions, or a folder's, without.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.picture_encoder import resized
from dreamkit.errors import ConfigError
from dreamkit.prompts import check_prompt, clean_prompt
from dreamkit.scenes.cameras import view_name
from dreamkit.scenes.pictures import read_image
from dreamkit.toyworld.captions import COLOURS, MATERIALS, OBJECTS, SIZES, CaptionWriter, Thing, content_words
from dreamkit.toyworld.dataset import GeometryConfig, ToyWorld, random_cameras
from dreamkit.toyworld.geometry import SUPPORTS
from dreamkit.training.image_teacher import GRID_PROMPTS

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_CACHE = GeometryConfig()
_PAIRS = _CACHE.pairs / (_CACHE.singles * len(OBJECTS) + _CACHE.pairs)
"""Share of the captions that name two objects, as in the teacher's training."""
_SHOWN = 8
"""Prompts of a sample grid."""


@dataclass(frozen=True)
class Drawn:
    """What a batch is to show.

    Args:
        prompts: B sentences.
        poses: [B, 12] camera_to_world rows; `None` for a teacher that takes none.
        pictures: [B, 3, S, S] in [0, 1] of the same prompts and poses; `None` where there are none.
    """

    prompts: list[str]
    poses: Tensor | None = None
    pictures: Tensor | None = None


class Source(ABC):
    """Where prompts come from."""

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """A batch, a pure function of the generator's state."""

    @property
    @abstractmethod
    def shown(self) -> list[str]:
        """Prompts of the sample grids."""


class ToyCaptions(Source):
    """Captions of the toy world, as many of each kind as its pictures have, with the cameras that they name.

    Args:
        cameras: whether the teacher takes poses.
    """

    def __init__(self, cameras: bool = True) -> None:
        self.cameras = cameras

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Captions of one object or two, half of them naming the view."""
        cameras = random_cameras(count, 1, generator)
        writer = CaptionWriter(generator)
        captions = [
            self._caption(view_name(azimuth, elevation).removesuffix(" view"), writer)
            for azimuth, elevation in zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
        ]
        return Drawn(captions, cameras.pose if self.cameras else None)

    @property
    def shown(self) -> list[str]:
        """Plain and held-out compositions, views, materials, pairs."""
        return list(GRID_PROMPTS[:: len(GRID_PROMPTS) // _SHOWN])

    def _caption(self, view: str, writer: CaptionWriter) -> str:
        if not writer.chance(_PAIRS):
            scene, relation = [self._thing(OBJECTS, writer.choose(tuple(SIZES)), writer)], None
        else:
            relation = writer.choose(("on", "beside"))
            others = SUPPORTS if relation == "on" else OBJECTS
            scene = [self._thing(OBJECTS, "", writer), self._thing(others, "", writer)]
        return writer.caption(scene, relation, view if writer.chance(0.5) else None)

    def _thing(self, names: Sequence[str], size: str, writer: CaptionWriter) -> Thing:
        name = writer.choose(names)
        while True:
            material = writer.choose(MATERIALS) if writer.chance(0.5) else "plain"
            thing = Thing(name, writer.choose(tuple(COLOURS)), material, size)
            if not thing.held_out:
                return thing


class ToyPictures(ToyCaptions):
    """Renders of the toy world with their captions and cameras.

    Args:
        world: who makes them.
        cameras: whether the teacher takes poses.
    """

    def __init__(self, world: ToyWorld, cameras: bool = True) -> None:
        super().__init__(cameras)
        self.world = world

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Pictures, and what they show."""
        batch = self.world.sample(count, generator)
        return Drawn(batch.captions, batch.poses if self.cameras else None, batch.images)


class Sentences(Source):
    """Given prompts, each as likely as any other; under random views of the toy world for a teacher of it.

    Args:
        prompts: at least one.
        cameras: whether the teacher takes poses.
    """

    def __init__(self, prompts: Sequence[str], cameras: bool = False) -> None:
        self.prompts = list(prompts)
        self.cameras = cameras

    def draw(self, count: int, generator: torch.Generator) -> Drawn:
        """Prompts, with repetitions."""
        chosen = torch.randint(len(self.prompts), (count,), generator=generator).tolist()
        poses = random_cameras(count, 1, generator).pose if self.cameras else None
        return Drawn([self.prompts[index] for index in chosen], poses)

    @property
    def shown(self) -> list[str]:
        """The first of them."""
        return self.prompts[:_SHOWN]


class PictureFolder:
    """The pictures of a folder, their middle squares.

    Args:
        folder: PNG, JPEG or WebP files, at any depth.
        size: pixels along a side of what is drawn.

    Raises:
        ConfigError: there are none.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.files = picture_files(folder)
        self.size = size

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Pictures with repetitions, [count, 3, size, size] in [0, 1]."""
        chosen = torch.randint(len(self.files), (count,), generator=generator).tolist()
        return torch.stack([middle_square(read_image(self.files[index]), self.size) for index in chosen])


def picture_files(folder: Path) -> list[Path]:
    """The picture files of a folder, sorted.

    Raises:
        ConfigError: there are none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise ConfigError(f"{folder} holds no pictures.", f"Give a folder with {', '.join(SUFFIXES)} files.")
    return files


def middle_square(picture: Tensor, size: int) -> Tensor:
    """The middle square of a picture [3, H, W] at another size, [3, size, size]."""
    height, width = picture.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resized(picture[None, :, top : top + side, left : left + side], size)[0]


def read_prompts(path: Path) -> list[str]:
    """The sentences of a text file, one a line; empty lines are passed over.

    Raises:
        ConfigError: it can't be read as UTF-8 text, or holds none.
        PromptError: a line that is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The prompts in {path} can't be read: {error}.", "Give a text file.") from error
    prompts = [clean_prompt(line) for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompts.", "Write one sentence a line.")
    return prompts


def sentences_for(teacher: NetworkTeacher, prompts: Sequence[str], toy: bool) -> Sentences:
    """Prompts from a file, for a teacher that understands them.

    Raises:
        PromptError: the teacher knows no word of one.
    """
    for prompt in prompts:
        check_prompt(teacher, prompt)
    return Sentences(prompts, toy)


def require_toy_words(teacher: NetworkTeacher) -> None:
    """Check that a teacher can read the toy world's captions.

    Raises:
        ConfigError: it can't.
    """
    unknown = [word for word in content_words() if teacher.unknown_words(word)]
    if unknown or teacher.content_words() is None:
        raise ConfigError(
            f"{teacher.name} is no teacher of the toy world, whose captions would be its prompts.",
            "Give --prompts FILE, one sentence a line.",
        )
