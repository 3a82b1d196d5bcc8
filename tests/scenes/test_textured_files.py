"""Textured GLB and OBJ files against the rules of their formats, trimesh and a round trip."""

import io
import json
import struct

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dreamkit.errors import RunError, SceneError
from dreamkit.scenes.atlas import textured
from dreamkit.scenes.export import export_mesh, load_mesh
from dreamkit.scenes.mesh import Mesh, TexturedMesh, sample_surface, vertex_normals

COMPONENTS = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}


def by_place(points, normals):
    return 0.5 + 0.4 * torch.sin(3 * points + 0.5)


@pytest.fixture(scope="module")
def mesh():
    sphere = trimesh.creation.icosphere(2, radius=0.7)
    vertices, faces = sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32)
    plain = Mesh(vertices, faces, np.ones_like(vertices), vertex_normals(vertices, faces))
    return textured(plain, by_place, 64)


def glb_chunks(data):
    """The tree and the binary chunk, by the container's rules: sizes, alignment, padding."""
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    assert length % 4 == 0
    size, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    assert size % 4 == 0
    text, rest = data[20 : 20 + size], data[20 + size :]
    binary_size, kind = struct.unpack("<I4s", rest[:8])
    assert kind == b"BIN\0"
    assert binary_size == len(rest) - 8
    return json.loads(text), rest[8:]


def read_accessor(tree, binary, index):
    """An accessor's values, by the rules: in its view, aligned, with the bounds that it declares."""
    accessor = tree["accessors"][index]
    view = tree["bufferViews"][accessor["bufferView"]]
    dtype, width = np.dtype(COMPONENTS[accessor["componentType"]]), WIDTHS[accessor["type"]]
    offset = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    assert "byteStride" not in view
    assert offset % dtype.itemsize == 0
    size = accessor["count"] * width * dtype.itemsize
    assert accessor.get("byteOffset", 0) + size <= view["byteLength"]
    assert view.get("byteOffset", 0) + view["byteLength"] <= tree["buffers"][0]["byteLength"] <= len(binary)
    values = np.frombuffer(binary, dtype, accessor["count"] * width, offset).reshape(-1, width)
    assert np.isfinite(values).all()
    for name, found in (("min", values.min(0)), ("max", values.max(0))):
        if name in accessor:
            assert np.allclose(accessor[name], found, atol=1e-6)
    return accessor, values


def test_the_glb_keeps_the_rules_of_gltf(mesh, tmp_path):
    export_mesh(mesh, tmp_path / "mesh.glb")
    tree, binary = glb_chunks((tmp_path / "mesh.glb").read_bytes())
    assert tree["asset"]["version"] == "2.0"
    assert len(tree["buffers"]) == 1
    assert "uri" not in tree["buffers"][0]
    (primitive,) = tree["meshes"][0]["primitives"]
    assert primitive.get("mode", 4) == 4
    assert set(primitive["attributes"]) == {"POSITION", "NORMAL", "TEXCOORD_0"}
    position, positions = read_accessor(tree, binary, primitive["attributes"]["POSITION"])
    _, normals = read_accessor(tree, binary, primitive["attributes"]["NORMAL"])
    _, uvs = read_accessor(tree, binary, primitive["attributes"]["TEXCOORD_0"])
    indices, faces = read_accessor(tree, binary, primitive["indices"])
    assert {"min", "max"} <= set(position)
    assert indices["type"] == "SCALAR"
    assert len(positions) == len(normals) == len(uvs) == len(mesh.vertices)
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    assert np.array_equal(faces.reshape(-1, 3), mesh.faces)
    assert np.array_equal(positions, mesh.vertices)
    assert np.allclose(uvs, mesh.uvs * [1, -1] + [0, 1], atol=1e-7)  # the origin is top left
    # outward, as the winding says
    a, b, c = positions[faces.reshape(-1, 3)].transpose(1, 0, 2)
    assert ((np.cross(b - a, c - a) * normals[faces.reshape(-1, 3)[:, 0]]).sum(1) > 0).all()


