"""`dreamkit compare-video` as a user meets it."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreamkit.cli.main import main
from dreamkit.training import compare_video as jobs
from dreamkit.training.compare_video import ComparisonInterrupted, VideoComparison

ENTRY = {"student": "a", "n": 2, "errors": 0, "measures": {"prompt_first": {"mean": 0.75, "half": None, "n": 2}}}
CONTENT = {"machine": {"cpu": "x"}, "summary": [ENTRY], "claims": [{"name": "ema sink", "verdict": "not measured"}]}


class Jobs:
    """Stands for the work: notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.failed = 0
        self.failure: BaseException | None = None

    def compare_videos(self, options: Any, listener: Any = None) -> VideoComparison:
        self.asked.append(options)
        listener.on_start(1, 0)
        if self.failure is not None:
            raise self.failure
        return VideoComparison(Path(options.out), CONTENT, [{"seed": 0}], self.failed)

    def rebuild(self, folder: str) -> VideoComparison:
        self.asked.append(folder)
        return VideoComparison(Path(folder), CONTENT, [], 1)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    stub = Jobs()
    monkeypatch.setattr(jobs, "compare_videos", stub.compare_videos)
    monkeypatch.setattr(jobs, "rebuild", stub.rebuild)
    return stub


def test_everything_is_passed_on(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("compare-video", "--student", "a=x", "--student", "b=y", "--teacher", "t", "--prompts", "5"),
        *("--frames", "10000", "--seeds", "3", "--steps", "20", "--guidance", "3", "--speed-frames", "60"),
        *("--shown", "1", "--jobs", "2", "--out", "there", "--device", "cpu", "--json"),
    ]
    assert main(words) == 0
    assert stub.asked == [
        jobs.CompareVideoOptions(("a=x", "b=y"), "t", "5", 10000, 3, 20, 3.0, 60, 1, 2, "there", "cpu")
    ]
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == {**CONTENT, "rows": [{"seed": 0}]}
    assert "1 runs" in captured.err


def test_a_table_for_people(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-video", "--student", "a=x", "--out", "there"]) == 0
    out = capsys.readouterr().out
    assert "student  n  prompt_first" in out
    assert "ema sink  not measured" in out
    assert "there/report.html" in out


def test_failed_cells_are_said_at_the_end(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    stub.failed = 1
    assert main(["compare-video", "--student", "a=x", "--json"]) == 2
    assert "1 of 1 cells failed" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    stub.failure = ComparisonInterrupted()
    assert main(["compare-video", "--student", "a=x", "--json"]) == 130
    captured = capsys.readouterr()
    assert "Continue with the same command" in captured.err
    assert json.loads(captured.out)["error"] == "Interrupted."


def test_only_the_report(stub: Jobs) -> None:
    assert main(["compare-video", "--report-only", "there"]) == 0
    assert stub.asked == ["there"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No student is given"),
        (["--student", "a"], "not understood"),
        (["--student", "a=tiny-random", "--student", "a=tiny-random"], "Two students are called 'a'"),
        (["--student", "a=missing"], "There is no folder missing"),
        (["--student", "a=."], "holds no student"),
        (["--student", "a=tiny-random", "--frames", "0"], "--frames is 0"),
        (["--student", "a=tiny-random", "--prompts", "0"], "--prompts is 0"),
        (["--student", "a=tiny-random", "--prompts", "missing.txt"], "missing.txt can't be read"),
        (["--student", "a=tiny-random", "--seeds", "0"], "--seeds is 0"),
        (["--student", "a=tiny-random", "--steps", "1001"], "--steps is 1001"),
        (["--student", "a=tiny-random", "--guidance", "nan"], "--guidance is nan"),
        (["--student", "a=tiny-random", "--jobs", "0"], "--jobs is 0"),
        (["--student", "a=tiny-random", "--teacher", "missing"], "missing holds no video teacher"),
        (["--student", "a=tiny-random", "--out", " "], "--out is empty"),
        (["--student", "a=tiny-random", "--device", "tpu"], "--device 'tpu'"),
        (["--report-only", "missing"], "holds no comparison"),
        (["--report-only", __file__], "is a file"),
    ],
)
def test_mistakes(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare-video", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())
