import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.errors import CheckpointError, ConfigError, SceneError
from dreamkit.scenes import ray_losses
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.field import Field
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.ray_sampling import OccupancySampler, OccupancyUpkeep, RayBundle, box_range, proposal_loss
from dreamkit.scenes.shading import Lighting, draw_lighting
from dreamkit.scenes.surroundings import EnvironmentMap, LearnedBackground
from dreamkit.scenes.tracing import Tracer, chosen
from dreamkit.scenes.trainable import Moment

TINY = HashNetworkConfig(levels=3, log2_size=10, coarsest=4, finest=16, hidden=8)
SMALL = {"grid": TINY, "occupancy_resolution": 16}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(progress=0.0, seed=0):
    return Moment(progress, 100, generator(seed))


class Ball(Field):
    """A field known in closed form: a ball of radius 0.5 with a constant density, or its signed distance; red."""

    radius, sigma = 0.5, 4.0

    def forward(self, points):
        return self.raw(points), points.new_tensor([1.0, 0.0, 0.0]).expand(len(points), 3)

    def raw(self, points):
        distance = points.square().sum(dim=1).add(1e-24).sqrt() - self.radius
        return distance if self.config.signed else torch.where(distance < 0, self._inside(), -1e3)

    def _inside(self):
        return torch.tensor(math.log(math.expm1(self.sigma / self.config.density_scale)))


def ball_scene(**options):
    config = NerfConfig(**{**SMALL, "background": "black", **options})
    scene = NerfScene.initialise(config, generator())
    scene.modules["field"] = Ball(config, generator())
    scene.update_occupancy(0.0, 1, generator())
    return scene


def chord(cameras):
    """Length of each pixel's ray inside the ball, and the distance to its middle."""
    origins, directions = cameras.rays()
    middle = -(origins * directions).sum(dim=-1)
    closest = origins.square().sum(dim=-1) - middle.square()
    half = (Ball.radius**2 - closest).clamp_min(0).sqrt()
    return 2 * half, middle


def test_opacity_of_a_ball_of_fog_is_that_of_beer_and_lambert():
    scene = ball_scene(step=0.002, weight_threshold=0.0)
    cameras = turntable(2, height=24, width=24)
    with torch.no_grad():
        rendering = scene.render(cameras, torch.zeros(3))
    length, _ = chord(cameras)
    expected = 1 - torch.exp(-Ball.sigma * length)
    assert torch.allclose(rendering.alpha[:, 0], expected, atol=0.012)
    assert torch.allclose(rendering.image[:, 0], expected, atol=0.012)
    assert float(rendering.image[:, 1:].abs().max()) == 0.0


@pytest.mark.parametrize("geometry", ["volsdf", "neus"])
def test_a_sharp_signed_distance_renders_its_surface(geometry):
    scene = ball_scene(geometry=geometry, step=0.004, sharpness=400.0, normals="analytic")
    cameras = turntable(1, height=32, width=32)
    with torch.no_grad():
        rendering = scene.render(cameras, torch.zeros(3))
    length, middle = chord(cameras)
    inner = length > 0.3
    assert float(rendering.alpha[:, 0][inner].min()) > 0.98
    directions = cameras.rays()[1]
    axis = (directions * cameras.forward[:, None, None]).sum(dim=-1)
    surface = (middle - length / 2) * axis
    assert torch.allclose(rendering.depth[:, 0][inner], surface[inner], atol=0.02)
    at = cameras.rays()[0] + (middle - length / 2)[..., None] * directions
    outward = at / Ball.radius
    seen = rendering.normal.permute(0, 2, 3, 1)
    assert float((seen[inner] * outward[inner]).sum(dim=-1).min()) > 0.95


def test_density_of_volsdf_is_laplace_and_that_of_neus_logistic():
    field = Field(NerfConfig(**SMALL, geometry="volsdf"), generator())
    distance = torch.tensor([-1.0, -0.01, 0.0, 0.01, 1.0], dtype=torch.float64)
    expected = [50 * (1 - 0.5 * math.exp(-50 * abs(f))) if f <= 0 else 50 * 0.5 * math.exp(-50 * f) for f in distance]
    assert torch.allclose(field.density(distance, 50.0), torch.tensor(expected, dtype=torch.float64))
    neus = Field(NerfConfig(**SMALL, geometry="neus"), generator())
    assert torch.allclose(neus.density(distance, 50.0), 50 / (1 + torch.exp(50 * distance)))


