"""Marching tetrahedra against spheres, tori, planes, float64 derivatives and trimesh."""

import math
from itertools import product

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.tetrahedra import (
    MAX_RESOLUTION,
    crossed_edges,
    marching_tetrahedra,
    tetrahedral_grid,
)


def ball(vertices, radius=0.6):
    return vertices.norm(dim=1) - radius


def torus(vertices, large=0.55, small=0.25):
    ring = vertices[:, :2].norm(dim=1) - large
    return (ring.square() + vertices[:, 2].square()).sqrt() - small


def extract(field, resolution):
    grid = tetrahedral_grid(resolution)
    vertices, faces = marching_tetrahedra(grid.vertices, field(grid.vertices), grid.tetrahedra)
    return vertices, faces, trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)


@pytest.mark.parametrize("resolution", [1, 2, 5])
def test_the_grid_fills_the_cube_and_neighbours_share_faces(resolution):
    grid = tetrahedral_grid(resolution, half=0.75)
    assert grid.vertices.shape == ((resolution + 1) ** 3, 3)
    assert grid.tetrahedra.shape == (6 * resolution**3, 4)
    assert grid.cell == pytest.approx(1.5 / resolution)
    a, *others = grid.vertices[grid.tetrahedra].double().unbind(1)
    volumes = torch.linalg.det(torch.stack([b - a for b in others], 1)) / 6
    assert (volumes > 0).all()
    assert volumes.sum() == pytest.approx(1.5**3)
    triples = [grid.tetrahedra[:, [k for k in range(4) if k != left]].sort(1).values for left in range(4)]
    _, counts = torch.unique(torch.cat(triples), dim=0, return_counts=True)
    assert counts.max() == 2 or resolution == 1
    assert int((counts == 1).sum()) == 12 * resolution**2  # two triangles a square of the cube's six sides
    assert int(grid.border.sum()) == (resolution + 1) ** 3 - (resolution - 1) ** 3


def test_a_ball_to_second_order():
    errors, volumes = [], []
    for resolution in (16, 32):
        vertices, faces, mesh = extract(ball, resolution)
        errors.append(float((vertices.norm(dim=1) - 0.6).abs().max()))
        volumes.append(abs(mesh.volume / (4 / 3 * math.pi * 0.6**3) - 1))
        assert mesh.is_watertight
        assert mesh.is_winding_consistent
        assert mesh.euler_number == 2
        assert mesh.volume > 0
        assert len(faces.unique()) == len(vertices)
        outward = torch.from_numpy(mesh.face_normals.copy()).float() * vertices[faces].mean(1)
        assert (outward.sum(1)[torch.from_numpy(mesh.area_faces.copy()) > 1e-9] > 0).all()
    # Between two points of a sphere, the distance is off by at most half the sagitta of the longest edge.
    assert errors[0] < (3**0.5 * 2 / 16) ** 2 / (8 * 0.6) * 1.1
    assert errors[1] < errors[0] / 3
    assert volumes[1] < volumes[0] / 3
    assert volumes[1] < 0.006


def test_a_torus_has_a_hole():
    _, _, mesh = extract(torus, 24)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.euler_number == 0
    assert mesh.volume == pytest.approx(2 * math.pi**2 * 0.55 * 0.25**2, rel=0.03)


def test_a_plane_is_exact_and_open_at_the_border():
    direction = torch.tensor([0.48, 0.6, 0.64])
    vertices, _, mesh = extract(lambda p: p @ direction - 0.1, 6)
    assert torch.allclose(vertices @ direction, torch.full((len(vertices),), 0.1), atol=1e-6)
    assert not mesh.is_watertight
    sizes = torch.from_numpy(mesh.area_faces.copy()) > 1e-6
    normals = torch.from_numpy(mesh.face_normals.copy()).float()[sizes]
    assert torch.allclose(normals, direction.expand_as(normals), atol=1e-4)


@pytest.mark.parametrize("signs", list(product([-1.0, 1.0], repeat=4))[1:-1])
def test_every_case_of_one_tetrahedron(signs):
    """The triangles separate the corners: seen along their normals, inside lies behind and outside before them."""
    corners = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    values = torch.tensor(signs) * torch.tensor([0.3, 0.5, 0.7, 0.9])
    vertices, faces = marching_tetrahedra(corners, values, torch.tensor([[0, 1, 2, 3]]))
    assert len(faces) == (2 if sum(signs) == 0 else 1)
    assert len(vertices) == len(faces) + 2
    for a, b, c in vertices[faces]:
        normal = torch.linalg.cross(b - a, c - a)
        assert (torch.sign((corners - a) @ normal) == torch.tensor(signs)).all()


@given(st.integers(0, 2**32 - 1))
def test_any_field_gives_a_closed_manifold(seed):
    """Random signs and moved vertices: every edge has two faces that run against each other."""
    generator = torch.Generator().manual_seed(seed)
    grid = tetrahedral_grid(5)
    sdf = torch.randn(len(grid.vertices), generator=generator)
    sdf[grid.border] = sdf[grid.border].abs()
    sdf[0] = 0.0
    moved = grid.vertices + (torch.rand(grid.vertices.shape, generator=generator) - 0.5) * 0.4 * grid.cell
    vertices, faces = marching_tetrahedra(moved, sdf, grid.tetrahedra)
    assert torch.isfinite(vertices).all()
    directed = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    _, counts = torch.unique(directed, dim=0, return_counts=True)
    assert counts.max() == 1
    opposite = torch.unique(torch.cat([directed, directed.flip(1)]), dim=0)
    assert len(opposite) == len(directed)


