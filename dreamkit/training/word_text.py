"""Text for the embedded teachers: a word-level tokenizer of what a world can say, and a small encoder beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamkit.errors import CheckpointError


def make_tokenizer(words: Sequence[str], content_words: Sequence[str], length: int) -> Any:
    """A word-level tokenizer, in transformers' format.

    Args:
        words: every word and punctuation mark that a caption can hold.
        content_words: those that mean something in a prompt.
        length: tokens of a caption, with the one at its start and the one at its end.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    known = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *words]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(known)}, unk_token="[UNK]"))
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
        model_max_length=length,
        dreamkit_content_words=list(content_words),
    )


def make_text_encoder(vocab_size: int, width: int, length: int) -> Any:
    """A two-layer CLIP text transformer, trained together with the denoiser."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=3 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=length,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    return CLIPTextModel(config)


def load_text_encoder_weights(encoder: Any, folder: Path) -> None:
    """Copy the weights of a teacher's text_encoder/ into a fresh one.

    Raises:
        CheckpointError: the folder holds none of this shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        encoder.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The text encoder of {folder.parent} can't be started from: {error}.", "Give a folder this command wrote."
        ) from error
