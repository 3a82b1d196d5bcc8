import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError, ConfigError, SceneError
from dreamkit.scenes import initialisation, regularisers
from dreamkit.scenes.cameras import Camera, CameraSampler, turntable
from dreamkit.scenes.gaussians import SH_C0, GaussianConfig, GaussianScene
from dreamkit.scenes.mesh import quaternion_matrices
from dreamkit.scenes.rendering import background_colors
from dreamkit.scenes.trainable import Moment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def penalties(scene, progress):
    return scene.penalties(None, Moment(progress, 100, generator()))


def axes_scene(sh_degree=None):
    """A red blob on +x, a green one on +y, a blue one on +z, small and opaque."""
    points = torch.eye(3) * 0.5
    config = GaussianConfig(initialisation="points", initial_opacity=0.95, initial_scale=0.1, sh_degree=sh_degree)
    return GaussianScene.initialise(config, generator(), points, torch.eye(3))


@pytest.mark.parametrize("sh_degree", [None, 0, 2])
def test_right_is_right_and_up_is_up(sh_degree):
    cameras = Camera.orbit([0.0, 90.0, 0.0], [0.0, 0.0, 90.0], 3.0)
    rendering = axes_scene(sh_degree).render(cameras, torch.zeros(3))
    pixels, _ = cameras.project(torch.eye(3) * 0.5)
    for view in range(3):
        for blob in range(3):
            u, v = pixels[view, blob].floor().long().tolist()
            color = rendering.image[view, :, v, u]
            hidden = float(pixels[view, blob].sub(32).abs().max()) < 1  # one axis points at the camera
            assert color[blob] > 0.5 or hidden
    # In front: red right of the centre, green above it.
    image = rendering.image[0].detach()
    assert float(image[0, :, 33:].sum()) > 20 * float(image[0, :, :31].sum())
    assert float(image[1, :31].sum()) > 20 * float(image[1, 33:].sum())


def test_alpha_depth_normal_and_background():
    normals = torch.nn.functional.normalize(initialisation.ball_points(3000, 1.0, generator()), dim=-1)
    config = GaussianConfig(count=3000, initialisation="shape", initial_opacity=0.95, initial_scale=1.0)
    scene = GaussianScene.initialise(config, generator(), normals * 0.6, None, normals)
    camera = Camera.orbit(30.0, 20.0, 3.0)
    background = torch.tensor([[0.2, 0.4, 0.9]])
    with torch.no_grad():
        rendering = scene.render(camera, background)
    assert torch.allclose(rendering.image[0, :, 0, 0], background[0])
    assert float(rendering.alpha[0, 0, 0, 0]) == 0.0
    centre = (0, slice(None), 32, 32)
    assert float(rendering.alpha[centre]) == pytest.approx(1.0, abs=0.01)
    assert float(rendering.depth[centre]) == pytest.approx(2.4, abs=0.05)  # the near side of the ball
    assert torch.allclose(rendering.normal[centre], camera.camera_to_world[0, :3, 2], atol=0.1)  # toward the camera
    black = scene.render(camera, torch.zeros(3))
    composed = black.image + (1 - black.alpha) * background[0, :, None, None]
    assert torch.allclose(composed, rendering.image, atol=1e-5)


def test_image_stays_in_range_and_keeps_its_gradient():
    scene = axes_scene(sh_degree=0)
    with torch.no_grad():
        scene.parameters_dict()["sh_base"].fill_(4.0)  # far brighter than white
    camera = Camera.orbit(0.0, 0.0, 3.0)
    rendering = scene.render(camera, torch.zeros(3))
    assert float(rendering.image.detach().max()) <= 1.0 + 1e-6
    rendering.image.sum().backward()
    assert float(scene.parameters_dict()["sh_base"].grad.abs().min()) > 0


def test_a_few_steps_fit_a_picture():
    sampler = CameraSampler(elevation_range=(0, 30))
    points = initialisation.ball_points(400, 0.5, generator(1))
    colors = (points + 0.5).clamp(0, 1)
    config = GaussianConfig(count=400, initialisation="points", initial_opacity=0.8, initial_scale=1.0)
    target = GaussianScene.initialise(config, generator(1), points, colors)
    scene = GaussianScene.initialise(GaussianConfig(count=400, background="black"), generator(2))
    scene.make_optimizers()
    draws = generator(3)
    losses = []
    for step in range(60):
        scene.set_learning_rates(step / 60)
        cameras = sampler.sample(2, draws, 32, 32)
        with torch.no_grad():
            wanted = target.render(cameras, torch.zeros(3)).image
        loss = (scene.render(cameras).image - wanted).square().mean()
        loss.backward()
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.1 * sum(losses[:5])


