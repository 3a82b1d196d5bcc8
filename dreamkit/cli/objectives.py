"""`dreamkit objectives [NAME]`: the methods that are there, for a scene and for a student, and the options of one."""

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
    """List the objectives of a scene and of a student, or one with its formula and options."""

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
    from dreamkit.objectives import (
        objective_class,
        objective_names,
        student_objective_class,
        student_objective_names,
    )
    from dreamkit.objectives.describe import describe
    from dreamkit.training.presets import tuned_options

    if command.name:
        require_choice("The objective", command.name, [*objective_names(), *student_objective_names()])
    scenes = {
        name: describe(objective_class(name)) | {"preset": list(tuned_options(name))}
        for name in objective_names()
        if command.name in ("", name)
    }
    students = {
        name: describe(student_objective_class(name))
        for name in student_objective_names()
        if command.name in ("", name)
    }
    if command.json:
        print_json({"objectives": scenes, "student_objectives": students})
    elif command.name in scenes:
        _print_one(scenes[command.name])
        print(f'\ndreamkit generate "a red mug" --objective {command.name} --option NAME=VALUE')
    elif command.name in students:
        _print_one(students[command.name])
    else:
        print_rows({name: about["title"] for name, about in scenes.items()})
        print()
        print_rows({"Objectives of a student": {name: about["title"] for name, about in students.items()}})
    return 0


def _print_one(about: dict[str, Any]) -> None:
    """Formula, options with defaults, and what it needs or the presets set."""
    print(about["text"] + "\n")
    width = max(len(option) for option in about["options"])
    for option, (default, text) in about["options"].items():
        print(f"  {option:<{width}}  {text} (default: {default})")
    if about.get("preset"):
        print("\nWith the embedded teacher the presets set:")
        print("\n".join(f"  {option}" for option in about["preset"]))
    if "preset" not in about:
        print(f"\nBesides the teacher it needs: {', '.join(about['needs']) or 'nothing'}.")
