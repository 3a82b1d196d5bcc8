"""Texture atlases against the surfaces and the colours that they were made of."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes import atlas as atlases
from dreamkit.scenes.atlas import Texels, bake, texels, textured, unwrap
from dreamkit.scenes.triangles import Mesh, sample_surface, texture_colors, vertex_normals


def make_mesh(body):
    vertices, faces = body.vertices.astype(np.float32), body.faces.astype(np.int32)
    return Mesh(vertices, faces, np.ones_like(vertices), vertex_normals(vertices, faces))


def by_place(points, normals):
    """A colour without a jump anywhere."""
    return 0.5 + 0.4 * torch.sin(3 * points + 0.5)


@pytest.fixture(scope="module")
def sphere():
    return make_mesh(trimesh.creation.icosphere(3, radius=0.7))


@pytest.fixture(scope="module")
def unwrapped(sphere):
    return unwrap(sphere.vertices, sphere.faces, 128)


def test_the_atlas_is_the_same_surface_side_by_side(sphere, unwrapped):
    assert np.array_equal(unwrapped.vertex_map[unwrapped.faces], sphere.faces)
    assert unwrapped.uvs.min() >= 0
    assert unwrapped.uvs.max() <= 1
    assert len(unwrapped.uvs) == len(unwrapped.vertex_map) > len(sphere.vertices)
    corners = unwrapped.uvs[unwrapped.faces].astype(np.float64)
    edges = corners[:, 1:] - corners[:, :1]
    areas = 0.5 * np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
    assert 0.3 < areas.sum() <= 1
    # No face lies on another: a fine grid of points counts each covered point once.
    whole = texels(unwrapped, sphere, 512)
    assert len(whole.rows) / 512**2 == pytest.approx(areas.sum(), rel=0.02)
    # Little distortion: the share of the texture is the share of the surface.
    share = areas / areas.sum() * len(areas)
    assert share.min() > 0.4
    assert share.max() < 2.5


def test_the_same_mesh_gives_the_same_bytes(sphere, unwrapped):
    again = unwrap(sphere.vertices, sphere.faces, 128)
    for name in ("vertex_map", "faces", "uvs"):
        assert getattr(again, name).tobytes() == getattr(unwrapped, name).tobytes()


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_scale_does_not_matter(sphere, unwrapped, scale):
    scaled = unwrap(sphere.vertices * np.float32(scale) + np.float32(scale), sphere.faces, 128)
    assert abs(len(scaled.uvs) - len(unwrapped.uvs)) < 0.1 * len(unwrapped.uvs)


def test_texels_lie_on_the_surface_where_their_uvs_say(sphere, unwrapped):
    found = texels(unwrapped, sphere, 96)
    body = trimesh.Trimesh(sphere.vertices, sphere.faces, process=False)
    _, distance, _ = trimesh.proximity.closest_point_naive(body, found.positions[::40].numpy())
    assert distance.max() < 1e-5
    assert torch.allclose(found.normals.norm(dim=1), torch.ones(len(found.normals)), atol=1e-5)
    outward = torch.nn.functional.normalize(found.positions, dim=1)
    assert ((found.normals * outward).sum(1) > 0.99).all()
    assert (torch.diff(found.rows * 96 + found.columns) > 0).all()  # row by row, each once


def test_the_origin_of_uv_is_bottom_left():
    """A square in the corner u, v < 1/2 covers the lower left quarter of the picture."""
    vertices = np.array([[0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    square = Mesh(vertices, faces, np.ones_like(vertices), vertex_normals(vertices, faces))
    flat = atlases.Atlas(np.arange(4), faces, vertices[:, :2] / 2)
    found = texels(flat, square, 16)
    assert len(found.rows) == 64
    assert int(found.rows.min()) == 8
    assert int(found.columns.max()) == 7
    assert torch.allclose(found.positions[:, 0], (found.columns + 0.5) / 8)
    assert torch.allclose(found.positions[:, 1], 2 * (1 - (found.rows + 0.5) / 16))
    assert torch.allclose(found.normals, torch.tensor([0.0, 0.0, 1.0]).expand(64, 3))
    texture = bake(found, lambda points, normals: points.clamp(0, 1))
    assert np.allclose(texture_colors(texture, flat.uvs / 2 + 0.125)[:, :2], vertices[:, :2] / 2 + 0.25, atol=1e-6)


def test_bands_change_nothing(sphere, unwrapped, monkeypatch):
    whole = texels(unwrapped, sphere, 64)
    monkeypatch.setattr(atlases, "_BAND", 7 * 64)
    bands = texels(unwrapped, sphere, 64)
    assert torch.equal(whole.rows, bands.rows)
    assert torch.equal(whole.columns, bands.columns)
    assert torch.allclose(whole.positions, bands.positions, atol=1e-5)


def test_a_smooth_colour_shows_no_seams(sphere):
    """Bilinear look-ups all over the surface, borders of charts included, are off by what a texel is wide."""
    mesh = textured(sphere, by_place, 256)
    points, _, colors = sample_surface(mesh, 20_000, torch.Generator().manual_seed(0))
    assert (colors - by_place(points, points)).abs().max() < 0.02
    assert (colors - by_place(points, points)).abs().mean() < 0.001
    assert np.allclose(mesh.colors, by_place(torch.from_numpy(mesh.vertices), None).numpy(), atol=0.02)
    corners = mesh.faces.reshape(-1)
    assert (mesh.colors[corners] - by_place(torch.from_numpy(mesh.vertices[corners]), None).numpy()).max() < 0.02
    figures = mesh.figures()
    assert figures.watertight
    assert figures.manifold
    assert figures.vertices > len(sphere.vertices)


def test_a_finer_texture_is_closer(sphere):
    errors = []
    for size in (32, 64, 128):
        points, _, colors = sample_surface(textured(sphere, by_place, size), 4000, torch.Generator().manual_seed(0))
        errors.append(float((colors - by_place(points, points)).abs().mean()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


def test_bare_texels_take_the_nearest_colour(monkeypatch):
    place = torch.tensor([[0, 0], [15, 15]])
    two = Texels(torch.tensor([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]]), torch.zeros(2, 3), place[:, 0], place[:, 1], 16)
    monkeypatch.setattr(atlases, "_CHUNK", 1)
    texture = bake(two, lambda points, normals: points)
    assert np.allclose(texture[0, 0], [0.1, 0.2, 0.3])
    assert np.allclose(texture[5, 4], [0.1, 0.2, 0.3])
    assert np.allclose(texture[14, 3 + 10], [0.7, 0.8, 0.9])
    assert len(np.unique(texture.reshape(-1, 3), axis=0)) == 2


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_any_triangles_unfold(seed):
    """Soups with slivers and without an inside: every face has its place, or the error says why not."""
    random = np.random.default_rng(seed)
    vertices = random.standard_normal((12, 3)).astype(np.float32)
    faces = random.integers(0, 12, (10, 3)).astype(np.int32)
    try:
        atlas = unwrap(vertices, faces, 64)
    except SceneError:
        return
    assert np.array_equal(atlas.vertex_map[atlas.faces], faces)
    assert np.isfinite(atlas.uvs).all()


def test_colours_that_cannot_be_baked(sphere, unwrapped):
    found = texels(unwrapped, sphere, 32)
    with pytest.raises(SceneError, match="finite colours of the points' shape"):
        bake(found, lambda points, normals: points * float("nan"))
    with pytest.raises(SceneError, match="finite colours of the points' shape"):
        bake(found, lambda points, normals: points[:, :1])
    clipped = bake(found, lambda points, normals: points * 100)
    assert clipped.min() == 0
    assert clipped.max() == 1


@pytest.mark.parametrize("size", [0, 15, 8193, 64.0])
def test_sizes_out_of_range(sphere, unwrapped, size):
    for attempt in (
        lambda: unwrap(sphere.vertices, sphere.faces, size),
        lambda: texels(unwrapped, sphere, size),
        lambda: textured(sphere, by_place, size),
    ):
        with pytest.raises(ConfigError, match=r"texture's size .* from 16 to 8192"):
            attempt()


def test_a_size_that_memory_cannot_hold(sphere, monkeypatch):
    monkeypatch.setattr(atlases.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30))
    with pytest.raises(ConfigError, match=r"8192 x 8192 .* 6\.2 GiB .* 1\.0 are free.* 2048 or less"):
        textured(sphere, by_place, 8192)


def test_what_cannot_be_unfolded(sphere):
    nothing = np.zeros((0, 3), np.int32)
    with pytest.raises(SceneError, match="no triangles"):
        unwrap(sphere.vertices, nothing)
    with pytest.raises(SceneError, match="no triangle with an area"):
        unwrap(np.zeros((3, 3), np.float32), np.array([[0, 1, 2]], np.int32))
    broken = sphere.vertices.copy()
    broken[0] = np.nan
    with pytest.raises(SceneError, match="not finite"):
        unwrap(broken, sphere.faces)
