import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.cameras import Camera, CameraSampler, turntable, view_name

angles = st.floats(-720, 720, allow_nan=False)
elevations = st.floats(-89, 89)
radii = st.floats(0.5, 20)


def test_known_positions_and_axes():
    camera = Camera.orbit([0, 90, 180, -90, 0], [0, 0, 0, 0, 90], 2.0)
    expected = torch.tensor([[0, 0, 2.0], [2, 0, 0], [0, 0, -2], [-2, 0, 0], [0, 2, 0]])
    assert torch.allclose(camera.position, expected, atol=1e-6)
    # In front: x right, y up, and z backward, toward the camera.
    assert torch.allclose(camera.camera_to_world[0, :3, :3], torch.eye(3), atol=1e-6)
    # From above with azimuth 0 the top of the image is away from the front.
    assert torch.allclose(camera.camera_to_world[4, :3, 1], torch.tensor([0.0, 0.0, -1.0]), atol=1e-6)


def test_known_points_project_where_they_should():
    camera = Camera.orbit([0.0, 90.0], 0.0, 3.0, 40.0, height=100, width=200)
    focal = 50 / math.tan(math.radians(20))
    pixels, depth = camera.project(torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]))
    assert torch.allclose(pixels[:, 0], torch.tensor([100.0, 50.0]).expand(2, 2))  # the target is at the centre
    assert torch.allclose(pixels[0, 1], torch.tensor([100 + focal * 0.5 / 3, 50.0]))  # +x is to the right
    assert torch.allclose(pixels[0, 2], torch.tensor([100.0, 50 - focal * 0.5 / 3]))  # +y is up
    assert torch.allclose(pixels[1, 3], torch.tensor([100 - focal * 0.5 / 3, 50.0]))  # from +x, +z is to the left
    assert torch.allclose(depth[0], torch.tensor([3.0, 3.0, 3.0, 2.5]))


@given(angles, elevations, radii)
@settings(max_examples=100, deadline=None)
def test_angles_round_trip(azimuth, elevation, radius):
    camera = Camera.orbit(torch.tensor([azimuth], dtype=torch.float64), elevation, radius)
    difference = (float(camera.azimuth) - azimuth + 180.0) % 360.0 - 180.0
    assert abs(difference) < 1e-4
    assert float(camera.elevation) == pytest.approx(elevation, abs=1e-4)
    assert float(camera.radius) == pytest.approx(radius, rel=1e-5)
    rotation = camera.camera_to_world[0, :3, :3]
    assert torch.allclose(rotation @ rotation.T, torch.eye(3, dtype=rotation.dtype), atol=1e-6)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("elevation", [90.0, -90.0])
@pytest.mark.parametrize("azimuth", [-120.0, 0.0, 45.0, 180.0])
def test_the_poles_keep_their_azimuth(azimuth, elevation):
    camera = Camera.orbit(azimuth, elevation, 3.0)
    assert float(camera.azimuth) == pytest.approx(azimuth, abs=1e-3)
    assert bool(torch.isfinite(camera.view_matrix).all())


def test_rays_hit_the_pixel_they_belong_to():
    camera = Camera.orbit(
        torch.tensor([20.0, 200.0], dtype=torch.float64), torch.tensor([35.0, -20.0]), 2.5, 50.0, height=6, width=9
    )
    origins, directions = camera.rays()
    assert torch.allclose(directions.norm(dim=-1), torch.ones_like(directions[..., 0]))
    for view in range(2):
        points = (origins[view] + 1.7 * directions[view]).reshape(-1, 3)
        pixels, depth = camera[view].project(points)
        v, u = torch.meshgrid(torch.arange(6) + 0.5, torch.arange(9) + 0.5, indexing="ij")
        assert torch.allclose(pixels[0], torch.stack([u, v], -1).reshape(-1, 2).double(), atol=1e-6)
        assert bool((depth > 0).all())


def test_view_matrix_is_the_inverse_in_opencv_axes():
    camera = Camera.orbit([10.0, 100.0], [5.0, 50.0], 3.0)
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert torch.allclose(camera.view_matrix, flip @ torch.linalg.inv(camera.camera_to_world), atol=1e-5)


def test_target_moves_the_camera_and_keeps_it_centred():
    target = torch.tensor([0.3, -0.2, 0.5])
    camera = Camera.orbit(70.0, 20.0, 2.0, target=target)
    pixels, depth = camera.project(target[None])
    assert torch.allclose(pixels, torch.full((1, 1, 2), 32.0), atol=1e-4)
    assert float(depth) == pytest.approx(2.0, abs=1e-5)


