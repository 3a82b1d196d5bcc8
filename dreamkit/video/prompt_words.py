"""What a stream accepts as a prompt."""

from __future__ import annotations

import re

from dreamkit.errors import PromptError
from dreamkit.video.pipeline import TextEncoder


def checked_prompt(text: TextEncoder, prompt: str) -> str:
    """A prompt with its white space collapsed.

    Args:
        text: of the model that will read it.
        prompt: one sentence.

    Raises:
        PromptError: it is empty, or the model knows no word of it that means something; the message names those it
            knows.
    """
    prompt = " ".join(prompt.split())
    if not prompt:
        raise PromptError("The prompt is empty.", 'Say what to show, for example "a red ball rolling".')
    known = content_words(text)
    if known is not None and not set(re.findall(r"[^\W_]+", prompt.lower())) & set(known):
        raise PromptError(
            f"This model knows no word of {prompt!r} that names an object, a colour or a motion.",
            f"Words it knows: {', '.join(known)}. For any other word use a larger model.",
        )
    return prompt


def content_words(text: TextEncoder) -> list[str] | None:
    """The words of a closed vocabulary that mean something, sorted; `None` where every word is read.

    The tokenizer's configuration lists them under `dreamkit_content_words`; otherwise they are its vocabulary.
    """
    tokenizer = text.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordLevel":
        return None
    words = tokenizer.init_kwargs.get("dreamkit_content_words")
    return sorted(words or {word for word in tokenizer.get_vocab() if word.isalpha() and len(word) > 1})
