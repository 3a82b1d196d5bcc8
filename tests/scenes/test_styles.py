"""Styles against a ball whose normals and depth are known in closed form."""

import numpy as np
import pytest
import torch
from analytic import Ball
from matplotlib import colormaps

from dreamkit.scenes import styles
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.rendering import Rendering

WHITE = torch.ones(3)
SIZE = 33  # odd: the pixel in the middle looks at the middle of the ball


def seen(azimuth=0.0, elevation=0.0, **ball):
    cameras = Camera.orbit(azimuth, elevation, 3.0, 40.0, SIZE, SIZE)
    return Ball(**ball).render(cameras, WHITE), cameras


def middle(picture):
    return picture[0, :, SIZE // 2, SIZE // 2]


def half_transparent(rendering):
    """The same surface, half as much of it."""
    return Rendering(rendering.image, 0.5 * rendering.alpha, 0.5 * rendering.depth, 0.5 * rendering.normal)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "color"),
    [
        (0.0, 0.0, [0.5, 0.5, 1.0]),
        (90.0, 0.0, [1.0, 0.5, 0.5]),
        (0.0, 90.0, [0.5, 1.0, 0.5]),
        (180.0, 0.0, [0.5, 0.5, 0.0]),
    ],
)
def test_the_colour_of_a_normal_is_the_side_of_the_world_that_it_faces(azimuth, elevation, color):
    rendering, _ = seen(azimuth, elevation)
    picture = styles.normal_picture(rendering, WHITE)
    torch.testing.assert_close(middle(picture), torch.tensor(color), atol=1e-3, rtol=0)
    torch.testing.assert_close(picture[0, :, 0, 0], WHITE)


def test_normals_are_unit_and_lie_over_the_background_by_alpha():
    rendering, _ = seen(20.0, 30.0)
    whole = styles.normal_picture(rendering, torch.zeros(3))
    hit = rendering.alpha[0, 0] > 0
    torch.testing.assert_close((2 * whole[0, :, hit] - 1).norm(dim=0), torch.ones(int(hit.sum())))
    half = styles.normal_picture(half_transparent(rendering), WHITE)
    torch.testing.assert_close(half[0, :, hit], 0.5 * whole[0, :, hit] + 0.5)


def test_a_picture_of_nothing_is_the_background():
    nothing = Rendering(*(torch.zeros(1, channels, 4, 4) for channels in (3, 1, 1, 3)))
    background = torch.tensor([0.1, 0.5, 0.9])
    cameras = turntable(1, height=4, width=4)
    for picture in (
        styles.normal_picture(nothing, background),
        styles.depth_picture(nothing, background, (1.0, 2.0)),
        styles.clay_picture(nothing, cameras, background),
    ):
        torch.testing.assert_close(picture, background.reshape(1, 3, 1, 1).expand(1, 3, 4, 4))


def test_depth_is_coloured_by_the_map_and_what_is_near_is_bright():
    rendering, _ = seen()
    picture = styles.depth_picture(rendering, WHITE, (2.2, 3.2), "magma")
    torch.testing.assert_close(middle(picture), torch.tensor(colormaps["magma"](255)[:3]).float())
    depth = styles.expected_depth(rendering)[0, 0]
    hit = rendering.alpha[0, 0] > 0
    wanted = colormaps["magma"](((3.2 - depth[hit]) / 1.0).clamp(0, 1).numpy())[:, :3]
    np.testing.assert_allclose(picture[0, :, hit].T.numpy(), wanted, atol=0.02)  # matplotlib has 256 steps
    gray = styles.depth_picture(half_transparent(rendering), WHITE, (2.2, 3.2), "gray")
    torch.testing.assert_close(gray[0, 0, hit], 0.5 * (3.2 - depth[hit]).clamp(0, 1) + 0.5)


def test_the_limits_of_depth_hold_for_the_whole_film():
    # Off the middle of the world, so that the ball comes nearer and goes away.
    ball = Ball(0.3, (0.0, 0.0, 0.6))
    cameras = turntable(40, elevation=0.0, height=48, width=48)
    near, far = styles.depth_limits(ball, cameras)
    assert near == pytest.approx(3.0 - 0.6 - 0.3, abs=0.01)
    assert 3.0 + 0.6 - 0.3 < far <= 3.0 + 0.6
    assert styles.depth_limits(Ball(0.3, (0.0, 50.0, 0.0)), cameras) == (0.0, 1.0)


def test_a_flat_scene_has_limits_in_order():
    class Wall:
        def render(self, cameras, background=None):
            shape = (len(cameras), 1, cameras.height, cameras.width)
            ones = torch.ones(shape)
            return Rendering(ones.expand(-1, 3, -1, -1), ones, 2.0 * ones, ones.expand(-1, 3, -1, -1))

    near, far = styles.depth_limits(Wall(), turntable(2))
    assert near == 2.0 < far


def test_clay_is_gray_lit_from_above_the_left_shoulder_and_by_nothing_of_the_paint():
    rendering, cameras = seen(70.0, 10.0)
    picture = styles.clay_picture(rendering, cameras, torch.zeros(3))
    assert (picture[0, 0] == picture[0, 1]).all()
    assert (picture[0, 0] == picture[0, 2]).all()
    rows, columns = torch.nonzero(picture[0, 0] == picture[0, 0].max(), as_tuple=True)
    assert rows.float().mean() < SIZE / 2 - 2
    assert columns.float().mean() < SIZE / 2 - 2
    other, _ = seen(70.0, 10.0, color=(0.0, 0.0, 1.0))
    torch.testing.assert_close(styles.clay_picture(other, cameras, torch.zeros(3)), picture)


def test_the_formula_of_clay():
    cameras = Camera.orbit(0.0, 0.0, 3.0, height=1, width=1)  # its axes are the world's
    lamp = torch.nn.functional.normalize(torch.tensor([-0.45, 0.6, 0.66]), dim=0)
    for normal, wrapped in ((lamp, 1.0), (-lamp, 0.0), (torch.zeros(3), 0.5)):
        sky = (float(normal[1]) + 1) / 2
        wanted = (0.62 * (0.08 + 0.92 * wrapped**2) * (0.7 + 0.3 * sky)) ** (1 / 2.2)
        assert float(styles.shade_clay(normal.reshape(1, 3, 1, 1), cameras)) == pytest.approx(wanted, abs=1e-5)


def test_clay_turns_with_the_camera():
    first, there = seen(0.0, 0.0)
    second, here = seen(123.0, 0.0)
    a, b = (styles.clay_picture(r, c, WHITE) for r, c in ((first, there), (second, here)))
    torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (0.3, -0.2, 0.1)])
def test_the_radius_of_a_scene(centre):
    reach = 0.7 + float(torch.tensor(centre).norm())
    assert styles.scene_radius(Ball(0.7, centre)) == pytest.approx(reach, abs=0.03)
    assert styles.scene_radius(Ball(0.1, (0.0, 90.0, 0.0))) == 0.0


def test_a_survey_keeps_the_shape_and_is_small():
    cameras = turntable(100, height=100, width=200)
    small = styles.survey(cameras)
    assert (len(small), small.height, small.width) == (32, 32, 64)
    torch.testing.assert_close(small.azimuth[1], cameras.azimuth[3])
    assert len(styles.survey(turntable(5))) == 5
