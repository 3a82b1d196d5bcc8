"""How fast a stream is and how far it has drifted, in constant memory, from any thread.

Three speeds, never one: of the denoiser alone, of everything up to the reader, and the time to the first frame.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor

_EDGE_CHUNKS = 10
"""Chunks at the beginning and at the end whose median time is told."""
_REFERENCE_SECONDS = 5.0
_RECENT_CHUNKS = 32


@dataclass(frozen=True)
class FrameStatistics:
    """Numbers of a picture in [0, 1] that drift shows in."""

    colour: tuple[float, float, float]
    """Mean of red, green and blue."""
    contrast: float
    """Standard deviation of the luminance."""
    sharpness: float
    """Mean absolute difference of neighbouring luminances."""


@dataclass(frozen=True)
class Drift:
    """How the last frames differ from those of the first five seconds; all zeros is no drift."""

    colour: float
    """Largest change of a channel's mean, in [0, 1]."""
    contrast: float
    """Change of the contrast as a share of what it was."""
    sharpness: float
    """Change of the sharpness as a share of what it was."""


@dataclass(frozen=True)
class StreamMetrics:
    """What a stream has done so far. Times leave out what it was paused; what has not been measured is `None`."""

    frames: int
    """Frames handed to the reader."""
    seconds: float
    """Since the stream was opened."""
    denoise_fps: float | None
    """Frames a second of the denoiser alone, without the first chunk, which warms up."""
    end_to_end_fps: float | None
    """Frames handed over a second, without the first chunk."""
    first_frame_s: float | None
    """From opening the stream to handing over its first frame."""
    chunk_ms_first: float | None
    """Median time to denoise one of the first ten chunks whose window was full (the very first ones, if none was)."""
    chunk_ms_last: float | None
    """Of the last ten chunks."""
    recent_denoise_fps: float | None
    """Over the last 32 chunks."""
    recent_end_to_end_fps: float | None
    """Over the frames of about as many."""
    drift: Drift | None


def frame_statistics(
    pixels: Tensor,  # [H, W, 3] uint8
) -> FrameStatistics:
    """Statistics of a frame; luminance as Rec. 709 has it."""
    x = pixels.float() / 255
    luminance = x @ x.new_tensor([0.2126, 0.7152, 0.0722])
    red, green, blue = x.mean(dim=(0, 1)).tolist()
    steps = [float(torch.diff(luminance, dim=axis).abs().mean()) for axis in (0, 1) if luminance.shape[axis] > 1]
    return FrameStatistics((red, green, blue), float(luminance.std(correction=0)), fmean(steps or [0.0]))


class StreamMeter:
    """Gathers what `StreamMetrics` tells.

    Args:
        fps: frames a second at which the video is played.
        warm_chunks: chunks until the window is full.
        clock: seconds, monotonic.
    """

    def __init__(self, fps: int, warm_chunks: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._opened = clock()
        self._paused_since: float | None = None
        self._paused = 0.0
        self._warm_chunks = warm_chunks
        self._chunks = 0
        self._made = (0, 0.0)
        self._recent_chunks: deque[tuple[int, float]] = deque(maxlen=_RECENT_CHUNKS)
        self._warm: list[float] = []
        self._early: list[float] = []
        self._frames = 0
        self._first: float | None = None
        self._first_chunk = (0, 0.0)
        self._last = 0.0
        self._recent_frames: deque[float] = deque(maxlen=2 * _RECENT_CHUNKS)
        self._reference: list[FrameStatistics] = []
        self._reference_frames = _REFERENCE_SECONDS * fps
        self._statistics: deque[FrameStatistics] = deque(maxlen=8)

    def open(self) -> None:
        """Begin to count time."""
        with self._lock:
            self._opened = self._clock()

    def chunk(self, frames: int, seconds: float) -> None:
        """Note a chunk that was denoised, and the frames it will give."""
        with self._lock:
            self._chunks += 1
            self._recent_chunks.append((frames, seconds))
            if self._chunks == 1:
                self._first_chunk = (frames, 0.0)
            else:
                self._made = (self._made[0] + frames, self._made[1] + seconds)
            if len(self._early) < _EDGE_CHUNKS:
                self._early.append(seconds)
            if self._chunks > self._warm_chunks and len(self._warm) < _EDGE_CHUNKS:
                self._warm.append(seconds)

    def look(self, number: int, pixels: Tensor) -> None:
        """Note the statistics of a frame [H, W, 3] uint8; one a chunk is enough."""
        statistics = frame_statistics(pixels)
        with self._lock:
            if number < self._reference_frames and len(self._reference) < self._reference_frames:
                self._reference.append(statistics)
            self._statistics.append(statistics)

    def frame(self) -> None:
        """Note a frame that is handed over."""
        with self._lock:
            self._last = self._clock() - self._opened - self._paused
            self._first = self._last if self._first is None else self._first
            self._frames += 1
            if self._frames <= self._first_chunk[0]:
                self._first_chunk = (self._first_chunk[0], self._last)
            self._recent_frames.append(self._last)

    def pause(self) -> None:
        """Stop the clock."""
        with self._lock:
            self._paused_since = self._clock() if self._paused_since is None else self._paused_since

    def resume(self) -> None:
        """Let the clock go on."""
        with self._lock:
            if self._paused_since is not None:
                self._paused += self._clock() - self._paused_since
                self._paused_since = None

    def read(self) -> StreamMetrics:
        """The numbers now."""
        with self._lock:
            now = self._clock() if self._paused_since is None else self._paused_since
            recent = list(self._recent_chunks)
            begun, since = self._first_chunk
            edges = self._warm or self._early
            ends = self._recent_frames
            return StreamMetrics(
                frames=self._frames,
                seconds=now - self._opened - self._paused,
                denoise_fps=_rate(*self._made),
                end_to_end_fps=_rate(self._frames - begun, self._last - since),
                first_frame_s=self._first,
                chunk_ms_first=1000 * median(edges) if edges else None,
                chunk_ms_last=1000 * median(s for _, s in recent[-_EDGE_CHUNKS:]) if recent else None,
                recent_denoise_fps=_rate(sum(n for n, _ in recent), sum(s for _, s in recent)),
                recent_end_to_end_fps=_rate(len(ends) - 1, ends[-1] - ends[0]) if ends else None,
                drift=self._drift(),
            )

    def _drift(self) -> Drift | None:
        if not self._statistics:
            return None
        then, now = _mean(self._reference or list(self._statistics)), _mean(list(self._statistics))
        return Drift(
            colour=max(abs(b - a) for a, b in zip(then.colour, now.colour, strict=True)),
            contrast=(now.contrast - then.contrast) / max(then.contrast, 1e-6),
            sharpness=(now.sharpness - then.sharpness) / max(then.sharpness, 1e-6),
        )


def _mean(items: list[FrameStatistics]) -> FrameStatistics:
    red, green, blue = (fmean(item.colour[channel] for item in items) for channel in range(3))
    contrast, sharpness = fmean(item.contrast for item in items), fmean(item.sharpness for item in items)
    return FrameStatistics((red, green, blue), contrast, sharpness)


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None
