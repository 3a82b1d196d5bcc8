"""Measures a video student by streaming it: one prompt for long, its controls, a closed loop, a change of prompts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamkit.metrics.video import colour_statistics, frame_hits, sharpness
from dreamkit.metrics.video_judge import CLIP_FRAMES, VideoJudge
from dreamkit.metrics.video_stream import Drift, VideoScorer, Windows
from dreamkit.training.compare_video.measures import MARKS, MOVES, PART
from dreamkit.training.compare_video.prompts import Case
from dreamkit.video.camera_paths import CameraPath, camera_path
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import Steering
from dreamkit.video.stream_engine import StreamFrame

Numbers = dict[str, float | None]
CLIP_SECONDS = 5
DRIFT_START, DRIFT_LENGTH = 20, 40
CONTROL_FRAMES = 2 * CLIP_FRAMES - 1
"""Two of the judge's clips, the second of which begins with the last frame of the first."""
LOOP_PERIOD = 60
_LOOP_REACH = 20.0
"""Frames of an orbit at its own speed, 3 degrees each, at which the camera turns back."""
_LOOP_PAIRS = 3
_STILL = 1e-3
"""Difference of two frames below which a picture has not changed, and no share of it is taken."""
_HOLDS = 3
_SWITCH_SECONDS = 3
_TRACK_POINTS = 12
_HITS = ("prompt", "object", "colour")
_CURVE = (*_HITS, "motion", "empty", "motion_magnitude", "flicker", "sharpness")
Tick = Callable[[int], None]
Keep = Callable[[str, Sequence[Tensor]], None]


def pictures(frames: Sequence[StreamFrame]) -> Tensor:
    """[F, 3, H, W] in [0, 1] of frames of a stream."""
    return torch.stack([frame.pixels for frame in frames]).permute(0, 3, 1, 2).float() / 255


def parts_of(frames: int) -> list[tuple[int, int]]:
    """The parts of a stream that are scored apart: every full hundred frames, and the last hundred.

    Args:
        frames: of the stream.

    Returns:
        First frames and ends. The last part overlaps the one before it where the stream is no multiple of a hundred
        frames long; a shorter stream is one part.
    """
    parts = [(start, start + PART) for start in range(0, frames - PART + 1, PART)]
    last = (max(0, frames - PART), frames)
    return parts if parts and parts[-1] == last else [*parts, last]


class Life:
    """Scores of a stream part by part, and how far it drifts, in memory that grows by a few numbers a part.

    Args:
        judge: who says what frames and clips show.
        case: what was asked for.
        frames: of the stream.
    """

    def __init__(self, judge: VideoJudge, case: Case, frames: int) -> None:
        self.judge, self.case, self.frames = judge, case, frames
        self.curve: list[dict[str, float]] = []
        self._waiting = deque(parts_of(frames))
        self._open: list[tuple[int, int, VideoScorer]] = []
        self._windows = Windows(7 + len(_HITS), DRIFT_START, DRIFT_LENGTH)
        self._done = 0

    def add(
        self,
        images: Tensor,  # [F, 3, H, W] in [0, 1]
    ) -> None:
        """Count the next frames in."""
        first, end = self._done, self._done + len(images)
        while self._waiting and self._waiting[0][0] < end:
            start, stop = self._waiting.popleft()
            self._open.append((start, stop, VideoScorer(self.judge, self.case.prompt, self.case.motion)))
        for start, stop, scorer in self._open:
            inside = images[max(start - first, 0) : max(stop - first, 0)]
            if len(inside):
                scorer.add(inside)
        closed = [part for part in self._open if part[1] <= end]
        self._open = [part for part in self._open if part[1] > end]
        for start, stop, scorer in closed:
            scores = scorer.result()
            told = {name: round(scores[name], 6) for name in _CURVE if name in scores}
            self.curve.append({"start": start, "end": stop, **told})
        self._drift(images)
        self._done = end

    def _drift(self, images: Tensor) -> None:
        """As `VideoScorer` does for a stream as a whole."""
        hits = frame_hits(self.judge.frames(images), self.case.prompt)
        unknown = torch.full((len(images),), torch.nan)
        columns = [sharpness(images), *(hits.get(name, unknown).float() for name in _HITS)]
        self._windows.add(torch.cat([colour_statistics(images), torch.stack(columns, dim=1)], dim=1))

    def numbers(self) -> Numbers:
        """The columns of a row that are about the stream as a whole and about its parts."""
        found: Numbers = {}
        ends = {str(mark): mark for mark in MARKS[1:]} | {"last": self.frames}
        places = {name: [part for part in self.curve if part["end"] == end] for name, end in ends.items()}
        places["first"] = self.curve[:1]
        for place, parts in places.items():
            for name in (*_HITS, "motion"):
                found[f"{name}_{place}"] = parts[-1].get(name) if parts else None
        for name in ("empty", "motion_magnitude", "flicker", "sharpness"):
            values = [part[name] for part in self.curve if name in part]
            found[name] = sum(values) / len(values) if values else None
        means = self._windows.means
        drift = Drift.of(means).total.tolist() if len(means) > 1 else []
        for mark in MARKS:
            at = (mark - DRIFT_START) // DRIFT_LENGTH - 2  # of the last window that has ended by then
            found[f"drift_{mark}"] = drift[at] if 0 <= at < len(drift) and mark <= self.frames else None
        found["drift_last"] = drift[-1] if drift else None
        return found


