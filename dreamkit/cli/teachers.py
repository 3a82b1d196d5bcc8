"""`dreamkit teachers train image|judge`: train the embedded models anew.

Their options are the trainers' own dataclasses, so these two commands load torch before they can show help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dreamkit.cli.output import print_rows
from dreamkit.cli.parsing import parse

Report = Callable[[int, dict[str, float]], None]
Tell = Callable[[str], None]


@contextmanager
def _reported(stage: str, steps: int) -> Iterator[tuple[Report, Tell]]:
    """Give a trainer's `report(step, metrics)` and `tell(text)`, shown as progress."""
    from dreamkit.training.progress import progress_display

    with progress_display() as progress:
        progress.on_stage(stage, steps)
        yield (
            lambda step, metrics: progress.on_step(step, steps, metrics),
            lambda text: progress.on_message("info", text),
        )


def train_image(arguments: Sequence[str]) -> int:
    """Train the embedded text-to-image teacher on the toy world, or continue its training in the same folder.

    Args:
        arguments: what follows `teachers train image`.

    Returns:
        The exit code.
    """
    from dreamkit.training.image_teacher import ImageTeacherOptions, train_image_teacher

    options = parse(ImageTeacherOptions, "teachers train image", arguments)
    with _reported("training the image teacher", options.steps) as (report, tell):
        folder = train_image_teacher(options, report, tell)
    print_rows({"teacher": folder})
    return 0


def train_judge(arguments: Sequence[str]) -> int:
    """Train the judge that scores assets, and measure it on renders it has not seen.

    Args:
        arguments: what follows `teachers train judge`.

    Returns:
        The exit code.
    """
    from dreamkit.training.judge import JudgeOptions, train_judge

    options = parse(JudgeOptions, "teachers train judge", arguments)
    with _reported("training the judge", options.steps) as (report, _):
        folder, accuracies = train_judge(options, report)
    print_rows({"judge": folder, "accuracy": accuracies})
    return 0
