"""The prompts of a comparison of video students: held-out compositions with a motion each, or those of a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from dreamkit.errors import ConfigError, PromptError
from dreamkit.metrics.video import prompt_things
from dreamkit.metrics.video_judge import MOTION_CLASSES
from dreamkit.toyworld.captions import COLOURS, HELD_OUT, composition, with_article
from dreamkit.toyworld.motion import MOTION_OBJECTS
from dreamkit.training.compare.plan import read_prompts

HELD_OUT_PAIRS: tuple[tuple[str, str], ...] = tuple(pair for pair in HELD_OUT if pair[1] in MOTION_OBJECTS)
"""The held-out (colour, object) of the moving world."""
_WORDS: tuple[tuple[tuple[str, str], str], ...] = (
    (("still", ""), ""),
    (("spinning", ""), " spinning"),
    (("bouncing", ""), " bouncing"),
    (("sliding", "left"), " sliding to the left"),
    (("circling", ""), " moving in a circle"),
)
"""Motions of the held-out prompts, and the words for them."""
MOST = len(HELD_OUT_PAIRS) * len(_WORDS)
"""Held-out prompts that there are."""
_VERBS = (
    ("spinning", r"\b(spin|rotat|turning around|turns around)"),
    ("bouncing", r"\b(bounc|jump)"),
    ("circling", r"\b(circl|orbit|in a circle)"),
    ("rolling", r"\broll"),
    ("sliding", r"\b(slid|moving back and forth|moves back and forth)"),
    ("entering", r"\b(enter|comes in|coming in)"),
    ("leaving", r"\b(leav|exit)"),
    ("passing", r"\bpass"),
)
_MOVES = r"\b(mov(?:e|es|ing)|go|goes|going)\b"


@dataclass(frozen=True)
class Case:
    """A prompt and what is asked with it.

    Args:
        prompt: one sentence.
        motion: of `MOTION_CLASSES`; `None` where the prompt leaves it open.
        plain: its first thing alone, without a motion.
        other: a composition of another object and colour, to switch to.
    """

    prompt: str
    motion: tuple[str, str] | None
    plain: str
    other: str


def held_out_cases(count: int) -> list[Case]:
    """The first of the held-out compositions, each with another motion in turn; no two alike.

    Args:
        count: 1 to `MOST`.
    """
    found = []
    for index in range(count):
        pair = index % len(HELD_OUT_PAIRS)
        # After a round of the compositions each gets the next motion.
        motion, words = _WORDS[(index + index // len(HELD_OUT_PAIRS)) % len(_WORDS)]
        plain = composition(*HELD_OUT_PAIRS[pair])
        found.append(Case(plain + words, motion, plain, _other(plain)))
    return found


def read_cases(text: str) -> list[Case]:
    """The prompts that an option names.

    Args:
        text: how many held-out ones, or a text file with a prompt a line.

    Raises:
        ConfigError: a number out of range, or a file without prompts.
        PromptError: a prompt that can't be used, or of which the judge knows no object.
    """
    if re.fullmatch(r"[+-]?\d+", text.strip()):
        number = int(text)
        if not 1 <= number <= MOST:
            raise ConfigError(f"--prompts is {number}.", f"Give 1 to {MOST}, or a text file with a prompt a line.")
        return held_out_cases(number)
    if not text.strip():
        raise ConfigError("--prompts is empty.", f"Give 1 to {MOST}, or a text file with a prompt a line.")
    if text in ("heldout", "fronted"):  # sets of another world's prompts
        raise ConfigError(f"--prompts is {text!r}.", f"Give 1 to {MOST}, or a text file with a prompt a line.")
    return [_case(prompt) for prompt in read_prompts(text)]


def _case(prompt: str) -> Case:
    things = prompt_things(prompt)
    if not things:
        raise PromptError(
            f"The video judge can't tell what {prompt!r} shows.",
            f"Name one of its objects: {', '.join(MOTION_OBJECTS)}; and a colour: {', '.join(COLOURS)}.",
        )
    name, colour = str(things[0].name), things[0].colour
    plain = with_article(name) if colour is None else composition(colour, name)
    return Case(prompt, prompt_motion(prompt), plain, _other(plain))


def prompt_motion(prompt: str) -> tuple[str, str] | None:
    """The motion that a prompt asks for, one of `MOTION_CLASSES`; `None` where its words leave it open.

    What is said of the camera is no motion of a thing, and a thing of which nothing is said stands still.
    """
    text = prompt.lower().partition("camera")[0]
    motion = next((name for name, pattern in _VERBS if re.search(pattern, text)), None)
    if motion is None:
        return None if re.search(_MOVES, text) and "not moving" not in text else ("still", "")
    way = re.search(r"\b(left|right)\b", text)
    found = (motion, way[1] if way and motion != "passing" else "")
    return found if found in MOTION_CLASSES else None


def _other(plain: str) -> str:
    """A held-out composition that shares neither object nor colour, the same one for the same composition."""
    words = plain.split()
    choices = [pair for pair in HELD_OUT_PAIRS if pair[0] not in words and pair[1] not in words]
    return composition(*choices[int(hashlib.sha256(plain.encode()).hexdigest(), 16) % len(choices)])
