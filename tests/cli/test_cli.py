"""The command line: what is asked reaches the job literally, and no mistake ends in a traceback."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreamkit import __version__
from dreamkit.cli.export import FORMATS
from dreamkit.cli.generate import PRESETS
from dreamkit.cli.main import COMMANDS, main
from dreamkit.errors import TeacherError
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes.film_config import FilmConfig
from dreamkit.training import generate as jobs_module
from dreamkit.training.assets import FORMATS as DELIVERED_FORMATS
from dreamkit.training.presets import preset

RESULT = jobs_module.GenerateResult(
    run=Path("outputs/a/sds/x"),
    exports={"ply": Path("outputs/a/sds/x/exports/scene.ply")},
    seconds=1.23456,
    steps=3,
    peak_rss_mb=512.34,
    scores={"r_precision": 0.9, "janus": None},
    warnings=["careful"],
)
ANSWERS: dict[str, Any] = {
    "generate": RESULT,
    "resume": RESULT,
    "render": {"turntable": Path("turntable.mp4")},
    "export": Path("scene.ply"),
    "evaluate": {"r_precision": 0.9, "janus": None},
    "sample": (Path("outputs/samples/a.png"), ["careful"]),
}


class Jobs:
    """Stands for the heavy functions: notes what each was asked, by its real signature, and answers at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failure: BaseException | None = None
        for name in ANSWERS:
            monkeypatch.setattr(jobs_module, name, self._stand_in(name, getattr(jobs_module, name)))

    def _stand_in(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*positional: Any, **named: Any) -> Any:
            arguments = inspect.signature(real).bind(*positional, **named).arguments
            callbacks = arguments.pop("callbacks", ())
            self.asked.append((name, arguments))
            for callback in callbacks:
                callback.on_run(RESULT.run)
                callback.on_stage("optimising", 1)
                callback.on_step(1, 1, {"loss": 0.5})
            if self.failure is not None:
                raise self.failure
            return ANSWERS[name]

        return answer


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    return Jobs(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "outputs", "a", "sds", {})


def test_generate_passes_everything(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        *("generate", "a red mug", "--preset", "standard", "--objective", "sds", "--scene", "gaussians"),
        *("--teacher", "some/model", "--negative", "blurry", "--guidance", "7.5", "--steps", "9", "--views", "2"),
        *("--resolution", "32", "--seed", "5", "--out", "elsewhere", "--device", "cpu", "--json"),
        *("--option", "timesteps=uniform", "--option", "critic.rank=16"),
    ]
    assert main(words) == 0
    assert jobs.asked[0][1]["options"] == jobs_module.GenerateOptions(
        prompt="a red mug",
        preset="standard",
        objective="sds",
        scene="gaussians",
        teacher="some/model",
        negative="blurry",
        guidance=7.5,
        steps=9,
        views=2,
        resolution=32,
        seed=5,
        out="elsewhere",
        device="cpu",
        options=("timesteps=uniform", "critic.rank=16"),
    )
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1]) == {
        "run": "outputs/a/sds/x",
        "exports": {"ply": "outputs/a/sds/x/exports/scene.ply"},
        "seconds": 1.235,
        "steps": 3,
        "peak_rss_mb": 512.3,
        "scores": {"r_precision": 0.9, "janus": None},
        "teacher_calls": 0,
        "warnings": ["careful"],
    }
    assert "optimising 1/1  loss 0.5" in captured.err


