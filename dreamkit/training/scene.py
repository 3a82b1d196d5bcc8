"""The loop that drives a scene by an objective. It holds no mathematics of any method.

cameras -> scene.render -> teacher.encode_image -> objective -> surrogate loss -> optimiser -> density control

Every step draws its randomness from a generator seeded by (seed, step), so a resumed run is bitwise equal to one
that never stopped, and nothing has to be remembered about random states between steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.critic import Critic, NetworkCritic
from dreamkit.diffusion.guidance import Repulsion
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.prompts import view_prompt
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import TeacherError
from dreamkit.objectives import Gradient, Objective, ObjectiveContext, Source, objective_class, surrogate_loss
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.rendering import Rendering
from dreamkit.scenes.trainable import Moment, TrainableScene
from dreamkit.training.particles import Particle, seeded
from dreamkit.training.settings import SceneSettings, from_plain
from dreamkit.training.views import perp_neg

_STEP, _CRITIC, _KEPT = 2, 4, 5  # streams of randomness that one seed feeds (particles: 1 and 3)


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
    """Scenes under optimisation: one, or several particles that share a critic and take turns.

    Args:
        settings: the run.
        teacher: the frozen diffusion model, on the device to compute on.
        reference: [3, H, W] in [0, 1], a picture that the result should resemble (for objectives that read one).
        start: a scene of any kind to start from; by default what the settings say.

    Raises:
        ConfigError: an unknown objective or option.
        TeacherError: the teacher or the objective can't do what the settings ask.
    """

    def __init__(
        self,
        settings: SceneSettings,
        teacher: Teacher,
        reference: Tensor | None = None,
        start: TrainableScene | None = None,
    ) -> None:
        self.settings = settings
        self.teacher = teacher
        self.objective = make_objective(settings)
        self._uses_camera = settings.camera_conditioning and teacher.supports_camera
        self.particles = [Particle(settings, index, teacher.device, start) for index in range(settings.particles)]
        self.critic = self._make_critic() if self.objective.needs_critic else None
        # What the run starts from: an edit is measured against it.
        self._source = Particle(settings, 0, teacher.device, start).scene if self.objective.needs_source else None
        self._reference = None if reference is None else teacher.encode_image(reference[None])
        self._null = teacher.null_condition(1)
        self.step_index = 0
        generator = seeded(settings.seed, _STEP)
        cameras = settings.cameras.sample(1, generator, settings.resolution, settings.resolution)
        background = self.particles[0].scene.backgrounds(1, generator)
        self.objective.check(self._context(cameras, background, generator))

    @property
    def scene(self) -> TrainableScene:
        """The first particle's scene: what the run delivers."""
        return self.particles[0].scene

    @property
    def calls(self) -> int:
        """Samples that went through the teacher and the critic so far."""
        return self.teacher.calls + (0 if self.critic is None else self.critic.calls)

    def _make_critic(self) -> Critic:
        if not isinstance(self.teacher, NetworkTeacher):
            raise TeacherError(
                f"{self.settings.objective} needs a critic, which {self.teacher.name} can't be made into."
            )
        seed = seeded(self.settings.seed, _CRITIC).initial_seed()
        return NetworkCritic(self.teacher, self.settings.critic, seed, native_camera=self._uses_camera)

    def conditions(self, cameras: Camera) -> tuple[Condition, Condition, Repulsion | None]:
        """The prompts of the cameras (with their view's name where asked for), the negative prompt, and Perp-Neg's."""
        settings = self.settings
        negative = self.teacher.encode_prompt([settings.negative]) if settings.negative else self._null
        if settings.perp_neg:
            azimuths, elevations = cameras.azimuth.tolist(), cameras.elevation.tolist()
            positive, repulsion = perp_neg(self.teacher, settings.prompt, azimuths, elevations)
            return positive, negative, repulsion
        prompts = [
            view_prompt(settings.prompt, name) if settings.view_prompts else settings.prompt
            for name in cameras.view_names()
        ]
        return self.teacher.encode_prompt(prompts), negative, None

    def step(self, show_target: bool = False) -> StepResult:
        """Take one optimisation step.

        Args:
            show_target: whether to decode what the teacher would rather see.
        """
        settings, total = self.settings, self.settings.steps
        particle = self.particles[self.step_index % len(self.particles)]
        scene = particle.scene
        generator = seeded(settings.seed, _STEP, self.step_index)
        progress = self.step_index / total
        size = max(8, round(settings.resolution * settings.resolution_share.at(progress, total)))
        cameras = settings.cameras.sample(settings.views, generator, size, size)
        background = scene.backgrounds(settings.views, generator)
        moment = Moment(progress, total, generator)
        rendering = scene.render_training(cameras, background, moment)
        x = self.teacher.encode_image(rendering.image)
        context = self._context(cameras, background, generator)
        gradient = self.objective(x, context)
        loss = surrogate_loss(x, gradient.grad) + self._image_term(rendering, gradient)
        penalties = scene.penalties(rendering, moment)
        particle.upkeep.before_backward(rendering)
        torch.stack([loss, *penalties.values()]).sum().backward()
        scene.set_learning_rates(progress, total)
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        learned = {}
        if self.critic is not None:
            learned = self.critic.update(x.detach(), context.positive, context.pose, generator, progress)
        # Upkeep speaks of a particle's own steps.
        own_step, own_total = self.step_index // len(self.particles), -(-total // len(self.particles))
        change = particle.upkeep.after_step(scene, rendering, own_step, own_total)
        self.step_index += 1
        metrics = {"loss": float(loss.detach()), **gradient.diagnostics, **change.metrics, **learned}
        metrics |= {name: float(value.detach()) for name, value in penalties.items()}
        target = self.teacher.decode(gradient.target[:1])[0] if show_target else None
        return StepResult(metrics, rendering.image[0].detach(), target)

    def _image_term(self, rendering: Rendering, gradient: Gradient) -> Tensor:
        """What the objective's clean samples ask of the image itself, besides what they ask of x."""
        if not gradient.image_pull:
            return rendering.image.new_zeros(())
        wanted = self.teacher.decode(gradient.target).detach()
        if wanted.shape != rendering.image.shape:
            wanted = functional.interpolate(wanted, rendering.image.shape[-2:], mode="bilinear", antialias=True)
        distance = (rendering.image - wanted).square().sum() / len(wanted)
        return 0.5 * gradient.image_pull * distance

    def _context(self, cameras: Camera, background: Tensor | None, generator: torch.Generator) -> ObjectiveContext:
        positive, negative, repulsion = self.conditions(cameras)
        return ObjectiveContext(
            teacher=self.teacher,
            positive=positive,
            negative=negative,
            null=self._null,
            camera=cameras.pose if self._uses_camera else None,
            step=self.step_index,
            total=self.settings.steps,
            generator=generator,
            pose=cameras.pose,
            critic=self.critic,
            source=self._source_seen_by(cameras, background),
            reference=self._reference,
            repulsion=repulsion,
            seed=seeded(self.settings.seed, _KEPT).initial_seed(),
        )

    @torch.no_grad()
    def _source_seen_by(self, cameras: Camera, background: Tensor | None) -> Source | None:
        if self._source is None:
            return None
        prompt = self.settings.source_prompt
        condition = self.teacher.encode_prompt([prompt]) if prompt else self._null
        return Source(self.teacher.encode_image(self._source.render(cameras, background).image), condition)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, flat: particles (the first without a prefix) and critic."""
        tensors = dict(self.particles[0].state())
        for index, particle in enumerate(self.particles[1:], start=1):
            tensors |= {f"particle-{index}/{name}": value for name, value in particle.state().items()}
        if self.critic is not None:
            tensors |= {f"critic/{name}": value for name, value in self.critic.state().items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from what `state` returned after `step` steps.

        Raises:
            CheckpointError: the state is of another kind of run.
        """
        prefixes = [f"particle-{index}/" for index in range(1, len(self.particles))]
        critic = "critic/"
        named = [*prefixes, *([] if self.critic is None else [critic])]
        parts = {
            prefix: {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            for prefix in named
        }
        rest = {key: value for key, value in tensors.items() if not key.startswith(tuple(named) or "\0")}
        for particle, state in zip(self.particles, [rest, *(parts[prefix] for prefix in prefixes)], strict=True):
            particle.load_state(state, self.teacher.device)
        if self.critic is not None:
            self.critic.load_state(parts[critic])
        self.step_index = step


def settings_from_config(config: dict[str, Any]) -> SceneSettings:
    """The settings a run folder was made with.

    Raises:
        ConfigError: fields that this version does not know.
    """
    return from_plain(SceneSettings, config)
