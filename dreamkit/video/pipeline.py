"""A video diffusion model in diffusers' layout, loaded and asked: the embedded one and Wan's take the same path.

```
model_index.json   "DreamKitVideoPipeline" (ours) or "WanPipeline"
transformer/       a Wan transformer       text_encoder/, tokenizer/   CLIP (ours) or UMT5
vae/               an autoencoder          scheduler/                  its shift of noise levels
controls/          what reads cameras and tracks (ours; may be missing)
```

The model is a flow (Lipman et al., arXiv 2210.02747): x_t = (1 - t) x_0 + t eps, t in [0, 1], and the network predicts
eps - x_0 at the timestep 1000 t.
"""

from __future__ import annotations

import html
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamkit import vocabulary
from dreamkit.checks import require, require_choice, require_number
from dreamkit.errors import CheckpointError, ConfigError, PromptError, TeacherError
from dreamkit.video.autoencoders import VideoAutoencoder, load_autoencoder
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder, Controls
from dreamkit.video.pairs import interleave, paired_controls, target_levels, targets

OURS = "DreamKitVideoPipeline"
WAN = "WanPipeline"
PAIRS_KEY = "dreamkit_pairs"
"""Where the index of a pipeline folder says that its model films a video again."""
_TEXT_ENCODERS = ("CLIPTextModel", "UMT5EncoderModel")
_TOKENIZERS = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "T5Tokenizer",
    "T5TokenizerFast",
)
_T5_TOKENS = 512
_EXTRA_TOKENS = 1_000_000  # tokenizers saved without a length carry 1e30


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 faster than in float32; a CPU needs instructions for it."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def shifted(
    t: Tensor,  # [...] in [0, 1]
    shift: float,
) -> Tensor:
    """Noise levels moved towards more noise: s t / (1 + (s - 1) t) (Esser et al., arXiv 2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


class TextEncoder:
    """A frozen text encoder with its tokenizer.

    Args:
        tokenizer: of transformers.
        encoder: a CLIP text model (its last hidden states, every position) or a UMT5 encoder (those of the prompt's
            tokens, then zeros up to 512: as diffusers' WanPipeline).
    """

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder.eval().requires_grad_(False)
        self._is_t5 = encoder.config.model_type == "umt5"

    @property
    def width(self) -> int:
        """Features of a text token."""
        config = self.encoder.config
        return int(config.d_model if self._is_t5 else config.hidden_size)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts: [B, L, D].

        Raises:
            PromptError: no prompt at all, or a bare string in place of a list.
        """
        if isinstance(prompts, str) or not prompts:
            raise PromptError(f"The prompts are {prompts!r}.", "Give a list with at least one sentence.")
        if not self._is_t5:
            return self.encoder(self._tokens(prompts)["input_ids"])[0].float()
        texts = [" ".join(html.unescape(html.unescape(prompt)).split()) for prompt in prompts]
        tokens = self._tokens(texts)
        mask = tokens["attention_mask"]
        states = self.encoder(tokens["input_ids"], mask).last_hidden_state
        return (states * mask[..., None].to(states.dtype)).float()

    def unknown_words(self, prompt: str) -> list[str]:
        """See `vocabulary.unknown_words`."""
        return vocabulary.unknown_words(self.tokenizer, prompt)

    def content_words(self) -> list[str] | None:
        """See `vocabulary.content_words`."""
        return vocabulary.content_words(self.tokenizer)

    def dropped_text(self, prompt: str) -> str:
        """The end of the prompt that the text window cuts off, "" if all of it fits."""
        return vocabulary.dropped_text(self.tokenizer, prompt, self._limit)

    @property
    def _limit(self) -> int:
        """Tokens of one prompt, special ones included."""
        if self._is_t5:
            return _T5_TOKENS
        length = int(self.tokenizer.model_max_length)
        return int(self.encoder.config.max_position_embeddings) if length > _EXTRA_TOKENS else length

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self._limit,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {name: tokens[name].to(self.encoder.device) for name in ("input_ids", "attention_mask")}


@dataclass
class VideoTeacher:
    """A frozen text-to-video flow.

    Args:
        name: what the user called it.
        network: predicts the flow.
        autoencoder: between pixels and latents.
        text: between sentences and the network's text.
        controls: between cameras and tracks and features of the network; `None` where it knows none.
        shift: of the noise levels in sampling.
        half_precision: whether the network multiplies matrices in bfloat16 while its weights are float32.
        pairs: whether it films a video again, see `dreamkit.video.pairs`.
    """

    name: str
    network: CausalTransformer
    autoencoder: VideoAutoencoder
    text: TextEncoder
    controls: ControlEncoder | None = None
    shift: float = 1.0
    half_precision: bool = False
    pairs: bool = False

    def check_source(self, source: object | None) -> None:
        """Check that there is a video to film again where the model does that, and else none.

        Raises:
            ConfigError: there is none, or one too many.
        """
        if self.pairs and source is None:
            raise ConfigError(f"{self.name} films a video again, and there is none.", "Give one as --source.")
        if not self.pairs and source is not None:
            raise ConfigError(
                f"{self.name} makes videos of sentences; it can't film one again.",
                "Leave --source out, or use a model that `dreamkit teachers train video --pairs` made.",
            )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.proj_out.weight.device

    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """Text [B, L, D] of prompts; "" is the text that stands for none.

        Raises:
            PromptError: no prompt at all, or a bare string in place of a list.
        """
        return self.text.encode(prompts)

    def encode(
        self,
        frames: Tensor,  # [B, F, 3, H, W] in [0, 1]
    ) -> Tensor:
        """Latents [B, C, F', h, w], see `VideoAutoencoder.encode`."""
        return self.autoencoder.encode(frames)

    def decode(
        self,
        latents: Tensor,  # [B, C, F', h, w]
    ) -> Tensor:
        """Frames [B, F, 3, H, W] in [0, 1], see `VideoAutoencoder.decode`; `autoencoder.stream()` takes chunks."""
        return self.autoencoder.decode(latents)

    def features(self, controls: Controls | None, latents: Tensor) -> Tensor | None:
        """Features of controls for the network [B, F' h w, dim], or `None` where nothing is steered.

        Raises:
            TeacherError: controls for a model that knows none.
        """
        if controls is None or controls.shape is None:
            return None
        if self.controls is None:
            raise TeacherError(f"{self.name} knows no cameras and no tracks.", "Leave the controls out.")
        _, rows, columns = self.network.token_grid(latents)
        features = self.controls(controls.to(self.device), (rows, columns))
        return None if features is None else features.flatten(1, 2)

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,  # [B, C, F', h, w] noisy
        t: Tensor | float,  # [B], [B, F'] or one number, in [0, 1]
        text: Tensor,  # [B, L, D]
        controls: Controls | None = None,
    ) -> Tensor:
        """The flow eps - x_0 that the model sees in noisy latents, [B, C, F', h, w] float32.

        Raises:
            ConfigError: shapes that don't fit.
            TeacherError: controls for a model that knows none.
        """
        times = torch.as_tensor(t, dtype=torch.float32, device=self.device)
        times = times.expand(len(latents)) if times.ndim == 0 else times
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_precision):
            return self.network(latents, 1000 * times, text, self.features(controls, latents)).float()

    def sample(
        self,
        prompts: Sequence[str],
        frames: int,
        steps: int = 50,
        guidance: float = 4.0,
        generator: torch.Generator | None = None,
        controls: Controls | None = None,
        size: tuple[int, int] = (64, 64),
        shift: float | None = None,
        source: Tensor | None = None,  # [B, C, F', h, w]
    ) -> Tensor:
        """Make clips of prompts: Euler steps down the flow under classifier-free guidance (arXiv 2207.12598).

            v = v(null) + guidance (v(prompt) - v(null)),   x <- x + (t' - t) v,   t from 1 to 0

        Args:
            prompts: B sentences.
            frames: F, as many as the autoencoder can make.
            steps: network calls, 1 to 1000.
            guidance: 0 ignores the prompt, 1 is the model itself, up to 100.
            generator: of the noise; one with seed 0 by default.
            controls: of the latent frames.
            size: height and width in pixels.
            shift: of the noise levels, the model's own by default.
            source: latents of videos to film again, of a model that was taught to (see `dreamkit.video.pairs`); the
                controls then have a camera, relative to the source's first frame.

        Returns:
            Latents [B, C, F', h, w]; `decode` makes frames of them.

        Raises:
            ConfigError: a number out of range, shapes that don't fit, or a source where none is wanted.
        """
        self.check_source(source)
        require("The number of steps", 1 <= steps <= 1000, steps, "1 to 1000")
        require_number("guidance", guidance, 0, 100)
        text = self.encode_prompt(prompts)
        null = self.encode_prompt([""]).expand_as(text)
        factor = self.autoencoder.spatial_factor
        require("The size", all(side > 0 and side % factor == 0 for side in size), size, f"multiples of {factor}")
        shape = (len(prompts), self.autoencoder.channels, self.autoencoder.latent_frames(frames))
        generator = generator or torch.Generator().manual_seed(0)
        x = torch.randn(*shape, size[0] // factor, size[1] // factor, generator=generator).to(self.device)
        times = shifted(torch.linspace(1, 0, steps + 1), self.shift if shift is None else shift).tolist()
        both = None if controls is None else controls.twice()
        for t, following in itertools.pairwise(times):
            if guidance == 1:
                v = self._flow(x, t, text, controls, source)
            else:
                sources = None if source is None else torch.cat([source, source])
                given, without = self._flow(torch.cat([x, x]), t, torch.cat([text, null]), both, sources).chunk(2)
                v = without + guidance * (given - without)
            x = x + (following - t) * v
        return x

    def _flow(self, x: Tensor, t: float, text: Tensor, controls: Controls | None, source: Tensor | None) -> Tensor:
        """The flow in noisy latents, or in the targets of pairs whose sources are given."""
        if source is None:
            return self.predict(x, t, text, controls)
        pairs = interleave(source.to(x), x)
        levels = target_levels(torch.full((len(x), pairs.shape[2]), t, device=self.device))
        return targets(self.predict(pairs, levels, text, paired_controls(controls, len(x), x.shape[2])))


def load_video_teacher(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> VideoTeacher:
    """Load a pipeline folder.

    Args:
        folder: in diffusers' layout, see the module's docstring.
        device: where it computes.
        dtype: of the weights. In float32 the network still multiplies in bfloat16 where the device is fast at it.

    Raises:
        CheckpointError: a file is missing, damaged or doesn't fit.
        TeacherError: a model of another kind, or parts that don't belong together.
    """
    path = Path(folder)
    index = _read_json(path / "model_index.json")
    name = str(index.get("_class_name"))
    if name not in (OURS, WAN):
        raise TeacherError(f"{path} holds a {name}.", f"Supported are: {OURS}, {WAN}.")
    network = CausalTransformer.from_pretrained(path / "transformer", dtype=dtype, device=device)
    # Wan's autoencoder loses detail in half precision.
    autoencoder = load_autoencoder(path / "vae", device, torch.float32)
    text = _load_text(path, index, device, dtype)
    controls = None
    if (path / "controls").is_dir():
        controls = ControlEncoder.from_pretrained(path / "controls", dtype=dtype, device=device)
    _check_widths(path, network, autoencoder, text, controls)
    half = dtype == torch.float32 and has_fast_bfloat16(torch.device(device))
    return VideoTeacher(
        str(folder), network, autoencoder, text, controls, _shift(path), half, index.get(PAIRS_KEY) is True
    )


def _check_widths(
    path: Path,
    network: CausalTransformer,
    autoencoder: VideoAutoencoder,
    text: TextEncoder,
    controls: ControlEncoder | None,
) -> None:
    """The parts must belong together."""
    config = network.config
    widths = [
        ("channels of latents", autoencoder.channels, config.in_channels),
        ("features of text", text.width, config.text_dim),
        ("features of controls", config.dim if controls is None else controls.config["dim"], config.dim),
    ]
    for what, got, wanted in widths:
        if got != wanted:
            raise TeacherError(
                f"In {path} the transformer takes {wanted} {what}, and its other part gives {got}.",
                "The parts belong to different models: download the folder again.",
            )


def _load_text(path: Path, index: dict[str, Any], device: torch.device | str, dtype: torch.dtype) -> TextEncoder:
    import transformers

    names = []
    for part, known in (("text_encoder", _TEXT_ENCODERS), ("tokenizer", _TOKENIZERS)):
        entry = index.get(part)
        if not isinstance(entry, list) or len(entry) != 2:
            raise TeacherError(f"The index of {path} names no {part}.", "Download the folder again.")
        require_choice(f"The {part} of {path}", str(entry[1]), known)
        names.append(str(entry[1]))
    try:
        encoder = getattr(transformers, names[0]).from_pretrained(
            path / "text_encoder", use_safetensors=True, local_files_only=True, dtype=dtype
        )
        tokenizer = getattr(transformers, names[1]).from_pretrained(path / "tokenizer", local_files_only=True)
    # These raise whatever the parsers of their file formats raise.
    except Exception as error:
        raise CheckpointError(
            f"The text encoder or tokenizer in {path} can't be loaded: {error}.",
            "Download the folder again; only safetensors are loaded.",
        ) from error
    return TextEncoder(tokenizer, encoder.to(device))


def _shift(path: Path) -> float:
    """The shift in the scheduler's configuration: `shift`, or `flow_shift` where the solver calls it so."""
    config = _read_json(path / "scheduler" / "scheduler_config.json")
    value = config.get("shift", config.get("flow_shift", 1.0))
    if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CheckpointError(f"The shift of the scheduler in {path} is {value!r}.", "It must be a positive number.")
    return float(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}.", "Give a folder in diffusers layout.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object.", "Download the folder again.")
    return content
