"""Trains the embedded video model's autoencoder on the moving toy world: `dreamkit teachers train video-autoencoder`.

diffusers' `AutoencoderTiny`, frame by frame: 64x64 pixels to latents of 8 channels at 16x16. The loss of a picture x
and its reconstruction y is

    mean sqrt((x - y)^2 + 0.02^2) + ssim_weight (1 - SSIM(x, y)) + moment_weight mean_c (m_c^2 + (s_c - 1)^2)

where m_c and s_c are a channel's mean and standard deviation over the batch. The decoder sees latents with a little
noise added, which keeps near latents near in pixels, so that what a denoiser gets slightly wrong stays slightly wrong.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from dreamkit_kernels.ssim import ssim
from torch import Tensor, nn

from dreamkit.checks import require_number
from dreamkit.files import write_json
from dreamkit.toyworld.motion import MotionConfig, MotionWorld, build_motion_cache
from dreamkit.training.teacher_loop import Report, Tell, Trainer, require_positive, run_training
from dreamkit.video.pipeline import has_fast_bfloat16

LATENT_CHANNELS = 8
WIDTH = 32
ENCODER_BLOCKS = (0, 1, 3)
DECODER_BLOCKS = (3, 1, 0)
"""Residual blocks at full, half and quarter resolution (the decoder the other way round): few where pixels are many."""
_ROUNDING = 0.02
"""Errors below this count by their square, those above by their size."""
_MEASURED = 512
"""Frames over which the latents' mean and standard deviation are measured at the end."""


@dataclass(frozen=True)
class VideoAutoencoderOptions:
    """How to train the embedded video model's autoencoder."""

    out: Path = Path("outputs/teachers/video-autoencoder")
    """Folder of the training run: checkpoints, metrics, sample grids and the finished autoencoder."""
    steps: int = 3000
    """Optimiser steps in all."""
    cooldown: int = 1000
    """Steps at the end over which the learning rate falls to zero."""
    warmup: int = 50
    """Steps at the start over which the learning rate rises."""
    batch: int = 24
    """Frames a step."""
    clips: int = 600
    """Clips rendered at the start; steps draw frames from them."""
    lr: float = 4e-3
    """Learning rate of the convolutions (Muon)."""
    lr_rest: float = 4e-3
    """Learning rate of the biases (AdamW)."""
    ema: float = 0.995
    """Decay of the averaged weights that are exported."""
    ssim_weight: float = 0.1
    """Weight of structural similarity."""
    moment_weight: float = 0.01
    """Weight of latents that have mean 0 and standard deviation 1."""
    noise: float = 0.07
    """Standard deviation of the noise on the latents in training, 0 to 1."""
    seed: int = 0
    """Seed of weights, frames and noise."""
    meshes: Path = Path("outputs/teachers/motion-world")
    """Folder where the world's meshes are kept."""
    workers: int = 2
    """Processes that make the world's meshes."""
    checkpoint_every: int = 250
    """Steps between checkpoints."""
    sample_every: int = 500
    """Steps between sheets of reconstructions; 0 draws none."""
    world: MotionConfig = field(default_factory=MotionConfig)
    """What the clips show."""

    def __post_init__(self) -> None:
        require_positive(self, ("steps", "batch", "clips", "checkpoint_every"))
        require_number("--noise", self.noise, 0, 1)


