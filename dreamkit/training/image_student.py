"""Trains an image student of one step, or of a few, by distribution matching: `dreamkit distill image`.

The student is the teacher's own network, asked once: x is its clean sample at the noisiest level, out of noise alone. A
critic, the same network again, learns what the student makes; the objective says where x should go, by how teacher and
critic differ. What is trained is exported as a pipeline folder that `load_teacher` reads, see `diffusion.students`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.diffusion.hub import EMBEDDED, teacher_folder
from dreamkit.diffusion.loading import load_teacher, network_component, resolve_device
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.students import NetworkStudent, StudentConfig, few_levels, save_student
from dreamkit.errors import ConfigError
from dreamkit.metrics.judge import COMPOSITIONS, Judge, load_judge
from dreamkit.metrics.scores import Target
from dreamkit.objectives import Matching, MatchingContext, student_objective_names
from dreamkit.objectives.dmd import DistributionMatching
from dreamkit.toyworld.dataset import GeometryConfig, ToyWorld, build_cache
from dreamkit.training.image_student_maker import Lesson, Maker
from dreamkit.training.image_student_networks import CriticNetworks, HeadDiscriminator, make_head, trainable_copy
from dreamkit.training.image_student_path import FILE as PATH_FILE
from dreamkit.training.image_student_path import recorded_path
from dreamkit.training.image_student_sources import (
    PictureFolder,
    Sentences,
    Source,
    ToyCaptions,
    ToyPictures,
    picture_files,
    read_prompts,
    require_toy_words,
    sentences_for,
)
from dreamkit.training.matching import Made, MatchingTrainer, matching_objective
from dreamkit.training.presets import is_toy
from dreamkit.training.teacher_loop import Report, Tell, require_positive, run_training

FOLDER = "student"
"""Of the exported pipeline, in the folder of the run."""
TEACHER_STEPS = 20
"""Of the teacher's pictures in a sample grid."""
_CRITIC_STEPS = 5
"""Of the critic for each of the student's, as in DMD2; SwiftBrush and the distances of scores take 1."""
_FAINT, _CLEAR = 0.01, 0.05
"""Share of the signal at a level: too little for a teacher that predicts noise, and enough."""

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class ImageStudentOptions:
    """How to train an image student of one step, or of a few."""

    teacher: str = EMBEDDED
    """The diffusion model to distil: the embedded one, a folder in diffusers layout, or a hub id."""
    objective: str = "dmd"
    """How the student is matched with its teacher; `dreamkit objectives` lists and explains those of a student."""
    option: tuple[str, ...] = ()
    """Change an option of the objective, e.g. guidance=3, gan_weight=1e-3; may be given several times."""
    out: Path = Path("outputs/students/image")
    """Folder of the run: checkpoints, metrics, sample grids and the finished student."""
    prompts: Path | None = None
    """Text file of prompts, a sentence a line. The embedded teacher has the toy world's own captions."""
    pictures: Path | None = None
    """Folder of real pictures, where the objective learns from data. The embedded teacher has the toy world's own."""
    geometry: Path | None = None
    """Folder of the traced toy world, where its pictures are used; geometry/ of the run by default."""
    steps: int = 1000
    """Steps of the student."""
    cooldown: int = 200
    """Steps at the end over which the learning rates fall to zero."""
    warmup: int = 20
    """Steps at the start over which the learning rates rise."""
    batch: int = 16
    """Samples of a pass."""
    accumulate: int = 1
    """Passes of --batch whose gradients make a step, the critic's as the student's."""
    steps_per_sample: int = 1
    """Network calls of the student for a sample. Of several, each training step ends at one drawn at random."""
    start_level: float = 1.0
    """Noise level that the student starts from, above 0, at most 1."""
    critic_steps: int = 0
    """Steps of the critic before each of the student's; 0 takes the published number: 5, or 1 for swiftbrush, sid, sim
    and uni-instruct."""
    lr: float = 3e-4
    """Learning rate of the student's matrices (Muon). Large networks want 1e-5 and less."""
    lr_rest: float = 3e-4
    """Learning rate of everything else of the student (AdamW)."""
    critic_lr: float = 6e-4
    """Learning rate of the critic's matrices (Muon)."""
    critic_lr_rest: float = 6e-4
    """Learning rate of everything else of the critic (AdamW), GAN head included."""
    ema: float = 0.99
    """Decay of the averaged weights, which are exported."""
    camera_dropout: float = 0.5
    """Share of samples whose camera is withheld, for a teacher that takes one."""
    path_length: int = 4
    """Degraded copies of the teacher that disback meets on its way."""
    path_steps: int = 50
    """Steps of training between two of them."""
    negative_scale: float = 0.5
    """How much of a negative prompt's cross-attention the exported student subtracts (NASA), >= 0."""
    precision: Precision = "auto"
    """What matrices are multiplied in: float32, bfloat16, or auto: bfloat16 on a GPU."""
    seed: int = 0
    """Seed of prompts, cameras and noise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    sample_every: int = 200
    """Steps between sample grids; 0 draws none."""

    def __post_init__(self) -> None:
        require_choice("--objective", self.objective, student_objective_names())
        require_choice("--precision", self.precision, get_args(Precision))
        names = ("steps", "batch", "accumulate", "steps_per_sample", "path_length", "path_steps", "checkpoint_every")
        require_positive(self, names)
        for name in ("cooldown", "warmup", "critic_steps", "sample_every"):
            require_integer(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("ema", "camera_dropout"):
            require_number(f"--{name.replace('_', '-')}", getattr(self, name), 0, 1)
        for name in ("lr", "lr_rest", "critic_lr", "critic_lr_rest", "negative_scale"):
            require_number(f"--{name.replace('_', '-')}", getattr(self, name), 0)
        require_number("--start-level", self.start_level, 1e-3, 1)


# What is checked before anything is loaded ----------------------------------------------------------------------------


def image_objective(options: ImageStudentOptions) -> Matching:
    """The objective of the options, checked for what images can give it.

    Raises:
        ConfigError: an unknown option, or one that does not go with these images, steps or pictures.
    """
    several, segmented = options.steps_per_sample > 1, options.objective == "tdm"
    # TDM's segments are the student's steps: told once, they are the same.
    told = (f"segments={options.steps_per_sample}",) if segmented else ()
    objective = matching_objective(options.objective, [*told, *options.option])
    if several and objective.needs_sample_level:
        raise ConfigError(
            f"{objective.name} with {options.steps_per_sample} steps needs a critic for each of its phases, "
            "and an image student has one.",
            "Use --steps-per-sample 1, or tdm, which matches each step on its own levels.",
        )
    if segmented and getattr(objective, "segments", None) != options.steps_per_sample:
        raise ConfigError(
            f"tdm with {getattr(objective, 'segments', None)} segments does not fit a student of "
            f"{options.steps_per_sample} steps.",
            "Leave segments out: they follow --steps-per-sample.",
        )
    if segmented and several and objective.shift != 1:
        raise ConfigError(
            f"A shift of {objective.shift} moves tdm's segments away from the student's evenly spaced levels.",
            "Use shift=1, or one step.",
        )
    if objective.learns_from_data and options.prompts is not None and options.pictures is None:
        raise ConfigError(
            f"{objective.name} learns from pictures, and there are none of these prompts.",
            "Give --pictures FOLDER" + (", or gan_weight=0." if hasattr(objective, "gan_weight") else "."),
        )
    if options.pictures is not None:
        if not (objective.learns_from_data or objective.needs_student):
            raise ConfigError(
                f"{objective.name} learns from no pictures.", "Leave --pictures out, or use --option gan_weight=1e-3."
            )
        picture_files(options.pictures)
    return objective


def require_teacher(teacher: NetworkTeacher, options: ImageStudentOptions) -> None:
    """Check that a model can be distilled, from the level that is asked for.

    Raises:
        ConfigError: it reads pictures, is a student itself, or sees no clean sample at that level.
    """
    if teacher.reads_pictures:
        raise ConfigError(f"{teacher.name} reads pictures in place of prompts.", "Distil a text-to-image model.")
    if isinstance(teacher, NetworkStudent):
        raise ConfigError(
            f"{teacher.name} is a student itself: it knows {len(teacher.student.levels)} noise levels.",
            f"Distil its own teacher, {teacher.student.teacher or 'a model of many steps'}.",
        )
    alpha = float(teacher.schedule.alpha(options.start_level))
    if teacher.prediction_type == "eps" and alpha < _FAINT:
        levels = [index / 100 for index in range(1, 100)]
        highest = max(t for t in levels if float(teacher.schedule.alpha(t)) >= _CLEAR)
        raise ConfigError(
            f"{teacher.name} predicts noise, and at level {options.start_level:g} a noisy sample holds {alpha:.1g} of "
            "the clean one: what is left when the noise is taken out is an accident.",
            f"Use --start-level {highest:g}.",
        )


def require_judged(prompts: Sequence[str], objective: Matching) -> None:
    """Check that the judge, whose agreement is the reward, can say anything of prompts.

    Raises:
        ConfigError: none of them names an object of the toy world.
    """
    if all(Target.from_prompt(prompt).name is None for prompt in prompts):
        raise ConfigError(
            f"The reward of {objective.name} is the embedded judge's, who knows the toy world's objects alone, and no "
            "prompt names one.",
            "Use an objective without a reward.",
        )


def make_source(
    options: ImageStudentOptions, objective: Matching, teacher: NetworkTeacher, tell: Tell
) -> tuple[Source, PictureFolder | None]:
    """Where prompts come from, and pictures that are not of them.

    Raises:
        ConfigError: a teacher that is none of the toy world and no prompts for it, or a file that holds none.
        PromptError: a prompt that the teacher does not understand.
    """
    toy = is_toy(teacher)
    pictures = None if options.pictures is None else PictureFolder(options.pictures, teacher.image_size)
    if options.prompts is not None:
        return sentences_for(teacher, read_prompts(options.prompts), toy), pictures
    require_toy_words(teacher)
    if pictures is not None or not (objective.learns_from_data or objective.needs_student):
        return ToyCaptions(toy), pictures
    tell("tracing the geometry of the toy world (once)")
    cache = build_cache(GeometryConfig(), options.geometry or options.out / "geometry")
    return ToyPictures(ToyWorld(cache), toy), None


# The training ---------------------------------------------------------------------------------------------------------


class ImageStudentTrainer(MatchingTrainer):
    """The state of a training run and one step of it.

    Args:
        options: settings.
        tell: called with a sentence when something is worth saying.

    Raises:
        ConfigError: an objective, teacher, prompts or pictures that don't go together.
        PromptError: a prompt that the teacher does not understand.
        TeacherError: the teacher can't be loaded.
    """

    def __init__(self, options: ImageStudentOptions, tell: Tell = lambda text: None) -> None:
        objective = image_objective(options)
        self.options = options = replace(options, critic_steps=options.critic_steps or published_steps(objective))
        self.device = resolve_device(options.device)
        half = options.precision == "bfloat16" or (options.precision == "auto" and self.device.type == "cuda")
        self.teacher = load_teacher(options.teacher, self.device, torch.float32)
        require_teacher(self.teacher, options)
        self.source, pictures = make_source(options, objective, self.teacher, tell)
        self.judge = load_judge() if objective.needs_reward else None
        if self.judge is not None and isinstance(self.source, Sentences):
            require_judged(self.source.prompts, objective)
        self.model = trainable_copy(self.teacher)
        self.critic_model = trainable_copy(self.teacher)
        if half:
            nn.Module.to(self.teacher.network, dtype=torch.bfloat16)  # diffusers' own warns about layers it has not
        levels = few_levels(options.steps_per_sample, options.start_level)
        self.maker = Maker(self.teacher, self.source, pictures, levels, options.batch, options.camera_dropout, half)
        self.path = self._way_down(objective, tell) if objective.needs_path else []
        critic = None
        if objective.needs_critic:
            head = make_head(self.critic_model, options.seed) if objective.learns_from_data else None
            critic = CriticNetworks(self.critic_model.network, head)
        super().__init__(self.model.network, critic, objective, options)
        self.half_precision = half
        self._of_teacher: Tensor | None = None

    def _way_down(self, objective: Matching, tell: Tell) -> list[NetworkTeacher]:
        """The path of degraded teachers; the critic starts where it ends, with what knows the student best."""
        options, file = self.options, self.options.out / PATH_FILE
        if not file.exists():
            tell(f"recording {options.path_length} degraded teachers (once)")
        length, steps, rate = options.path_length, options.path_steps, options.critic_lr_rest
        # No discriminator is asked on the way down.
        plain = replace(objective, gan_weight=0.0) if isinstance(objective, DistributionMatching) else objective
        path = recorded_path(self.maker, self.model, plain, file, length, steps, rate, options.seed)
        self.critic_model.network.load_state_dict(path[-1].network.state_dict())
        return path

    def make(self, generator: torch.Generator, trained: bool) -> Made:
        """Draw prompts and cameras, let the student make samples for them, and bind the judges to them."""
        lesson = self.maker.draw(generator)
        if self.critic is None and lesson.data is not None:  # nobody judges what the student makes
            return Made(lesson.data, self._context(lesson, generator))
        x, level = self.maker.make(self.model, lesson, generator, trained)
        context = self._context(lesson, generator)
        clean = torch.zeros_like(level)
        reward = self._reward(x, lesson, trained) if self.objective.needs_reward else None
        return Made(x, replace(context, student_level=level, sample_level=clean, reward=reward))

    def _context(self, lesson: Lesson, generator: torch.Generator) -> MatchingContext:
        """What the objective may know besides the student's samples."""
        maker, critic = self.maker, self.critic
        discriminator = None
        if isinstance(critic, CriticNetworks) and critic.head is not None:
            discriminator = HeadDiscriminator(critic.head, maker.judge_of_data(self.critic_model, lesson))
        return MatchingContext(
            teacher=maker.denoiser(self.teacher, lesson),
            schedule=self.teacher.schedule,
            generator=generator,
            critic=None if critic is None else maker.denoiser(self.critic_model, lesson),
            discriminator=discriminator,
            # A derivative by differences would drown in bfloat16's rounding.
            student=maker.denoiser(self.model, lesson, exact=True) if self.objective.needs_student else None,
            data=lesson.data,
            path=[maker.denoiser(model, lesson) for model in self.path],
        )

    @torch.no_grad()
    def _reward(self, x: Tensor, lesson: Lesson, trained: bool) -> Tensor:
        """The judge's agreement with the prompts, [B]; nobody asks for it where the critic alone learns."""
        if self.judge is None or not trained:
            return x.new_zeros(len(x))
        return agreement(self.judge, self.teacher.decode(x), lesson.prompts)

    def student_config(self) -> StudentConfig:
        """How the student is sampled, for the index of its pipeline folder."""
        options = self.options
        return StudentConfig(
            options.steps_per_sample,
            options.start_level,
            negative_scale=options.negative_scale,
            objective=options.objective,
            teacher=options.teacher,
        )

    def export(self, folder: Path) -> Path:
        """Write the averaged weights as a pipeline folder of float16 safetensors."""
        teacher = teacher_folder(self.options.teacher, prefer_half=self.device.type == "cuda")
        with self.averaged(torch.float16):
            return save_student(self.trained, network_component(teacher), teacher, folder, self.student_config())

    def draw_samples(self, folder: Path, picture: Path) -> None:
        """The teacher's pictures in many steps, each beside the student's of the same prompt and noise."""
        from dreamkit.scenes.pictures import contact_sheet

        prompts = self.source.shown
        if self._of_teacher is None:
            guidance = self.objective.guidance.at(1.0, self.options.steps)
            self._of_teacher = self.teacher.sample(prompts, TEACHER_STEPS, guidance, _seeded()).cpu()
        student = load_teacher(str(folder), self.device)
        assert isinstance(student, NetworkStudent)
        made = student.sample(prompts, generator=_seeded()).cpu()
        calls = student.student.steps
        labels = [label for prompt in prompts for label in (prompt, f"student, {calls} step{'s' * (calls > 1)}")]
        contact_sheet(torch.stack([self._of_teacher, made], dim=1).flatten(0, 1), picture, columns=4, labels=labels)


