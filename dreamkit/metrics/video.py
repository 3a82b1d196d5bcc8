"""Scores of frames and clips: what they show, how much and how steadily it moves, how it obeys its controls.

All are pure functions of frames, flows and verdicts; `VideoScorer` gathers them over streams.
"""

import re

import torch
from torch import Tensor

from dreamkit.checks import require
from dreamkit.metrics.flow import consistent, follow, warp
from dreamkit.metrics.pictures import LUMA
from dreamkit.metrics.scores import Target
from dreamkit.metrics.video_judge import COMPOSITIONS, REACH, FrameVerdict, VideoJudge
from dreamkit.toyworld.captions import COLOURS
from dreamkit.toyworld.motion import MOTION_OBJECTS

_LISTED = r"\band\b|\bpass(?:es|ing)?\b"


def prompt_things(prompt: str) -> list[Target]:
    """The things that a prompt of the moving world names, each with its colour.

    Two are told apart by "and" or "passes". The list is empty where a name is missing or not one of `MOTION_OBJECTS`.
    """
    targets = [Target.from_prompt(part) for part in re.split(_LISTED, prompt.lower())]
    named = [target for target in targets if target.name is not None]
    return named if all(target.name in MOTION_OBJECTS for target in named) else []


def _told(likelihoods: Tensor, asked: set[int]) -> Tensor:
    """[F] whether the likeliest classes of [F, C] are the asked ones, in any order."""
    best = likelihoods.topk(len(asked), dim=1).indices.sort(dim=1).values
    return (best == torch.tensor(sorted(asked))).all(dim=1)


def frame_hits(verdict: FrameVerdict, prompt: str) -> dict[str, Tensor]:
    """Which frames show what a prompt asks for, as the judge sees them.

    With the K things that the prompt names, a frame has its objects right if they are the K likeliest, its colours if
    they are the K likeliest, and is right altogether if the K likeliest compositions are those asked for. Where the
    prompt leaves a colour open, the last is: objects and the named colours right. A frame of nothing is right in
    nothing.

    Args:
        verdict: of F frames.
        prompt: what was asked for.

    Returns:
        `prompt`, `object` and `colour`, [F] booleans each; without `colour` where the prompt names none, and empty
        where it names no object of the moving world.
    """
    things = prompt_things(prompt)
    if not things:
        return {}
    shown = ~verdict.empty
    names = {MOTION_OBJECTS.index(thing.name) for thing in things if thing.name is not None}
    colours = {list(COLOURS).index(thing.colour) for thing in things if thing.colour is not None}
    hits = {"object": shown & _told(verdict.objects, names)}
    if colours:
        hits["colour"] = shown & _told(verdict.colours, colours)
    if all(thing.colour is not None for thing in things):
        asked = {COMPOSITIONS.index((str(thing.colour), str(thing.name))) for thing in things}
        hits["prompt"] = shown & _told(verdict.compositions, asked)
    else:
        hits["prompt"] = hits["object"] & hits.get("colour", shown)
    return hits


def frame_accuracy(
    judge: VideoJudge,
    frames: Tensor,  # [F, 3, H, W] in [0, 1]
    prompt: str,
) -> dict[str, float]:
    """Shares of frames that show what the prompt asks for: the means of `frame_hits`, in [0, 1].

    This is R-precision (Park et al., "Benchmark for Compositional Text-to-Image Synthesis", 2021) a frame.

    Raises:
        ConfigError: frames of another shape, none, or not finite.
    """
    return {name: float(hits.float().mean()) for name, hits in frame_hits(judge.frames(frames), prompt).items()}


def motion_magnitude(
    flow: Tensor,  # [T, 2, H, W] pixels
) -> float:
    """Mean length of the flow over all pixels, in pixels a frame, >= 0; 0 for a picture that stands still.

    The "dynamic degree" of VBench (Huang et al., arXiv 2311.17982) without its threshold.
    """
    return float(flow.norm(dim=1).mean())


