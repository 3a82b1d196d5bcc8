"""`dreamkit objectives [NAME]`: the methods that are there, and the options of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from dreamkit.checks import require_choice
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import parse


@dataclass(frozen=True)
class Objectives:
    """List the score-distillation objectives, or one with its formula and options."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[NAME]")] = ""
    """Which one to explain; all are listed without it."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `objectives`.

    Returns:
        The exit code.
    """
    command = parse(Objectives, "objectives", arguments)
    from dreamkit.objectives import objective_class, objective_names
    from dreamkit.objectives.describe import describe
    from dreamkit.training.presets import tuned_options

    names = objective_names()
    if command.name:
        require_choice("The objective", command.name, names)
    told = {
        name: describe(objective_class(name)) | {"preset": list(tuned_options(name))}
        for name in names
        if command.name in ("", name)
    }
    if command.json:
        print_json({"objectives": told})
    elif command.name:
        _print_one(command.name, told[command.name])
    else:
        print_rows({name: about["title"] for name, about in told.items()})
    return 0


def _print_one(name: str, about: dict[str, Any]) -> None:
    """Formula, options with defaults, and how to use them."""
    print(about["text"] + "\n")
    width = max(len(option) for option in about["options"])
    for option, (default, text) in about["options"].items():
        print(f"  {option:<{width}}  {text} (default: {default})")
    if about["preset"]:
        print("\nWith the embedded teacher the presets set:")
        print("\n".join(f"  {option}" for option in about["preset"]))
    print(f'\ndreamkit generate "a red mug" --objective {name} --option NAME=VALUE')
