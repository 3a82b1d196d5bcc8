"""One scene with its optimisers and upkeep, of whatever kind the settings say."""

from typing import assert_never

import torch
from torch import Tensor

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.conversion import gaussians_of, mesh_of, mesh_scene_of
from dreamkit.scenes.density import DensityControl
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.ray_sampling import OccupancyUpkeep
from dreamkit.scenes.trainable import NoUpkeep, TrainableScene, Upkeep
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


def new_scene(settings: SceneChoice, generator: torch.Generator) -> TrainableScene:
    """A scene of the settings' kind as it starts."""
    match settings.scene:
        case "gaussians":
            return GaussianScene.initialise(settings.gaussians, generator)
        case "nerf" | "sdf":
            return NerfScene.initialise(settings.nerf, generator)
        case "mesh":
            return MeshScene.initialise(settings.mesh, generator)
    assert_never(settings.scene)


def continued(settings: SceneChoice, start: TrainableScene, generator: torch.Generator) -> TrainableScene:
    """A scene of the settings' kind that looks like another of any kind.

    Raises:
        ConfigError: fields start only from fields of their own kind.
        CheckpointError: a field of another size.
        SceneError: the other has no surface.
    """
    match settings.scene:
        case "gaussians" if not isinstance(start, GaussianScene):
            return gaussians_of(mesh_of(start), settings.gaussians, generator)
        case "mesh" if not isinstance(start, MeshScene):
            return mesh_scene_of(start, settings.mesh, generator)
        case "nerf" | "sdf" if not isinstance(start, NerfScene):
            kind = type(start).__name__
            raise ConfigError(f"A scene {settings.scene!r} can't start from a {kind}.", "Put fields first.")
    return scene_from_state(settings, start.state())


def scene_from_state(settings: SceneChoice, state: dict[str, Tensor]) -> TrainableScene:
    """A scene of the settings' kind from what its `state` returned.

    Raises:
        CheckpointError: the state is of another kind.
    """
    match settings.scene:
        case "gaussians":
            return GaussianScene(state, settings.gaussians)
        case "nerf" | "sdf":
            return NerfScene(state, settings.nerf)
        case "mesh":
            return MeshScene(state, settings.mesh)
    assert_never(settings.scene)


def new_upkeep(settings: SceneChoice, generator: torch.Generator) -> Upkeep:
    """What changes a scene of the settings' kind besides its optimisers."""
    match settings.scene:
        case "gaussians":
            return DensityControl(settings.density, generator)
        case "nerf" | "sdf":
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
    """

    def __init__(
        self, settings: SceneChoice, index: int, device: torch.device, start: TrainableScene | None = None
    ) -> None:
        generator = seeded(settings.seed, _INITIAL, index)
        scene = new_scene(settings, generator) if start is None else continued(settings, start.to("cpu"), generator)
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
