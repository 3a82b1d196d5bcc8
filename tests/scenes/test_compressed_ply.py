"""Compressed PLY against gsplat's exporter, plyfile and a reader by hand."""

import io
import math
from pathlib import Path

import numpy as np
import plyfile
import pytest
import torch
from gsplat.exporter import export_splats
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import SceneError
from dreamkit.scenes import compressed_ply, export
from dreamkit.scenes.gaussians import SH_C0, GaussianConfig, GaussianScene


def make_scene(count: int = 700, sh_degree: int | None = 3, seed: int = 0) -> GaussianScene:
    """Some chunks of Gaussians, visible enough for gsplat to keep them."""
    generator = torch.Generator().manual_seed(seed)
    scene = GaussianScene.initialise(GaussianConfig(count=count, sh_degree=sh_degree), generator)
    with torch.no_grad():
        for name, parameter in scene.parameters_dict().items():
            size = {"sh_rest": 0.8, "opacity_logits": 2.0}.get(name, 0.5)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        scene.parameters_dict()["opacity_logits"].clamp_(-4.0, 6.0)
    return scene


def gsplat_bytes(scene: GaussianScene) -> bytes:
    state, sh = scene.state(), scene.sh.detach()
    data: bytes = export_splats(
        state["means"], state["log_scales"], scene.quaternions.detach(), state["opacity_logits"], sh[:, :1], sh[:, 1:],
        format="ply_compressed",
    )  # fmt: skip
    return data


def matched(one: GaussianScene, other: GaussianScene) -> torch.Tensor:
    """For each Gaussian of one, which of the other it is: the nearest."""
    found = torch.cdist(one.means.detach().double(), other.means.detach().double()).argmin(dim=1)
    assert len(found.unique()) == len(one) == len(other)
    return found


def assert_near(read: GaussianScene, scene: GaussianScene) -> None:
    """Within the bounds that the module's docstring promises, for chunks as wide as the scene."""
    order = matched(read, scene)
    extents = [values.detach().amax(0) - values.detach().amin(0) for values in (scene.means, scene.scales.log())]
    steps = torch.tensor([4094.0, 2046.0, 4094.0])
    pairs = ((read.means, scene.means), (read.scales.log(), scene.scales.log()))
    for (mine, theirs), extent in zip(pairs, extents, strict=True):
        assert ((mine - theirs[order]).abs() <= 1.01 * extent / steps + 1e-6).all()
    color = SH_C0 * (read.sh[:, 0] - scene.sh[order, 0])
    reach = SH_C0 * (scene.sh[:, 0].amax(0) - scene.sh[:, 0].amin(0))
    assert (color.abs() <= 1.01 * reach / 510 + 1e-6).all()
    assert ((read.opacities - scene.opacities[order]).abs() <= 0.5 / 255 + 1.1e-3).all()
    dots = (read.quaternions * scene.quaternions[order]).detach().sum(1).abs().clamp(max=1.0)
    assert float(2 * torch.rad2deg(torch.acos(dots.double())).max()) < 0.3 + 0.05
    rest, known = read.sh[:, 1:], scene.sh[order, 1:]
    inner = known.abs() < 3.95
    assert rest.shape == known.shape
    assert ((rest - known).abs()[inner] <= 1 / 64 + 1e-6).all()
    assert ((rest - known.clamp(-4, 4)).abs() <= 1 / 32 + 1e-6).all()


@pytest.mark.parametrize("sh_degree", [None, 0, 1, 2, 3])
def test_what_is_written_comes_back(tmp_path: Path, sh_degree: int | None) -> None:
    scene = make_scene(sh_degree=sh_degree)
    export.export_scene(scene, tmp_path / "scene.compressed.ply")
    read = export.load_scene(tmp_path / "scene.compressed.ply")
    assert read.sh_degree == (sh_degree or 0)
    assert_near(read, scene)
    (tmp_path / "scene.compressed.ply").rename(tmp_path / "renamed.ply")
    assert torch.equal(export.load_scene(tmp_path / "renamed.ply").means, read.means)
    plain = 4 * len(scene) * (17 + 3 * ((sh_degree or 0) + 1) ** 2 - 3)
    assert (tmp_path / "renamed.ply").stat().st_size < plain / 3 + 1500


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_what_gsplat_writes_is_read(tmp_path: Path, sh_degree: int) -> None:
    scene = make_scene(sh_degree=sh_degree)
    (tmp_path / "theirs.ply").write_bytes(gsplat_bytes(scene))
    read = export.load_scene(tmp_path / "theirs.ply")
    assert read.sh_degree == sh_degree
    assert_near(read, scene)