def test_the_glb_embeds_its_picture_in_a_matt_material(mesh, tmp_path):
    export_mesh(mesh, tmp_path / "mesh.glb")
    tree, binary = glb_chunks((tmp_path / "mesh.glb").read_bytes())
    material = tree["materials"][tree["meshes"][0]["primitives"][0]["material"]]["pbrMetallicRoughness"]
    assert (material["metallicFactor"], material["roughnessFactor"]) == (0, 1)
    assert material.get("baseColorFactor", [1, 1, 1, 1]) == [1, 1, 1, 1]
    texture = tree["textures"][material["baseColorTexture"]["index"]]
    sampler = tree["samplers"][texture["sampler"]]
    assert sampler["wrapS"] == sampler["wrapT"] == 33071
    image = tree["images"][texture["source"]]
    assert image["mimeType"] == "image/png"
    view = tree["bufferViews"][image["bufferView"]]
    picture = Image.open(io.BytesIO(binary[view["byteOffset"] :][: view["byteLength"]]))
    assert picture.format == "PNG"
    assert np.array_equal(np.asarray(picture), np.round(mesh.texture * 255))


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_trimesh_sees_the_same_colours_in_the_same_places(mesh, tmp_path, suffix):
    """An independent reader: its faces, uvs and picture give the analytic colours."""
    export_mesh(mesh, tmp_path / f"mesh{suffix}")
    body = trimesh.load(tmp_path / f"mesh{suffix}", force="mesh", process=False)
    material = body.visual.material
    picture = getattr(material, "baseColorTexture", None) or material.image
    pixels = np.asarray(picture.convert("RGB")) / 255
    centres, uvs = body.vertices[body.faces].mean(1), body.visual.uv[body.faces].mean(1)
    column = np.clip((uvs[:, 0] * 64).astype(int), 0, 63)
    row = np.clip(((1 - uvs[:, 1]) * 64).astype(int), 0, 63)
    expected = by_place(torch.from_numpy(centres), None).numpy()
    assert np.abs(pixels[row, column] - expected).max() < 0.1
    assert len(body.faces) == len(mesh.faces)
    body.merge_vertices(merge_tex=True, merge_norm=True)
    assert body.is_watertight


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_a_textured_mesh_comes_back(mesh, tmp_path, suffix):
    export_mesh(mesh, tmp_path / f"mesh{suffix}")
    read = load_mesh(tmp_path / f"mesh{suffix}")
    assert isinstance(read, TexturedMesh)
    assert read.texture.shape == mesh.texture.shape
    assert np.abs(read.texture - mesh.texture).max() <= 0.5 / 255 + 1e-6
    # An OBJ's vertices come in another order; the faces come in theirs.
    for name in ("vertices", "uvs", "normals", "colors"):
        ours, theirs = getattr(mesh, name)[mesh.faces], getattr(read, name)[read.faces]
        assert np.allclose(ours, theirs, atol=1e-4 if name != "colors" else 3 / 255), name
    figures, expected = read.figures(), mesh.figures()
    assert figures.watertight
    assert figures.manifold
    assert figures.volume == pytest.approx(expected.volume, rel=1e-6)
    points, _, colors = sample_surface(read, 3000, torch.Generator().manual_seed(0))
    assert (colors - by_place(points, points)).abs().mean() < 0.01
    export_mesh(read, tmp_path / f"again{suffix}")
    again = load_mesh(tmp_path / f"again{suffix}")
    assert np.array_equal(again.texture, read.texture)
    assert np.array_equal(again.vertices[again.faces], read.vertices[read.faces])


def test_the_obj_shares_positions_across_seams(mesh, tmp_path):
    export_mesh(mesh, tmp_path / "my mesh.obj")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["my mesh.obj", "my_mesh.mtl", "my_mesh.png"]
    words = [line.split() for line in (tmp_path / "my mesh.obj").read_text().splitlines()]
    counts = {kind: sum(word[0] == kind for word in words) for kind in ("mtllib", "usemtl", "v", "vt", "vn", "f")}
    assert counts["v"] == len(mesh.surface()[0])
    assert counts["vt"] > counts["v"]
    assert counts["f"] == len(mesh.faces)
    assert words[0] == ["mtllib", "my_mesh.mtl"]
    material = (tmp_path / "my_mesh.mtl").read_text()
    assert "newmtl texture" in material
    assert "map_Kd my_mesh.png" in material
    corner = next(word for word in words if word[0] == "f")[1].split("/")
    rows = {kind: [word[1:] for word in words if word[0] == kind] for kind in ("v", "vt", "vn")}
    for kind, number, values in zip(("v", "vt", "vn"), corner, (mesh.vertices, mesh.uvs, mesh.normals), strict=True):
        assert np.array_equal(np.float32(rows[kind][int(number) - 1]), values[mesh.faces[0, 0]])


