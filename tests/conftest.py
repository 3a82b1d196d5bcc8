"""Shared fixtures: tiny random checkpoints in the formats that teachers come in, made once a session."""

import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

# Workers side by side, each with several OpenMP threads, wait for one another: ten times slower. Before torch loads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from dreamkit.diffusion.network_teacher import NetworkTeacher

# No test may fail because the machine was busy.
settings.register_profile("dreamkit", deadline=None)
settings.load_profile("dreamkit")

# Nothing here may reach for a network: models are made on the spot.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Without a GPU Triton's kernels run in its interpreter; it must be asked before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TOY_WORDS = ("a", "the", "on", "red", "blue", "green", "mug", "cube", "duck", "table", "front", "side", "view", ",")
CLIP_WORDS = ("a", "red", "mug", "blue", "cube", "on", "the", "table", "front", "view")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random checkpoint: sd15, sd21, sdxl, deepfloyd or toyworld. To change one, copy it first."""
    makers = {
        "sd15": make_sd15,
        "sd21": make_sd21,
        "sdxl": make_sdxl,
        "deepfloyd": make_deepfloyd,
        "toyworld": make_toyworld,
    }
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / "teacher"
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(sorted(makers).index(name))
                makers[name](folder)
            made[name] = folder
        return made[name]

    return get


@pytest.fixture(scope="session")
def tiny_teacher(checkpoint: Callable[[str], Path]) -> Callable[[str], "NetworkTeacher"]:
    """A tiny teacher of a kind, one for all tests: nothing that is done with a teacher may change it."""
    from dreamkit.diffusion.loading import load_teacher

    return cache(lambda kind: load_teacher(str(checkpoint(kind)), "cpu"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks and samples this small are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Video models multiply in float32: not every CPU knows bfloat16."""
    from dreamkit.video import pipeline

    monkeypatch.setattr(pipeline, "has_fast_bfloat16", lambda device: False)


def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """A byte-pair vocabulary that spells anything in a-z and keeps a few words whole."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    pieces = letters + [f"{letter}</w>" for letter in letters]
    merges = []
    for word in CLIP_WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            if merge not in merges:
                merges.append(merge)
                pieces.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    pieces = list(dict.fromkeys(pieces))
    # The end token has the highest id, as in CLIP: its position is where the pooled output is read.
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: index for index, piece in enumerate(pieces)}, merges


def clip_tokenizer(length: int = 77):
    """The tokenizer of that vocabulary."""
    from transformers import CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges], model_max_length=length)


def clip_config(width: int = 32, **options):
    """Configuration of a tiny CLIP text encoder with that vocabulary."""
    from transformers import CLIPTextConfig

    size = len(clip_vocabulary()[0])
    return CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
        **options,
    )


def tiny_vae(**options):
    """An autoencoder that halves the resolution."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
        **options,
    )


def tiny_unet(**options):
    """A two-level text-conditional U-Net over 8x8 latents."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (4, 8),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "norm_num_groups": 2,
            **options,
        }
    )


def save_stable_diffusion(folder: Path, scheduler) -> None:
    """A StableDiffusionPipeline of tiny parts."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(clip_config()),
        tokenizer=clip_tokenizer(),
        unet=tiny_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def make_sd15(folder: Path) -> None:
    """Stable Diffusion 1.5: eps, PNDM, and the file formats and tensor names of 2022."""
    from diffusers import PNDMScheduler
    from safetensors.torch import load_file, save_file

    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    )
    save_stable_diffusion(folder, scheduler)
    vocabulary, merges = clip_vocabulary()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    weights = folder / "text_encoder" / "model.safetensors"
    old = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, weights, metadata={"format": "pt"})
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, tensor in load_file(weights).items():
        if "attentions" in name:
            for new_part, old_part in {
                "to_q": "query",
                "to_k": "key",
                "to_v": "value",
                "to_out.0": "proj_attn",
            }.items():
                name = name.replace(new_part, old_part)
        old[name] = tensor
    save_file(old, weights, metadata={"format": "pt"})


def make_sd21(folder: Path) -> None:
    """Stable Diffusion 2.1: v-prediction."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    save_stable_diffusion(folder, scheduler)


def make_sdxl(folder: Path) -> None:
    """SDXL: two text encoders, pooled text, time ids."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = tiny_unet(
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + 24,
        cross_attention_dim=32 + 48,
    )
    StableDiffusionXLPipeline(
        vae=tiny_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(clip_config(32)),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(48, projection_dim=24)),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        force_zeros_for_empty_prompt=True,
    ).save_pretrained(folder, safe_serialization=True)


def make_deepfloyd(folder: Path) -> None:
    """DeepFloyd's first stage: pixels, T5, a learned variance in channels 3 to 5."""
    from diffusers import DDPMScheduler, IFPipeline
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    letters = [(chr(code), -4.0) for code in range(ord("!"), ord("~") + 1)]
    words = [(f"▁{word}", -2.0) for word in CLIP_WORDS]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *letters, *words]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    text = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, pad_token_id=0)
    unet = tiny_unet(
        in_channels=3,
        out_channels=6,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        norm_num_groups=32,
        encoder_hid_dim=32,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )
    IFPipeline(
        tokenizer=tokenizer,
        text_encoder=T5EncoderModel(text),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)


def make_toyworld(folder: Path) -> None:
    """The embedded teacher's format: hourglass transformer, word-level tokenizer, CLIP text encoder, v-prediction."""
    from diffusers import DDIMScheduler
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    from dreamkit.diffusion.hourglass import HourglassTransformer

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *TOY_WORDS]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=12,
    ).save_pretrained(folder / "tokenizer")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    network = HourglassTransformer(
        sample_size=16,
        stem_channels=4,
        outer_dim=32,
        outer_depth=1,
        inner_dim=32,
        inner_depth=1,
        head_dim=16,
        cond_dim=32,
        cross_attention_dim=32,
    )
    with torch.no_grad():
        for parameter in network.parameters():  # zero-initialised parts would make it ignore text and camera
            parameter.add_(torch.randn_like(parameter) * 0.05)
    network.save_pretrained(folder / "denoiser")
    DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing"
    ).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DreamKitPixelPipeline",
        "denoiser": ["dreamkit.diffusion.hourglass", "HourglassTransformer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
