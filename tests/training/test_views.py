"""Perp-Neg's plan: which views a prompt mixes and which push it away, as the camera goes round."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.diffusion.condition import Condition
from dreamkit.scenes.cameras import view_name
from dreamkit.training.views import _plan, perp_neg

NAMES = ("front view", "side view", "back view", "overhead view")


class NamingTeacher:
    """Encodes a prompt as a one-hot vector of the view that it names."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def encode_prompt(self, prompts: list[str]) -> Condition:
        self.prompts += prompts
        rows = [[float(prompt.endswith(name)) for name in NAMES] for prompt in prompts]
        return Condition(torch.tensor(rows, dtype=torch.float64)[:, None], torch.tensor(rows, dtype=torch.float64))


def plan(azimuths: list[float], elevations: list[float] | None = None) -> tuple[list, list, torch.Tensor]:
    """Shares of the four views in every prompt, which views push it, and how strongly."""
    teacher = NamingTeacher()
    positive, repulsion = perp_neg(teacher, "a mug", azimuths, elevations or [10.0] * len(azimuths))  # type: ignore[arg-type]
    assert positive.pooled is not None
    assert torch.equal(positive.embeddings[:, 0], positive.pooled)
    pushing = [[NAMES[int(row.argmax())] for row in condition.pooled] for condition in repulsion.conditions]  # type: ignore[union-attr]
    assert all(prompt.startswith("a mug, ") for prompt in teacher.prompts)
    return positive.embeddings[:, 0].tolist(), pushing, repulsion.weights


def threestudio(azimuth: float) -> tuple[dict[str, float], dict[str, float]]:
    """threestudio's get_perp_neg_text_embeddings with its default constants, its sign turned round."""

    def decay(a: float, b: float, c: float, r: float) -> float:
        return a * math.exp(-b * r) + c

    turn = abs(azimuth)
    if turn < 90:
        r = 1 - turn / 90
        push = {"front view": decay(4, 0.5, -2.426, r), "side view": decay(4, 0.5, -2.426, 1 - r)}
        return {"front view": r, "side view": 1 - r}, push
    r = 2 - turn / 90
    push = {"side view": decay(1, 0.5, -0.606, r), "front view": decay(1, 0.5, 0.967, r)}
    return {"side view": r, "back view": 1 - r}, push


def test_straight_from_a_side_the_prompt_is_that_sides() -> None:
    shares, _, _ = plan([0.0, 90.0, -90.0, 180.0, -180.0, 360.0])
    front, side, back = ([1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0])
    assert shares == [front, side, side, back, back, front]


def test_half_way_it_is_half_of_each() -> None:
    shares, _, _ = plan([45.0, -45.0, 135.0, 225.0])
    assert shares == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0.5, 0.5, 0]]


@given(st.floats(-180, 180), st.floats(-30, 50))
def test_shares_and_weights_are_threestudios(azimuth: float, elevation: float) -> None:
    shares, pushes = _plan(azimuth, elevation)
    if view_name(azimuth, elevation) == "overhead view":
        return
    expected_shares, expected_pushes = threestudio(azimuth)
    assert shares == pytest.approx(expected_shares)
    assert pushes == pytest.approx({name: max(value, 0.0) for name, value in expected_pushes.items()}, abs=1e-12)


@given(st.lists(st.tuples(st.floats(-720, 720), st.floats(-90, 90)), min_size=1, max_size=6))
def test_shares_sum_to_one_and_nothing_is_negative(cameras: list[tuple[float, float]]) -> None:
    shares, pushing, weights = plan([azimuth for azimuth, _ in cameras], [elevation for _, elevation in cameras])
    for row in shares:
        assert sum(row) == pytest.approx(1.0)
        assert min(row) >= 0
    assert weights.shape == (2, len(cameras))
    assert float(weights.min()) >= 0
    assert len(pushing) == 2
    assert all(len(names) == len(cameras) for names in pushing)


def test_the_front_pushes_wherever_it_is_not_asked_for() -> None:
    """From nothing at the front to its most at the side, and at the back still."""
    azimuths = [0.0, 30.0, 60.0, 89.0, 91.0, 135.0, 180.0]
    _, pushing, weights = plan(azimuths)
    front = [
        float(sum(weights[k, row] for k in range(2) if pushing[k][row] == "front view")) for row in range(len(azimuths))
    ]
    assert front[0] == pytest.approx(0.0, abs=1e-3)
    assert front[0] < front[1] < front[2] < front[3]
    assert min(front[3:]) > 1.5


def test_no_view_pushes_itself_when_it_is_all_there_is() -> None:
    _, pushing, weights = plan([0.0, 90.0 - 1e-9, 90.0])
    for row, own in enumerate(("front view", "side view", "side view")):
        strength = [float(weights[k, row]) for k in range(2) if pushing[k][row] == own]
        assert strength == [pytest.approx(0.0, abs=1e-3)]


def test_from_above_the_prompt_is_its_own_and_nothing_pushes() -> None:
    shares, _, weights = plan([0.0, 90.0, 200.0, 10.0], [80.0, 75.0, 89.0, 10.0])
    assert shares[:3] == [[0, 0, 0, 1.0]] * 3
    assert float(weights[:, :3].abs().max()) == 0
    assert float(weights[:, 3].max()) > 0


def test_right_and_left_are_alike() -> None:
    one, two = plan([20.0, 70.0, 100.0, 170.0]), plan([-20.0, -70.0, -100.0, -170.0])
    assert one[:2] == two[:2]
    torch.testing.assert_close(one[2], two[2])


def test_each_view_is_encoded_once() -> None:
    teacher = NamingTeacher()
    perp_neg(teacher, "a mug", [0.0, 10.0, 100.0, 190.0] * 3, [0.0] * 12)  # type: ignore[arg-type]
    assert sorted(teacher.prompts) == sorted(set(teacher.prompts))
