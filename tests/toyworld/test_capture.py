"""Ground-truth views: where the cameras stand, and that pictures, masks and geometry agree."""

import torch

from dreamkit.toyworld.capture import capture_cameras, capture_object


def test_cameras_fill_the_band_and_two_sets_share_none() -> None:
    cameras, others = capture_cameras(24, 16), capture_cameras(24, 16, turn=77.0)
    assert torch.allclose(cameras.radius, torch.tensor(3.0), atol=1e-5)
    assert float(cameras.elevation.min()) > -10.0
    assert float(cameras.elevation.max()) < 60.0
    quarters = torch.histc(cameras.azimuth, 4, -180, 180)
    assert float(quarters.min()) >= 4  # all sides
    apart = torch.cdist(cameras.position, others.position)
    assert float(apart.min()) > 0.05


def test_pictures_lie_over_their_background() -> None:
    taken = capture_object("red", "cube", capture_cameras(2, 32), background=0.25)
    empty = taken.alphas[:, 0] == 0
    full = (taken.alphas[:, 0] == 1)[:, None].expand(-1, 3, -1, -1)
    assert torch.allclose(taken.images.permute(0, 2, 3, 1)[empty], torch.tensor(0.25))
    red, green = taken.images[:, :1][full[:, :1]], taken.images[:, 1:2][full[:, :1]]
    assert float((red - green).mean()) > 0.3
    assert taken.images.shape == (2, 3, 32, 32)
    half = (taken.alphas > 0) & (taken.alphas < 1)
    assert bool(half.any())  # outlines are averaged


def test_light_stands_still() -> None:
    """A side keeps its brightness when the camera moves: pictures of one object can be fitted by one scene."""
    one, two = (capture_object("white", "cube", capture_cameras(8, 32, turn=turn)) for turn in (0.0, 1.0))
    brightness = [float(c.images[:, 0][c.alphas[:, 0] == 1].mean()) for c in (one, two)]
    assert abs(brightness[0] - brightness[1]) < 0.01
