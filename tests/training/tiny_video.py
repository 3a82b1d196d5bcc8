"""A tiny video pipeline and a pool of clips, random and made in milliseconds."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dreamkit.training.word_text import make_text_encoder, make_tokenizer
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder
from dreamkit.video.students import INDEX_FILE, STREAM_KEY

WORDS = ("a", "red", "blue", "ball", "cube", "rolling", "to", "the", "right", "spinning", ",")
CHANNELS, SIDE = 4, 4
TRANSFORMER: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
}


def write_pipeline(folder: Path, seed: int = 0, with_controls: bool = True, shift: float = 3.0, **changes: Any) -> Path:
    """A DreamKitVideoPipeline whose every weight counts, none being zero."""
    from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CausalTransformer.from_config({**TRANSFORMER, **changes})
        controls = ControlEncoder(transformer.config.dim, track_dim=8, hidden=8)
        for parameter in (*transformer.parameters(), *controls.parameters()):
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        tokenizer = make_tokenizer(WORDS, WORDS, 10)
        encoder = make_text_encoder(len(tokenizer), 32, 10)
        autoencoder = AutoencoderTiny(
            latent_channels=CHANNELS,
            encoder_block_out_channels=(4, 4),
            decoder_block_out_channels=(4, 4),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    transformer.save_pretrained(folder / "transformer", torch.float32)
    if with_controls:
        controls.save_pretrained(folder / "controls", torch.float32)
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    autoencoder.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DreamKitVideoPipeline",
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def streams_as(folder: Path, **settings: Any) -> Path:
    """Let a pipeline say how it is streamed, as a student does."""
    index = folder / INDEX_FILE
    index.write_text(json.dumps({**json.loads(index.read_text()), STREAM_KEY: settings}))
    return folder


def write_causal(folder: Path) -> Path:
    """A teacher that says it is causal."""
    return streams_as(write_pipeline(folder, seed=3), chunk=2, window=2)


def write_pool(folder: Path, shards: int = 2, clips: int = 5, frames: int = 6, channels: int = CHANNELS) -> Path:
    """Shards as `ShardMaker` writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(shards):
        generator = torch.Generator().manual_seed(index)
        turn = 0.3 * torch.randn(clips, frames, 3, 3, generator=generator)
        place = torch.randn(clips, frames, 3, 1, generator=generator)
        poses = torch.cat([torch.linalg.matrix_exp(turn - turn.mT), place], dim=3).flatten(2)
        tensors = {
            "latents": torch.randn(clips, channels, frames, SIDE, SIDE, generator=generator).half(),
            "cameras": poses,
            "tracks": torch.rand(clips, frames, 3, 2, generator=generator),
            "visible": (torch.rand(clips, frames, 3, generator=generator) < 0.8).to(torch.uint8),
            "shapes": torch.zeros(clips, frames, 4, SIDE, SIDE, dtype=torch.int8),
        }
        captions = [("a red ball rolling to the right", "a blue cube spinning")[row % 2] for row in range(clips)]
        path = folder / f"shard-{index:05d}.safetensors"
        save_file(tensors, path, metadata={"captions": json.dumps(captions)})
    return folder
