import io
import json
import struct
from contextlib import suppress

import numpy as np
import plyfile
import pytest
import torch
import trimesh
from gsplat.exporter import export_splats
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.errors import DreamkitError, RunError, SceneError
from dreamkit.scenes import export, mesh_files, splat_files
from dreamkit.scenes.gaussians import SH_C0, GaussianConfig, GaussianScene
from dreamkit.scenes.mesh import Mesh, vertex_normals


def make_scene(count=17, sh_degree=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scene = GaussianScene.initialise(GaussianConfig(count=count, sh_degree=sh_degree), generator)
    with torch.no_grad():
        for parameter in scene.parameters_dict().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return scene


def gsplat_bytes(scene, file_format):
    state = scene.state()
    sh = scene.sh.detach()
    return export_splats(
        state["means"], state["log_scales"], scene.quaternions.detach(), state["opacity_logits"], sh[:, :1], sh[:, 1:],
        format=file_format,
    )  # fmt: skip


def assert_same_scene(first, second, tolerance=1e-6):
    for name in ("means", "scales", "opacities", "quaternions", "sh"):
        assert torch.allclose(getattr(first, name), getattr(second, name), atol=tolerance), name


@pytest.mark.parametrize("sh_degree", [None, 0, 1, 2, 3])
def test_ply_round_trips_and_agrees_with_gsplat(tmp_path, sh_degree):
    scene = make_scene(sh_degree=sh_degree)
    export.export_scene(scene, tmp_path / "scene.ply")
    ours = plyfile.PlyData.read(tmp_path / "scene.ply")["vertex"]
    theirs = plyfile.PlyData.read(io.BytesIO(gsplat_bytes(scene, "ply")))["vertex"]
    names = [p.name for p in ours.properties]
    assert names[:6] == ["x", "y", "z", "nx", "ny", "nz"]
    assert [name for name in names if not name.startswith("n")] == [p.name for p in theirs.properties]
    for p in theirs.properties:
        assert np.allclose(ours[p.name], theirs[p.name], atol=1e-6), p.name
    read = export.load_scene(tmp_path / "scene.ply")
    assert read.sh_degree == (sh_degree or 0)
    assert_same_scene(scene, read)
    splat_files.write_ply(read, tmp_path / "again.ply")
    assert_same_scene(read, splat_files.read_ply(tmp_path / "again.ply"), tolerance=1e-7)


@pytest.mark.parametrize("sh_degree", [0, 2])
def test_ply_of_gsplat_is_read(tmp_path, sh_degree):
    scene = make_scene(sh_degree=sh_degree)
    (tmp_path / "theirs.ply").write_bytes(gsplat_bytes(scene, "ply"))
    assert_same_scene(scene, splat_files.read_ply(tmp_path / "theirs.ply"))


def test_ply_of_plyfile_is_read_in_either_byte_order_and_with_extras(tmp_path):
    scene = make_scene(sh_degree=1)
    splat_files.write_ply(scene, tmp_path / "scene.ply")
    vertex = plyfile.PlyData.read(tmp_path / "scene.ply")["vertex"].data
    wide = np.empty(len(vertex), [(name, "f8") for name in reversed(vertex.dtype.names)])
    for name in vertex.dtype.names:
        wide[name] = vertex[name]
    before = np.array([(1, 2.0)], [("a", "u1"), ("b", "f4")])
    elements = [plyfile.PlyElement.describe(before, "head"), plyfile.PlyElement.describe(wide, "vertex")]
    for order in "<>":
        plyfile.PlyData(elements, byte_order=order, comments=["made elsewhere"]).write(tmp_path / "other.ply")
        assert_same_scene(scene, splat_files.read_ply(tmp_path / "other.ply"))


def test_splat_round_trips_and_agrees_with_gsplat(tmp_path):
    scene = make_scene(count=40, sh_degree=1)
    export.export_scene(scene, tmp_path / "scene.splat")
    data = (tmp_path / "scene.splat").read_bytes()
    assert len(data) == 40 * 32
    layout = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])

    def by_place(raw):
        rows = np.frombuffer(raw, layout)
        return rows[np.argsort(rows["mean"][:, 0])]

    ours, theirs = by_place(data), by_place(gsplat_bytes(scene, "splat"))
    assert np.array_equal(ours["mean"], theirs["mean"])
    assert np.allclose(ours["scale"], theirs["scale"])
    for name in ("color", "rotation"):  # gsplat cuts off, we round
        assert np.abs(ours[name].astype(int) - theirs[name]).max() <= 1
    rows = np.frombuffer(data, layout)
    importance = rows["scale"].prod(1) * rows["color"][:, 3]
    assert importance[0] > importance[-1]
    read = export.load_scene(tmp_path / "scene.splat")
    order = torch.argsort(read.means.detach()[:, 0])
    mine = torch.argsort(scene.means.detach()[:, 0])
    assert torch.equal(read.means[order], scene.means[mine])
    assert torch.allclose(read.scales[order], scene.scales[mine], rtol=1e-4)
    assert torch.allclose(read.colors[order], scene.colors[mine], atol=0.5 / 255 + 1e-5)
    assert torch.allclose(read.opacities[order], scene.opacities[mine], atol=0.5 / 255 + 1e-3)
    assert torch.allclose(read.quaternions[order], scene.quaternions[mine], atol=0.02)


