"""What a comparison runs: columns of objectives, prompts, modes and seeds, each run with the key that decides it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from dreamkit._version import __version__
from dreamkit.errors import ConfigError, PromptError
from dreamkit.files import plain
from dreamkit.prompts import clean_prompt
from dreamkit.toyworld.captions import FRONTED, HELD_OUT, composition
from dreamkit.training.generate import GenerateOptions, settings_for
from dreamkit.training.settings import EMBEDDED

FORMAT_VERSION = 1
CAMERA = "camera"
MODES = {
    "text": ("camera_conditioning=false", "view_prompts=false"),
    "views": ("camera_conditioning=false", "view_prompts=true"),
    CAMERA: ("camera_conditioning=true", "view_prompts=true"),
}
"""text: the teacher hears the same prompt for every view; views: the view's name too; camera: the pose as well."""
_LONGEST_FILE = 10**6  # bytes of a file of prompts


@dataclass(frozen=True)
class CompareOptions:
    """What `dreamkit compare` takes; `None` leaves the preset's value."""

    objectives: str
    prompts: str = "heldout"
    modes: str = CAMERA
    seeds: int = 1
    preset: str = "draft"
    steps: int | None = None
    views: int | None = None
    options: tuple[str, ...] = ()
    jobs: int = 1
    out: str = "outputs/compare"
    teacher: str = EMBEDDED
    device: str = "auto"
    thumbnails: str = "16x96"
    notes: str = ""


@dataclass(frozen=True)
class Column:
    """An objective with the options that this comparison gives it.

    Args:
        label: as the user wrote it: the column's name.
        objective: registered name.
        options: NAME=VALUE each.
    """

    label: str
    objective: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One run of a comparison.

    Args:
        key: names its row: a digest of everything that decides the run.
        label: its column.
        mode: one of `MODES`.
        options: what to make.
        folder: folder of the comparison.
        frames: pictures of its turntable.
        size: their side in pixels.
    """

    key: str
    label: str
    mode: str
    options: GenerateOptions
    folder: Path
    frames: int = 16
    size: int = 96

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its row from the others of a comparison."""
        return {
            "objective": self.label,
            "mode": self.mode,
            "prompt": clean_prompt(self.options.prompt),
            "seed": self.options.seed,
        }

    @property
    def title(self) -> str:
        """The run in a few words."""
        return f"{self.label}, {self.mode}, {clean_prompt(self.options.prompt)}, seed {self.options.seed}"


def split_list(option: str, text: str) -> list[str]:
    """The parts of a list separated by commas, those inside brackets left alone; repeated ones once.

    Raises:
        ConfigError: there is none.
    """
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    named = list(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not named:
        raise ConfigError(f"{option} is empty.", "Give names separated by commas.")
    return named


def parse_columns(text: str) -> list[Column]:
    """The columns of `sds,esd:lambda=0.5;guidance=7.5`.

    Raises:
        ConfigError: an empty list, or a column without a name.
    """
    columns = []
    for label in split_list("--objectives", text):
        name, _, options = label.partition(":")
        if not name.strip():
            raise ConfigError(f"The objective {label!r} has no name.", "For example: esd:lambda=0.5;guidance=7.5")
        columns.append(Column(label, name.strip(), tuple(part.strip() for part in options.split(";") if part.strip())))
    return columns


def parse_modes(text: str) -> list[str]:
    """The modes of a list.

    Raises:
        ConfigError: an empty list or an unknown mode.
    """
    modes = split_list("--modes", text)
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"The mode {mode!r} is not known.", f"Known: {', '.join(MODES)}.")
    return modes


def parse_thumbnails(text: str) -> tuple[int, int]:
    """Frames and side of `16x96`.

    Raises:
        ConfigError: another form, or a number out of range.
    """
    match = re.fullmatch(r"(\d{1,3})x(\d{1,4})", text.strip())
    if not match or not 1 <= int(match[1]) <= 120 or not 16 <= int(match[2]) <= 512:
        raise ConfigError(
            f"--thumbnails is {text!r}.", "Give frames x pixels like 16x96: 1 to 120 frames, 16 to 512 pixels."
        )
    return int(match[1]), int(match[2])


