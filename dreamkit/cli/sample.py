"""`dreamkit sample PROMPT`: what the teacher itself imagines, in 2D."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Sample:
    """Draw 2D samples from the teacher into one PNG: what it knows of a prompt, before any 3D."""

    prompt: Prompt
    """What to draw, in words. Taken literally; quote it."""
    teacher: TeacherName = "toyworld"
    """The diffusion model: the embedded one, a folder in diffusers layout, or a hub id."""
    count: Integer = 16
    """How many samples, 1 to 256."""
    steps: Integer = 50
    """DDIM steps, 1 to 1000."""
    guidance: Annotated[float, tyro.conf.arg(metavar="F")] = 4.0
    """Classifier-free guidance s in E(n) + s (E(y) - E(n)), >= 0; 1 is no guidance."""
    negative: Text = ""
    """What to stay away from, in words."""
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

    path, warnings = sample(
        prompt=command.prompt,
        teacher=command.teacher,
        count=command.count,
        steps=command.steps,
        guidance=command.guidance,
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
