"""Text-to-3D by an image student of a few steps: what it is asked, what the user may change, and who is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamkit.cli.main import main
from dreamkit.config import Schedule
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.students import NetworkStudent, StudentConfig, save_student
from dreamkit.errors import ConfigError
from dreamkit.files import read_jsonl
from dreamkit.training.generate import GenerateOptions, generate, resume, settings_for
from dreamkit.training.presets import taught_levels
from dreamkit.training.scene import make_objective

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def make(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of tiny students that differ in how they are sampled."""
    network = load_teacher(str(checkpoint("toyworld")), "cpu").network

    def make(steps: int, level: float = 1.0) -> Path:
        folder = tmp_path_factory.mktemp("students") / "student"
        return save_student(network, "denoiser", checkpoint("toyworld"), folder, StudentConfig(steps, level))

    return make


@pytest.fixture(scope="module")
def student(make: Callable[..., Path]) -> NetworkStudent:
    """One of four steps: 1, 0.75, 0.5, 0.25."""
    loaded = load_teacher(str(make(4)), "cpu")
    assert isinstance(loaded, NetworkStudent)
    return loaded


class TestSettings:
    def chosen(self, student: NetworkStudent, **changes: Any) -> Any:
        return make_objective(settings_for(GenerateOptions("a red mug", **changes), student))

    def test_its_levels_below_the_first_without_guidance(self, student: NetworkStudent) -> None:
        objective = self.chosen(student)
        usual: Any = make_objective(settings_for(GenerateOptions("a red mug")))
        assert objective.timesteps.levels == (0.75, 0.5, 0.25)
        assert objective.timesteps.level == usual.timesteps.level
        assert (objective.guidance, objective.weighting) == (Schedule.constant(1.0), "sigma_ratio")
        assert usual.guidance != Schedule.constant(1.0)
        assert usual.timesteps.levels == ()

    def test_a_lower_start_is_noise_alone_too(self, make: Callable[..., Path]) -> None:
        assert taught_levels(load_teacher(str(make(3, 0.9)), "cpu")) == pytest.approx((0.6, 0.3))

    def test_the_user_has_the_last_word(self, student: NetworkStudent) -> None:
        assert self.chosen(student, guidance=2.0).guidance == Schedule.constant(2.0)
        assert self.chosen(student, options=("guidance=3",)).guidance == Schedule.constant(3.0)
        assert self.chosen(student, options=("weighting=uniform",)).weighting == "uniform"
        assert self.chosen(student, options=("timesteps.levels=[0.5]",)).timesteps.levels == (0.5,)
        ranged = self.chosen(student, options=("timesteps={level: 0.3, jitter: 0}",)).timesteps
        assert (ranged.level, ranged.levels) == (Schedule.constant(0.3), (0.75, 0.5, 0.25))

    def test_every_stage(self, student: NetworkStudent) -> None:
        settings = settings_for(GenerateOptions("a red mug", stages="nerf:sds,mesh:csd"), student)
        levels = [make_objective(stage).timesteps.levels for stage in settings.stages]  # type: ignore[attr-defined]
        assert levels == [(0.75, 0.5, 0.25)] * 2

    def test_a_mistake_is_named_as_ever(self, student: NetworkStudent) -> None:
        with pytest.raises(ConfigError, match="levels"):
            self.chosen(student, options=("timesteps.levels=[2]",))


class TestRuns:
    def test_from_the_command_line(self, make: Callable[..., Path], tmp_path: Path) -> None:
        """From the noisiest level on; a run that is resumed has kept its levels."""
        words = [
            *("--teacher", str(make(4)), "--steps", "6", "--views", "1", "--resolution", "16", "--device", "cpu"),
            *("--out", str(tmp_path), "--option", "gaussians.count=50", "--option", "timesteps.jitter=0", "--json"),
        ]
        assert main(["generate", "a red mug", *words]) == 0
        (metrics,) = tmp_path.rglob("metrics.jsonl")
        rows = [row for row in read_jsonl(metrics) if "t" in row]
        assert [row["t"] for row in rows] == [0.75, 0.75, 0.75, 0.5, 0.25, 0.25]
        assert {row["guidance"] for row in rows} == {1.0}
        assert resume(str(metrics.parent)).steps == 6

    def test_a_student_of_one_step_is_refused(
        self, make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = str(make(1))
        with pytest.raises(ConfigError, match="student of 1 step"):
            generate(GenerateOptions("a red mug", teacher=folder, device="cpu", out=str(tmp_path / "runs")))
        assert main(["generate", "a red mug", "--teacher", folder, "--device", "cpu", "--out", str(tmp_path)]) == 2
        assert "--steps-per-sample 4" in " ".join(capsys.readouterr().err.split())
        assert list(tmp_path.iterdir()) == []
