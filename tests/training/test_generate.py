"""The main job from sentence to files, on a tiny teacher of every kind, and everything that may go wrong with it."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamkit.errors import CheckpointError, ConfigError, DreamkitError, PromptError, RunError, SceneError, TeacherError
from dreamkit.files import read_jsonl
from dreamkit.metrics import judge
from dreamkit.metrics.judge import Judge, JudgeNetwork
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes import conversion, mesh
from dreamkit.training import deliver, generate
from dreamkit.training.callbacks import Callback
from dreamkit.training.checkpoints import STATE_FILE, list_checkpoints, load_latest
from dreamkit.training.generate import GenerateOptions, GenerateResult
from dreamkit.training.presets import preset
from dreamkit.training.settings import SceneSettings

PICTURE = Path(__file__).parents[2] / "assets" / "heldout-draft.png"
KINDS = ("toyworld", "sd15", "sd21", "sdxl", "deepfloyd")
SCORES = {"r_precision", "object", "colour", "janus"}
CheckpointMaker = Callable[[str], Path]


@pytest.fixture(autouse=True)
def small_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pictures, few frames, a coarse mesh, and a judge of random opinion in place of the embedded one."""
    monkeypatch.setattr(deliver, "PICTURE_SIZE", 32)
    monkeypatch.setattr(deliver, "TURNTABLE_FRAMES", 8)
    coarse = mesh.MeshConfig(resolution=32, max_faces=2000)
    extract = conversion.extract_mesh
    monkeypatch.setattr(conversion, "extract_mesh", lambda scene, config: extract(scene, coarse))

    def load_judge(folder: Path | None = None) -> Judge:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Judge(JudgeNetwork(width=8, embedding=16))

    monkeypatch.setattr(judge, "load_judge", load_judge)


