"""Figures, samples and look-ups against closed forms and trimesh."""

import math

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.triangles import (
    Mesh,
    TexturedMesh,
    sample_surface,
    sample_surface_evenly,
    texture_colors,
    vertex_normals,
    weld,
)


def make_mesh(vertices, faces, colors=None):
    vertices, faces = np.asarray(vertices, np.float32), np.asarray(faces, np.int32)
    colors = np.ones_like(vertices) if colors is None else np.asarray(colors, np.float32)
    return Mesh(vertices, faces, colors, vertex_normals(vertices, faces))


def of_trimesh(body):
    return make_mesh(body.vertices, body.faces)


TETRAHEDRON = ([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def test_figures_of_a_tetrahedron():
    figures = make_mesh(*TETRAHEDRON).figures()
    assert (figures.vertices, figures.faces, figures.components, figures.boundary_edges) == (4, 4, 1, 0)
    assert figures.watertight
    assert figures.manifold
    assert figures.volume == pytest.approx(1 / 6)
    assert figures.area == pytest.approx(1.5 + math.sqrt(3) / 2)
    assert figures.bounding_box == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    "body",
    [
        trimesh.creation.icosphere(2),
        trimesh.creation.torus(1.0, 0.3, 16, 8),
        trimesh.creation.box(),
        trimesh.util.concatenate([trimesh.creation.box(), trimesh.creation.icosphere(1).apply_translation([3, 0, 0])]),
    ],
)
def test_figures_agree_with_trimesh(body):
    figures = of_trimesh(body).figures()
    assert figures.components == body.body_count
    assert figures.watertight == body.is_watertight
    assert figures.manifold
    assert figures.volume == pytest.approx(body.volume, rel=1e-5)
    assert figures.area == pytest.approx(body.area, rel=1e-5)


def test_a_lid_taken_off_leaves_its_border():
    vertices, faces = TETRAHEDRON
    figures = make_mesh(vertices, faces[:3]).figures()
    assert figures.boundary_edges == 3
    assert not figures.watertight
    assert figures.manifold


@pytest.mark.parametrize(
    ("vertices", "faces"),
    [
        # three faces at one edge
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, -1, 0]], [[0, 1, 2], [0, 1, 3], [1, 0, 4]]),
        # two fans at one vertex
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]], [[0, 1, 2], [0, 3, 4]]),
        # a face with one corner twice
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2], [0, 1, 1]]),
    ],
)
def test_what_is_no_manifold(vertices, faces):
    figures = make_mesh(vertices, faces).figures()
    assert not figures.manifold
    assert figures.components == 1


def test_two_tetrahedra_that_share_a_corner():
    """Every edge has two faces, yet about the shared corner there are two fans."""
    vertices, faces = TETRAHEDRON
    both = np.concatenate([vertices, -np.array(vertices)[1:]])
    second = np.array(faces)[:, ::-1]
    second = np.where(second > 0, second + 3, 0)
    figures = make_mesh(both, np.concatenate([faces, second])).figures()
    assert figures.watertight
    assert not figures.manifold
    assert figures.volume == pytest.approx(2 / 6)


def test_a_face_that_runs_the_other_way_is_still_one_fan():
    vertices, faces = TETRAHEDRON
    assert make_mesh(vertices, [faces[0][::-1], *faces[1:]]).figures().manifold


def test_unused_vertices_and_the_order_of_faces_do_not_matter():
    vertices, faces = TETRAHEDRON
    figures = make_mesh([*vertices, [0.5, 0.5, 0.5]], np.array(faces)[[2, 0, 3, 1]]).figures()
    assert figures.components == 1
    assert figures.watertight
    assert figures.manifold


