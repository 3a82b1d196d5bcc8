import math

import pytest
import torch

from dreamkit.errors import CheckpointError, ConfigError, SceneError
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.mesh_scene import MeshScene, Surface, normal_consistency, sign_entropy
from dreamkit.scenes.static_mesh import StaticMesh
from dreamkit.scenes.tetrahedra import tetrahedral_grid
from dreamkit.scenes.trainable import Moment
from dreamkit.scenes.triangles import Mesh, TexturedMesh

TINY = HashNetworkConfig(levels=3, log2_size=10, coarsest=4, finest=16, hidden=8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def config(**options):
    return MeshSceneConfig(**{"grid": TINY, "resolution": 16, "background": "black", **options})


def moment(progress=0.0):
    return Moment(progress, 100, generator())


def test_the_first_scene_is_a_gray_sphere():
    scene = MeshScene.initialise(config(), generator())
    with torch.no_grad():
        rendering = scene.render(Camera.orbit(30.0, 20.0, 3.0, height=64, width=64), torch.zeros(3))
        surface = scene.surface()
    assert torch.allclose(surface.vertices.norm(dim=1), torch.tensor(0.5), atol=0.02)
    assert float((surface.normals * surface.vertices).sum(dim=1).min()) > 0.45
    # A sphere of radius r at distance d fills a circle of tan(asin(r / d)) in the picture's plane.
    focal = 32 / math.tan(math.radians(20))
    area = math.pi * (focal * math.tan(math.asin(0.5 / 3.0))) ** 2
    assert float(rendering.alpha.sum()) == pytest.approx(area, rel=0.03)
    middle = (0, slice(None), 32, 32)
    assert float(rendering.depth[middle]) == pytest.approx(2.5, abs=0.03)
    assert torch.allclose(rendering.image[middle], torch.tensor(0.5), atol=0.05)
    toward = Camera.orbit(30.0, 20.0, 3.0).position[0] / 3
    assert float(rendering.normal[middle] @ toward) > 0.97


def test_gradients_move_the_outline_and_the_paint():
    scene = MeshScene.initialise(config(table_rate=0.05, network_rate=0.03), generator())
    scene.make_optimizers()
    camera = turntable(2, height=32, width=32)
    small = MeshScene.initialise(config(radius=0.4), generator())
    with torch.no_grad():
        small.paint.bias.fill_(4.0)
        wanted = small.render(camera, torch.zeros(3))
    losses = []
    for step in range(60):
        now = moment(step / 60)
        scene.set_learning_rates(now.progress, 100)
        rendering = scene.render_training(camera, torch.zeros(2, 3), Moment(now.progress, 100, generator(step)))
        plain = scene.render(camera, torch.zeros(3))
        loss = 1000 * (plain.image - wanted.image).square().mean()
        torch.stack([loss, *(0.01 * p for p in scene.penalties(rendering, now).values())]).sum().backward()
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    with torch.no_grad():
        across = scene.surface().vertices.norm(dim=1)
    assert float(across.mean()) < 0.47


def test_normal_consistency_by_hand():
    flat = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    assert float(normal_consistency(Surface(flat, faces, flat))) == pytest.approx(0.0, abs=1e-6)
    bent = flat.clone()
    bent[3] = torch.tensor([0.5, 0.5, math.sqrt(0.5)])  # folded by a right angle about the diagonal
    assert float(normal_consistency(Surface(bent, faces, bent))) == pytest.approx(1.0, abs=1e-5)


def test_sign_entropy_prefers_agreement():
    grid = tetrahedral_grid(8)
    shallow = grid.vertices.norm(dim=1) - 0.5
    speckled = shallow.clone()
    speckled[::7] *= -1
    assert float(sign_entropy(speckled, grid.tetrahedra)) > 0
    # Confident distances on both sides of the surface cost more than hesitant ones: they pull it shut.
    assert float(sign_entropy(10 * shallow, grid.tetrahedra)) > float(sign_entropy(shallow, grid.tetrahedra))


def test_from_a_field_keeps_shape_and_colours():
    def box(points):
        return 5 * (points.abs().amax(dim=1) - 0.4)  # of any scale

    def colors(points):
        return (points > 0).float() * 0.8 + 0.1

    scene = MeshScene.from_field(config(resolution=24, grid=HashNetworkConfig()), box, colors, generator())
    with torch.no_grad():
        vertices = scene.surface().vertices
        assert torch.allclose(vertices.abs().amax(dim=1), torch.tensor(0.4), atol=0.03)
        points = torch.tensor([[0.4, 0.2, 0.2], [-0.4, -0.2, 0.2], [0.2, 0.4, -0.2]])
        assert torch.allclose(scene.colors(points), colors(points), atol=0.12)


def test_state_goes_round_and_seeds_repeat():
    first, second = (MeshScene.initialise(config(), generator(3)) for _ in range(2))
    camera = Camera.orbit(0.0, 0.0, 3.0, height=16, width=16)
    one, two = (scene.render_training(camera, None, moment()).image for scene in (first, second))
    assert torch.equal(one, two)
    copy = MeshScene(first.state(), first.config)
    assert torch.equal(copy.render(camera).image, first.render(camera).image)


def test_bad_states_and_configs_are_refused():
    scene = MeshScene.initialise(config(), generator())
    state = scene.state()
    with pytest.raises(CheckpointError, match="shape"):
        MeshScene(state, config(resolution=8))
    broken = {**state, "distances": state["distances"].clone().fill_(math.nan)}
    with pytest.raises(CheckpointError, match="not finite"):
        MeshScene(broken, scene.config)
    for options, text in [
        ({"resolution": 4}, "resolution"),
        ({"radius": 2.0}, "radius"),
        ({"background": "x"}, "back"),
    ]:
        with pytest.raises(ConfigError, match=text):
            config(**options)
    gone = MeshScene({**state, "distances": state["distances"].abs() + 1}, scene.config)
    with pytest.raises(SceneError, match="no surface"):
        gone.render(Camera.orbit(0.0, 0.0, 3.0, height=8, width=8))
    with pytest.raises(SceneError, match="not finite"):
        MeshScene.from_field(config(), lambda p: p[:, 0] * math.nan, lambda p: p, generator())


def square(textured):
    vertices = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]).numpy()
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32).numpy()
    normals = torch.tensor([[0.0, 0, 1]] * 4).numpy()
    colors = torch.tensor([[1.0, 0, 0]] * 4).numpy()
    if not textured:
        return Mesh(vertices, faces, colors, normals)
    uvs = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]]).numpy()
    texture = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 1, 1]]])
    return TexturedMesh(vertices, faces, colors, normals, uvs, texture.numpy())


def test_static_meshes_show_vertex_colours_and_textures():
    camera = Camera.orbit(0.0, 0.0, 3.0, height=32, width=32)
    plain = StaticMesh(square(False)).render(camera, torch.zeros(3))
    assert torch.allclose(plain.image[0, :, 16, 16], torch.tensor([1.0, 0, 0]))
    assert float(plain.depth[0, 0, 16, 16]) == pytest.approx(3.0, abs=1e-4)
    assert float(plain.normal[0, 2, 16, 16]) == pytest.approx(1.0)
    image = StaticMesh(square(True)).render(camera, torch.zeros(3)).image[0]
    # Top left of the picture is the texture's first texel.
    for row, column, wanted in [
        (10, 10, [1.0, 0, 0]),
        (10, 21, [0.0, 1, 0]),
        (21, 10, [0.0, 0, 1]),
        (21, 21, [1.0, 1, 1]),
    ]:
        assert torch.allclose(image[:, row, column], torch.tensor(wanted), atol=0.25), (row, column)
