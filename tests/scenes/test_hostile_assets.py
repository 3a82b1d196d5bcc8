"""Asset files that are broken by accident or on purpose: an explanation, soon, and little memory.

The loaders are fed mutations of good files: a few in the default run, thousands with `-m slow`.
"""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamkit.errors import SceneError
from dreamkit.scenes import mesh_limits
from dreamkit.scenes.atlas import textured
from dreamkit.scenes.export import export_mesh, export_scene, load_mesh, load_scene
from dreamkit.scenes.gaussians import GaussianConfig, GaussianScene
from dreamkit.scenes.triangles import Mesh, TexturedMesh, vertex_normals

SEEDS = ("scene.ply", "scene.compressed.ply", "scene.splat", "mesh.glb", "textured.glb", "mesh.obj", "textured.obj")
TOKENS = (
    b"0", b"-1", b"1e400", b"nan", b"9000000000", b"4294967295", b"99999999999999999999", b"", b" ", b"\n", b"\x00",
    b"list uchar int", b"double", b"uchar", b"element vertex 9000000000\n", b"property float x\n", b"end_header\n",
    b"null", b"[]", b"{}", b'"a"', b"true", b"f 1 2 3\n", b"f 1/9/9 2 -3\n", b"v nan inf 1e39\n", b"usemtl a\n",
    b"vt 1\n", b"mtllib ../../x\n", b"\xff\xff\xff\xff", b"\x00\x00\x80\x7f", b"\x00\x00\xc0\x7f",
)  # fmt: skip


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Good files by name."""
    folder = tmp_path_factory.mktemp("seeds")
    generator = torch.Generator().manual_seed(0)
    scene = GaussianScene.initialise(GaussianConfig(count=5, sh_degree=1), generator)
    ball = trimesh.creation.icosphere(0)
    vertices, faces = np.asarray(ball.vertices, np.float32), np.asarray(ball.faces, np.int32)
    mesh = Mesh(vertices, faces, np.abs(vertices), vertex_normals(vertices, faces))
    painted = textured(mesh, lambda points, normals: points.abs(), 16)
    for name in SEEDS:
        if name.endswith(("ply", "splat")):
            export_scene(scene, folder / name)
        else:
            export_mesh(painted if name.startswith("textured") else mesh, folder / name)
    return {name: (folder / name).read_bytes() for name in (*SEEDS, "textured.mtl", "textured.png")}


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, Any]]:
    """What to do with a file: each an action, where (a share of the length; files begin with a header), and how."""
    places = st.one_of(st.floats(0, 1), st.floats(0, 0.2))
    gentle = [  # keep the length, so that more files get past the first checks
        st.tuples(st.just("byte"), places, st.integers(0, 255)),
        st.tuples(st.just("swap"), places, st.floats(0, 1)),
    ]
    harsh = [
        st.tuples(st.just("insert"), places, st.sampled_from(TOKENS)),
        st.tuples(st.just("number"), places, st.sampled_from(TOKENS)),
        st.tuples(st.just("cut"), places, st.integers(1, 64)),
        st.tuples(st.just("repeat"), places, st.integers(1, 200)),
        st.tuples(st.just("end"), st.floats(0, 1), st.none()),
    ]
    actions = gentle if draw(st.booleans()) else [*gentle, *harsh]
    return draw(st.lists(st.one_of(actions), min_size=1, max_size=5))


def mutated(data: bytes, steps: list[tuple[str, float, Any]]) -> bytes:
    raw = bytearray(data)
    for action, share, how in steps:
        at = int(share * max(0, len(raw) - 1))
        if action == "byte" and raw:
            raw[at] = how
        elif action == "insert":
            raw[at:at] = how
        elif action == "number":  # the next number in the text
            numbers = [index for index in range(at, min(len(raw), at + 300)) if chr(raw[index]).isdigit()]
            if numbers:
                end = numbers[0]
                while end < len(raw) and chr(raw[end]).isdigit():
                    end += 1
                raw[numbers[0] : end] = how
        elif action == "swap" and raw:
            other = int(how * (len(raw) - 1))
            raw[at], raw[other] = raw[other], raw[at]
        elif action == "cut":
            del raw[at : at + how]
        elif action == "repeat":
            raw[at:at] = raw[at : at + how]
        elif action == "end":
            del raw[at:]
    return bytes(raw)


def load(path: Path) -> None:
    """What the loaders promise: a finite asset that fits together, or a SceneError."""
    try:
        if path.name.endswith(("ply", "splat")):
            scene = load_scene(path)
            assert len(scene) > 0
            assert all(bool(torch.isfinite(tensor).all()) for tensor in scene.state().values())
            return
        mesh = load_mesh(path)
    except SceneError:
        return
    assert all(np.isfinite(values).all() for values in vars(mesh).values())
    assert 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices) == len(mesh.colors) == len(mesh.normals)
    if isinstance(mesh, TexturedMesh):
        assert len(mesh.uvs) == len(mesh.vertices)


def fuzz(name: str, seeds: dict[str, bytes], folder: Path, steps: list[tuple[str, float, Any]]) -> None:
    target = name
    if name == "textured.obj":  # its companions too
        for companion in ("textured.mtl", "textured.png"):
            (folder / companion).write_bytes(seeds[companion])
        target = ("textured.obj", "textured.mtl", "textured.png")[len(steps) % 3]
        (folder / name).write_bytes(seeds[name])
    (folder / target).write_bytes(mutated(seeds[target], steps))
    load(folder / name)


FUZZING = {"suppress_health_check": list(HealthCheck), "deadline": None, "print_blob": True}


@pytest.mark.parametrize("name", SEEDS)
@given(steps=mutations())
@settings(max_examples=40, **FUZZING)
def test_a_few_mutations(name: str, seeds: dict[str, bytes], tmp_path: Path, steps: list) -> None:
    fuzz(name, seeds, tmp_path, steps)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", SEEDS)
@given(steps=mutations())
@settings(max_examples=2500, **FUZZING)
def test_many_mutations(name: str, seeds: dict[str, bytes], tmp_path: Path, steps: list) -> None:
    fuzz(name, seeds, tmp_path, steps)


@pytest.mark.parametrize("name", SEEDS)
def test_every_length(name: str, seeds: dict[str, bytes], tmp_path: Path) -> None:
    """Cut off anywhere (at every byte of the beginning)."""
    data = seeds[name]
    lengths = sorted({*range(min(len(data), 64)), *np.linspace(64, len(data) - 1, 25, dtype=int).tolist()})
    for length in lengths:
        (tmp_path / name).write_bytes(data[:length])
        load(tmp_path / name)


SUFFIXES = (".ply", ".compressed.ply", ".splat", ".glb", ".obj")


def refused(path: Path, said: str | None = None) -> None:
    with pytest.raises(SceneError, match=said):
        (load_mesh if path.suffix in (".glb", ".obj") else load_scene)(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"empty{suffix}").write_bytes(b"")
    refused(tmp_path / f"empty{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    refused(tmp_path / f"zero{suffix}", "device")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    refused(tmp_path / f"pipe{suffix}", "pipe")
    (tmp_path / f"folder{suffix}").mkdir()
    refused(tmp_path / f"folder{suffix}", "folder")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    refused(tmp_path / f"loop{suffix}", "can't be read")
    refused(tmp_path / f"a\0b{suffix}", "no path")
    refused(tmp_path / f"{'n' * 300}{suffix}", "can't be read")
    large = tmp_path / f"large{suffix}"
    with large.open("wb") as file:
        file.truncate(9 * 2**30)  # a hole: no bytes on the disk
    refused(large, "bytes")


@pytest.mark.parametrize("name", ["textured.mtl", "textured.png"])
def test_companions_that_are_no_files(name: str, seeds: dict[str, bytes], tmp_path: Path) -> None:
    for companion in ("textured.obj", "textured.mtl", "textured.png"):
        (tmp_path / companion).write_bytes(seeds[companion])
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert type(load_mesh(tmp_path / "textured.obj")) is Mesh


def glb(tree: dict[str, Any], binary: bytes = b"") -> bytes:
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    binary += b"\0" * (-len(binary) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary if binary else b""
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def triangle(**changes: Any) -> dict[str, Any]:
    tree = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3}],
        "bufferViews": [{"buffer": 0, "byteLength": 36}],
        "buffers": [{"byteLength": 36}],
    }
    return tree | changes


CORNERS = np.eye(3, dtype="<f4").tobytes()
BOMBS: dict[str, Callable[[], bytes]] = {
    "a count without a buffer": lambda: glb(
        triangle(accessors=[{"componentType": 5126, "type": "VEC3", "count": 9_000_000_000}]), CORNERS
    ),
    "a count beyond the buffer": lambda: glb(
        triangle(accessors=[{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 300_000_000}]), CORNERS
    ),
    "a negative count": lambda: glb(
        triangle(accessors=[{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": -3}]), CORNERS
    ),
    "many views of the same bytes": lambda: glb(
        triangle(bufferViews=[{"buffer": 0, "byteLength": 360_000}] * 20_000, buffers=[{"byteLength": 360_000}]),
        CORNERS * 10_000,
    ),
    "a mesh in a million places": lambda: glb(
        triangle(
            nodes=[{"mesh": 0}] * 90_000,
            scenes=[{"nodes": list(range(90_000))}],
            accessors=[{"bufferView": 0, "componentType": 5126, "type": "VEC3", "count": 3000}],
            bufferViews=[{"buffer": 0, "byteLength": 36_000}],
            buffers=[{"byteLength": 36_000}],
        ),
        CORNERS * 1000,
    ),
    "more nodes than anyone wants": lambda: glb(triangle(nodes=[{}] * 100_001), CORNERS),
    "a node below itself": lambda: glb(triangle(nodes=[{"mesh": 0, "children": [0]}]), CORNERS),
    "nodes in a ring": lambda: glb(triangle(nodes=[{"children": [1]}, {"children": [0], "mesh": 0}]), CORNERS),
    "a node with two parents": lambda: glb(
        triangle(nodes=[{"children": [1, 1]}, {"children": [2, 2]}, {"mesh": 0}]), CORNERS
    ),
    "nodes 5000 deep": lambda: glb(
        triangle(nodes=[*({"children": [k + 1]} for k in range(5000)), {"mesh": 0}]), CORNERS
    ),
    "a node that is not there": lambda: glb(triangle(nodes=[{"mesh": 7}]), CORNERS),
    "JSON without an end": lambda: struct.pack("<4sIII4s", b"glTF", 2, 200_020, 200_000, b"JSON") + b"[" * 200_000,
    "a list for an object": lambda: glb([], CORNERS),  # type: ignore[arg-type]
    "bytes of another file": lambda: glb(triangle(buffers=[{"byteLength": 36, "uri": "secret.bin"}])),
    "bytes of a device": lambda: glb(triangle(buffers=[{"byteLength": 36, "uri": "/dev/zero"}])),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_glb_that_asks_for_too_much(bomb: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(CORNERS)
    (tmp_path / "bomb.glb").write_bytes(BOMBS[bomb]())
    tracemalloc.start()
    try:
        refused(tmp_path / "bomb.glb")
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()


def test_a_plain_triangle_passes(tmp_path: Path) -> None:
    """The bombs' tree without a bomb."""
    (tmp_path / "good.glb").write_bytes(glb(triangle(), CORNERS))
    assert np.allclose(load_mesh(tmp_path / "good.glb").vertices, np.eye(3))


def test_an_obj_of_many_materials(tmp_path: Path) -> None:
    points = "".join(f"v {k} 0 1\n" for k in range(5000))
    (tmp_path / "bomb.obj").write_text(points + "".join(f"usemtl m{k}\nf 1 2 {k + 1}\n" for k in range(5000)))
    refused(tmp_path / "bomb.obj", "5,000 materials")
    assert mesh_limits.MAX_VERTICES >= 1_000_000


@pytest.mark.parametrize("kind", ["ply", "compressed.ply"])
def test_counts_allocate_nothing(kind: str, seeds: dict[str, bytes], tmp_path: Path) -> None:
    for element in (b"vertex", b"chunk", b"sh"):
        for count in (b"9000000000", b"999999999999", b"18446744073709551616", b"1e9", b"-1", b"0x10"):
            data = seeds[f"scene.{kind}"]
            head, found, tail = data.partition(b"element " + element + b" ")
            if not found:
                continue
            (tmp_path / f"bomb.{kind}").write_bytes(head + found + count + tail[1:])
            tracemalloc.start()
            try:
                refused(tmp_path / f"bomb.{kind}", "no PLY of Gaussians")
                assert tracemalloc.get_traced_memory()[1] < 1e6
            finally:
                tracemalloc.stop()
