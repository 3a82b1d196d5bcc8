"""`dreamkit generate PROMPT`: a sentence in, a 3D asset out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import (
    Device,
    Folder,
    Integer,
    PresetInteger,
    PresetNumber,
    Prompt,
    Setting,
    TeacherName,
    Text,
    parse,
    require_device,
    require_folder_name,
)
from dreamkit.prompts import clean_prompt
from dreamkit.runs import RunInterrupted
from dreamkit.training.callbacks import Callback

if TYPE_CHECKING:
    from dreamkit.cli.edit import Edit
    from dreamkit.training.generate import GenerateResult

Result = TypeVar("Result")
PRESETS = ("draft", "standard", "high")
SEED_LIMIT = 2**63 - 1


@dataclass(frozen=True)
class Generate:
    """Turn a sentence into a 3D asset: a run folder with renders, a splat file and a mesh."""

    prompt: Prompt
    """What to make, in words. Taken literally; quote it."""
    preset: Annotated[str, tyro.conf.arg(metavar="draft|standard|high")] = "draft"
    """Quality against time."""
    objective: Annotated[str, tyro.conf.arg(metavar="NAME")] = "sds"
    """How the teacher's opinion becomes a gradient."""
    scene: Annotated[str, tyro.conf.arg(metavar="gaussians|nerf|sdf|mesh|latent-nerf")] = "gaussians"
    """What the asset is made of while it is optimised."""
    stages: Annotated[str, tyro.conf.arg(metavar="SCENE:OBJECTIVE,...")] = ""
    """Several in a row, each from the scene of the one before, e.g. nerf:sds,mesh:vsd or gaussians:sds,mesh:sds:100
    (a third part is the steps); replaces --scene and --objective."""
    teacher: TeacherName = "toyworld"
    """The diffusion model to distil: the embedded one, a folder in diffusers layout, or a hub id."""
    negative: Text = ""
    """What to stay away from, in words."""
    guidance: PresetNumber = None
    """Classifier-free guidance s in E(n) + s (E(y) - E(n)), >= 0; 1 is no guidance."""
    steps: PresetInteger = None
    """Optimisation steps, >= 1."""
    views: PresetInteger = None
    """Cameras in each step, >= 1."""
    resolution: PresetInteger = None
    """Side of the rendered images in pixels, 16 to 2048."""
    pictures: Annotated[str, tyro.conf.arg(metavar="DIR|FILE")] = ""
    """What it looks like: a few posed pictures (a folder that `dreamkit fit` would take), or a single one, cut out of
    its background (a PNG with transparency). The objective imagines the rest; csm is also shown the
    single one, and a teacher that reads pictures takes it for its prompt."""
    pictures_from: Annotated[tuple[float, float], tyro.conf.arg(metavar="AZIMUTH ELEVATION")] = (0.0, 0.0)
    """Where a single picture was taken from, degrees: 0 0 is straight in front, 90 0 its left side."""
    seed: Integer = 0
    """Seed of everything random, >= 0; the same seed gives the same bytes on a CPU."""
    out: Folder = "outputs"
    """Where run folders go."""
    option: tyro.conf.UseAppendAction[tuple[Setting, ...]] = ()
    """Change an option of the objective or the run, e.g. lambda=0.3, timesteps=uniform, critic.rank=16, perp_neg=true;
    may be given several times."""
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
        require_number("--pictures-from (elevation)", self.pictures_from[1], -90, 90)
        clean_prompt(self.negative, allow_empty=True)
        from dreamkit.training.settings import SCENES

        require_choice("--scene", self.scene, SCENES)


def check_job(job: Generate | Edit) -> None:
    """Check what `generate` and `edit` are both told.

    Raises:
        ConfigError: an option out of range or unknown.
        PromptError: a prompt that can't be used.
    """
    require_choice("--preset", job.preset, PRESETS)
    require_number("--guidance", job.guidance, 0)
    require_integer("--steps", job.steps, 1)
    require_integer("--views", job.views, 1)
    require_integer("--resolution", job.resolution, 16, 2048)
    require_integer("--seed", job.seed, 0, SEED_LIMIT)
    require_device(job.device)
    require_folder_name("--out", job.out)
    clean_prompt(job.prompt)
    from dreamkit.objectives import objective_names

    require_choice("--objective", job.objective, objective_names())


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `generate`.

    Returns:
        The exit code.
    """
    command = parse(Generate, "generate", arguments)
    command.check()
    from dreamkit.training.generate import GenerateOptions, generate

    fields = asdict(command)
    as_json = fields.pop("json")
    options = GenerateOptions(options=fields.pop("option"), **fields)
    print_result(run_job(lambda callbacks: generate(options, callbacks)), as_json)
    return 0


class RunNote(Callback):
    """Remembers the run folder, so that an interruption at any moment can say how to go on."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def on_run(self, path: Path) -> None:
        """Note the folder."""
        self.path = path


def run_job(job: Callable[[Sequence[Callback]], Result]) -> Result:
    """Run a job with a progress display.

    Args:
        job: takes the callbacks.

    Raises:
        RunInterrupted: it was interrupted when its run folder was there.
    """
    from dreamkit.training.progress import progress_display

    note = RunNote()
    try:
        with progress_display() as progress:
            return job([progress, note])
    except RunInterrupted:
        raise
    except KeyboardInterrupt:
        if note.path is None:
            raise
        raise RunInterrupted(note.path) from None


def print_result(result: GenerateResult, as_json: bool) -> None:
    """Print what a finished job made: one JSON object, or lines for people.

    Args:
        result: what `generate` or `resume` returned.
        as_json: one JSON object.
    """
    content: dict[str, Any] = {
        "run": str(result.run),
        "exports": {name: str(path) for name, path in result.exports.items()},
        "seconds": round(result.seconds, 3),
        "steps": result.steps,
        "peak_rss_mb": round(result.peak_rss_mb, 1),
        "scores": result.scores,
        "teacher_calls": result.teacher_calls,
        "warnings": list(result.warnings),
    }
    if as_json:
        print_json(content)
        return
    rows: dict[str, Any] = {
        "run": content["run"],
        "time": f"{result.seconds:.1f} s, {result.steps} steps, {result.peak_rss_mb:.0f} MB",
        "exports": content["exports"],
    }
    if result.scores:
        rows["scores"] = result.scores
    print_rows(rows)