@pytest.mark.parametrize("normals", ["analytic", "finite"])
def test_normals_of_a_sphere(normals):
    config = NerfConfig(**{**SMALL, "grid": replace(TINY, finest=128)}, geometry="volsdf", normals=normals)
    field = Ball(config, generator())
    points = torch.nn.functional.normalize(torch.randn(50, 3, generator=generator()), dim=1) * 0.6
    unit, gradient = field.normals(points)
    assert torch.allclose(unit, points / 0.6, atol=2e-2 if normals == "finite" else 1e-5)
    assert torch.allclose(gradient.norm(dim=1), torch.ones(50), atol=2e-2)
    assert float(ray_losses.eikonal(gradient)) < 1e-3


def test_finite_and_analytic_normals_agree_on_a_smooth_field():
    unit = {}
    points = 0.8 * (2 * torch.rand(40, 3, generator=generator(3)) - 1)
    for normals in ("analytic", "finite"):
        field = Field(NerfConfig(**SMALL, geometry="volsdf", normals=normals), generator(5))
        with torch.no_grad():
            field.network.table.mul_(1e2)
        unit[normals] = field.normals(points)[0]
    assert float((unit["analytic"] * unit["finite"]).sum(dim=1).min()) > 0.95


def test_losses_on_normals_reach_the_parameters():
    for normals in ("analytic", "finite"):
        field = Field(NerfConfig(**SMALL, geometry="volsdf", normals=normals), generator())
        _, gradient = field.normals(torch.rand(20, 3, generator=generator()) - 0.5, differentiable=True)
        ray_losses.eikonal(gradient).backward()
        assert float(field.network.table.grad.abs().sum()) > 0
        assert float(field.network.inner.grad.abs().sum()) > 0


def test_pruned_samples_change_pictures_by_less_than_their_weight():
    exact, pruned = (ball_scene(weight_threshold=threshold, step=0.01) for threshold in (0.0, 1e-3))
    cameras = turntable(1, height=16, width=16)
    with torch.no_grad():
        difference = exact.render(cameras).alpha - pruned.render(cameras).alpha
    assert float(difference.min()) > -1e-6
    assert float(difference.max()) < 0.03


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_chosen_samples_keep_their_rays(counts, seed):
    from dreamkit_kernels.volume_render import Samples

    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    total = int(offsets[-1])
    starts = torch.arange(total, dtype=torch.float32)
    samples = Samples(starts, starts + 1, offsets)
    keep = torch.rand(total, generator=generator(seed)) < 0.5
    kept = chosen(samples, keep)
    assert torch.equal(kept.starts, starts[keep])
    assert torch.equal(kept.rays, samples.rays[keep])


def test_rays_enter_and_leave_the_cube():
    origins = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [0.0, 5.0, 3.0]])
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    near, far = box_range(origins, directions, 1.0)
    assert near.tolist() == pytest.approx([2.0, 0.0, 0.0, 0.0])
    assert far.tolist() == pytest.approx([4.0, 0.0, 1.0, 0.0])


def test_occupancy_finds_the_ball_and_forgets_it():
    config = NerfConfig(**SMALL, occupancy_decay=0.5)
    sampler = OccupancySampler.full(config, torch.device("cpu"))
    assert bool(sampler.occupied.all())
    ball = Ball(config, generator())
    sampler.refresh(ball, 1.0, generator())
    centre = (torch.arange(16) + 0.5) / 8 - 1
    radius = torch.stack(torch.meshgrid(centre, centre, centre, indexing="ij")).norm(dim=0)
    assert bool(sampler.occupied[radius < 0.45].all())
    assert not bool(sampler.occupied[radius > 0.5 + 0.35].any())
    ball.radius = 1e-6
    for _ in range(12):
        sampler.update(ball, 1.0, generator())
    assert float(sampler.values.max()) < Ball.sigma * 0.5**11


