"""Edits of runs and files of every kind: what they start from, what they keep, and that stopping changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreamkit.cli.main import main
from dreamkit.errors import CheckpointError, ConfigError, DreamkitError, PromptError
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes.export import export_mesh, export_scene
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.triangles import Mesh
from dreamkit.training import deliver, generate
from dreamkit.training.edit import EditOptions, beginning_of, edit, edit_settings
from dreamkit.training.generate import GenerateOptions, load_scene, resume
from dreamkit.training.scene import SceneTrainer, settings_from_config
from tests.training.test_generate import Recorder

CheckpointMaker = Callable[[str], Path]
SMALL = (
    *("gaussians.count=300", "gaussians.initial_opacity=0.95", "density.max_count=300", "nerf.occupancy_resolution=16"),
    *("nerf.grid.levels=3", "nerf.grid.log2_size=10", "nerf.grid.hidden=8", "mesh.resolution=12"),
    *("mesh.grid.levels=3", "mesh.grid.log2_size=10", "mesh.grid.hidden=8", "nerf.blob=20"),
)


@pytest.fixture(autouse=True)
def small_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "PICTURE_SIZE", 32)
    monkeypatch.setattr(deliver, "TURNTABLE_FRAMES", 8)
    monkeypatch.setattr(generate, "score_scene", lambda scene, prompt: {})


def made(checkpoint: CheckpointMaker, out: Path, kind: str = "gaussians") -> Path:
    """A run of two steps."""
    options = GenerateOptions("a red mug", scene=kind, steps=2, views=1, resolution=16, out=str(out), options=SMALL)
    return generate.generate(replace(options, teacher=str(checkpoint("toyworld")), device="cpu")).run


def ball(radius: float) -> Mesh:
    """A gray sphere."""
    import trimesh

    sphere = trimesh.creation.icosphere(subdivisions=3, radius=radius)
    vertices, faces = np.asarray(sphere.vertices), np.asarray(sphere.faces)
    return Mesh(vertices, faces, np.full_like(vertices, 0.5), vertices / radius)


def wanted(source: Path | str, out: Path, **changes: Any) -> EditOptions:
    options = EditOptions(str(source), "a blue mug", steps=4, views=2, resolution=16, out=str(out), device="cpu")
    return replace(options, **changes)


class TestEveryKind:
    @pytest.mark.parametrize("kind", ["gaussians", "nerf", "sdf", "mesh"])
    def test_of_a_run(self, checkpoint: CheckpointMaker, tmp_path: Path, kind: str) -> None:
        source = made(checkpoint, tmp_path, kind)
        before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
        result = edit(wanted(source, tmp_path, region="ball:0,0,0,0.8"))
        assert result.exports["ply"].is_file()
        settings = settings_from_config(Run.open(result.run).config)
        assert (settings.scene, settings.prompt, settings.source_prompt) == (kind, "a blue mug", "a red mug")
        old, new = load_scene(Run.open(source)).state(), load_scene(Run.open(result.run)).state()
        assert {name: value.shape for name, value in old.items()} == {name: new[name].shape for name in old}
        assert any(not torch.equal(old[name], new[name]) for name in old)
        assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}

    def test_of_splat_files(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        scene = load_scene(Run.open(made(checkpoint, tmp_path)))
        assert isinstance(scene, GaussianScene)
        for suffix in ("ply", "splat"):
            export_scene(scene, tmp_path / f"a.{suffix}")
            source = tmp_path / f"a.{suffix}"
            result = edit(wanted(source, tmp_path, teacher=str(checkpoint("toyworld")), source_prompt="a red mug"))
            edited = load_scene(Run.open(result.run))
            assert isinstance(edited, GaussianScene)
            assert len(edited) == len(beginning_of(str(source)).scene.state()["means"])

    def test_of_a_mesh_file(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        export_mesh(ball(0.5), tmp_path / "ball.glb")
        beginning = beginning_of(str(tmp_path / "ball.glb"))
        assert isinstance(beginning.scene, MeshScene)
        surface = beginning.scene.surface()
        assert abs(float(surface.vertices.norm(dim=1).detach().median()) - 1.0) < 0.03
        result = edit(wanted(tmp_path / "ball.glb", tmp_path, teacher=str(checkpoint("toyworld")), steps=1))
        assert isinstance(load_scene(Run.open(result.run)), MeshScene)


class TestStoppingChangesNothing:
    def test_interrupted_and_resumed_without_what_it_came_from(
        self, checkpoint: CheckpointMaker, tmp_path: Path
    ) -> None:
        source = made(checkpoint, tmp_path)
        straight = edit(wanted(source, tmp_path / "straight")).run
        with pytest.raises(RunInterrupted) as stopped:
            edit(wanted(source, tmp_path / "stopped"), [Recorder(interrupt_after=2)])
        source.rename(tmp_path / "gone")
        resumed = resume(str(stopped.value.run)).run
        for name in ("exports/scene.ply", "renders/contact_sheet.png"):
            assert (straight / name).read_bytes() == (resumed / name).read_bytes()

    def test_a_damaged_start_says_so(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        run = edit(wanted(made(checkpoint, tmp_path), tmp_path, steps=1)).run
        state = next((run / "start").rglob("state.safetensors"))
        state.write_bytes(state.read_bytes()[:-9])
        with pytest.raises(CheckpointError):
            resume(str(run))


class TestSettings:
    def test_a_shape_is_held_unless_told_otherwise(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        beginning = beginning_of(str(made(checkpoint, tmp_path)))
        held = edit_settings(wanted("", tmp_path), beginning)
        free = edit_settings(wanted("", tmp_path, shape_weight=0.0), beginning)
        assert held.edit.confines
        assert not free.edit.confines
        assert held.gaussians.means_rate.start_value < beginning.settings.gaussians.means_rate.start_value
        assert held.gaussians.colors_rate == beginning.settings.gaussians.colors_rate

    def test_an_edit_of_an_edit_is_as_gentle_as_the_first(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        first = edit(wanted(made(checkpoint, tmp_path), tmp_path, steps=1)).run
        again = edit_settings(wanted("", tmp_path), beginning_of(str(first)))
        before = settings_from_config(Run.open(first).config)
        assert again.gaussians.means_rate == before.gaussians.means_rate
        assert again.source_prompt == "a blue mug"

    def test_a_run_that_stopped_in_an_early_stage(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        options = GenerateOptions(
            "a red mug", stages="sdf:sds:3,mesh:sds:3", views=1, resolution=16, out=str(tmp_path), options=SMALL
        )
        options = replace(options, teacher=str(checkpoint("toyworld")), device="cpu")
        with pytest.raises(RunInterrupted) as stopped:
            generate.generate(options, [Recorder(interrupt_after=2)])
        beginning = beginning_of(str(stopped.value.run))
        assert beginning.settings.scene == "sdf"
        assert edit_settings(wanted("", tmp_path), beginning).scene == "sdf"

    def test_only_dds_pays_for_the_source_s_prompt(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        beginning = beginning_of(str(made(checkpoint, tmp_path)))
        teacher = generate.teacher_of(beginning.settings)
        sds = edit_settings(wanted("", tmp_path, objective="sds", shape_weight=0.0), beginning)
        assert SceneTrainer(sds, teacher, None, beginning.scene)._source is None
        dds = edit_settings(wanted("", tmp_path, shape_weight=0.0), beginning)
        assert SceneTrainer(dds, teacher, None, beginning.scene)._source is not None

    @pytest.mark.parametrize(
        ("change", "kind"),
        [
            ({"prompt": ""}, PromptError),
            ({"guidance": -1.0}, ConfigError),
            ({"shape_weight": -1.0}, ConfigError),
            ({"objective": "sdss"}, ConfigError),
            ({"options": ("colour=blue",)}, ConfigError),
            ({"region": "cone:1"}, ConfigError),
        ],
    )
    def test_bad_wishes_leave_nothing_behind(
        self, checkpoint: CheckpointMaker, tmp_path: Path, change: dict[str, Any], kind: type[DreamkitError]
    ) -> None:
        source = made(checkpoint, tmp_path)
        with pytest.raises(kind):
            edit(wanted(source, tmp_path / "edited", **change))
        assert not (tmp_path / "edited").exists()


class TestCommand:
    def test_it_edits(self, checkpoint: CheckpointMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = made(checkpoint, tmp_path)
        words = ["edit", str(source), "a blue mug", "--steps", "1", "--views", "1", "--resolution", "16"]
        assert main([*words, "--region", "box:-1,-1,-1,1,0,1", "--out", str(tmp_path), "--json"]) == 0
        assert '"ply"' in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["nowhere", "a blue mug"], "nowhere"),
            (["nowhere.ply", "a blue mug"], "nowhere.ply"),
            (["nowhere", ""], "prompt"),
            (["nowhere", "a mug", "--shape-weight", "-1"], "shape-weight"),
            (["nowhere", "a mug", "--steps", "0"], "steps"),
        ],
    )
    def test_mistakes(self, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["edit", *words]) == 2
        assert said in capsys.readouterr().err

    def test_a_file_that_is_no_scene(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.ply").write_bytes(b"ply\n")
        assert main(["edit", str(tmp_path / "a.ply"), "a blue mug"]) == 2
        assert "a.ply" in capsys.readouterr().err
