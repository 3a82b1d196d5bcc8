"""The loop that drives a scene by an objective. It holds no mathematics of any method.

cameras -> scene.render -> teacher.encode_image -> objective -> surrogate loss -> optimiser -> density control

Every step draws its randomness from a generator seeded by (seed, step), so a resumed run is bitwise equal to one
that never stopped, and nothing has to be remembered about random states between steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.prompts import view_prompt
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import CheckpointError
from dreamkit.objectives import Gradient, Objective, ObjectiveContext, objective_class, surrogate_loss
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.density import DensityControl
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.training.settings import SceneSettings, from_plain

_INITIAL, _STEP, _DENSITY = 1, 2, 3  # streams of randomness that one seed feeds


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


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Args:
        metrics: numbers for the log.
        image: [3, H, W] the first training view.
        target: [3, H, W] what the teacher would rather see there, `None` unless asked for.
    """

    metrics: dict[str, float]
    image: Tensor
    target: Tensor | None = None


def make_objective(settings: SceneSettings) -> Objective:
    """The objective of the settings with its options.

    Raises:
        ConfigError: an unknown objective or option.
    """
    return from_plain(objective_class(settings.objective), settings.objective_options)


class SceneTrainer:
    """A Gaussian scene under optimisation.

    Args:
        settings: the run.
        teacher: the frozen diffusion model, on the device to compute on.
    """

    def __init__(self, settings: SceneSettings, teacher: Teacher) -> None:
        self.settings = settings
        self.teacher = teacher
        self.objective = make_objective(settings)
        scene = GaussianScene.initialise(settings.gaussians, seeded(settings.seed, _INITIAL))
        self.scene = scene.to(teacher.device)
        self.scene.make_optimizers()
        self.density = DensityControl(settings.density, seeded(settings.seed, _DENSITY))
        self.step_index = 0
        self._uses_camera = settings.camera_conditioning and teacher.supports_camera

    def conditions(self, cameras: Camera) -> tuple[Condition, Condition]:
        """The prompts of the cameras (with their view's name where asked for) and the negative prompt."""
        settings = self.settings
        prompts = [
            view_prompt(settings.prompt, name) if settings.view_prompts else settings.prompt
            for name in cameras.view_names()
        ]
        if settings.negative:
            return self.teacher.encode_prompt(prompts), self.teacher.encode_prompt([settings.negative])
        return self.teacher.encode_prompt(prompts), self.teacher.null_condition(1)

    def step(self, show_target: bool = False) -> StepResult:
        """Take one optimisation step.

        Args:
            show_target: whether to decode what the teacher would rather see.
        """
        settings, total = self.settings, self.settings.steps
        generator = seeded(settings.seed, _STEP, self.step_index)
        progress = self.step_index / total
        cameras = settings.cameras.sample(settings.views, generator, settings.resolution, settings.resolution)
        background = self.scene.backgrounds(settings.views, generator)
        rendering = self.scene.render(cameras, background)
        x = self.teacher.encode_image(rendering.image)
        gradient = self._gradient(x, cameras, generator)
        loss = surrogate_loss(x, gradient.grad)
        penalties = self.scene.regularisers(progress, total)
        self.density.before_backward(rendering)
        torch.stack([loss, *penalties.values()]).sum().backward()
        self.scene.set_learning_rates(progress, total)
        for optimizer in self.scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        change = self.density.after_step(self.scene, rendering, self.step_index, total)
        self.step_index += 1
        metrics = {"loss": float(loss.detach()), **gradient.diagnostics, "gaussians": float(change.count)}
        metrics |= {name: float(value.detach()) for name, value in penalties.items()}
        target = self.teacher.decode(gradient.target[:1])[0] if show_target else None
        return StepResult(metrics, rendering.image[0].detach(), target)

    def _gradient(self, x: Tensor, cameras: Camera, generator: torch.Generator) -> Gradient:
        positive, negative = self.conditions(cameras)
        context = ObjectiveContext(
            teacher=self.teacher,
            positive=positive,
            negative=negative,
            camera=cameras.pose if self._uses_camera else None,
            step=self.step_index,
            total=self.settings.steps,
            generator=generator,
        )
        return self.objective(x, context)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat: scene, optimiser moments, density control."""
        parts = {
            "scene": self.scene.state(),
            "optimizer": self.scene.optimizer_state(),
            "density": self.density.state(),
        }
        return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from what `state` returned after `step` steps.

        Raises:
            CheckpointError: the state is of another kind of run.
        """
        parts: dict[str, dict[str, Tensor]] = {"scene": {}, "optimizer": {}, "density": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise CheckpointError(f"The checkpoint holds {key!r}, which no scene has.", "Is it of another run?")
            # Adam keeps its step counts, which have no dimension, on the CPU.
            parts[part][name] = value.to(self.teacher.device) if value.ndim else value
        self.scene.load_state(parts["scene"])
        self.scene.make_optimizers()
        self.scene.load_optimizer_state(parts["optimizer"])
        self.density.load_state(parts["density"])
        self.step_index = step


def settings_from_config(config: dict[str, Any]) -> SceneSettings:
    """The settings a run folder was made with.

    Raises:
        ConfigError: fields that this version does not know.
    """
    return from_plain(SceneSettings, config)
