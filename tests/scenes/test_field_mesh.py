"""Surfaces of fields against the signed distances that they were cut from."""

import math

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.errors import ConfigError, SceneError
from dreamkit.metrics.geometry import chamfer_distance
from dreamkit.scenes import isosurface
from dreamkit.scenes.density_grid import Grid
from dreamkit.scenes.mesh import MeshConfig, field_mesh, sample_surface
from dreamkit.toyworld.geometry import Placed, signed_distance
from dreamkit.toyworld.geometry import sample_surface as sample_toy
from dreamkit.toyworld.objects import get_object

SMALL = MeshConfig(resolution=40)


def ball(points, radius=0.6):
    return points.norm(dim=1) - radius


def test_a_ball_with_its_colours():
    mesh = field_mesh(ball, lambda points: 0.5 + 0.5 * points, 1.0, SMALL)
    figures = mesh.figures()
    assert figures.watertight
    assert figures.manifold
    assert figures.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max() < 0.02
    assert np.allclose(mesh.colors, 0.5 + 0.5 * mesh.vertices, atol=1e-6)
    assert ((mesh.normals * mesh.vertices).sum(1) > 0.58).all()
    assert (field_mesh(ball, None, 1.0, SMALL).colors == 1).all()


def test_the_level_of_a_density():
    """As a NeRF's: sigma = 30 (1 - r) cut at 12 is a ball of radius 0.6."""
    mesh = field_mesh(lambda points: 12 - 30 * (1 - points.norm(dim=1)), None, 1.0, SMALL)
    assert np.linalg.norm(mesh.vertices, axis=1).mean() == pytest.approx(0.6, abs=0.005)


@pytest.mark.parametrize("name", ["mug", "chair"])
def test_toy_objects_to_a_percent_of_their_size(name):
    thing = [Placed(get_object(name))]
    mesh = field_mesh(
        lambda points: signed_distance(thing, points), None, 1.0, MeshConfig(resolution=64, max_faces=10_000)
    )
    figures = mesh.figures()
    assert figures.watertight
    assert figures.manifold
    assert figures.components == 1
    generator = torch.Generator().manual_seed(0)
    points, normals, _ = sample_surface(mesh, 12_000, generator)
    outside, toy_normals = sample_toy(thing, 12_000, generator)
    low, high = np.array(figures.bounding_box)
    size = float(np.linalg.norm(high - low))
    # About half of the percent is what two samplings of one surface are apart; the signed distances have no such floor.
    assert chamfer_distance(points, outside) < 0.01 * size
    assert signed_distance(thing, points).abs().mean() < 0.001 * size
    assert normals.shape == toy_normals.shape


def test_what_reaches_out_of_the_cube_is_closed_at_its_faces():
    mesh = field_mesh(lambda points: points[:, 1], None, 0.5, SMALL)
    figures = mesh.figures()
    assert figures.watertight
    assert figures.volume == pytest.approx(0.5, rel=0.1)
    assert np.abs(mesh.vertices).max() < 0.5 + 1 / 39


def test_cavities_fill_and_specks_go():
    def shell(points):
        radius = points.norm(dim=1)
        hollow = torch.maximum(radius - 0.6, 0.3 - radius)
        return torch.minimum(hollow, (points - 0.85).norm(dim=1) - 0.07)

    figures = field_mesh(shell, None, 1.0, SMALL).figures()
    assert figures.components == 1
    assert figures.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.02)
    assert field_mesh(shell, None, 1.0, MeshConfig(resolution=40, min_component=0.0)).figures().components == 2


def test_solid_parts_at_a_negative_level():
    values = np.full((12, 12, 12), -9.0, np.float32)
    values[2:8, 2:8, 2:8] = 1.0
    values[4, 4, 4] = -9.0
    values[10, 10, 10] = -0.5
    solid = isosurface.keep_solid_parts(Grid(values, np.zeros(3, np.float32), 1.0), -1.0, 0.5).values > -1.0
    assert solid.sum() == 6**3
    assert solid[2:8, 2:8, 2:8].all()


def test_chunks_change_nothing(monkeypatch):
    whole = field_mesh(ball, lambda points: points.abs(), 1.0, SMALL)
    monkeypatch.setattr(isosurface, "_CHUNK", 1000)
    sizes = []

    def counted(points):
        sizes.append(len(points))
        return ball(points)

    parts = field_mesh(counted, lambda points: points.abs(), 1.0, SMALL)
    assert max(sizes) == 40**2  # a plane at least
    for name in ("vertices", "faces", "colors", "normals"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_no_gradients_are_kept():
    weight = torch.ones(1, requires_grad=True)
    mesh = field_mesh(lambda points: weight * ball(points), lambda points: weight * points.abs(), 1.0, SMALL)
    assert weight.grad is None
    assert isinstance(mesh.vertices, np.ndarray)


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (lambda p: ball(p) + 2, r"nowhere above its iso level.*half edge 1 .*misses by 1\.4.*lower level"),
        (lambda p: ball(p) - 9, r"above its iso level everywhere.*higher level"),
        (lambda p: torch.full_like(p[:, 0], float("nan")), r"signed distance is not finite at \d+ of"),
        (lambda p: torch.where(p[:, 0] > 0.99, float("inf"), ball(p)), "not finite"),
        (lambda p: p, r"came as \(\d+, 3\)"),
    ],
)
def test_fields_without_a_surface_are_explained(field, reason):
    with pytest.raises(SceneError, match=reason):
        field_mesh(field, None, 1.0, SMALL)


def test_colours_that_are_broken():
    with pytest.raises(SceneError, match="colour is not finite"):
        field_mesh(ball, lambda points: points * float("nan"), 1.0, SMALL)
    with pytest.raises(SceneError, match=r"colour of .* came as"):
        field_mesh(ball, lambda points: points[:, :2], 1.0, SMALL)
    assert field_mesh(ball, lambda points: points * 100, 1.0, SMALL).colors.max() == 1


@pytest.mark.parametrize("half", [0.0, -1.0, float("nan"), float("inf")])
def test_cubes_without_a_size(half):
    with pytest.raises(ConfigError, match="half edge"):
        field_mesh(ball, None, half, SMALL)


@pytest.mark.parametrize("count", [0, 1, 3, -5])
def test_too_few_faces_are_refused(count):
    sphere = trimesh.creation.icosphere(1)
    with pytest.raises(ConfigError, match=f"decimated to {count} triangles.*at least 4"):
        isosurface.decimate(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), count)
    with pytest.raises(ConfigError, match=f"max_faces is {count}.*at least 4"):
        MeshConfig(max_faces=count)


@pytest.mark.parametrize("count", [4, 8, 20, 100])
def test_few_faces_are_still_closed(count):
    figures = field_mesh(ball, None, 1.0, MeshConfig(resolution=24, max_faces=count)).figures()
    assert figures.watertight
    assert figures.faces <= max(2 * count, 16)
    assert 0 < figures.volume < 4 / 3 * math.pi * 0.7**3
