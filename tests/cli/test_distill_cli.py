"""`dreamkit distill` as a user meets it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamkit.cli.main import main
from dreamkit.errors import CheckpointError
from dreamkit.training import student, video_matching
from dreamkit.training.matching import matching_objective
from dreamkit.training.student import StudentOptions
from dreamkit.training.video_matching import VideoMatchingOptions
from dreamkit.training.video_systems import SYSTEMS


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


def test_a_moving_buffer(job: Job, matching: list[VideoMatchingOptions]) -> None:
    """Learned from clips, so none of the objectives that match."""
    words = ("--teacher", "t", "--pool", "p", "--frames", "13", "--reference", "1", "--micro-steps", "4")
    more = ("--objective", "buffer-flow-matching", "--partitions", "1", "3", "--uniform-share", "0.3")
    assert main(["distill", "video", *words, *more]) == 0
    assert main(["distill", "video", *words, "--objective", "segment-distillation"]) == 0
    base = StudentOptions(Path("t"), Path("p"), objective="segment-distillation", frames=13, reference=1, micro_steps=4)
    mixed = replace(base, objective="buffer-flow-matching", partitions=(1, 3), uniform_share=0.3)
    assert job.asked == [mixed, base]
    assert matching == []


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
        (["--teacher", "t", "--pool", "p", "--objective", "segment-distillation", "--frames", "14"], "--frames is 14"),
    ],
)
def test_mistakes(job: Job, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "video", *words]) == 2
    assert message in capsys.readouterr().err
    assert job.asked == []


@pytest.fixture
def matching(monkeypatch: pytest.MonkeyPatch) -> list[VideoMatchingOptions]:
    asked: list[VideoMatchingOptions] = []

    def train(options: VideoMatchingOptions, report: Any, tell: Any) -> Path:
        asked.append(options)
        return options.out / "student"

    monkeypatch.setattr(video_matching, "train_video_matching", train)
    return asked


PATHS = ("--teacher", "t", "--student", "s", "--pool", "p")


def test_an_objective_that_matches(matching: list[VideoMatchingOptions]) -> None:
    words = ("--objective", "sid", "--option", "alpha=1.2", "--option", "guidance=2", "--steps", "9", "--before", "4")
    assert main(["distill", "video", *PATHS, *words]) == 0
    base = VideoMatchingOptions(Path("t"), Path("s"), Path("p"), objective="sid", steps=9, before=4)
    assert matching == [replace(base, option=("alpha=1.2", "guidance=2"))]


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_of_the_field(matching: list[VideoMatchingOptions], name: str) -> None:
    """A system's settings, over which the user's win; its objective takes its options."""
    assert main(["distill", "video", "--system", name, *PATHS, "--steps", "7"]) == 0
    system = SYSTEMS[name]
    assert matching[0].objective == system.objective
    assert {field: getattr(matching[0], field) for field in system.options} == dict(system.options)
    objective = matching_objective(matching[0].objective, matching[0].option)
    assert objective.shared_level
    assert matching[0].steps == 7
    words = ("--sink-kind", "shot", "--objective", "dmd", "--option", "shared_level=false")
    assert main(["distill", "video", "--system", name, *PATHS, *words]) == 0
    assert (matching[1].sink_kind, matching[1].objective) == ("shot", "dmd")
    assert not matching_objective(matching[1].objective, matching[1].option).shared_level


def test_an_unknown_system(matching: list[VideoMatchingOptions], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "video", "--system", "selfforcing", *PATHS]) == 2
    assert "self-forcing" in capsys.readouterr().err
    assert matching == []


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
