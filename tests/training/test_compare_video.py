"""Comparisons of video students: what is planned, measured, kept and made anew."""

import csv
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_video
import torch
from video_cells import fake_job, interrupted_job, write_run, write_student

from dreamkit.errors import CheckpointError, ConfigError, DreamkitError, PromptError, RunError, TeacherError
from dreamkit.metrics.video_judge import MOTION_CLASSES, VideoJudge, VideoJudgeNetwork
from dreamkit.metrics.video_stream import VideoScorer
from dreamkit.runs import RunInterrupted
from dreamkit.training.callbacks import Callback
from dreamkit.training.compare_video import (
    CompareVideoOptions,
    ComparisonInterrupted,
    compare_videos,
    rebuild,
    speed,
    streams,
    work,
)
from dreamkit.training.compare_video.measures import MEASURES, SPEED_MEASURES
from dreamkit.training.compare_video.plan import Task, make_plan
from dreamkit.training.compare_video.prompts import MOST, held_out_cases, prompt_motion, read_cases
from dreamkit.training.compare_video.streams import (
    Life,
    ThereAndBack,
    camera_controls,
    parts_of,
    sliding_tracks,
    switch_numbers,
)
from dreamkit.training.compare_video.students import open_student, parse_students
from dreamkit.training.compare_video.summary import COLUMNS, interval
from dreamkit.training.compare_video.work import make_row
from dreamkit.video.camera_paths import camera_path
from dreamkit.video.controls import Controls

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def judge() -> VideoJudge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VideoJudge(VideoJudgeNetwork(width=8, motion_width=8, features=16))


@pytest.fixture
def options(tmp_path: Path) -> CompareVideoOptions:
    students = tuple(f"{name}={write_student(tmp_path / name)}" for name in ("a", "b"))
    return CompareVideoOptions(students, prompts="3", frames=300, seeds=2, out=str(tmp_path / "out"), device="cpu")


def calls(options: CompareVideoOptions) -> dict[str, int]:
    return {path.name: len(path.read_text()) for path in (Path(options.out) / "calls").iterdir()}


