"""Trains the embedded text-to-image teacher on the toy world: `dreamkit teachers train image`.

v-prediction (Salimans and Ho, arXiv 2202.00512) under a shifted cosine schedule, text dropped from one in ten (for
classifier-free guidance) and the camera from half (so that the teacher also works from text alone). The matrices
are trained by Muon, the rest by AdamW; the learning rate is constant after a warm-up and falls linearly to zero
over the last steps, so that a stopped run can be continued or finished at any time. Every step's data and noise
come from a generator seeded by (seed, step): resuming equals not having stopped.
"""

import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.diffusion.hourglass import HourglassTransformer
from dreamkit.diffusion.loading import resolve_device
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.files import append_jsonl, atomic_path, read_jsonl
from dreamkit.toyworld.captions import content_words, vocabulary
from dreamkit.toyworld.dataset import Batch, GeometryConfig, ToyWorld, build_cache
from dreamkit.toyworld.muon import Muon
from dreamkit.training.checkpoints import list_checkpoints, load_latest, save_checkpoint

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
        for name in ("steps", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"{option} is {getattr(self, name)}.", f"Give --{option} a number of 1 or more.")


def make_tokenizer() -> Any:
    """A word-level tokenizer of the toy world's vocabulary, in transformers' format."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *vocabulary()]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()])
    core.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=PROMPT_LENGTH,
        dreamkit_content_words=content_words(),
    )


def make_text_encoder(vocab_size: int, width: int) -> Any:
    """A two-layer CLIP text transformer, trained together with the denoiser."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=3 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=PROMPT_LENGTH,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return CLIPTextModel(config)


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
        self.text_encoder: Any = make_text_encoder(vocab_size, self.denoiser.config.cross_attention_dim)
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


def make_optimizers(networks: nn.Module, options: ImageTeacherOptions) -> list[torch.optim.Optimizer]:
    """Muon for the matrices that tokens pass through, AdamW for embeddings, modulation, convolutions and vectors."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in networks.named_parameters():
        inside = re.search(r"blocks\.|encoder\.layers\.|patch_in|patch_out|merge|split", name) is not None
        chosen = parameter.ndim == 2 and inside and "modulation" not in name
        (matrices if chosen else rest).append(parameter)
    return [
        Muon(matrices, lr=options.lr),
        torch.optim.AdamW(rest, lr=options.lr_rest, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(step: int, options: ImageTeacherOptions) -> float:
    """Warm-up, constant, linear fall to zero: the factor on both learning rates at a step."""
    rise = min(1.0, (step + 1) / max(1, options.warmup))
    fall = min(1.0, (options.steps - step) / max(1, options.cooldown))
    return rise * max(0.0, fall)


class ImageTeacherTrainer:
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
        self.average = {k: v.detach().clone() for k, v in self.networks.named_parameters()}
        self.optimizers = make_optimizers(self.networks, options)
        self.schedule = NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler", **SCHEDULER})
        self.step = 0

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

    def train_step(self) -> dict[str, float]:
        """One step of training.

        Returns:
            `loss` (mean squared error of v) and `shape` (of the shapes).
        """
        batch, tokens, poses, index, generator = self.draw(self.step)
        x0 = (2 * batch.images - 1).to(self.device)
        eps = torch.randn(x0.shape, generator=generator).to(self.device)
        tokens, poses, index = (item.to(self.device) for item in (tokens, poses, index))
        t = self.schedule.from_timestep(index)
        noisy = self.schedule.add_noise(x0, eps, t)
        target = self.schedule.velocity(x0, eps, t)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            prediction, shapes = self.networks(noisy, index, tokens, poses)
        loss = functional.mse_loss(prediction.float(), target)
        shape_loss = functional.mse_loss(shapes.float(), self.world.shapes(batch.rows).to(self.device))
        (loss + self.options.shape_weight * shape_loss).backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        factor = learning_rate_factor(self.step, self.options)
        for optimizer, lr in zip(self.optimizers, (self.options.lr, self.options.lr_rest), strict=True):
            optimizer.param_groups[0]["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.networks.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return {"loss": float(loss.detach()), "shape": float(shape_loss.detach())}

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat."""
        tensors = {f"weights.{name}": p.detach() for name, p in self.networks.named_parameters()}
        tensors |= {f"average.{name}": p for name, p in self.average.items()}
        for which, optimizer in enumerate(self.optimizers):
            for index, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{which}.{index}.{key}": value for key, value in slots.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from a saved state.

        Raises:
            CheckpointError: the state is of another network.
        """
        slots: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        try:
            with torch.no_grad():
                for name, parameter in self.networks.named_parameters():
                    parameter.copy_(tensors[f"weights.{name}"])
                    self.average[name].copy_(tensors[f"average.{name}"])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"The checkpoint is of another network: {error}.", "Choose a new --out.") from error
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, which, index, key = name.split(".")
                slots[int(which)].setdefault(int(index), {})[key] = value
        for optimizer, state in zip(self.optimizers, slots, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step = step

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a diffusers folder of float16 safetensors."""
        from diffusers import DDIMScheduler

        kept = {name: p.detach().clone() for name, p in self.networks.named_parameters()}
        with torch.no_grad():
            for name, parameter in self.networks.named_parameters():
                parameter.copy_(self.average[name])
        self.networks.to(torch.float16)
        self.networks.denoiser.save_pretrained(folder / "denoiser")
        self.networks.text_encoder.save_pretrained(folder / "text_encoder")
        for file in folder.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors writes files that only their owner can read
        self.networks.to(torch.float32)
        with torch.no_grad():
            for name, parameter in self.networks.named_parameters():
                parameter.copy_(kept[name])
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


