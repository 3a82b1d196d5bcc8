"""Autoencoders of video: pixels to latents of about unit variance and back, whole clips or chunk by chunk.

Two kinds of folder are read: diffusers' `AutoencoderTiny`, which knows single frames (the embedded model's), and
`AutoencoderKLWan` (Wan Team, arXiv 2503.20314), which is causal in time: its first latent frame is one frame, every
other four. Both decode a stream: what the convolutions remember of the frames before is kept from chunk to chunk.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit.checks import require
from dreamkit.errors import TeacherError
from dreamkit.video.weights import load_weights, read_config

TINY = "AutoencoderTiny"
WAN = "AutoencoderKLWan"


class StreamDecoder(ABC):
    """Decodes latents of one endless clip, chunk by chunk."""

    @abstractmethod
    def decode(
        self,
        latents: Tensor,  # [B, C, F', h, w], the next ones; the batch stays the same
    ) -> Tensor:
        """The frames [B, F, 3, H, W] in [0, 1] that these latents add: together, those of decoding them at once."""

    @abstractmethod
    def fork(self) -> StreamDecoder:
        """A decoder that has seen the same and goes its own way."""


class VideoAutoencoder(ABC):
    """Frames to normalised latents, (z - mean) / std, and back; no gradients.

    Args:
        network: of diffusers.

    Attributes:
        channels: of a latent.
        spatial_factor: pixels along a side of a latent.
        temporal_factor: frames a latent frame stands for, all but the first.
    """

    channels: int
    spatial_factor: int
    temporal_factor: int

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.device

    @abstractmethod
    def encode(
        self,
        frames: Tensor,  # [B, F, 3, H, W] in [0, 1]
    ) -> Tensor:
        """Latents [B, C, F', H / spatial_factor, W / spatial_factor], float32.

        Raises:
            ConfigError: another shape, or sides or a number of frames that don't divide.
        """

    @abstractmethod
    def stream(self) -> StreamDecoder:
        """A decoder for one clip that comes in chunks; any number of them may be at work."""

    def decode(
        self,
        latents: Tensor,  # [B, C, F', h, w]
    ) -> Tensor:
        """Frames [B, 1 + (F' - 1) temporal_factor, 3, H, W] in [0, 1], float32.

        Raises:
            ConfigError: another shape.
        """
        return self.stream().decode(latents)

    def latent_frames(self, frames: int) -> int:
        """How many latent frames a clip of so many frames has.

        Raises:
            ConfigError: no clip has so many.
        """
        whole = frames >= 1 and (frames - 1) % self.temporal_factor == 0
        wanted = "1 or more" if self.temporal_factor == 1 else f"1, or 1 more than a multiple of {self.temporal_factor}"
        require("The number of frames", whole, frames, wanted)
        return 1 + (frames - 1) // self.temporal_factor

    def _check_frames(self, frames: Tensor) -> None:
        shape = list(frames.shape)
        require("The clip's shape", frames.ndim == 5 and shape[2] == 3, shape, "[batch, frames, 3, height, width]")
        factor = self.spatial_factor
        fits = all(side > 0 and side % factor == 0 for side in shape[3:])
        require("The frames' [height, width]", fits, shape[3:], f"multiples of {factor}")
        self.latent_frames(shape[1])

    def _check_latents(self, latents: Tensor) -> None:
        shape = list(latents.shape)
        fits = latents.ndim == 5 and shape[1] == self.channels and shape[2] > 0
        require("The latents' shape", fits, shape, f"[batch, {self.channels}, frames, height, width]")


class FrameAutoencoder(VideoAutoencoder):
    """`AutoencoderTiny`, frame by frame; shift_factor and 1 / scaling_factor are the latents' mean and deviation."""

    def __init__(self, network: Any) -> None:
        super().__init__(network.to(memory_format=torch.channels_last))  # a quarter faster on a CPU
        self.channels = int(network.config.latent_channels)
        self.spatial_factor = 2 ** (len(network.config.encoder_block_out_channels) - 1)
        self.temporal_factor = 1
        self.shift = float(network.config.shift_factor)
        self.scale = float(network.config.scaling_factor)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:  # [B, F, 3, H, W]
        """See `VideoAutoencoder.encode`."""
        self._check_frames(frames)
        pixels = (2 * frames.flatten(0, 1) - 1).to(self.network.device, self.network.dtype)
        latents = self.network.encode(pixels).latents.float()
        return ((latents - self.shift) * self.scale).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def stream(self) -> StreamDecoder:
        """A frame knows no other: the decoder keeps nothing."""
        return _FrameStream(self)


class _FrameStream(StreamDecoder):
    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        self.autoencoder = autoencoder

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # [B, C, F, h, w]
        self.autoencoder._check_latents(latents)
        network = self.autoencoder.network
        raw = latents.transpose(1, 2) / self.autoencoder.scale + self.autoencoder.shift
        pixels = network.decode(raw.flatten(0, 1).to(network.device, network.dtype)).sample.float()
        return (0.5 * (pixels + 1)).clamp(0, 1).unflatten(0, (latents.shape[0], -1))

    def fork(self) -> StreamDecoder:
        return self  # it remembers nothing


class WanAutoencoder(VideoAutoencoder):
    """`AutoencoderKLWan`; the latent is the posterior's mean, normalised channel by channel."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        config = network.config
        self.channels = int(config.z_dim)
        self.spatial_factor = int(config.scale_factor_spatial)
        self.temporal_factor = int(config.scale_factor_temporal)
        mean, std = config.latents_mean, config.latents_std
        if len(mean) != self.channels or len(std) != self.channels:
            raise TeacherError(
                f"The autoencoder has {self.channels} channels, but {len(mean)} means and {len(std)} deviations.",
                "Its config.json is damaged: download the folder again.",
            )
        self.mean, self.std = (torch.tensor(item, device=network.device).view(1, -1, 1, 1, 1) for item in (mean, std))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:  # [B, F, 3, H, W]
        """See `VideoAutoencoder.encode`."""
        self._check_frames(frames)
        pixels = (2 * frames.transpose(1, 2) - 1).to(self.network.device, self.network.dtype)
        return (self.network.encode(pixels).latent_dist.mode().float() - self.mean) / self.std

    def stream(self) -> StreamDecoder:
        """The causal convolutions' last inputs are kept from chunk to chunk."""
        return _WanStream(self)


class _WanStream(StreamDecoder):
    def __init__(self, autoencoder: WanAutoencoder) -> None:
        self.autoencoder = autoencoder
        # One place for each causal convolution, as `AutoencoderKLWan.clear_cache` has it.
        self._memory: list[Any] = [None] * autoencoder.network._cached_conv_counts["decoder"]
        self._is_first = True

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:  # [B, C, F', h, w]
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        self.autoencoder._check_latents(latents)
        network = self.autoencoder.network
        raw = latents.to(network.device).float() * self.autoencoder.std + self.autoencoder.mean
        mixed = network.post_quant_conv(raw.to(network.dtype))
        parts = []
        for frame in mixed.split(1, dim=2):
            parts.append(network.decoder(frame, feat_cache=self._memory, feat_idx=[0], first_chunk=self._is_first))
            self._is_first = False
        pixels = unpatchify(torch.cat(parts, dim=2), network.config.patch_size or 1).float()
        return (0.5 * (pixels + 1)).clamp(0, 1).transpose(1, 2)

    def fork(self) -> StreamDecoder:
        twin = copy.copy(self)
        twin._memory = list(self._memory)  # what it holds is replaced, never changed
        return twin


def load_autoencoder(
    folder: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> VideoAutoencoder:
    """Load a vae/ folder.

    Args:
        folder: config.json and safetensors of an `AutoencoderTiny` or `AutoencoderKLWan`.
        device: where it computes.
        dtype: of its weights and arithmetic.

    Raises:
        CheckpointError: the folder or its weights can't be read or don't fit.
        TeacherError: an autoencoder of another class.
    """
    config = read_config(folder)
    name = config.get("_class_name")
    if name not in (TINY, WAN):
        raise TeacherError(f"{folder} is a {name}, no autoencoder of video.", f"Supported are: {TINY}, {WAN}.")
    import diffusers

    # diffusers writes this one for other pipelines and then wonders at it.
    settings = {key: value for key, value in config.items() if key != "block_out_channels"}
    try:
        network: Any = getattr(diffusers, name).from_config(settings)
    # A setting of the wrong kind arrives as anything, from TypeError to a failed layer.
    except Exception as error:
        raise TeacherError(
            f"The configuration in {folder} makes no {name}: {error}.", "Download the folder again."
        ) from error
    load_weights(network, folder)
    torch.nn.Module.to(network, device=device, dtype=dtype)  # diffusers' own warns about layers this one hasn't
    return FrameAutoencoder(network) if name == TINY else WanAutoencoder(network)