def test_sphere_initialisation_is_uniform_in_the_ball():
    scene = GaussianScene.initialise(GaussianConfig(count=20_000, initial_radius=0.7), generator())
    radius = scene.means.detach().norm(dim=-1)
    assert float(radius.max()) <= 0.7
    # P(r < x) = (x / R)^3
    for share in (0.3, 0.6, 0.9):
        assert float((radius < 0.7 * share).float().mean()) == pytest.approx(share**3, abs=0.01)
    assert torch.allclose(scene.means.detach().mean(0), torch.zeros(3), atol=0.01)
    assert torch.allclose(scene.opacities, torch.full((20_000,), 0.1))
    assert float((scene.colors.detach() - 0.5).abs().max()) <= 0.1 + 1e-5
    assert scene.scales.unique().numel() == 1


def test_cloud_and_shape_initialisation():
    lattice = torch.cartesian_prod(*[torch.arange(5.0)] * 3) * 0.1
    config = GaussianConfig(initialisation="points", initial_scale=0.5, count=1000)
    scene = GaussianScene.initialise(config, generator(), lattice, lattice * 2)
    assert torch.allclose(scene.means, lattice)
    assert torch.allclose(scene.scales, torch.full((125, 3), 0.05), atol=1e-6)  # half the lattice's spacing
    assert torch.allclose(scene.colors, (lattice * 2).clamp(1e-3, 1 - 1e-3), atol=1e-5)
    normals = torch.randn(125, 3, generator=generator())
    normals[0], normals[1] = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 5.0])
    config = GaussianConfig(initialisation="shape", flatness=0.25, count=60)
    scene = GaussianScene.initialise(config, generator(), lattice, None, normals)
    assert len(scene) == 60
    assert torch.allclose(scene.scales[:, 2] / scene.scales[:, 0], torch.tensor(0.25), atol=1e-5)
    thin = quaternion_matrices(initialisation.align_to_normals(normals))[:, :, 2]
    assert torch.allclose(thin, torch.nn.functional.normalize(normals, dim=-1), atol=1e-5)


def test_a_lone_point_and_doubles_get_a_size():
    assert initialisation.neighbour_distance(torch.zeros(1, 3)).tolist() == pytest.approx([0.1])
    assert initialisation.neighbour_distance(torch.zeros(4, 3)).tolist() == pytest.approx([1e-4] * 4)


@pytest.mark.parametrize(
    ("mode", "cloud"),
    [
        ("points", {}),
        ("points", {"points": torch.zeros(0, 3)}),
        ("points", {"points": torch.zeros(4, 2)}),
        ("points", {"points": torch.zeros(4, 3), "colors": torch.zeros(3, 3)}),
        ("points", {"points": torch.full((4, 3), float("nan"))}),
        ("shape", {"points": torch.zeros(4, 3)}),
    ],
)
def test_bad_clouds_are_refused(mode, cloud):
    with pytest.raises(SceneError):
        GaussianScene.initialise(GaussianConfig(initialisation=mode), generator(), **cloud)


@pytest.mark.parametrize("sh_degree", [None, 0, 1, 3])
def test_state_round_trips_exactly_at_any_count(sh_degree):
    first = GaussianScene.initialise(GaussianConfig(count=7, sh_degree=sh_degree), generator(1))
    second = GaussianScene.initialise(GaussianConfig(count=30, sh_degree=sh_degree), generator(2))
    second.load_state(first.state())
    assert len(second) == 7
    for name, tensor in first.state().items():
        assert torch.equal(tensor, second.state()[name])
    assert GaussianScene(first.state()).sh_degree == sh_degree
    assert first.sh.shape == (7, ((sh_degree or 0) + 1) ** 2, 3)
    assert torch.allclose(0.5 + SH_C0 * first.sh[:, 0], first.colors, atol=1e-6)


def test_state_is_a_copy():
    scene = axes_scene()
    before = scene.state()
    with torch.no_grad():
        scene.means.add_(1.0)
    assert torch.equal(before["means"], torch.eye(3) * 0.5)


def broken(change):
    state = GaussianScene.initialise(GaussianConfig(count=4), generator()).state()
    change(state)
    return state


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("means"),
        lambda state: state.update(extra=torch.zeros(4)),
        lambda state: state.update(quaternions=torch.zeros(4, 3)),
        lambda state: state.update(opacity_logits=torch.zeros(5)),
        lambda state: state["log_scales"].fill_(float("inf")),
        lambda state: state.update({name: value[:0] for name, value in state.items()}),
        lambda state: state.update(sh_base=torch.zeros(4, 1, 3)),
    ],
)
def test_broken_states_are_refused_and_change_nothing(change):
    scene = axes_scene()
    before = scene.state()
    with pytest.raises(CheckpointError):
        scene.load_state(broken(change))
    assert all(torch.equal(before[name], value) for name, value in scene.state().items())


