import math

import numpy as np
import pytest
import torch
import trimesh

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes import isosurface, triangles
from dreamkit.scenes import mesh as extraction
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.density_grid import LOW_PASS, Grid, Splats, density_grid
from dreamkit.scenes.gaussians import GaussianConfig, GaussianScene
from dreamkit.scenes.mesh import MeshConfig, extract_mesh
from dreamkit.scenes.surface_level import orthographic_depth


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def directions(count):
    """Points spread evenly on the unit sphere (Fibonacci)."""
    index = torch.arange(count) + 0.5
    y = 1 - 2 * index / count
    angle = index * math.pi * (3 - math.sqrt(5))
    ring = (1 - y * y).sqrt()
    return torch.stack([ring * angle.cos(), y, ring * angle.sin()], -1)


def ball(count=2500, radius=0.6, centre=(0.0, 0.0, 0.0)):
    """Points, colours (by direction) and normals of a ball's skin."""
    normals = directions(count)
    return normals * radius + torch.tensor(centre), 0.5 + 0.5 * normals, normals


def skin(points, colors, normals):
    config = GaussianConfig(count=len(points), initialisation="shape", initial_opacity=0.9, initial_scale=0.8)
    return GaussianScene.initialise(config, generator(), points, colors, normals)


@pytest.fixture(scope="module")
def ball_mesh():
    return extract_mesh(skin(*ball()), MeshConfig(resolution=80, max_faces=8000))


def test_a_ball_has_its_radius_and_volume(ball_mesh):
    radius = np.linalg.norm(ball_mesh.vertices, axis=1)
    assert radius.mean() == pytest.approx(0.6, rel=0.04)
    assert radius.std() < 0.01
    figures = ball_mesh.figures()
    assert figures.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.12)
    assert figures.watertight
    assert figures.components == 1
    assert 4000 < figures.faces <= 8000
    assert np.allclose(figures.bounding_box, [[-0.6] * 3, [0.6] * 3], atol=0.03)


def test_normals_point_outward_and_colors_are_the_gaussians(ball_mesh):
    outward = ball_mesh.vertices / np.linalg.norm(ball_mesh.vertices, axis=1, keepdims=True)
    assert (np.einsum("vk,vk->v", ball_mesh.normals, outward) > 0.95).all()
    assert np.abs(ball_mesh.colors - (0.5 + 0.5 * outward)).max() < 0.05
    body = trimesh.Trimesh(ball_mesh.vertices, ball_mesh.faces, process=False)
    assert body.is_winding_consistent
    # trimesh weighs by angle, so at slivers they differ.
    assert (np.einsum("vk,vk->v", body.vertex_normals, ball_mesh.normals) > 0.95).mean() > 0.99


def test_the_outline_is_that_of_the_render():
    """The reason for the choice of level: mesh and picture cover the same pixels."""
    points = torch.randn(1500, 3, generator=generator()) * torch.tensor([0.3, 0.15, 0.2])
    config = GaussianConfig(count=1500, initialisation="points", initial_opacity=0.5, initial_scale=0.8)
    scene = GaussianScene.initialise(config, generator(), points)
    mesh = extract_mesh(scene, MeshConfig(resolution=96))
    cameras = Camera.orbit([20.0, 110.0], [10.0, 30.0], 3.0, height=96, width=96)
    with torch.no_grad():
        covered = scene.render(cameras).alpha[:, 0] > 0.5
    samples = trimesh.sample.sample_surface(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False), 60_000, seed=0)[
        0
    ]
    pixels, _ = cameras.project(torch.tensor(np.asarray(samples), dtype=torch.float32))
    for view in range(2):
        mask = torch.zeros(96, 96, dtype=torch.bool)
        u, v = pixels[view].floor().long().clamp(0, 95).unbind(-1)
        mask[v, u] = True
        overlap = (mask & covered[view]).sum() / (mask | covered[view]).sum()
        assert float(overlap) > 0.88


def splats(count=40):
    config = GaussianConfig(count=count, initialisation="points", initial_opacity=0.7)
    scene = GaussianScene.initialise(config, generator(), torch.randn(count, 3, generator=generator(1)) * 0.3)
    with torch.no_grad():
        scene.parameters_dict()["log_scales"].add_(torch.randn(count, 3, generator=generator(2)) * 0.5)
        scene.parameters_dict()["quaternions"].copy_(torch.randn(count, 4, generator=generator(3)))
    return extraction.scene_splats(scene)