def train_image_teacher(
    options: ImageTeacherOptions,
    report: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    tell: Callable[[str], None] = lambda text: None,
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
    trainer = ImageTeacherTrainer(options, ToyWorld(cache))
    checkpoints = options.out / "checkpoints"
    if checkpoints.exists() and list_checkpoints(checkpoints):
        checkpoint, warnings = load_latest(checkpoints)
        trainer.load_state(checkpoint.tensors, checkpoint.step)
        for text in (*warnings, f"continuing from step {checkpoint.step}"):
            tell(text)
    log: list[dict[str, float]] = []
    started = time.perf_counter()
    while trainer.step < options.steps:
        losses = trainer.train_step()
        metrics = {"step": trainer.step, **losses, "seconds": round(time.perf_counter() - started, 2)}
        log.append(metrics)
        report(trainer.step, metrics)
        last = trainer.step == options.steps
        if last or trainer.step % options.checkpoint_every == 0:
            save_checkpoint(checkpoints, trainer.step, trainer.state(), _meta(options), keep=2)
            _flush(log, options.out / "metrics.jsonl")
        if options.sample_every and (last or trainer.step % options.sample_every == 0):
            trainer.export(options.out / "teacher")
            draw_grid(options.out / "teacher", options.out / f"samples-{trainer.step:06d}.png")
    draw_loss_curve(options.out / "metrics.jsonl", options.out / "loss.png")
    return trainer.export(options.out / "teacher")


def draw_loss_curve(metrics: Path, picture: Path) -> None:
    """Plot the loss of a metrics file, raw and averaged over 50 steps, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {int(row["step"]): float(row["loss"]) for row in read_jsonl(metrics)}
    steps = sorted(rows)
    losses = [rows[step] for step in steps]
    smooth = [sum(losses[max(0, i - 49) : i + 1]) / len(losses[max(0, i - 49) : i + 1]) for i in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(6, 3.5), dpi=120)
    axes.plot(steps, losses, color="#b8c4d6", linewidth=0.8, label="a step")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=1.6, label="mean of 50")
    axes.set(xlabel="step", ylabel="mean squared error of v", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, format="png")
    pyplot.close(figure)


def _load_weights(networks: TeacherNetworks, folder: Path) -> None:
    """Copy the weights of an exported teacher into fresh networks.

    Raises:
        CheckpointError: the folder holds no teacher of this shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = {
        "denoiser": ("denoiser/diffusion_pytorch_model.safetensors", networks.denoiser),
        "text encoder": ("text_encoder/model.safetensors", networks.text_encoder),
    }
    for part, (file, network) in parts.items():
        try:
            network.load_state_dict(load_file(folder / file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"The {part} of {folder} can't be started from: {error}.", "Give a folder this command wrote."
            ) from error


def _meta(options: ImageTeacherOptions) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(options), default=str))


def _flush(log: list[dict[str, float]], path: Path) -> None:
    for record in log:
        append_jsonl(path, record)
    log.clear()


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