def test_interlevel_is_zero_where_the_proposal_covers_and_pulls_where_it_does_not():
    edges = torch.linspace(0, 1, 5)[None]
    weights = torch.tensor([[0.0, 0.6, 0.4, 0.0]])
    assert float(ray_losses.interlevel(edges, weights, edges, weights)) == pytest.approx(0.0, abs=1e-9)
    coarse = torch.tensor([[0.0, 0.5, 1.0]])
    assert float(ray_losses.interlevel(edges, weights, coarse, torch.tensor([[0.6, 0.4]]))) == pytest.approx(0.0)
    proposal = torch.tensor([[0.2, 0.4]], requires_grad=True)
    loss = ray_losses.interlevel(edges, weights, coarse, proposal)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.4**2 / 0.6, rel=1e-3)
    assert float(proposal.grad[0, 0]) < 0
    assert float(proposal.grad[0, 1]) == 0


def test_losses_on_rays_by_hand():
    assert float(ray_losses.opacity_sparsity(torch.tensor([0.0]))) == pytest.approx(0.1)
    assert float(ray_losses.opacity_entropy(torch.tensor([0.5]))) == pytest.approx(math.log(2))
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert float(ray_losses.orientation(torch.tensor([0.5, 0.5]), normals, directions, 2)) == pytest.approx(0.25)


def test_light_by_hand():
    lighting = Lighting(
        torch.tensor([[0.0, 0.0, 3.0]] * 3), torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 0.0]), 0.25
    )
    albedo = torch.tensor([[0.8, 0.4, 0.0]]).expand(3, 3)
    normals = torch.tensor([[0.0, 0.6, 0.8]]).expand(3, 3)
    shaded = lighting.shade(albedo, normals, torch.zeros(3, 3), torch.arange(3))
    light = 0.25 + 0.75 * 0.8
    assert torch.allclose(shaded[0], albedo[0])
    assert torch.allclose(shaded[1], albedo[1] * light)
    assert torch.allclose(shaded[2], torch.full((3,), light))


def test_shares_of_light_are_kept():
    draws = draw_lighting(torch.tensor([[0.0, 0.0, 3.0]]).expand(2000, 3), 0.3, 0.2, 0.3, generator())
    assert float(draws.lit.mean()) == pytest.approx(0.5, abs=0.04)
    assert float((1 - draws.painted).mean()) == pytest.approx(0.2, abs=0.03)
    assert torch.allclose(draws.lamps.norm(dim=1), torch.tensor(3.0))
    assert draw_lighting(torch.ones(4, 3), 0.0, 0.0, 0.3, generator()).is_plain


def test_environment_map_is_a_picture_all_round():
    environment = EnvironmentMap()
    with torch.no_grad():
        environment.picture[:, :8] = 4.0  # the upper half is white
        environment.picture[:, 8:] = -4.0
    up, down = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.0, -1.0, 0.0]])
    assert float(environment(up).min()) > 0.95
    assert float(environment(down).max()) < 0.05
    behind = torch.tensor([[1e-4, 0.0, -1.0], [-1e-4, 0.0, -1.0]])  # no seam
    seam = environment(torch.nn.functional.normalize(behind, dim=1))
    assert torch.allclose(seam[0], seam[1], atol=1e-3)


def test_learned_backgrounds_start_gray_and_learn():
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=generator()), dim=1)
    for module in (LearnedBackground(generator()), EnvironmentMap()):
        assert torch.allclose(module(directions), torch.tensor(0.5))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        wanted = torch.where(directions[:, 1:2] > 0, 0.9, 0.1).expand(64, 3)
        for _ in range(80):
            optimizer.zero_grad()
            loss = (module(directions) - wanted).square().mean()
            loss.backward()
            optimizer.step()
        assert float(loss.detach()) < 0.02


@pytest.mark.parametrize("background", ["learned", "environment"])
def test_a_scene_with_learned_background_renders_it(background):
    scene = NerfScene.initialise(NerfConfig(**SMALL, background=background, density_scale=1e-3), generator())
    assert scene.backgrounds(2) is None
    camera = Camera.orbit(0.0, 0.0, 3.0, height=8, width=8)
    assert torch.allclose(scene.render(camera).image.detach(), torch.tensor(0.5), atol=0.05)
    red = scene.render(camera, torch.tensor([1.0, 0.0, 0.0])).image.detach()
    assert float(red[0, 0].min()) > 0.9  # a given background wins
    rendering = scene.render_training(camera, None, moment())
    rendering.image.sum().backward()
    named = {name for name, value in scene.parameters_dict().items() if value.grad is not None}
    assert any(name.startswith("surroundings") for name in named)


