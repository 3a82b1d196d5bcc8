"""The loop that drives a scene by an objective. It holds no mathematics of any method.

cameras -> scene.render -> teacher.encode_image -> objective -> surrogate loss -> optimiser -> density control

A latent scene renders what the teacher denoises, and nothing has to be encoded.

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
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.objectives import Gradient, Objective, ObjectiveContext, Source, objective_class, surrogate_loss
from dreamkit.prompts import view_prompt
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.latent_nerf import LatentNerfScene
from dreamkit.scenes.rendering import Rendering
from dreamkit.scenes.trainable import Moment, TrainableScene
from dreamkit.training.anchors import Anchors, read_anchors
from dreamkit.training.confinement import Confinement
from dreamkit.training.latent_space import space_of
from dreamkit.training.particles import Particle, seeded
from dreamkit.training.settings import SceneSettings, from_plain
from dreamkit.training.views import perp_neg
from dreamkit.training.visual_prompt import read_visual_prompt

_SHOWN_EVERY = 25  # steps of a latent scene
_STEP, _CRITIC, _KEPT = 2, 4, 5  # streams of randomness that one seed feeds (particles: 1 and 3)


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Args:
        metrics: numbers for the log.
        image: [3, H, W] the first training view; `None` at most steps of a latent scene, which has to be decoded.
        target: [3, H, W] what the teacher would rather see there, `None` unless asked for.
    """

    metrics: dict[str, float]
    image: Tensor | None
    target: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """The first half of a step: what was seen, and what is to become small.

    Args:
        moment: when in the run, and the step's randomness.
        rendering: the training views, latents in the place of the image if the scene is made of them.
        x: what the teacher sees of them, [B, C, h, w].
        context: what the objective was told.
        gradient: what it answered.
        losses: to be summed: `loss`, whose gradient on x is the objective's, and the scene's penalties.
    """

    moment: Moment
    rendering: Rendering
    x: Tensor
    context: ObjectiveContext
    gradient: Gradient
    losses: dict[str, Tensor]


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
        self._visual_prompt = read_visual_prompt(settings, teacher)
        self._latent = settings.scene == "latent-nerf"
        space = space_of(teacher)
        self.particles = [
            Particle(settings, index, teacher.device, start, space) for index in range(settings.particles)
        ]
        self.critic = self._make_critic() if self.objective.needs_critic else None
        self._confinement = Confinement(settings.edit) if settings.edit.confines else None
        # What the run starts from: an edit is measured against it.
        compared = self.objective.needs_source or self._confinement is not None
        self._source = Particle(settings, 0, teacher.device, start, space).scene if compared else None
        pictures = read_anchors(settings.anchors, settings.resolution, teacher.device)
        self._anchors = None if pictures is None else Anchors(pictures, settings.anchors)
        self._reference = None if reference is None else teacher.encode_image(reference[None])
        self._null = teacher.null_condition(1)
        self.step_index = 0
        generator = seeded(settings.seed, _STEP)
        cameras = settings.cameras.sample(1, generator, *self._size(0.0))
        background = self.particles[0].scene.backgrounds(1, generator)
        self.objective.check(self._context(cameras, self._source_seen_by(cameras, background), generator))

    @property
    def particle(self) -> Particle:
        """The particle whose turn it is."""
        return self.particles[self.step_index % len(self.particles)]

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
        """The prompts of the cameras (with their view's name where asked for), the negative prompt, and Perp-Neg's.

        For a teacher that reads pictures the picture is the prompt, and no picture the negative one.
        """
        settings = self.settings
        if self._visual_prompt is not None:
            return self._visual_prompt.seen_from(cameras), self._null, None
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
        scene = self.particle.scene
        draw = self.draw()
        torch.stack(list(draw.losses.values())).sum().backward()
        scene.set_learning_rates(draw.moment.progress, draw.moment.total)
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        metrics = self.conclude(draw)
        target = self.teacher.decode(draw.gradient.target[:1])[0] if show_target else None
        return StepResult(metrics, self._shown(draw), target)

    def draw(self) -> Draw:
        """The first half of a step: render the particle whose turn it is, and ask the objective about what is seen.

        The scene's own optimisers, or a loop of somebody else's, take the losses from there; then `conclude`.
        """
        settings, total = self.settings, self.settings.steps
        scene = self.particle.scene
        generator = seeded(settings.seed, _STEP, self.step_index)
        progress = self.step_index / total
        cameras = settings.cameras.sample(settings.views, generator, *self._size(progress))
        background = scene.backgrounds(settings.views, generator)
        moment = Moment(progress, total, generator)
        rendering = scene.render_training(cameras, background, moment)
        x = self._encoded(rendering)
        source = self._source_seen_by(cameras, background)
        context = self._context(cameras, source, generator)
        gradient = self.objective(x, context)
        penalties = scene.penalties(rendering, moment)
        if self._confinement is not None and source is not None:
            masks = self._confinement.masks(cameras, source)
            gradient = self._confinement.confined(gradient, masks)
            penalties = penalties | {"kept": self._confinement.loss(rendering, source, masks)}
        if self._anchors is not None:
            penalties = penalties | {"pictures": self._anchors.loss(scene, moment)}
        loss = surrogate_loss(x, gradient.grad) + self._image_term(rendering, gradient)
        self.particle.upkeep.before_backward(rendering)
        return Draw(moment, rendering, x, context, gradient, {"loss": loss, **penalties})

    def conclude(self, draw: Draw) -> dict[str, float]:
        """The last of a step, after the optimisers: the critic learns, the upkeep follows. Returns numbers for the log.

        Args:
            draw: what `draw` returned.
        """
        particle, context, moment = self.particle, draw.context, draw.moment
        learned = {}
        if self.critic is not None:
            x = draw.x.detach()
            learned = self.critic.update(x, context.positive, context.pose, moment.generator, moment.progress)
        # Upkeep speaks of a particle's own steps.
        own_step, own_total = self.step_index // len(self.particles), -(-moment.total // len(self.particles))
        change = particle.upkeep.after_step(particle.scene, draw.rendering, own_step, own_total)
        self.step_index += 1
        losses = {name: float(value.detach()) for name, value in draw.losses.items()}
        return {"loss": losses["loss"], **draw.gradient.diagnostics, **change.metrics, **learned, **losses}

    def _size(self, progress: float) -> tuple[int, int]:
        """Height and width of the training views."""
        if self._latent:
            return self.teacher.sample_shape[1:]
        share = self.settings.resolution_share.at(progress, self.settings.steps)
        size = max(8, round(self.settings.resolution * share))
        return size, size

    def _encoded(self, rendering: Rendering) -> Tensor:
        """What the teacher sees of a rendering, [B, C, h, w]."""
        return rendering.image if self._latent else self.teacher.encode_image(rendering.image)

    @torch.no_grad()
    def _shown(self, draw: Draw) -> Tensor | None:
        """The first view as a picture, if there is one or it is time to make one."""
        if not self._latent:
            return draw.rendering.image[0].detach()
        return self.teacher.decode(draw.x[:1])[0] if self.step_index % _SHOWN_EVERY == 0 else None

    def _image_term(self, rendering: Rendering, gradient: Gradient) -> Tensor:
        """What the objective's clean samples ask of the image itself, besides what they ask of x."""
        if not gradient.image_pull:
            return rendering.image.new_zeros(())
        wanted = self.teacher.decode(gradient.target).detach()
        image = self.teacher.decode(rendering.image) if self._latent else rendering.image
        if wanted.shape != image.shape:
            wanted = functional.interpolate(wanted, image.shape[-2:], mode="bilinear", antialias=True)
        distance = (image - wanted).square().sum() / len(wanted)
        return 0.5 * gradient.image_pull * distance

    def _context(self, cameras: Camera, source: Rendering | None, generator: torch.Generator) -> ObjectiveContext:
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
            source=self._described(source) if self.objective.needs_source else None,
            reference=self._reference,
            repulsion=repulsion,
            seed=seeded(self.settings.seed, _KEPT).initial_seed(),
        )

    @torch.no_grad()
    def _source_seen_by(self, cameras: Camera, background: Tensor | None) -> Rendering | None:
        source = self._source
        if isinstance(source, LatentNerfScene):
            return source.latents(cameras, background)
        return None if source is None else source.render(cameras, background)

    @torch.no_grad()
    def _described(self, source: Rendering | None) -> Source | None:
        if source is None:
            return None
        prompt = self.settings.source_prompt
        condition = self.teacher.encode_prompt([prompt]) if prompt else self._null
        return Source(self._encoded(source), condition)

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
        ConfigError: fields that this version does not know, or a run that has no prompt.
    """
    if "prompt" not in config and "data" in config:
        raise ConfigError(
            "This run is a fit to pictures: it has no prompt.",
            "`dreamkit render`, `convert`, `export` and `resume` work on it.",
        )
    return from_plain(SceneSettings, config)
