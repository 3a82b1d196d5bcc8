"""Scores of videos of any length, gathered frame by frame.

A stream is cut into blocks of 15 frames, the last of each being the first of the next; what a block of that length
needs is all that is kept, however the frames come in. Drift compares windows of 60 frames with the one that begins at
frame 60, when a stream has settled; ten numbers a window are kept of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamkit.checks import one_of, require, require_integer
from dreamkit.metrics.flow import optical_flow
from dreamkit.metrics.video import (
    camera_error,
    colour_statistics,
    flicker,
    frame_hits,
    motion_magnitude,
    point_error,
    sharpness,
)
from dreamkit.metrics.video_judge import (
    CLIP_FRAMES,
    FEWEST_FRAMES,
    MOTION_CLASSES,
    VideoJudge,
    camera_motion,
    check_frames,
)
from dreamkit.toyworld.motion import CAMERA_MOVES
from dreamkit.video.controls import Controls

_HITS = ("prompt", "object", "colour")
_DARKEST = 1e-12
_STILL = 1e-4
"""World units or pixels a frame below which no motion was asked for, and the error is no share of it."""


class Windows:
    """Means of per-frame numbers over windows of equal length.

    Args:
        size: numbers a frame.
        start: first frame of the first window.
        length: frames a window.

    Raises:
        ConfigError: a negative start or no length.
    """

    def __init__(self, size: int, start: int = 60, length: int = 60) -> None:
        require_integer("The start of the first window", start, 0)
        require_integer("The length of a window", length, 1)
        self.start, self.length = start, length
        self._skipped = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._count = 0
        self._means: list[Tensor] = []

    def add(
        self,
        values: Tensor,  # [F, size]
    ) -> None:
        """Count the next frames in."""
        skipped = min(self.start - self._skipped, len(values))
        self._skipped += skipped
        for row in values[skipped:].double():
            self._sum, self._count = self._sum + row, self._count + 1
            if self._count == self.length:
                self._means.append(self._sum / self._count)
                self._sum, self._count = torch.zeros_like(self._sum), 0

    @property
    def means(self) -> Tensor:
        """[W, size] of the windows that are full."""
        return torch.stack(self._means) if self._means else self._sum.new_zeros(0, len(self._sum))


@dataclass(frozen=True)
class Drift:
    """How W windows differ from the one before them all, a number in [0, 1] for each.

    Args:
        colour: [W] root mean square difference of the means and deviations of red, green and blue.
        sharpness: [W] 1 - min(a / b, b / a) of the gradient energies a and b.
        hits: [W] of `prompt`, `object` and `colour` accuracy, what has been lost, max(0, before - after).
    """

    colour: Tensor
    sharpness: Tensor
    hits: dict[str, Tensor]

    @classmethod
    def of(
        cls,
        means: Tensor,  # [1 + W, 10] colour statistics, sharpness, hits; NaN for what the prompt leaves open
    ) -> Drift:
        """The drift of windows from the first of them."""
        first, later = means[0], means[1:]
        colour = (later[:, :6] - first[:6]).square().mean(dim=1).sqrt()
        edges = torch.stack([later[:, 6], first[6].expand(len(later))]).clamp_min(_DARKEST)
        lost = {name: (first[7 + index] - later[:, 7 + index]).clamp_min(0) for index, name in enumerate(_HITS)}
        known = {name: values for name, values in lost.items() if not bool(values.isnan().any())}
        return cls(colour, 1 - edges.amin(dim=0) / edges.amax(dim=0), known)

    @property
    def total(self) -> Tensor:
        """[W] the mean of colour, sharpness and, where the prompt decides it, its accuracy."""
        parts = [self.colour, self.sharpness, *([self.hits["prompt"]] if "prompt" in self.hits else [])]
        return torch.stack(parts).mean(dim=0)

    def numbers(self) -> dict[str, float]:
        """The means over the windows: `drift` of the total, and of each part by its name."""
        parts = {"drift": self.total, "drift_colour": self.colour, "drift_sharpness": self.sharpness}
        parts |= {f"drift_{name}_accuracy": values for name, values in self.hits.items()}
        return {name: float(values.mean()) for name, values in parts.items()}


def _fitted(controls: Controls | None, frames: int) -> Controls:
    """Controls of so many frames, checked, on the CPU, with all booleans.

    Raises:
        ConfigError: those of several clips, of another number of frames, or not finite.
    """
    if controls is None or controls.shape is None:
        return Controls()
    require("The controls' [batch, frames]", controls.shape == (1, frames), controls.shape, f"(1, {frames})")
    controls = controls.check_values().to("cpu")
    if controls.tracks is None or controls.visible is not None:
        return controls
    return replace(controls, visible=torch.ones(controls.tracks.shape[:3], dtype=torch.bool))


def _joined(before: Controls, after: Controls) -> Controls:
    """Those of some frames and of the frames after them.

    Raises:
        ConfigError: the one holds what the other lacks, or other points.
    """
    parts: dict[str, Tensor] = {}
    for name in ("camera", "tracks", "visible"):
        one, other = getattr(before, name), getattr(after, name)
        same = (one is None) == (other is None) and (one is None or one.shape[2:] == other.shape[2:])
        require(f"The {name} asked of a stream", same, "not the same kind for all its frames", "the same throughout")
        if one is not None:
            parts[name] = torch.cat([one, other], dim=1)
    return Controls(**parts)


class VideoScorer:
    """Scores a stream as its frames come in; how they are cut into lots makes no difference.

    Args:
        judge: who says what frames and clips show.
        prompt: what was asked for.
        motion: asked for, as in `MOTION_CLASSES`; not scored if `None`.
        camera_move: asked for, one of `CAMERA_MOVES`; not scored if `None`.
        drift_start: frame at which the window begins that later ones are compared with.
        drift_length: frames of a window.

    Raises:
        ConfigError: an unknown motion or move, or a window without length.
    """

    def __init__(
        self,
        judge: VideoJudge,
        prompt: str,
        motion: tuple[str, str] | None = None,
        camera_move: str | None = None,
        drift_start: int = 60,
        drift_length: int = 60,
    ) -> None:
        if motion is not None:
            one_of("The motion", motion, MOTION_CLASSES)
        if camera_move is not None:
            one_of("The camera's move", camera_move, CAMERA_MOVES)
        self.judge, self.prompt = judge, prompt
        self.motion, self.camera_move = motion, camera_move
        self._sums: dict[str, tuple[float, float]] = {}
        self._windows = Windows(10, drift_start, drift_length)
        self._frames: Tensor | None = None
        self._controls = Controls()
        self._shared = 0  # whether the first frame that is kept has been counted with the block before

    def add(
        self,
        frames: Tensor,  # [F, 3, H, W] in [0, 1]
        controls: Controls | None = None,
    ) -> None:
        """Count the next frames in.

        Args:
            frames: at least 16 pixels high and wide, of one size throughout.
            controls: what these frames were asked to obey, of a batch of one. Their cameras may be relative to any
                pose that stays the same, in a world of the toy world's size.

        Raises:
            ConfigError: frames of another shape, none, or not finite; controls that do not fit them.
        """
        check_frames(frames)
        controls = _fitted(controls, len(frames))
        frames = frames.detach().float().cpu()
        if self._frames is not None:
            size = self._frames.shape[2:]
            require(
                "The size of the frames", frames.shape[2:] == size, tuple(frames.shape[2:]), f"{tuple(size)}, as before"
            )
            frames, controls = torch.cat([self._frames, frames]), _joined(self._controls, controls)
        first = 0
        while len(frames) - first >= CLIP_FRAMES:
            last = first + CLIP_FRAMES
            self._count(frames[first:last], controls.frames(first, last))
            first, self._shared = last - 1, 1
        self._frames, self._controls = frames[first:].clone(), controls.frames(first, len(frames))

    def result(self) -> dict[str, float]:
        """The scores of all frames so far; more may be added afterwards.

        Returns:
            `frames`, their number. Shares of frames, in [0, 1]: `prompt`, `object` and `colour` as in `frame_hits`,
            and `empty` ones. `sharpness`, and from two frames on `motion_magnitude` in pixels a frame and `flicker`.
            From eight on, shares of clips of 15 frames that show the asked `motion` and `camera_move`. With two full
            windows, `drift` and its parts, see `Drift`. `camera_error` in world units a frame and `point_error` in
            pixels, each also as `..._share` of the asked motion. What was not asked for or can't be told is left out.
        """
        whole = copy.copy(self)
        whole._sums, whole._windows = dict(self._sums), copy.deepcopy(self._windows)
        if self._frames is not None and len(self._frames) > self._shared:
            whole._count(self._frames, self._controls)
        means = {name: total / count for name, (total, count) in whole._sums.items() if count > 0}
        for name in ("camera_error", "point_error"):
            wanted = means.pop(f"{name}_asked", 0.0)
            if wanted > _STILL:
                means[f"{name}_share"] = means[name] / wanted
        means["frames"] = whole._sums["sharpness"][1] if whole._sums else 0.0
        drift = whole.drift()
        return means | (drift.numbers() if drift is not None else {})

    def drift(self) -> Drift | None:
        """The drift of the full windows, or `None` where there are fewer than two."""
        means = self._windows.means
        return Drift.of(means) if len(means) > 1 else None

    def _add(self, name: str, total: float, count: float) -> None:
        before = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (before[0] + total, before[1] + count)

    def _count(self, frames: Tensor, controls: Controls) -> None:
        """Count a block in, without its first frame where the block before had it."""
        self._count_frames(frames[self._shared :])
        steps = len(frames) - 1
        if steps:
            there, back = optical_flow(frames[:-1], frames[1:]), optical_flow(frames[1:], frames[:-1])
            self._add("motion_magnitude", steps * motion_magnitude(there), steps)
            self._add("flicker", steps * flicker(frames, there, back), steps)
            if controls.tracks is not None and controls.visible is not None:
                error, wanted, points = point_error(there, controls.tracks[0].float(), controls.visible[0])
                self._add("point_error", error, points)
                self._add("point_error_asked", wanted, points)
        if len(frames) >= FEWEST_FRAMES:
            self._count_clip(frames, controls.camera)

    def _count_frames(self, frames: Tensor) -> None:
        verdict = self.judge.frames(frames)
        hits, edges = frame_hits(verdict, self.prompt), sharpness(frames)
        for name, values in {**hits, "empty": verdict.empty, "sharpness": edges}.items():
            self._add(name, float(values.double().sum()), len(frames))
        unknown = torch.full((len(frames),), torch.nan)
        columns = [edges, *(hits.get(name, unknown).float() for name in _HITS)]
        self._windows.add(torch.cat([colour_statistics(frames), torch.stack(columns, dim=1)], dim=1))

    def _count_clip(self, frames: Tensor, cameras: Tensor | None) -> None:
        verdict = self.judge.clips(frames[None])
        if self.motion is not None:
            self._add("motion", float(MOTION_CLASSES[int(verdict.motion.argmax())] == self.motion), 1)
        if self.camera_move is not None:
            self._add("camera_move", float(CAMERA_MOVES[int(verdict.camera_move.argmax())] == self.camera_move), 1)
        if cameras is not None:
            given = cameras[0].any(dim=1)  # a row of zeros is no camera
            steps = given[:-1] & given[1:]
            asked = camera_motion(cameras[0].float())[steps]
            error, wanted = camera_error(verdict.camera_motion[0][steps], asked)
            self._add("camera_error", error, int(steps.sum()))
            self._add("camera_error_asked", wanted, int(steps.sum()))


def score_video(
    frames: Tensor,  # [F, 3, H, W] in [0, 1]
    prompt: str,
    judge: VideoJudge,
    controls: Controls | None = None,
    motion: tuple[str, str] | None = None,
    camera_move: str | None = None,
) -> dict[str, float]:
    """The scores of a whole video, see `VideoScorer` and its `result`.

    Raises:
        ConfigError: frames of another shape, none, or not finite; controls that do not fit them; an unknown motion.
    """
    scorer = VideoScorer(judge, prompt, motion, camera_move)
    scorer.add(frames, controls)
    return scorer.result()