def flicker(
    frames: Tensor,  # [F, 3, H, W] in [0, 1]
    there: Tensor,  # [F - 1, 2, H, W] pixels, flow from each frame to the next
    back: Tensor,  # [F - 1, 2, H, W] pixels, flow from each next frame back
) -> float:
    """What changes from frame to frame and is no motion.

        mean |f_t(x) - f_{t+1}(x + u_t(x))|, the warping error

    over colours and over the pixels that flow there and back agree on (Lai et al., "Learning blind video temporal
    consistency", ECCV 2018).

    Returns:
        A number in [0, 1], 0 for a still picture. Resampling alone costs some thousandths where there is texture.
    """
    error = (frames[:-1] - warp(frames[1:], there)).abs().mean(dim=1, keepdim=True)
    agreed = consistent(there, back)
    return float((error * agreed).sum() / agreed.sum().clamp_min(1))


def sharpness(
    frames: Tensor,  # [F, 3, H, W] in [0, 1]
) -> Tensor:  # [F]
    """Gradient energy of the luma Y, the mean of (d_x Y)^2 + (d_y Y)^2 with forward differences a pixel apart.

    A number in [0, 2] a frame, 0 for a flat one (the Tenengrad measure of focus with the smallest differences).
    """
    luma = (frames * frames.new_tensor(LUMA)[:, None, None]).sum(dim=1)
    return luma.diff(dim=2).square().mean(dim=(1, 2)) + luma.diff(dim=1).square().mean(dim=(1, 2))


def colour_statistics(
    frames: Tensor,  # [F, 3, H, W] in [0, 1]
) -> Tensor:  # [F, 6]
    """Mean and standard deviation of red, green and blue over each frame, in [0, 1]."""
    flat = frames.flatten(2)
    return torch.cat([flat.mean(dim=2), flat.std(dim=2, correction=0)], dim=1)


def camera_error(
    seen: Tensor,  # [T, 3] how the judge sees the camera move
    asked: Tensor,  # [T, 3] how it was asked to
) -> tuple[float, float]:  # sum of errors, sum of what was asked for
    """How far a camera is from the asked motion: sum_t |W (v_t - a_t)| and sum_t |W a_t|, W = diag(1, 1, REACH).

    Their quotient is the error as a share of the asked motion: 0 is obedience, 1 what a still camera gets. W makes
    of a turn the way by which it shifts what the camera looks at, so that all is in world units.

    Args:
        seen: of `camera_motion`'s kind.
        asked: the same.
    """
    weights = torch.tensor([1.0, 1.0, REACH])
    return float(((seen - asked) * weights).norm(dim=1).sum()), float((asked * weights).norm(dim=1).sum())


def point_error(
    flow: Tensor,  # [T, 2, H, W] pixels, from each frame to the next
    tracks: Tensor,  # [T + 1, N, 2] where points were asked to be, x and y in [0, 1]
    visible: Tensor,  # [T + 1, N] whether they were to be seen
) -> tuple[float, float, int]:  # sum of errors, sum of what was asked for, how many
    """How far points that the flow carries along from the first frame end from their asked tracks, in pixels.

    A point counts in the frames t >= 1 in which it, as from the first frame on, is to be seen without a break: what was
    hidden is another's point in the flow.

    Returns:
        sum |p_t - a_t|, sum |a_t - a_0| and the number of (point, frame) that count. The first over the third is the
        mean error in pixels, the first over the second its share of the asked motion.

    Raises:
        ConfigError: shapes that do not fit.
    """
    fits = tracks.ndim == 3 and tracks.shape[::2] == (len(flow) + 1, 2) and visible.shape == tracks.shape[:2]
    require("The shape of the tracks", fits, tuple(tracks.shape), f"[{len(flow) + 1}, N, 2] and a boolean for each")
    size = flow.new_tensor([flow.shape[3], flow.shape[2]])
    counts = visible.int().cumprod(dim=0).bool()[1:]
    places = follow(flow, tracks[0])
    errors = ((places - tracks) * size).norm(dim=2)[1:][counts]
    asked = ((tracks - tracks[:1]) * size).norm(dim=2)[1:][counts]
    return float(errors.sum()), float(asked.sum()), int(counts.sum())
