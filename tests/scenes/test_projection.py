"""Clip space against the camera's own projection."""

import pytest
import torch

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.projection import clip_positions


def cameras(**options):
    angles = torch.tensor([0.0, 75.0, -130.0], dtype=torch.float64)
    elevations = torch.tensor([0.0, 40.0, -89.0], dtype=torch.float64)
    sizes = {"height": 40, "width": 72, "near": 0.5, "far": 9.0} | options
    return Camera.orbit(angles, elevations, torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64), 50.0, **sizes)


def test_normalised_positions_are_the_camera_s_pixels_and_w_its_depth():
    views = cameras()
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    clip = clip_positions(views, points)
    pixels, depth = views.project(points)
    size = torch.tensor([72.0, 40.0])
    flip = torch.tensor([1.0, -1.0])
    torch.testing.assert_close((clip[..., :2] / clip[..., 3:] * flip + 1.0) / 2.0 * size, pixels)
    torch.testing.assert_close(clip[..., 3], depth)


def test_the_near_plane_is_at_minus_one_and_the_far_plane_at_one():
    views = cameras()
    for distance, wanted in ((0.5, -1.0), (9.0, 1.0)):
        points = views.position + distance * views.forward
        clip = clip_positions(views, points).diagonal(dim1=0, dim2=1).T
        torch.testing.assert_close(clip[:, 2] / clip[:, 3], torch.full((3,), wanted, dtype=torch.float64))
        torch.testing.assert_close(clip[:, :2], torch.zeros(3, 2, dtype=torch.float64), atol=1e-12, rtol=0)


def test_gradients_reach_the_vertices():
    points = torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda vertices: clip_positions(cameras(), vertices), [points])


def test_other_shapes_are_refused():
    with pytest.raises(SceneError, match=r"\(5, 2\) are no points"):
        clip_positions(cameras(), torch.zeros(5, 2))