def read_prompts(name: str) -> list[str]:
    """The prompts of a set (`heldout`, `fronted`) or of a text file, one a line.

    Raises:
        ConfigError: an unreadable, empty or binary file.
        PromptError: a prompt that can't be used.
    """
    if name == "heldout":
        return [composition(*pair) for pair in HELD_OUT]
    if name == "fronted":
        return [composition(colour, thing) for colour, thing in HELD_OUT if thing in FRONTED]
    if not name.strip():
        raise ConfigError("--prompts is empty.", "Give heldout, fronted or a text file with a prompt a line.")
    prompts = []
    for number, line in enumerate(_read_lines(Path(name).expanduser()), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                prompts.append(clean_prompt(line))
            except PromptError as error:
                raise PromptError(f"{name}, line {number}: {error.message}", error.hint) from error
    if not prompts:
        raise ConfigError(f"{name} holds no prompt.", "Write a prompt a line; # begins a comment.")
    return list(dict.fromkeys(prompts))


def _read_lines(path: Path) -> list[str]:
    hint = "Give heldout, fronted or a text file with a prompt a line."
    try:
        if path.stat().st_size > _LONGEST_FILE:
            raise ConfigError(f"{path} has more than {_LONGEST_FILE:,} bytes.", hint)
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"The file of prompts {path} can't be read: {error.strerror}.", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text file in UTF-8.", hint) from error
    if "\0" in text:
        raise ConfigError(f"{path} is a binary file.", hint)
    return text.splitlines()


def weights_digest(teacher: str) -> str:
    """A digest of the embedded judge, and of the embedded teacher where that is the one: they decide a row too."""
    digest = hashlib.sha256()
    assets = Path(str(files("dreamkit_assets")))
    for folder in ("toyworld-judge", *(["toyworld-teacher"] if teacher == EMBEDDED else [])):
        for path in sorted((assets / folder).rglob("*.safetensors")):
            digest.update(path.relative_to(assets).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def shared_settings(options: CompareOptions) -> dict[str, Any]:
    """What all rows of a comparison have in common."""
    names = ("preset", "steps", "views", "options", "teacher")
    chosen = {name: plain(getattr(options, name)) for name in names}
    return chosen | {"weights": weights_digest(options.teacher), "dreamkit_version": __version__}


def plan(options: CompareOptions) -> list[Task]:
    """Every run of a comparison, checked; the first seed of all prompts comes first.

    Raises:
        DreamkitError: an unknown objective or option, an empty list, a number out of range.
    """
    for name in ("seeds", "jobs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}.", "It must be at least 1.")
    columns, modes = parse_columns(options.objectives), parse_modes(options.modes)
    prompts, (frames, size) = read_prompts(options.prompts), parse_thumbnails(options.thumbnails)
    weights = weights_digest(options.teacher)
    return [
        _task(options, column, mode, prompt, seed, weights, frames, size)
        for seed in range(options.seeds)
        for prompt in prompts
        for column in columns
        for mode in modes
    ]


def _task(
    options: CompareOptions, column: Column, mode: str, prompt: str, seed: int, weights: str, frames: int, size: int
) -> Task:
    made = GenerateOptions(
        prompt=prompt,
        preset=options.preset,
        objective=column.objective,
        teacher=options.teacher,
        steps=options.steps,
        views=options.views,
        seed=seed,
        device=options.device,
        options=(*options.options, *column.options, *MODES[mode]),
    )
    content = {
        "format_version": FORMAT_VERSION,
        "dreamkit_version": __version__,
        "weights": weights,
        "label": column.label,
        "mode": mode,
        "settings": plain(settings_for(made)),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Task(key, column.label, mode, made, Path(options.out).expanduser(), frames, size)


def labels(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Columns, modes and prompts of a plan, in their order."""
    return {
        "objectives": list(dict.fromkeys(task.label for task in tasks)),
        "modes": list(dict.fromkeys(task.mode for task in tasks)),
        "prompts": list(dict.fromkeys(task.identity["prompt"] for task in tasks)),
    }
