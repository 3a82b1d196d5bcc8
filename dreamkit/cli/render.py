"""`dreamkit render RUN`: the turntable film and the contact sheet of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Folder, RunFolder, parse
from dreamkit.runs import Run


@dataclass(frozen=True)
class Render:
    """Render a run's asset again: turntable.mp4 and contact_sheet.png in its renders/ folder."""

    run: RunFolder
    """The run folder, or "latest"."""
    out: Folder = "outputs"
    """Where "latest" looks."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `render`.

    Returns:
        The exit code.
    """
    command = parse(Render, "render", arguments)
    folder = Run.open(command.run, command.out).path
    from dreamkit.training.generate import render
    from dreamkit.training.progress import progress_display

    with progress_display() as progress:
        renders = render(str(folder), [progress])
    paths = {name: str(path) for name, path in renders.items()}
    if command.json:
        print_json({"run": str(folder), "renders": paths})
    else:
        print_rows(paths)
    return 0
