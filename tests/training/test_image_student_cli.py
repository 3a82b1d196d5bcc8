"""`dreamkit distill image` as a user meets it, and what becomes of its students: `sample` and `generate`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamkit.cli.main import main
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.students import NetworkStudent, StudentConfig, save_student
from dreamkit.errors import TrainingError
from dreamkit.training import image_student
from dreamkit.training.image_student import ImageStudentOptions

pytestmark = pytest.mark.usefixtures("one_thread")


class Job:
    """Stands for the training: notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ImageStudentOptions] = []
        self.failure: BaseException | None = None

    def train(self, options: ImageStudentOptions, report: Any, tell: Any) -> Path:
        self.asked.append(options)
        tell("continuing from step 3")
        report(4, {"loss": 0.25})
        if self.failure is not None:
            raise self.failure
        return options.out / "student"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    job = Job()
    monkeypatch.setattr(image_student, "train_image_student", job.train)
    return job


class TestDistill:
    def test_everything_is_passed_on(self, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
        words = [
            *("distill", "image", "--teacher", "some/teacher", "--objective", "tdm", "--option", "guidance=3"),
            *("--option", "gan_weight=1e-3", "--prompts", "p.txt", "--pictures", "pics", "--out", "there"),
            *("--steps", "9", "--batch", "2", "--steps-per-sample", "4", "--start-level", "0.9", "--critic-steps", "3"),
            *("--lr", "1e-4", "--critic-lr", "2e-4", "--camera-dropout", "0.2", "--negative-scale", "0.1"),
            *("--precision", "bfloat16", "--seed", "7", "--device", "cpu"),
        ]
        assert main(words) == 0
        assert job.asked == [
            ImageStudentOptions(
                teacher="some/teacher", objective="tdm", option=("guidance=3", "gan_weight=1e-3"),
                prompts=Path("p.txt"), pictures=Path("pics"), out=Path("there"), steps=9, batch=2, steps_per_sample=4,
                start_level=0.9, critic_steps=3, lr=1e-4, critic_lr=2e-4, camera_dropout=0.2, negative_scale=0.1,
                precision="bfloat16", seed=7, device="cpu",
            )
        ]  # fmt: skip
        caught = capsys.readouterr()
        assert "there/student" in caught.out
        assert "continuing from step 3" in caught.err

    def test_nothing_has_to_be_said(self, job: Job) -> None:
        assert main(["distill", "image"]) == 0
        assert job.asked == [ImageStudentOptions()]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--objective", "magic"], "magic"),
            (["--objective", "sds"], "'sds' is not known"),
            (["--steps", "0"], "steps is 0"),
            (["--colour", "red"], "--colour"),
        ],
    )
    def test_mistakes(self, job: Job, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["distill", "image", *words]) == 2
        assert message in capsys.readouterr().err
        assert job.asked == []

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--option", "guidence=3"], "Did you mean guidance"),
            (["--objective", "phased-dmd", "--steps-per-sample", "2"], "a critic for each of its phases"),
            (["--teacher", "no/where/at/all"], "no teacher 'no/where/at/all'"),
            (["--prompts", "no-such-file"], "can't be read"),
        ],
    )
    def test_what_cannot_be(
        self, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["distill", "image", "--out", str(tmp_path / "run"), "--device", "cpu", *words]) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed
        assert not (tmp_path / "run").exists()

    def test_a_loss_that_is_not_finite(self, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
        job.failure = TrainingError("The gradient of dmd is not finite at step 4.", "Another seed may help.")
        assert main(["distill", "image"]) == 2
        assert "gradient of dmd" in capsys.readouterr().err

    def test_an_interruption(self, job: Job) -> None:
        job.failure = KeyboardInterrupt()
        assert main(["distill", "image"]) == 130

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["distill", "image", "--help"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        for text in ("--steps-per-sample", "--critic-steps", "toy world's own captions", "may be given several times"):
            assert text in printed


@pytest.fixture
def student(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny student of four steps."""
    network = load_teacher(str(checkpoint("toyworld")), "cpu").network
    return save_student(network, "denoiser", checkpoint("toyworld"), tmp_path / "student", StudentConfig(4))


class TestSample:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
        asked: list[tuple[Any, ...]] = []
        plain = NetworkStudent.sample

        def sample(self: NetworkStudent, prompts: Any, steps: Any, guidance: Any, *rest: Any, **named: Any) -> Any:
            asked.append((steps, guidance, named["negative"]))
            return plain(self, prompts, steps, guidance, *rest, **named)

        monkeypatch.setattr(NetworkStudent, "sample", sample)
        return asked

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], (4, 1.0, "")),
            (["--negative", "the blue cube"], (4, 1.0, "the blue cube")),
            (["--steps", "2"], (2, 1.0, "")),
            (["--guidance", "3"], (4, 3.0, "")),
        ],
    )
    def test_a_students_own_steps(
        self,
        student: Path,
        asked: list[tuple[Any, ...]],
        words: list[str],
        expected: tuple[Any, ...],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        base = ["sample", "a red mug", "--teacher", str(student), "--device", "cpu", "--count", "2"]
        assert main([*base, "--out", str(tmp_path), *words]) == 0
        assert asked == [expected]
        captured = capsys.readouterr()
        assert f"is a student: steps {expected[0]}, guidance {expected[1]:g}" in captured.err
        assert Path(captured.out.strip()).is_file()

    def test_nothing_is_said_where_all_is_asked_for(
        self, student: Path, asked: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ["--steps", "1", "--guidance", "1", "--device", "cpu", "--count", "1", "--out", str(tmp_path)]
        assert main(["sample", "a red mug", "--teacher", str(student), *words]) == 0
        assert asked == [(1, 1.0, "")]
        assert "student:" not in capsys.readouterr().err

    def test_any_other_teacher_has_the_usual_ones(
        self, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from dreamkit.training import generate

        asked: list[dict[str, Any]] = []
        monkeypatch.setattr(generate, "sample", lambda **given: (asked.append(given), (tmp_path, []))[1])
        assert main(["sample", "a red mug", "--teacher", str(checkpoint("toyworld"))]) == 0
        assert main(["sample", "a red mug"]) == 0
        assert [(given["steps"], given["guidance"]) for given in asked] == [(50, 4.0), (50, 4.0)]

    def test_no_such_teacher(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sample", "a red mug", "--teacher", "no/where/at/all"]) == 2
        assert "no teacher" in capsys.readouterr().err


def test_a_student_drives_a_scene_at_its_own_levels(student: Path, tmp_path: Path) -> None:
    """Asked where it was taught: at one of its levels that has something of the scene in it, without guidance."""
    words = [
        *("--teacher", str(student), "--objective", "sds", "--guidance", "1", "--steps", "2", "--views", "1"),
        *("--resolution", "16", "--device", "cpu", "--out", str(tmp_path / "runs"), "--json"),
        *("--option", "timesteps={level: 0.5, jitter: 0}", "--option", "weighting=sigma_ratio"),
        *("--option", "gaussians.count=50"),
    ]
    assert main(["generate", "a red mug", *words]) == 0
    metrics = next((tmp_path / "runs").rglob("metrics.jsonl")).read_text().splitlines()
    levels = [json.loads(line)["t"] for line in metrics if "t" in json.loads(line)]
    assert levels == [0.5, 0.5]
