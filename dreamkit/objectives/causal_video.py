"""What a causal video student learns before it meets its own output: flows under a past, and consistency.

A clip x0 of F frames is cut into chunks, and every chunk has a noise level t of its own (1 is pure noise):

    x_t = (1 - t) x0 + t eps,     flow v = eps - x0,     x0 = x_t - t v     (rectified flow, arXiv 2209.03003)

What a chunk sees besides itself is up to the function that predicts the flow: noisy chunks before it (diffusion
forcing, Chen et al., arXiv 2407.01392), or clean ones (teacher forcing, as in CausVid, arXiv 2412.07772, and Self
Forcing, arXiv 2506.08009). Nothing here knows a network, a mask or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from dreamkit.checks import one_of, require
from dreamkit.diffusion.schedule import NoiseSchedule

Flow = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, F, H, W], levels [B, F]) -> flow [B, C, F, H, W]."""

Distance = Literal["huber", "square"]

_HUBER = 0.00054
"""Width of the pseudo-Huber distance around zero, for a root mean square (Song and Dhariwal, arXiv 2310.14189)."""


def per_frame(levels: Tensor) -> Tensor:
    """Levels [B, F] as [B, 1, F, 1, 1], to go with clips [B, C, F, H, W]."""
    return levels[:, None, :, None, None]


