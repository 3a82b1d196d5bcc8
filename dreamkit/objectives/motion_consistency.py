"""Motion consistency: a teacher's motion for a few-step student, and the appearance of its frames from data.

A consistency student copies its teacher's frames too, blur and all. Zhai et al. ("Motion Consistency Model:
Accelerating Video Diffusion with Disentangled Motion-Appearance Distillation", arXiv 2406.06890) hold it to the teacher
in a representation m of motion alone, and let frames of data say what a single frame looks like:

    error = d(m(x_t - t v_student(x_t, t)), m(x_s - s v_average(x_s, s)))  +  w D(frames made, frames of data)

with x_s a step of the teacher's from x_t, as in `dreamkit.objectives.causal_video.consistency_error`. Of the published
m this is the latent difference, m(x)_f = x_{f+1} - x_f: exact, and without weights. (The released code prefers a small
head that is trained with the student.) Their D is a discriminator of images that is trained against the student; here
it is the energy distance, which needs no training: a fixed kernel in the discriminator's place. Clips start now and
then from what the student makes itself, because that is where it starts when it is used (`mix_trajectories`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dreamkit.checks import require
from dreamkit.objectives.causal_video import Distance, Flow, clean_clip, frame_distance

Represent = Callable[[Tensor], Tensor]
"""Clip [B, C, F, H, W] -> what is compared of it [B, C', F', H', W']."""


def frame_differences(clip: Tensor) -> Tensor:
    """Motion: m(x)_f = x_{f+1} - x_f, [B, C, F - 1, H, W]; zero for a clip that stands still.

    Args:
        clip: [B, C, F, H, W], at least 2 frames.

    Raises:
        ConfigError: a single frame.
    """
    require("The number of frames", clip.shape[2] > 1, clip.shape[2], "at least 2: one frame has no motion")
    return clip[:, :, 1:] - clip[:, :, :-1]


def motion_error(
    made: Tensor, goal: Tensor, distance: Distance = "huber", represent: Represent = frame_differences
) -> Tensor:
    """Disentangled motion distillation: d(m(made), m(goal)) in every frame of the representation, [B, F'].

    What m does not see is free: with frame differences the same picture added to all frames costs nothing. With m(x) =
    x it is `consistency_error`.

    Args:
        made: the student's clips [B, C, F, H, W].
        goal: where they should be, without gradients.
        distance: d, see `frame_distance`.
        represent: m.

    Raises:
        ConfigError: an unknown distance, or clips of one frame.
    """
    return frame_distance(represent(made), represent(goal), distance)


def appearance_error(made: Tensor, data: Tensor) -> Tensor:
    """How far frames are from those of data as a distribution: the energy distance, a number that may fall below 0.

        D = 2 E|X - Y| - E|X - X'| - E|Y - Y'|,   X, X' frames made, Y, Y' frames of data, |.| a root mean square

    D is 0 for equal distributions and positive for all others (Sejdinovic et al., "Equivalence of distance-based and
    RKHS-based statistics in hypothesis testing", arXiv 1207.6076). Unlike a mean square it asks for frames that are
    like data's, not for the mean of all that might be. The means are over pairs from different clips, which are
    independent, so both D and its gradient are without bias (Bellemare et al., "The Cramer Distance as a Solution to
    Biased Wasserstein Gradients", arXiv 1705.10743). The order of frames plays no part, nor do captions.

    Args:
        made: the student's clips, [B, C, F, H, W], at least 2.
        data: clips of data, [B, C, F', H, W]; row i of `made` may depend on row i, and on no other.

    Raises:
        ConfigError: a single clip.
    """
    clips = len(made)
    require("The number of clips", clips > 1, clips, "at least 2: frames are compared across clips")
    between = 2 * _across_clips(made, data)
    return between - _across_clips(made, made) - _across_clips(data, data)


def mix_trajectories(student: Flow, x0: Tensor, noise: Tensor, own: Tensor) -> Tensor:
    """Mixed trajectory distillation: some clips of data give way to what the student makes of noise, [B, C, F, H, W].

    In one call, x = eps - v(eps, 1), as published; without gradients. From data alone a student never learns to go on
    from its own frames.

    Args:
        student: its averaged weights.
        x0: clips of data [B, C, F, H, W].
        noise: standard normal, like `x0`.
        own: [B] bool, which give way.
    """
    if not bool(own.any()):
        return x0
    with torch.no_grad():
        first = torch.ones_like(noise[:, 0, :, 0, 0])
        made = clean_clip(noise, student(noise, first), first)
    return torch.where(own[:, None, None, None, None], made, x0)


def _across_clips(one: Tensor, other: Tensor) -> Tensor:
    """Mean of |x - y| over frames of clips [B, C, F, H, W], x and y from different rows."""
    rows, each = len(one), one[0, :, 0].numel()
    x, y = (clip.transpose(1, 2).flatten(2) for clip in (one, other))  # [B, F, C H W]
    # Matrix products would be faster and lose the small distances.
    apart = torch.cdist(x.flatten(0, 1), y.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
    pairs = apart.view(rows, x.shape[1], rows, y.shape[1]).mean(dim=(1, 3)) / each**0.5
    return (pairs.sum() - pairs.diagonal().sum()) / (rows * (rows - 1))
