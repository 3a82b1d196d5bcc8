"""The moving toy world: captioned clips with cameras and tracked points, made on the fly, endlessly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.checks import require, require_integer
from dreamkit.toyworld.captions import Thing
from dreamkit.toyworld.motion_captions import MotionWriter, motion_content_words, motion_vocabulary
from dreamkit.toyworld.motion_casting import Casting
from dreamkit.toyworld.motion_config import MOTION_MATERIALS, MOTION_OBJECTS, MotionConfig
from dreamkit.toyworld.motion_meshes import MeshLibrary, ToyMesh, build_motion_cache
from dreamkit.toyworld.motion_render import Stage, paint, random_stage, shapes, shoot, track
from dreamkit.toyworld.motion_scripts import CAMERA_MOVES, MOTIONS, Script

__all__ = [
    "CAMERA_MOVES",
    "MOTIONS",
    "MOTION_MATERIALS",
    "MOTION_OBJECTS",
    "Clips",
    "MotionConfig",
    "MotionWorld",
    "build_motion_cache",
    "motion_content_words",
    "motion_vocabulary",
    "relative_cameras",
]


@dataclass(frozen=True)
class Clips:
    """B clips of F frames.

    Args:
        frames: [B, F, 3, S, S] in [0, 1].
        captions: B strings.
        cameras: [B, F, 12] camera_to_world rows, see `Camera.pose`.
        tracks: [B, F, N, 2] where N points appear: x to the right and y down, in [0, 1] inside the frame.
        visible: [B, F, N] whether they are inside the frame and nothing hides them.
        scripts: B scripts: what happens.
        shapes: [B, F, 4, S / 4, S / 4] share covered by objects, and their normals in camera axes times that share.
    """

    frames: Tensor
    captions: list[str]
    cameras: Tensor
    tracks: Tensor
    visible: Tensor
    scripts: list[Script]
    shapes: Tensor


class MotionWorld:
    """Endless clips from cached meshes.

    Args:
        path: file that `build_motion_cache` made for this configuration.
        config: of the clips.
        hold_out: whether to avoid the compositions of `captions.HELD_OUT`.

    Raises:
        SceneError: the file does not belong to the configuration.
    """

    def __init__(self, path: Path, config: MotionConfig, hold_out: bool = True) -> None:
        self.config = config
        self.hold_out = hold_out
        self.library = MeshLibrary(path, config.shapes)

    def sample(self, count: int, generator: torch.Generator, frames: int | None = None) -> Clips:
        """Draw clips.

        Args:
            count: B, at least 1.
            generator: source of every choice.
            frames: F, by default the configuration's.

        Raises:
            ConfigError: no clips or no frames.
        """
        require_integer("The number of clips", count, 1)
        frames = self.config.frames if frames is None else frames
        require_integer("The number of frames", frames, 1)
        times = torch.arange(frames, dtype=torch.float32)
        casting, writer = Casting(self.library, frames, generator), MotionWriter(generator)
        scripts, captions, pictures, cameras, tracks, visible, solids = [], [], [], [], [], [], []
        for _ in range(count):
            script = casting.random_script(self.hold_out)
            shot = shoot(script, self._meshes(script), times, self.config.size)
            where, seen = track(shot, self.config.points, generator)
            scripts.append(script)
            captions.append(writer.clip(script, name_camera=writer.chance(0.5)))
            pictures.append(paint(shot, script, random_stage(generator)))
            cameras.append(shot.cameras.pose)
            tracks.append(where)
            visible.append(seen)
            solids.append(shapes(shot))
        return Clips(
            frames=torch.stack(pictures),
            captions=captions,
            cameras=torch.stack(cameras),
            tracks=torch.stack(tracks),
            visible=torch.stack(visible),
            scripts=scripts,
            shapes=torch.stack(solids),
        )

    def script(
        self,
        things: Sequence[Thing],
        motion: str = "still",
        direction: str = "",
        camera_move: str = "static",
        generator: torch.Generator | None = None,
    ) -> Script:
        """A script of a stated composition, held out or not; sizes, speeds, phases and views are drawn.

        Args:
            things: one, or two for "passing".
            motion: one of `MOTIONS`.
            direction: "left" or "right" where the motion has one; where it must have one it must be given.
            camera_move: one of `CAMERA_MOVES`.
            generator: source of what is not stated; one with seed 0 by default.

        Raises:
            ConfigError: a word that this world does not have, or things that can't move like that.
        """
        generator = generator or torch.Generator().manual_seed(0)
        return Casting(self.library, self.config.frames, generator).script(things, motion, direction, camera_move)

    def render(
        self,
        script: Script,
        times: Tensor,  # [F] frame numbers, at least 0, finite
        stage: Stage | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Frames [F, 3, S, S] of a script at any times, under a stated look (or that of seed 0).

        Raises:
            ConfigError: times that are no vector of finite numbers of at least 0.
        """
        fine = times.ndim == 1 and len(times) > 0 and bool((torch.isfinite(times) & (times >= 0)).all())
        require("The times of a clip", fine, times.tolist(), "frame numbers [F], finite and at least 0")
        stage = stage or random_stage(torch.Generator().manual_seed(0))
        return paint(shoot(script, self._meshes(script), times.float(), size or self.config.size), script, stage)

    def caption(self, script: Script, generator: torch.Generator, name_camera: bool = True) -> str:
        """A caption of a script, its wording drawn; of a static camera nothing is told."""
        return MotionWriter(generator).clip(script, name_camera)

    def _meshes(self, script: Script) -> list[ToyMesh]:
        return [self.library.mesh(mover.thing.name, mover.shape) for mover in script.movers]


def relative_cameras(
    cameras: Tensor,  # [B, F, 12] camera_to_world rows
) -> Tensor:
    """Cameras [B, F, 12] seen from each clip's first: C_0^-1 C_f, the first the identity.

    Raises:
        ConfigError: another shape.
    """
    require(
        "The shape of the cameras", cameras.ndim == 3 and cameras.shape[2] == 12, tuple(cameras.shape), "[B, F, 12]"
    )
    rotation, position = cameras.unflatten(2, (3, 4)).split([3, 1], dim=3)
    to_first = rotation[:, :1].mT
    return torch.cat([to_first @ rotation, to_first @ (position - position[:, :1])], dim=3).flatten(2)
