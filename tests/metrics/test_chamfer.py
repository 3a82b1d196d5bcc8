"""Chamfer distance against brute force and closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import SceneError
from dreamkit.metrics.geometry import chamfer_distance


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_brute_force_agrees(count_a, count_b, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for count in (count_a, count_b))
    distances = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    expected = 0.5 * (distances.amin(1).mean() + distances.amin(0).mean())
    assert chamfer_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert chamfer_distance(a, b) == chamfer_distance(b, a)
    assert chamfer_distance(a, a) == 0


def test_a_shift_and_a_missing_half():
    a = torch.tensor([[0.0, 0, 0], [10, 0, 0]])
    assert chamfer_distance(a, a + torch.tensor([0.0, 0.25, 0])) == pytest.approx(0.25)
    assert chamfer_distance(a, a[:1]) == pytest.approx(0.5 * (5 + 0))  # squares would say 25


def test_two_spheres():
    points = torch.nn.functional.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert chamfer_distance(points, 1.3 * points) == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (torch.zeros(0, 3), "shape"),
        (torch.zeros(5, 2), "shape"),
        (torch.zeros(3), "shape"),
        (torch.tensor([[0.0, float("nan"), 0]]), "not finite"),
    ],
)
def test_bad_points_are_explained(points, reason):
    with pytest.raises(SceneError, match=reason):
        chamfer_distance(points, torch.zeros(1, 3))
    with pytest.raises(SceneError, match=reason):
        chamfer_distance(torch.zeros(1, 3), points)
