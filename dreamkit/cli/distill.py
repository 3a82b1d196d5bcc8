"""`dreamkit distill video`: make a causal student of few steps of a video teacher.

Its options are the trainer's own dataclass, so this command loads torch before it can show help.
"""

from __future__ import annotations

from collections.abc import Sequence

from dreamkit.cli.output import print_rows
from dreamkit.cli.parsing import parse
from dreamkit.cli.teachers import reported


def run_video(arguments: Sequence[str]) -> int:
    """Train a causal video student by one objective, or continue its training in the same folder.

    Args:
        arguments: what follows `distill video`.

    Returns:
        The exit code.
    """
    from dreamkit.training.student import StudentOptions, train_student

    options = parse(StudentOptions, "distill video", arguments)
    with reported(f"training the student ({options.objective})", options.steps) as (report, tell):
        folder = train_student(options, report, tell)
    print_rows({"student": folder})
    return 0
