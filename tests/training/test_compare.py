"""Comparisons: what is planned, what is skipped, what fails, what it comes to."""

import csv
import io
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compare_jobs import dying_job, failing_job, fake_job, interrupted_job, slow_job
from PIL import Image

from dreamkit.errors import ConfigError, DreamkitError, PromptError, RunError
from dreamkit.metrics import judge
from dreamkit.metrics.judge import Judge, JudgeNetwork
from dreamkit.runs import Run, RunInterrupted
from dreamkit.toyworld.captions import FRONTED
from dreamkit.training.callbacks import Callback
from dreamkit.training.checkpoints import list_checkpoints
from dreamkit.training.compare import ComparisonInterrupted, compare, rebuild
from dreamkit.training.compare.plan import CompareOptions, Task, parse_columns, plan, read_prompts
from dreamkit.training.compare.progress import Listener, LiveCompare, PlainCompare, compare_display
from dreamkit.training.compare.summary import load_rows, summarise
from dreamkit.training.compare.work import animated_webp, make_row, total_cost
from dreamkit.training.generate import settings_for


@pytest.fixture
def options(tmp_path: Path) -> CompareOptions:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# two of them\n\na red mug\n  a pink cube \n")
    return CompareOptions(
        "sds,csd",
        str(prompts),
        steps=2,
        views=1,
        options=("resolution=16",),
        out=str(tmp_path / "out"),
        thumbnails="2x16",
    )


def calls(options: CompareOptions) -> dict[str, int]:
    return {path.name: len(path.read_text()) for path in (Path(options.out) / "calls").iterdir()}


