"""How an image student makes what it is judged by: prompts are drawn, and it walks down some of its levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.students import noisy_start
from dreamkit.training.image_student_networks import NetworkDenoiser
from dreamkit.training.image_student_sources import PictureFolder, Source


@dataclass(frozen=True)
class Lesson:
    """What one batch is about.

    Args:
        prompts: B sentences.
        condition: encoded, B rows.
        camera: poses [B, 12], zeros where they are withheld; `None` for a teacher that takes none.
        data: clean samples [B, C, h, w] of real pictures; `None` where there are none.
        paired: whether the data shows what the prompts and the cameras say.
    """

    prompts: list[str]
    condition: Condition
    camera: Tensor | None = None
    data: Tensor | None = None
    paired: bool = False


class Maker:
    """Draws lessons, and has a student make samples for them.

    Args:
        teacher: whose prompts, samples and noise they are.
        source: of prompts, cameras and perhaps pictures of them.
        pictures: other pictures, if there are any.
        levels: the student's, from the noisiest on.
        batch: samples of a lesson.
        camera_dropout: share of the cameras that are withheld.
        half_precision: whether matrices are multiplied in bfloat16.
    """

    def __init__(
        self,
        teacher: NetworkTeacher,
        source: Source,
        pictures: PictureFolder | None,
        levels: Sequence[float],
        batch: int,
        camera_dropout: float = 0.0,
        half_precision: bool = False,
    ) -> None:
        self.teacher = teacher
        self.source = source
        self.pictures = pictures
        self.levels = list(levels)
        self.batch = batch
        self.camera_dropout = camera_dropout
        self.half_precision = half_precision
        self.null = teacher.null_condition(1)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> Lesson:
        """A lesson, a pure function of the generator's state."""
        drawn = self.source.draw(self.batch, generator)
        camera = None
        if drawn.poses is not None:
            kept = torch.rand(self.batch, 1, generator=generator) >= self.camera_dropout
            camera = (drawn.poses * kept).to(self.teacher.device)
        pictures = drawn.pictures if self.pictures is None else self.pictures.draw(self.batch, generator)
        # An autoencoder may leave its latents in a layout that forward derivatives don't go through.
        data = None if pictures is None else self.teacher.encode_image(pictures.to(self.teacher.device)).contiguous()
        condition = self.teacher.encode_prompt(drawn.prompts)
        return Lesson(drawn.prompts, condition, camera, data, paired=self.pictures is None)

    def make(
        self, student: NetworkTeacher, lesson: Lesson, generator: torch.Generator, trained: bool
    ) -> tuple[Tensor, Tensor]:
        """Walk a student down to one of its levels, drawn at random, and there to a clean sample.

        Args:
            student: makes them.
            lesson: prompts and cameras.
            generator: source of noise and of the level, on the CPU.
            trained: whether the graph of the last step is kept; there is never one of those before it.

        Returns:
            Samples [B, C, h, w] and the level that they were made from, [B] float64.
        """
        asked = self.denoiser(student, lesson)
        last = int(torch.randint(len(self.levels), (), generator=generator))

        def draw() -> Tensor:
            return torch.randn(self.batch, *student.sample_shape, generator=generator).to(student.device)

        with torch.no_grad():
            x_t = noisy_start(asked.predict, draw, self.levels[: last + 1], student.schedule)
        with torch.set_grad_enabled(trained):
            x = asked.predict(x_t, self.levels[last])
        return x, torch.full((self.batch,), self.levels[last], dtype=torch.float64, device=x.device)

    def denoiser(self, model: NetworkTeacher, lesson: Lesson, exact: bool = False) -> NetworkDenoiser:
        """A model under the prompts and cameras of a lesson; `exact` keeps it in float32."""
        return NetworkDenoiser(model, lesson.condition, self.null, lesson.camera, self.half_precision and not exact)

    def judge_of_data(self, model: NetworkTeacher, lesson: Lesson) -> NetworkDenoiser:
        """A model as it sees data and samples alike: under their prompts if the data shows these, else under none."""
        if lesson.paired:
            return self.denoiser(model, lesson)
        return NetworkDenoiser(model, self.null, self.null, None, self.half_precision)
