"""`dreamkit compare` as a user meets it."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreamkit.cli.main import main
from dreamkit.training import compare as jobs
from dreamkit.training.compare import Comparison, ComparisonInterrupted

SUMMARY = {
    "objective": "sds",
    "mode": "camera",
    **dict.fromkeys(("n", "errors", "r_precision", "janus", "janus_views")),
    **dict.fromkeys(("saturation", "diversity", "seconds", "teacher_calls")),
}


class Jobs:
    """Stands for the work: notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.failed = 0
        self.failure: BaseException | None = None

    def compare(self, options: Any, listener: Any = None) -> Comparison:
        self.asked.append(options)
        listener.on_start(1, 0)
        if self.failure is not None:
            raise self.failure
        return Comparison(Path(options.out), {"cpu": "x"}, [{"seed": 0}], [SUMMARY], self.failed)

    def rebuild(self, folder: str, notes: str = "") -> Comparison:
        self.asked.append((folder, notes))
        return Comparison(Path(folder), {}, [], [SUMMARY], 1)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    stub = Jobs()
    monkeypatch.setattr(jobs, "compare", stub.compare)
    monkeypatch.setattr(jobs, "rebuild", stub.rebuild)
    return stub


def test_everything_is_passed_on(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("compare", "--objectives", "sds,esd:lambda=0.5;guidance=7.5", "--prompts", "fronted", "--seeds", "3"),
        *("--modes", "text,camera", "--preset", "standard", "--steps", "9", "--views", "2", "--jobs", "4"),
        *("--option", "resolution=32", "--option", "guidance=5", "--out", "there", "--teacher", "some/model"),
        *("--device", "cpu", "--thumbnails", "8x64", "--notes", "n.txt", "--json"),
    ]
    assert main(words) == 0
    assert stub.asked == [
        jobs.CompareOptions(
            objectives="sds,esd:lambda=0.5;guidance=7.5",
            prompts="fronted",
            modes="text,camera",
            seeds=3,
            preset="standard",
            steps=9,
            views=2,
            options=("resolution=32", "guidance=5"),
            jobs=4,
            out="there",
            teacher="some/model",
            device="cpu",
            thumbnails="8x64",
            notes="n.txt",
        )
    ]
    captured = capsys.readouterr()
    last = json.loads(captured.out.splitlines()[-1])
    assert last == {"machine": {"cpu": "x"}, "rows": [{"seed": 0}], "summary": [SUMMARY]}
    assert "1 runs" in captured.err


def test_a_table_for_people(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--objectives", "sds", "--out", "there"]) == 0
    out = capsys.readouterr().out
    assert "objective  mode" in out
    assert "there/report.html" in out


def test_failed_runs_are_said_at_the_end(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    stub.failed = 1
    assert main(["compare", "--objectives", "sds", "--json"]) == 2
    captured = capsys.readouterr()
    assert "1 of 1 runs failed" in captured.err
    assert "rows" in json.loads(captured.out.splitlines()[-1])


def test_an_interruption_says_how_to_go_on(stub: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    stub.failure = ComparisonInterrupted()
    assert main(["compare", "--objectives", "sds", "--json"]) == 130
    captured = capsys.readouterr()
    assert "Continue with the same command" in captured.err
    assert json.loads(captured.out)["error"] == "Interrupted."


def test_only_the_report(stub: Jobs) -> None:
    assert main(["compare", "--report-only", "there", "--notes", "n.txt"]) == 0
    assert stub.asked == [("there", "n.txt")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--objectives is empty"),
        (["--objectives", " "], "--objectives is empty"),
        (["--objectives", "sdss"], "'sdss' is not known"),
        (["--objectives", "sds:wings=1"], "no option 'wings'"),
        (["--objectives", "sds", "--seeds", "0"], "--seeds is 0"),
        (["--objectives", "sds", "--jobs", "0"], "--jobs is 0"),
        (["--objectives", "sds", "--steps", "0"], "--steps is 0"),
        (["--objectives", "sds", "--modes", ","], "--modes is empty"),
        (["--objectives", "sds", "--prompts", "missing.txt"], "missing.txt can't be read"),
        (["--objectives", "sds", "--notes", "missing.txt"], "missing.txt can't be read"),
        (["--objectives", "sds", "--out", " "], "--out is empty"),
        (["--objectives", "sds", "--device", "tpu"], "--device 'tpu'"),
        (["--report-only", "missing"], "holds no comparison"),
        (["--report-only", __file__], "is a file"),
    ],
)
def test_mistakes(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not list(tmp_path.iterdir())