def test_the_grid_is_the_sum_of_the_gaussians():
    cloud = splats()
    grid = density_grid(cloud, 40)
    cloud = cloud.smoothed(LOW_PASS * grid.voxel**2)
    shape = np.array(grid.values.shape)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    offsets = (grid.origin + grid.voxel * index)[:, None].astype(np.float64) - cloud.means
    squared = np.einsum("pni,nij,pnj->pn", offsets, np.linalg.inv(cloud.covariances.astype(np.float64)), offsets)
    terms = cloud.opacities * np.exp(-0.5 * squared)
    values = grid.values.reshape(-1)
    padding = ((index < 2) | (index >= shape - 2)).any(1)
    assert (values[padding] == 0).all()
    # Every Gaussian counts within its 3-sigma ellipsoid, and may count in the corners of its box.
    inside = np.where(squared < 9, terms, 0).sum(1)
    assert (values[~padding] >= inside[~padding] - 1e-4).all()
    assert (values <= terms.sum(1) + 1e-4).all()


def test_thin_discs_do_not_fall_through_the_grid():
    points, colors, normals = ball(2000, 0.6)
    scene = skin(points, colors, normals)
    with torch.no_grad():
        scene.parameters_dict()["log_scales"][:, 2] = -9.0  # a hundredth of a voxel
    figures = extract_mesh(scene, MeshConfig(resolution=48)).figures()
    assert figures.watertight
    assert figures.components == 1
    assert figures.volume == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.15)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_orthographic_depth_is_where_the_gaussians_are(axis, sign):
    """Small blobs at grid points: each is hit on its own grid line, at its own plane."""
    grid = Grid(np.zeros((20, 26, 32), np.float32), np.array([-0.9, -1.2, -1.6], np.float32), 0.1)
    points = np.array([[4, 7, 25], [15, 20, 6], [9, 3, 15]])
    config = GaussianConfig(count=3, initialisation="points", initial_opacity=0.99)
    scene = GaussianScene.initialise(config, generator(), torch.tensor(grid.origin + grid.voxel * points).float())
    with torch.no_grad():
        scene.parameters_dict()["log_scales"].fill_(math.log(0.03))
    depth = orthographic_depth(scene, grid, axis, sign)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    assert depth.shape == (grid.values.shape[first], grid.values.shape[second])
    assert np.isfinite(depth).sum() == 3
    for point in points:
        plane = point[axis] if sign > 0 else grid.values.shape[axis] - 1 - point[axis]
        assert depth[point[first], point[second]] == pytest.approx(plane, abs=0.1)


def test_specks_go_and_cavities_fill():
    values = np.zeros((30, 30, 30), np.float32)
    values[5:20, 5:20, 5:20] = 1.0
    values[10:14, 10:14, 10:14] = 0.0  # a cavity
    values[25:27, 25:27, 25:27] = 1.0  # a speck
    solid = isosurface.keep_solid_parts(Grid(values, np.zeros(3, np.float32), 1.0), 0.5, 0.02)
    expected = np.zeros_like(values, bool)
    expected[5:20, 5:20, 5:20] = True
    assert ((solid.values > 0.5) == expected).all()
    both = isosurface.keep_solid_parts(Grid(values, np.zeros(3, np.float32), 1.0), 0.5, 0.0)
    assert (both.values > 0.5).sum() == expected.sum() + 8


def test_two_balls_stay_two_and_a_floater_costs_nothing():
    first, second = ball(1200, 0.25, (-0.4, 0.0, 0.0)), ball(1200, 0.25, (0.4, 0.0, 0.0))
    parts = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    stray = (torch.tensor([[40.0, 0.0, 0.0]]), torch.ones(1, 3), torch.ones(1, 3))
    config = GaussianConfig(count=3000, initialisation="shape", initial_opacity=0.9, initial_scale=0.8)
    points, colors, normals = (torch.cat(pair) for pair in zip(parts, stray, strict=True))
    scene = GaussianScene.initialise(config, generator(), points, colors, normals)
    with torch.no_grad():
        scene.parameters_dict()["log_scales"][-1] = -3.0
    figures = extract_mesh(scene, MeshConfig(resolution=64)).figures()
    assert figures.components == 2
    assert figures.watertight
    assert np.abs(figures.bounding_box).max() < 0.75


