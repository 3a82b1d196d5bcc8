"""One scene with its optimisers and upkeep, of whatever kind the settings say."""

from typing import assert_never

import torch
from torch import Tensor

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.conversion import gaussians_of, mesh_of, mesh_scene_of
from dreamkit.scenes.density import DensityControl
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.latent_nerf import LatentNerfScene, LatentSpace, latent_shape
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.ray_sampling import OccupancyUpkeep
from dreamkit.scenes.trainable import NoUpkeep, TrainableScene, Upkeep
from dreamkit.training.latent_space import shared_teacher, space_of, space_when_asked
from dreamkit.training.settings import SceneChoice

_INITIAL, _UPKEEP = 1, 3  # streams of randomness, see `seeded`


def seeded(seed: int, stream: int, index: int = 0) -> torch.Generator:
    """A CPU generator for (seed, stream, index); different triples give unrelated numbers.

    The triple is mixed by the finaliser of SplitMix64 (Steele et al., OOPSLA 2014).
    """
    mask = 2**64 - 1
    state = seed & mask
    for value in (stream, index):
        state = (state + 0x9E3779B97F4A7C15 * (value + 1)) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return torch.Generator().manual_seed(state >> 1)


def new_scene(settings: SceneChoice, generator: torch.Generator, space: LatentSpace | None = None) -> TrainableScene:
    """A scene of the settings' kind as it starts; `space` is that of the teacher, by default of the settings'."""
    match settings.scene:
        case "gaussians":
            return GaussianScene.initialise(settings.gaussians, generator)
        case "nerf" | "sdf":
            return NerfScene.initialise(settings.nerf, generator)
        case "latent-nerf":
            space = space or space_of(shared_teacher(settings.teacher, settings.device))
            return LatentNerfScene.initialise(settings.nerf, generator, space, settings.refinement)
        case "mesh":
            return MeshScene.initialise(settings.mesh, generator)
    assert_never(settings.scene)


def continued(
    settings: SceneChoice, start: TrainableScene, generator: torch.Generator, space: LatentSpace | None = None
) -> TrainableScene:
    """A scene of the settings' kind that looks like another of any kind.

    Raises:
        ConfigError: fields start only from fields of their own kind.
        CheckpointError: a field of another size or latent space.
        SceneError: the other has no surface.
    """
    match settings.scene:
        case "gaussians" if not isinstance(start, GaussianScene):
            return gaussians_of(mesh_of(start), settings.gaussians, generator)
        case "mesh" if not isinstance(start, MeshScene):
            return mesh_scene_of(start, settings.mesh, generator)
        case "nerf" | "sdf" if type(start) is not NerfScene:
            raise _other_field(settings, start)
        case "latent-nerf" if type(start) is not LatentNerfScene:
            raise _other_field(settings, start)
    return scene_from_state(settings, start.state(), space)


def _other_field(settings: SceneChoice, start: TrainableScene) -> ConfigError:
    kind = type(start).__name__
    return ConfigError(f"A scene {settings.scene!r} can't start from a {kind}.", "Put fields first.")


def scene_from_state(
    settings: SceneChoice, state: dict[str, Tensor], space: LatentSpace | None = None
) -> TrainableScene:
    """A scene of the settings' kind from what its `state` returned; `space` is that of the teacher.

    Without a space, the teacher of the settings is loaded when somebody looks at a latent scene.

    Raises:
        CheckpointError: the state is of another kind.
    """
    match settings.scene:
        case "gaussians":
            return GaussianScene(state, settings.gaussians)
        case "nerf" | "sdf":
            return NerfScene(state, settings.nerf)
        case "latent-nerf":
            space = space or space_when_asked(settings.teacher, settings.device, latent_shape(state))
            return LatentNerfScene(state, settings.nerf, space, settings.refinement)
        case "mesh":
            return MeshScene(state, settings.mesh)
    assert_never(settings.scene)


def new_upkeep(settings: SceneChoice, generator: torch.Generator) -> Upkeep:
    """What changes a scene of the settings' kind besides its optimisers."""
    match settings.scene:
        case "gaussians":
            return DensityControl(settings.density, generator)
        case "nerf" | "sdf" | "latent-nerf":
            return OccupancyUpkeep(settings.nerf, generator)
        case "mesh":
            return NoUpkeep()
    assert_never(settings.scene)


class Particle:
    """One scene with its optimisers and upkeep.

    Args:
        settings: the run.
        index: which of the run's particles.
        device: where to compute.
        start: a scene to start from; by default what the settings say.
        space: what the teacher denoises, for scenes that live in it; by default that of the settings' teacher.
    """

    def __init__(
        self,
        settings: SceneChoice,
        index: int,
        device: torch.device,
        start: TrainableScene | None = None,
        space: LatentSpace | None = None,
    ) -> None:
        generator = seeded(settings.seed, _INITIAL, index)
        if start is None:
            scene = new_scene(settings, generator, space)
        else:
            scene = continued(settings, start.to("cpu"), generator, space)
        self.scene = scene.to(device)
        self.scene.make_optimizers()
        self.upkeep = new_upkeep(settings, seeded(settings.seed, _UPKEEP, index))

    def state(self) -> dict[str, Tensor]:
        """Scene, optimiser moments and upkeep, flat."""
        parts = {
            "scene": self.scene.state(),
            "optimizer": self.scene.optimizer_state(),
            "upkeep": self.upkeep.state(),
        }
        return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Continue from what `state` returned.

        Raises:
            CheckpointError: the state is of another kind of run.
        """
        parts: dict[str, dict[str, Tensor]] = {"scene": {}, "optimizer": {}, "upkeep": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise CheckpointError(f"The checkpoint holds {key!r}, which no scene has.", "Is it of another run?")
            # Adam keeps its step counts, which have no dimension, on the CPU.
            parts[part][name] = value.to(device) if value.ndim else value
        self.scene.load_state(parts["scene"])
        self.scene.make_optimizers()
        self.scene.load_optimizer_state(parts["optimizer"])
        self.upkeep.load_state(parts["upkeep"])