class TestPrompts:
    def test_no_two_held_out_prompts_are_alike(self) -> None:
        cases = held_out_cases(MOST)
        assert len({case.prompt for case in cases}) == MOST == 50
        for case in cases:
            assert prompt_motion(case.prompt) == case.motion
            assert case.prompt.startswith(case.plain)
            assert not set(case.plain.split()[1:]) & set(case.other.split()[1:])

    @pytest.mark.parametrize(
        ("prompt", "motion"),
        [
            ("a red ball rolls to the left", ("rolling", "left")),
            ("a car enters from the right", ("entering", "right")),
            ("a red cube and a blue ball pass each other", ("passing", "")),
            ("a mug standing still", ("still", "")),
            ("a mug, the camera orbits left", ("still", "")),
            ("a mug moving to the left", None),  # rolling or sliding
            ("a tree leaving", None),  # to where?
        ],
    )
    def test_motions_of_prompts(self, prompt: str, motion: tuple[str, str] | None) -> None:
        assert prompt_motion(prompt) == motion
        assert motion is None or motion in MOTION_CLASSES

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "p.txt"
        path.write_text("# two\na red ball and a blue cube pass each other\na box spinning\n")
        first, second = read_cases(str(path))
        assert (first.plain, second.plain) == ("a red ball", "a cube")
        assert second.motion == ("spinning", "")
        path.write_text("a red penguin\n")
        with pytest.raises(PromptError, match="can't tell what 'a red penguin' shows"):
            read_cases(str(path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [("0", "--prompts is 0"), ("51", "--prompts is 51"), ("-1", "-1"), (" ", "empty"), ("heldout", "'heldout'")],
    )
    def test_mistakes(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read_cases(text)


class TestStudents:
    @pytest.mark.parametrize(
        ("items", "message"),
        [
            ((), "No student"),
            (("a",), "not understood"),
            (("=x",), "not understood"),
            (("a=",), "not understood"),
            (("a=x", "a=y"), "Two students are called 'a'"),
            (("teacher=x",), "can't be called teacher"),
            (("a\x07=x",), "can't be used"),
            ((f"{'a' * 41}=x",), "can't be used"),
        ],
    )
    def test_names(self, items: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_students(items)

    def test_folders_that_hold_no_student(self, tmp_path: Path) -> None:
        with pytest.raises(TeacherError, match="There is no folder"):
            open_student("a", str(tmp_path / "missing"))
        write_student(tmp_path / "run" / "student")
        with pytest.raises(TeacherError, match=r"holds no student.*Did you mean .*run/student"):
            open_student("a", str(tmp_path / "run"))
        (tmp_path / "run" / "student" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
        with pytest.raises(TeacherError, match=r"does not say how it is streamed.*--teacher"):
            open_student("a", str(tmp_path / "run" / "student"))
        write_student(tmp_path / "bad", chunk=100)
        with pytest.raises(CheckpointError, match="does not fit"):
            open_student("a", str(tmp_path / "bad"))
        student = write_student(tmp_path / "cut")
        (student / "transformer" / "model.safetensors").write_bytes(b"cut")
        with pytest.raises(CheckpointError, match="can't be read"):
            open_student("a", str(student))
        (student / "transformer" / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="holds no safetensors"):
            open_student("a", str(student))

    def test_what_a_run_tells(self, tmp_path: Path) -> None:
        write_run(tmp_path / "tf", {"objective": "teacher-forcing", "batch": 4, "accumulate": 2, "teacher": "gone/t"},
                  [1.0, 2.0, 0.5])  # fmt: skip
        matching = {"objective": "re-dmd", "history": "self", "batch": 2, "critic_steps": 5, "teacher": "gone/t",
                    "student": "elsewhere/tf/student"}  # fmt: skip
        folder = write_run(tmp_path / "rf", matching, [10.0, 20.0], sink_kind="ema")
        student = open_student("x", str(folder))
        assert (student.traits.objective, student.traits.history, student.traits.sink) == ("re-dmd", "self", "ema")
        assert student.traits.trained_sink == "ema"
        assert (student.parameters, student.calls, student.traits.calls) == (10, 3, 2)
        assert student.cost is not None
        assert student.cost.runs == ("rf", "tf")  # found beside it: runs are moved together
        assert (student.cost.steps, student.cost.seconds) == (5, 22.5)
        assert student.cost.samples == 2 * 2 * 6 + 3 * 8
        assert not student.cost.complete  # the teacher is gone

    def test_a_chain_that_ends_at_its_teacher(self, tmp_path: Path) -> None:
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "model_index.json").write_text("{}")
        forced = write_run(
            tmp_path / "tf", {"objective": "teacher-forcing", "batch": 1, "teacher": str(tmp_path / "t")}, [1.0],
            sink_kind="ema",
        )  # fmt: skip
        options = {"objective": "causal-consistency", "batch": 1, "teacher": str(forced), "start": str(forced)}
        student = open_student("x", str(write_run(tmp_path / "cc", options, [2.0])))
        assert student.cost is not None
        assert (student.cost.runs, student.cost.steps, student.cost.complete) == (("cc", "tf"), 2, True)
        assert student.traits.history == "data"
        assert open_student("x", str(forced)).traits.trained_sink == "first"

    def test_no_run(self, tmp_path: Path) -> None:
        student = open_student("x", str(write_student(tmp_path / "s", sink=0, guidance=4.0)))
        assert student.cost is None
        assert (student.traits.objective, student.traits.sink, student.calls) == (None, "none", 6)
        assert open_student("r", "tiny-random").config.size == (16, 16)


class TestResuming:
    def test_what_is_done_is_not_done_again(self, options: CompareVideoOptions, tmp_path: Path) -> None:
        first = compare_videos(options, job=fake_job)
        assert len(first.rows) == 2 * 3 * 2 + 2
        more = (*options.students, f"c={write_student(tmp_path / 'c')}")
        again = compare_videos(replace(options, students=more, prompts="4"), job=fake_job)
        assert set(calls(options).values()) == {1}
        assert len(again.rows) == 3 * 4 * 2 + 3
        assert [entry["student"] for entry in again.content["summary"]] == ["a", "b", "c"]
        alone = compare_videos(replace(options, students=more[2:]), job=fake_job)
        assert len(alone.rows) == len(again.rows)

    def test_an_interrupted_comparison_goes_on(self, options: CompareVideoOptions) -> None:
        with pytest.raises(ComparisonInterrupted):
            compare_videos(options, job=interrupted_job)
        assert len(calls(options)) == 3
        assert compare_videos(options, job=fake_job).failed == 0
        assert set(calls(options).values()) == {1}

    def test_a_student_that_changed_is_measured_anew(self, options: CompareVideoOptions, tmp_path: Path) -> None:
        before = {task.key for task in make_plan(options).tasks}
        compare_videos(options, job=fake_job)
        write_student(tmp_path / "b", weight=2.0)
        with pytest.raises(ComparisonInterrupted):
            compare_videos(options, job=interrupted_job)
        kinds = [(row["student"], row["kind"]) for row in rebuild(options.out).rows]
        assert ("b", "stream") not in kinds  # of the old weights there is nothing left in the tables
        assert ("a", "stream") in kinds
        compare_videos(options, job=fake_job)
        assert len(set(calls(options)) - before) == 3 * 2 + 1
        write_student(tmp_path / "b", weight=2.0, window=6)
        assert len({task.key for task in make_plan(options).tasks} - set(calls(options))) == 3 * 2 + 1

    def test_a_failing_cell_is_a_row_and_tried_again(self, options: CompareVideoOptions) -> None:
        def failing(task: Task, callbacks: Any = ()) -> dict[str, Any]:
            if task.student == "b":
                raise TeacherError("The <b> is out.", "Wait.")
            return fake_job(task, callbacks)

        result = compare_videos(options, job=failing)
        assert result.failed == 3 * 2 + 1
        assert "The &lt;b&gt; is out." in result.report.read_text()
        assert "<b>" not in result.report.read_text()
        assert compare_videos(replace(options, students=options.students[:1]), job=failing).failed == 0
        assert compare_videos(options, job=fake_job).failed == 0

    def test_folders_that_can_t_be_used(self, options: CompareVideoOptions, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RunError, match="is a file"):
            compare_videos(replace(options, out=str(tmp_path / "file")), job=fake_job)
        with pytest.raises(RunError, match="holds no comparison"):
            rebuild(str(tmp_path))
        compare_videos(options, job=fake_job)
        with pytest.raises(ConfigError, match="other settings: frames 300, now 20"):
            compare_videos(replace(options, frames=20), job=fake_job)
        plan = Path(options.out) / "plan.json"
        content = json.loads(plan.read_text())
        plan.write_text(json.dumps({"format_version": 1, "shared": {}, "objectives": [], "modes": [], "prompts": []}))
        with pytest.raises(RunError, match="another comparison"):
            compare_videos(options, job=fake_job)
        plan.write_text(json.dumps(content | {"format_version": 9}))
        with pytest.raises(RunError, match="format version 9"):
            rebuild(options.out)

    def test_a_full_disk(self, options: CompareVideoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(folder: Path, row: dict[str, Any]) -> None:
            raise RunError("Could not write: No space left on device.", "Free some.")

        monkeypatch.setattr("dreamkit.training.compare_video.save_row", full)
        with pytest.raises(RunError, match="No space left"):
            compare_videos(options, job=fake_job)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"frames": 0}, "--frames is 0"),
            ({"seeds": 0}, "--seeds is 0"),
            ({"steps": 0}, "--steps is 0"),
            ({"speed_frames": 0}, "--speed-frames is 0"),
            ({"guidance": -1.0}, "--guidance is -1"),
            ({"teacher": "missing"}, "missing holds no video teacher"),
            ({"students": ("a=tiny-random", "b=embedded-random")}, "different sizes: a 16x16, b 64x64"),
        ],
    )
    def test_mistakes(self, options: CompareVideoOptions, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(DreamkitError, match=message):
            make_plan(replace(options, **changes))
        assert not Path(options.out).exists()


class TestTables:
    def test_files(self, options: CompareVideoOptions) -> None:
        result = compare_videos(options, job=fake_job)
        rows = list(csv.DictReader(io.StringIO((Path(options.out) / "results.csv").read_text())))
        assert tuple(rows[0]) == COLUMNS
        assert {measure.name for measure in MEASURES} < set(COLUMNS)
        assert [row["kind"] for row in rows] == ["stream"] * 12 + ["speed"] * 2
        content = json.loads((Path(options.out) / "summary.json").read_text())
        assert [claim["verdict"] for claim in content["claims"]] == ["not measured"] * 4
        speeds = content["summary"][0]["measures"]["denoise_fps"]
        assert speeds == {"mean": 30.0, "half": None, "n": 1}
        before = result.report.read_bytes()
        assert rebuild(options.out).rows == result.rows
        assert result.report.read_bytes() == before

    def test_a_teacher_is_the_yardstick(self, options: CompareVideoOptions, tmp_path: Path) -> None:
        write_student(tmp_path / "t")
        with_teacher = replace(options, teacher=str(tmp_path / "t"))
        content = compare_videos(with_teacher, job=fake_job).content
        teacher, first, _ = content["summary"]
        assert (teacher["student"], teacher["ratios"], teacher["n"]) == ("teacher", {}, 6)
        ratio = first["measures"]["prompt_last"]["mean"] / teacher["measures"]["prompt_first"]["mean"]
        assert first["ratios"]["prompt_last"] == pytest.approx(ratio)
        compare_videos(replace(with_teacher, steps=9), job=fake_job)
        assert len(calls(options)) == 6 + 14 + 6  # other steps make another teacher

    def test_an_interval(self) -> None:
        mean, half = interval([1.0, 2.0, 3.0, 4.0])
        assert (mean, half) == (2.5, pytest.approx(2.0542, abs=1e-3))  # t(3) = 3.1824, s = 1.2910
        assert interval([3.0]) == (3.0, None)


class TestStreams:
    @pytest.mark.parametrize(
        ("frames", "parts"),
        [
            (1, [(0, 1)]),
            (99, [(0, 99)]),
            (100, [(0, 100)]),
            (250, [(0, 100), (100, 200), (150, 250)]),
            (300, [(0, 100), (100, 200), (200, 300)]),
        ],
    )
    def test_parts(self, frames: int, parts: list[tuple[int, int]]) -> None:
        assert parts_of(frames) == parts

    def test_a_life_is_scored_part_by_part(self, judge: VideoJudge) -> None:
        images = torch.rand(110, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        case = held_out_cases(2)[1]
        life, whole = Life(judge, case, 110), VideoScorer(judge, case.prompt, case.motion)
        for lot in images.split(15):
            life.add(lot)
        assert [(part["start"], part["end"]) for part in life.curve] == [(0, 100), (10, 110)]
        whole.add(images[:100])
        scores, numbers = whole.result(), life.numbers()
        for name in ("prompt", "object", "colour", "motion"):
            assert numbers[f"{name}_first"] == pytest.approx(scores[name])
            assert numbers[f"{name}_1000"] is numbers[f"{name}_10000"] is None
        assert life.curve[0]["sharpness"] == pytest.approx(scores["sharpness"], abs=1e-6)
        reference = VideoScorer(judge, case.prompt, drift_start=20, drift_length=40)
        reference.add(images)
        assert numbers["drift_100"] == numbers["drift_last"] == pytest.approx(reference.result()["drift"])
        assert numbers["drift_1000"] is None

    def test_drift_grows_with_what_changes(self, judge: VideoJudge) -> None:
        case = held_out_cases(1)[0]
        fading = torch.rand(1, 3, 16, 16).expand(1000, -1, -1, -1) * torch.linspace(1, 0, 1000)[:, None, None, None]
        life = Life(judge, case, 1000)
        for lot in fading.split(250):
            life._drift(lot)
        numbers = life.numbers()
        assert 0 < numbers["drift_100"] < 0.1 < numbers["drift_1000"] == numbers["drift_last"]  # type: ignore[operator]

    def test_there_and_back(self) -> None:
        poses = ThereAndBack(camera_path("orbit-left"), 20.0, 60).poses(torch.arange(121))
        torch.testing.assert_close(poses[0], torch.eye(4, dtype=torch.float64))
        torch.testing.assert_close(poses[:61], poses[60:])
        torch.testing.assert_close(poses[30], camera_path("orbit-left").poses(torch.tensor([20]))[0])
        assert camera_controls(camera_path("pan"), 4).shape == (1, 4)

    def test_tracks_stay_in_the_picture_and_move(self) -> None:
        tracks, count = sliding_tracks(29)
        Controls(tracks=tracks[None]).check_values()
        steps = tracks.diff(dim=0).norm(dim=2)
        assert tracks.shape == (29, 16, 2)
        assert 0.03 < float(steps[:, :count].max()) < 0.06
        assert not steps[:, count:].any()

    def test_when_a_new_prompt_holds(self) -> None:
        hits = [False] * 5 + [True, False] + [True] * 35
        assert switch_numbers(hits, 12) == {
            "switch_1s": 1.0, "switch_3s": 1.0, "switch_held": 1.0, "switch_frames": 7.0,
        }  # fmt: skip
        never = switch_numbers([True, False] * 21, 12)
        assert (never["switch_1s"], never["switch_held"], never["switch_frames"]) == (0.5, 0.0, None)


class Stop(Callback):
    """Presses Ctrl-C after the first frames."""

    def on_step(self, step: int, total: int, metrics: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


class Steps(Callback):
    """Notes how far it is told to be."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def on_step(self, step: int, total: int, metrics: Any) -> None:
        self.told.append((step, total))


class TestCells:
    @pytest.fixture(autouse=True)
    def short(self, judge: VideoJudge, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(work, "load_video_judge", lambda: judge)
        monkeypatch.setattr(work, "frame_rate", lambda student: 4)
        monkeypatch.setattr(streams, "LOOP_PERIOD", 12)
        monkeypatch.setattr(streams, "CONTROL_FRAMES", 15)
        work._judge.cache_clear()
        work._loaded.cache_clear()

    def cell(self, options: CompareVideoOptions, **changes: Any) -> Task:
        asked = replace(options, students=("r=tiny-random",), prompts="1", seeds=1, frames=30, **changes)
        Path(options.out).mkdir()
        return make_plan(asked).tasks[0]

    def test_a_student_s_row(self, options: CompareVideoOptions) -> None:
        steps, task = Steps(), self.cell(options)
        row = make_row(task, [steps])
        assert row["error"] is None
        speeds = {measure.name for measure in SPEED_MEASURES}
        later = {name for name in row if name.endswith(("_1000", "_10000"))} | {"drift_100", "drift_last"}
        missing = {name for name, value in row.items() if value is None}
        assert missing - {"error", "switch_frames", "loop"} == speeds | later
        assert [(part["start"], part["end"]) for part in row["curve"]] == [(0, 30)]
        assert steps.told[-1][0] == steps.told[-1][1] == 30 + 4 * 15 + 15 + 29
        clips = sorted(path.name for path in (task.folder / "clips").iterdir())
        assert clips == [f"{task.key}-{name}.mp4" for name in ("first", "last", "loop", "switch")]
        times = ("created", "seconds")
        again = make_row(replace(task, shown=False))
        assert {**again, **dict.fromkeys(times), "shown": 0} == {**row, **dict.fromkeys(times), "shown": 0}

    def test_ctrl_c_stops_it(self, options: CompareVideoOptions) -> None:
        with pytest.raises(RunInterrupted):
            make_row(self.cell(options, shown=0), [Stop()])

    def test_a_student_that_knows_no_controls(self, options: CompareVideoOptions) -> None:
        task = self.cell(options, shown=0)
        student, config = work.load_contender(task.source, "cpu")
        student.controls = None
        found = streams.Streams(student, config, work._judge(), 0)
        case = task.case
        assert set((found.cameras(case, 0) | found.tracks(case) | found.loop(case)).values()) == {None}
        assert found.total(30) == 30 + 29

    def test_a_teacher_s_row(
        self, options: CompareVideoOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiny_video, "WORDS", ("a", "red", "ball", "spinning"))
        prompts = tmp_path / "p.txt"
        prompts.write_text("a red ball spinning\n")
        teacher = tiny_video.write_pipeline(tmp_path / "teacher")
        options = replace(options, students=("r=tiny-random",), prompts=str(prompts), teacher=str(teacher), steps=2)
        Path(options.out).mkdir()
        row = make_row(make_plan(options).tasks[0])
        assert (row["kind"], row["student"], row["frames"], row["error"]) == ("teacher", "teacher", 15, None)
        assert all(row[name] is not None for name in ("prompt_first", "motion_first", "flicker", "sharpness"))
        assert len(list((Path(options.out) / "clips").iterdir())) == 1

    def test_a_damaged_student_is_a_failed_row(self, options: CompareVideoOptions) -> None:
        result = compare_videos(replace(options, prompts="1", seeds=1, students=options.students[:1]))
        assert result.failed == 2
        assert all("vae" in row["error"] or "config.json" in row["error"] for row in result.rows)


class TestSpeed:
    def test_what_is_measured(self) -> None:
        found = speed._alone("tiny-random", "a red mug", 24, "cpu", 1)
        assert set(found) == {measure.name for measure in SPEED_MEASURES}
        assert all(value is not None and value > 0 for value in found.values())

    def test_a_speed_s_row(self, options: CompareVideoOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(speed, "measure_speed", lambda *asked: {"denoise_fps": float(len(asked))})
        row = make_row(make_plan(options).tasks[-1])
        assert (row["kind"], row["prompt"], row["denoise_fps"], row["frames"]) == ("speed", "", 4.0, 120)

    @pytest.mark.slow
    def test_the_memory_is_that_of_the_student_alone(self) -> None:
        ballast = torch.ones(400_000_000)  # 1.6 GB here
        found = speed.measure_speed("tiny-random", "a red mug", 24, "cpu")
        assert found["peak_rss_mb"] < ballast.nbytes / 1e6  # type: ignore[operator]