def test_resumed_training_is_bitwise_equal():
    def make():
        return GaussianScene.initialise(GaussianConfig(count=50, sh_degree=1), generator())

    def train(scene, steps):
        for step in steps:
            scene.set_learning_rates(step / 6)
            cameras = CameraSampler().sample(2, generator(step), 16, 16)
            scene.render(cameras).image.sum().backward()
            for optimizer in scene.optimizers.values():
                optimizer.step()
                optimizer.zero_grad()

    straight = make()
    straight.make_optimizers()
    train(straight, range(6))
    first = make()
    first.make_optimizers()
    train(first, range(3))
    second = GaussianScene(first.state(), first.config)
    second.make_optimizers()
    second.load_optimizer_state(first.optimizer_state())
    train(second, range(3, 6))
    for name, tensor in straight.state().items():
        assert torch.equal(tensor, second.state()[name])
    for name, tensor in straight.optimizer_state().items():
        assert torch.equal(tensor, second.optimizer_state()[name])
    other = GaussianScene.initialise(GaussianConfig(count=9, sh_degree=1), generator())
    other.make_optimizers()
    with pytest.raises(CheckpointError, match="another scene"):
        other.load_optimizer_state(first.optimizer_state())


def test_learning_rates_follow_their_schedules():
    config = GaussianConfig(count=4, means_rate=[0, 1.0, 0.0, 1.0], scales_rate=0.25, opacities_rate=[0, 0.0, 1.0, 100])
    scene = GaussianScene.initialise(config, generator())
    assert scene.make_optimizers()["means"].param_groups[0]["lr"] == 1.0
    rates = scene.set_learning_rates(0.5, 200)
    assert rates["means"] == 0.5
    assert rates["log_scales"] == 0.25
    assert rates["opacity_logits"] == 1.0
    assert scene.optimizers["means"].param_groups[0]["lr"] == 0.5


def test_regularisers_by_hand():
    assert float(regularisers.opacity_sparsity(torch.tensor([0.0, 1.0]))) == pytest.approx(math.log(3) / 2)
    assert float(regularisers.opacity_entropy(torch.tensor([0.0, 50.0, -50.0]))) == pytest.approx(math.log(2) / 3)
    log_scales = torch.tensor([[0.1, 0.1, 0.1], [0.3, 0.1, 0.05]]).log()
    assert float(regularisers.scale_size(log_scales, 0.1)) == pytest.approx(2.0, rel=1e-5)
    assert float(regularisers.scale_anisotropy(log_scales, 1.5)) == pytest.approx(math.log(2) / 2, rel=1e-5)
    disc = torch.tensor([[0.1, 0.1, 0.001]]).log()
    assert float(regularisers.scale_anisotropy(disc, 1.5)) == 0.0
    scene = GaussianScene.initialise(
        GaussianConfig(count=4, sparsity_weight=2.0, size_weight=Schedule(0.5, 0.0, 1.0, 1.0)), generator()
    )
    assert set(penalties(scene, 0.0)) == {"sparsity"}
    assert set(penalties(scene, 1.0)) == {"sparsity", "size"}
    assert float(penalties(scene, 0.0)["sparsity"].detach()) == pytest.approx(2 * math.log1p(2 * 0.01), rel=1e-4)


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_entropy_agrees_with_its_definition_and_has_finite_gradients(logits):
    tensor = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = regularisers.opacity_entropy(tensor)
    o = torch.sigmoid(tensor.detach())
    expected = -(torch.special.xlogy(o, o) + torch.special.xlogy(1 - o, 1 - o)).mean()
    assert float(value.detach()) == pytest.approx(float(expected), abs=1e-9)
    value.backward()
    assert bool(torch.isfinite(tensor.grad).all())


def test_backgrounds():
    assert background_colors("white", 2).tolist() == [[1.0] * 3] * 2
    assert background_colors("gray", 1).tolist() == [[0.5] * 3]
    assert background_colors("random", 1).tolist() == [[0.5] * 3]
    drawn = background_colors("random", 500, generator())
    assert drawn.unique(dim=0).shape[0] == 500
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ConfigError):
        background_colors("pink", 1)
    scene = axes_scene()
    with pytest.raises(SceneError, match="background"):
        scene.render(turntable(2), torch.zeros(3, 3))


@pytest.mark.parametrize(
    "values",
    [
        {"count": 0},
        {"initial_opacity": 1.0},
        {"initial_radius": float("nan")},
        {"initial_color": 1.5},
        {"flatness": 0.0},
        {"sh_degree": 4},
        {"background": "pink"},
        {"initialisation": "torus"},
        {"means_rate": -1.0},
        {"means_rate": "fast"},
        {"adam_betas": (0.9, 1.0)},
        {"needle_limit": 0.5},
    ],
)
def test_bad_configurations_are_refused(values):
    with pytest.raises(ConfigError):
        GaussianConfig(**values)


def test_same_seed_same_bytes():
    states = [GaussianScene.initialise(GaussianConfig(count=100), generator(5)).state() for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
