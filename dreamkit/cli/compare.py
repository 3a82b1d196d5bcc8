"""`dreamkit compare`: objectives side by side on the same prompts, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.checks import require_choice, require_integer
from dreamkit.cli.output import format_value, print_error, print_json, print_rows
from dreamkit.cli.parsing import (
    Device,
    Folder,
    Integer,
    PresetInteger,
    Setting,
    TeacherName,
    parse,
    require_device,
    require_folder_name,
)
from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from dreamkit.training.compare import Comparison

PRESETS = ("draft", "standard", "high")
SHOWN = ("n", "errors", "r_precision", "janus", "janus_views", "saturation", "diversity", "seconds", "teacher_calls")


@dataclass(frozen=True)
class Compare:
    """Run objectives side by side: the same prompts and seeds for each, a row a run, and a report in HTML."""

    objectives: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = ""
    """Objectives separated by commas. One with options is a column of its own: 'esd:lambda=0.5;guidance=7.5' (in
    quotes: a shell ends a command at a semicolon)."""
    prompts: Annotated[str, tyro.conf.arg(metavar="heldout|fronted|FILE")] = "heldout"
    """The held-out compositions, those of them whose object has a front, or a text file with a prompt a line."""
    modes: Annotated[str, tyro.conf.arg(metavar="text,views,camera")] = "camera"
    """text: the teacher hears the same prompt for every view, where many-faced assets come from; views: the name of the
    view as well; camera: its pose too."""
    seeds: Integer = 1
    """Runs of each, with seeds 0, 1, ...; from two on the report tells how diverse they are."""
    preset: Annotated[str, tyro.conf.arg(metavar="draft|standard|high")] = "draft"
    """Quality against time."""
    steps: PresetInteger = None
    """Optimisation steps, >= 1."""
    views: PresetInteger = None
    """Cameras in each step, >= 1."""
    option: tyro.conf.UseAppendAction[tuple[Setting, ...]] = ()
    """Change an option of every run, e.g. resolution=32; may be given several times."""
    jobs: Integer = 1
    """Runs at once, each a process with its share of the cores."""
    out: Folder = "outputs/compare"
    """Where rows, runs and the report go; what is there already is not done again."""
    teacher: TeacherName = "toyworld"
    """The diffusion model to distil: the embedded one, a folder in diffusers layout, or a hub id."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    thumbnails: Annotated[str, tyro.conf.arg(metavar="FRAMESxPIXELS")] = "16x96"
    """Frames and side of the turntables in the report."""
    notes: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """A text for the top of the report: paragraphs, # headings, - lists."""
    report_only: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """Run nothing: write the report of a comparison again from its rows."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check every option that can be checked before anything heavy is loaded.

        Raises:
            ConfigError: an option out of range, missing or unknown.
        """
        if self.report_only:
            return
        if not self.objectives.strip():
            raise ConfigError("--objectives is empty.", "Give names separated by commas, like sds,csd.")
        require_choice("--preset", self.preset, PRESETS)
        require_integer("--seeds", self.seeds, 1)
        require_integer("--jobs", self.jobs, 1, 1024)
        require_integer("--steps", self.steps, 1)
        require_integer("--views", self.views, 1)
        require_device(self.device)
        require_folder_name("--out", self.out)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `compare`.

    Returns:
        The exit code: 2 when a run failed, 130 when the user stopped it.
    """
    command = parse(Compare, "compare", arguments)
    command.check()
    from dreamkit.training import compare as jobs
    from dreamkit.training.compare.progress import compare_display

    if command.report_only:
        return _print(jobs.rebuild(command.report_only, command.notes), command.json, rebuilt=True)
    chosen = {name: getattr(command, name) for name in jobs.CompareOptions.__dataclass_fields__ if name != "options"}
    options = jobs.CompareOptions(**chosen, options=command.option)
    try:
        with compare_display() as display:
            result = jobs.compare(options, display)
    except jobs.ComparisonInterrupted:
        hint = "Continue with the same command: what is done is kept."
        print_error(f"Interrupted; the rows so far are in {options.out}.", hint)
        if command.json:
            print_json({"error": "Interrupted.", "hint": hint})
        return 130
    return _print(result, command.json)


def _print(result: Comparison, as_json: bool, rebuilt: bool = False) -> int:
    """Print what came out; 2 where a run failed."""
    if as_json:
        print_json({"machine": result.machine, "rows": result.rows, "summary": result.summary})
    else:
        _print_table(result.summary)
        print_rows({"report": result.report})
    if not result.failed or rebuilt:
        return 0
    print_error(
        f"{result.failed} of {len(result.rows)} runs failed; {result.report} says why.",
        "The same command tries those again.",
    )
    return 2


def _print_table(summary: Sequence[Mapping[str, Any]]) -> None:
    """Print the means in columns."""
    lines = [("objective", "mode", *SHOWN)]
    lines += [(row["objective"], row["mode"], *(format_value(row[name]) for name in SHOWN)) for row in summary]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
