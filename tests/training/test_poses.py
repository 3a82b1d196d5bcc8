"""Cameras that are corrected: rotations, their Adam, and that both kinds of scene find poses again."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.trainable import Moment
from dreamkit.toyworld.capture import capture_cameras, capture_object, noisy
from dreamkit.training.fit import FitTrainer, difference
from dreamkit.training.fit_settings import FitSettings
from dreamkit.training.poses import PoseConfig, PoseRefiner, aligned, rotation

numbers = st.floats(-3, 3)


@settings(max_examples=30)
@given(x=numbers, y=numbers, z=numbers, scale=st.sampled_from([1.0, 1e-3, 1e-9, 0.0]))
def test_rotations_are_matrix_exponentials(x, y, z, scale):
    vector = scale * torch.tensor([[x, y, z]], dtype=torch.float64)
    a, b, c = vector[0].tolist()
    cross = torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float64)
    torch.testing.assert_close(rotation(vector)[0], torch.linalg.matrix_exp(cross), atol=1e-10, rtol=0)


def test_gradients_of_rotations():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation, vectors)


def test_corrections_move_cameras_about_the_origin():
    refiner = PoseRefiner(capture_cameras(2, 8), PoseConfig())
    assert torch.equal(refiner.cameras().camera_to_world, refiner.given.camera_to_world)
    with torch.no_grad():
        refiner.corrections[0] = torch.tensor([0.0, torch.pi / 2, 0.0, 0.0, 1.0, 0.0])
    moved, given_ = refiner.cameras(), refiner.given
    x, y, z = given_.position[0].tolist()
    torch.testing.assert_close(moved.position[0].detach(), torch.tensor([z, y + 1.0, -x]), atol=1e-5, rtol=0)
    assert float(moved.azimuth[0].detach() - given_.azimuth[0]) % 360 == pytest.approx(90.0, abs=1e-3)


def test_each_view_has_its_own_adam():
    """A view that is not seen rests; one that is moves as torch's Adam moves it."""
    config = PoseConfig(rate=Schedule.constant(0.1), betas=(0.9, 0.99))
    refiner = PoseRefiner(capture_cameras(3, 8), config, centred=False)
    parameter = torch.zeros(6, requires_grad=True)
    peer = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-15)
    for step in range(5):
        gradient = torch.randn(6, generator=torch.Generator().manual_seed(step))
        refiner.corrections.grad = torch.zeros(3, 6)
        refiner.corrections.grad[1] = gradient
        refiner.step(0.1)
        refiner.corrections.grad = torch.zeros(3, 6)
        refiner.corrections.grad[2] = 1.0
        refiner.step(0.1)
        parameter.grad = gradient
        peer.step()
    torch.testing.assert_close(refiner.corrections[1].detach(), parameter.detach())
    assert not refiner.corrections[0].any()


def test_the_mean_correction_stays_zero():
    refiner = PoseRefiner(capture_cameras(4, 8), PoseConfig())
    for step in range(3):
        refiner.corrections.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        refiner.step(0.1)
    torch.testing.assert_close(refiner.corrections.mean(dim=0).detach(), torch.zeros(6), atol=1e-7, rtol=0)
    assert float(refiner.corrections.detach().abs().min()) > 0


def test_gradients_that_are_not_finite_move_nothing():
    refiner = PoseRefiner(capture_cameras(2, 8), PoseConfig())
    refiner.corrections.grad = torch.full((2, 6), torch.nan)
    refiner.step(0.1)
    assert not refiner.corrections.any()


def test_the_state_comes_back():
    one, two = (PoseRefiner(capture_cameras(3, 8), PoseConfig()) for _ in range(2))
    for refiner in (one, two):
        refiner.corrections.grad = torch.ones(3, 6) * torch.arange(3)[:, None]
        refiner.step(0.1)
    three = PoseRefiner(capture_cameras(3, 8), PoseConfig())
    three.load_state(two.state())
    for refiner in (one, three):
        refiner.corrections.grad = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
        refiner.step(0.1)
    assert torch.equal(one.corrections, three.corrections)
    with pytest.raises(CheckpointError, match="2 views"):
        PoseRefiner(capture_cameras(2, 8), PoseConfig()).load_state(one.state())


@pytest.mark.parametrize("options", [{"start": 2.0}, {"rate": Schedule.constant(-1.0)}, {"betas": (0.9, 1.0)}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError):
        PoseConfig(**options)


TINY = HashNetworkConfig(levels=4, log2_size=11, coarsest=4, finest=32, hidden=16)
KINDS = {
    "gaussians": FitSettings(steps=150, gaussians=GaussianConfig(count=600, initial_opacity=0.3, background="random")),
    "nerf": FitSettings(
        scene="nerf", steps=100, rays=512, nerf=NerfConfig(grid=TINY, step=0.05, occupancy_resolution=16)
    ),
}


@pytest.fixture(scope="module")
def views() -> Capture:
    return capture_object("red", "mug", capture_cameras(6, 32), "striped")


def pixels_apart(one: Camera, two: Camera) -> float:
    """How far the same points are apart in pictures, root mean square."""
    points = torch.rand(100, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    return float((one.project(points)[0] - two.project(points)[0]).square().sum(dim=-1).mean().sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_poses_are_found_again(views, kind):
    """A scene fitted to true poses draws wrong cameras to where their pictures were taken: gradients are right."""
    trainer = FitTrainer(KINDS[kind], views)
    while trainer.step_index < trainer.settings.steps:
        trainer.step()
    wrong = noisy(views.cameras, 2.0, 0.05, torch.Generator().manual_seed(2))
    look = difference(KINDS[kind], views)
    generator = torch.Generator().manual_seed(5)

    def loss(cameras: Camera) -> torch.Tensor:
        return look(trainer.scene, cameras, Moment(1.0, 1, generator))[0]

    # A picture a step, or pixels of all; the tiny field is blurred, and so is what it says of poses.
    steps, share = (240, 0.5) if kind == "gaussians" else (100, 0.8)
    found = aligned(wrong, loss, steps)
    assert pixels_apart(found, views.cameras) < share * pixels_apart(wrong, views.cameras)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trainer_with_poses_is_resumed_exactly(views, kind):
    config = PoseConfig(enabled=True, start=0.1, rate=Schedule.constant(5e-3))
    options = replace(KINDS[kind], poses=config, steps=8)
    wrong = replace(views, cameras=noisy(views.cameras, 2.0, 0.05, torch.Generator().manual_seed(2)))
    whole, broken = FitTrainer(options, wrong), FitTrainer(options, wrong)
    for _ in range(8):
        metrics = whole.step().metrics
    assert metrics["pose_correction"] > 0
    for _ in range(5):
        broken.step()
    resumed = FitTrainer(options, wrong)
    resumed.load_state(broken.state(), 5)
    for _ in range(3):
        resumed.step()
    first, second = whole.state(), resumed.state()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(CheckpointError, match="other cameras"):
        FitTrainer(replace(options, poses=PoseConfig()), wrong).load_state(broken.state(), 5)
