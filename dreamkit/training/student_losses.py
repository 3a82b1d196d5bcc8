"""What a streaming video student is taught from clips, objective by objective, in the order of two recipes.

    teacher-forcing       the flow of noisy chunks under a clean past: makes a causal model of a bidirectional one
    diffusion-forcing     the same under a past at noise levels of its own
    causal-consistency    a few steps instead of many, the guidance inside (needs a causal teacher)
    motion-consistency    the same of motion alone, the appearance of frames from the clips (needs a causal teacher)

    buffer-flow-matching  the flow of a buffer at mixed noise levels, all frames seeing all: it streams from that buffer
    segment-distillation  one step instead of several before the buffer moves, the guidance inside (needs such a
                          teacher)

The mathematics is in `dreamkit.objectives.causal_video`, `motion_consistency` and `buffer_video`; here it is asked of
networks. Another objective is one more class in `OBJECTIVES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor

from dreamkit.diffusion.guidance import guide
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.objectives.buffer_video import Partition, draw_places, draw_segments, mean_where, segment_error
from dreamkit.objectives.causal_video import (
    Distance,
    Flow,
    consistency_error,
    draw_neighbours,
    draw_positions,
    flow_matching_error,
    neighbouring_clips,
    noisy_clip,
)
from dreamkit.objectives.motion_consistency import (
    appearance_error,
    mix_trajectories,
    motion_error,
)
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import target_levels, targets

Call = Callable[..., Tensor]
"""`StudentNetworks.forward`, under some weights."""


@dataclass(frozen=True)
class Lesson:
    """Clips that one pass learns from.

    Args:
        x0: [B, C, F, h, w] clean latents.
        text: [B, L, D] of their captions.
        empty: [1, L, D] of no caption.
        controls: of their frames, `None` for a model that reads none.
    """

    x0: Tensor
    text: Tensor
    empty: Tensor
    controls: Controls | None


@dataclass(frozen=True)
class Models:
    """Who is asked.

    Args:
        student: with gradients.
        average: the student under its averaged weights.
        teacher: frozen; `None` where the objective needs none.
    """

    student: Call
    average: Call
    teacher: Call | None = None


@dataclass(frozen=True)
class BufferSettings:
    """How buffers are cut, see `StudentOptions`.

    Args:
        partition: of the stream, with the micro steps of buffer-flow-matching and of the teacher.
        mixed: what buffer-flow-matching draws from.
        uniform_share: share of samples that are ordinary clips.
    """

    partition: Partition
    mixed: tuple[Partition, ...]
    uniform_share: float


@dataclass(frozen=True)
class LossSettings:
    """Numbers of the objectives, see `StudentOptions`.

    Args:
        stream: chunk, sink and window.
        shift: of the noise levels.
        past_noise: largest noise level of the clean past.
        guidance: D(s) of the teacher.
        solver_steps: of the teacher's path.
        steps_per_chunk: of the few-step student.
        distance: between clean clips.
        buffer: of a student that streams from one; `stream` then has all its frames for a chunk.
        appearance_weight: of the frames' distance from data in motion-consistency; 0 leaves it out.
        own_share: of clips that motion-consistency starts from what the student makes.
        pairs: whether the clips are pairs, see `dreamkit.video.pairs`: source frames are seen and not learned.
    """

    stream: Stream
    shift: float
    past_noise: float = 0.0
    guidance: float = 4.0
    solver_steps: int = 32
    steps_per_chunk: int = 4
    distance: Distance = "huber"
    buffer: BufferSettings | None = None
    appearance_weight: float = 1.0
    own_share: float = 0.5
    pairs: bool = False


class StudentObjective(ABC):
    """Asks the models about a lesson.

    Args:
        settings: numbers.
    """

    needs_causal_teacher: ClassVar[bool] = False
    """Whether the teacher answers chunk by chunk under a clean past."""
    needs_buffer_teacher: ClassVar[bool] = False
    """Whether the teacher answers for a buffer at mixed noise levels."""
    drops_text: ClassVar[bool] = True
    """Whether captions are emptied now and then, so that the student can be guided."""
    takes_pairs: ClassVar[bool] = False
    """Whether it can be learned from pairs, to film a video again."""

    def __init__(self, settings: LossSettings) -> None:
        self.settings = settings

    @abstractmethod
    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """Terms by name, each a number; their sum is minimised.

        Args:
            lesson: on the models' device.
            models: to ask.
            generator: source of levels and noise, on the CPU.
        """

    @property
    @abstractmethod
    def sampling(self) -> tuple[int, float]:
        """How such a student is sampled: steps a chunk, and the guidance."""

    def draw_noise(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal noise like `x0`, the same on every device."""
        return torch.randn(x0.shape, generator=generator).to(x0)

    def draw_places(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        """Places [B, F] on the schedule, float64 on the CPU, see `draw_positions`."""
        return draw_positions(x0.shape[0], x0.shape[2], self.settings.stream.chunk, generator)

    def made(self, levels: Tensor) -> Tensor:
        """Noise levels [B, F] of what is made: a source is clean."""
        return target_levels(levels) if self.settings.pairs else levels

    def mean(self, error: Tensor) -> Tensor:
        """The mean of errors [B, F] over the frames that are made."""
        return (targets(error, 1) if self.settings.pairs else error).mean()

    def past(self, lesson: Lesson, generator: torch.Generator) -> Tensor:
        """The frames before a chunk: clean, or with a little noise that the student is not told of.

        A stream's own past is never quite clean: a student that has seen some of it noisy forgives its own mistakes.
        """
        if self.settings.past_noise == 0:
            return lesson.x0
        levels = self.made(self.settings.past_noise * self.draw_places(lesson.x0, generator).to(lesson.x0))
        return noisy_clip(lesson.x0, self.draw_noise(lesson.x0, generator), levels)

    def flow(self, call: Call, lesson: Lesson, past: Tensor | None) -> Flow:
        """The flow that a model sees, as a function of noisy clips and levels."""
        return lambda x, t: call(x, t, lesson.text, lesson.controls, self.settings.stream, past)

    def guided(self, models: Models, lesson: Lesson, past: Tensor | None) -> Flow:
        """The teacher's guided flow D(s): text against no text in one pass, the controls on both sides.

        Raises:
            ConfigError: there is no teacher.
        """
        teacher = models.teacher
        if teacher is None:
            raise ConfigError(f"{type(self).__name__} has no teacher to follow.", "Give one.")
        stream, scale = self.settings.stream, self.settings.guidance
        if scale == 1:
            return self.flow(teacher, lesson, past)
        text = torch.cat([lesson.text, lesson.empty.expand_as(lesson.text)])
        controls = None if lesson.controls is None else lesson.controls.twice()

        def flow(x: Tensor, t: Tensor) -> Tensor:
            before = None if past is None else torch.cat([past, past])
            x, t = torch.cat([x, x]), torch.cat([t, t])
            positive, negative = teacher(x, t, text, controls, stream, before).chunk(2)
            return guide(positive, negative, scale)

        return flow


class DiffusionForcing(StudentObjective):
    """Flow matching, a noise level for every chunk, behind a past that is as noisy as its own levels say."""

    takes_pairs = True

    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """`flow`, see `flow_matching_error`."""
        return self._matching(lesson, models, None, generator)

    @property
    def sampling(self) -> tuple[int, float]:
        """Many guided steps."""
        return self.settings.solver_steps, self.settings.guidance

    def _matching(
        self, lesson: Lesson, models: Models, past: Tensor | None, generator: torch.Generator
    ) -> dict[str, Tensor]:
        places = self.draw_places(lesson.x0, generator)
        levels = self.made(NoiseSchedule.flow(self.settings.shift).sigma(places).to(lesson.x0))
        eps = self.draw_noise(lesson.x0, generator)
        error = flow_matching_error(self.flow(models.student, lesson, past), lesson.x0, eps, levels)
        return {"flow": self.mean(error)}


class TeacherForcing(DiffusionForcing):
    """Flow matching, a noise level for every chunk, behind a clean past."""

    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """`flow`, see `flow_matching_error`."""
        return self._matching(lesson, models, self.past(lesson, generator), generator)


class CausalConsistency(StudentObjective):
    """Consistency distillation of a causal, guided teacher behind a clean past.

    The teacher is the causally adapted network, not the bidirectional one: a bidirectional path of a chunk depends on
    the noise of the chunks after it, which a stream has not drawn yet, so no causal student can follow it. (CausVid,
    arXiv 2412.07772, takes pairs from such paths, and only to initialise a student for what comes after.)
    """

    needs_causal_teacher = True
    drops_text = False
    takes_pairs = True

    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """`consistency`, see `consistency_error`."""
        settings, x0 = self.settings, lesson.x0
        places = self.draw_places(x0, generator)
        nodes = draw_neighbours(places, settings.solver_steps, settings.shift)
        levels, lower = (self.made(item.to(x0)) for item in nodes)
        eps, past = self.draw_noise(x0, generator), self.past(lesson, generator)
        error = consistency_error(
            self.flow(models.student, lesson, past),
            self.flow(models.average, lesson, past),
            self.guided(models, lesson, past),
            x0, eps, levels, lower, settings.distance,
        )  # fmt: skip
        return {"consistency": self.mean(error)}

    @property
    def sampling(self) -> tuple[int, float]:
        """A few steps; the guidance is inside."""
        return self.settings.steps_per_chunk, 1.0


class MotionConsistency(CausalConsistency):
    """Consistency distillation of a causal, guided teacher's motion; what frames look like is learned from the clips.

    The Motion Consistency Model (Zhai et al., arXiv 2406.06890), behind a clean past: that stays the data's where a
    clip is the student's own, since the student made every chunk of it behind the data's.
    """

    takes_pairs = False

    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """`motion` and `appearance` (weighted), see `motion_error` and `appearance_error`."""
        settings, x0 = self.settings, lesson.x0
        places = self.draw_places(x0, generator)
        levels, lower = (item.to(x0) for item in draw_neighbours(places, settings.solver_steps, settings.shift))
        eps, past = self.draw_noise(x0, generator), self.past(lesson, generator)
        own = torch.rand(len(x0), generator=generator) < settings.own_share
        average = self.flow(models.average, lesson, past)
        clips = mix_trajectories(average, x0, self.draw_noise(x0, generator), own.to(x0.device))
        made, goal = neighbouring_clips(
            self.flow(models.student, lesson, past), average, self.guided(models, lesson, past),
            clips, eps, levels, lower,
        )  # fmt: skip
        terms = {"motion": motion_error(made, goal, settings.distance).mean()}
        if settings.appearance_weight > 0:
            terms["appearance"] = settings.appearance_weight * appearance_error(made, x0)
        return terms


class BufferObjective(StudentObjective):
    """Of a student that streams from a moving buffer (Kodaira et al., "StreamDiT", arXiv 2507.03745).

    Raises:
        ConfigError: settings without a buffer.
    """

    def __init__(self, settings: LossSettings) -> None:
        super().__init__(settings)
        if settings.buffer is None:
            raise ConfigError(f"{type(self).__name__} has no buffer to cut.", "Say how it is cut.")
        self.buffer = settings.buffer

    def levels(self, places: Tensor, x0: Tensor) -> Tensor:
        """Noise levels of places on the schedule, like `x0`."""
        return NoiseSchedule.flow(self.settings.shift).sigma(places).to(x0)


class BufferFlowMatching(BufferObjective):
    """Flow matching over buffers, every sample cut in a way of its own; finished frames are seen and not learned."""

    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """`flow`, see `flow_matching_error`; the mean over the frames that are noisy."""
        x0, buffer = lesson.x0, self.buffer
        levels = self.levels(draw_places(len(x0), buffer.mixed, buffer.uniform_share, generator), x0)
        eps = self.draw_noise(x0, generator)
        error = flow_matching_error(self.flow(models.student, lesson, None), x0, eps, levels)
        return {"flow": mean_where(error, levels > 0)}

    @property
    def sampling(self) -> tuple[int, float]:
        """As many guided steps as the buffer takes from its back to its front."""
        return self.buffer.partition.steps, self.settings.guidance


class SegmentDistillation(BufferObjective):
    """One step of the student's for the guided micro steps of the teacher's before the buffer moves."""

    needs_buffer_teacher = True
    drops_text = False

    def losses(self, lesson: Lesson, models: Models, generator: torch.Generator) -> dict[str, Tensor]:
        """`segment`, see `segment_error`; the mean over the frames that move."""
        x0, partition = lesson.x0, self.buffer.partition
        begin, end = draw_segments(len(x0), partition, self.buffer.uniform_share, generator)
        steps = partition.micro_steps
        levels = [self.levels(begin + (end - begin) * step / steps, x0) for step in range(steps + 1)]
        eps = self.draw_noise(x0, generator)
        student, teacher = self.flow(models.student, lesson, None), self.guided(models, lesson, None)
        return {"segment": mean_where(segment_error(student, teacher, x0, eps, levels), levels[0] > 0)}

    @property
    def sampling(self) -> tuple[int, float]:
        """One step for each chunk of the buffer; the guidance is inside."""
        return self.buffer.partition.chunks, 1.0


OBJECTIVES: dict[str, type[StudentObjective]] = {
    "teacher-forcing": TeacherForcing,
    "diffusion-forcing": DiffusionForcing,
    "causal-consistency": CausalConsistency,
    "motion-consistency": MotionConsistency,
    "buffer-flow-matching": BufferFlowMatching,
    "segment-distillation": SegmentDistillation,
}
"""By the name on the command line."""