@pytest.mark.parametrize("options", [{}, {"sampler": "proposal"}, {"geometry": "volsdf"}, {"geometry": "neus"}])
def test_a_few_steps_fit_a_picture(options):
    rates = {"table_rate": 5e-2, "network_rate": 2e-2}
    config = NerfConfig(**SMALL, **options, **rates, background="black", step=0.06, samples=16)
    scene, target = NerfScene.initialise(config, generator()), ball_scene(step=0.06)
    target.modules["field"].sigma = 40.0
    scene.make_optimizers()
    upkeep, losses = OccupancyUpkeep(config, generator(1)), []
    for step in range(60):
        now = moment(step / 60, step)
        scene.set_learning_rates(step / 60, 60)
        camera = Camera.orbit(10.0 * step, 20.0, 3.0, height=24, width=24)
        with torch.no_grad():
            wanted = target.render(camera, torch.zeros(3)).image
        rendering = scene.render_training(camera, torch.zeros(1, 3), now)
        loss = (rendering.image - wanted).square().mean()
        torch.stack([loss, *scene.penalties(rendering, now).values()]).sum().backward()
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        upkeep.after_step(scene, rendering, step, 60)
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.25 * sum(losses[:5])


def test_the_same_seed_gives_the_same_bytes_and_state_goes_round():
    config = NerfConfig(**SMALL, sampler="proposal", background="learned")
    first, second = (NerfScene.initialise(config, generator(4)) for _ in range(2))
    camera = Camera.orbit(30.0, 10.0, 3.0, height=8, width=8)
    one, two = (scene.render_training(camera, None, moment(0.5)).image for scene in (first, second))
    assert torch.equal(one, two)
    copy = NerfScene(first.state(), config)
    assert torch.equal(copy.render(camera).image, first.render(camera).image)
    assert {name: value.shape for name, value in copy.state().items()} == {
        name: value.shape for name, value in first.state().items()
    }


def test_penalties_follow_the_config():
    weights = dict.fromkeys(
        ["opacity_weight", "sparsity_weight", "orientation_weight", "distortion_weight", "eikonal_weight"], 1.0
    )
    scene = NerfScene.initialise(NerfConfig(**SMALL, geometry="volsdf", **weights), generator())
    now = moment()
    rendering = scene.render_training(Camera.orbit(0.0, 0.0, 3.0, height=8, width=8), torch.zeros(1, 3), now)
    found = scene.penalties(rendering, now)
    assert set(found) == {"opacity", "sparsity", "orientation", "distortion", "eikonal"}
    assert all(bool(torch.isfinite(value)) for value in found.values())
    plain = NerfScene.initialise(NerfConfig(**SMALL), generator())
    rendering = plain.render_training(Camera.orbit(0.0, 0.0, 3.0, height=8, width=8), torch.zeros(1, 3), now)
    assert plain.penalties(rendering, now) == {}
    assert float(rendering.normal.abs().max()) == 0.0  # nobody asked for them


def test_lit_views_tell_shape():
    config = NerfConfig(**SMALL, textureless_share=1.0, blob=6.0)
    scene = NerfScene.initialise(config, generator())
    camera = Camera.orbit(0.0, 0.0, 3.0, height=16, width=16)
    lit = scene.render_training(camera, torch.zeros(1, 3), moment()).image[0, :, 4:12, 4:12]
    assert torch.allclose(lit[0], lit[1])
    assert float(lit.detach().std()) > 0.02


def test_memory_is_bounded():
    scene = NerfScene.initialise(NerfConfig(**SMALL, step=0.001), generator())
    scene._occupancy.values.fill_(1e6)
    cameras = turntable(4, height=64, width=64)
    with pytest.raises(SceneError, match="samples"):
        scene.render_training(cameras, torch.zeros(4, 3), moment())


def test_a_camera_inside_sees_what_is_ahead_of_it():
    scene = ball_scene(step=0.01)
    inside = Camera.orbit(0.0, 0.0, 0.2, height=4, width=4)
    with torch.no_grad():
        alpha = scene.render(inside, torch.zeros(3)).alpha
    assert float(alpha.mean()) == pytest.approx(1 - math.exp(-Ball.sigma * 0.7), abs=0.02)


