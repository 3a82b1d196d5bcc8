"""Trains the embedded text-to-video teacher on the moving toy world: `dreamkit teachers train video`.

Flow matching (Lipman et al., arXiv 2210.02747) on the latents of a frozen autoencoder, as Wan (arXiv 2503.20314):
x_t = (1 - t) x_0 + t eps, and the loss is the mean squared error of eps - x_0. First single frames, which are cheap and
teach what things look like, then clips, beside which some single frames go on. Text, cameras and tracks are withheld
from shares of the samples. Some clips have a noise level for each chunk of frames (Chen et al., "Diffusion Forcing",
arXiv 2407.01392), so that a causal student starts from a teacher that has seen clean frames before noisy ones.

With `pairs` it learns to film a video again from another camera: see `dreamkit.video.pairs`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.checks import require_integer, require_number
from dreamkit.diffusion.loading import resolve_device
from dreamkit.toyworld.motion import (
    MotionConfig,
    build_motion_cache,
    motion_content_words,
    motion_vocabulary,
)
from dreamkit.training.teacher_loop import Report, Tell, Trainer, require_positive, run_training
from dreamkit.training.video_clips import ClipPool, LatentClips, PoolRecipe, growing_pool
from dreamkit.training.word_text import load_text_encoder_weights, make_text_encoder, make_tokenizer
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder, Controls
from dreamkit.video.pairs import sources, target_levels, targets
from dreamkit.video.pipeline import PAIRS_KEY, VideoTeacher, has_fast_bfloat16, load_video_teacher, shifted

PROMPT_LENGTH = 24
CHUNK = 3
"""Latent frames that share a noise level where a clip has several: the chunk of the causal student."""
_SHARD = 100
"""Clips a file of the pool."""
PAIRS_SHOWN = 4
"""Clips on a grid of pairs."""
NETWORK: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "ffn_dim": 1024,
    "num_layers": 8,
    "text_dim": 128,
    "freq_dim": 256,
    "cross_attn_norm": True,
}
"""Settings of the embedded transformer."""


class ControlDropout(Protocol):
    """Options that say how often controls are withheld."""

    @property
    def camera_dropout(self) -> float:
        """Share of clips without cameras."""

    @property
    def track_dropout(self) -> float:
        """Share of clips without tracks."""


@dataclass(frozen=True)
class VideoTeacherOptions:
    """How to train the embedded video teacher."""

    out: Path = Path("outputs/teachers/video")
    """Folder of the training run: pool of clips, checkpoints, metrics, sample grids and the finished teacher."""
    autoencoder: Path = Path("outputs/teachers/video-autoencoder/autoencoder")
    """Folder of the autoencoder, as `dreamkit teachers train video-autoencoder` writes it."""
    start: Path | None = None
    """Teacher folder (as this command writes it) whose weights to start from; none starts from noise."""
    steps: int = 3000
    """Optimiser steps in all."""
    image_steps: int = 1000
    """Steps at the start that see single frames only."""
    cooldown: int = 500
    """Steps at the end over which the learning rate falls to zero."""
    warmup: int = 100
    """Steps at the start over which the learning rate rises."""
    image_batch: int = 64
    """Single frames a step while only they are seen."""
    batch: int = 4
    """Clips a step after that; of shorter clips more, so that the number of frames stays about the same."""
    images: int = 16
    """Single frames beside the clips of a step, at least 0."""
    short: float = 0.5
    """Share of steps whose clips are parts of --short-frames frames."""
    short_frames: int = 6
    """Frames of the short clips."""
    lr: float = 2e-3
    """Learning rate of the matrices (Muon)."""
    lr_rest: float = 2e-3
    """Learning rate of everything else (AdamW)."""
    ema: float = 0.998
    """Decay of the averaged weights that are exported."""
    text_dropout: float = 0.1
    """Share of samples whose caption is emptied."""
    camera_dropout: float = 0.5
    """Share of clips whose cameras are withheld."""
    track_dropout: float = 0.7
    """Share of clips whose tracks are withheld."""
    shape_weight: float = 0.5
    """Weight of the shape that is read from the middle of the network, beside the loss of the flow; at least 0."""
    forcing: float = 0.25
    """Share of clips whose chunks of three frames have noise levels of their own."""
    shift: float = 3.0
    """How far noise levels are moved towards more noise, in training and in sampling; 1 is not at all."""
    pairs: bool = False
    """Learn to film a video again from another camera (RealCam), beside each of its frames; best from a --start that
    knows clips."""
    loops: float = 0.5
    """Of pairs, the share of clips whose second camera comes back to where it began."""
    seed: int = 0
    """Seed of weights, clips and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    clips: int = 6000
    """Clips in the pool, rounded up to hundreds."""
    start_clips: int = 0
    """Clips after which training starts while the pool still grows; 0 waits for all, and is repeatable bit by bit."""
    meshes: Path = Path("outputs/teachers/motion-world")
    """Folder where the world's meshes are kept."""
    workers: int = 2
    """Processes that make meshes and clips."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    sample_every: int = 500
    """Steps between sample grids; 0 draws none."""
    world: MotionConfig = field(default_factory=MotionConfig)
    """What the clips show."""

    def __post_init__(self) -> None:
        require_positive(self, ("steps", "image_batch", "batch", "clips", "workers", "checkpoint_every"))
        for name in ("image_steps", "images", "start_clips", "cooldown", "warmup", "sample_every"):
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("text_dropout", "camera_dropout", "track_dropout", "forcing", "short", "loops"):
            require_number(f"--{name.replace('_', '-')}", getattr(self, name), 0, 1)
        require_number("--shape-weight", self.shape_weight, 0, 1000)
        require_number("--shift", self.shift, 0.01, 100)
        require_integer("--short-frames", self.short_frames, 1, self.world.frames)


class VideoNetworks(nn.Module):
    """Transformer, control encoder and text encoder as one module, so that they share optimisers and averages.

    In training a linear head reads the shapes of the clean clip's objects from the middle of the transformer, as the
    image teacher's does (see `image_teacher.TeacherNetworks`): most of a frame is floor, which would drown the objects
    for long. The head is not exported.

    Args:
        vocab_size: words of the tokenizer.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.transformer = CausalTransformer.from_config(NETWORK)
        self.controls = ControlEncoder(self.transformer.config.dim)
        self.text_encoder: Any = make_text_encoder(vocab_size, self.transformer.config.text_dim, PROMPT_LENGTH)
        # An untrained network predicts nothing, rather than noise of its own.
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        dim = self.transformer.config.dim
        self.shape_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * 2 * 2))
        self._middle: Tensor | None = None
        blocks = self.transformer.blocks
        blocks[len(blocks) // 2].register_forward_hook(self._keep_middle)

    def _keep_middle(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._middle = output

    def forward(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, controls: Controls | None
    ) -> tuple[Tensor, Tensor]:
        """Predictions for noisy latents [B, C, F, h, w] at timesteps [B, F] under token ids [B, L].

        Returns:
            The flow [B, C, F, h, w], and the shapes of `Clips` [B, F, 4, h, w].
        """
        text = self.text_encoder(tokens).last_hidden_state
        features = None
        frames, rows, columns = self.transformer.token_grid(noisy)
        if controls is not None:
            encoded = self.controls(controls, (rows, columns))
            features = None if encoded is None else encoded.flatten(1, 2)
        flow = self.transformer(noisy, timesteps, text, features)
        assert self._middle is not None
        cells = self.shape_head(self._middle).unflatten(1, (frames, rows, columns))
        return flow, functional.pixel_shuffle(cells.permute(0, 1, 4, 2, 3), 2)


@dataclass(frozen=True)
class Lesson:
    """What the network is asked in one pass.

    Args:
        latents: clean, [B, C, F, h, w].
        noise: of the same shape.
        t: noise level of every frame, [B, F] in [0, 1].
        tokens: ids [B, L].
        controls: cameras and tracks, zeros and invisible where withheld; `None` for single frames.
        shapes: what stands where in the clean clip, [B, F, 4, h, w].
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    tokens: Tensor
    controls: Controls | None
    shapes: Tensor


class VideoTeacherTrainer(Trainer):
    """The state of a training run and one step of it.

    Args:
        options: settings.
        pool: source of clips.
    """

    def __init__(self, options: VideoTeacherOptions, pool: ClipPool) -> None:
        self.options = options
        self.pool = pool
        self.device = resolve_device(options.device)
        self.tokenizer = make_tokenizer(motion_vocabulary(), motion_content_words(), PROMPT_LENGTH)
        torch.manual_seed(options.seed)
        self.networks = VideoNetworks(len(self.tokenizer))
        if options.start is not None:
            _load_weights(self.networks, options.start)
        self.networks.to(self.device)
        super().__init__(self.networks, options)
        self.half_precision = has_fast_bfloat16(self.device)

    def draw(self, step: int) -> list[Lesson]:
        """What a step teaches: a pure function of (seed, step) and of how many shards the pool has."""
        options = self.options
        generator = torch.Generator().manual_seed(options.seed * 1_000_000_007 + step)
        if step < options.image_steps:
            return [self._lesson(options.image_batch, 1, generator)]
        frames, count = options.world.frames, options.batch
        if float(torch.rand((), generator=generator)) < options.short:
            count = max(1, count * frames // options.short_frames)
            frames = options.short_frames
        lessons = [self._lesson(count, frames, generator)]
        if options.images:
            lessons.append(self._lesson(options.images, 1, generator))
        return lessons

    def _lesson(self, count: int, frames: int, generator: torch.Generator) -> Lesson:
        clips = self.pool.draw(count, frames, generator)
        noise = torch.randn(clips.latents.shape, generator=generator)
        t = shifted(noise_levels(count, frames, self.options.forcing, generator), self.options.shift)
        if clips.pairs:
            t = target_levels(t.repeat_interleave(2, dim=1))
        no_text = torch.rand(count, generator=generator) < self.options.text_dropout
        captions = ["" if drop else text for text, drop in zip(clips.captions, no_text.tolist(), strict=True)]
        controls = withhold(clips, self.options, generator) if frames > 1 or clips.pairs else None
        return Lesson(clips.latents, noise, t, self.tokens(captions), controls, clips.shapes)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids [B, PROMPT_LENGTH] of captions."""
        encoded = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=PROMPT_LENGTH, return_tensors="pt"
        )
        return encoded["input_ids"]

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """Mean over the step's lessons of the mean squared errors of flow and, by their weight, of shapes.

        `loss` is that of the flow, `shape` that of the shapes, and beside clips `images` the flow's of single frames.
        """
        errors, seen = [], []
        lessons = self.draw(self.step)
        frames = lessons[0].latents.shape[2] // (1 + self.options.pairs)
        for lesson in lessons:
            x0, eps, t, tokens = (
                item.to(self.device) for item in (lesson.latents, lesson.noise, lesson.t, lesson.tokens)
            )
            level = t[:, None, :, None, None]
            noisy = (1 - level) * x0 + level * eps
            controls = None if lesson.controls is None else lesson.controls.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
                flow, shapes = self.networks(noisy, 1000 * t, tokens, controls)
            wrong = flow.float() - (eps - x0)
            errors.append((targets(wrong) if self.options.pairs else wrong).square().mean())
            seen.append(functional.mse_loss(shapes.float(), lesson.shapes.to(self.device)))
        metrics: dict[str, float] = {"loss": float(errors[0].detach()), "shape": float(seen[0].detach())}
        if len(errors) > 1:
            metrics["images"] = float(errors[1].detach())
        total = torch.stack(errors).mean() + self.options.shape_weight * torch.stack(seen).mean()
        return total, {**metrics, "frames": frames, "shards": self.pool.shards}

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a pipeline folder of float16 safetensors."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        from dreamkit.video.autoencoders import load_autoencoder

        folder.mkdir(parents=True, exist_ok=True)
        with self.averaged(torch.float16):
            self.networks.transformer.save_pretrained(folder / "transformer", torch.float16)
            self.networks.controls.save_pretrained(folder / "controls", torch.float16)
            self.networks.text_encoder.save_pretrained(folder / "text_encoder")
        load_autoencoder(self.options.autoencoder, dtype=torch.float16).network.save_pretrained(folder / "vae")
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        self.tokenizer.save_pretrained(folder / "tokenizer")
        FlowMatchEulerDiscreteScheduler(shift=self.options.shift).save_pretrained(folder / "scheduler")
        index: dict[str, Any] = {
            "_class_name": "DreamKitVideoPipeline",
            "transformer": ["diffusers", "WanTransformer3DModel"],
            "controls": ["dreamkit.video.controls", "ControlEncoder"],
            "vae": ["diffusers", "AutoencoderTiny"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        }
        if self.options.pairs:
            index[PAIRS_KEY] = True
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return folder

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """Clips of `GRID_PROMPTS`, or single frames while only these have been taught; or clips filmed again."""
        frames = self.options.world.frames if self.step > self.options.image_steps else 1
        if self.options.pairs:
            teacher, clips = load_video_teacher(folder), self.pool.draw(PAIRS_SHOWN, frames, torch.Generator())
            draw_pairs(teacher, clips, refilm(teacher, clips).cpu(), picture)
        else:
            draw_grid(folder, picture, frames)


def noise_levels(count: int, frames: int, forcing: float, generator: torch.Generator) -> Tensor:
    """Noise levels [count, frames], uniform in [0, 1]: one for a clip, or for a share of the clips one for each chunk.

    The clips' are stratified: every batch sees every noise level.

    Args:
        count: clips.
        frames: of a clip.
        forcing: share of the clips whose chunks have noise levels of their own.
        generator: source of every choice.
    """
    whole = (torch.rand(count, generator=generator) + torch.randperm(count, generator=generator)) / count
    chunks = -(-frames // CHUNK)
    own = torch.rand(count, chunks, generator=generator).repeat_interleave(CHUNK, dim=1)[:, :frames]
    is_forced = torch.rand(count, 1, generator=generator) < forcing
    return torch.where(is_forced, own, whole[:, None])


def withhold(clips: LatentClips, options: ControlDropout, generator: torch.Generator) -> Controls:
    """Cameras and tracks of clips, those of some taken away: a pose of zeros, points that are not visible.

    The cameras of pairs stay: without one a target would be a source.
    """
    count = len(clips.captions)
    with_camera = (torch.rand(count, 1, 1, generator=generator) >= options.camera_dropout) | clips.pairs
    with_tracks = torch.rand(count, 1, 1, generator=generator) >= options.track_dropout
    return Controls(clips.cameras * with_camera, clips.tracks, clips.visible & with_tracks)


def train_video_teacher(
    options: VideoTeacherOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> Path:
    """Train (or go on training) the embedded video teacher.

    Args:
        options: settings; a run folder that holds checkpoints is continued.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The finished teacher's folder, in diffusers layout.

    Raises:
        CheckpointError: no autoencoder, or a checkpoint or a teacher to start from that doesn't fit.
        RunError: the pool of clips can't be filled or a file can't be written.
    """
    tell("making the meshes of the moving toy world (once)")
    meshes = build_motion_cache(options.world, options.meshes, options.workers)
    shard = min(_SHARD, options.clips)
    loops = options.loops if options.pairs else None
    recipe = PoolRecipe(options.world, meshes, options.autoencoder, options.clips, shard, options.seed, loops)
    told = [-1]

    def show(done: int, total: int) -> None:
        if done != told[0]:
            told[0] = done
            tell(f"rendering and encoding clips: {done} of {total}")

    wait_for = options.start_clips or None
    with growing_pool(recipe, options.out / "pool", options.workers, wait_for, show) as pool:
        return run_training(VideoTeacherTrainer(options, pool), "teacher", report, tell)


def _load_weights(networks: VideoNetworks, folder: Path) -> None:
    """Copy the weights of an exported teacher into fresh networks.

    Raises:
        CheckpointError: the folder holds no teacher of this shape.
    """
    from dreamkit.video.weights import load_weights

    load_weights(networks.transformer, folder / "transformer")
    load_weights(networks.controls, folder / "controls")
    load_text_encoder_weights(networks.text_encoder, folder / "text_encoder")


GRID_PROMPTS: tuple[str, ...] = (
    "a red ball rolling to the right",
    "a green car enters from the left",
    "a blue cube spinning",
    "a yellow duck slides to the left, the camera moves closer",
    "a purple mushroom bouncing",
    "a white snowman, the camera orbits to the right",
)
"""What sample grids show: motions, moves of the camera, held-out compositions."""


def draw_grid(folder: Path, picture: Path, frames: int) -> None:
    """Draw `GRID_PROMPTS` with the teacher in a folder into a PNG: a row a prompt (16 steps, guidance 4)."""
    from dreamkit.scenes.pictures import contact_sheet

    teacher = load_video_teacher(folder)
    clips = teacher.decode(teacher.sample(GRID_PROMPTS, frames, 16, 4.0, torch.Generator().manual_seed(0)))
    shown = clips[:, :: max(1, frames // 7)]
    labels = [prompt if index == 0 else "" for prompt in GRID_PROMPTS for index in range(shown.shape[1])]
    contact_sheet(shown.flatten(0, 1), picture, columns=max(shown.shape[1], 3 if frames == 1 else 1), labels=labels)


def refilm(teacher: VideoTeacher, clips: LatentClips) -> Tensor:
    """What a teacher makes of the sources of pairs under the targets' cameras: latents (16 steps, guidance 1)."""
    source, factor = sources(clips.latents), teacher.autoencoder.spatial_factor
    size = (factor * source.shape[3], factor * source.shape[4])
    controls = Controls(targets(clips.cameras, 1))
    generator = torch.Generator().manual_seed(0)
    return teacher.sample(clips.captions, source.shape[2], 16, 1.0, generator, controls, size, source=source)


def draw_pairs(teacher: VideoTeacher, clips: LatentClips, made: Tensor, picture: Path) -> None:
    """Draw pairs into a PNG, three rows a clip: the source, what was made of it, and the truth."""
    from dreamkit.scenes.pictures import contact_sheet

    rows = torch.stack(
        [teacher.decode(item).cpu() for item in (sources(clips.latents), made, targets(clips.latents))], dim=1
    )
    shown = rows[:, :, :: max(1, rows.shape[2] // 7)]  # [B, 3, F, 3, H, W]
    names = [name for caption in clips.captions for name in (caption, "made", "truth")]
    labels = [name if index == 0 else "" for name in names for index in range(shown.shape[2])]
    contact_sheet(shown.flatten(0, 2), picture, columns=shown.shape[2], labels=labels)