def test_generate_prints_lines_for_people(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red mug"]) == 0
    out = capsys.readouterr().out
    assert "1.2 s, 3 steps, 512 MB" in out
    assert re.search(r"ply +outputs/a/sds/x/exports/scene\.ply", out)
    assert re.search(r"janus +-", out)


@pytest.mark.parametrize(
    "prompt",
    ["${oc.env:HOME}", "None", "@/etc/passwd", "a 'quoted' \"mug\" \\ $HOME %s {x}", "eine rote Tasse", "赤い杯"],
)
def test_a_prompt_arrives_literally(jobs: Jobs, prompt: str) -> None:
    assert main(["generate", prompt]) == 0
    assert jobs.asked[0][1]["options"].prompt == prompt


def test_a_prompt_may_begin_with_a_dash(jobs: Jobs) -> None:
    assert main(["generate", "--json", "--", "--steps"]) == 0
    assert jobs.asked[0][1]["options"].prompt == "--steps"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--steps", "-3"], "--steps is -3"),
        (["--views", "0"], "--views is 0"),
        (["--resolution", "15"], "from 16 to 2048"),
        (["--resolution", "-64"], "from 16 to 2048"),
        (["--resolution", "4096"], "from 16 to 2048"),
        (["--guidance", "nan"], "finite"),
        (["--guidance", "inf"], "finite"),
        (["--guidance", "-1"], "at least 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", str(2**64)], "--seed is"),
        (["--objective", "sdss"], "one of: sds"),
        (["--scene", "gausians"], "one of: gaussians"),
        (["--preset", "standart"], "one of: standard, "),
        (["--device", "gpu"], "one of: cpu, auto, cuda"),
        (["--device", "cuda:x"], "one of: cuda"),
        (["--out", " "], "--out is empty"),
    ],
)
def test_bad_options_are_explained(
    jobs: Jobs, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["generate", "a red mug", *options, "--json"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    answer = json.loads(captured.out.splitlines()[-1])
    assert answer.keys() == {"error", "hint"}
    assert jobs.asked == []


@pytest.mark.parametrize("command", ["generate", "sample"])
@pytest.mark.parametrize("prompt", ["", "   ", "x" * 10_000, "a\x07bell", "\ud800"])
def test_bad_prompts_are_explained(jobs: Jobs, capsys: pytest.CaptureFixture[str], command: str, prompt: str) -> None:
    assert main([command, prompt, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: The prompt")
    assert json.loads(captured.out)["error"].startswith("The prompt")
    assert jobs.asked == []


@pytest.mark.parametrize(
    "words",
    [
        ["generate"],
        ["generate", "a", "red", "mug"],
        ["generate", "a", "--steps", "many"],
        ["generate", "a", "--stepz", "3"],
        ["generate", "a", "--steps"],
        ["resume"],
        ["doctor", "extra"],
    ],
)
def test_unreadable_command_lines_exit_with_2(jobs: Jobs, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main([*words, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err
    assert "error" in json.loads(captured.out.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["genrate", "a"], "Did you mean `dreamkit generate`"),
        (["a red mug"], 'dreamkit generate "a red mug"'),
        (["teachers", "trian", "image"], "`dreamkit teachers train image`"),
        (["--nonsense"], "`dreamkit --help` lists all"),
    ],
)
def test_unknown_commands_name_the_nearest(capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["resume"], {}),
        (["render"], {}),
        (["evaluate"], {}),
        (["export"], {"kind": "glb"}),
        (["export", "--format", "splat"], {"kind": "splat"}),
    ],
)
@pytest.mark.parametrize("latest", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_commands_on_a_run(
    jobs: Jobs,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    asked: dict[str, str],
    latest: bool,
    as_json: bool,
) -> None:
    place = ["latest", "--out", str(run.path.parents[2])] if latest else [str(run.path)]
    assert main([words[0], *place, *words[1:], *(["--json"] if as_json else [])]) == 0
    assert jobs.asked == [(words[0], {"path": str(run.path), **asked})]
    out = capsys.readouterr().out
    assert out
    if as_json:
        assert "run" in json.loads(out)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--style", "rgb,normals"], "'normals' is not known"),
        (["--style", ","], "list of styles is empty"),
        (["--path", "spirall"], "no camera path 'spirall'"),
        (["--format", "avi"], "'avi' is not known"),
        (["--output", "film.avi"], "ends in no known format"),
        (["--output", "film.gif", "--format", "mp4"], "Name it film.mp4"),
        (["--resolution", "15"], "16 to 2,048"),
        (["--fps", "0"], "1 to 120"),
        (["--fps", "60", "--format", "gif"], "60 frames a second"),
        (["--frames", "0"], "1 to 10,000"),
        (["--frames", "many"], "many"),
        (["--radius", "nan"], "radius is nan"),
        (["--elevation", "100"], "elevation is 100"),
        (["--background", "pink"], "'pink' is not known"),
        (["--colormap", "jet"], "'jet' is not known"),
        (["--format", "webp", "--resolution", "2048", "--frames", "5000"], "of memory"),
    ],
)
def test_films_that_can_not_be_are_explained(
    jobs: Jobs, run: Run, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["render", str(run.path), *options, "--json"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert "error" in json.loads(captured.out.splitlines()[-1])
    assert jobs.asked == []


def test_a_film_reaches_the_job(jobs: Jobs, run: Run) -> None:
    words = [
        *("render", str(run.path), "--style", "clay, wireframe", "--path", "spiral", "--format", "gif"),
        *("--resolution", "64", "--fps", "10", "--frames", "7", "--elevation", "-5", "--radius", "2.5", "--fov", "35"),
        *("--background", "#ffffff", "--colormap", "gray", "--faces", "500", "--line-width", "2", "--device", "cpu"),
    ]
    assert main([*words, "--output", "a.gif"]) == 0
    film = FilmConfig(
        styles=("clay", "wireframe"),
        path="spiral",
        format="gif",
        output="a.gif",
        resolution=64,
        fps=10,
        frames=7,
        elevation=-5.0,
        radius=2.5,
        fov=35.0,
        background="#ffffff",
        colormap="gray",
        faces=500,
        line_width=2.0,
        device="cpu",
    )
    assert jobs.asked == [("render", {"path": str(run.path), "film": film})]


@pytest.mark.parametrize("command", ["resume", "render", "evaluate", "export"])
def test_a_missing_run(jobs: Jobs, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    assert main([command, str(tmp_path / "nowhere")]) == 2
    assert main([command, "latest", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no run folder" in error
    assert "no run under" in error
    assert jobs.asked == []


def test_an_unknown_export_format(jobs: Jobs, capsys: pytest.CaptureFixture[str], run: Run) -> None:
    assert main(["export", str(run.path), "--format", "objj"]) == 2
    assert "one of: obj, " in capsys.readouterr().err


def test_the_quick_checks_know_what_the_jobs_know() -> None:
    assert FORMATS == DELIVERED_FORMATS
    assert [preset(name).preset for name in PRESETS] == list(PRESETS)


def test_sample(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "a red mug", "--count", "4", "--negative", "blue"]) == 0
    asked = jobs.asked[0][1]
    assert (asked["prompt"], asked["count"], asked["negative"]) == ("a red mug", 4, "blue")
    captured = capsys.readouterr()
    assert captured.out == "outputs/samples/a.png\n"
    assert captured.err == "warning: careful\n"
    assert main(["sample", "a red mug", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"image": "outputs/samples/a.png", "warnings": ["careful"]}
    assert main(["sample", "a red mug", "--count", "0"]) == 2


def test_an_error_of_the_job_is_explained(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.failure = TeacherError("There is no model.", "Check --teacher.")
    assert main(["generate", "a", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("error: There is no model.\nhint: Check --teacher.\n")
    assert json.loads(captured.out) == {"error": "There is no model.", "hint": "Check --teacher."}


def test_an_interrupted_job_says_how_to_go_on(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.failure = RunInterrupted(Path("outputs/a/sds/x"), 12)
    assert main(["generate", "a", "--json"]) == 130
    captured = capsys.readouterr()
    assert "Interrupted; step 12 is saved." in captured.err
    assert "dreamkit resume outputs/a/sds/x" in captured.err
    assert json.loads(captured.out)["hint"] == "Continue with: dreamkit resume outputs/a/sds/x"
    jobs.failure = KeyboardInterrupt()
    assert main(["generate", "a"]) == 130
    assert capsys.readouterr().err.endswith(
        "Interrupted; its checkpoints are safe.\nContinue with: dreamkit resume outputs/a/sds/x\n"
    )


def test_a_bug_shows_its_traceback_and_exits_with_1(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.failure = ZeroDivisionError("division by zero")
    assert main(["generate", "a", "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert "report it" in captured.err
    assert json.loads(captured.out)["error"] == "ZeroDivisionError: division by zero"


def test_errors_are_red_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense"]) == 2
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["nonsense"]) == 2
    assert "\x1b[1;31merror:" in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["nonsense"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "--help"]) == 0
    assert "teachers train image" in capsys.readouterr().out
    assert main(["teachers", "train"]) == 2
    assert main(["teachers", "sing"]) == 2


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main([*name.split(), "--help"]) == 0
    assert f"usage: dreamkit {name}" in capsys.readouterr().out


def test_a_trainer_s_own_checks_reach_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teachers", "train", "image", "--steps", "0"]) == 2
    captured = capsys.readouterr()
    assert "steps" in captured.err
    assert "Traceback" not in captured.err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["dreamkit"] == __version__
    assert report["machine"]["cores"] >= 1
    assert "gaussian_rasterize / reference" in report["backends"]
    assert main(["doctor"]) == 0
    assert "gaussian_rasterize / reference" in capsys.readouterr().out


def test_doctor_reads_the_cards_of_the_embedded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "teacher/denoiser").mkdir(parents=True)
    (tmp_path / "teacher/denoiser/model.safetensors").write_bytes(b"x" * 2_000_000)
    (tmp_path / "teacher/README.md").write_text("---\nlicense: x\n---\n# Teacher\n\nA small\nmodel.\n\nMore.\n")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/model.safetensors").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    monkeypatch.setattr("dreamkit.cli.doctor.resources.files", lambda package: tmp_path)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["embedded weights"] == {"teacher": "2.0 MB. A small model."}


def test_doctor_survives_a_broken_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from dreamkit.cli import doctor

    def broken() -> dict[str, Any]:
        raise ImportError("libfoo is missing")

    monkeypatch.setattr(doctor, "backends", broken)
    assert main(["doctor"]) == 0
    assert "ImportError: libfoo is missing" in capsys.readouterr().out


def shell(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dreamkit.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_installed_command() -> None:
    script = Path(sys.executable).with_name("dreamkit")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"dreamkit {__version__}\n")
    assert shell("generate", "a red mug", "--steps", "0").returncode == 2


def test_bytes_that_are_no_text() -> None:
    command = [os.fsencode(sys.executable), b"-m", b"dreamkit.cli.main", b"generate", b"\xff\xfe"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: The prompt")


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys, dreamkit.cli.main as m\ninput()\nsys.exit(m.main(['--help']))"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_ctrl_c_before_anything_happened() -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job is born without it
        "from dreamkit.cli import doctor, main\n"
        "doctor.versions = lambda: os.kill(os.getpid(), signal.SIGINT) or input()\n"
        "sys.exit(main.main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr.endswith("Interrupted.\n")
