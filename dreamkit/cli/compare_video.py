"""`dreamkit compare-video`: video students side by side on the same prompts, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.checks import require_integer, require_number
from dreamkit.cli.output import format_value, print_error, print_json, print_rows
from dreamkit.cli.parsing import Device, Folder, Integer, parse, require_device, require_folder_name
from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from dreamkit.training.compare_video import VideoComparison

SHOWN = (
    *("prompt_first", "prompt_last", "motion_last", "motion_magnitude", "drift_last", "camera_orbit", "track", "loop"),
    *("switch_3s", "denoise_fps", "peak_rss_mb"),
)
"""Columns of the table that is printed."""
_LIMITS = {
    "frames": (1, 1_000_000),
    "seeds": (1, 10_000),
    "steps": (1, 1000),
    "speed_frames": (1, 100_000),
    "shown": (0, 100),
    "jobs": (1, 1024),
}


@dataclass(frozen=True)
class CompareVideo:
    """Stream video students side by side: the same prompts and seeds for each, a row a cell, and a report in HTML."""

    student: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=FOLDER")] = ()
    """A student and the name of its row; may be given several times. FOLDER is what `dreamkit distill video` made,
    embedded, or the name of random weights."""
    teacher: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """A teacher whose clips are the yardstick; none by default."""
    prompts: Annotated[str, tyro.conf.arg(metavar="N|FILE")] = "10"
    """How many held-out compositions, each with a motion in turn, or a text file with a prompt a line."""
    frames: Integer = 1000
    """Frames of every stream, >= 1; scores are told apart at 100, 1000 and 10000."""
    seeds: Integer = 1
    """Streams of each prompt, with seeds 0, 1, ..."""
    steps: Integer = 50
    """Steps of the teacher's clips, 1 to 1000."""
    guidance: Annotated[float, tyro.conf.arg(metavar="F")] = 4.0
    """Guidance scale of the teacher's clips, 0 to 100."""
    speed_frames: Integer = 120
    """Frames of the pass that measures each student's speed and memory, alone in a process."""
    shown: Integer = 3
    """Prompts whose clips the report shows."""
    jobs: Integer = 1
    """Cells at once, each a process with its share of the cores; speeds are measured one by one all the same."""
    out: Folder = "outputs/compare-video"
    """Where rows, clips and the report go; what is there already is not done again."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    report_only: Annotated[str, tyro.conf.arg(metavar="DIR")] = ""
    """Measure nothing: write the report of a comparison again from its rows."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check every option that can be checked before anything heavy is loaded.

        Raises:
            ConfigError: an option out of range or missing.
        """
        if self.report_only:
            return
        if not self.student:
            raise ConfigError("No student is given.", "Give --student NAME=FOLDER, several times to compare several.")
        for name, (low, high) in _LIMITS.items():
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), low, high)
        require_number("--guidance", self.guidance, 0, 100)
        require_device(self.device)
        require_folder_name("--out", self.out)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `compare-video`.

    Returns:
        The exit code: 2 when a cell failed, 130 when the user stopped it.
    """
    command = parse(CompareVideo, "compare-video", arguments)
    command.check()
    from dreamkit.training import compare_video as jobs
    from dreamkit.training.compare.progress import compare_display

    if command.report_only:
        return _print(jobs.rebuild(command.report_only), command.json, rebuilt=True)
    fields = (name for name in jobs.CompareVideoOptions.__dataclass_fields__ if name != "students")
    options = jobs.CompareVideoOptions(command.student, **{name: getattr(command, name) for name in fields})
    try:
        with compare_display(describe=jobs.describe) as display:
            result = jobs.compare_videos(options, display)
    except jobs.ComparisonInterrupted:
        hint = "Continue with the same command: what is done is kept."
        print_error(f"Interrupted; the rows so far are in {options.out}.", hint)
        if command.json:
            print_json({"error": "Interrupted.", "hint": hint})
        return 130
    return _print(result, command.json)


def _print(result: VideoComparison, as_json: bool, rebuilt: bool = False) -> int:
    """Print what came out; 2 where a cell failed."""
    if as_json:
        print_json({**result.content, "rows": result.rows})
    else:
        _print_table(result.content["summary"])
        print_rows({"claims": {claim["name"]: claim["verdict"] for claim in result.content["claims"]}})
        print_rows({"report": result.report})
    if not result.failed or rebuilt:
        return 0
    print_error(
        f"{result.failed} of {len(result.rows)} cells failed; {result.report} says why.",
        "The same command tries those again.",
    )
    return 2


def _print_table(summary: Sequence[Mapping[str, Any]]) -> None:
    """Print the means in columns."""
    shown = [name for name in SHOWN if any(name in row["measures"] for row in summary)]
    lines = [("student", "n", *shown)]
    for row in summary:
        means = (row["measures"].get(name, {}).get("mean") for name in shown)
        lines.append((row["student"], str(row["n"]), *(format_value(value) for value in means)))
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