class TestPlan:
    def test_prompt_sets(self) -> None:
        held_out, fronted = read_prompts("heldout"), read_prompts("fronted")
        assert len(held_out) == 20
        assert len(fronted) >= 12
        assert set(fronted) < set(held_out)
        assert all(prompt.split()[-1] in FRONTED for prompt in fronted)

    def test_every_combination_once_with_a_key_of_its_own(self, options: CompareOptions) -> None:
        tasks = plan(replace(options, modes="text,views,camera", seeds=2))
        assert len(tasks) == len({task.key for task in tasks}) == 2 * 2 * 3 * 2
        assert [task.options.seed for task in tasks] == [0] * 12 + [1] * 12
        settings = {task.mode: settings_for(task.options) for task in tasks}
        told = {mode: (made.camera_conditioning, made.view_prompts) for mode, made in settings.items()}
        assert told == {"text": (False, False), "views": (False, True), "camera": (True, True)}

    def test_a_key_is_decided_by_the_settings(self, options: CompareOptions) -> None:
        keys = [task.key for task in plan(options)]
        assert keys == [task.key for task in plan(replace(options, jobs=2, thumbnails="4x32"))]
        assert not set(keys) & {task.key for task in plan(replace(options, steps=3))}

    def test_columns_with_options(self) -> None:
        columns = parse_columns("sds, sds:guidance=7.5; weighting=uniform ,csd:timesteps.level=[0,0.9,0.1,1]")
        assert [(column.objective, column.options) for column in columns] == [
            ("sds", ()),
            ("sds", ("guidance=7.5", "weighting=uniform")),
            ("csd", ("timesteps.level=[0,0.9,0.1,1]",)),
        ]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"objectives": " , "}, "--objectives is empty"),
            ({"objectives": "sdss"}, "'sdss' is not known"),
            ({"objectives": ":guidance=1"}, "has no name"),
            ({"objectives": "sds:wings=2"}, "has no option 'wings'"),
            ({"objectives": "sds:guidance"}, "not of the form NAME=VALUE"),
            ({"options": ("nothing=1",)}, "has no option 'nothing'"),
            ({"modes": ""}, "--modes is empty"),
            ({"modes": "camera,side"}, "'side' is not known"),
            ({"seeds": 0}, "--seeds is 0"),
            ({"jobs": 0}, "--jobs is 0"),
            ({"prompts": ""}, "--prompts is empty"),
            ({"thumbnails": "16"}, "--thumbnails is '16'"),
            ({"thumbnails": "0x96"}, "--thumbnails is '0x96'"),
            ({"preset": "best"}, "'best' is not known"),
        ],
    )
    def test_mistakes(self, options: CompareOptions, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            plan(replace(options, **changes))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "can't be read"),
            (b"", "holds no prompt"),
            (b"# a\n\n", "holds no prompt"),
            (b"a\0b", "binary"),
            (b"\xff\xfe\x80", "no text file"),
            (b"a " * 600_000, "more than"),
        ],
    )
    def test_files_that_hold_no_prompts(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "p.txt"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_prompts(str(path))

    def test_the_line_of_a_bad_prompt_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text("a red mug\na \x07 bell\n")
        with pytest.raises(PromptError, match="line 2"):
            read_prompts(str(path))
        with pytest.raises(ConfigError, match="can't be read"):
            read_prompts(str(tmp_path))


class TestResuming:
    def test_what_is_done_is_not_done_again(self, options: CompareOptions) -> None:
        first = compare(options, job=fake_job)
        assert len(first.rows) == 4
        again = compare(replace(options, objectives="sds,csd,sjc"), job=fake_job)
        assert set(calls(options).values()) == {1}
        assert len(again.rows) == 6
        assert [row["objective"] for row in again.summary] == ["sds", "csd", "sjc"]

    def test_a_failing_run_is_a_row_and_tried_again(
        self, options: CompareOptions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        options = replace(options, seeds=2)
        result = compare(options, job=failing_job)
        assert result.failed == 4
        errors = {row["seed"]: row["error"] for row in result.rows if row["objective"] == "csd"}
        assert errors[0] == "The <teacher> is out. Wait."
        assert "ValueError: oops" in errors[1]
        assert len(list((Path(options.out) / "errors").iterdir())) == 2
        summary = {row["objective"]: row for row in result.summary}
        assert (summary["csd"]["n"], summary["csd"]["errors"], summary["csd"]["r_precision"]) == (0, 4, None)
        assert (summary["sds"]["n"], summary["sds"]["errors"]) == (4, 0)
        page = result.report.read_text()
        assert "The &lt;teacher&gt; is out." in page
        assert "<teacher>" not in page
        monkeypatch.setenv("DREAMKIT_TEST_MENDED", "1")
        assert compare(options, job=failing_job).failed == 0
        assert set(calls(options).values()) == {1}

    def test_workers_survive_one_of_them(self, options: CompareOptions) -> None:
        result = compare(replace(options, jobs=2), job=dying_job)
        assert result.failed == 2
        assert all("signal 9" in row["error"] for row in result.rows if row["objective"] == "csd")
        assert all(row["error"] is None for row in result.rows if row["objective"] == "sds")

    def test_an_interrupted_comparison_goes_on(self, options: CompareOptions) -> None:
        with pytest.raises(ComparisonInterrupted):
            compare(options, job=interrupted_job)
        assert len(calls(options)) == 1
        assert len(compare(options, job=fake_job).rows) == 4
        assert set(calls(options).values()) == {1}

    def test_ctrl_c_stops_the_workers(self, options: CompareOptions) -> None:
        class Press(Listener):
            def on_steps(self, task: Task, step: int, total: int) -> None:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(ComparisonInterrupted):
            compare(replace(options, jobs=2), Press(), job=slow_job)
        assert multiprocessing.active_children() == []
        assert compare(options, job=fake_job).failed == 0  # the folder is not locked

    def test_folders_that_can_t_be_used(self, options: CompareOptions, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match="is a file"):
            compare(replace(options, out=str(tmp_path / "file")), job=fake_job)
        compare(options, job=fake_job)
        with pytest.raises(ConfigError, match="other settings: steps 2, now 3"):
            compare(replace(options, steps=3), job=fake_job)
        for name in (f"rows/{plan(options)[0].key}.json", "plan.json"):
            path = Path(options.out) / name
            path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
            with pytest.raises(RunError, match="format version 99"):
                compare(options, job=fake_job)
            with pytest.raises(RunError, match="format version 99"):
                rebuild(options.out)

    @pytest.mark.parametrize("content", ["{", "[]", "3", '{"format_version": 1}', ""])
    def test_damaged_rows_are_named(self, options: CompareOptions, content: str) -> None:
        compare(options, job=fake_job)
        path = Path(options.out) / "rows" / f"{plan(options)[0].key}.json"
        path.write_text(content)
        with pytest.raises(RunError, match=path.name):
            rebuild(options.out)

    def test_rebuilding_what_is_no_comparison(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "missing"):
            with pytest.raises(RunError, match="holds no comparison"):
                rebuild(str(path))
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match="is a file"):
            rebuild(str(tmp_path / "file"))


class TestSummary:
    def test_means(self, options: CompareOptions, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("a blue duck\na pink cube\n")
        result = compare(replace(options, objectives="sds", modes="text,camera", seeds=2), job=fake_job)
        text, camera = result.summary
        assert (text["mode"], camera["mode"]) == ("text", "camera")
        assert (text["n"], text["r_precision"], text["janus_views"], text["fronts"]) == (4, 0.625, 0.25, 2.0)
        assert (text["janus"], camera["janus"]) == (1.0, 0.0)  # of the ducks alone: a cube has no front
        assert 0 < text["diversity"] < 1
        assert (text["seconds"], text["teacher_calls"], text["steps"]) == (2.0, 80.0, 2.0)
        alone = compare(replace(options, objectives="sds", out=str(tmp_path / "alone")), job=fake_job)
        assert alone.summary[0]["diversity"] is None

    def test_files(self, options: CompareOptions) -> None:
        result = compare(options, job=fake_job)
        folder = Path(options.out)
        content = json.loads((folder / "compare.json").read_text())
        assert content == {"machine": result.machine, "rows": result.rows, "summary": result.summary}
        rows = list(csv.DictReader(io.StringIO((folder / "compare.csv").read_text())))
        assert [row["prompt"] for row in rows] == ["a red mug", "a pink cube"] * 2
        before = result.report.read_bytes()
        assert rebuild(options.out).rows == result.rows
        assert result.report.read_bytes() == before

    def test_of_two_rows_about_one_run_the_newer_counts(self, options: CompareOptions) -> None:
        compare(replace(options, objectives="sds"), job=fake_job)
        rows = load_rows(Path(options.out))
        newer = rows[0] | {"created": "2999", "key": "newer", "r_precision": 1.0}
        (Path(options.out) / "rows" / "newer.json").write_text(json.dumps(newer))
        assert [row["r_precision"] for row in load_rows(Path(options.out))] == [1.0, 0.5]

    def test_the_machine_is_that_of_the_rows(self, options: CompareOptions) -> None:
        first = compare(replace(options, jobs=1), job=fake_job)
        assert first.machine["jobs"] == 1
        path = Path(options.out) / "rows" / f"{plan(options)[0].key}.json"
        row = json.loads(path.read_text())
        path.write_text(json.dumps(row | {"machine": row["machine"] | {"commit": "abc"}}))
        assert rebuild(options.out).machine == first.machine | {
            "commit": ", ".join(filter(None, ("abc", first.machine["commit"])))
        }

    def test_nothing(self) -> None:
        assert summarise([]) == []


class Killer(Callback):
    """Presses Ctrl-C after a step, or breaks off as a killed process would."""

    def __init__(self, step: int, error: BaseException | None) -> None:
        self.step, self.error = step, error

    def on_step(self, step: int, total: int, metrics: Any) -> None:
        if step == self.step:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGINT)


class TestRun:
    @pytest.fixture
    def task(self, options: CompareOptions, monkeypatch: pytest.MonkeyPatch, checkpoint: Any) -> Task:
        def load_judge(folder: Path | None = None) -> Judge:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return Judge(JudgeNetwork(width=8, embedding=16))

        monkeypatch.setattr(judge, "load_judge", load_judge)
        options = replace(options, teacher=str(checkpoint("toyworld")), steps=4)
        options = replace(options, options=("resolution=16", "gaussians.count=50", "checkpoint_every=2"))
        Path(options.out).mkdir()
        return plan(options)[0]

    def test_a_row_and_what_lies_beside_it(self, task: Task) -> None:
        row = make_row(task)
        assert row["error"] is None
        assert (row["objective"], row["mode"], row["prompt"], row["seed"]) == ("sds", "camera", "a red mug", 0)
        assert row["steps"] == 4
        assert row["teacher_calls"] == 4 * 2
        assert row["seconds"] > 0
        assert row["many_faced"] == (row["fronts"] > 1)
        assert all(0 <= row[name] <= 1 for name in ("r_precision", "saturation", "contrast"))
        assert row["settings"]["run"]["steps"] == 4
        run = Run.open(task.folder / row["run"])
        assert list_checkpoints(run.checkpoints)
        with Image.open(task.folder / "views" / f"{task.key}.webp") as picture:
            assert (picture.size, picture.n_frames) == ((16, 16), 2)
        again = make_row(task)  # its row was lost: the run is there
        assert {**again, "created": 0} == {**row, "created": 0}

    @pytest.mark.parametrize("error", [None, RuntimeError("killed")])
    def test_a_broken_off_run_is_continued(self, task: Task, error: BaseException | None) -> None:
        whole = make_row(replace(task, folder=task.folder / "whole"))
        with pytest.raises(RunInterrupted if error is None else RuntimeError):
            make_row(task, [Killer(3, error)])
        row = make_row(task)
        costs = ("created", "seconds")
        assert {**row, **dict.fromkeys(costs), "run": 0} == {**whole, **dict.fromkeys(costs), "run": 0}
        assert len(list((task.folder / "runs").glob("*/*/*"))) == 1

    def test_a_run_whose_checkpoints_are_damaged_begins_anew(self, task: Task) -> None:
        row = make_row(task)
        for path in (task.folder / row["run"] / "checkpoints").rglob("state.safetensors"):
            path.write_bytes(b"damaged")
        again = make_row(task)
        assert again["r_precision"] == row["r_precision"]
        assert again["teacher_calls"] == row["teacher_calls"]

    def test_no_camera_for_a_teacher_that_takes_none(self, task: Task, checkpoint: Any) -> None:
        other = replace(task, options=replace(task.options, teacher=str(checkpoint("sd15"))))
        with pytest.raises(DreamkitError, match="takes no camera"):
            make_row(other)


def test_costs_of_several_processes_add_up() -> None:
    rows = [{"seconds": value} for value in (1.0, 2.0, 3.0, 0.5, 1.5)]
    assert total_cost(rows, "seconds") == 4.5
    assert total_cost(rows[:3], "seconds") == 3.0
    assert total_cost([], "seconds") == 0.0


def test_a_turn_is_an_animation_for_ever() -> None:
    frames = torch.rand(5, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(animated_webp(frames))) as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0


class TestProgress:
    def test_plain_lines(self, options: CompareOptions) -> None:
        first, second = plan(replace(options, objectives="sds"))
        moments = iter(range(0, 10000, 20))
        stream = io.StringIO()
        with PlainCompare(stream, interval=10, clock=lambda: next(moments)) as display:
            display.on_start(3, 1)
            display.on_begin(first)
            display.on_steps(first, 1, 2)
            display.on_row(first, {"error": None, "r_precision": 0.5, "seconds": 3.0, "fronts": 2})
            display.on_begin(second)
            display.on_row(second, {"error": "no [b]luck[/b]"})
        lines = stream.getvalue().splitlines()
        assert lines[0] == "3 runs, 1 of them done already"
        assert "sds, camera, a red mug, seed 0 1/2" in lines[1]
        assert lines[2].startswith("[2/3] sds, camera, a red mug, seed 0: R-precision 0.50, fronts 2, 3.0 s")
        assert "failed: no [b]luck[/b]" in lines[3]
        assert "0:00 left" in lines[3]

    def test_live(self, options: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.setenv("TERM", "xterm")
        stream = Terminal()
        display = compare_display(stream)
        assert isinstance(display, LiveCompare)
        with display:
            compare(options, display, job=failing_job)
        assert "R-precision 0.50" in stream.getvalue()
        assert "4/4, 2 failed" in stream.getvalue()
        assert isinstance(compare_display(io.StringIO()), PlainCompare)