def test_batch_operations():
    cameras = turntable(6, height=32, width=48)
    assert len(cameras) == 6
    assert len(cameras[-1]) == 1
    assert torch.equal(cameras[1:3].pose, cameras.pose[1:3])
    assert torch.equal(cameras[torch.tensor([4, 0])].pose, cameras.pose[[4, 0]])
    joined = Camera.cat([cameras[:2], cameras[2], cameras[3:]])
    assert torch.equal(joined.pose, cameras.pose)
    assert cameras.pose.shape == (6, 12)
    assert torch.equal(cameras.pose.reshape(6, 3, 4), cameras.camera_to_world[:, :3])
    larger = cameras.resized(64, 96)
    assert torch.allclose(larger.intrinsics[:, :2], 2 * cameras.intrinsics[:, :2])
    assert cameras.azimuth.tolist() == pytest.approx([0, 60, 120, 180, -120, -60], abs=1e-3)
    with pytest.raises(IndexError):
        cameras[6]
    with pytest.raises(SceneError, match="batch"):
        Camera.cat([cameras, larger])
    with pytest.raises(SceneError, match="no cameras"):
        Camera.cat([])


@pytest.mark.parametrize(
    ("azimuth", "elevation", "name"),
    [
        (0, 0, "front view"),
        (45, 44.9, "front view"),
        (-46, 0, "side view"),
        (134.9, -10, "side view"),
        (135, 0, "back view"),
        (180, 10, "back view"),
        (-180, 10, "back view"),
        (359, 0, "front view"),
        (540, 0, "back view"),
        (0, 45, "overhead view"),
        (180, 90, "overhead view"),
    ],
)
def test_view_names(azimuth, elevation, name):
    assert view_name(azimuth, elevation) == name


def test_view_names_of_cameras():
    assert Camera.orbit([0, 90, 180, 0], [0, 0, 0, 60], 3.0).view_names() == [
        "front view",
        "side view",
        "back view",
        "overhead view",
    ]


@given(st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_sampler_covers_all_sides_within_its_ranges(n, seed):
    sampler = CameraSampler(elevation_range=(-5, 30), radius_range=(2, 3), fov_range=(30, 60))
    cameras = sampler.sample(n, torch.Generator().manual_seed(seed), 8, 8)
    assert float(cameras.elevation.min()) >= -5.001
    assert float(cameras.elevation.max()) <= 30.001
    assert float(cameras.radius.min()) >= 1.999
    assert float(cameras.radius.max()) <= 3.001
    assert float(cameras.fov_y.min()) >= 30
    assert float(cameras.fov_y.max()) <= 60
    # One azimuth a stratum: sorted gaps are below two strata.
    ordered = cameras.azimuth.sort().values
    gaps = torch.diff(ordered, append=ordered[:1] + 360.0)
    assert float(gaps.max()) <= 2 * 360.0 / n + 0.01


def test_sampler_is_a_function_of_its_generator():
    draws = [CameraSampler().sample(4, torch.Generator().manual_seed(3), 8, 8).pose for _ in range(2)]
    assert torch.equal(*draws)
    even = CameraSampler(jitter=0.0).sample(4, torch.Generator().manual_seed(3), 8, 8)
    assert torch.diff(even.azimuth.sort().values).tolist() == pytest.approx([90.0] * 3, abs=1e-3)


@pytest.mark.parametrize(
    "values",
    [
        {"azimuth": float("nan"), "elevation": 0.0, "radius": 1.0},
        {"azimuth": 0.0, "elevation": 91.0, "radius": 1.0},
        {"azimuth": 0.0, "elevation": 0.0, "radius": 0.0},
        {"azimuth": 0.0, "elevation": 0.0, "radius": 1.0, "fov_y": 180.0},
        {"azimuth": 0.0, "elevation": 0.0, "radius": 1.0, "height": 0},
        {"azimuth": 0.0, "elevation": 0.0, "radius": 1.0, "near": 2.0, "far": 1.0},
        {"azimuth": [0.0, 1.0, 2.0], "elevation": [0.0, 1.0], "radius": 1.0},
        {"azimuth": torch.zeros(2, 2), "elevation": 0.0, "radius": 1.0},
    ],
)
def test_impossible_cameras_are_refused(values):
    with pytest.raises(SceneError):
        Camera.orbit(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"elevation_range": (30.0, 10.0)},
        {"elevation_range": (-100.0, 10.0)},
        {"radius_range": (0.0, 1.0)},
        {"fov_range": (40.0, 180.0)},
        {"azimuth_range": (float("nan"), 10.0)},
        {"jitter": 1.5},
    ],
)
def test_impossible_samplers_are_refused(values):
    with pytest.raises(ConfigError):
        CameraSampler(**values)


def test_no_views_are_refused():
    with pytest.raises(ConfigError):
        CameraSampler().sample(0, torch.Generator(), 8, 8)
    with pytest.raises(SceneError):
        turntable(0)
