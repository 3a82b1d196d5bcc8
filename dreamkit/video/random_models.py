"""Video students with random weights: their pictures are noise, their speed and memory are those of trained ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamkit.checks import require_choice
from dreamkit.video.autoencoders import FrameAutoencoder, VideoAutoencoder, WanAutoencoder
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder
from dreamkit.video.pipeline import TextEncoder, VideoTeacher, has_fast_bfloat16
from dreamkit.video.wan_config import WanConfig

_SHIFT = 5.0


@dataclass(frozen=True)
class RandomModel:
    """The shape of a student."""

    transformer: Mapping[str, Any]
    """Settings of `WanConfig`."""
    vae: Mapping[str, Any]
    """Settings of `AutoencoderTiny`, or of `AutoencoderKLWan` where `is_wan`."""
    is_wan: bool
    text_tokens: int
    size: tuple[int, int]
    """Height and width of its frames in pixels."""
    has_controls: bool


_EMBEDDED = {"num_attention_heads": 4, "attention_head_dim": 64, "in_channels": 8, "out_channels": 8, "text_dim": 128}
_TINY = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16}
_TWO_HALVINGS = {
    "encoder_block_out_channels": [32, 32, 32],
    "decoder_block_out_channels": [32, 32, 32],
    "num_encoder_blocks": [0, 1, 3],
    "num_decoder_blocks": [3, 1, 0],
    "latent_channels": 8,
}
_ONE_HALVING = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
    "latent_channels": 4,
}
_TINY_WAN = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [True, True]}
_ZERO_MEAN = {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "scale_factor_spatial": 4}

RANDOM_MODELS: dict[str, RandomModel] = {
    # Wan 2.1 1.3B (Wan Team, arXiv 2503.20314) with its autoencoder.
    "wan-1.3b-random": RandomModel(
        {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}, {}, True,
        512, (480, 832), False,
    ),
    "embedded-random": RandomModel(
        {**_EMBEDDED, "ffn_dim": 1024, "num_layers": 8}, _TWO_HALVINGS, False, 32, (64, 64), True
    ),
    "tiny-random": RandomModel({**_TINY, "ffn_dim": 32, "num_layers": 2}, _ONE_HALVING, False, 5, (16, 16), True),
    "tiny-wan-random": RandomModel(
        {**_TINY, "ffn_dim": 32, "num_layers": 2}, {**_TINY_WAN, **_ZERO_MEAN}, True, 5, (16, 16), False
    ),
}  # fmt: skip
"""Students by name."""


class RandomText(TextEncoder):
    """Tokens of a prompt drawn from its letters: different prompts differ, equal ones don't.

    Args:
        tokens: of a prompt.
        width: features of a token.
        device: where they go.
    """

    def __init__(self, tokens: int, width: int, device: torch.device) -> None:
        self._shape = (tokens, width)
        self._device = device

    @property
    def width(self) -> int:
        """Features of a text token."""
        return self._shape[1]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """[B, L, D] standard normal."""
        rows = []
        for prompt in prompts:
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
            rows.append(torch.randn(*self._shape, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows).to(self._device)

    def unknown_words(self, prompt: str) -> list[str]:
        """It reads every word."""
        return []

    def content_words(self) -> None:
        """Every word means something to it."""

    def dropped_text(self, prompt: str) -> str:
        """It reads every prompt to its end."""
        return ""


def random_student(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, seed: int = 0
) -> VideoTeacher:
    """A student of a real model's shape with random weights.

    Args:
        name: one of `RANDOM_MODELS`.
        device: where it computes.
        dtype: of the transformer's weights; by default bfloat16 on a GPU, else float32 (multiplied in bfloat16 where
            the processor is fast at it).
        seed: of the weights.

    Raises:
        ConfigError: an unknown name.
    """
    require_choice("The random model", name, RANDOM_MODELS)
    model = RANDOM_MODELS[name]
    target = torch.device(device)
    if dtype is None:
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    config = WanConfig.from_dict(model.transformer)
    generator = torch.Generator(target).manual_seed(seed)
    with torch.device("meta"):
        network = CausalTransformer(config).to(dtype)
    _fill(network.to_empty(device=target), generator)
    controls = None
    if model.has_controls:
        with torch.device("meta"):
            encoder = ControlEncoder(config.dim).to(dtype)
        controls = encoder.to_empty(device=target).eval()
        _fill(controls, generator)
    text = RandomText(model.text_tokens, config.text_dim, target)
    half = dtype == torch.float32 and has_fast_bfloat16(target)
    autoencoder = _autoencoder(model, target, generator)
    return VideoTeacher(name, network.eval(), autoencoder, text, controls, _SHIFT, half)


def _autoencoder(model: RandomModel, device: torch.device, generator: torch.Generator) -> VideoAutoencoder:
    if model.is_wan:
        from diffusers import AutoencoderKLWan

        network: Any = AutoencoderKLWan(**model.vae).to(device)
    else:
        from diffusers import AutoencoderTiny

        network = AutoencoderTiny(**model.vae).to(device)
    _fill(network, generator)
    return WanAutoencoder(network) if model.is_wan else FrameAutoencoder(network)


@torch.no_grad()
def _fill(network: nn.Module, generator: torch.Generator) -> None:
    """Weights of variance 1 / inputs, norms' scales one: signals keep their size through any depth."""
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif "norm" in name or "gamma" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