@dataclass(frozen=True)
class ThereAndBack:
    """A camera's path that ends where it began, at rest, and begins again.

    Args:
        path: what it follows.
        reach: time on that path at which it turns back.
        period: frames until it is back.
    """

    path: CameraPath
    reach: float
    period: int

    def poses(self, times: Tensor) -> Tensor:
        """[n, 4, 4], those of the path at reach (1 - cos(2 pi t / period)) / 2."""
        return self.path.poses(self.reach * (1 - torch.cos(2 * math.pi * times.double() / self.period)) / 2)


def sliding_tracks(frames: int) -> tuple[Tensor, int]:
    """Tracks of an object that slides back and forth across the middle of the picture, and of a floor that stands.

    As in the training of the embedded models three quarters of the points lie on the object, within its outline, and
    it moves as fast as things do there.

    Args:
        frames: of video.

    Returns:
        [frames, 16, 2] places in [0, 1], and how many of the points, the first ones, are the object's.
    """
    index = torch.arange(_TRACK_POINTS, dtype=torch.float64)
    radius, angle = 0.09 * ((index + 0.5) / _TRACK_POINTS).sqrt(), 2.39996 * index  # a sunflower's seeds
    offsets = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    way = 0.22 * torch.sin(2 * math.pi * torch.arange(frames, dtype=torch.float64) / 32)
    middle = torch.stack([0.5 + way, torch.full_like(way, 0.52)], dim=1)
    floor = torch.tensor([[0.15, 0.75], [0.85, 0.75], [0.3, 0.9], [0.7, 0.9]], dtype=torch.float64)
    tracks = torch.cat([middle[:, None] + offsets, floor.expand(frames, -1, -1)], dim=1)
    return tracks.float(), _TRACK_POINTS


