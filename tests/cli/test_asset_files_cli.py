"""Splats and meshes that were made elsewhere, through `render`, `convert` and `export`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from dreamkit.cli.main import main
from dreamkit.scenes.atlas import textured
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.export import export_mesh, export_scene, load_mesh, load_scene
from dreamkit.scenes.framing import Framing
from dreamkit.scenes.gaussians import GaussianConfig, GaussianScene
from dreamkit.scenes.triangles import Mesh, TexturedMesh, vertex_normals
from dreamkit.training.made_elsewhere import open_asset

SUFFIXES = ("ply", "compressed.ply", "splat", "glb", "obj")
FAR_AWAY = Framing((120.0, -35.0, 8.0), 40.0)
TINY = Framing((0.002, 0.001, 0.0), 0.001)


def ball() -> Mesh:
    """A unit ball, red on the left (-x) and blue on the right."""
    shape = trimesh.creation.icosphere(3)
    vertices, faces = np.asarray(shape.vertices, np.float32), np.asarray(shape.faces, np.int32)
    colors = np.where(vertices[:, :1] < 0, np.float32([0.9, 0.1, 0.1]), np.float32([0.1, 0.1, 0.9]))
    return Mesh(vertices, faces, colors, vertex_normals(vertices, faces))


def splats() -> GaussianScene:
    """The same of Gaussians."""
    mesh = ball()
    points, colors, normals = (torch.from_numpy(a) for a in (mesh.vertices, mesh.colors, mesh.normals))
    config = GaussianConfig(
        count=len(points), initialisation="shape", initial_opacity=0.95, initial_scale=0.9, flatness=0.1
    )
    return GaussianScene.initialise(config, torch.Generator().manual_seed(0), points, colors, normals)


def write(path: Path, where: Framing | None = None) -> Path:
    """The ball in a format, somewhere."""
    if path.name.endswith(("ply", "splat")):
        scene = splats()
        export_scene(where.restored(scene) if where else scene, path)
    else:
        mesh = ball()
        export_mesh(where.restored(mesh) if where else mesh, path)
    return path


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def picture(path: str) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_filmed_in_every_style(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / f"ball.{suffix}")
    before = path.read_bytes()
    styles = "rgb,normal,depth,clay,wireframe" if suffix in ("ply", "glb") else "rgb,depth"
    words = ["render", str(path), "--style", styles, "--format", "png", "--frames", "2", "--resolution", "48"]
    found = answer(words, capsys)
    assert found["file"] == str(path)
    assert list(found["renders"]) == styles.split(",")
    assert found["renders"]["rgb"] == str(tmp_path / "ball-turntable-rgb")
    assert found["warnings"] == []
    front, back = (picture(f"{found['renders']['rgb']}/000{k}.png") for k in (0, 1))
    assert front[24, 12, 0] > 150 > front[24, 36, 0]  # red is at -x, on the left from the front
    assert back[24, 12, 2] > 150 > back[24, 36, 2]
    assert abs(front[1, 1] - 217).max() < 4
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["ply", "glb"])
@pytest.mark.parametrize("where", [FAR_AWAY, TINY], ids=["far away", "tiny"])
def test_size_and_place_do_not_matter(
    tmp_path: Path, suffix: str, where: Framing, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = []
    for name, place in (("here", None), ("there", where)):
        path = write(tmp_path / f"{name}.{suffix}", place)
        output = str(tmp_path / f"{name}.png")
        words = ["render", str(path), "--style", "rgb", "--frames", "1", "--resolution", "64", "--output", output]
        assert answer(words, capsys)["warnings"] == []
        pictures.append(picture(output))
    assert np.abs(pictures[0] - pictures[1]).mean() < 1.0
    assert np.abs(pictures[0] - 217).max(axis=-1).mean() > 30
    found = open_asset(tmp_path / f"there.{suffix}").framing
    assert np.allclose(found.center, where.center, atol=0.05 * where.radius)
    assert found.radius == pytest.approx(where.radius, rel=0.15)


def test_floaters_do_not_decide_the_framing() -> None:
    scene = splats()
    state = dict(scene.state())
    state["means"][:3] *= 500.0
    state["means"][3:6], state["opacity_logits"][3:6] = 1e4, -9.0
    framing = Framing.of(GaussianScene(state, scene.config))
    assert framing.radius < 1.3
    assert np.abs(framing.center).max() < 0.1


def test_along_a_file_of_cameras_it_stays_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ball.glb", Framing((5.0, 0.0, 0.0), 1.0))
    for name, target in (("there", [5.0, 0.0, 0.0]), ("elsewhere", [-5.0, 0.0, 0.0])):
        pose = Camera.orbit(0.0, 10.0, 3.0, target=torch.tensor(target)).camera_to_world[0]
        cameras = tmp_path / f"{name}.json"
        cameras.write_text(json.dumps({"camera_path": [{"camera_to_world": pose.tolist(), "fov": 40}]}))
        words = [
            "render",
            str(path),
            "--path",
            str(cameras),
            "--output",
            str(tmp_path / f"{name}.png"),
            "--resolution",
            "32",
        ]
        answer(words, capsys)
    assert np.abs(picture(str(tmp_path / "there.png")) - 217).mean() > 30
    assert np.abs(picture(str(tmp_path / "elsewhere.png")) - 217).max() < 4


def test_without_options_a_turntable_and_a_sheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamkit.training.deliver.TURNTABLE_FRAMES", 8)
    monkeypatch.setattr("dreamkit.training.deliver.PICTURE_SIZE", 32)
    path = write(tmp_path / "ball.obj")
    found = answer(["render", str(path), "--out", str(tmp_path / "new" / "folder")], capsys)
    assert found["renders"]["turntable"] == str(tmp_path / "new" / "folder" / "ball-turntable.mp4")
    assert (tmp_path / "new" / "folder" / "ball-contact_sheet.png").is_file()


def test_splats_stay_what_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "ball.ply", FAR_AWAY)
    found = answer(["export", str(path), "--formats", "ply,compressed.ply,splat"], capsys)
    assert found["exports"]["compressed.ply"] == str(tmp_path / "ball-scene.compressed.ply")
    original, copy = load_scene(path).state(), load_scene(tmp_path / "ball-scene.ply").state()
    for name, value in original.items():
        assert torch.allclose(copy[name], value, rtol=0, atol=1e-6 if name == "quaternions" else 0), name
    for kind in ("compressed.ply", "splat"):
        read = load_scene(found["exports"][kind])
        assert len(read) == 642
        assert torch.allclose(read.means.mean(0), torch.tensor(FAR_AWAY.center), atol=0.5)
    again = answer(["export", found["exports"]["compressed.ply"], "--format", "ply"], capsys)
    assert again["exports"]["ply"] == str(tmp_path / "ball-scene-scene.ply")


@pytest.mark.parametrize("where", [FAR_AWAY, TINY], ids=["far away", "tiny"])
def test_splats_become_a_mesh_where_they_are(
    tmp_path: Path, where: Framing, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ball.ply", where)
    found = answer(["convert", str(path), "--to", "mesh", "--resolution", "32", "--faces", "600"], capsys)
    assert found["figures"]["watertight"]
    assert found["figures"]["faces"] <= 600
    assert found["figures"]["volume"] == pytest.approx(4.19 * where.radius**3, rel=0.3)
    mesh = load_mesh(found["exports"]["glb"])
    assert np.allclose(0.5 * (mesh.vertices.min(0) + mesh.vertices.max(0)), where.center, atol=0.1 * where.radius)
    left = mesh.vertices[:, 0] < where.center[0] - 0.3 * where.radius
    assert mesh.colors[left, 0].mean() > 0.7 > mesh.colors[left, 2].mean()


@pytest.mark.parametrize("where", [FAR_AWAY, TINY], ids=["far away", "tiny"])
def test_a_mesh_becomes_gaussians_where_it_is(
    tmp_path: Path, where: Framing, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "ball.glb", where)
    found = answer(["convert", str(path), "--to", "gaussians", "--count", "400", "--format", "splat"], capsys)
    read = load_scene(found["exports"]["splat"])
    assert len(read) == 400
    distance = (read.means - torch.tensor(where.center)).norm(dim=1) / where.radius
    assert torch.allclose(distance, torch.ones(400), atol=0.03)
    assert 0.01 < float(read.scales.detach().amax(1).median()) / where.radius < 0.3


def test_a_mesh_keeps_its_triangles_and_its_texture_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    painted = textured(ball(), lambda points, normals: 0.5 + 0.4 * points, 64)
    export_mesh(FAR_AWAY.restored(painted), tmp_path / "ball.glb")
    original = load_mesh(tmp_path / "ball.glb")
    assert isinstance(original, TexturedMesh)
    found = answer(["export", str(tmp_path / "ball.glb"), "--format", "glb,obj"], capsys)
    read = load_mesh(found["exports"]["glb"])
    for name in ("vertices", "faces", "uvs", "texture"):
        assert np.array_equal(getattr(read, name), getattr(original, name)), name
    assert isinstance(load_mesh(found["exports"]["obj"]), TexturedMesh)
    fewer = answer(["convert", str(tmp_path / "ball.glb"), "--faces", "300", "--texture", "32"], capsys)
    small = load_mesh(fewer["exports"]["glb"])
    assert fewer["figures"]["faces"] <= 300
    assert isinstance(small, TexturedMesh)
    assert small.texture.shape == (32, 32, 3)
    expected = 0.5 + 0.4 * FAR_AWAY.framed(small).vertices
    assert np.abs(small.colors - expected).mean() < 0.05
    plain = answer(["convert", str(tmp_path / "ball.glb"), "--texture", "0", "--format", "obj"], capsys)
    assert type(load_mesh(plain["exports"]["obj"])) is Mesh


@pytest.mark.parametrize("command", [["render"], ["export"], ["convert"]])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.ply", "can't be read"),
        ("missing.glb", "can't be read"),
        ("broken.compressed.ply", "no PLY of Gaussians"),
        ("broken.splat", "no whole number"),
        ("broken.glb", "can't be read as a mesh"),
        ("notes.txt", "no splat and no mesh"),
        ("model.fbx", "no splat and no mesh"),
        ("folder.ply", "not a run folder"),
        ("nothing", "not a run folder|no config|no run"),
        ("zero.ply", "device"),
    ],
)
def test_what_is_no_asset_is_explained(
    tmp_path: Path, command: list[str], name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name.startswith(("broken", "notes", "model")):
        path.write_bytes(b"what is this?")
    if name == "folder.ply":
        path.mkdir()
    if name == "zero.ply":
        path.symlink_to("/dev/zero")
    assert main([*command, str(path)]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in said.split("|")), error
    assert "Traceback" not in error


def test_formats_are_checked_before_anything_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "missing.ply"), "--format", "glb,fbx"]) == 2
    assert "fbx" in capsys.readouterr().err
