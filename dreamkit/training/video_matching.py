"""Distribution matching of causal video students: `dreamkit distill video --objective self-forcing` and its kin.

The student is rolled out on its own history, exactly as it streams (Huang et al., "Self Forcing", arXiv 2506.08009), or
behind the data's (CausVid, arXiv 2412.07772); the last frames, as many as the teacher knows, are judged by the teacher,
who sees all of them at once, against a critic that learns what the student makes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor

from dreamkit.checks import one_of, require, require_integer, require_number
from dreamkit.diffusion.loading import resolve_device
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import ConfigError
from dreamkit.metrics.flow import optical_flow
from dreamkit.objectives.causal_video import few_step_levels
from dreamkit.objectives.matching import Matching, MatchingContext
from dreamkit.objectives.segments import TrajectoryDistributionMatching
from dreamkit.training.clip_judges import ClipCritic, ClipDiscriminator, ClipJudge
from dreamkit.training.matching import Made, MatchingTrainer, matching_objective
from dreamkit.training.named_options import read_option
from dreamkit.training.rollouts import Roller, Rollout
from dreamkit.training.student import FOLDER, open_pool, require_same_task, streamed_cameras
from dreamkit.training.student_networks import StudentNetworks, export_student, load_networks, require_alike
from dreamkit.training.student_samples import draw_refilmed, draw_streams
from dreamkit.training.teacher_loop import Report, Tell, require_positive, run_training
from dreamkit.training.video_clips import ClipPool, LatentClips
from dreamkit.training.video_teacher import GRID_PROMPTS, withhold
from dreamkit.video.attention_cache import SinkKind
from dreamkit.video.autoencoders import VideoAutoencoder
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import paired_stream, sources, targets
from dreamkit.video.pipeline import load_video_teacher, shifted
from dreamkit.video.sparse_attention import Sparsity
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import read_stream_config

History = Literal["self", "data"]


@dataclass(frozen=True)
class VideoMatchingOptions:
    """How to train a causal video student by distribution matching."""

    teacher: Path
    """Pipeline folder of the teacher, which sees whole clips."""
    student: Path
    """Pipeline folder of the causal student to start from, as `distill video` makes it."""
    pool: Path
    """Folder of a pool of clips, for captions, cameras and tracks; its latents only where data is asked for."""
    objective: str = "dmd"
    """What the student learns: one of the student's objectives of `dreamkit objectives`, which it lists."""
    option: tuple[str, ...] = ()
    """Change an option of the objective, e.g. guidance=3, shared_level=true; may be given several times."""
    out: Path = Path("outputs/students/video-matching")
    """Folder of the run: checkpoints, metrics, sample grids and the finished student."""
    pairs: bool = False
    """Insist on a pool of pairs, from which a student learns to film a video again; such a pool needs no asking."""
    history: History = "self"
    """What the student sees before a chunk: what it made itself, or noisy clips of the data (CausVid)."""
    steps: int = 400
    """Steps of the student."""
    cooldown: int = 100
    """Steps at the end over which the learning rates fall to zero."""
    warmup: int = 10
    """Steps over which the learning rates rise."""
    batch: int = 2
    """Clips of a pass."""
    accumulate: int = 1
    """Passes of --batch whose gradients make a step, the critic's as the student's."""
    frames: int = 15
    """Latent frames that are judged, as many as the teacher was trained on."""
    before: int = 0
    """Chunks that the student may make before those, up to this many, drawn for every step: long roll-outs."""
    switches: float = 0.0
    """Share of the long roll-outs whose prompt changes where the judged frames begin."""
    steps_per_chunk: int = 4
    """Steps of the student for a chunk."""
    chunk: int | None = None
    """Latent frames that are made together, the student's own by default; so are sink, window and kind of sink."""
    sink: int | None = None
    """First latent frames that stay visible."""
    window: int | None = None
    """Latent frames before a chunk that it sees besides."""
    sink_kind: SinkKind | None = None
    """What the cache keeps as its sink: none, first, ema or shot."""
    sink_decay: float | None = None
    """Decay of an ema sink."""
    sparsity: str | None = None
    """What of its attention the student computes, in training and in its streams: keep=0.3,block=16 for a share of the
    blocks between sink and chunk, mass=0.9 for a share of the attention, dense for all; the student's own by default.
    Teacher and critic see everything."""
    critic_steps: int = 5
    """Steps of the critic before each of the student's."""
    lr: float = 1e-4
    """Learning rate of the student's matrices (Muon)."""
    lr_rest: float = 1e-4
    """Learning rate of everything else of the student (AdamW)."""
    critic_lr: float = 2e-4
    """Learning rate of the critic's matrices (Muon)."""
    critic_lr_rest: float = 2e-4
    """Learning rate of everything else of the critic (AdamW)."""
    ema: float = 0.98
    """Decay of the averaged weights, which are exported."""
    camera_dropout: float = 0.5
    """Share of clips whose cameras are withheld."""
    track_dropout: float = 0.7
    """Share of clips whose tracks are withheld."""
    checkpointing: bool = False
    """Compute the activations of teacher and critic again for the gradient: less memory, a third more time."""
    seed: int = 0
    """Seed of prompts and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    checkpoint_every: int = 20
    """Steps between checkpoints."""
    sample_every: int = 100
    """Steps between sample grids; 0 draws none."""

    def __post_init__(self) -> None:
        names = ("steps", "batch", "accumulate", "frames", "steps_per_chunk", "critic_steps", "checkpoint_every")
        require_positive(self, names)
        for name in ("cooldown", "warmup", "sample_every", "before"):
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("switches", "camera_dropout", "track_dropout", "ema"):
            require_number(f"--{name.replace('_', '-')}", getattr(self, name), 0, 1)
        Sparsity.parse(self.sparsity)
        one_of("--history", self.history, get_args(History))
        alone = self.history == "self" or not self.before
        require("--before", alone, self.before, "0 with --history data, whose clips are given")


class VideoMatchingTrainer(MatchingTrainer):
    """The state of a training run and one step of it.

    Args:
        options: settings.
        pool: source of captions, controls and clips.

    Raises:
        CheckpointError: a model that can't be read, or that doesn't fit.
        ConfigError: a student that is not causal, an objective that judges no clips, or a pool of other latents.
    """

    options: VideoMatchingOptions

    def __init__(self, options: VideoMatchingOptions, pool: ClipPool) -> None:
        objective = matching_objective(options.objective, options.option)
        require_clip_objective(objective)
        self.options = options
        self.pool = pool
        self.shards = pool.shards
        require("The pool's number of shards", self.shards > 0, self.shards, "a folder with shard-00000.safetensors")
        self.device = resolve_device(options.device)
        teacher = load_video_teacher(options.teacher, self.device)
        half = teacher.half_precision
        self.frozen = StudentNetworks(teacher.network, teacher.controls, half).requires_grad_(False)
        student = load_networks(options.student, self.device, half).train().requires_grad_(True)
        require_alike(student, self.frozen, options.student, options.teacher)
        copied = load_networks(options.teacher, self.device, half).train().requires_grad_(True)
        copied.transformer.checkpointing = options.checkpointing
        require_same_task(teacher, pool)
        self._require_source(options)
        self.text, self.autoencoder = teacher.text, teacher.autoencoder
        self.latents = self._latent_shape()
        self.config = self._stream_config(teacher.shift)
        shift = teacher.shift if self.config.shift is None else self.config.shift
        torch.manual_seed(options.seed)
        critic = ClipCritic(copied, objective.learns_from_data).to(self.device)
        super().__init__(student, critic, segmented(objective, options, shift), options)
        self.student = student
        self.half_precision = half
        self.empty = teacher.encode_prompt([""])
        grid = student.transformer.token_grid(torch.zeros(1, *self.latents, device="meta"))
        stream = Stream(*grid[1:], self.config.chunk, self.config.sink, self.config.window)
        stream = paired_stream(stream) if pool.pairs else stream
        levels = shifted(torch.tensor(self.config.times, dtype=torch.float64), shift).tolist()
        self.roller = Roller(
            stream, levels, self.config.sink_kind, self.config.sink_decay, sparsity=self.config.sparsity
        )
        self.schedule = NoiseSchedule.flow(1.0)

    def _require_source(self, options: VideoMatchingOptions) -> None:
        """Check the options of a system that films a video again against the pool, and a pool of pairs against them."""
        wanted = "0 with a pool of pairs, whose clips are given"
        require("--before", not (self.pool.pairs and options.before), options.before, wanted)
        if options.pairs and not self.pool.pairs:
            raise ConfigError(
                f"This system films a video again, and the pool {self.pool.folder} holds no pairs.",
                "Make teacher and pool with `dreamkit teachers train video --pairs`.",
            )

    def _latent_shape(self) -> tuple[int, int, int, int]:
        latents = self.pool.draw(1, self.options.frames, torch.Generator()).latents
        return (latents.shape[1], self.options.frames, latents.shape[3], latents.shape[4])

    def _stream_config(self, shift: float) -> StreamConfig:
        """The student's own, with what the options change."""
        own, options = read_stream_config(self.options.student), self.options
        if own is None:
            raise ConfigError(
                f"The student in {options.student} was not taught to be causal.",
                "Train one with --objective teacher-forcing, then causal-consistency, first.",
            )
        if own.buffer:
            raise ConfigError(
                f"The student in {options.student} streams from a moving buffer, not over a cache.",
                "Use --objective segment-distillation for it, or a causal student here.",
            )
        names = ("chunk", "sink", "window", "sink_kind", "sink_decay", "sparsity")
        asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
        factor = self.autoencoder.spatial_factor
        return replace(
            own,
            **asked,
            size=(self.latents[2] * factor, self.latents[3] * factor),
            times=tuple(few_step_levels(options.steps_per_chunk, 1.0)),  # a stream applies the shift itself
            shift=shift if own.shift is None else own.shift,
            guidance=1.0,
        )

    def make(self, generator: torch.Generator, trained: bool) -> Made:
        """Draw clips' captions and controls, roll the student out, and bind the judges to them."""
        options = self.options
        clips = self.pool.draw(options.batch, options.frames, generator, self.shards)
        before = int(torch.randint(options.before + 1, (), generator=generator))
        switches = before > 0 and float(torch.rand((), generator=generator)) < options.switches
        text = self.text.encode(clips.captions)
        seen, steered = self._controls(clips, before, generator)
        data = clips.latents.to(self.device)
        if options.history == "data":
            rollout = self.roller.on_data(self.student, data, text, steered, generator, trained, clips.pairs)
        else:
            old = self.text.encode(self._other_captions(generator)) if switches else None
            source = sources(data) if clips.pairs else None
            shape = (options.batch, *self.latents)
            rollout = self.roller.on_itself(self.student, shape, text, steered, generator, trained, before, old, source)
        reward = None
        if self.objective.needs_reward:  # which only the student's own step asks for
            seen_frames = targets(rollout.x) if clips.pairs else rollout.x
            moved = motion_reward(seen_frames, self.autoencoder) if trained else torch.zeros(options.batch)
            reward = moved.to(rollout.x)
        return Made(rollout.x, replace(self._context(rollout, text, seen, data, generator), reward=reward))

    def _controls(
        self, clips: LatentClips, before: int, generator: torch.Generator
    ) -> tuple[Controls | None, Controls | None]:
        """Controls as the judges and as the student have them; none where the clip's frames are not the first ones."""
        seen = withhold(clips, self.options, generator).to(self.device)
        if self.student.controls is None or before:
            return None, None
        assert seen.camera is not None
        if clips.pairs:  # whose cameras stay relative to the source's first
            return seen, seen
        cameras = streamed_cameras(clips.cameras, self.config.chunk, self.config.window).to(seen.camera)
        with_camera = seen.camera.abs().sum(dim=(1, 2), keepdim=True) > 0
        return seen, replace(seen, camera=cameras * with_camera)

    def _other_captions(self, generator: torch.Generator) -> list[str]:
        return self.pool.draw(self.options.batch, 1, generator, self.shards).captions

    def _context(
        self, rollout: Rollout, text: Tensor, controls: Controls | None, data: Tensor, generator: torch.Generator
    ) -> MatchingContext:
        critic = self.critic
        assert isinstance(critic, ClipCritic)
        source = data if self.pool.pairs else None
        judge = ClipJudge(critic.networks, text, self.empty, controls, source)
        return MatchingContext(
            teacher=ClipJudge(self.frozen, text, self.empty, controls, source),
            schedule=self.schedule,
            generator=generator,
            critic=judge,
            chunk=self.roller.stream.chunk,
            discriminator=None if critic.head is None else ClipDiscriminator(critic, judge),
            student_level=rollout.levels,
            data=data,
        )

    def state(self) -> dict[str, Tensor]:
        """As `MatchingTrainer.state`, with the number of shards that the run draws from, which may have grown since."""
        return {**super().state(), "pool.shards": torch.tensor(self.shards)}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: the state is of other networks.
        """
        super().load_state(tensors, step)
        self.shards = int(tensors["pool.shards"])

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a pipeline folder of float16 safetensors."""
        with self.averaged():
            return export_student(self.student, self.options.teacher, folder, self.config)

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """Streams of `GRID_PROMPTS`, longer than the clips of the training; or clips of the pool filmed again."""
        student = load_video_teacher(folder, self.device)
        if self.pool.pairs:
            draw_refilmed(student, self.config, self.pool, self.options.frames, picture)
            return
        chunks = -(-self.options.frames // self.config.chunk) + 2
        draw_streams(student, self.config, GRID_PROMPTS, chunks, picture)


def require_clip_objective(objective: Matching) -> None:
    """Check that an objective judges clips by what is known of them.

    Raises:
        ConfigError: it needs what no roll-out gives.
    """
    wanted: dict[str, Any] = {
        "needs_sample_level": "roll-outs that stop before their end",
        "needs_student": "the student as a denoiser",
        "needs_path": "a path of degraded teachers",
    }
    for name, what in wanted.items():
        if getattr(objective, name):
            raise ConfigError(
                f"The objective {objective.name} needs {what}, which clips of a stream don't have.",
                "Use one of dmd, re-dmd, decoupled-dmd, f-distill, sid, sim, tdm.",
            )


def segmented(objective: Matching, options: VideoMatchingOptions, shift: float) -> Matching:
    """The objective, and if it is TDM with the segments that the student's steps go through.

    Args:
        objective: as the options have it.
        options: whose `steps_per_chunk` are the segments.
        shift: of the student's levels.

    Raises:
        ConfigError: the options say otherwise.
    """
    if not isinstance(objective, TrajectoryDistributionMatching):
        return objective
    fitting = replace(objective, segments=options.steps_per_chunk, shift=shift)
    for name in {read_option(option)[0][0] for option in options.option} & {"segments", "shift"}:
        given, wanted = getattr(objective, name), getattr(fitting, name)
        if given != wanted:
            raise ConfigError(
                f"{objective.name} with {name}={given} does not fit a student of {options.steps_per_chunk} steps a "
                f"chunk, its levels shifted by {shift:g}.",
                f"Leave {name} out: it is {wanted:g}.",
            )
    return fitting


@torch.no_grad()
def motion_reward(latents: Tensor, autoencoder: VideoAutoencoder) -> Tensor:
    """How much clips [B, C, F, h, w] move: the mean length of their optical flow, pixels a frame, [B].

    No ground truth is asked: the reward that Reward Forcing (arXiv 2512.04678) has a vision-language model give.
    """
    frames = autoencoder.decode(latents.detach())
    pairs = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
    lengths = optical_flow(*pairs).norm(dim=1).mean(dim=(1, 2))
    return lengths.unflatten(0, (len(frames), -1)).mean(dim=1)


def train_video_matching(
    options: VideoMatchingOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> Path:
    """Train (or go on training) a causal video student by distribution matching.

    Args:
        options: settings; a run folder that holds checkpoints is continued.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The student's pipeline folder.

    Raises:
        CheckpointError: a model or a checkpoint that can't be read or doesn't fit.
        ConfigError: no pool, a student that is not causal, an objective that judges no clips.
        TrainingError: a term is not finite; the last checkpoint is sound.
        RunError: a file can't be written.
    """
    return run_training(VideoMatchingTrainer(options, open_pool(options.pool)), FOLDER, report, tell)