@pytest.mark.parametrize("sh_degree", [0, 2])
def test_the_words_are_gsplats(tmp_path: Path, sh_degree: int) -> None:
    """One chunk, so that both have the same bounds: the same words for the same Gaussians, by plyfile."""
    scene = make_scene(count=256, sh_degree=sh_degree)
    export.export_scene(scene, tmp_path / "ours.compressed.ply")
    ours = plyfile.PlyData.read(tmp_path / "ours.compressed.ply")
    theirs = plyfile.PlyData.read(io.BytesIO(gsplat_bytes(scene)))
    assert [p.name for p in ours["chunk"].properties] == [p.name for p in theirs["chunk"].properties]
    for name in ours["chunk"].data.dtype.names:
        assert np.allclose(ours["chunk"][name], theirs["chunk"][name], atol=1e-6)
    assert [p.name for p in ours["vertex"].properties] == [p.name for p in theirs["vertex"].properties]
    rows = [np.stack([t["vertex"][n] for n in t["vertex"].data.dtype.names], 1) for t in (ours, theirs)]
    order = [np.argsort(table[:, 0], kind="stable") for table in rows]
    equal = rows[0][order[0]] == rows[1][order[1]]
    assert equal.mean() > 0.99  # a value half way between two steps may round either way
    if sh_degree:
        codes = [
            np.stack([t["sh"][n] for n in t["sh"].data.dtype.names], 1)[o]
            for t, o in zip((ours, theirs), order, strict=True)
        ]
        assert np.array_equal(codes[0][equal.all(1)], codes[1][equal.all(1)])


