"""What a comparison of video students measures: the columns of its tables, in their order, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STREAM, TEACHER, SPEED = "stream", "teacher", "speed"
"""Kinds of rows: a student's streams of a prompt, a teacher's clip of it, a student's speed."""

PART = 100
"""Frames of the parts of a stream whose scores are told apart."""
MARKS = (100, 1_000, 10_000)
"""Lengths, in frames, at which a stream is looked at."""
MOVES = {
    "orbit": ("orbit-left", "orbit-right"),
    "dolly": ("dolly-in", "dolly-out"),
    "pan": ("pan-left", "pan-right"),
}
"""Moves of the camera that are asked for, and their two ways."""


@dataclass(frozen=True)
class Measure:
    """A column.

    Args:
        name: in rows and files.
        title: for readers.
        group: heading of the table it is in.
        about: what it is, "" where a column before it says so.
        better: `high`, `low`, or nothing where neither is.
        digits: after the point.
    """

    name: str
    title: str
    group: str
    about: str = ""
    better: Literal["high", "low", ""] = ""
    digits: int = 2


_PLACES = {
    "first": "frames 1 to 100",
    "1000": "901 to 1,000",
    "10000": "9,901 to 10,000",
    "last": "the last 100",
}
"""Suffix of a column -> which frames of a stream it is about."""
_QUALITY = {
    "prompt": "share of frames whose likeliest composition is the prompt's",
    "object": "share of frames that show its object, whatever the colour",
    "colour": "share of frames that show its colour, whatever the object",
    "motion": "share of clips of 15 frames whose likeliest motion is the prompt's",
}


def _quality() -> list[Measure]:
    return [
        Measure(f"{name}_{place}", f"{name}, {frames}", "Quality", about if place == "first" else "", "high")
        for name, about in _QUALITY.items()
        for place, frames in _PLACES.items()
    ]


def _control() -> list[Measure]:
    share = "0 is obedience, 1 what comes of no motion at all"
    first = f"error of the camera's motion as a share of the asked motion: {share}"
    cameras = [
        Measure(f"camera_{move}", f"camera: {move}", "Control", first if move == "orbit" else "", "low")
        for move in MOVES
    ]
    track = f"how far points of an object that slides end from their asked tracks, as a share of the way: {share}"
    return [*cameras, Measure("track", "point tracks", "Control", track, "low")]


STREAM_MEASURES: tuple[Measure, ...] = (
    *_quality(),
    Measure("empty", "empty frames", "Quality", "share of frames that show nothing", "low"),
    Measure("motion_magnitude", "motion", "Motion", "mean length of the optical flow, pixels a frame", digits=3),
    Measure(
        "flicker", "flicker", "Motion", "what changes from frame to frame and is no motion, in [0, 1]", "low", digits=4
    ),
    Measure("sharpness", "sharpness", "Motion", "gradient energy of the luminance", digits=4),
    Measure(
        "drift_100", "drift at 100", "Motion",
        "how the 40 frames before there differ from frames 21 to 60: the mean of the differences of colour statistics "
        "and of sharpness and of the loss of accuracy, in [0, 1]", "low", 3,
    ),
    Measure("drift_1000", "drift at 1,000", "Motion", "", "low", 3),
    Measure("drift_10000", "drift at 10,000", "Motion", "", "low", 3),
    Measure("drift_last", "drift at the end", "Motion", "", "low", 3),
    *_control(),
    Measure("loop_rms", "loop: difference", "Loop", "RMS difference of frames before the camera orbits by 60° and "
            "after it has come back", "low", 3),
    Measure("loop_far_rms", "loop: far apart", "Loop", "the same between the two ends of its way", digits=3),
    Measure("loop", "loop: share", "Loop", "the first as a share of the second: 0 is a closed loop", "low"),
    Measure("loop_psnr", "loop: PSNR", "Loop", "-20 log10 of the first, dB", "high", 1),
    Measure("switch_1s", "after 1 s", "Prompt switch", "share of the frames in the half second from there on that show "
            "the new prompt", "high"),
    Measure("switch_3s", "after 3 s", "Prompt switch", "", "high"),
    Measure("switch_held", "arrived", "Prompt switch", "share of switches after which three frames in a row show the "
            "new prompt, within 3.5 s", "high"),
    Measure("switch_frames", "frames until then", "Prompt switch", "of those that arrived, frames until the first of "
            "the three", "low", 1),
)  # fmt: skip
"""Of a student's streams of a prompt."""

SPEED_MEASURES: tuple[Measure, ...] = (
    Measure("denoise_fps", "FPS, denoising", "Speed", "of the denoiser alone, without the first chunk", "high", 1),
    Measure("end_to_end_fps", "FPS, end to end", "Speed", "of frames that are handed over", "high", 1),
    Measure("first_frame_s", "first frame, s", "Speed", "from opening the stream to its first frame", "low"),
    Measure("chunk_ms_first", "chunk, ms, first", "Speed", "median over the first ten chunks with a full window", "low",
            1),
    Measure("chunk_ms_last", "chunk, ms, last", "Speed", "median over the last ten", "low", 1),
    Measure("cache_mb", "cache, MB", "Speed", "memory of the attention cache", "low", 1),
    Measure("peak_rss_mb", "peak memory, MB", "Speed", "resident memory of a process that streams and nothing else",
            "low", 0),
)  # fmt: skip
"""Of a student alone in a process."""

MEASURES: tuple[Measure, ...] = (*STREAM_MEASURES, *SPEED_MEASURES)
"""All."""

TEACHER_MEASURES = {
    "prompt": "prompt_first",
    "object": "object_first",
    "colour": "colour_first",
    "motion": "motion_first",
    "empty": "empty",
    "motion_magnitude": "motion_magnitude",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
"""What `VideoScorer` says of a teacher's clip -> column."""
RATIOS = {
    **{f"{name}_{place}": f"{name}_first" for name in _QUALITY for place in ("first", "last")},
    "motion_magnitude": "motion_magnitude",
    "flicker": "flicker",
    "sharpness": "sharpness",
}
"""Columns that are also given as a share of a teacher's column."""


def groups(measures: tuple[Measure, ...] = MEASURES) -> dict[str, list[Measure]]:
    """Measures by their heading, both in their order."""
    found: dict[str, list[Measure]] = {}
    for measure in measures:
        found.setdefault(measure.group, []).append(measure)
    return found
