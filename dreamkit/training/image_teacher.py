"""Trains the embedded text-to-image teacher on the toy world: `dreamkit teachers train image`.

v-prediction (Salimans and Ho, arXiv 2202.00512) under a shifted cosine schedule, text dropped from one in ten (for
classifier-free guidance) and the camera from half (so that the teacher also works from text alone). The loop, its
optimisers and checkpoints are those of `teacher_loop`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.diffusion.hourglass import HourglassTransformer
from dreamkit.diffusion.loading import resolve_device
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import CheckpointError
from dreamkit.toyworld.captions import content_words, vocabulary
from dreamkit.toyworld.dataset import Batch, GeometryConfig, ToyWorld, build_cache
from dreamkit.training import word_text
from dreamkit.training.teacher_loop import Report, Tell, Trainer, require_positive, run_training

PROMPT_LENGTH = 24


def shifted_cosine_betas(shift: float = 3.0, steps: int = 1000) -> list[float]:
    """Betas of a cosine schedule moved towards more noise: sigma / alpha = shift * tan(pi t / 2).

    Pictures of large even areas show their contents through much noise; under the plain cosine schedule most noise
    levels are then too easy, and few decide the shape (Hoogeboom et al., "simple diffusion", arXiv 2301.11093).

    Args:
        shift: factor on sigma / alpha; 1 is the cosine schedule.
        steps: number of betas, each at most 0.999.
    """

    def share(t: float) -> float:
        ratio = shift * math.tan(0.5 * math.pi * min(t, 0.9999))
        return 1.0 / (1.0 + ratio * ratio)

    return [min(1 - share((k + 1) / steps) / share(k / steps), 0.999) for k in range(steps)]


SCHEDULER = {
    "num_train_timesteps": 1000,
    "trained_betas": shifted_cosine_betas(),
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}
SHAPE_BLOCK = 2
"""The inner block whose tokens the shape is read from in training."""


@dataclass(frozen=True)
class ImageTeacherOptions:
    """How to train the embedded image teacher."""

    out: Path = Path("outputs/teachers/image")
    """Folder of the training run: checkpoints, metrics, sample grids and the finished teacher."""
    start: Path | None = None
    """Teacher folder (as this command writes it) whose weights to start from; none starts from noise."""
    steps: int = 2400
    """Optimiser steps in all."""
    cooldown: int = 600
    """Steps at the end over which the learning rate falls to zero."""
    warmup: int = 100
    """Steps at the start over which the learning rate rises."""
    batch: int = 48
    """Pictures a step."""
    lr: float = 2e-3
    """Learning rate of the matrices (Muon)."""
    lr_rest: float = 2e-3
    """Learning rate of everything else (AdamW)."""
    ema: float = 0.998
    """Decay of the averaged weights that are exported."""
    text_dropout: float = 0.1
    """Share of samples whose caption is emptied."""
    camera_dropout: float = 0.5
    """Share of samples whose camera is withheld."""
    shape_weight: float = 0.5
    """Weight of the shape that is read from the middle of the network, beside the loss of v."""
    seed: int = 0
    """Seed of weights, data and noise."""
    device: str = "auto"
    """auto, cpu or cuda. On cuda the network runs in bfloat16."""
    workers: int = 2
    """Processes that trace geometry."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    sample_every: int = 400
    """Steps between sample grids; 0 draws none."""
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    """What the pictures show."""

    def __post_init__(self) -> None:
        require_positive(self, ("steps", "batch", "checkpoint_every"))


def make_tokenizer() -> Any:
    """A word-level tokenizer of the toy world's vocabulary, in transformers' format."""
    return word_text.make_tokenizer(vocabulary(), content_words(), PROMPT_LENGTH)


