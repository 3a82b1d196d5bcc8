"""What a video student learns that streams from a moving buffer: flows at mixed noise levels, and steps over segments.

Kodaira et al., "StreamDiT: Real-Time Streaming Text-to-Video Generation" (arXiv 2507.03745). A buffer of F = K + N c
frames holds K finished frames and N chunks of c, each chunk s micro steps of a stream from the next one's place:
T = s N steps from noise to a clean frame. With u in [0, 1] the place on a schedule (u = 0 is clean) and t = gamma(u)
the noise level,

    u_i in [(i - 1) / N, i / N]      chunk i = 1..N, from the front
    x_t = (1 - t) x0 + t eps         a level of its own for every chunk, all frames seeing all

One cut of the buffer is a way of streaming: N = 1 gives ordinary clips, c = s = 1 diagonal denoising. A student of
several cuts learns to denoise, rather than a few levels by heart.

Nothing here knows a network, a stream or a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dreamkit.checks import require, require_integer
from dreamkit.objectives.causal_video import Flow, euler_step, noisy_clip, per_frame


@dataclass(frozen=True)
class Partition:
    """A cut of a buffer of frames (equation 7 of the paper).

    Args:
        chunk: c, frames at one level.
        chunks: N.
        micro_steps: s, steps of a chunk before the buffer moves.
        reference: K, finished frames at the front.

    Raises:
        ConfigError: a number out of range.
    """

    chunk: int
    chunks: int
    micro_steps: int = 1
    reference: int = 0

    def __post_init__(self) -> None:
        for name in ("chunk", "chunks", "micro_steps"):
            require_integer(f"The partition's {name}", getattr(self, name), 1)
        require_integer("The partition's reference", self.reference, 0)

    @classmethod
    def cut(cls, frames: int, chunk: int, micro_steps: int = 1, reference: int = 0) -> Self:
        """The partition of a number of frames into a reference and whole chunks.

        Raises:
            ConfigError: the frames after the reference are no whole chunks, or none.
        """
        whole = chunk >= 1 and frames > reference and (frames - reference) % chunk == 0
        after = f" after a reference of {reference}" if reference else ""
        require("The buffer's number of frames", whole, frames, f"whole chunks of {chunk} frames{after}")
        return cls(chunk, (frames - reference) // chunk, micro_steps, reference)

    @property
    def frames(self) -> int:
        """F = K + N c."""
        return self.reference + self.chunks * self.chunk

    @property
    def steps(self) -> int:
        """T = s N, from noise to a clean frame."""
        return self.micro_steps * self.chunks

    def places(self, within: Tensor) -> Tensor:
        """Where on the schedule every frame is: u [..., F].

        Args:
            within: [..., N] where in its segment each chunk is, from 1, its begin, to 0, its end. A stream's round
                begins at 1 and has come to 1 - j / s after j micro steps. The reference is at u = 0.
        """
        places = (torch.arange(self.chunks, dtype=within.dtype, device=within.device) + within) / self.chunks
        reference = places.new_zeros(*places.shape[:-1], self.reference)
        return torch.cat([reference, places.repeat_interleave(self.chunk, dim=-1)], dim=-1)


def every_partition(frames: int, reference: int = 0) -> tuple[Partition, ...]:
    """All cuts of a buffer but the ordinary clip, the smallest chunks first; of 16 frames into chunks of 1, 2, 4 and 8.

    Raises:
        ConfigError: no frames after the reference.
    """
    rest = frames - reference
    require("The buffer's number of frames", rest >= 1, frames, f"more than the reference of {reference}")
    # Without a reference one chunk is the ordinary clip, and all that can be made of a single frame.
    largest = rest if reference or rest == 1 else rest - 1
    return tuple(Partition(chunk, rest // chunk, 1, reference) for chunk in range(1, largest + 1) if rest % chunk == 0)


def draw_places(count: int, mixed: Sequence[Partition], uniform_share: float, generator: torch.Generator) -> Tensor:
    """Places u [count, F] to learn flows at, float64 on the CPU: for every row a partition, for every chunk a place.

        u_i ~ Uniform[(i - 1) / N, i / N]       (equations 8 and 9)

    Args:
        count: rows.
        mixed: partitions of the same number of frames, each as likely.
        uniform_share: share of the rows that are ordinary clips, all frames at one place and none finished.
        generator: source of every choice, on the CPU.

    Raises:
        ConfigError: partitions of different numbers of frames.
    """
    frames = mixed[0].frames
    alike = all(partition.frames == frames for partition in mixed)
    require("The mixed partitions' numbers of frames", alike, [each.frames for each in mixed], "one for all of them")
    is_uniform = torch.rand(count, generator=generator) < uniform_share
    which = torch.randint(len(mixed), (count,), generator=generator)
    within = torch.rand(count, frames, generator=generator, dtype=torch.float64)
    rows = []
    for row, uniform, index in zip(within, is_uniform.tolist(), which.tolist(), strict=True):
        partition = Partition(frames, 1) if uniform else mixed[index]
        rows.append(partition.places(row[: partition.chunks]))
    return torch.stack(rows)


def draw_segments(
    count: int, partition: Partition, uniform_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Places at which segments begin and end, [count, F] each, float64 on the CPU.

    Those of a round of the stream, from i / N to (i - 1) / N for chunk i; or for a share of the rows one of the N
    segments for all frames, none of them finished: a stream's first buffer is cut from a clip that is made so.

    Args:
        count: rows.
        partition: of the stream.
        uniform_share: of the rows.
        generator: source of every choice, on the CPU.
    """
    is_uniform = torch.rand(count, 1, generator=generator) < uniform_share
    lower = torch.randint(partition.chunks, (count, 1), generator=generator)
    ends = []
    for end in (1, 0):
        stream = partition.places(torch.full((partition.chunks,), end, dtype=torch.float64))
        ends.append(torch.where(is_uniform, (lower + end).double() / partition.chunks, stream))
    return ends[0], ends[1]


