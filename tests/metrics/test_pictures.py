"""Measures of pictures against closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.metrics.judge import VIEWS, Judge, JudgeNetwork
from dreamkit.metrics.pictures import (
    contrast,
    count_fronts,
    diversity,
    foreground,
    image_embeddings,
    looks_front,
    saturation,
    view_agreement,
    view_variety,
)


def flat(*colour: float, size: int = 4) -> Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, size, size).clone()


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((1, 0, 0), 1.0), ((0.5, 0.5, 0.5), 0.0), ((0, 0, 0), 0.0), ((0.8, 0.4, 0.2), 0.75), ((0.2, 0.1, 0.15), 0.5)],
)
def test_the_saturation_of_one_colour(colour: tuple[float, ...], expected: float) -> None:
    assert saturation(flat(*colour), torch.ones(1, 1, 4, 4)) == pytest.approx(expected, abs=1e-6)


def test_saturation_is_weighted_by_alpha() -> None:
    colour, alpha = flat(1.0, 0.0, 0.0), torch.ones(1, 1, 4, 4)
    colour[..., 2:] = 0.5  # the right half is gray, and covers a third as much
    alpha[..., 2:] = 1 / 3
    assert saturation(colour, alpha) == pytest.approx(0.75)


def test_the_background_does_not_count() -> None:
    own, alpha = flat(0.8, 0.4, 0.2), torch.zeros(1, 1, 4, 4)
    alpha[..., :2, :] = 0.5
    image = alpha * own + (1 - alpha) * 0.85
    colour = foreground(image, alpha, 0.85)
    torch.testing.assert_close(colour[..., :2, :], own[..., :2, :])
    assert float(colour[..., 2:, :].abs().max()) == 0
    assert saturation(colour, alpha) == pytest.approx(0.75, abs=1e-5)
    assert contrast(colour, alpha) == pytest.approx(0.0, abs=1e-4)


def test_the_contrast_of_two_grays() -> None:
    colour = flat(0.2, 0.2, 0.2)
    colour[..., 2:] = 0.6
    assert contrast(colour, torch.ones(1, 1, 4, 4)) == pytest.approx(0.2, abs=1e-6)


def test_nothing_has_no_measures() -> None:
    nothing = torch.zeros(1, 1, 4, 4)
    assert saturation(flat(1, 0, 0), nothing) is None
    assert contrast(flat(1, 0, 0), nothing) is None


def turn(text: str) -> list[bool]:
    return [letter == "F" for letter in text]


@pytest.mark.parametrize(
    ("views", "fronts"),
    [
        ("........", 0),
        ("F.......", 1),
        ("FF.....F", 1),  # around the end of the turn
        ("FF..F..F", 2),
        ("F.F.F.F.", 4),
        ("FFFF....", 1),  # half a turn: one face may be seen so far
        ("FFFFF...", 2),
        ("FFF...FF", 2),
        ("FFFFFFFF", 2),
        ("F", 1),
        ("", 0),
    ],
)
def test_fronts_of_a_turn(views: str, fronts: int) -> None:
    assert count_fronts(turn(views)) == fronts
    assert count_fronts(torch.tensor(turn(views), dtype=torch.bool)) == fronts


@given(st.lists(st.booleans(), min_size=2, max_size=24), st.integers(0, 23))
def test_where_a_turn_begins_does_not_matter(views: list[bool], shift: int) -> None:
    at = shift % len(views)
    assert count_fronts(views[at:] + views[:at]) == count_fronts(views)


def test_diversity_of_known_angles() -> None:
    east, north = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 2.0]] * 3)
    assert diversity([east]) is None
    assert diversity([east, east]) == pytest.approx(0.0)
    assert diversity([east, north]) == pytest.approx(1.0)
    assert diversity([east, -east]) == pytest.approx(2.0)
    assert diversity([east, east, north]) == pytest.approx(2 / 3)


def test_overhead_is_no_answer_and_any_size_will_do() -> None:
    class Stub(Judge):
        def __init__(self) -> None:
            self.network = JudgeNetwork(width=8, embedding=16)

        def verdicts(self, images: Tensor) -> tuple[Tensor, Tensor]:
            views = torch.zeros(2, len(VIEWS))
            views[:, VIEWS.index("overhead")] = 9.0
            views[0, VIEWS.index("front")] = views[1, VIEWS.index("back")] = 1.0
            return torch.zeros(2, 360), views

    assert looks_front(Stub(), torch.zeros(2, 3, 96, 96)).tolist() == [True, False]
    embeddings = image_embeddings(Stub(), torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(2))


@pytest.mark.parametrize("turn", [0, 5, 17])
def test_view_agreement_of_a_faithful_object_is_one_whichever_way_it_faces(turn: int) -> None:
    names = ["front"] * 4 + ["side"] * 5 + ["back"] * 7 + ["side"] * 5 + ["front"] * 3
    seen = Naming(names[turn:] + names[:turn])
    assert view_agreement(seen, torch.zeros(24, 3, 8, 8)) == 1.0  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "share"), [("side", 10 / 24), ("front", 7 / 24), ("back", 7 / 24)])
def test_view_agreement_of_what_looks_the_same_all_round(name: str, share: float) -> None:
    assert view_agreement(Naming([name] * 24), torch.zeros(24, 3, 8, 8)) == pytest.approx(share)  # type: ignore[arg-type]


class Naming:
    """A judge that has made up its mind about the views."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def verdicts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor([VIEWS.index(name) for name in self.names])
        return torch.zeros(len(images), 1), torch.nn.functional.one_hot(chosen, len(VIEWS)).float()


def test_view_variety_by_hand() -> None:
    assert view_variety(torch.ones(24, 5)) == pytest.approx(0.0, abs=1e-9)
    two_faced = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).repeat(2, 1)  # a b a b: 8 of 12 pairs differ
    assert view_variety(two_faced) == pytest.approx(8 / 12)
    assert view_variety(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(2.0)