def make_mesh():
    sphere = trimesh.creation.icosphere(2, radius=0.7)
    vertices, faces = sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32)
    colors = np.random.default_rng(0).random((len(vertices), 3)).astype(np.float32)
    return Mesh(vertices, faces, colors, vertex_normals(vertices, faces))


def test_glb_round_trips_with_linear_colors_and_a_matt_material(tmp_path):
    mesh = make_mesh()
    export.export_mesh(mesh, tmp_path / "mesh.glb")
    data = (tmp_path / "mesh.glb").read_bytes()
    magic, version, length, header = struct.unpack("<4sIII", data[:16])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    tree = json.loads(data[20 : 20 + header])
    primitive = tree["meshes"][0]["primitives"][0]
    assert {"POSITION", "NORMAL", "COLOR_0"} <= set(primitive["attributes"])
    assert not any(name.startswith("_") for name in primitive["attributes"])
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0
    accessor = tree["accessors"][primitive["attributes"]["COLOR_0"]]
    assert (accessor["componentType"], accessor["type"]) == (5126, "VEC3")
    view = tree["bufferViews"][accessor["bufferView"]]
    start = 20 + header + 8 + view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    stored = np.frombuffer(data, "<f4", 3 * len(mesh.vertices), start).reshape(-1, 3)
    linear = np.where(mesh.colors <= 0.04045, mesh.colors / 12.92, ((mesh.colors + 0.055) / 1.055) ** 2.4)
    assert np.allclose(stored, linear, atol=1e-6)
    scene = trimesh.load(tmp_path / "mesh.glb")
    assert np.allclose(scene.bounds, [[-0.7] * 3, [0.7] * 3], atol=1e-3)
    read = export.load_mesh(tmp_path / "mesh.glb")
    assert np.allclose(read.vertices, mesh.vertices)
    assert np.array_equal(read.faces, mesh.faces)
    assert np.allclose(read.colors, mesh.colors, atol=1e-5)
    assert read.figures().watertight


def test_obj_round_trips_with_screen_colors(tmp_path):
    mesh = make_mesh()
    export.export_mesh(mesh, tmp_path / "mesh.obj")
    line = next(row for row in (tmp_path / "mesh.obj").read_text().splitlines() if row.startswith("v "))
    assert np.allclose([float(word) for word in line.split()[4:7]], mesh.colors[0], atol=0.5 / 255 + 1e-4)
    read = export.load_mesh(tmp_path / "mesh.obj")
    assert np.allclose(read.vertices, mesh.vertices, atol=1e-6)
    assert np.array_equal(read.faces, mesh.faces)
    assert np.allclose(read.colors, mesh.colors, atol=0.5 / 255 + 1e-4)
    assert np.allclose(read.normals, mesh.normals, atol=1e-4)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_color_spaces_round_trip(values):
    colors = np.array(values, np.float32)
    assert np.allclose(mesh_files.linear_to_srgb(mesh_files.srgb_to_linear(colors)), colors, atol=1e-5)
    assert (mesh_files.srgb_to_linear(colors) <= colors + 1e-6).all()


def test_known_colors():
    # 50 % gray on a screen is 21.4 % of the light
    assert float(mesh_files.srgb_to_linear(np.array([0.5], np.float32))[0]) == pytest.approx(0.21404, abs=1e-5)


def header_of(data):
    return data[: data.index(b"end_header\n") + len(b"end_header\n")]


