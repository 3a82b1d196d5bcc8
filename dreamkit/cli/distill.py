"""`dreamkit distill image|video`: make a student of few steps of a teacher.

Their options are the trainers' own dataclasses, so these commands load torch before they can show help.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import tyro

from dreamkit.checks import require_choice
from dreamkit.cli.output import print_rows
from dreamkit.cli.parsing import parse
from dreamkit.cli.teachers import reported


def run_image(arguments: Sequence[str]) -> int:
    """Train an image student of one step, or of a few, or continue its training in the same folder.

    Args:
        arguments: what follows `distill image`.

    Returns:
        The exit code.
    """
    from dreamkit.training.image_student import ImageStudentOptions, train_image_student

    options = parse(tyro.conf.UseAppendAction[ImageStudentOptions], "distill image", arguments)
    with reported(f"training the student ({options.objective})", options.steps) as (report, tell):
        folder = train_image_student(options, report, tell)
    print_rows({"student": folder})
    return 0


def run_video(arguments: Sequence[str]) -> int:
    """Train a streaming video student, or continue its training in the same folder.

    The objectives that learn from clips (teacher-forcing, diffusion-forcing, causal-consistency, and StreamDiT's
    buffer-flow-matching and segment-distillation) have options of their own; with `--system`, or any objective of
    `dreamkit objectives`, the student is matched to its teacher on what it makes itself.

    Args:
        arguments: what follows `distill video`.

    Returns:
        The exit code.
    """
    system, rest = _without_system(arguments)
    if system is not None or _asked_objective(rest) is not None:
        return _match_video(system, rest)
    from dreamkit.training.student import StudentOptions, train_student

    options = parse(StudentOptions, "distill video", arguments)
    with reported(f"training the student ({options.objective})", options.steps) as (report, tell):
        folder = train_student(options, report, tell)
    print_rows({"student": folder})
    return 0


def _match_video(system: str | None, arguments: Sequence[str]) -> int:
    from dreamkit.objectives import student_objective_names
    from dreamkit.training.student_losses import OBJECTIVES
    from dreamkit.training.video_matching import VideoMatchingOptions, train_video_matching
    from dreamkit.training.video_systems import VideoSystem, video_system

    chosen = VideoSystem("") if system is None else video_system(system)
    # What the system says comes first, so that what the user says wins.
    words = [f"--option={text}" for text in chosen.objective_options]
    for name, value in chosen.options.items():
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag}={value}")
    objective = _asked_objective(arguments) or chosen.objective
    require_choice("--objective", objective, (*OBJECTIVES, *student_objective_names()))
    command = "distill video" if system is None else f"distill video --system {system}"
    options = parse(
        tyro.conf.UseAppendAction[VideoMatchingOptions], command, [f"--objective={objective}", *words, *arguments]
    )
    with reported(f"training the student ({system or options.objective})", options.steps) as (report, tell):
        folder = train_video_matching(options, report, tell)
    print_rows({"student": folder})
    return 0


def _without_system(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of `--system`, and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--system")
    found, rest = parser.parse_known_args(list(arguments))
    return found.system, rest


def _asked_objective(arguments: Sequence[str]) -> str | None:
    """The value of `--objective` if it is none of those that learn from clips."""
    from dreamkit.training.student_losses import OBJECTIVES

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--objective")
    found = parser.parse_known_args(list(arguments))[0].objective
    return None if found in OBJECTIVES else found
