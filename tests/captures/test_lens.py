"""Lenses: every model against formulas written out number by number, inverses, and the pinholes made of them."""

import math

import pytest
import torch
from capture_sets import MODELS, brown, equidistant
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.captures.colmap import make_lens
from dreamkit.captures.lens import Lens, ideal_focal, resample
from dreamkit.errors import SceneError

places = st.floats(-0.6, 0.6)
small = st.floats(-0.03, 0.03)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_of_colmap_against_its_documentation(model):
    parameters, formula = MODELS[model]
    lens = make_lens(model, 160, 120, parameters, "here")
    for x, y in ((0.0, 0.0), (0.3, -0.2), (-0.45, 0.1), (0.05, 0.38)):
        u, v = lens.project(torch.tensor([x, y], dtype=torch.float64)).tolist()
        assert (u, v) == pytest.approx(formula(x, y), abs=1e-9)


@settings(max_examples=50)
@given(x=places, y=places, k1=st.floats(-0.2, 0.3), k2=small, k3=small, p1=small, p2=small)
def test_undoing_a_perspective_lens(x, y, k1, k2, k3, p1, p2):
    lens = Lens(100, 100, 100, 100, 50, 50, (k1, k2, k3), (p1, p2))
    point = torch.tensor([[x, y]], dtype=torch.float64)
    bent = lens.distort(point)
    assert bent[0].tolist() == pytest.approx(brown(x, y, k1, k2, p1, p2, k3), abs=1e-12)
    torch.testing.assert_close(lens.undistort(bent), point, atol=1e-6, rtol=0)


@settings(max_examples=50)
@given(x=st.floats(-3, 3), y=st.floats(-3, 3), k1=small, k2=small, k3=small, k4=small)
def test_undoing_a_fisheye(x, y, k1, k2, k3, k4):
    lens = Lens(100, 100, 100, 100, 50, 50, (k1, k2, k3, k4), fisheye=True)
    point = torch.tensor([[x, y]], dtype=torch.float64)
    bent = lens.distort(point)
    assert bent[0].tolist() == pytest.approx(equidistant(x, y, k1, k2, k3, k4), abs=1e-9)
    theta = math.atan(math.hypot(x, y))
    slope = 1 + 3 * k1 * theta**2 + 5 * k2 * theta**4 + 7 * k3 * theta**6 + 9 * k4 * theta**8
    if slope > 0.3:  # else it folds, and two points have one image
        torch.testing.assert_close(lens.undistort(bent), point, atol=1e-4, rtol=1e-5)


def test_what_no_point_is_moved_to():
    lens = Lens(100, 100, 100, 100, 50, 50, (-0.5, 0.0))
    assert bool(lens.undistort(torch.tensor([5.0, 5.0], dtype=torch.float64)).isnan().all())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [(120, 160), (30, 40), (64, 64)])
def test_the_pinhole_sees_only_what_the_lens_saw_and_touches_its_border(model, size):
    lens = make_lens(model, 160, 120, MODELS[model][0], "here")
    height, width = size
    focal = ideal_focal(lens, height, width)

    def outside(focal):
        y = (torch.arange(65, dtype=torch.float64) / 64 - 0.5) * height / focal
        x = (torch.arange(65, dtype=torch.float64) / 64 - 0.5) * width / focal
        pixels = lens.project(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
        limit = pixels.new_tensor([160, 120])
        return float(torch.maximum(-pixels, pixels - limit).max())

    assert outside(focal) < 1e-2
    assert outside(0.99 * focal) > 0


def test_an_ideal_lens_changes_nothing():
    lens = Lens(8, 6, 20.0, 20.0, 4.0, 3.0)
    picture = torch.rand(4, 6, 8)
    assert ideal_focal(lens, 6, 8) == 20.0
    assert resample(picture, lens, 20.0, 6, 8) is picture


def test_resampling_keeps_a_slope():
    """Bilinear samples of a linear picture are exact, whatever the scale."""
    lens = Lens(64, 48, 70.0, 66.0, 33.0, 23.0)
    v, u = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    picture = torch.stack([u / 64, v / 48])
    focal = ideal_focal(lens, 15, 20)
    small = resample(picture, lens, focal, 15, 20)
    rows, columns = torch.arange(15) + 0.5 - 7.5, torch.arange(20) + 0.5 - 10
    inner = (slice(1, -1), slice(1, -1))
    wanted_u = ((columns * 70 / focal + 33) / 64).expand(15, 20)
    wanted_v = ((rows * 66 / focal + 23) / 48)[:, None].expand(15, 20)
    torch.testing.assert_close(small[0][inner], wanted_u[inner], atol=1e-4, rtol=0)
    torch.testing.assert_close(small[1][inner], wanted_v[inner], atol=1e-4, rtol=0)


def test_lenses_that_see_nothing_of_their_picture():
    with pytest.raises(SceneError, match="principal point"):
        ideal_focal(Lens(100, 100, 100, 100, -50, 50), 10, 10)


def test_a_lens_that_folds_is_cut_before_the_fold():
    lens = Lens(1000, 1000, 100, 100, 500, 500, (-0.3, 0.0))  # turns back at r = 1.05
    assert 0.5 * 64 / ideal_focal(lens, 64, 64) < 1.06 / math.sqrt(2) + 0.05
