"""How a command's options are read: a frozen dataclass whose field docstrings are the help, through tyro."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

import tyro

from dreamkit.checks import require_choice
from dreamkit.errors import ConfigError

Options = TypeVar("Options")

Prompt = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
RunFolder = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
_PRESET_DEFAULT = "(default: the preset's)"
PresetInteger = Annotated[
    int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_PRESET_DEFAULT)
]  # an integer that the preset gives when the user doesn't
PresetNumber = Annotated[float | None, tyro.conf.arg(metavar="F", help_behavior_hint=_PRESET_DEFAULT)]
Integer = Annotated[int, tyro.conf.arg(metavar="N")]
Folder = Annotated[str, tyro.conf.arg(metavar="DIR")]
Text = Annotated[str, tyro.conf.arg(metavar="TEXT")]
Setting = Annotated[str, tyro.conf.arg(metavar="NAME=VALUE")]
TeacherName = Annotated[str, tyro.conf.arg(metavar="toyworld|PATH|HUB_ID")]
Device = Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda")]


def parse(options: type[Options], command: str, arguments: Sequence[str]) -> Options:
    """Read `arguments` into an instance of `options`; text stays literal, nothing is interpolated.

    Args:
        options: a dataclass.
        command: the command's name, for the help.
        arguments: what follows the command's name.

    Raises:
        SystemExit: code 0 after --help, 2 after arguments that can't be read (explained on stderr).
    """
    return tyro.cli(
        options,
        prog=f"dreamkit {command}",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def require_device(device: str) -> None:
    """Check the form of a device's name; whether the machine has it is found out when it is used.

    Raises:
        ConfigError: it is none of auto, cpu, cuda, cuda:0, cuda:1, ...
    """
    if not re.fullmatch(r"cuda:\d{1,3}", device):
        require_choice("--device", device, ("auto", "cpu", "cuda"))


def require_folder_name(option: str, folder: str) -> None:
    """Check that a folder was given at all.

    Raises:
        ConfigError: an empty name.
    """
    if not folder.strip():
        raise ConfigError(f"{option} is empty.", "Give the name of a folder.")