class TeacherNetworks(nn.Module):
    """Denoiser and text encoder as one module, so that they share optimisers and averages.

    In training a linear head reads the shape of the clean picture's object from the middle of the denoiser: a
    direct lesson in what a caption and a camera look like, which the colours of the pictures would drown for long.
    (Aligning a denoiser's features with what is in the clean picture: Yu et al., "Representation Alignment for
    Generation", arXiv 2410.06940.) The head is not exported.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.denoiser = HourglassTransformer()
        self.text_encoder: Any = word_text.make_text_encoder(
            vocab_size, self.denoiser.config.cross_attention_dim, PROMPT_LENGTH
        )
        width = self.denoiser.config.inner_dim
        self.shape_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * 4 * 4))
        self._middle: Tensor | None = None
        self.denoiser.mid_blocks[SHAPE_BLOCK].register_forward_hook(self._keep_middle)

    def _keep_middle(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._middle = output

    def forward(self, noisy: Tensor, timestep: Tensor, tokens: Tensor, camera: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions for noisy pictures under token ids [B, L] and poses [B, 12] (zeros: none).

        Returns:
            v [B, 3, H, W], and the shapes that `ToyWorld.shapes` gives [B, 4, H/2, W/2].
        """
        context = self.text_encoder(tokens).last_hidden_state
        velocity = self.denoiser(noisy, timestep, context, camera, return_dict=False)[0]
        assert self._middle is not None
        cells = self.shape_head(self._middle).transpose(1, 2)
        grid = cells.unflatten(2, (noisy.shape[2] // 8, noisy.shape[3] // 8))
        return velocity, functional.pixel_shuffle(grid, 4)


class ImageTeacherTrainer(Trainer):
    """The state of a training run and one step of it.

    Args:
        options: settings.
        world: source of samples.
    """

    def __init__(self, options: ImageTeacherOptions, world: ToyWorld) -> None:
        self.options = options
        self.world = world
        self.device = resolve_device(options.device)
        self.tokenizer = make_tokenizer()
        torch.manual_seed(options.seed)
        self.networks = TeacherNetworks(len(self.tokenizer))
        if options.start is not None:
            _load_weights(self.networks, options.start)
        self.networks.to(self.device)
        super().__init__(self.networks, options)
        self.half_precision = self.device.type == "cuda"
        self.schedule = NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler", **SCHEDULER})

    def draw(self, step: int) -> tuple[Batch, Tensor, Tensor, Tensor, torch.Generator]:
        """Sample, token ids, poses and timestep indices of a step: a pure function of (seed, step)."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_000_007 + step)
        count = self.options.batch
        batch = self.world.sample(count, generator)
        no_text = torch.rand(count, generator=generator) < self.options.text_dropout
        captions = ["" if drop else text for text, drop in zip(batch.captions, no_text.tolist(), strict=True)]
        encoded = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=PROMPT_LENGTH, return_tensors="pt"
        )
        with_camera = torch.rand(count, 1, generator=generator) >= self.options.camera_dropout
        # Stratified over the batch: every step sees every noise level.
        index = (torch.rand(count, generator=generator) + torch.randperm(count, generator=generator)) / count
        return batch, encoded["input_ids"], batch.poses * with_camera, (index * 1000).floor().clamp_max(999), generator

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """`loss` (mean squared error of v) and, with its weight, `shape` (of the shapes)."""
        batch, tokens, poses, index, generator = self.draw(self.step)
        x0 = (2 * batch.images - 1).to(self.device)
        eps = torch.randn(x0.shape, generator=generator).to(self.device)
        tokens, poses, index = (item.to(self.device) for item in (tokens, poses, index))
        t = self.schedule.from_timestep(index)
        noisy = self.schedule.add_noise(x0, eps, t)
        target = self.schedule.velocity(x0, eps, t)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            prediction, shapes = self.networks(noisy, index, tokens, poses)
        loss = functional.mse_loss(prediction.float(), target)
        shape_loss = functional.mse_loss(shapes.float(), self.world.shapes(batch.rows).to(self.device))
        total = loss + self.options.shape_weight * shape_loss
        return total, {"loss": float(loss.detach()), "shape": float(shape_loss.detach())}

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a diffusers folder of float16 safetensors."""
        from diffusers import DDIMScheduler

        with self.averaged(torch.float16):
            self.networks.denoiser.save_pretrained(folder / "denoiser")
            self.networks.text_encoder.save_pretrained(folder / "text_encoder")
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        self.tokenizer.save_pretrained(folder / "tokenizer")
        DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "DreamKitPixelPipeline",
            "denoiser": ["dreamkit.diffusion.hourglass", "HourglassTransformer"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        return folder

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """Pictures of `GRID_PROMPTS`."""
        draw_grid(folder, picture)


def train_image_teacher(
    options: ImageTeacherOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> Path:
    """Train (or go on training) the embedded image teacher.

    Args:
        options: settings; a run folder that holds checkpoints is continued.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The finished teacher's folder, in diffusers layout.
    """
    tell("tracing the geometry of the toy world (once)")
    cache = build_cache(options.geometry, options.out / "geometry", options.workers)
    return run_training(ImageTeacherTrainer(options, ToyWorld(cache)), "teacher", report, tell)


def _load_weights(networks: TeacherNetworks, folder: Path) -> None:
    """Copy the weights of an exported teacher into fresh networks.

    Raises:
        CheckpointError: the folder holds no teacher of this shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        networks.denoiser.load_state_dict(load_file(folder / "denoiser" / "diffusion_pytorch_model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The denoiser of {folder} can't be started from: {error}.", "Give a folder this command wrote."
        ) from error
    word_text.load_text_encoder_weights(networks.text_encoder, folder / "text_encoder")


GRID_PROMPTS: tuple[str, ...] = (
    "a red mug", "a yellow duck", "a blue car", "a green chair",
    "a pink house, front view", "an orange fish, side view", "a gray robot", "a white snowman",
    "a striped red ball", "a spotted blue teapot", "a shiny purple lamp", "a small cyan rocket",
    "a red cube on a blue table", "a black cat, back view", "a green penguin next to a brown tree", "a yellow plane",
)  # fmt: skip
"""What sample grids show: plain and held-out compositions, views, materials, pairs."""


def draw_grid(folder: Path, picture: Path) -> None:
    """Draw `GRID_PROMPTS` with the teacher in a folder into a labelled PNG (40 DDIM steps, guidance 4)."""
    from dreamkit.diffusion.loading import load_teacher
    from dreamkit.scenes.pictures import contact_sheet

    teacher = load_teacher(str(folder))
    images = teacher.sample(GRID_PROMPTS, 40, 4.0, torch.Generator().manual_seed(0))
    contact_sheet(images.cpu(), picture, columns=4, labels=GRID_PROMPTS)
