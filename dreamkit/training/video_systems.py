"""Video systems of the field, as settings of one training: `dreamkit distill video --system NAME`.

What they share (a roll-out, a teacher's score, a critic's) is in `video_matching`; what tells them apart is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamkit.checks import require_choice


@dataclass(frozen=True)
class VideoSystem:
    """A published system.

    Args:
        title: what it is, and its paper.
        objective: of a student, by name.
        objective_options: NAME=VALUE over the objective's defaults.
        options: fields of `VideoMatchingOptions` over their defaults.
    """

    title: str
    objective: str = "dmd"
    objective_options: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


# Their teachers take one noise level a clip, and so do their critics.
_ONE_LEVEL = ("shared_level=true", "critic_weighting=flow")

SYSTEMS: dict[str, VideoSystem] = {
    "causvid": VideoSystem(
        "matched behind noisy clips of the data (Yin et al., CausVid, arXiv 2412.07772)",
        objective_options=_ONE_LEVEL,
        options={"history": "data", "sink_kind": "none"},
    ),
    "self-forcing": VideoSystem(
        "matched on its own history, no sink (Huang et al., Self Forcing, arXiv 2506.08009)",
        objective_options=_ONE_LEVEL,
        options={"sink_kind": "none"},
    ),
    "motionstream": VideoSystem(
        "its own history with sink and window as in the stream, tracks and cameras (MotionStream, arXiv 2511.01266)",
        objective_options=_ONE_LEVEL,
        options={"sink_kind": "first", "before": 6, "camera_dropout": 0.3, "track_dropout": 0.3},
    ),
    "reward-forcing": VideoSystem(
        "an averaged sink, and samples that move count more (Lu et al., Reward Forcing, arXiv 2512.04678)",
        objective="re-dmd",
        objective_options=_ONE_LEVEL,
        options={"sink_kind": "ema", "sink_decay": 0.99},
    ),
    "longlive": VideoSystem(
        "long roll-outs whose prompt changes, a fixed sink, a short window (Yang et al., LongLive, arXiv 2509.22622)",
        objective_options=_ONE_LEVEL,
        options={"sink_kind": "first", "before": 12, "switches": 0.5},
    ),
    "realcam": VideoSystem(
        "a video filmed again from another camera, on its own history (Xu et al., RealCam, arXiv 2605.06051)",
        objective_options=_ONE_LEVEL,
        options={"sink_kind": "first", "pairs": True},
    ),
    "blade": VideoSystem(
        "each step on its own levels, attention to the blocks that matter (Gu et al., Video-BLADE, arXiv 2508.10774)",
        objective="tdm",
        objective_options=("shared_level=true",),
        options={"sink_kind": "first", "sparsity": "keep=0.3,block=16"},
    ),
}
"""By name."""


def video_system(name: str) -> VideoSystem:
    """The system of a name.

    Raises:
        ConfigError: there is none; the message lists those that are.
    """
    require_choice("--system", name, SYSTEMS)
    return SYSTEMS[name]