def test_hidden_colors_stay_hidden():
    """White fog inside a red shell, close under it, must not bleach the mesh."""
    points, _, normals = ball(2500, 0.6)
    red = torch.tensor([[0.9, 0.05, 0.05]]).expand(2500, 3)
    core = ball(800, 0.55)
    scene = skin(torch.cat([points, core[0]]), torch.cat([red, torch.ones(800, 3)]), torch.cat([normals, core[2]]))
    mesh = extract_mesh(scene, MeshConfig(resolution=64))
    assert np.abs(mesh.colors - [0.9, 0.05, 0.05]).max() < 0.1


def test_visibility_is_zero_behind_an_opaque_shell():
    points, colors, normals = ball(2500, 0.6)
    hidden = torch.zeros(1, 3)
    scene = skin(torch.cat([points, hidden]), torch.cat([colors, hidden]), torch.cat([normals, torch.ones(1, 3)]))
    with torch.no_grad():
        scene.parameters_dict()["log_scales"][-1] = -4.0
    visibility = extraction.gaussian_visibility(scene)
    assert visibility.shape == (2501,)
    assert visibility[-1] < 0.05 * visibility[:-1].mean()
    assert (visibility[:-1] > 0).mean() > 0.99


def test_smoothing_keeps_the_volume_and_flattens():
    sphere = trimesh.creation.icosphere(4)
    noisy = (sphere.vertices * (1 + 0.02 * np.random.default_rng(0).standard_normal((len(sphere.vertices), 1)))).astype(
        np.float32
    )
    faces = sphere.faces.astype(np.int32)
    smoothed = isosurface.smooth(noisy, faces, 8)
    assert np.linalg.norm(smoothed, axis=1).std() < 0.5 * np.linalg.norm(noisy, axis=1).std()
    assert triangles.signed_volume(smoothed, faces) == pytest.approx(triangles.signed_volume(noisy, faces), rel=0.02)
    assert isosurface.smooth(noisy, faces, 0) is noisy


def test_decimation_keeps_a_surface_closed():
    sphere = trimesh.creation.icosphere(5)
    vertices, faces = isosurface.decimate(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), 2000)
    body = trimesh.Trimesh(vertices, faces, process=False)
    assert len(faces) <= 2000
    assert body.is_watertight
    assert body.volume == pytest.approx(4 / 3 * math.pi, rel=0.02)


@pytest.mark.parametrize("opacity", [0.001, 0.03])
def test_an_empty_scene_has_no_surface(opacity):
    config = GaussianConfig(count=20, initial_opacity=opacity)
    with pytest.raises(SceneError, match="surface"):
        extract_mesh(GaussianScene.initialise(config, generator()))


def test_a_level_that_is_never_reached():
    with pytest.raises(SceneError, match="nowhere above"):
        extract_mesh(skin(*ball(500)), MeshConfig(level=1e6, resolution=32))


def test_one_gaussian_is_an_ellipsoid():
    config = GaussianConfig(count=1, initialisation="points", initial_opacity=0.95)
    scene = GaussianScene.initialise(config, generator(), torch.zeros(1, 3), torch.tensor([[0.2, 0.4, 0.6]]))
    with torch.no_grad():
        scene.parameters_dict()["log_scales"].copy_(torch.tensor([[0.1, 0.2, 0.4]]).log())
    mesh = extract_mesh(scene, MeshConfig(resolution=64))
    _, high = mesh.figures().bounding_box
    # alpha = 1/2 is at sqrt(2 log(2 o)) standard deviations
    assert np.allclose(high, math.sqrt(2 * math.log(1.9)) * np.array([0.1, 0.2, 0.4]), rtol=0.1)
    assert np.allclose(mesh.colors, [0.2, 0.4, 0.6], atol=1e-3)


def test_splats_hold_the_covariances():
    scene = GaussianScene.initialise(GaussianConfig(count=1), generator())
    with torch.no_grad():
        scene.parameters_dict()["log_scales"].copy_(torch.tensor([[0.1, 0.2, 0.4]]).log())
        scene.parameters_dict()["quaternions"].copy_(torch.tensor([[1.0, 0.0, 0.0, 1.0]]))  # a quarter turn about z
    cloud: Splats = extraction.scene_splats(scene)
    assert np.allclose(cloud.covariances[0], np.diag([0.04, 0.01, 0.16]), atol=1e-6)


@pytest.mark.parametrize(
    "values", [{"resolution": 4}, {"level": 0.0}, {"min_opacity": 2.0}, {"max_faces": 3}, {"smoothing_steps": -1}]
)
def test_bad_configurations_are_refused(values):
    with pytest.raises(ConfigError):
        MeshConfig(**values)
