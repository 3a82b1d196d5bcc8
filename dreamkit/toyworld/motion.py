"""The moving toy world: captioned clips with cameras and tracked points, made on the fly, endlessly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dreamkit.checks import require, require_integer, require_number
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
        times, casting, writer = self._crew(count, generator, frames)
        clips = []
        for _ in range(count):
            script = casting.random_script(self.hold_out)
            shot = shoot(script, self._meshes(script), times, self.config.size)
            where, seen = track(shot, self.config.points, generator)
            caption = writer.clip(script, name_camera=writer.chance(0.5))
            pictures = paint(shot, script, random_stage(generator))
            clips.append(_Filmed(script, caption, pictures, shot.cameras.pose, where, seen, shapes(shot)))
        return _stacked(clips)

    def sample_pairs(
        self, count: int, generator: torch.Generator, loops: float = 0.5, frames: int | None = None
    ) -> Clips:
        """Draw clips that two cameras film at once, for filming a video again from another camera.

        The frames of the two take turns, s_0 t_0 s_1 t_1 ... (see `dreamkit.video.pairs`), so there are 2 F of them.
        The second camera begins where the first does, and moves as it likes. In a share of the clips its way is there
        and back, so that the last frame is seen from where the first was: loop-closed data, from which a model learns
        to find again what it left (Xu et al., "RealCam", arXiv 2605.06051; exact here, where every view can be made).
        The captions say nothing of cameras.

        Args:
            count: B, at least 1.
            generator: source of every choice.
            loops: share of the clips whose second camera comes back, 0 to 1.
            frames: F of each camera, by default the configuration's.

        Raises:
            ConfigError: no clips, no frames or no share.
        """
        require_number("The share of loops", loops, 0, 1)
        times, casting, writer = self._crew(count, generator, frames)
        clips = []
        for _ in range(count):
            script = casting.random_script(self.hold_out)
            second = replace(script, camera=casting.second_camera(script.camera))
            there_and_back = torch.minimum(times, times[-1] - times) if writer.chance(loops) else times
            meshes, size, stage = self._meshes(script), self.config.size, random_stage(generator)
            shots = [
                shoot(script, meshes, times, size),
                shoot(script, meshes, times, size, second.cameras(there_and_back, size)),
            ]
            parts = [
                (
                    paint(shot, script, stage),
                    shot.cameras.pose,
                    *track(shot, self.config.points, generator),
                    shapes(shot),
                )
                for shot in shots
            ]
            turns = [torch.stack(items, dim=1).flatten(0, 1) for items in zip(*parts, strict=True)]
            clips.append(_Filmed(script, writer.clip(script, name_camera=False), *turns))
        return _stacked(clips)

    def _crew(self, count: int, generator: torch.Generator, frames: int | None) -> tuple[Tensor, Casting, MotionWriter]:
        """The times of a clip's frames, who casts it and who describes it."""
        require_integer("The number of clips", count, 1)
        frames = self.config.frames if frames is None else frames
        require_integer("The number of frames", frames, 1)
        times = torch.arange(frames, dtype=torch.float32)
        return times, Casting(self.library, frames, generator), MotionWriter(generator)

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


@dataclass(frozen=True)
class _Filmed:
    """One clip: the parts of `Clips`."""

    script: Script
    caption: str
    frames: Tensor
    cameras: Tensor
    tracks: Tensor
    visible: Tensor
    shapes: Tensor


def _stacked(clips: Sequence[_Filmed]) -> Clips:
    def stack(name: str) -> Tensor:
        return torch.stack([getattr(clip, name) for clip in clips])

    return Clips(
        frames=stack("frames"),
        captions=[clip.caption for clip in clips],
        cameras=stack("cameras"),
        tracks=stack("tracks"),
        visible=stack("visible"),
        scripts=[clip.script for clip in clips],
        shapes=stack("shapes"),
    )


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
