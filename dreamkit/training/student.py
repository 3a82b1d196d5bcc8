"""Trains a streaming video student of a teacher on clips: `dreamkit distill video`.

A recipe is two runs, each a folder that resumes. For a causal student `teacher-forcing` (or `diffusion-forcing`) adapts
the teacher's own weights to see the past only; `causal-consistency`, with that run's student as the teacher, makes a
few steps of many (`motion-consistency` too, which takes only motion from it). For one that streams from a moving buffer
(StreamDiT, arXiv 2507.03745) `buffer-flow-matching` adapts them to mixed noise levels, and `segment-distillation` makes
one step of those that a buffer takes before it moves. The matrices are trained by Muon, the rest by AdamW, the text
encoder and the autoencoder not at all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor
from torch.func import functional_call

from dreamkit.checks import require, require_choice, require_integer, require_number
from dreamkit.diffusion.loading import resolve_device
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.objectives.buffer_video import Partition, every_partition
from dreamkit.objectives.causal_video import Distance, few_step_levels
from dreamkit.objectives.matching import require_finite
from dreamkit.toyworld.motion import relative_cameras
from dreamkit.training.student_losses import (
    OBJECTIVES,
    BufferObjective,
    BufferSettings,
    Lesson,
    LossSettings,
    Models,
    MotionConsistency,
    StudentObjective,
)
from dreamkit.training.student_networks import (
    StudentNetworks,
    export_student,
    load_networks,
    require_alike,
)
from dreamkit.training.student_samples import draw_refilmed, draw_streams
from dreamkit.training.teacher_loop import Report, Tell, Trainer, require_positive, run_training
from dreamkit.training.video_clips import ClipPool
from dreamkit.training.video_teacher import GRID_PROMPTS, withhold
from dreamkit.video.attention_cache import SinkKind
from dreamkit.video.pairs import paired_stream
from dreamkit.video.pipeline import VideoTeacher, load_video_teacher
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import read_stream_config

FOLDER = "student"
"""Of the exported pipeline, in the folder of the run."""


@dataclass(frozen=True)
class StudentOptions:
    """How to train a streaming video student on clips."""

    teacher: Path
    """Pipeline folder of the teacher; for causal-consistency and motion-consistency the student of a teacher-forcing
    run, for segment-distillation that of a buffer-flow-matching run."""
    pool: Path
    """Folder of a pool of clips, as `dreamkit teachers train video` makes it beside its teacher."""
    objective: Literal[
        "teacher-forcing",
        "diffusion-forcing",
        "causal-consistency",
        "motion-consistency",
        "buffer-flow-matching",
        "segment-distillation",
    ] = "teacher-forcing"
    """What the student learns from clips; after the last two it streams from a moving buffer (StreamDiT). Any other
    objective, and --system (causvid, self-forcing, motionstream, reward-forcing, longlive, realcam, blade), match it
    to its teacher on what it makes itself, and have options of their own: see
    `dreamkit distill video --system self-forcing --help`."""
    out: Path = Path("outputs/students/video")
    """Folder of the run: checkpoints, metrics, sample grids and the finished student."""
    start: Path | None = None
    """Pipeline folder whose weights to start from, the teacher by default."""
    steps: int = 1000
    """Optimiser steps in all."""
    cooldown: int = 200
    """Steps at the end over which the learning rate falls to zero."""
    warmup: int = 50
    """Steps at the start over which the learning rate rises."""
    batch: int = 4
    """Clips of a pass."""
    accumulate: int = 1
    """Passes whose gradients make a step."""
    frames: int = 15
    """Latent frames of a clip, at most those of the pool's. Sinks and evictions show from sink + window + chunk on. All
    frames of a moving buffer: --reference and whole chunks."""
    chunk: int = 3
    """Latent frames that are made together; in a moving buffer those of one noise level."""
    sink: int = 3
    """First latent frames that stay visible; a moving buffer has no sink and no window."""
    window: int = 9
    """Latent frames before a chunk that it sees besides."""
    sink_kind: SinkKind = "first"
    """What the exported student's stream keeps as its sink: none, first, ema or shot; in training ema and shot are
    first."""
    shift: float | None = None
    """How far noise levels are moved towards more noise: by default as far as the teacher's, but in a moving buffer not
    at all (1), as published: frames that are mostly noise tell the others little."""
    past_noise: float = 0.0
    """Largest noise level on the past in teacher-forcing and the consistencies, 0 to 1; the student isn't told."""
    guidance: float = 4.0
    """Guidance scale of the teacher: folded into the students of the consistencies and of segment-distillation,
    proposed for sampling any other."""
    solver_steps: int = 32
    """Steps of the teacher from noise to a clip, a multiple of --steps-per-chunk."""
    steps_per_chunk: int = 4
    """Steps of a consistency student for a chunk."""
    distance: Distance = "huber"
    """Of consistency: huber or square."""
    appearance_weight: float = 1.0
    """Of motion-consistency: weight of the distance between the student's frames and the pool's; needs a batch of 2. 0
    leaves it out, and with it all that holds the colours of a clip as a whole."""
    own_share: float = 0.5
    """Of motion-consistency: share of clips that start from what the student makes itself, 0 to 1."""
    micro_steps: int = 8
    """Steps of a moving buffer for each chunk that it shows: of a buffer-flow-matching student, and of the teacher in
    segment-distillation, whose student takes one."""
    reference: int = 0
    """Finished latent frames that stay visible at the front of a moving buffer; without any, as published, it knows
    what was shown by its noisy frames alone."""
    partitions: tuple[int, ...] = ()
    """Chunks that buffer-flow-matching cuts a buffer into besides ordinary clips, e.g. 1 3 5; by default every one that
    divides it."""
    uniform_share: float = 0.25
    """Share of a moving buffer's samples that are ordinary clips, all frames at one noise level: from such a clip a
    stream's first buffer is cut."""
    lr: float = 5e-4
    """Learning rate of the matrices (Muon)."""
    lr_rest: float = 5e-4
    """Learning rate of everything else (AdamW)."""
    ema: float = 0.99
    """Decay of the averaged weights, which are exported and are the target of consistency."""
    text_dropout: float = 0.1
    """Share of samples whose caption is emptied; not where the guidance is folded in."""
    camera_dropout: float = 0.5
    """Share of clips whose cameras are withheld."""
    track_dropout: float = 0.7
    """Share of clips whose tracks are withheld."""
    checkpointing: bool = False
    """Compute activations again for the gradient: less memory, a third more time."""
    seed: int = 0
    """Seed of clips and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    sample_every: int = 500
    """Steps between sample grids; 0 draws none."""

    def __post_init__(self) -> None:
        require_choice("--objective", self.objective, OBJECTIVES)
        names = ("steps", "batch", "accumulate", "frames", "chunk", "solver_steps", "steps_per_chunk", "micro_steps")
        require_positive(self, (*names, "checkpoint_every"))
        for name in ("cooldown", "warmup", "sample_every", "sink", "reference"):
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        shares = ("past_noise", "text_dropout", "camera_dropout", "track_dropout", "ema", "uniform_share", "own_share")
        for name in shares:
            require_number(f"--{name.replace('_', '-')}", getattr(self, name), 0, 1)
        require_number("--guidance", self.guidance, 0, 100)
        require_number("--appearance-weight", self.appearance_weight, 0, 1e6)
        require_number("--shift", self.shift, 0.01, 100)
        if issubclass(OBJECTIVES[self.objective], MotionConsistency):
            require_integer("--frames", self.frames, 2)
            require_integer("--batch", self.batch, 2 if self.appearance_weight > 0 else 1)
        if self.buffer is None:
            require_integer("--window", self.window, self.chunk)
        whole = self.solver_steps % self.steps_per_chunk == 0
        wanted = f"a multiple of --steps-per-chunk, {self.steps_per_chunk}"
        require("--solver-steps", whole, self.solver_steps, wanted)

    @property
    def buffer(self) -> BufferSettings | None:
        """How a moving buffer is cut; `None` of a student without one.

        Raises:
            ConfigError: a buffer that can't be cut so.
        """
        if not issubclass(OBJECTIVES[self.objective], BufferObjective):
            return None
        rest = self.frames - self.reference
        whole = rest > 0 and rest % self.chunk == 0
        require("--frames", whole, self.frames, f"--reference ({self.reference}) and whole chunks of {self.chunk}")
        for size in self.partitions:
            divides = size >= 1 and rest % size == 0
            require("One of --partitions", divides, size, f"divisors of the buffer's {rest} frames after --reference")
        cuts = [Partition.cut(self.frames, size, 1, self.reference) for size in self.partitions]
        partition = Partition.cut(self.frames, self.chunk, self.micro_steps, self.reference)
        mixed = tuple(cuts) or every_partition(self.frames, self.reference)
        return BufferSettings(partition, mixed, self.uniform_share)


class StudentTrainer(Trainer):
    """The state of a training run and one step of it.

    Args:
        options: settings.
        pool: source of clips.

    Raises:
        CheckpointError: a teacher or a start that can't be read, or that don't fit one another.
        ConfigError: a teacher that was not taught what the objective asks of it, or a pool that is empty, of shorter
            clips or of other latents.
    """

    def __init__(self, options: StudentOptions, pool: ClipPool) -> None:
        self.options = options
        self.pool = pool
        self.shards = pool.shards
        require("The pool's number of shards", self.shards > 0, self.shards, "a folder with shard-00000.safetensors")
        self.device = resolve_device(options.device)
        teacher = load_video_teacher(options.teacher, self.device)
        half = teacher.half_precision
        frozen = StudentNetworks(teacher.network, teacher.controls, half).requires_grad_(False)
        start = options.start or options.teacher
        self.networks = load_networks(start, self.device, half).train().requires_grad_(True)
        require_alike(self.networks, frozen, start, options.teacher)
        self.networks.transformer.checkpointing = options.checkpointing
        super().__init__(self.networks, options)
        self.half_precision = half
        self.text = teacher.text
        self.empty = teacher.encode_prompt([""])
        self._require_pairs(teacher)
        latents = pool.draw(1, options.frames, torch.Generator()).latents
        grid = self.networks.transformer.token_grid(latents)
        factor = teacher.autoencoder.spatial_factor
        self.size = (latents.shape[3] * factor, latents.shape[4] * factor)
        self.objective = self._make_objective(grid, teacher.shift)
        self.models = Models(self.networks, self._average, frozen if self._has_teacher() else None)

    def _require_pairs(self, teacher: VideoTeacher) -> None:
        """Check that teacher, pool and objective agree on whether a video is filmed again."""
        options = self.options
        require_same_task(teacher, self.pool)
        if self.pool.pairs and not OBJECTIVES[options.objective].takes_pairs:
            fitting = ", ".join(name for name, objective in OBJECTIVES.items() if objective.takes_pairs)
            raise ConfigError(f"{options.objective} can't learn from pairs.", f"Use one of {fitting}.")

    def _has_teacher(self) -> bool:
        """Whether the objective asks the teacher, which then must have been taught to answer."""
        needs_causal, needs_buffer = self.objective.needs_causal_teacher, self.objective.needs_buffer_teacher
        if not needs_causal and not needs_buffer:
            return False
        folder = self.options.teacher
        taught = read_stream_config(folder)
        if taught is None or (taught.buffer > 0) != needs_buffer:
            what = "denoise a moving buffer" if needs_buffer else "be causal"
            before = "buffer-flow-matching" if needs_buffer else "teacher-forcing"
            raise ConfigError(
                f"The teacher in {folder} was not taught to {what}.",
                f"Train a student of it with --objective {before} first, and give that one as --teacher.",
            )
        if needs_buffer:
            most = taught.reference + taught.buffer * taught.chunk
            frames = self.options.frames
            require("--frames", frames <= most, frames, f"at most {most}, the buffer that the teacher was taught")
        return True

    def _make_objective(self, grid: tuple[int, int, int], teacher_shift: float) -> StudentObjective:
        options, buffer = self.options, self.options.buffer
        shift = options.shift
        if buffer is None:
            sink = 0 if options.sink_kind == "none" else options.sink
            stream = Stream(*grid[1:], options.chunk, sink, options.window)
            stream = paired_stream(stream) if self.pool.pairs else stream
            shift = teacher_shift if shift is None else shift
        else:
            stream = Stream(*grid[1:], options.frames, 0, options.frames)  # all frames see all
            shift = 1.0 if shift is None else shift
        settings = LossSettings(
            stream,
            shift,
            options.past_noise,
            options.guidance,
            options.solver_steps,
            options.steps_per_chunk,
            options.distance,
            buffer,
            options.appearance_weight,
            options.own_share,
            self.pool.pairs,
        )
        return OBJECTIVES[options.objective](settings)

    def _average(self, *arguments: Any) -> Tensor:
        return functional_call(self.networks, self.average, arguments)

    def draw(self, generator: torch.Generator) -> Lesson:
        """Clips of one pass, some without caption, cameras or tracks."""
        options = self.options
        clips = self.pool.draw(options.batch, options.frames, generator, self.shards)
        stream = self.objective.settings.stream
        if not clips.pairs:  # whose cameras stay relative to the source's first
            clips = replace(clips, cameras=streamed_cameras(clips.cameras, stream.chunk, stream.window))
        dropout = options.text_dropout if self.objective.drops_text else 0.0
        no_text = (torch.rand(options.batch, generator=generator) < dropout).tolist()
        captions = ["" if drop else text for text, drop in zip(clips.captions, no_text, strict=True)]
        controls = None
        if self.networks.controls is not None:
            withheld = withhold(clips, options, generator)
            controls = withheld.to(self.device)
        return Lesson(clips.latents.to(self.device), self.text.encode(captions), self.empty, controls)

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """The mean over the passes of a step of the sum of the objective's terms; `loss`, and the terms by name.

        All passes but the last have left their gradients in the parameters when this returns: so only one pass's
        activations are ever held.
        """
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_000_007 + self.step)
        sums: dict[str, float] = {}
        total = torch.zeros((), device=self.device)
        for index in range(self.options.accumulate):
            terms = self.objective.losses(self.draw(generator), self.models, generator)
            require_finite(self.options.objective, self.step, {f"{name} loss": term for name, term in terms.items()})
            total = torch.stack(list(terms.values())).sum() / self.options.accumulate
            if index + 1 < self.options.accumulate:
                total.backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach()) / self.options.accumulate
        return total, {"loss": sum(sums.values()), **sums}

    def state(self) -> dict[str, Tensor]:
        """As `Trainer.state`, with the number of shards that the run draws from: a pool may have grown since."""
        return {**super().state(), "pool.shards": torch.tensor(self.shards)}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: the state is of another network, or the pool has lost shards since.
        """
        super().load_state(tensors, step)
        shards = int(tensors["pool.shards"])
        if shards > self.pool.shards:
            raise CheckpointError(
                f"The run learned from {shards} shards; {self.pool.folder} holds {self.pool.shards}.",
                "Give the same --pool.",
            )
        self.shards = shards

    def stream_config(self) -> StreamConfig:
        """How the student is streamed, for the index of its pipeline folder."""
        options, settings = self.options, self.objective.settings
        steps, guidance = self.objective.sampling
        buffer = settings.buffer
        return StreamConfig(
            size=self.size,
            chunk=options.chunk,
            window=options.window if buffer is None else options.frames,
            sink=options.sink if buffer is None else 0,
            sink_kind=options.sink_kind if buffer is None else "none",
            times=tuple(few_step_levels(steps, 1.0)),  # a stream applies the shift itself
            shift=settings.shift,
            guidance=guidance,
            buffer=0 if buffer is None else buffer.partition.chunks,
            reference=0 if buffer is None else buffer.partition.reference,
        )

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a pipeline folder of float16 safetensors."""
        with self.averaged():
            return export_student(self.networks, self.options.teacher, folder, self.stream_config())

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """Streams of `GRID_PROMPTS`, longer than the clips of the training; or clips of the pool filmed again."""
        student = load_video_teacher(folder, self.device)
        if self.pool.pairs:
            draw_refilmed(student, self.stream_config(), self.pool, self.options.frames, picture)
            return
        chunks = -(-self.options.frames // self.options.chunk) + 2
        draw_streams(student, self.stream_config(), GRID_PROMPTS, chunks, picture)


def require_same_task(model: VideoTeacher, pool: ClipPool) -> None:
    """Check that a model and a pool agree on whether a video is filmed again.

    Raises:
        ConfigError: one of them knows pairs, and the other does not.
    """
    if pool.pairs and not model.pairs:
        raise ConfigError(
            f"The pool {pool.folder} holds pairs, and {model.name} was not taught to film a video again.",
            "Give a teacher that `dreamkit teachers train video --pairs` made.",
        )
    if model.pairs and not pool.pairs:
        raise ConfigError(
            f"{model.name} films a video again, and the pool {pool.folder} holds no pairs.",
            "Give the pool that `dreamkit teachers train video --pairs` made beside it.",
        )


def streamed_cameras(cameras: Tensor, chunk: int, window: int) -> Tensor:
    """Poses as a stream has them: a chunk's are relative to the frame `window` frames before it, or to the first.

    So a training on clips and `dreamkit.video.camera_paths.CameraTrail` give a frame the same numbers.

    Args:
        cameras: [B, F, 12] camera_to_world rows.
        chunk: frames that are made together.
        window: frames before them.
    """
    parts = []
    for start in range(0, cameras.shape[1], chunk):
        first = max(0, start - window)
        parts.append(relative_cameras(cameras[:, first : start + chunk])[:, start - first :])
    return torch.cat(parts, dim=1)


def open_pool(folder: Path) -> ClipPool:
    """The pool in a folder, or in the only pool-... folder in it.

    Raises:
        ConfigError: there is none, or there are several.
    """
    if (folder / "shard-00000.safetensors").exists():
        return ClipPool(folder)
    found = sorted(path.parent for path in folder.glob("pool-*/shard-00000.safetensors"))
    if len(found) == 1:
        return ClipPool(found[0])
    if found:
        names = ", ".join(path.name for path in found)
        raise ConfigError(f"{folder} holds several pools: {names}.", "Give one of them as --pool.")
    raise ConfigError(
        f"{folder} holds no pool of clips.", "`dreamkit teachers train video` makes one, in pool/ of its --out."
    )


def train_student(
    options: StudentOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> Path:
    """Train (or go on training) a streaming video student on clips.

    Args:
        options: settings; a run folder that holds checkpoints is continued.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The student's pipeline folder.

    Raises:
        CheckpointError: a model or a checkpoint that can't be read or doesn't fit.
        TrainingError: a loss that is not finite.
        ConfigError: no pool, or a teacher that was not taught what the objective asks of it.
        RunError: a file can't be written.
    """
    trainer = StudentTrainer(options, open_pool(options.pool))
    return run_training(trainer, FOLDER, report, tell)