class Streams:
    """Streams of one student.

    Args:
        student: with its parts.
        config: how it is streamed.
        judge: who says what frames and clips show.
        seed: of the noise.
        tick: told of how many frames were made since the last time; it may raise.
        keep: given a clip's name and its frames, [H, W, 3] uint8 each, where one is to be shown.
    """

    def __init__(
        self,
        student: VideoTeacher,
        config: StreamConfig,
        judge: VideoJudge,
        seed: int,
        tick: Tick = lambda frames: None,
        keep: Keep | None = None,
    ) -> None:
        self.student, self.judge, self.seed = student, judge, seed
        self.config = replace(config, snapshot_mb=0)  # nobody rewinds here
        self.tick, self.keep = tick, keep
        self.fps = config.fps

    def total(self, frames: int) -> int:
        """Frames that `everything` makes."""
        steered = 0 if self.student.controls is None else (len(MOVES) + 1) * CONTROL_FRAMES + LOOP_PERIOD + _LOOP_PAIRS
        return frames + steered + self._switch_frames

    def everything(self, case: Case, frames: int, seed: int) -> tuple[Numbers, list[dict[str, float]]]:
        """All columns of a row, and the scores part by part.

        Args:
            case: what to show.
            frames: of the life.
            seed: of the comparison: every other one has the camera move the other way.
        """
        numbers, curve = self.life(case, frames)
        return numbers | self.cameras(case, seed) | self.tracks(case) | self.loop(case) | self.switch(case), curve

    def life(self, case: Case, frames: int) -> tuple[Numbers, list[dict[str, float]]]:
        """One prompt from the first frame to the last."""
        life = Life(self.judge, case, frames)
        begin: list[Tensor] = []
        end: deque[Tensor] = deque(maxlen=CLIP_SECONDS * self.fps)
        with self._session(case.prompt, frames) as session:
            for lot in self._lots(session):
                life.add(pictures(lot))
                begin += [frame.pixels for frame in lot[: CLIP_SECONDS * self.fps - len(begin)]]
                end.extend(frame.pixels for frame in lot)
        self._kept("first", begin)
        if frames > len(begin):
            self._kept("last", list(end))
        return life.numbers(), life.curve

    def cameras(self, case: Case, seed: int) -> Numbers:
        """Errors of the camera's moves, each as a share of the asked motion."""
        found: Numbers = dict.fromkeys(f"camera_{move}" for move in MOVES)
        if self.student.controls is None:
            return found
        for move, ways in MOVES.items():
            path = camera_path(ways[seed % 2])
            scores = self._steered(case.plain, Steering(path), camera_controls(path, CONTROL_FRAMES))
            found[f"camera_{move}"] = scores.get("camera_error_share")
        return found

    def tracks(self, case: Case) -> Numbers:
        """The error of an object's points that are asked to slide, as a share of their way."""
        if self.student.controls is None:
            return {"track": None}
        tracks, count = sliding_tracks(CONTROL_FRAMES)
        prompt = f"{case.plain} sliding"
        scores = self._steered(prompt, Steering(tracks=tracks), Controls(tracks=tracks[None, :, :count]))
        return {"track": scores.get("point_error_share")}

    def loop(self, case: Case) -> Numbers:
        """How alike frames are before the camera goes and when it is back, against the ends of its way."""
        names = ("loop_rms", "loop_far_rms", "loop", "loop_psnr")
        if self.student.controls is None:
            return dict.fromkeys(names)
        path = ThereAndBack(camera_path("orbit-left"), _LOOP_REACH, LOOP_PERIOD)
        with self._session(case.plain, LOOP_PERIOD + _LOOP_PAIRS, Steering(path)) as session:
            frames = [frame for lot in self._lots(session) for frame in lot]
        self._kept("loop", [frame.pixels for frame in frames])
        images = pictures(frames)
        begin, half = images[:_LOOP_PAIRS], LOOP_PERIOD // 2
        back = float((begin - images[LOOP_PERIOD:]).square().mean().sqrt())
        far = float((begin - images[half : half + _LOOP_PAIRS]).square().mean().sqrt())
        share = back / far if far > _STILL else None
        return dict(zip(names, (back, far, share, -20 * math.log10(max(back, 1e-6))), strict=True))

    def switch(self, case: Case) -> Numbers:
        """How soon another prompt is obeyed that comes after three seconds."""
        hits: list[Tensor] = []
        kept: list[Tensor] = []
        with self._session(case.prompt, self._switch_frames) as session:
            session.say(case.other, _SWITCH_SECONDS * self.fps)
            for lot in self._lots(session):
                new = [frame for frame in lot if frame.prompt == case.other]
                if new:
                    hits.append(frame_hits(self.judge.frames(pictures(new)), case.other)["prompt"])
                kept += [frame.pixels for frame in lot]
        self._kept("switch", kept)
        return switch_numbers(torch.cat(hits).tolist(), self.fps)

    @property
    def _switch_frames(self) -> int:
        """Three seconds, the rest of a chunk, three and a half seconds."""
        chunk = self.config.chunk * self.student.autoencoder.temporal_factor
        return 2 * _SWITCH_SECONDS * self.fps + max(1, self.fps // 2) + chunk

    def _session(self, prompt: str, frames: int, steering: Steering | None = None) -> StreamSession:
        return StreamSession(self.student, prompt, steering, self.seed, self.config, frames)

    def _lots(self, session: Iterable[StreamFrame]) -> Iterator[list[StreamFrame]]:
        """Frames as they come, as many together as the judge's clips have."""
        lot: list[StreamFrame] = []
        for frame in session:
            lot.append(frame)
            if len(lot) == CLIP_FRAMES:
                yield lot
                self.tick(len(lot))
                lot = []
        if lot:
            yield lot
            self.tick(len(lot))

    def _steered(self, prompt: str, steering: Steering, asked: Controls) -> dict[str, float]:
        with self._session(prompt, CONTROL_FRAMES, steering) as session:
            frames = [frame for lot in self._lots(session) for frame in lot]
        scorer = VideoScorer(self.judge, prompt)
        scorer.add(pictures(frames), asked)
        return scorer.result()

    def _kept(self, name: str, frames: Sequence[Tensor]) -> None:
        if self.keep is not None:
            self.keep(name, frames)


def camera_controls(path: CameraPath, frames: int) -> Controls:
    """What a stream's frames were asked to obey that follows a path from its first frame on."""
    poses = path.poses(torch.arange(frames, dtype=torch.float64))
    return Controls(camera=poses[:, :3].flatten(1)[None].float())


def switch_numbers(hits: Sequence[bool], fps: int) -> Numbers:
    """How soon a new prompt holds.

    Args:
        hits: whether each frame shows it, from the first on that was made under it.
        fps: frames a second.

    Returns:
        `switch_1s` and `switch_3s`, the shares in the half second from there on; `switch_held`, 1 where three frames
        in a row show it, else 0; `switch_frames`, the number of frames before the first of those.
    """
    found: Numbers = {}
    for seconds in (1, 3):
        some = hits[seconds * fps : seconds * fps + max(1, fps // 2)]
        found[f"switch_{seconds}s"] = sum(some) / len(some) if some else None
    runs = (index for index in range(len(hits) - _HOLDS + 1) if all(hits[index : index + _HOLDS]))
    first = next(runs, None)
    return found | {"switch_held": float(first is not None), "switch_frames": None if first is None else float(first)}


def teacher_clip(teacher: VideoTeacher, prompt: str, seed: int, **sampling: Any) -> Tensor:
    """A clip [F, 3, H, W] in [0, 1] of a teacher, about as long as the judge's clips.

    Args:
        teacher: that sees a whole clip.
        prompt: what to show.
        seed: of the noise.
        sampling: `steps`, `guidance` and `size` of `VideoTeacher.sample`.
    """
    factor = teacher.autoencoder.temporal_factor
    frames = 1 + factor * ((CLIP_FRAMES - 1) // factor)
    latents = teacher.sample([prompt], frames, generator=torch.Generator().manual_seed(seed), **sampling)
    return teacher.decode(latents)[0].float().cpu()
