"""A video teacher's clips and a student's streams under the video judge, on held-out compositions: prints JSON.

`python tests/benchmarks/bench_video.py [--teacher DIR] [--student DIR] [--prompts N] [--frames 1000] [--steps 50]`

Prompts are held-out compositions of colour and object, each with a motion in turn. Scores are those of `VideoScorer`;
those of a stream are given for its first hundred frames, for its last hundred and for the whole of it. `truth` is the
judge's reading of rendered clips of the same scripts: no model can be expected to score higher.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from dreamkit_kernels.bench import machine
from torch import Tensor

from dreamkit.metrics.video_judge import VideoJudge, load_video_judge
from dreamkit.metrics.video_stream import VideoScorer, score_video
from dreamkit.toyworld.captions import HELD_OUT, Thing, composition
from dreamkit.toyworld.motion import MOTION_OBJECTS, MotionConfig, MotionWorld, build_motion_cache
from dreamkit.video.pipeline import load_video_teacher
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import read_stream_config

_CLIP = 15
_PART = 100
_MOTIONS = (
    ("still", "", ""),
    ("spinning", "", " spinning"),
    ("bouncing", "", " bouncing"),
    ("sliding", "left", " sliding to the left"),
    ("circling", "", " moving in a circle"),
)
"""Motion, direction and the words for them."""

Case = tuple[str, str, tuple[str, str], str]
"""Colour, object, motion with its direction, prompt."""


def cases(count: int) -> list[Case]:
    """Held-out compositions of the moving world, each with a motion in turn."""
    pairs = [(colour, name) for colour, name in HELD_OUT if name in MOTION_OBJECTS]
    found: list[Case] = []
    for index in range(count):
        colour, name = pairs[index % len(pairs)]
        motion, way, words = _MOTIONS[index % len(_MOTIONS)]
        found.append((colour, name, (motion, way), composition(colour, name) + words))
    return found


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The means of what all rows have."""
    names = set.intersection(*(set(row) for row in rows))
    return {name: round(sum(row[name] for row in rows) / len(rows), 4) for name in sorted(names)}


def score_truth(judge: VideoJudge, asked: list[Case], meshes: Path) -> dict[str, float]:
    """What the judge reads off rendered clips."""
    config = MotionConfig(shapes=1, seed=31)
    world = MotionWorld(build_motion_cache(config, meshes), config, hold_out=False)
    rows = []
    for index, (colour, name, motion, prompt) in enumerate(asked):
        generator = torch.Generator().manual_seed(index)
        script = world.script([Thing(name, colour)], *motion, generator=generator)
        rows.append(score_video(world.render(script, torch.arange(_CLIP)), prompt, judge, motion=motion))
    return mean(rows)


def score_teacher(folder: Path, judge: VideoJudge, asked: list[Case], steps: int, guidance: float) -> dict[str, float]:
    """What it reads off a teacher's clips."""
    teacher = load_video_teacher(folder)
    rows = []
    for index, (_, _, motion, prompt) in enumerate(asked):
        latents = teacher.sample([prompt], _CLIP, steps, guidance, torch.Generator().manual_seed(index))
        rows.append(score_video(teacher.decode(latents)[0], prompt, judge, motion=motion))
    return mean(rows)


def parts(session: StreamSession) -> Iterator[Tensor]:
    """The frames of a stream, [15, 3, H, W] at a time."""
    held = []
    for frame in session:
        held.append(frame.pixels.permute(2, 0, 1).float() / 255)
        if len(held) == _CLIP:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def score_student(folder: Path, judge: VideoJudge, asked: list[Case], frames: int) -> dict[str, Any]:
    """What it reads off a student's streams."""
    student = load_video_teacher(folder)
    config = read_stream_config(folder) or StreamConfig()
    rows: dict[str, list[dict[str, float]]] = {"first": [], "last": [], "whole": []}
    for index, (_, _, motion, prompt) in enumerate(asked):
        scorers = {name: VideoScorer(judge, prompt, motion) for name in rows}
        done = 0
        with StreamSession(student, prompt, None, index, config, frames) as session:
            for some in parts(session):
                scorers["whole"].add(some)
                if done + len(some) <= _PART:
                    scorers["first"].add(some)
                if done >= frames - _PART:
                    scorers["last"].add(some)
                done += len(some)
        for name, scorer in scorers.items():
            rows[name].append(scorer.result())
    return {name: mean(found) for name, found in rows.items()}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, default=None)
    parser.add_argument("--student", type=Path, default=None)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--meshes", type=Path, default=None, help="where the world's meshes are kept")
    options = parser.parse_args()
    judge, asked = load_video_judge(), cases(options.prompts)
    report: dict[str, Any] = {"machine": machine(), "prompts": [case[3] for case in asked]}
    with TemporaryDirectory() as folder:
        report["truth"] = score_truth(judge, asked, options.meshes or Path(folder))
    if options.teacher is not None:
        report["teacher"] = score_teacher(options.teacher, judge, asked, options.steps, options.guidance)
    if options.student is not None:
        report["student"] = score_student(options.student, judge, asked, options.frames)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
