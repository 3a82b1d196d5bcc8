"""`dreamkit resume RUN`: continue an interrupted run from its newest good checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreamkit.cli.fit import print_fit
from dreamkit.cli.generate import print_result, run_job
from dreamkit.cli.parsing import Folder, RunFolder, parse
from dreamkit.runs import Run


@dataclass(frozen=True)
class Resume:
    """Continue an interrupted run from its newest good checkpoint, as if it had never stopped."""

    run: RunFolder
    """The run folder, or "latest"."""
    out: Folder = "outputs"
    """Where "latest" looks."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `resume`.

    Returns:
        The exit code.
    """
    command = parse(Resume, "resume", arguments)
    found = Run.open(command.run, command.out)
    folder = str(found.path)
    from dreamkit.training.fit_settings import is_fit

    if is_fit(found.config):
        from dreamkit.training.fit_run import resume_fit

        print_fit(run_job(lambda callbacks: resume_fit(folder, callbacks)), command.json)
        return 0
    from dreamkit.training.generate import resume

    print_result(run_job(lambda callbacks: resume(folder, callbacks)), command.json)
    return 0
