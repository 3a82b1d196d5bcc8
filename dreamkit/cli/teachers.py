"""`dreamkit teachers train image|judge|video|video-autoencoder|video-judge`: train the embedded models anew.

Their options are the trainers' own dataclasses, so these commands load torch before they can show help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dreamkit.cli.output import print_rows
from dreamkit.cli.parsing import parse

Report = Callable[[int, dict[str, float]], None]
Tell = Callable[[str], None]


@contextmanager
def reported(stage: str, steps: int) -> Iterator[tuple[Report, Tell]]:
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
    with reported("training the image teacher", options.steps) as (report, tell):
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
    with reported("training the judge", options.steps) as (report, _):
        folder, accuracies = train_judge(options, report)
    print_rows({"judge": folder, "accuracy": accuracies})
    return 0


def train_video_autoencoder(arguments: Sequence[str]) -> int:
    """Train the embedded video model's autoencoder on the moving toy world, or continue in the same folder.

    Args:
        arguments: what follows `teachers train video-autoencoder`.

    Returns:
        The exit code.
    """
    from dreamkit.training.video_autoencoder import VideoAutoencoderOptions, train_video_autoencoder

    options = parse(VideoAutoencoderOptions, "teachers train video-autoencoder", arguments)
    with reported("training the autoencoder", options.steps) as (report, tell):
        folder, psnr = train_video_autoencoder(options, report, tell)
    print_rows({"autoencoder": folder, "psnr": psnr})
    return 0


def train_video(arguments: Sequence[str]) -> int:
    """Train the embedded text-to-video teacher on the moving toy world, or continue its training in the same folder.

    Args:
        arguments: what follows `teachers train video`.

    Returns:
        The exit code.
    """
    from dreamkit.training.video_teacher import VideoTeacherOptions, train_video_teacher

    options = parse(VideoTeacherOptions, "teachers train video", arguments)
    with reported("training the video teacher", options.steps) as (report, tell):
        folder = train_video_teacher(options, report, tell)
    print_rows({"teacher": folder})
    return 0


def train_video_judge(arguments: Sequence[str]) -> int:
    """Train the judge that scores videos, or continue in the same folder, and measure it on shapes it has not seen.

    Args:
        arguments: what follows `teachers train video-judge`.

    Returns:
        The exit code.
    """
    from dreamkit.training.video_judge import VideoJudgeOptions, train_video_judge

    options = parse(VideoJudgeOptions, "teachers train video-judge", arguments)
    with reported("training the video judge", options.steps) as (report, tell):
        folder, accuracies = train_video_judge(options, report, tell)
    print_rows({"judge": folder, "accuracy": accuracies})
    return 0