def test_the_same_mesh_gives_the_same_bytes(mesh, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for suffix in (".glb", ".obj"):
            export_mesh(mesh, tmp_path / folder / f"mesh{suffix}")
    for name in ("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("broken", ["png", "obj"])
def test_a_full_disk_leaves_the_old_files(mesh, tmp_path, monkeypatch, broken):
    names = ["mesh.mtl", "mesh.obj", "mesh.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"old")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    target = "PIL.Image.Image.save" if broken == "png" else "pathlib.Path.write_text"
    monkeypatch.setattr(target, full)
    with pytest.raises(RunError, match="disk is full"):
        export_mesh(mesh, tmp_path / "mesh.obj")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    assert all((tmp_path / name).read_bytes() == b"old" for name in names)


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
@pytest.mark.parametrize("name", ["vertices", "uvs", "texture"])
def test_values_that_are_not_finite_are_not_written(mesh, tmp_path, suffix, name):
    values = {key: array.copy() for key, array in vars(mesh).items()}
    values[name][0, 0] = np.nan
    with pytest.raises(SceneError, match=f"{name} hold values that are not finite"):
        export_mesh(TexturedMesh(**values), tmp_path / f"mesh{suffix}")
    assert not list(tmp_path.iterdir())


def foreign(path, uvs, image, twice=False):
    """What another tool wrote: a square with a picture, once or in two places."""
    body = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]],
        [[0, 1, 2], [0, 2, 3]],
        visual=trimesh.visual.TextureVisuals(
            uv=np.array(uvs, float), material=trimesh.visual.material.PBRMaterial(baseColorTexture=image)
        ),
        process=False,
    )
    scene = trimesh.Scene(body)
    if twice:
        scene.add_geometry(body.copy().apply_translation([3, 0, 0]))
    path.write_bytes(scene.export(file_type="glb"))


SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]
RED_OVER_BLUE = Image.fromarray(np.array([[[255, 0, 0]] * 3, [[0, 0, 255]] * 3], np.uint8))


def test_pictures_of_other_tools(tmp_path):
    foreign(tmp_path / "a.glb", SQUARE, RED_OVER_BLUE)
    read = load_mesh(tmp_path / "a.glb")
    assert isinstance(read, TexturedMesh)
    assert read.texture.shape == (2, 3, 3)
    assert np.allclose(read.colors, [[0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 0, 0]])
    foreign(tmp_path / "gray.glb", SQUARE, Image.new("L", (4, 4), 51))
    assert np.allclose(load_mesh(tmp_path / "gray.glb").colors, 0.2)


def test_tiled_and_several_textures_become_vertex_colours(tmp_path):
    foreign(tmp_path / "tiled.glb", np.array(SQUARE) * 2 + 0.1, RED_OVER_BLUE)
    tiled = load_mesh(tmp_path / "tiled.glb")
    assert type(tiled) is Mesh
    assert np.allclose(tiled.colors, [0, 0, 1], atol=1e-5)  # all four corners fall on v = 0.1
    foreign(tmp_path / "two.glb", SQUARE, RED_OVER_BLUE, twice=True)
    two = load_mesh(tmp_path / "two.glb")
    assert type(two) is Mesh
    assert len(two.faces) == 4
    assert np.allclose(two.colors[[0, 2]], [[0, 0, 1], [1, 0, 0]])
    assert two.figures().bounding_box == ((0, 0, 0), (4, 1, 0))


def test_pictures_too_large_are_refused(tmp_path):
    foreign(tmp_path / "large.glb", SQUARE, Image.new("L", (8193, 1)))
    with pytest.raises(SceneError, match=r"8193 x 1 texels.*at most 8192"):
        load_mesh(tmp_path / "large.glb")


@pytest.mark.parametrize("escape", ["../secret.png", "{folder}/secret.png", "/dev/zero"])
def test_an_obj_takes_no_picture_from_outside_its_folder(mesh, tmp_path, escape):
    """A path in a file from elsewhere neither shows another file of the reader's nor keeps it reading for ever."""
    inner = tmp_path / "asset"
    inner.mkdir()
    export_mesh(mesh, inner / "mesh.obj")
    (inner / "mesh.png").rename(tmp_path / "secret.png")
    material = inner / "mesh.mtl"
    material.write_text(material.read_text().replace("mesh.png", escape.format(folder=tmp_path)))
    read = load_mesh(inner / "mesh.obj")
    assert not isinstance(read, TexturedMesh)
    assert (read.colors == 1).all()


def test_an_obj_whose_companions_are_gone_is_white(mesh, tmp_path):
    export_mesh(mesh, tmp_path / "mesh.obj")
    for companion in ("mesh.png", "mesh.mtl"):
        (tmp_path / companion).unlink()
        read = load_mesh(tmp_path / "mesh.obj")
        assert len(read.faces) == len(mesh.faces)
        assert type(read) is Mesh
        assert (read.colors == 1).all()


@given(st.data())
@settings(max_examples=50)
def test_mutated_files_load_or_are_refused(mesh, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "textured"
    folder.mkdir(exist_ok=True)
    name = data.draw(st.sampled_from(["mesh.glb", "mesh.obj", "mesh.mtl", "mesh.png"]))
    asset = "mesh.glb" if name == "mesh.glb" else "mesh.obj"
    export_mesh(mesh, folder / asset)
    raw = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw), 4000) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]))
    try:
        read = load_mesh(folder / asset)
    except SceneError:
        return
    assert all(np.isfinite(values).all() for values in vars(read).values())
    assert read.faces.max() < len(read.vertices) == len(read.colors) == len(read.normals)
    if isinstance(read, TexturedMesh):
        assert len(read.uvs) == len(read.vertices)
        assert read.texture.ndim == 3