def published_steps(objective: Matching) -> int:
    """Steps of the critic for each of the student's in the objective's paper."""
    return 1 if objective.differentiates_scores or objective.name == "swiftbrush" else _CRITIC_STEPS


def agreement(judge: Judge, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """How surely the judge sees in a picture what its prompt names: p(object and colour | picture), [B] in [0, 1].

    Of a prompt that names no colour, any will do; of one that names nothing of the toy world, the reward is 0.

    Args:
        judge: of the toy world.
        images: [B, 3, H, W] in [0, 1].
        prompts: B sentences.
    """
    shares = judge.verdicts(images)[0].softmax(dim=1)
    targets = [Target.from_prompt(prompt) for prompt in prompts]
    wanted = torch.tensor(
        [
            [name == target.name and target.colour in (None, colour) for colour, name in COMPOSITIONS]
            for target in targets
        ]
    )
    return (shares * wanted).sum(dim=1).to(images.device)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def train_image_student(
    options: ImageStudentOptions,
    report: Report = lambda step, metrics: None,
    tell: Tell = lambda text: None,
) -> Path:
    """Train (or go on training) an image student.

    Args:
        options: settings; a run folder that holds checkpoints is continued.
        report: called after every step with the step and its metrics.
        tell: called with a sentence when something is worth saying.

    Returns:
        The student's pipeline folder.

    Raises:
        CheckpointError: a checkpoint that can't be read or doesn't fit.
        ConfigError: an objective, teacher, prompts or pictures that don't go together.
        PromptError: a prompt that the teacher does not understand.
        TeacherError: the teacher can't be loaded.
        TrainingError: a term is not finite; the last checkpoint is sound.
        RunError: a file can't be written.
    """
    return run_training(ImageStudentTrainer(options, tell), FOLDER, report, tell)
