"""`dreamkit edit RUN|FILE PROMPT`: a finished scene, changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from dreamkit.checks import require_number
from dreamkit.cli.generate import check_job, print_result, run_job
from dreamkit.cli.parsing import (
    Device,
    Folder,
    Integer,
    PresetInteger,
    PresetNumber,
    Prompt,
    Setting,
    Text,
    parse,
)


@dataclass(frozen=True)
class Edit:
    """Change a finished scene to another prompt: a run folder of its own, and what it starts from stays as it is."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FILE")]
    """A run folder, "latest", or a .ply, .compressed.ply, .splat, .glb or .obj that was made elsewhere (the result then
    lies in the unit ball about the origin, whatever the file's place and size)."""
    prompt: Prompt
    """What it shall become, in words: all of it, not only the change ("a blue mug", not "make it blue")."""
    source_prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: the run's)")] = (
        None
    )
    """What it is now, in words. A file has none unless you give one."""
    region: Text = ""
    """Where it may change, everything outside stays: box:X0,Y0,Z0,X1,Y1,Z1, ball:X,Y,Z,R (world units: the asset is
    about 2 wide, y is up, its front looks to +z), or PICTURE@AZIMUTH,ELEVATION, white where it may change, painted over
    a render from there."""
    shape_weight: PresetNumber = None
    """How strongly silhouettes and depths are held, >= 0; 0 leaves the shape free (for "a duck" from "a mug")."""
    objective: Annotated[str, tyro.conf.arg(metavar="NAME")] = "dds"
    """How the teacher's opinion becomes a gradient. dds subtracts what it would say of the scene as it is."""
    preset: Annotated[str, tyro.conf.arg(metavar="draft|standard|high")] = "draft"
    """Quality against time."""
    teacher: Annotated[
        str | None, tyro.conf.arg(metavar="toyworld|PATH|HUB_ID", help_behavior_hint="(default: the run's)")
    ] = None
    """The diffusion model: the embedded one, a folder in diffusers layout, or a hub id."""
    guidance: PresetNumber = None
    """Classifier-free guidance s in E(n) + s (E(y) - E(n)), >= 0; 1 is no guidance."""
    steps: PresetInteger = None
    """Optimisation steps, >= 1."""
    views: PresetInteger = None
    """Cameras in each step, >= 1."""
    resolution: PresetInteger = None
    """Side of the rendered images in pixels, 16 to 2048."""
    seed: Integer = 0
    """Seed of everything random, >= 0; the same seed gives the same bytes on a CPU."""
    out: Folder = "outputs"
    """Where run folders go, and where "latest" looks."""
    option: tyro.conf.UseAppendAction[tuple[Setting, ...]] = ()
    """Change an option of the objective or the run, e.g. edit.keep_weight=3 or timesteps=uniform; may be given several
    times."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check every option, the cheap ones before anything heavy is loaded.

        Raises:
            ConfigError: an option out of range or unknown.
            PromptError: a prompt that can't be used.
        """
        check_job(self)
        require_number("--shape-weight", self.shape_weight, 0)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `edit`.

    Returns:
        The exit code.
    """
    command = parse(Edit, "edit", arguments)
    command.check()
    from dreamkit.training.edit import EditOptions, edit

    fields = asdict(command)
    as_json = fields.pop("json")
    options = EditOptions(options=fields.pop("option"), **fields)
    print_result(run_job(lambda callbacks: edit(options, callbacks)), as_json)
    return 0
