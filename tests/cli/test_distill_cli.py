"""`dreamkit distill` as a user meets it."""

from pathlib import Path
from typing import Any

import pytest

from dreamkit.cli.main import main
from dreamkit.errors import CheckpointError
from dreamkit.training import student
from dreamkit.training.student import StudentOptions


class Job:
    """Stands for the training: notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[StudentOptions] = []
        self.failure: BaseException | None = None

    def train(self, options: StudentOptions, report: Any, tell: Any) -> Path:
        self.asked.append(options)
        tell("continuing from step 3")
        report(4, {"loss": 0.25})
        if self.failure is not None:
            raise self.failure
        return options.out / "student"


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    job = Job()
    monkeypatch.setattr(student, "train_student", job.train)
    return job


def test_everything_is_passed_on(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("distill", "video", "--teacher", "some/teacher", "--pool", "some/pool", "--out", "there", "--start", "here"),
        *("--objective", "causal-consistency", "--steps", "9", "--batch", "2", "--accumulate", "3", "--frames", "21"),
        *("--shift", "5", "--guidance", "2.5", "--solver-steps", "8", "--steps-per-chunk", "2", "--past-noise", "0.1"),
        *("--distance", "square", "--sink-kind", "ema", "--checkpointing", "--seed", "7", "--device", "cpu"),
    ]
    assert main(words) == 0
    assert job.asked == [
        StudentOptions(
            teacher=Path("some/teacher"), pool=Path("some/pool"), out=Path("there"), start=Path("here"),
            objective="causal-consistency", steps=9, batch=2, accumulate=3, frames=21, shift=5.0, guidance=2.5,
            solver_steps=8, steps_per_chunk=2, past_noise=0.1, distance="square", sink_kind="ema", checkpointing=True,
            seed=7, device="cpu",
        )
    ]  # fmt: skip
    caught = capsys.readouterr()
    assert "there/student" in caught.out
    assert "continuing from step 3" in caught.err


def test_a_teacher_and_a_pool_are_enough(job: Job) -> None:
    assert main(["distill", "video", "--teacher", "t", "--pool", "p"]) == 0
    assert job.asked == [StudentOptions(Path("t"), Path("p"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pool", "p"], "--teacher"),
        (["--teacher", "t"], "--pool"),
        (["--teacher", "t", "--pool", "p", "--objective", "magic"], "magic"),
        (["--teacher", "t", "--pool", "p", "--steps", "0"], "steps is 0"),
        (["--teacher", "t", "--pool", "p", "--solver-steps", "9"], "multiple of --steps-per-chunk"),
    ],
)
def test_mistakes(job: Job, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "video", *words]) == 2
    assert message in capsys.readouterr().err
    assert job.asked == []


def test_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "video", "--teacher", str(tmp_path / "t"), "--pool", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "no pool of clips" in message
    assert "Traceback" not in message


def test_a_loss_that_is_not_finite(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    job.failure = CheckpointError("The flow loss of teacher-forcing is nan at step 4.", "Another --seed may help.")
    assert main(["distill", "video", "--teacher", "t", "--pool", "p"]) == 2
    assert "flow loss" in capsys.readouterr().err


def test_an_interruption(job: Job) -> None:
    job.failure = KeyboardInterrupt()
    assert main(["distill", "video", "--teacher", "t", "--pool", "p"]) == 130


def test_the_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--help"]) == 0
    assert "distill video" in capsys.readouterr().out
    assert main(["distill"]) == 2
