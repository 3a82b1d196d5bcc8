"""The examples of the page: prompts, and pictures of what the embedded teacher made of them at the draft preset."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dreamkit.prompts import slug

PROMPTS = ("a red mug", "a blue duck", "a green car", "a purple robot", "a yellow teapot", "a white penguin")


def _pictures() -> Path:
    spec = find_spec("dreamkit_assets")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0] if places else ".") / "studio"


PICTURES = _pictures()
"""Folder of `<slug of the prompt>.webp`."""


def example_prompts() -> list[dict[str, str]]:
    """Each example: `prompt`, and the name of its `picture` in `PICTURES`, "" where there is none."""
    names = {prompt: f"{slug(prompt)}.webp" for prompt in PROMPTS}
    return [
        {"prompt": prompt, "picture": name if (PICTURES / name).is_file() else ""} for prompt, name in names.items()
    ]
