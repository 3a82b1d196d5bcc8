"""The words of the toy world: what its images can show and how a caption says it.

A caption is drawn from a small grammar: one object or two in a relation, each with a colour and sometimes a size
and a material, wordings vary, and half of the captions name the view. Compositions in `HELD_OUT` never occur in
training, in any view, wording or scene: scores are taken on them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Rgb = tuple[float, float, float]

COLOURS: dict[str, Rgb] = {
    "red": (0.85, 0.10, 0.10),
    "orange": (0.97, 0.50, 0.06),
    "yellow": (0.97, 0.86, 0.12),
    "green": (0.13, 0.62, 0.18),
    "cyan": (0.12, 0.78, 0.80),
    "blue": (0.12, 0.25, 0.86),
    "purple": (0.50, 0.15, 0.70),
    "pink": (0.98, 0.55, 0.73),
    "brown": (0.44, 0.25, 0.11),
    "black": (0.09, 0.09, 0.10),
    "gray": (0.50, 0.50, 0.52),
    "white": (0.95, 0.95, 0.95),
}
"""Albedo of the body, sRGB in [0, 1]."""

OBJECTS: tuple[str, ...] = (
    "cube", "ball", "cone", "cylinder", "ring", "pyramid", "table", "mushroom", "tree", "bottle", "lamp", "rocket",
    "duck", "car", "robot", "house", "snowman", "mug", "chair", "fish", "plane", "cat", "bear", "teapot",
    "truck", "boat", "clock", "television", "penguin", "ghost",
)  # fmt: skip
"""Nouns, in the order of the evaluator's classes; the first twelve have no front."""

FRONTED: tuple[str, ...] = OBJECTS[12:]

MATERIALS: tuple[str, ...] = ("plain", "striped", "spotted", "shiny")
SIZES: dict[str, float] = {"small": 0.72, "": 0.9, "big": 1.06}
"""Word -> scale of the object; the empty word is the usual size."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"),
    "ring": ("ring", "torus", "donut"),
    "mug": ("mug", "cup"),
    "plane": ("plane", "airplane"),
    "boat": ("boat", "ship"),
    "television": ("television", "tv"),
    "cube": ("cube", "box"),
    "gray": ("gray", "grey"),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "striped": ("striped", "stripy"),
    "spotted": ("spotted", "dotted"),
    "shiny": ("shiny", "glossy"),
    "small": ("small", "little"),
    "big": ("big", "large"),
}

VIEW_SUFFIXES: tuple[str, ...] = (", {view} view", ", {view} view", " , {view} view", " seen from the {view}")
PREFIXES: tuple[str, ...] = ("", "", "", "", "a photo of ", "a picture of ", "a render of ", "an image of ")

RELATIONS: dict[str, tuple[str, ...]] = {"on": ("on", "on top of"), "beside": ("next to", "beside")}

HELD_OUT: tuple[tuple[str, str], ...] = (
    ("red", "mug"), ("blue", "duck"), ("green", "car"), ("yellow", "robot"), ("purple", "house"),
    ("pink", "snowman"), ("orange", "fish"), ("cyan", "chair"), ("white", "plane"), ("brown", "teapot"),
    ("gray", "cat"), ("red", "truck"), ("green", "boat"), ("blue", "television"), ("yellow", "penguin"),
    ("pink", "cube"), ("purple", "mushroom"), ("orange", "lamp"), ("cyan", "rocket"), ("black", "table"),
)  # fmt: skip
"""The twenty (colour, object) compositions kept out of training; scores are taken on them."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene as a caption names it.

    Args:
        name: one of `OBJECTS`.
        colour: a key of `COLOURS`.
        material: one of `MATERIALS`.
        size: a key of `SIZES`.
    """

    name: str
    colour: str
    material: str = "plain"
    size: str = ""

    @property
    def held_out(self) -> bool:
        """Whether this composition is kept out of training."""
        return (self.colour, self.name) in HELD_OUT


class CaptionWriter:
    """Writes captions with varied wording.

    Args:
        generator: source of every choice.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def chance(self, probability: float) -> bool:
        """Whether an event of this probability happens."""
        return bool(torch.rand((), generator=self.generator) < probability)

    def choose(self, options: Sequence[str]) -> str:
        """One of the options, all equally likely."""
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def _word(self, word: str) -> str:
        """The word, or one of its synonyms in one case out of four."""
        return self.choose(SYNONYMS[word]) if word in SYNONYMS and self.chance(0.25) else word

    def phrase(self, thing: Thing) -> str:
        """A noun phrase with its article: `a small striped red mug`."""
        words = [self._word(word) for word in (thing.size,) if word]
        if thing.material != "plain" or self.chance(0.05):
            words.append(self._word(thing.material))
        words.append(self._word(thing.colour))
        if len(words) > 1 and self.chance(0.15):
            words = words[::-1]
        return with_article(" ".join([*words, self._word(thing.name)]), "the" if self.chance(0.1) else "a")

    def caption(self, things: Sequence[Thing], relation: str | None = None, view: str | None = None) -> str:
        """A caption of one thing, or of two in a relation.

        Args:
            things: one or two.
            relation: a key of `RELATIONS`, with two things.
            view: `front`, `side`, `back` or `overhead`, to be named; `None` names none.
        """
        text = self.phrase(things[0])
        if relation is not None:
            text = f"{text} {self.choose(RELATIONS[relation])} {self.phrase(things[1])}"
        suffix = self.choose(VIEW_SUFFIXES).format(view=view) if view else ""
        return self.choose(PREFIXES) + text + suffix.replace("the overhead", "overhead")


def with_article(phrase: str, article: str = "a") -> str:
    """The phrase with its article, `an` before a vowel: `an orange fish`."""
    if article == "a" and phrase[0] in "aeio":
        article = "an"
    return f"{article} {phrase}"


def composition(colour: str, name: str) -> str:
    """The plainest caption of a composition: `a red mug`."""
    return with_article(f"{colour} {name}")


def content_words() -> list[str]:
    """Words that carry meaning in a prompt: objects, colours, materials, sizes and their synonyms."""
    words = {*OBJECTS, *COLOURS, *MATERIALS, *(size for size in SIZES if size)}
    return sorted(words.union(*SYNONYMS.values()))


def vocabulary() -> list[str]:
    """Every word and punctuation mark that a caption can hold, sorted."""
    function = "a an the on top of next to beside with and , . front side back overhead view seen from top"
    words = set(content_words()) | set(function.split())
    for text in (*PREFIXES, *VIEW_SUFFIXES):
        words.update(re.findall(r"[a-z]+", text.replace("{view}", "")))
    return sorted(words)