@pytest.fixture
def small_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presets of a few hundred Gaussians, opaque from the start, so that there is a surface."""

    def small(*arguments: Any, **options: Any) -> SceneSettings:
        base = preset(*arguments, **options)
        density = replace(base.density, start=0.0, stop=1.0, interval=2, max_count=400, min_count=50)
        return replace(
            base, gaussians=replace(base.gaussians, count=300, initial_opacity=0.95), density=density, resolution=16
        )

    monkeypatch.setattr(generate, "preset", small)


@dataclass
class Recorder(Callback):
    """Notes what a job tells; may press Ctrl-C after a step."""

    interrupt_after: int | None = None
    stages: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    images: int = 0
    path: Path | None = None
    result: Any = None

    def on_run(self, path: Path) -> None:
        self.path = path

    def on_stage(self, name: str, total_steps: int | None) -> None:
        self.stages.append(name)

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        if self.stages[-1] != generate.OPTIMISING:
            return
        self.steps.append(step)
        if step == self.interrupt_after:
            os.kill(os.getpid(), signal.SIGINT)

    def on_image(self, name: str, image: torch.Tensor) -> None:
        self.images += 1

    def on_message(self, level: str, text: str) -> None:
        self.messages.append(text)

    def on_end(self, result: Any) -> None:
        self.result = result


def options(teacher: Path, out: Path, **changes: Any) -> GenerateOptions:
    base = GenerateOptions("a red mug", steps=4, views=2, teacher=str(teacher), out=str(out), device="cpu")
    return replace(base, **changes)


def make(checkpoint: CheckpointMaker, out: Path, kind: str = "toyworld", **changes: Any) -> GenerateResult:
    return generate.generate(options(checkpoint(kind), out, **changes))


_FINISHED: list[GenerateResult] = []


@pytest.fixture
def finished(
    checkpoint: CheckpointMaker,
    small_preset: None,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> GenerateResult:
    """A finished run of five steps that nobody stopped: made once, a copy for each test."""
    if not _FINISHED:
        _FINISHED.append(make(checkpoint, tmp_path_factory.mktemp("finished"), steps=5))
    made = _FINISHED[0]
    run = tmp_path / "finished" / made.run.relative_to(made.run.parents[2])
    shutil.copytree(made.run, run)
    exports = {name: run / path.relative_to(made.run) for name, path in made.exports.items()}
    return replace(made, run=run, exports=exports)


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def check_pictures(run: Run, size: int = 32, frames: int = 8) -> None:
    """The film plays and the sheet opens."""
    import imageio.v3 as imageio
    from PIL import Image

    video = imageio.imread(run.renders / "turntable.mp4", plugin="FFMPEG")
    assert video.shape == (frames, size, size, 3)
    with Image.open(run.renders / "contact_sheet.png") as sheet:
        sheet.load()
        assert sheet.mode == "RGB"
        assert sheet.width > 4 * size
    pixels = np.asarray(Image.open(run.renders / "contact_sheet.png"))
    assert pixels.std() > 1  # not one colour


def check_ply(path: Path) -> int:
    """A splat file that plyfile reads whole; returns its number of Gaussians."""
    from plyfile import PlyData

    vertices = PlyData.read(path)["vertex"]
    names = vertices.data.dtype.names
    wanted = {"x", "y", "z", "opacity", *(f"scale_{k}" for k in range(3)), *(f"rot_{k}" for k in range(4))}
    assert wanted | {f"f_dc_{k}" for k in range(3)} <= set(names)
    assert all(np.isfinite(vertices[name]).all() for name in names)
    return len(vertices.data)


def check_mesh(path: Path) -> None:
    """A mesh that trimesh reads: faces, colours, a box inside the world."""
    import trimesh

    from dreamkit.scenes.export import load_mesh

    solid = trimesh.load(path, force="mesh")
    assert len(solid.faces) > 100
    assert solid.is_watertight
    assert solid.volume > 0.01
    colors = load_mesh(path).colors
    assert colors.shape == (len(solid.vertices), 3)
    assert 0 <= colors.min() < colors.max() <= 1
    low, high = solid.bounds
    assert bool((low > -2).all())
    assert bool((high < 2).all())
    assert bool((high - low > 0.1).all())


class TestEveryKindOfTeacher:
    @pytest.mark.parametrize("kind", KINDS)
    def test_from_fog(self, checkpoint: CheckpointMaker, tmp_path: Path, kind: str) -> None:
        """The draft preset for a few steps: every file is there and whole."""
        recorder = Recorder()
        result = generate.generate(options(checkpoint(kind), tmp_path, resolution=32), [recorder])
        run = Run.open(result.run)
        assert result.run.parent == tmp_path / "a-red-mug" / "sds"
        expected = {"config.yaml", "metrics.jsonl", "run.log", "exports/scene.ply",
                    "exports/mesh.glb", "renders/turntable.mp4", "renders/contact_sheet.png",
                    "checkpoints/step-00000004/manifest.json", f"checkpoints/step-00000004/{STATE_FILE}"}  # fmt: skip
        assert set(files_of(result.run)) - {".lock"} == expected
        check_pictures(run)
        assert check_ply(result.exports["ply"]) == read_jsonl(run.metrics_file)[-1]["gaussians"]
        check_mesh(result.exports["glb"])
        assert result.warnings == recorder.messages == []
        assert [row["step"] for row in read_jsonl(run.metrics_file)] == [1, 2, 3, 4]
        assert set(result.scores) == SCORES
        assert result.steps == 4
        assert result.seconds > 0
        assert 50 < result.peak_rss_mb < 50_000
        assert recorder.path == result.run
        assert recorder.result is result
        assert recorder.steps == [1, 2, 3, 4]
        assert recorder.images == 4

    def test_a_fog_without_a_surface_keeps_its_splat_and_says_so(
        self, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def thin(*arguments: Any, **options: Any) -> SceneSettings:
            base = preset(*arguments, **options)
            return replace(base, gaussians=replace(base.gaussians, count=50, initial_opacity=0.03), resolution=16)

        monkeypatch.setattr(generate, "preset", thin)
        recorder = Recorder()
        result = generate.generate(options(checkpoint("toyworld"), tmp_path, steps=1), [recorder])
        assert set(result.exports) == {"ply"}
        check_ply(result.exports["ply"])
        assert not (result.run / "exports" / "mesh.glb").exists()
        assert [warning[:19] for warning in result.warnings] == ["No mesh was written"]
        assert recorder.messages == result.warnings
        assert "No mesh was written" in (result.run / "run.log").read_text()


@pytest.mark.usefixtures("small_preset")
class TestRepetition:
    DELIVERED = ("exports/scene.ply", "exports/mesh.glb", "renders/turntable.mp4", "renders/contact_sheet.png")

    def delivered(self, run: Path) -> dict[str, bytes]:
        return {name: (run / name).read_bytes() for name in self.DELIVERED}

    def state(self, run: Path) -> dict[str, torch.Tensor]:
        return load_latest(Run.open(run))[0].tensors

    def assert_same(self, one: Path, two: Path) -> None:
        assert self.delivered(one) == self.delivered(two)
        first, second = self.state(one), self.state(two)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def interrupted(self, checkpoint: CheckpointMaker, out: Path, after: int, **changes: Any) -> Path:
        recorder = Recorder(interrupt_after=after)
        with pytest.raises(RunInterrupted) as caught:
            generate.generate(options(checkpoint("toyworld"), out, **changes), [recorder])
        assert caught.value.step == after
        assert caught.value.run == recorder.path
        assert recorder.steps == list(range(1, after + 1))
        assert list_checkpoints(caught.value.run / "checkpoints")[0].name == f"step-{after:08d}"
        return caught.value.run

    @pytest.fixture
    def straight(self, finished: GenerateResult) -> Path:
        """The folder of a run that nobody stopped."""
        return finished.run

    def test_same_seed_same_bytes(self, checkpoint: CheckpointMaker, tmp_path: Path, straight: Path) -> None:
        again = make(checkpoint, tmp_path / "again", steps=5)
        self.assert_same(straight, again.run)
        other = make(checkpoint, tmp_path / "other", steps=5, seed=1)
        assert self.delivered(straight)["exports/scene.ply"] != self.delivered(other.run)["exports/scene.ply"]

    @pytest.mark.parametrize("after", [1, 3])
    def test_interrupted_and_resumed(
        self, checkpoint: CheckpointMaker, tmp_path: Path, straight: Path, after: int
    ) -> None:
        run = self.interrupted(checkpoint, tmp_path / "stopped", after, steps=5)
        assert not any((run / "exports").iterdir())
        recorder = Recorder()
        result = generate.resume(str(run), [recorder])
        assert result.run == run
        assert recorder.steps == list(range(after + 1, 6))
        self.assert_same(straight, run)
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]

    def test_ctrl_c_in_the_last_step_lets_it_finish(
        self, checkpoint: CheckpointMaker, tmp_path: Path, straight: Path
    ) -> None:
        recorder = Recorder(interrupt_after=5)
        result = generate.generate(options(checkpoint("toyworld"), tmp_path / "late", steps=5), [recorder])
        self.assert_same(straight, result.run)

    def test_a_corrupt_latest_checkpoint_falls_back_and_says_so(
        self, checkpoint: CheckpointMaker, tmp_path: Path, straight: Path
    ) -> None:
        run = self.interrupted(checkpoint, tmp_path / "stopped", 2, steps=5)
        generate.resume(str(run))
        state = run / "checkpoints" / "step-00000005" / STATE_FILE
        content = bytearray(state.read_bytes())
        content[len(content) // 2] ^= 0x40
        state.write_bytes(content)
        for name in self.DELIVERED:
            (run / name).unlink()
        recorder = Recorder()
        result = generate.resume(str(run), [recorder])
        assert any("Passed over step-00000005" in warning for warning in result.warnings)
        assert any("step-00000002" in warning for warning in result.warnings)
        assert "Passed over step-00000005" in (run / "run.log").read_text()
        assert result.warnings == recorder.messages
        assert recorder.steps == [3, 4, 5]
        self.assert_same(straight, run)
        assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]

    def test_without_any_checkpoint_it_starts_over(
        self, checkpoint: CheckpointMaker, tmp_path: Path, straight: Path
    ) -> None:
        run = self.interrupted(checkpoint, tmp_path / "stopped", 2, steps=5)
        for folder in list_checkpoints(run / "checkpoints"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        recorder = Recorder()
        generate.resume(str(run), [recorder])
        assert recorder.steps == [1, 2, 3, 4, 5]
        self.assert_same(straight, run)

    def test_when_none_is_good_it_says_so(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        run = self.interrupted(checkpoint, tmp_path / "stopped", 2, steps=5)
        for folder in list_checkpoints(run / "checkpoints"):
            (folder / "manifest.json").write_text("{}")
        with pytest.raises(CheckpointError, match="None of the 1 checkpoints"):
            generate.resume(str(run))

    def test_a_finished_run_is_delivered_again(self, straight: Path) -> None:
        before = self.delivered(straight)
        for name in self.DELIVERED:
            (straight / name).unlink()
        recorder = Recorder()
        generate.resume("latest", [recorder], out_root=str(straight.parents[2]))
        assert recorder.steps == []
        assert self.delivered(straight) == before

    def test_checkpoints_come_at_their_interval(
        self, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        smaller = vars(generate)["preset"]

        def often(*arguments: Any, **options: Any) -> SceneSettings:
            return replace(smaller(*arguments, **options), checkpoint_every=2)

        monkeypatch.setattr(generate, "preset", often)
        run = make(checkpoint, tmp_path, steps=5).run
        names = [path.name for path in list_checkpoints(run / "checkpoints")]
        assert names == ["step-00000005", "step-00000004", "step-00000002"]


@pytest.mark.usefixtures("small_preset")
class TestOtherCommands:
    def test_all_of_them_on_one_run(self, finished: GenerateResult) -> None:
        before = {name: path.read_bytes() for name, path in finished.exports.items()}
        for kind, name in (("ply", "scene.ply"), ("splat", "scene.splat"), ("glb", "mesh.glb"), ("obj", "mesh.obj")):
            path = generate.export(str(finished.run), kind)
            assert path == finished.run / "exports" / name
            assert path.stat().st_size > 1000
        assert {name: path.read_bytes() for name, path in finished.exports.items()} == before
        films = generate.render(str(finished.run))
        assert films == {
            "turntable": finished.run / "renders" / "turntable.mp4",
            "contact_sheet": finished.run / "renders" / "contact_sheet.png",
        }
        check_pictures(Run.open(finished.run))
        assert generate.evaluate(str(finished.run)) == finished.scores
        with pytest.raises(ConfigError, match=r"glb, obj, compressed\.ply, ply, splat"):
            generate.export(str(finished.run), "fbx")

    def test_the_lock(self, finished: GenerateResult) -> None:
        with Run.open(finished.run).lock(), pytest.raises(RunError, match="in use"):
            generate.resume(str(finished.run))

    def test_a_run_that_is_not_there(self, tmp_path: Path) -> None:
        for command in (generate.resume, generate.render, generate.evaluate):
            with pytest.raises(RunError, match="no run folder"):
                command(str(tmp_path / "nowhere"))  # type: ignore[operator]

    def test_a_configuration_of_another_program(self, finished: GenerateResult) -> None:
        config = finished.run / "config.yaml"
        config.write_text(config.read_text().replace("  views: 2", "  eyes: 2"))
        with pytest.raises(ConfigError, match="eyes"):
            generate.resume(str(finished.run))

    def test_a_checkpoint_of_another_kind(self, finished: GenerateResult) -> None:
        from dreamkit.training.checkpoints import save_checkpoint

        save_checkpoint(finished.run / "checkpoints", 9, {"weights.a": torch.zeros(3)})
        with pytest.raises(CheckpointError, match="holds no scene"):
            generate.export(str(finished.run), "ply")
        with pytest.raises(CheckpointError, match="no scene has"):
            generate.resume(str(finished.run))


class TestBadInput:
    def test_unknown_words_are_warned_of(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        result = make(checkpoint, tmp_path, prompt="a red muug")
        assert "'muug'" in result.warnings[0]
        assert "mug" in result.warnings[0]
        assert "'muug'" in (result.run / "run.log").read_text()

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"prompt": "ein Becher"}, PromptError),
            ({"prompt": "\N{SNOWMAN}"}, PromptError),
            ({"teacher": "/nowhere/at/all"}, TeacherError),
            ({"device": "abacus"}, TeacherError),
            ({"options": ("reference=nowhere.png",), "objective": "csm"}, SceneError),
            ({"options": (f"reference={PICTURE}",)}, TeacherError),  # sds reads none
        ],
        ids=str,
    )
    def test_what_fails_before_the_first_step_leaves_nothing_behind(
        self, checkpoint: CheckpointMaker, tmp_path: Path, change: dict[str, Any], error: type[DreamkitError]
    ) -> None:
        with pytest.raises(error):
            generate.generate(replace(options(checkpoint("toyworld"), tmp_path / "out"), **change))
        assert list(tmp_path.iterdir()) == []

    def test_an_output_that_is_a_file(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        file = tmp_path / "out"
        file.write_text("mine")
        for out in (file, file / "deeper"):
            with pytest.raises(RunError, match=str(file)):
                make(checkpoint, out)
        assert file.read_text() == "mine"

    @pytest.mark.usefixtures("small_preset")
    def test_an_optimisation_that_diverges_keeps_what_was_good(
        self, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dreamkit.training.scene import SceneTrainer

        class Poison(Recorder):
            """Breaks a parameter after the second step, as a diverging run would."""

            trainer: SceneTrainer

            def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
                super().on_step(step, total, metrics)
                if step == 2 and self.stages[-1] == generate.OPTIMISING:
                    with torch.no_grad():
                        self.trainer.scene.means[0, 0] = torch.nan

        poison = Poison()
        original = SceneTrainer.__init__

        def remember(self: SceneTrainer, *arguments: Any) -> None:
            original(self, *arguments)
            poison.trainer = self

        monkeypatch.setattr(SceneTrainer, "__init__", remember)
        with pytest.raises(CheckpointError, match="not finite"):
            generate.generate(options(checkpoint("toyworld"), tmp_path), [poison])
        assert poison.path is not None
        assert list_checkpoints(poison.path / "checkpoints") == []  # nothing broken was saved


class TestSample:
    def test_a_grid(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        from PIL import Image

        def draw(name: str, **changes: Any) -> Path:
            given: dict[str, Any] = {"teacher": str(checkpoint("toyworld")), "count": 5, "steps": 2, "device": "cpu"}
            path, warnings = generate.sample("a red mug", **given | {"out": str(tmp_path / name)} | changes)
            assert warnings == []
            return path

        one, two, other = draw("one"), draw("two"), draw("other", seed=3)
        assert one == tmp_path / "one" / "samples" / "a-red-mug-0.png"
        assert one.read_bytes() == two.read_bytes() != other.read_bytes()
        with Image.open(one) as grid:
            grid.load()
            assert grid.width > grid.height / 2
        assert draw("against", negative="a blue cube").read_bytes() != one.read_bytes()

    def test_more_than_one_batch(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        path, _ = generate.sample("a mug", str(checkpoint("toyworld")), 17, 1, device="cpu", out=str(tmp_path))
        assert path.stat().st_size > 1000

    def test_unknown_words(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        _, warnings = generate.sample(
            "a red dragon", str(checkpoint("toyworld")), 1, 1, device="cpu", out=str(tmp_path)
        )
        assert "'dragon'" in warnings[0]

    @pytest.mark.parametrize("change", [{"count": 0}, {"count": 1000}, {"steps": 0}, {"steps": 5000}], ids=str)
    def test_numbers_out_of_range(self, tmp_path: Path, change: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="samples"):
            generate.sample("a red mug", out=str(tmp_path), **change)  # type: ignore[arg-type]

    def test_an_output_that_is_a_file(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(RunError, match="out"):
            generate.sample("a mug", str(checkpoint("toyworld")), 1, 1, device="cpu", out=str(tmp_path / "out"))


def test_the_result_fits_in_json(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    from dreamkit.cli.generate import print_result

    result = make(checkpoint, tmp_path, steps=1)
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        print_result(result, as_json=True)
    content = json.loads(lines[-1])
    assert content["run"] == str(result.run)
    assert set(content["scores"]) == SCORES