def ply_bytes(tmp_path):
    splat_files.write_ply(make_scene(count=3), tmp_path / "good.ply")
    return (tmp_path / "good.ply").read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "PLY"),
        (lambda data: b"ply\n", "PLY"),
        (lambda data: data[:-1], "promises"),
        (lambda data: data.replace(b"vertex 3", b"vertex 999999999999"), "promises"),
        (lambda data: data.replace(b"vertex 3", b"vertex 9999999999999999999999"), "header"),
        (lambda data: data.replace(b"vertex 3", b"vertex -3"), "header"),
        (lambda data: data.replace(b"vertex 3", b"vertex 0"), "no Gaussians"),
        (lambda data: data.replace(b"element vertex", b"element point"), "no vertex"),
        (lambda data: data.replace(b"binary_little_endian", b"ascii"), "header"),
        (lambda data: data.replace(b"float opacity", b"float opaque"), "lacks opacity"),
        (lambda data: data.replace(b"float opacity", b"list uchar int opacity"), "header"),
        (lambda data: data.replace(b"float ny", b"float x"), "twice"),
        (lambda data: data[:-4] + struct.pack("<f", float("nan")), "finite"),
        (lambda data: data[:-4] + struct.pack("<f", float("-inf")), "finite"),
        (lambda data: header_of(data) + struct.pack("<f", 1e30) + data[len(header_of(data)) + 4 :], "means"),
        (lambda data: header_of(data).replace(b"vertex 3", b"vertex 4000000000"), "promises"),
    ],
)
def test_broken_ply_files_are_explained(tmp_path, change, reason):
    (tmp_path / "bad.ply").write_bytes(change(ply_bytes(tmp_path)))
    with pytest.raises(SceneError, match=reason):
        export.load_scene(tmp_path / "bad.ply")


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_mutated_ply_files_load_or_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    good = ply_bytes(folder)
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]
    (folder / "mutated.ply").write_bytes(bytes(raw))
    try:
        scene = splat_files.read_ply(folder / "mutated.ply")
    except SceneError:
        return
    assert all(bool(torch.isfinite(tensor).all()) for tensor in scene.state().values())


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_noise_is_no_asset(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    for name in ("noise.ply", "noise.splat", "noise.glb", "noise.obj"):
        (folder / name).write_bytes(data)
        load = export.load_scene if name.endswith(("ply", "splat")) else export.load_mesh
        with suppress(SceneError):
            load(folder / name)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_meshes_load_or_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    suffix = data.draw(st.sampled_from([".glb", ".obj"]))
    if not (folder / f"good{suffix}").exists():
        export.export_mesh(make_mesh(), folder / f"good{suffix}")
    raw = bytearray((folder / f"good{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / f"mutated{suffix}").write_bytes(bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]))
    try:
        mesh = export.load_mesh(folder / f"mutated{suffix}")
    except SceneError:
        return
    assert np.isfinite(mesh.vertices).all()
    assert mesh.faces.max() < len(mesh.vertices)


def test_splat_files_of_a_wrong_size_or_content(tmp_path):
    splat_files.write_splat(make_scene(), tmp_path / "good.splat")
    good = (tmp_path / "good.splat").read_bytes()
    nan = struct.pack("<f", float("nan"))
    for bad in (
        b"",
        good[:-1],
        good[:12] + nan + good[16:],
        nan + good[4:],
        good[:12] + b"\x00\x00\x80\xbf" + good[16:],
    ):
        (tmp_path / "bad.splat").write_bytes(bad)
        with pytest.raises(SceneError):
            export.load_scene(tmp_path / "bad.splat")


def test_unknown_suffixes_missing_files_and_folders(tmp_path):
    with pytest.raises(SceneError, match=r"\.fbx"):
        export.export_scene(make_scene(), tmp_path / "scene.fbx")
    with pytest.raises(SceneError, match="no suffix"):
        export.export_mesh(make_mesh(), tmp_path / "mesh")
    for load, name in ((export.load_scene, "a.ply"), (export.load_scene, "a.splat"), (export.load_mesh, "a.glb")):
        with pytest.raises(SceneError, match="can't be read"):
            load(tmp_path / name)
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(SceneError, match="can't be read"):
        export.load_scene(tmp_path / "folder.ply")


@pytest.mark.parametrize("suffix", [".ply", ".splat", ".glb", ".obj"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"asset{suffix}"
    path.write_bytes(b"old")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dreamkit.files.os.replace", full)
    write, asset = (
        (export.export_scene, make_scene()) if suffix in (".ply", ".splat") else (export.export_mesh, make_mesh())
    )
    with pytest.raises(RunError, match="disk is full"):
        write(asset, path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"old"


def test_a_scene_that_is_not_finite_is_not_written(tmp_path):
    scene = make_scene()
    with torch.no_grad():
        scene.means[0, 0] = float("nan")
    for suffix in (".ply", ".splat"):
        with pytest.raises(DreamkitError, match="finite"):
            export.export_scene(scene, tmp_path / f"scene{suffix}")
    assert not list(tmp_path.iterdir())


def test_the_same_scene_gives_the_same_bytes(tmp_path):
    for suffix in (".ply", ".splat"):
        export.export_scene(make_scene(), tmp_path / f"a{suffix}")
        export.export_scene(make_scene(), tmp_path / f"b{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    for suffix in (".glb", ".obj"):
        export.export_mesh(make_mesh(), tmp_path / f"a{suffix}")
        export.export_mesh(make_mesh(), tmp_path / f"b{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_sh_constant():
    assert pytest.approx(0.5 / np.sqrt(np.pi)) == SH_C0