def test_bad_states_and_configs_are_refused():
    scene = NerfScene.initialise(NerfConfig(**SMALL), generator())
    state = scene.state()
    with pytest.raises(CheckpointError, match="occupancy"):
        NerfScene({name: value for name, value in state.items() if name != "occupancy"}, scene.config)
    with pytest.raises(CheckpointError, match="shape"):
        NerfScene(state, NerfConfig(**{**SMALL, "grid": replace(TINY, hidden=16)}))
    state["field.network.bias"][0] = math.nan
    with pytest.raises(CheckpointError, match="not finite"):
        NerfScene(state, scene.config)
    for options, text in [
        ({"geometry": "mesh"}, "geometry"),
        ({"step": 0.0}, "step"),
        ({"step": 1e-6}, "step"),
        ({"lambertian_share": 0.8, "textureless_share": 0.4}, "textureless_share"),
        ({"eikonal_weight": -1.0}, "eikonal_weight"),
        ({"occupancy_decay": math.nan}, "occupancy_decay"),
        ({"background": "blue"}, "background"),
    ]:
        with pytest.raises(ConfigError, match=text):
            NerfConfig(**options)
    with pytest.raises(ConfigError, match="levels"):
        HashNetworkConfig(levels=0)
    with pytest.raises(ConfigError, match="finest"):
        HashNetworkConfig(coarsest=8, finest=4)


def test_proposal_weights_lie_where_the_field_is():
    config = NerfConfig(**SMALL, sampler="proposal", samples=24, weight_threshold=0.0)
    scene = NerfScene.initialise(config, generator())
    ball = Ball(config, generator())
    ball.sigma = 40.0
    proposal = scene.modules["proposal"]
    optimizer = torch.optim.Adam(proposal.parameters(), lr=2e-2)
    origins, directions = (part.reshape(-1, 3) for part in Camera.orbit(0.0, 20.0, 3.0, height=12, width=12).rays())
    rays = RayBundle(origins, directions, 1.0, 5.0, torch.full((144,), 0.5))
    for _ in range(60):
        trace = Tracer(ball, proposal, 1.0).trace(rays, torch.zeros(144, dtype=torch.int64), with_normals=False)
        optimizer.zero_grad()
        trace.proposal_loss.backward()
        optimizer.step()
    with torch.no_grad():
        samples, edges, weights = proposal(rays)
        hit = rays.points(samples).norm(dim=1) < 0.7
    middle_rays = hit.view(144, -1)[66]
    assert (
        float(middle_rays.float().mean()) > 0.5
    )  # half of the samples lie about the ball, which is a fifth of the cube
    dense = torch.full((144 * 24,), 0.0)
    assert float(proposal_loss(samples, dense, edges, weights)) == 0.0


def test_neus_asks_once_where_intervals_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap in the middle of a ray, and another ray: five intervals have eight ends, not ten."""
    from dreamkit_kernels.volume_render import Samples

    field = Field(NerfConfig(**SMALL, geometry="neus"), generator())
    asked: list[torch.Tensor] = []
    raw = field.raw
    monkeypatch.setattr(field, "raw", lambda points: asked.append(points) or raw(points))
    starts, ends = torch.tensor([2.0, 2.1, 2.5, 2.0, 2.1]), torch.tensor([2.1, 2.2, 2.6, 2.1 + 1e-6, 2.3])
    origins = torch.tensor([[0.0, 0.0, 2.5], [0.1, 0.0, 2.5]])
    rays = RayBundle(origins, torch.tensor([[0.0, 0.0, -1.0]]).repeat(2, 1), 0.0, 5.0)
    samples = Samples(starts, ends, torch.tensor([0, 3, 5]))
    tracer = Tracer(field, OccupancySampler.full(field.config, torch.device("cpu")), 20.0)
    before, behind = tracer._at_ends(samples, rays)
    assert [len(points) for points in asked] == [8]
    for values, places in ((before, starts), (behind, ends)):
        points = origins[samples.rays] - places[:, None] * torch.tensor([[0.0, 0.0, 1.0]])
        assert torch.allclose(values, raw(points), atol=1e-5)