def segment_error(
    student: Flow,
    teacher: Flow,
    x0: Tensor,  # [B, C, F, H, W]
    eps: Tensor,  # [B, C, F, H, W]
    levels: Sequence[Tensor],  # s + 1 of [B, F]
) -> Tensor:
    """Step distillation over a segment, in every frame: one step of the student's against s of the teacher's, [B, F].

        x_0 = (1 - t_0) x0 + t_0 eps,   x_(j + 1) = x_j + (t_(j + 1) - t_j) v_teacher(x_j, t_j),   j = 0..s - 1
        error = mean square of v_student(x_0, t_0) - (x_s - x_0) / (t_s - t_0)

    So its minimum is the mean flow of the teacher's path, which leads where s steps of the teacher lead; with guidance
    inside of v_teacher, guidance is distilled too (section 4.2 of the paper; Salimans and Ho, "Progressive
    Distillation", arXiv 2202.00512; Meng et al., arXiv 2210.03142). A frame that does not move has no error.

    Args:
        student: has gradients; asked once.
        teacher: of the same buffer, guided; without gradients.
        x0: clean clips.
        eps: standard normal noise.
        levels: t_0 >= t_1 >= ... >= t_s in [0, 1], of every frame.

    Raises:
        ConfigError: fewer than two levels.
    """
    require("The number of a segment's levels", len(levels) >= 2, len(levels), "at least 2: where it begins and ends")
    first = noisy_clip(x0, eps, levels[0])
    x = first
    with torch.no_grad():
        for upper, lower in itertools.pairwise(levels):
            x = euler_step(x, teacher(x, upper), upper, lower)
    way = levels[-1] - levels[0]
    moves = way != 0
    goal = (x - first) / per_frame(torch.where(moves, way, 1.0))
    square = (student(first, levels[0]) - goal).square().mean(dim=(1, 3, 4))
    return torch.where(moves, square, 0.0)


def mean_where(error: Tensor, counts: Tensor) -> Tensor:
    """The mean of [B, F] over the frames that count, a number; nothing counts zero."""
    return torch.where(counts, error, 0.0).sum() / counts.sum().clamp(min=1)
