"""Cameras of other programs: the same points at the same pixels by their own formulas."""

import math

import numpy as np
import pytest
import torch
from gsplat.cuda._torch_impl import _fully_fused_projection
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from dreamkit.errors import SceneError
from dreamkit.scenes import conventions
from dreamkit.scenes.cameras import Camera

WIDTH, HEIGHT = 80, 60


@pytest.fixture
def cameras() -> Camera:
    return Camera.orbit(
        torch.tensor([0.0, 70.0, 190.0, -120.0], dtype=torch.float64), [10.0, -35.0, 80.0, 0.0], [3.0, 2.5, 4.0, 3.0],
        [40.0, 55.0, 30.0, 70.0], HEIGHT, WIDTH,
    )  # fmt: skip


@pytest.fixture
def points() -> Tensor:
    return torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


def test_gsplat_sees_the_same_pixels(cameras: Camera, points: Tensor) -> None:
    view, lens = conventions.to_opencv(cameras)
    covariances = 1e-6 * torch.eye(3, dtype=torch.float64).repeat(50, 1, 1)
    _, pixels, depths, _, _ = _fully_fused_projection(points, covariances, view, lens, WIDTH, HEIGHT)
    ours, depth = cameras.project(points)
    assert torch.allclose(pixels, ours, atol=1e-9)
    assert torch.allclose(depths, depth, atol=1e-9)


def colmap_pixel(point: np.ndarray, qvec: np.ndarray, tvec: np.ndarray, parameters: list[float]) -> list[float]:
    """COLMAP's documentation, by hand: R of the quaternion (scalar first), R X + t, PINHOLE."""
    w, x, y, z = qvec
    rotation = np.array(
        [
            [1 - 2 * y * y - 2 * z * z, 2 * x * y - 2 * w * z, 2 * z * x + 2 * w * y],
            [2 * x * y + 2 * w * z, 1 - 2 * x * x - 2 * z * z, 2 * y * z - 2 * w * x],
            [2 * z * x - 2 * w * y, 2 * y * z + 2 * w * x, 1 - 2 * x * x - 2 * y * y],
        ]
    )
    u, v, depth = rotation @ point + tvec
    fx, fy, cx, cy = parameters
    return [fx * u / depth + cx, fy * v / depth + cy]


def test_colmap_sees_the_same_pixels(cameras: Camera, points: Tensor) -> None:
    qvec, tvec, lens = conventions.to_colmap(cameras)
    ours, _ = cameras.project(points)
    for index in range(len(cameras)):
        parameters = [float(lens[index, i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))]
        theirs = [colmap_pixel(p, qvec[index].numpy(), tvec[index].numpy(), parameters) for p in points.numpy()]
        assert np.allclose(theirs, ours[index].numpy(), atol=1e-9)
    scipy = Rotation.from_matrix(cameras.view_matrix[:, :3, :3].numpy()).as_quat(scalar_first=True, canonical=True)
    assert np.allclose(qvec, scipy, atol=1e-12)


def test_nerfstudio_sees_the_same_pixels(cameras: Camera, points: Tensor) -> None:
    """Its rays, by hand: direction R ((u - cx) / fx, -(v - cy) / fy, -1) from the last column, z up."""
    poses, lens = conventions.to_nerfstudio(cameras)
    assert poses.shape == (4, 3, 4)
    world = conventions.points_to_nerfstudio(points)
    pixels, depth = cameras.project(points)
    for index in range(len(cameras)):
        u, v = pixels[index].unbind(-1)
        k = lens[index]
        local = torch.stack([(u - k[0, 2]) / k[0, 0], -(v - k[1, 2]) / k[1, 1], -torch.ones_like(u)], dim=-1)
        reached = poses[index, :, 3] + depth[index][:, None] * (local @ poses[index, :, :3].T)
        assert torch.allclose(reached, world, atol=1e-9)
    up = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    front = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    assert conventions.points_to_nerfstudio(up).tolist() == [[0, 0, 1]]
    assert conventions.points_to_nerfstudio(front).tolist() == [[0, -1, 0]]
    assert torch.equal(conventions.points_from_nerfstudio(world), points)


def same(one: Camera, other: Camera, tolerance: float) -> None:
    assert torch.allclose(one.camera_to_world, other.camera_to_world, atol=tolerance)
    assert torch.allclose(one.fov_y, other.fov_y, atol=1e3 * tolerance)
    assert (one.height, one.width) == (other.height, other.width)


ANGLES = st.floats(-180, 180)


@given(ANGLES, st.floats(-90, 90), st.floats(0.1, 100), st.floats(5, 120), st.booleans())
def test_there_and_back(azimuth: float, elevation: float, radius: float, fov: float, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    camera = Camera.orbit(torch.tensor([azimuth], dtype=dtype), elevation, radius, fov, HEIGHT, WIDTH)
    tolerance = (1e-9 if double else 1e-4) * max(1.0, radius)
    same(conventions.from_opencv(*conventions.to_opencv(camera), WIDTH, HEIGHT), camera, tolerance)
    same(conventions.from_colmap(*conventions.to_colmap(camera), WIDTH, HEIGHT), camera, tolerance)
    same(conventions.from_nerfstudio(*conventions.to_nerfstudio(camera), WIDTH, HEIGHT), camera, tolerance)


@given(st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: math.hypot(*q) > 0.01), st.floats(0.1, 10))
def test_quaternions_of_any_length(values: tuple[float, ...], length: float) -> None:
    unit = torch.tensor([values], dtype=torch.float64)
    unit = unit / unit.norm()
    lens = torch.tensor([[[50.0, 0, 40], [0, 50, 30], [0, 0, 1]]], dtype=torch.float64)
    camera = conventions.from_colmap(length * unit, torch.ones(1, 3, dtype=torch.float64), lens, WIDTH, HEIGHT)
    qvec, tvec, _ = conventions.to_colmap(camera)
    assert torch.allclose((qvec * unit).sum().abs(), torch.tensor(1.0, dtype=torch.float64), atol=1e-9)
    assert float(qvec[0, 0]) >= 0
    assert torch.allclose(tvec, torch.ones(1, 3, dtype=torch.float64), atol=1e-9)


def test_what_no_camera_has_is_refused() -> None:
    view, lens = torch.eye(4)[None], torch.tensor([[[50.0, 0, 40], [0, 50, 30], [0, 0, 1]]])
    conventions.from_opencv(view, lens, WIDTH, HEIGHT)
    mirrored = view * torch.tensor([-1.0, 1, 1, 1])
    for bad in (2 * view, mirrored, view[0], view * float("nan"), torch.zeros(1, 4, 4)):
        with pytest.raises(SceneError):
            conventions.from_opencv(bad, lens, WIDTH, HEIGHT)
    for row, column, value in ((0, 0, 60.0), (0, 2, 41.0), (1, 2, 0.0), (0, 1, 3.0), (1, 1, float("inf"))):
        other = lens.clone()
        other[0, row, column] = value
        with pytest.raises(SceneError):
            conventions.from_opencv(view, other, WIDTH, HEIGHT)
    with pytest.raises(SceneError, match="quaternion"):
        conventions.from_colmap(torch.zeros(1, 4), torch.zeros(1, 3), lens, WIDTH, HEIGHT)
    with pytest.raises(SceneError, match="qvec"):
        conventions.from_colmap(torch.zeros(4), torch.zeros(3), lens, WIDTH, HEIGHT)
    with pytest.raises(SceneError, match="shape"):
        conventions.from_nerfstudio(view, lens[0], WIDTH, HEIGHT)
