"""Rotary positions, the layout of a stream, and the checks that name a wrong argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape

MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Rope3d:
    """Rotary embedding of (time, row, column) positions.

    The channels of a head are split into three runs, one an axis. Within a run of d channels, the pair
    (x_2i, x_2i+1) turns by position * theta^(-2i / d) (Su et al., "RoFormer", arXiv 2104.09864).
    """

    time: int
    """Channels of the time axis, even."""
    rows: int
    """Channels of the row axis, even."""
    columns: int
    """Channels of the column axis, even."""
    theta: float = 10000.0
    """Base of the frequencies."""

    def __post_init__(self) -> None:
        for name, value in (("time", self.time), ("rows", self.rows), ("columns", self.columns)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}.")
            if value < 0 or value % 2:
                raise ValueError(f"{name} must be even and not negative, got {value}.")
        if not 2 <= self.head_dim <= MAX_HEAD_DIM:
            raise ValueError(f"the three axes must have 2 to {MAX_HEAD_DIM} channels in all, got {self.head_dim}.")
        if not 1.0 < self.theta < float("inf"):
            raise ValueError(f"theta must be above 1 and finite, got {self.theta}.")

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.time + self.rows + self.columns

    @staticmethod
    def split_evenly(head_dim: int, theta: float = 10000.0) -> Rope3d:
        """The split of Wan's video models: a third each in whole pairs, the rest to time (44, 42, 42 of 128)."""
        third = 2 * (head_dim // 6)
        return Rope3d(head_dim - 2 * third, third, third, theta)

    def angles(self, times: Tensor, height: int, width: int) -> Tensor:
        """Angles of every token of frames [F] at integer times: [F * height * width, head_dim / 2], float64.

        Tokens of a frame go row by row. Built in float64: at thousands of frames float32 loses the fine phases.
        """
        parts = []
        shape = (len(times), height, width)
        rows = torch.arange(height, device=times.device)
        columns = torch.arange(width, device=times.device)
        axes = ((times[:, None, None], self.time), (rows[:, None], self.rows), (columns, self.columns))
        for positions, channels in axes:
            index = torch.arange(0, channels, 2, device=times.device, dtype=torch.float64)
            frequency = self.theta ** (-index / max(channels, 1))
            parts.append((positions.double()[..., None] * frequency).expand(*shape, channels // 2))
        return torch.cat(parts, dim=-1).reshape(-1, self.head_dim // 2)


@dataclass(frozen=True)
class Stream:
    """What the queries of a chunk may see of a video stream, in frames."""

    height: int
    """Rows of tokens in a frame."""
    width: int
    """Columns of tokens in a frame."""
    chunk: int = 3
    """Frames that are made together and see one another."""
    sink: int = 3
    """First frames of the stream that stay visible for good."""
    window: int = 9
    """Frames before the chunk that are visible, besides the sink."""

    def __post_init__(self) -> None:
        for name, low in (("height", 1), ("width", 1), ("chunk", 1), ("sink", 0), ("window", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}.")
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}.")

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return self.height * self.width

    def visible(self, start: int, stop: int) -> list[int]:
        """Frames that the chunk of frames start to stop sees, in order, its own included."""
        sink = min(self.sink, start)
        return [*range(sink), *range(max(sink, start - self.window), stop)]


def check_attention(q: Tensor, k: Tensor, v: Tensor, stream: Stream, rope: Rope3d) -> None:
    """Check queries, keys and values.

    Raises:
        TypeError: no tensors, or of dtypes that differ.
        ValueError: a wrong shape or device.
    """
    check_float("q", q, None)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_like(name, tensor, "q", q)
        check_shape(name, tensor, ["B", "N", "H", rope.head_dim])
        if (tensor.shape[0], tensor.shape[2]) != (q.shape[0], q.shape[2]):
            raise ValueError(f"{name} must have the batch and heads of q, {list(q.shape)}, got {list(tensor.shape)}.")
        if tensor.shape[1] % stream.tokens:
            raise ValueError(f"{name} must hold whole frames of {stream.tokens} tokens, got {tensor.shape[1]} tokens.")
    if k.shape != v.shape:
        raise ValueError(f"v must have the shape of k, {list(k.shape)}, got {list(v.shape)}.")


def check_times(name: str, times: Sequence[int], frames: int) -> None:
    """Check the times of frames.

    Raises:
        ValueError: not one for each frame.
    """
    if len(times) != frames:
        raise ValueError(f"{name} must hold a time for each of the {frames} frames, got {len(times)}.")
