"""`dreamkit evaluate RUN`: what the embedded judge sees in the asset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreamkit.cli.output import print_json, print_rows
from dreamkit.cli.parsing import Folder, RunFolder, parse
from dreamkit.runs import Run


@dataclass(frozen=True)
class Evaluate:
    """Score a run's asset: does it look like its prompt from all round, and is its front in one place only."""

    run: RunFolder
    """The run folder, or "latest"."""
    out: Folder = "outputs"
    """Where "latest" looks."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `evaluate`.

    Returns:
        The exit code.
    """
    command = parse(Evaluate, "evaluate", arguments)
    folder = Run.open(command.run, command.out).path
    from dreamkit.training.generate import evaluate

    scores = evaluate(str(folder))
    if command.json:
        print_json({"run": str(folder), "scores": scores})
    else:
        print_rows(scores)
    return 0
