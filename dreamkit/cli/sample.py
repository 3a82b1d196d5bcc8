"""`dreamkit sample PROMPT`: what the teacher itself imagines, in 2D."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from dreamkit.checks import require_integer, require_number
from dreamkit.cli.generate import SEED_LIMIT
from dreamkit.cli.output import print_json, print_warning
from dreamkit.cli.parsing import (
    Device,
    Folder,
    Integer,
    Prompt,
    TeacherName,
    Text,
    parse,
    require_device,
    require_folder_name,
)
from dreamkit.prompts import clean_prompt

STEPS, GUIDANCE = 50, 4.0
"""Of a teacher that says nothing about it."""


@dataclass(frozen=True)
class Sample:
    """Draw 2D samples from the teacher into one PNG: what it knows of a prompt, before any 3D."""

    prompt: Prompt
    """What to draw, in words. Taken literally; quote it."""
    teacher: TeacherName = "toyworld"
    """The diffusion model: the embedded one, a folder in diffusers layout, or a hub id."""
    count: Integer = 16
    """How many samples, 1 to 256."""
    steps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: 50, a student's own)")] = None
    """DDIM steps, 1 to 1000; of a student, its own kind of steps."""
    guidance: Annotated[
        float | None, tyro.conf.arg(metavar="F", help_behavior_hint="(default: 4, a student's own)")
    ] = None
    """Classifier-free guidance s in E(n) + s (E(y) - E(n)), >= 0; 1 is no guidance."""
    negative: Text = ""
    """What to stay away from, in words. A student without guidance subtracts it in its cross-attention."""
    seed: Integer = 0
    """Seed of the noise, >= 0."""
    out: Folder = "outputs"
    """Where the PNG goes."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check every option before anything heavy is loaded.

        Raises:
            ConfigError: an option out of range or unknown.
            PromptError: a prompt that can't be used.
        """
        require_integer("--count", self.count, 1, 256)
        require_integer("--steps", self.steps, 1, 1000)
        require_number("--guidance", self.guidance, 0)
        require_integer("--seed", self.seed, 0, SEED_LIMIT)
        require_device(self.device)
        require_folder_name("--out", self.out)
        clean_prompt(self.prompt)
        clean_prompt(self.negative, allow_empty=True)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `sample`.

    Returns:
        The exit code.
    """
    command = parse(Sample, "sample", arguments)
    command.check()
    from dreamkit.training.generate import sample

    steps, guidance = _sampling(command)
    path, warnings = sample(
        prompt=command.prompt,
        teacher=command.teacher,
        count=command.count,
        steps=steps,
        guidance=guidance,
        seed=command.seed,
        device=command.device,
        out=command.out,
        negative=command.negative,
    )
    for warning in warnings:
        print_warning(warning)
    if command.json:
        print_json({"image": str(path), "warnings": warnings})
    else:
        print(path)
    return 0


def _sampling(command: Sample) -> tuple[int, float]:
    """Steps and guidance: as asked for; else as a student says, which is told; else the usual ones."""
    if command.steps is not None and command.guidance is not None:
        return command.steps, command.guidance
    from dreamkit.diffusion.loading import student_config

    student = student_config(command.teacher, command.device)
    usual = (STEPS, GUIDANCE) if student is None else (student.steps, student.guidance)
    steps = usual[0] if command.steps is None else command.steps
    guidance = usual[1] if command.guidance is None else command.guidance
    if student is not None:
        print(f"{command.teacher} is a student: steps {steps}, guidance {guidance:g}", file=sys.stderr)
    return steps, guidance
