"""Runs of several stages: each starts from the scene of the one before, in another representation if it likes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import ConfigError
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.training.particles import Particle
from dreamkit.training.scene import SceneTrainer, StepResult
from dreamkit.training.settings import SceneKind, SceneSettings, scene_kind

_MOST_STAGES = 8


def parse_stages(text: str) -> list[tuple[SceneKind, str, int | None]]:
    """The stages of `nerf:sds,mesh:vsd:100`: kind of scene, objective, steps (`None`: the preset's).

    Raises:
        ConfigError: another form, an unknown kind, or a kind that can't start from the one before.
    """
    hint = "Give SCENE:OBJECTIVE or SCENE:OBJECTIVE:STEPS, separated by commas: nerf:sds,mesh:vsd:100."
    stages: list[tuple[SceneKind, str, int | None]] = []
    for part in text.split(","):
        fields = [field.strip() for field in part.split(":")]
        if len(fields) not in (2, 3) or not all(fields) or (len(fields) == 3 and not fields[2].isdecimal()):
            raise ConfigError(f"The stage {part.strip()!r} is not of a known form.", hint)
        stages.append((scene_kind(fields[0]), fields[1], int(fields[2]) if len(fields) == 3 else None))
    if len(stages) > _MOST_STAGES:
        raise ConfigError(f"{len(stages)} stages are too many.", f"Use at most {_MOST_STAGES}.")
    for before, after in pairwise(stages):
        if after[0] in ("nerf", "sdf", "latent-nerf") and before[0] != after[0]:
            raise ConfigError(
                f"A stage {after[0]!r} can't start from {before[0]!r}.",
                "Fields start from fog: put them first. Gaussians and meshes start from anything.",
            )
    return stages


def joined(stages: Sequence[SceneSettings]) -> SceneSettings:
    """One run of several stages: the first one's settings, with the others behind."""
    first, *later = stages
    return replace(first, then=tuple(later))


def stage_at(settings: SceneSettings, step: int) -> tuple[int, int]:
    """The stage that made step `step` of a run (counting from 1; the first stage for 0), and the steps before it."""
    before = 0
    for index, stage in enumerate(settings.stages):
        if step <= before + stage.steps:
            return index, before
        before += stage.steps
    return len(settings.stages) - 1, before - settings.stages[-1].steps


class StagedTrainer:
    """A `SceneTrainer` for each stage in turn, behind the interface of one.

    Args:
        settings: the run.
        teacher: the frozen diffusion model.
        reference: [3, H, W] a picture that the result should resemble.
        start: a scene for the first stage to start from; by default what the settings say.

    Raises:
        DreamkitError: a stage that can't be run, also a later one: better now than when the first is done.
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
        self._reference = reference
        self._earlier_calls = 0  # of critics that are gone
        for later in settings.then:
            SceneTrainer(later, teacher, reference)  # refuses what it can't do
        self._enter(0, start)

    def _enter(self, index: int, start: TrainableScene | None) -> None:
        self._index = index
        self._before = sum(stage.steps for stage in self.settings.stages[:index])
        stage = self.settings.stages[index]
        self._trainer = SceneTrainer(stage, self.teacher, self._reference, start)

    @property
    def step_index(self) -> int:
        """Steps made, of all stages."""
        return self._before + self._trainer.step_index

    @property
    def particles(self) -> list[Particle]:
        """The scenes of the present stage."""
        return self._trainer.particles

    @property
    def scene(self) -> TrainableScene:
        """The first particle's scene."""
        return self._trainer.scene

    @property
    def calls(self) -> int:
        """Samples that went through the teacher and the critics so far."""
        return self._earlier_calls + self._trainer.calls

    def step(self, show_target: bool = False) -> StepResult:
        """Take one optimisation step; the first of a stage takes over the scene of the stage before."""
        stage = self.settings.stages[self._index]
        if self._trainer.step_index >= stage.steps:
            self._earlier_calls += self._trainer.calls - self.teacher.calls
            self._enter(self._index + 1, self._trainer.scene)
        return self._trainer.step(show_target)

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs: that of the present stage."""
        return self._trainer.state()

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from what `state` returned after `step` steps of the run.

        Raises:
            CheckpointError: the state is of another kind of run.
        """
        index, before = stage_at(self.settings, step)
        self._enter(index, None)
        self._trainer.load_state(tensors, step - before)


def make_trainer(
    settings: SceneSettings, teacher: Teacher, reference: Tensor | None = None, start: TrainableScene | None = None
) -> SceneTrainer | StagedTrainer:
    """What runs the settings: one stage or several; `start` is the scene that the first begins from."""
    return (StagedTrainer if settings.then else SceneTrainer)(settings, teacher, reference, start)