def by_hand(path: Path, index: int) -> dict[str, list[float]]:
    """One Gaussian as PlayCanvas' engine unpacks it, bit by bit."""
    tables = plyfile.PlyData.read(path)
    row, chunk = tables["vertex"].data[index], tables["chunk"].data[index // 256]

    def unorm(word: int, bits: int) -> float:
        return (word & ((1 << bits) - 1)) / ((1 << bits) - 1)

    def mix(names: list[str], shares: list[float]) -> list[float]:
        return [float(chunk[f"min_{n}"] * (1 - s) + chunk[f"max_{n}"] * s) for n, s in zip(names, shares, strict=True)]

    position, scale = int(row["packed_position"]), int(row["packed_scale"])
    rotation, color = int(row["packed_rotation"]), int(row["packed_color"])
    a, b, c = ((unorm(rotation >> shift, 10) - 0.5) * math.sqrt(2) for shift in (20, 10, 0))
    parts = [a, b, c]
    parts.insert(rotation >> 30, math.sqrt(max(0.0, 1.0 - a * a - b * b - c * c)))
    return {
        "means": mix(["x", "y", "z"], [unorm(position >> 21, 11), unorm(position >> 11, 10), unorm(position, 11)]),
        "log_scales": mix(
            ["scale_x", "scale_y", "scale_z"], [unorm(scale >> 21, 11), unorm(scale >> 11, 10), unorm(scale, 11)]
        ),
        "quaternions": parts,
        "colors": mix(["r", "g", "b"], [unorm(color >> 24, 8), unorm(color >> 16, 8), unorm(color >> 8, 8)]),
        "opacities": [unorm(color, 8)],
    }


def test_the_engine_would_see_the_same(tmp_path: Path) -> None:
    scene = make_scene(count=300, sh_degree=1)
    export.export_scene(scene, tmp_path / "scene.compressed.ply")
    read = export.load_scene(tmp_path / "scene.compressed.ply")
    values = {
        "means": read.means, "log_scales": read.scales.log(), "quaternions": read.quaternions,
        "colors": 0.5 + SH_C0 * read.sh[:, 0], "opacities": read.opacities[:, None],
    }  # fmt: skip
    for index in (0, 17, 255, 256, 299):
        for name, expected in by_hand(tmp_path / "scene.compressed.ply", index).items():
            assert np.allclose(values[name][index].detach(), expected, atol=1.1e-3 if name == "opacities" else 1e-5), (
                name
            )


def test_chunks_without_colours_have_plain_ones(tmp_path: Path) -> None:
    """Files of before 2024: colours go from 0 to 1."""
    export.export_scene(make_scene(count=5, sh_degree=0), tmp_path / "new.compressed.ply")
    tables = plyfile.PlyData.read(tmp_path / "new.compressed.ply")
    chunk = tables["chunk"].data
    names = [name for name in chunk.dtype.names if name[-2:] not in ("_r", "_g", "_b")]
    old = np.zeros(len(chunk), [(name, "f4") for name in names])
    for name in names:
        old[name] = chunk[name]
    elements = [plyfile.PlyElement.describe(old, "chunk"), plyfile.PlyElement.describe(tables["vertex"].data, "vertex")]
    plyfile.PlyData(elements, byte_order="<").write(tmp_path / "old.ply")
    read = export.load_scene(tmp_path / "old.ply")
    codes = (tables["vertex"]["packed_color"] >> 24) / 255
    assert np.allclose(0.5 + SH_C0 * read.sh[:, 0, 0].detach().numpy(), codes, atol=1e-6)


def test_equal_gaussians_and_extremes(tmp_path: Path) -> None:
    """A chunk of no extent, scales beyond the format's, opacities of 0 and 1, harmonics beyond 4."""
    state = make_scene(count=3, sh_degree=1).state()
    state = {name: value[:1].repeat(3, *[1] * (value.dim() - 1)) for name, value in state.items()}
    state["log_scales"][0] = -35.0
    state["opacity_logits"] = torch.tensor([-30.0, 30.0, 0.0])
    state["sh_rest"][2] = 7.0
    export.export_scene(GaussianScene(state), tmp_path / "a.compressed.ply")
    read = export.load_scene(tmp_path / "a.compressed.ply")
    assert torch.equal(read.means, state["means"])
    assert float(read.scales.detach().log().min()) == pytest.approx(-20.0, abs=1e-4)
    assert torch.allclose(read.opacities, torch.tensor([1e-3, 1 - 1e-3, 0.5]), atol=0.5 / 255)
    assert float(read.sh[2, 1:].min().detach()) == 4.0


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: math.hypot(*q) > 1e-3), min_size=1, max_size=20))
def test_rotations_come_back(values: list[tuple[float, ...]]) -> None:
    unit = np.array(values) / np.linalg.norm(values, axis=1, keepdims=True)
    back = compressed_ply.unpack_rotations(compressed_ply.pack_rotations(unit.astype(np.float32)))
    assert np.allclose(np.linalg.norm(back, axis=1), 1, atol=1e-5)
    assert (np.minimum(np.abs(back - unit).max(1), np.abs(back + unit).max(1)) < 2.2e-3).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(b"element chunk 1", b"element chunk 0"), "promises|too few"),
        (lambda data: data.replace(b"element chunk 1", b"element chunk 9000000000"), "promises"),
        (lambda data: data.replace(b"element vertex 3", b"element vertex 9000000000"), "promises"),
        (lambda data: data.replace(b"element sh 3", b"element sh 2"), "sh has 2 rows"),
        (lambda data: data.replace(b"uint packed_scale", b"float packed_scale"), "packed_scale of 32 bits"),
        (lambda data: data.replace(b"uint packed_scale", b"uint packed_wrong"), "packed_scale of 32 bits"),
        (lambda data: data.replace(b"float min_scale_x", b"float mid_scale_x"), "lacks min_scale_x"),
        (lambda data: data.replace(b"uchar f_rest_3", b"char f_rest_3"), "8 bits"),
        (lambda data: data.replace(b"uchar f_rest_3", b"uchar f_rest_9"), "f_rest"),
        (lambda data: data.replace(b"uchar f_rest_3", b"list uchar int f_rest_3"), "header"),
        (lambda data: data.replace(b"element vertex", b"element vortex"), "no vertex"),
        (lambda data: data[:-1], "promises"),
        (lambda data: data.replace(b"end_header\n", b"end_header\n" + b"\xff" * 4, 1), "finite"),
    ],
)
def test_broken_files_are_explained(tmp_path: Path, change, reason: str) -> None:
    export.export_scene(make_scene(count=3, sh_degree=1), tmp_path / "good.compressed.ply")
    good = (tmp_path / "good.compressed.ply").read_bytes()
    (tmp_path / "bad.ply").write_bytes(change(good))
    with pytest.raises(SceneError, match=reason):
        export.load_scene(tmp_path / "bad.ply")
