"""Prompts: what is accepted, how it is normalised, and what a small vocabulary makes of it. No torch in here."""

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Protocol

from dreamkit.errors import PromptError

MAX_PROMPT_LENGTH = 2000  # characters, before normalisation

# Words that carry no content of their own: knowing only these is knowing nothing of a prompt.
STOP_WORDS = frozenset(
    """
    a an and any are as at be beside between by for from has have having his her in inside into is it its near next
    no not of on one onto or other over some that the their there these this those to two under up upon very which with
    without front back side overhead top view picture photo image render rendering scene large small
    """.split()  # noqa: SIM905 - a hundred quoted words hide the list
)

_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_INVISIBLE = re.compile("[\u200b\u2060\ufeff]")
_SLUG_LENGTH = 60


class Reader(Protocol):
    """The part of a teacher that a prompt is checked against."""

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt the teacher has never seen; empty for an open vocabulary."""

    def content_words(self) -> list[str] | None:
        """The words that mean something to the teacher, or `None` for an open vocabulary."""

    def dropped_text(self, prompt: str) -> str:
        """The end of the prompt that does not fit in the teacher's text window, "" if all of it does."""


def clean_prompt(prompt: str, allow_empty: bool = False) -> str:
    """Check a prompt and bring it to one form: Unicode NFC, whitespace collapsed, ends trimmed.

    Any language and any length up to `MAX_PROMPT_LENGTH` characters is accepted. Line breaks and tabs count as
    whitespace; other control characters, lone surrogates and text-direction overrides are refused.

    Args:
        prompt: what the user wrote.
        allow_empty: whether nothing at all is fine, as it is for a negative prompt.

    Raises:
        PromptError: empty, too long, or with a character that has no place in a sentence.
    """
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise PromptError(
            f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_LENGTH:,} are accepted.",
            "Describe the object in a sentence.",
        )
    normalised = unicodedata.normalize("NFC", _INVISIBLE.sub("", prompt))
    for position, character in enumerate(normalised):
        is_control = unicodedata.category(character) in ("Cc", "Cs") and not character.isspace()
        if is_control or character in _BIDI_CONTROLS:
            raise PromptError(
                f"The prompt has the control character U+{ord(character):04X} at position {position + 1}.",
                "Remove it; a prompt is one line of plain text.",
            )
    collapsed = " ".join(normalised.split())
    if not collapsed and not allow_empty:
        raise PromptError("The prompt is empty.", 'Say what to make, for example "a red mug".')
    return collapsed


def view_prompt(prompt: str, view_name: str) -> str:
    """Name the view in the prompt: ("a red mug", "front view") -> "a red mug, front view".

    Args:
        prompt: a cleaned prompt; its closing punctuation is dropped.
        view_name: "front view", "side view", "back view" or "overhead view".
    """
    return f"{prompt.rstrip(' .,;:!')}, {view_name}"


def slug(prompt: str) -> str:
    """Name a folder after a prompt: lower-case ASCII letters, digits and hyphens, at most 60 characters.

    Accents are dropped; a prompt without any ASCII letter or digit becomes "prompt-" and the start of its SHA-256.

    Args:
        prompt: a cleaned prompt.
    """
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode()
    name = "-".join(re.findall(r"[a-z0-9]+", ascii_text.lower()))
    if len(name) > _SLUG_LENGTH:
        head = name[: _SLUG_LENGTH + 1]
        name = head.rpartition("-")[0] or head[:_SLUG_LENGTH]
    return name or f"prompt-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


def nearest_words(word: str, vocabulary: Iterable[str], n: int = 3) -> list[str]:
    """The known words spelled most like a given one, best first, at most `n`.

    Similarity is difflib's ratio of matching characters, at least 0.6; equal scores are in alphabetical order.

    Args:
        word: the unknown word.
        vocabulary: the known words.
        n: how many to return at most.
    """
    candidates = sorted(set(vocabulary))
    return difflib.get_close_matches(word.lower(), candidates, n=n, cutoff=0.6) if n > 0 else []


def check_prompt(teacher: Reader, prompt: str, option: str = "--teacher PATH|HUB_ID") -> list[str]:
    """Say what a teacher will not understand of a prompt.

    Args:
        teacher: who will read the prompt.
        prompt: a cleaned prompt.
        option: how the user asks for a larger one.

    Returns:
        Warnings for the user, empty when everything is understood (always so for an open vocabulary, unless the
        prompt is longer than the teacher's text window).

    Raises:
        PromptError: the teacher knows no content word of the prompt.
    """
    warnings = []
    vocabulary = teacher.content_words()
    if vocabulary is not None:
        words = _words(prompt)
        known = {part for word in vocabulary for part in word.lower().split()}
        if not any(word in known for word in words):
            raise PromptError(
                f"This teacher knows no word of {prompt!r} that names an object, a colour or a pattern.",
                f"Words it knows: {', '.join(vocabulary)}. {_larger_teacher(option)}",
            )
        unknown = teacher.unknown_words(prompt)
        if unknown:
            warnings.append(_unknown_warning(unknown, vocabulary, option))
    dropped = teacher.dropped_text(prompt)
    if dropped:
        warnings.append(f"The prompt is longer than this teacher reads; it does not see: {dropped!r}.")
    return warnings


def content_words_of(vocabulary: Iterable[str], listed: Sequence[str] | None = None) -> list[str]:
    """The content words of a closed vocabulary, sorted.

    Args:
        vocabulary: every word the tokenizer knows, special tokens left out.
        listed: the words the tokenizer's own configuration lists as content, if it does; they win.
    """
    if listed:
        return sorted({str(word) for word in listed})
    return sorted(word for word in set(vocabulary) if any(map(str.isalpha, word)) and word.lower() not in STOP_WORDS)


def _words(prompt: str) -> list[str]:
    """Lower-case words of a prompt, punctuation left out; hyphenated words also as their parts."""
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", prompt.lower())
    return words + [part for word in words if "-" in word for part in word.split("-")]


def _unknown_warning(unknown: Sequence[str], vocabulary: Sequence[str], option: str) -> str:
    """One sentence for each unknown word, and where to find a teacher that knows it."""
    sentences = []
    for word in dict.fromkeys(unknown):
        near = nearest_words(word, vocabulary)
        hint = f" (nearest known: {', '.join(near)})" if near else ""
        sentences.append(f"This teacher does not know {word!r}{hint} and ignores it.")
    return f"{' '.join(sentences)} {_larger_teacher(option)}"


def _larger_teacher(option: str) -> str:
    return f"For any other word use a larger teacher: {option}."
