"""What a tokenizer makes of a prompt's words, whatever model it belongs to: transformers' tokenizers, without them."""

from typing import Any

from dreamkit.prompts import content_words_of

CONTENT_KEY = "dreamkit_content_words"
"""In a tokenizer's configuration: the words of its vocabulary that mean something."""


def is_word_level(tokenizer: Any) -> bool:
    """Whether unknown words become one unknown token, rather than pieces of known ones."""
    model = tokenizer.backend_tokenizer.model if tokenizer.is_fast else None
    return type(model).__name__ == "WordLevel" and tokenizer.unk_token_id is not None


def unknown_words(tokenizer: Any, prompt: str) -> list[str]:
    """Words of the prompt that a word-level tokenizer maps to its unknown token; `[]` for subword tokenizers."""
    if not is_word_level(tokenizer):
        return []
    encoding = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = zip(encoding.input_ids, encoding.offset_mapping, strict=True)
    return [prompt[start:end] for token, (start, end) in spans if token == tokenizer.unk_token_id]


def content_words(tokenizer: Any) -> list[str] | None:
    """Known words that mean something, sorted; `None` for subword tokenizers, which read anything.

    The tokenizer's configuration may list them under `CONTENT_KEY`; otherwise they are its vocabulary without special
    tokens and stop words.
    """
    if not is_word_level(tokenizer):
        return None
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    return content_words_of(words, tokenizer.init_kwargs.get(CONTENT_KEY))


def dropped_text(tokenizer: Any, prompt: str, limit: int) -> str:
    """The end of the prompt that a window of `limit` tokens, special ones included, cuts off; "" if all of it fits."""
    if not tokenizer.is_fast:
        return ""  # it can't say where its tokens come from
    room = limit - tokenizer.num_special_tokens_to_add()
    encoding = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return prompt[encoding.offset_mapping[room][0] :] if len(encoding.input_ids) > room else ""
