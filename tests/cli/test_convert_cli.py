"""`dreamkit convert` on runs of every kind of scene."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit.cli.main import main
from dreamkit.runs import Run
from dreamkit.scenes.export import load_mesh, load_scene
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.triangles import TexturedMesh
from dreamkit.training.checkpoints import save_checkpoint
from dreamkit.training.particles import Particle
from dreamkit.training.settings import SceneSettings

TINY = HashNetworkConfig(levels=3, log2_size=10, coarsest=4, finest=16, hidden=8)


def make_run(folder: Path, scene: str, **nerf: Any) -> Path:
    """A run whose scene is as it started: a sphere, or fog."""
    geometry = "volsdf" if scene == "sdf" else "density"
    settings = SceneSettings(
        prompt="a red mug",
        scene=scene,  # type: ignore[arg-type]
        steps=1,
        nerf=NerfConfig(grid=TINY, geometry=geometry, occupancy_resolution=16, **nerf),  # type: ignore[arg-type]
        mesh=MeshSceneConfig(grid=TINY, resolution=16),
    )
    run = Run.create(folder, "a-red-mug", "sds", settings)
    save_checkpoint(run.checkpoints, 1, Particle(settings, 0, torch.device("cpu")).state())
    return run.path


@pytest.mark.parametrize("scene", ["sdf", "mesh"])
def test_a_mesh_with_a_texture_and_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str], scene: str) -> None:
    run = make_run(tmp_path, scene)
    words = ["convert", str(run), "--resolution", "32", "--texture", "64", "--faces", "800", "--json"]
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert content["figures"]["watertight"]
    assert content["figures"]["components"] == 1
    assert content["figures"]["faces"] <= 800
    mesh = load_mesh(content["exports"]["glb"])
    assert isinstance(mesh, TexturedMesh)
    assert mesh.texture.shape == (64, 64, 3)


def test_gaussians_of_a_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "sdf")
    assert main(["convert", str(run), "--to", "gaussians", "--count", "500", "--resolution", "32"]) == 0
    assert "scene.ply" in capsys.readouterr().out
    scene = load_scene(run / "exports" / "scene.ply")
    assert len(scene) == 500
    assert torch.allclose(scene.means.norm(dim=1), torch.tensor(0.5), atol=0.05)


def test_vertex_colours_as_obj(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mesh")
    assert main(["convert", str(run), "--format", "obj", "--texture", "0"]) == 0
    assert not isinstance(load_mesh(run / "exports" / "mesh.obj"), TexturedMesh)


def test_an_empty_scene_says_what_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "nerf", density_scale=1e-6)
    assert main(["convert", str(run)]) == 2
    said = capsys.readouterr().err
    assert "The scene is empty" in said
    assert "Train it longer" in said
    assert list((run / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "clay"], "clay"),
        (["--format", "ply"], "ply"),
        (["--faces", "0"], "--faces is 0"),
        (["--texture", "9999999"], "--texture is 9999999"),
        (["--resolution", "8"], "--resolution is 8"),
        (["--count", "0"], "--count is 0"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    run = make_run(tmp_path, "sdf")
    assert main(["convert", str(run), *words]) == 2
    assert said in capsys.readouterr().err
    assert list((run / "exports").iterdir()) == []