class VideoAutoencoderTrainer(Trainer):
    """The state of a training run and one step of it, on the CPU.

    Args:
        options: settings.
        frames: what to learn from, [N, 3, H, W] uint8.
    """

    def __init__(self, options: VideoAutoencoderOptions, frames: Tensor) -> None:
        self.options = options
        self.frames = frames
        torch.manual_seed(options.seed)
        self.network: Any = make_autoencoder().to(memory_format=torch.channels_last)
        super().__init__(self.network, options, lambda _, parameter: parameter.ndim == 4)
        self.half_precision = has_fast_bfloat16(torch.device("cpu"))

    def draw(self, step: int) -> tuple[Tensor, torch.Generator]:
        """Frames [batch, 3, H, W] of a step in [-1, 1], a pure function of (seed, step), and its generator."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_000_007 + step)
        rows = torch.randint(len(self.frames), (self.options.batch,), generator=generator)
        return self.frames[rows].float() / 127.5 - 1, generator

    def losses(self) -> tuple[Tensor, dict[str, float]]:
        """See the module's docstring; `loss` is the first term, `psnr` in decibels."""
        images, generator = self.draw(self.step)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half_precision):
            latents = self.network.encode(images).latents.float()
            noise = self.options.noise * torch.randn(latents.shape, generator=generator)
            decoded = self.network.decode(latents + noise).sample.float()
        x, y = (0.5 * (item + 1) for item in (images, decoded))
        error = x - y
        rough = (error.square() + _ROUNDING**2).sqrt().mean() - _ROUNDING
        unlike = 1 - ssim(y.contiguous(), x.contiguous()).mean()
        moments = latents.mean(dim=(0, 2, 3)).square() + (latents.std(dim=(0, 2, 3)) - 1).square()
        total = rough + self.options.ssim_weight * unlike + self.options.moment_weight * moments.mean()
        psnr = -10 * math.log10(float(error.detach().square().mean()))
        return total, {"loss": float(rough.detach()), "ssim": 1 - float(unlike.detach()), "psnr": round(psnr, 3)}

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as float16 safetensors, the latents' mean and deviation in the configuration."""
        few = torch.linspace(0, len(self.frames) - 1, min(_MEASURED, len(self.frames))).long()
        with self.averaged(torch.float16):
            self.network.save_pretrained(folder)
            nn.Module.to(self.network, dtype=torch.float32)
            with torch.no_grad():
                parts = [part.float() / 127.5 - 1 for part in self.frames[few].split(32)]
                latents = torch.cat([self.network.encode(part).latents for part in parts])
        mean, std = float(latents.mean()), float(latents.std())
        (folder / "diffusion_pytorch_model.safetensors").chmod(0o644)  # it is written readable to its owner only
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", {**config, "shift_factor": mean, "scaling_factor": 1 / std})
        return folder

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """Eight frames over their reconstructions."""
        from dreamkit.scenes.pictures import contact_sheet

        frames = self.frames[torch.linspace(0, len(self.frames) - 1, 8).long()].float() / 255
        with self.averaged():
            contact_sheet(torch.cat([frames, reconstruct(self.network, frames)]), picture, columns=8)


def make_autoencoder() -> Any:
    """An untrained `AutoencoderTiny` of the embedded model's size."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=ENCODER_BLOCKS,
        num_decoder_blocks=DECODER_BLOCKS,
    )


def render_frames(world: MotionWorld, clips: int, seed: int) -> Tensor:
    """All frames of `clips` clips, [N, 3, H, W] uint8."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[Tensor] = []
    for _ in range(clips):
        frames = world.sample(1, generator).frames[0]
        parts.append((frames * 255).round().to(torch.uint8))
    return torch.cat(parts)


@torch.no_grad()
def reconstruct(network: Any, frames: Tensor) -> Tensor:
    """Frames [N, 3, H, W] in [0, 1] through the autoencoder and back."""
    parts = [network.decode(network.encode(2 * part - 1).latents).sample for part in frames.split(32)]
    return (0.5 * (torch.cat(parts) + 1)).clamp(0, 1)


def measure_psnr(network: Any, frames: Tensor) -> float:
    """Mean over frames [N, 3, H, W] of the reconstruction's peak signal-to-noise ratio, decibels."""
    error = (reconstruct(network, frames) - frames).square().mean(dim=(1, 2, 3))
    return float((-10 * error.log10()).mean())


def train_video_autoencoder(
    options: VideoAutoencoderOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> tuple[Path, float]:
    """Train (or go on training) the embedded video model's autoencoder.

    Args:
        options: settings; a run folder that holds checkpoints is continued.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The autoencoder's folder, in diffusers layout, and its mean PSNR on fresh frames in decibels.
    """
    tell("making the meshes of the moving toy world (once)")
    world = MotionWorld(build_motion_cache(options.world, options.meshes, options.workers), options.world)
    tell(f"rendering {options.clips} clips")
    trainer = VideoAutoencoderTrainer(options, render_frames(world, options.clips, options.seed))
    folder = run_training(trainer, "autoencoder", report, tell)
    fresh = render_frames(world, 16, 2**40 + options.seed).float() / 255
    with trainer.averaged():
        return folder, measure_psnr(trainer.network, fresh)