def noisy_clip(x0: Tensor, eps: Tensor, levels: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps, a level for every frame.

    Args:
        x0: [B, C, F, H, W] clean clips.
        eps: [B, C, F, H, W] standard normal noise.
        levels: [B, F] in [0, 1].
    """
    t = per_frame(levels)
    return (1 - t) * x0 + t * eps


def clean_clip(x_t: Tensor, flow: Tensor, levels: Tensor) -> Tensor:
    """x0 = x_t - t v, the clean clip that a flow [B, C, F, H, W] points to."""
    return x_t - per_frame(levels) * flow


def euler_step(x_t: Tensor, flow: Tensor, levels: Tensor, lower: Tensor) -> Tensor:
    """x_s = x_t + (s - t) v: one step of the probability-flow ODE dx / dt = v from levels t to levels s [B, F]."""
    return x_t + per_frame(lower - levels) * flow


def few_step_levels(steps: int, shift: float) -> list[float]:
    """Levels at which a few-step student is asked: shift u / (1 + (shift - 1) u), u = 1 - k / steps, k = 0, 1, ...

    Four steps and a shift of 5 give 1, 0.9375, 0.8333, 0.625.

    Args:
        steps: K, at least 1.
        shift: above 1 stays longer at high noise; positive.

    Raises:
        ConfigError: no steps.
        TeacherError: shift not positive.
    """
    require("The number of steps a chunk", steps >= 1, steps, "at least 1")
    position = torch.arange(steps, 0, -1, dtype=torch.float64) / steps
    levels: list[float] = NoiseSchedule.flow(shift).sigma(position).tolist()
    return levels


def draw_positions(batch: int, frames: int, chunk: int, generator: torch.Generator) -> Tensor:
    """Places u in [0, 1) on a schedule, drawn for every chunk by itself and equal inside of it: [B, F].

    Stratified over all chunks of the batch, so that every step of training sees every part of the schedule.

    Args:
        batch: B.
        frames: F.
        chunk: frames of a chunk; the last may be shorter.
        generator: source of the places, on the CPU.
    """
    chunks = -(-frames // chunk)
    count = batch * chunks
    order = torch.randperm(count, generator=generator)
    places = (order + torch.rand(count, generator=generator, dtype=torch.float64)) / count
    return places.view(batch, chunks).repeat_interleave(chunk, dim=1)[:, :frames]


def draw_neighbours(positions: Tensor, steps: int, shift: float) -> tuple[Tensor, Tensor]:
    """Levels t > s of neighbouring nodes on a grid of a solver, t the one above a drawn position.

    The grid is t_n = shift u / (1 + (shift - 1) u), u = n / steps, n = 0..steps; so s may be 0, where a clip is clean.

    Args:
        positions: [B, F] in [0, 1).
        steps: of the solver from pure noise to a clean clip, at least 1.
        shift: of the grid; positive.

    Returns:
        t and s, [B, F] each, in the dtype of the positions.
    """
    node = (positions * steps).floor().clamp(0, steps - 1)
    schedule = NoiseSchedule.flow(shift)
    return schedule.sigma((node + 1) / steps), schedule.sigma(node / steps)


def flow_matching_error(predict: Flow, x0: Tensor, eps: Tensor, levels: Tensor) -> Tensor:
    """Mean square of v(x_t, t) - (eps - x0) in every frame, [B, F]. Its minimum is v = E[eps - x0 | what is seen].

    Args:
        predict: the student. That it sees noisy chunks makes it diffusion forcing, clean ones teacher forcing.
        x0: [B, C, F, H, W] clean clips.
        eps: [B, C, F, H, W] standard normal noise.
        levels: [B, F] in [0, 1], equal within a chunk.
    """
    made = predict(noisy_clip(x0, eps, levels), levels)
    return (made - (eps - x0)).square().mean(dim=(1, 3, 4))


def frame_distance(made: Tensor, goal: Tensor, distance: Distance = "huber") -> Tensor:
    """How far clips [B, C, F, H, W] are apart in every frame, [B, F].

    With m the mean square over a frame: sqrt(m + c^2) - c, c = 0.00054 ("huber"), or m ("square").

    Raises:
        ConfigError: an unknown distance.
    """
    one_of("The distance", distance, get_args(Distance))
    square = (made - goal).square().mean(dim=(1, 3, 4))
    return square if distance == "square" else (square + _HUBER**2).sqrt() - _HUBER


def neighbouring_clips(
    student: Flow,
    average: Flow,
    teacher: Flow,
    x0: Tensor,  # [B, C, F, H, W]
    eps: Tensor,  # [B, C, F, H, W]
    levels: Tensor,  # [B, F]
    lower: Tensor,  # [B, F]
) -> tuple[Tensor, Tensor]:
    """The clean clips to which two neighbours on a path of the teacher's lead, see `consistency_error`.

        x_t = (1 - t) x0 + t eps,   x_s = x_t + (s - t) v_teacher(x_t, t)
        made = x_t - t v_student(x_t, t),   goal = x_s - s v_average(x_s, s)

    Args:
        student: has gradients.
        average: the student's weights averaged over time; without gradients.
        teacher: causal, guided; without gradients.
        x0: clean clips.
        eps: standard normal noise.
        levels: t in [0, 1], equal within a chunk.
        lower: s in [0, t].

    Returns:
        made and goal, [B, C, F, H, W] each.
    """
    x_t = noisy_clip(x0, eps, levels)
    with torch.no_grad():
        x_s = euler_step(x_t, teacher(x_t, levels), levels, lower)
        goal = clean_clip(x_s, average(x_s, lower), lower)
    return clean_clip(x_t, student(x_t, levels), levels), goal


def consistency_error(
    student: Flow,
    average: Flow,
    teacher: Flow,
    x0: Tensor,  # [B, C, F, H, W]
    eps: Tensor,  # [B, C, F, H, W]
    levels: Tensor,  # [B, F]
    lower: Tensor,  # [B, F]
    distance: Distance = "huber",
) -> Tensor:
    """Consistency distillation, in every frame: two neighbours on a path of the teacher's must lead to one clean clip.

        x_t = (1 - t) x0 + t eps,   x_s = x_t + (s - t) v_teacher(x_t, t)
        error = d(x_t - t v_student(x_t, t),  x_s - s v_average(x_s, s))

    At s = 0 the right side is x_s itself, so by induction over the grid the fixed point leads every x_t to where the
    teacher's Euler solver takes it (Song et al., "Consistency Models", arXiv 2303.01469; with guidance inside of
    v_teacher: Luo et al., "Latent Consistency Models", arXiv 2310.04378). All three see the same clean past, so the
    paths are those of a chunk given its past, which is what a stream is made of.

    Args:
        student: see `neighbouring_clips`, as for all but the last.
        average: the student's averaged weights.
        teacher: guided.
        x0: clean clips.
        eps: noise.
        levels: t.
        lower: s.
        distance: d, see `frame_distance`.

    Returns:
        [B, F].

    Raises:
        ConfigError: an unknown distance.
    """
    return frame_distance(*neighbouring_clips(student, average, teacher, x0, eps, levels, lower), distance)
