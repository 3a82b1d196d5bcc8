import math
from dataclasses import replace

import pytest
import torch

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.conversion import (
    colors_of,
    gaussians_of,
    half_light_level,
    inside_of,
    mesh_of,
    mesh_scene_of,
    shape_of,
)
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.isosurface import MeshConfig
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig

TINY = HashNetworkConfig(levels=3, log2_size=10, coarsest=4, finest=16, hidden=8)
CUT = MeshConfig(resolution=32, smoothing_steps=0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sphere(kind):
    """A gray sphere of radius 0.5 as any kind of scene."""
    if kind == "mesh":
        return MeshScene.initialise(MeshSceneConfig(grid=TINY, resolution=24), generator())
    if kind == "gaussians":
        return gaussians_of(mesh_of(sphere("mesh")), GaussianConfig(count=3000), generator())
    if kind == "density":
        # softplus(raw) density_scale with a steep blob: solid inside 0.5, nothing outside.
        config = NerfConfig(grid=TINY, blob=400.0, blob_floor=-400.0, blob_radius=0.5, occupancy_resolution=24)
        return NerfScene.initialise(config, generator())
    config = NerfConfig(grid=TINY, geometry=kind, sharpness=200.0, occupancy_resolution=24)
    return NerfScene.initialise(config, generator())


@pytest.mark.parametrize("kind", ["gaussians", "density", "volsdf", "neus", "mesh"])
def test_the_surface_of_every_kind(kind):
    mesh = mesh_of(sphere(kind), MeshConfig(resolution=64) if kind == "gaussians" else CUT)
    figures = mesh.figures()
    assert figures.watertight
    assert figures.manifold
    assert figures.components == 1
    tolerance = 0.1 if kind == "gaussians" else 0.03
    assert figures.volume == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=3 * tolerance)
    radius = torch.from_numpy(mesh.vertices).norm(dim=1)
    assert float((radius - 0.5).abs().mean()) < tolerance * 0.5
    assert abs(float(mesh.colors.mean()) - 0.5) < 0.05


@pytest.mark.parametrize("kind", ["gaussians", "density", "volsdf", "mesh"])
def test_a_mesh_scene_takes_over_shape_and_colours(kind):
    scene = mesh_scene_of(sphere(kind), MeshSceneConfig(resolution=24), generator())
    with torch.no_grad():
        surface = scene.surface()
        radius = surface.vertices.norm(dim=1)
        assert float((radius - 0.5).abs().mean()) < (0.05 if kind == "gaussians" else 0.02)
        assert torch.allclose(scene.colors(surface.vertices), torch.tensor(0.5), atol=0.08)


@pytest.mark.parametrize("kind", ["density", "volsdf", "mesh"])
def test_gaussians_on_the_surface_look_like_the_scene(kind):
    scene = sphere(kind)
    splats = gaussians_of(mesh_of(scene, CUT), GaussianConfig(count=6000), generator())
    assert torch.allclose(splats.means.norm(dim=1), torch.tensor(0.5), atol=0.05)
    camera = Camera.orbit(40.0, 20.0, 3.0, height=96, width=96)
    white = torch.ones(3)
    with torch.no_grad():
        first, second = (it.render(camera, white) for it in (scene, splats))
    assert float((first.alpha - second.alpha).abs().mean()) < 0.03
    assert float((first.image - second.image).abs().mean()) < 0.03


def test_where_rays_lose_half_of_their_light():
    scene = sphere("density")
    # raw = 400 (1 - r / 0.5) + a little: half the light is gone right behind the surface.
    assert abs(half_light_level(scene)) < 400 * 0.15
    assert half_light_level(sphere("volsdf")) == 0.0


def test_an_empty_scene_says_so():
    empty = NerfScene.initialise(NerfConfig(grid=TINY, density_scale=1e-6, occupancy_resolution=16), generator())
    with pytest.raises(SceneError, match="empty"):
        mesh_of(empty, CUT)


def test_inside_and_colours_of_a_mesh():
    mesh = mesh_of(sphere("mesh"))
    inside, colors = inside_of(mesh), colors_of(mesh)
    points = torch.tensor([[0.0, 0.0, 0.4], [0.0, 0.6, 0.0], [0.7, 0.7, 0.0]])
    assert inside(points).tolist() == pytest.approx([-0.1, 0.1, 0.49], abs=0.02)
    assert torch.allclose(colors(points), torch.tensor(0.5), atol=0.05)
    assert shape_of(sphere("gaussians")).half < 0.65


def test_what_is_larger_than_the_cube_keeps_its_size_through_a_checkpoint():
    small = mesh_of(sphere("mesh"))
    wide = replace(small, vertices=small.vertices * 2.6)
    splats = gaussians_of(wide, GaussianConfig(count=3000), generator())
    config = MeshSceneConfig(resolution=24)
    scene = mesh_scene_of(splats, config, generator())
    again = MeshScene(scene.state(), config)
    with torch.no_grad():
        first, second = (it.surface().vertices for it in (scene, again))
        assert torch.equal(first, second)
        assert float((first.norm(dim=1) - 1.3).abs().mean()) < 0.1
        assert torch.equal(scene.colors(first), again.colors(second))