def square_with_a_picture(texture):
    """A unit square of two triangles, cut along its diagonal."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    uvs = vertices[:, :2].copy()
    return TexturedMesh(
        vertices, faces, texture_colors(texture, uvs), vertex_normals(vertices, faces), uvs, np.asarray(texture)
    )


def test_seams_are_closed_before_a_textured_mesh_is_measured():
    mesh = square_with_a_picture(np.zeros((2, 2, 3), np.float32))
    points, faces = mesh.surface()
    assert len(points) == 4
    assert np.array_equal(points[faces], mesh.vertices[mesh.faces])
    figures = mesh.figures()
    assert (figures.vertices, figures.components, figures.boundary_edges) == (6, 1, 4)


@given(arrays.arrays(np.float32, (9, 3), elements=st.sampled_from([-1.0, -0.0, 0.0, 2.0])))
def test_welding_keeps_every_place(vertices):
    faces = np.arange(9, dtype=np.int32).reshape(3, 3)
    points, triangles = weld(vertices, faces)
    assert np.array_equal(points[triangles], vertices[faces])
    assert len(points) == len({tuple(row) for row in (vertices + 0.0).tolist()})
    assert triangles.dtype == np.int32


def test_a_texture_is_read_from_its_top_row():
    texture = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    look = texture_colors(texture, np.array([[0.25, 0.75], [0.75, 0.25], [0.5, 0.5], [0.25, 0.5], [-3, 9]], np.float32))
    assert np.array_equal(look[0], texture[0, 0])
    assert np.array_equal(look[1], texture[1, 1])
    assert np.allclose(look[2], texture.mean((0, 1)))
    assert np.allclose(look[3], texture[:, 0].mean(0))
    assert np.array_equal(look[4], texture[0, 0])


def test_look_ups_agree_with_torch():
    random = np.random.default_rng(0)
    texture, uvs = random.random((5, 7, 3), np.float32), random.random((50, 2), np.float32) * 1.2 - 0.1
    grid = torch.from_numpy(uvs * 2 - 1) * torch.tensor([1.0, -1.0])
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(texture).permute(2, 0, 1)[None], grid[None, None], padding_mode="border", align_corners=False
    )
    assert np.allclose(texture_colors(texture, uvs), expected[0, :, 0].T, atol=1e-5)


def test_samples_are_uniform_by_area():
    """A long and a short rectangle: three quarters and a quarter of the points, each spread evenly."""
    vertices = [[0, 0, 0], [3, 0, 0], [3, 1, 0], [0, 1, 0], [5, 0, 0], [6, 0, 0], [6, 1, 0], [5, 1, 0]]
    faces = [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]]
    mesh = make_mesh(vertices, faces, np.array(vertices) / 6)
    points, normals, colors = sample_surface(mesh, 40_000, torch.Generator().manual_seed(0))
    assert points.shape == normals.shape == colors.shape == (40_000, 3)
    large = points[:, 0] < 4
    assert large.float().mean() == pytest.approx(0.75, abs=0.01)
    histogram = torch.histogramdd(points[large][:, :2].double(), [6, 4], [0.0, 3.0, 0.0, 1.0]).hist
    assert (histogram / histogram.mean() - 1).abs().max() < 0.1
    assert torch.equal(normals, torch.tensor([0.0, 0.0, 1.0]).expand_as(normals))
    assert torch.allclose(colors, points / 6, atol=1e-6)


def test_samples_lie_on_the_surface_with_its_normals():
    mesh = of_trimesh(trimesh.creation.icosphere(4))
    points, normals, _ = sample_surface(mesh, 2000, torch.Generator().manual_seed(0))
    radius = points.norm(dim=1, keepdim=True)
    assert (radius < 1 + 1e-5).all()
    assert (radius > 0.995).all()
    assert torch.allclose(normals, points / radius, atol=0.01)
    assert torch.allclose(normals.norm(dim=1), torch.ones(2000), atol=1e-5)


def test_samples_take_the_texture():
    texture = np.zeros((64, 64, 3), np.float32)
    texture[:32, :, 0] = 1.0  # the upper half is red
    points, _, colors = sample_surface(square_with_a_picture(texture), 5000, torch.Generator().manual_seed(0))
    clear = (points[:, 1] - 0.5).abs() > 1 / 64
    assert torch.equal(colors[clear][:, 0] > 0.5, points[clear][:, 1] > 0.5)


def test_the_same_seed_gives_the_same_samples():
    mesh = of_trimesh(trimesh.creation.box())
    first, second = (sample_surface(mesh, 100, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_opposite_normals_and_slivers_still_give_unit_normals():
    vertices, faces = TETRAHEDRON
    mesh = make_mesh(vertices, [*faces, [0, 1, 1]])
    flipped = Mesh(mesh.vertices, mesh.faces, mesh.colors, np.zeros_like(mesh.normals))
    _, normals, _ = sample_surface(flipped, 500, torch.Generator().manual_seed(0))
    assert torch.allclose(normals.norm(dim=1), torch.ones(500), atol=1e-5)


def test_what_cannot_be_sampled():
    mesh = make_mesh(*TETRAHEDRON)
    with pytest.raises(ConfigError, match="surface samples is 0"):
        sample_surface(mesh, 0, torch.Generator())
    for flat in (make_mesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]]), make_mesh(mesh.vertices, np.zeros((0, 3)))):
        with pytest.raises(SceneError, match="no area"):
            sample_surface(flat, 10, torch.Generator())


def test_even_samples_leave_smaller_gaps():
    from scipy.spatial import cKDTree

    mesh = of_trimesh(trimesh.creation.icosphere(3))
    probes, _, _ = sample_surface(mesh, 20_000, torch.Generator().manual_seed(1))
    gaps = []
    for sampler in (sample_surface, sample_surface_evenly):
        points, normals, colors = sampler(mesh, 800, torch.Generator().manual_seed(0))
        assert points.shape == normals.shape == colors.shape == (800, 3)
        assert torch.allclose(points.norm(dim=1), torch.tensor(1.0), atol=0.02)
        assert float((points * normals).sum(dim=1).min()) > 0.95
        gaps.append(float(cKDTree(points.numpy()).query(probes.numpy())[0].max()))
    assert gaps[1] < 0.8 * gaps[0]
    again = sample_surface_evenly(mesh, 800, torch.Generator().manual_seed(0))[0]
    assert torch.equal(again, sample_surface_evenly(mesh, 800, torch.Generator().manual_seed(0))[0])
    assert len(sample_surface_evenly(mesh, 1, torch.Generator().manual_seed(0))[0]) == 1
    with pytest.raises(ConfigError):
        sample_surface_evenly(mesh, 0, torch.Generator())
