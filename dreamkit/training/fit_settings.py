"""Everything that decides a fit to pictures, as one frozen dataclass that a run folder keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dreamkit.captures.options import CaptureOptions
from dreamkit.checks import one_of, require, require_integer
from dreamkit.config import Schedule
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.latent_refinement import RefinementConfig
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.training.poses import PoseConfig
from dreamkit.training.settings import EMBEDDED, from_plain

FitKind = Literal["gaussians", "nerf", "sdf", "latent-nerf"]
FITS: dict[str, int] = {"gaussians": 2500, "nerf": 2000, "sdf": 2000}
"""Kinds of scene that are fitted to the pictures themselves, with their steps."""
FIT_STEPS = FITS | {"latent-nerf": 2000}
"""The same, with the kind that is fitted to encoded pictures."""
_JOB = "fit"


@dataclass(frozen=True)
class FitSettings:
    """A fit to pictures, complete: with the same settings and pictures the same bytes come out on a CPU."""

    data: str = ""
    """The set's folder."""
    scene: FitKind = "gaussians"
    """Kind of scene: Gaussians, a NeRF of density, one of signed distance (sdf), or of a teacher's latents
    (latent-nerf)."""
    captures: CaptureOptions = field(default_factory=CaptureOptions)
    """How the pictures are read."""
    gaussians: GaussianConfig = field(
        default_factory=lambda: GaussianConfig(count=4000, initial_opacity=0.1, background="random")
    )
    """Start, learning rates and regularisers of a Gaussian scene."""
    nerf: NerfConfig = field(default_factory=NerfConfig)
    """Start, sampling, learning rates and penalties of a NeRF."""
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    """Size and learning rate of what corrects the latents of a latent-nerf."""
    teacher: str = EMBEDDED
    """Whose latents a latent-nerf is made of: the embedded teacher, a diffusers folder or a hub id."""
    density: DensityConfig = field(
        default_factory=lambda: DensityConfig(max_count=12_000, start=0.05, stop=0.6, interval=50)
    )
    """When Gaussians are added and removed."""
    poses: PoseConfig = field(default_factory=PoseConfig)
    """Whether and how the cameras are corrected."""
    steps: int = 2000
    """Optimisation steps."""
    rays: int = 4096
    """Pixels a step of a NeRF; Gaussians take a whole picture, a latent-nerf as many as make up the number."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu or cuda."""
    job: str = _JOB
    """What a run folder's configuration is told by."""

    def __post_init__(self) -> None:
        one_of("The scene", self.scene, get_args(FitKind))
        require("job", self.job == _JOB, self.job, repr(_JOB))
        limits = {"steps": (1, 10**7), "rays": (16, 2**20), "checkpoint_every": (1, 10**7), "seed": (0, 2**63 - 1)}
        for name, (low, high) in limits.items():
            require_integer(name, getattr(self, name), low, high)
        if self.scene != "gaussians":
            wanted = "volsdf or neus" if self.scene == "sdf" else "density"
            fits = self.nerf.signed == (self.scene == "sdf")
            require(f"The geometry of a scene {self.scene!r}", fits, self.nerf.geometry, wanted)

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.steps

    @property
    def mesh(self) -> MeshSceneConfig:
        """Never asked for: meshes are cut from a fit, not fitted."""
        return MeshSceneConfig()


def fit_preset(scene: FitKind, refine_poses: bool = False, **options: Any) -> FitSettings:
    """What gives a good fit of a kind of scene without an option; and options over it.

    Args:
        scene: the kind.
        refine_poses: whether cameras are corrected.
        options: fields of `FitSettings`; those that are `None` are left.

    Raises:
        ConfigError: an option out of range.
    """
    one_of("The scene", scene, FIT_STEPS)
    base = FitSettings(
        scene=scene, nerf=NerfConfig(geometry="neus") if scene == "sdf" else NerfConfig(), steps=FIT_STEPS[scene]
    )
    if refine_poses:
        # A NeRF sees every view in every step, Gaussians and latents one.
        rate = 5e-3 if scene in ("nerf", "sdf") else 2e-2
        base = replace(base, poses=PoseConfig(True, rate=Schedule(0.0, rate, 0.02 * rate, 1.0, "exponential")))
    return replace(base, **{name: value for name, value in options.items() if value is not None})


def is_fit(config: Mapping[str, Any]) -> bool:
    """Whether a run folder's configuration is that of a fit."""
    return config.get("job") == _JOB


def fit_settings(config: Mapping[str, Any]) -> FitSettings:
    """The settings that a fit's run folder was made with.

    Raises:
        ConfigError: fields that this version does not know.
    """
    settings: FitSettings = from_plain(FitSettings, config)
    return settings
