"""From a sentence to a `Condition`, exactly as diffusers' pipelines do it.

- Stable Diffusion: CLIP's last hidden states after the final layer norm, padded to the tokenizer's length, no mask.
- SDXL: the penultimate hidden states of both encoders side by side, the pooled projection of the second, and the time
  ids (H, W, 0, 0, H, W) (Podell et al., arXiv 2307.01952).
- DeepFloyd: T5's last hidden states of the lower-cased prompt, 77 tokens, padding masked.
- The embedded teacher: Stable Diffusion's way, with a word-level tokenizer.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamkit import vocabulary
from dreamkit.diffusion.condition import Condition

# DeepFloyd's T5 would take more, but its denoiser only ever saw this many tokens.
_T5_TOKENS = 77
# Tokenizers saved without a length carry 1e30.
_NO_LENGTH = 1_000_000
_CACHED_PROMPTS = 256


class PromptEncoder:
    """One or two frozen text encoders with their tokenizers.

    Args:
        tokenizers: one for each encoder.
        encoders: transformers text encoders: one CLIP or T5, or SDXL's pair of CLIPs, of which the second projects.
        image_size: (height, width) in pixels, given to networks that take time ids; `None` for the others.
        zero_null: whether "no prompt" is a condition of zeros (SDXL) rather than the encoded empty string.
    """

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[Any],
        image_size: tuple[int, int] | None = None,
        zero_null: bool = False,
    ) -> None:
        self.tokenizers = list(tokenizers)
        self.encoders = list(encoders)
        self.image_size = image_size
        self.zero_null = zero_null
        self._cache: OrderedDict[str, Condition] = OrderedDict()

    @property
    def width(self) -> int:
        """Number of features D of a text token."""
        return sum(_encoder_width(encoder) for encoder in self.encoders)

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Encode prompts, [B, L, D]; each string is encoded once and kept (the 256 used last are).

        Every string goes through the encoders alone, so that its bytes do not depend on what it was batched with.
        """
        return Condition.cat([self._encode_cached(prompt) for prompt in prompts])

    def null(self, n: int) -> Condition:
        """The condition that stands for "no prompt", [n, L, D]: zeros or the empty string, as the model was trained."""
        empty = self._encode_cached("")
        if self.zero_null:
            pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
            empty = Condition(torch.zeros_like(empty.embeddings), pooled, empty.extra)
        return empty.repeat(n)

    def unknown_words(self, prompt: str) -> list[str]:
        """See `vocabulary.unknown_words`."""
        return vocabulary.unknown_words(self.tokenizers[0], prompt)

    def content_words(self) -> list[str] | None:
        """See `vocabulary.content_words`."""
        return vocabulary.content_words(self.tokenizers[0])

    def dropped_text(self, prompt: str) -> str:
        """The end of the prompt that the text window cuts off, "" if all of it fits."""
        limit = _token_limit(self.tokenizers[0], self.encoders[0])
        return vocabulary.dropped_text(self.tokenizers[0], prompt, limit)

    def _encode_cached(self, prompt: str) -> Condition:
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        condition = self._encode(prompt)
        self._cache[prompt] = condition
        if len(self._cache) > _CACHED_PROMPTS:
            self._cache.popitem(last=False)
        return condition

    @torch.no_grad()
    def _encode(self, prompt: str) -> Condition:
        if len(self.encoders) == 1:
            return Condition(self._last_hidden_states(prompt))
        outputs = [
            encoder(tokenize(tokenizer, encoder, [prompt])["input_ids"], output_hidden_states=True)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        embeddings = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        extra = {}
        if self.image_size is not None:
            height, width = self.image_size
            ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
            extra["time_ids"] = ids.to(embeddings.device)
        return Condition(embeddings, outputs[-1].text_embeds, extra)

    def _last_hidden_states(self, prompt: str) -> Tensor:
        encoder = self.encoders[0]
        tokens = tokenize(self.tokenizers[0], encoder, [prompt])
        is_masked = _is_t5(encoder) or getattr(encoder.config, "use_attention_mask", False)
        mask = tokens["attention_mask"] if is_masked else None
        return encoder(tokens["input_ids"], attention_mask=mask).last_hidden_state


def tokenize(tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Tokens of prompts, padded and cut to the encoder's window, on the encoder's device.

    Args:
        tokenizer: a transformers tokenizer.
        encoder: the text encoder that reads the tokens.
        prompts: B strings; T5 reads them lower-cased.

    Returns:
        "input_ids" and "attention_mask", both [B, L] int64.
    """
    texts = [prompt.lower().strip() for prompt in prompts] if _is_t5(encoder) else list(prompts)
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=_token_limit(tokenizer, encoder),
        truncation=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return {name: tokens[name].to(encoder.device) for name in ("input_ids", "attention_mask")}


def _token_limit(tokenizer: Any, encoder: Any) -> int:
    """Tokens of one prompt, special ones included."""
    if _is_t5(encoder):
        return min(int(tokenizer.model_max_length), _T5_TOKENS)
    if tokenizer.model_max_length < _NO_LENGTH:
        return int(tokenizer.model_max_length)
    return int(encoder.config.max_position_embeddings)


def _is_t5(encoder: Any) -> bool:
    return encoder.config.model_type == "t5"


def _encoder_width(encoder: Any) -> int:
    config = encoder.config
    return int(config.d_model if _is_t5(encoder) else config.hidden_size)