def test_gradients_in_double_precision():
    grid = tetrahedral_grid(2)
    vertices = grid.vertices.double()
    generator = torch.Generator().manual_seed(0)
    sdf = torch.randn(len(vertices), dtype=torch.float64, generator=generator)
    sdf += 0.2 * sdf.sign()  # finite differences must not cross zero

    def surface(points, values):
        return marching_tetrahedra(points, values, grid.tetrahedra)[0]

    assert torch.autograd.gradcheck(surface, (vertices.requires_grad_(), sdf.requires_grad_()))


def test_the_formula():
    a, b = torch.tensor([0.0, 0, 0]), torch.tensor([1.0, 0, 0])
    corners = torch.stack([a, b, torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1])])
    vertices, _ = marching_tetrahedra(corners, torch.tensor([1.0, -3.0, 2.0, 2.0]), torch.tensor([[0, 1, 2, 3]]))
    assert torch.allclose(vertices[0], (a * -3 - b * 1) / (-3 - 1))


def test_tiny_and_huge_values_stay_finite():
    grid = tetrahedral_grid(4)
    for scale in (1e-30, 1e-12, 1e30):
        sdf = (ball(grid.vertices) * scale).requires_grad_()
        vertices, _ = marching_tetrahedra(grid.vertices, sdf, grid.tetrahedra)
        vertices.square().sum().backward()
        assert torch.isfinite(vertices).all()
        assert torch.isfinite(sdf.grad).all()
        assert vertices.norm(dim=1).max() < 1.0


def test_descent_moves_the_surface():
    """Pull the surface of a ball of 0.4 to 0.6, by the signed distances and by the vertices."""
    grid = tetrahedral_grid(12)
    sdf = ball(grid.vertices, 0.4).requires_grad_()
    shift = torch.zeros_like(grid.vertices).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [sdf], "lr": 0.02}, {"params": [shift], "lr": 0.002}])
    for _ in range(60):
        optimizer.zero_grad()
        limited = 0.5 * grid.cell * torch.tanh(shift)
        vertices, _ = marching_tetrahedra(grid.vertices + limited, sdf, grid.tetrahedra)
        loss = (vertices.norm(dim=1) - 0.6).square().mean()
        loss.backward()
        optimizer.step()
    assert (vertices.norm(dim=1) - 0.6).abs().max() < 0.03
    assert shift.detach().abs().max() > 0


def test_crossed_edges_carry_the_vertices():
    grid = tetrahedral_grid(6)
    sdf = ball(grid.vertices)
    edges = crossed_edges(sdf, grid.tetrahedra)
    vertices, _ = marching_tetrahedra(grid.vertices, sdf, grid.tetrahedra)
    assert len(edges) == len(vertices)
    assert (sdf[edges[:, 0]] < 0).all()
    assert (sdf[edges[:, 1]] >= 0).all()
    along = grid.vertices[edges]
    between = (vertices - along[:, 0]).norm(dim=1) + (vertices - along[:, 1]).norm(dim=1)
    assert torch.allclose(between, (along[:, 0] - along[:, 1]).norm(dim=1), atol=1e-5)
    assert crossed_edges(sdf.abs(), grid.tetrahedra).shape == (0, 2)


def test_chunks_change_nothing(monkeypatch):
    grid = tetrahedral_grid(6)
    whole = marching_tetrahedra(grid.vertices, ball(grid.vertices), grid.tetrahedra)
    monkeypatch.setattr("dreamkit.scenes.tetrahedra._CHUNK", 100)
    parts = marching_tetrahedra(grid.vertices, ball(grid.vertices), grid.tetrahedra)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_what_has_no_surface_is_explained():
    grid = tetrahedral_grid(4)
    with pytest.raises(SceneError, match=r"positive at all 125 .* larger shape"):
        marching_tetrahedra(grid.vertices, torch.ones(125), grid.tetrahedra)
    with pytest.raises(SceneError, match=r"negative at all 125 .* smaller shape"):
        marching_tetrahedra(grid.vertices, -torch.ones(125), grid.tetrahedra)
    broken = ball(grid.vertices)
    broken[3], broken[5] = float("nan"), float("inf")
    with pytest.raises(SceneError, match=r"signed distances are not finite at 2 of 125"):
        marching_tetrahedra(grid.vertices, broken, grid.tetrahedra)
    moved = grid.vertices.clone()
    moved[0, 1] = float("nan")
    with pytest.raises(SceneError, match=r"vertices are not finite at 1 of 125"):
        marching_tetrahedra(moved, ball(grid.vertices), grid.tetrahedra)


@pytest.mark.parametrize("resolution", [0, -1, MAX_RESOLUTION + 1, 2.5])
def test_resolutions_out_of_range(resolution):
    with pytest.raises(ConfigError, match="resolution"):
        tetrahedral_grid(resolution)


@pytest.mark.parametrize("half", [0.0, -1.0, float("nan"), float("inf")])
def test_cubes_without_a_size(half):
    with pytest.raises(ConfigError, match="half edge"):
        tetrahedral_grid(4, half)


def test_wrong_shapes():
    grid = tetrahedral_grid(2)
    with pytest.raises(ConfigError, match=r"\[G, 3\] and \[G\]"):
        marching_tetrahedra(grid.vertices, torch.zeros(26), grid.tetrahedra)
    with pytest.raises(ConfigError, match=r"int64 \[T, 4\]"):
        marching_tetrahedra(grid.vertices, torch.zeros(27), grid.tetrahedra.int())
