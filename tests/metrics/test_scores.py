"""Scores from verdicts that are made up, so that every share is known."""

import pytest
import torch
from torch import Tensor

from dreamkit.metrics.judge import COMPOSITIONS, VIEWS, Judge
from dreamkit.metrics.scores import Target, score_views


class StubJudge(Judge):
    """Says what it is told to say.

    Args:
        seen: (colour, object) of each view.
        views: which side each view looks like; all fronts by default.
    """

    def __init__(self, seen: list[tuple[str, str]], views: list[str] | None = None) -> None:
        self.seen = seen
        self.views = views or ["front"] * len(seen)

    def verdicts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot verdicts."""
        assert len(images) == len(self.seen)
        logits, views = torch.zeros(len(images), len(COMPOSITIONS)), torch.zeros(len(images), len(VIEWS))
        for row, (pair, view) in enumerate(zip(self.seen, self.views, strict=True)):
            logits[row, COMPOSITIONS.index(pair)] = 5.0
            views[row, VIEWS.index(view)] = 5.0
        return logits, views


def score(
    prompt: str, seen: list[tuple[str, str]], views: list[str] | None = None, azimuths: list[float] | None = None
) -> dict[str, float | None]:
    if azimuths is None:
        azimuths = [360 / len(seen) * index for index in range(len(seen))]
    return score_views(StubJudge(seen, views), torch.zeros(len(seen), 3, 64, 64), torch.tensor(azimuths), prompt)


class TestTarget:
    @pytest.mark.parametrize(
        ("prompt", "name", "colour"),
        [
            ("a red mug", "mug", "red"),
            ("A RED MUG.", "mug", "red"),
            ("a red cube on a blue table", "cube", "red"),
            ("a cube on a blue table", "cube", None),
            ("a grey cup", "mug", "gray"),
            ("a violet sphere", "ball", "purple"),
            ("a turquoise donut, front view", "ring", "cyan"),
            ("a little stripy orange fish seen from the side", "fish", "orange"),
            ("an orange on a black table", "table", "black"),
            ("a tv", "television", None),
            ("a photo of an airplane", "plane", None),
            ("a mug that is red", "mug", "red"),
            ("mug, red", "mug", "red"),
            ("red", None, None),
            ("a dragon", None, None),
            ("", None, None),
            ("ein roter Becher", None, None),
            ("a muggy redwood", None, None),
        ],
    )
    def test_from_prompt(self, prompt: str, name: str | None, colour: str | None) -> None:
        assert Target.from_prompt(prompt) == Target(name, colour)

    @pytest.mark.parametrize("pair", COMPOSITIONS[::23])
    def test_every_caption_of_the_judge_is_read_back(self, pair: tuple[str, str]) -> None:
        from dreamkit.toyworld.captions import composition

        assert Target.from_prompt(composition(*pair)) == Target(pair[1], pair[0])


class TestScores:
    def test_all_right(self) -> None:
        views = ["front", "side", "back", "side"]
        assert score("a red mug", [("red", "mug")] * 4, views) == {
            "r_precision": 1.0,
            "object": 1.0,
            "colour": 1.0,
            "janus": 0.0,
        }

    def test_shares(self) -> None:
        seen = [("red", "mug"), ("blue", "mug"), ("red", "duck"), ("green", "car")]
        scores = score("a red mug", seen, ["front", "side", "back", "side"])
        assert scores == {"r_precision": 0.25, "object": 0.5, "colour": 0.5, "janus": 0.0}

    def test_two_faces(self) -> None:
        """Azimuths 0, 90, 180, 270: three of four are far from the front, two of those look like one."""
        assert score("a red mug", [("red", "mug")] * 4, ["front", "front", "front", "side"])["janus"] == 2 / 3

    def test_the_front_itself_is_allowed(self) -> None:
        azimuths = [0.0, 60.0, -60.0, 300.0, 720.0]
        scores = score("a red mug", [("red", "mug")] * 5, None, azimuths)
        assert scores["janus"] is None  # no view is far from the front
        away = score("a red mug", [("red", "mug")] * 3, None, [0.0, 61.0, 299.0])
        assert away["janus"] == 1.0

    def test_an_object_without_a_front_has_no_janus(self) -> None:
        scores = score("a red ball", [("red", "ball")] * 4)
        assert scores["janus"] is None
        assert scores["r_precision"] == 1.0

    def test_a_prompt_without_a_colour(self) -> None:
        scores = score("a mug", [("red", "mug"), ("blue", "mug"), ("red", "duck"), ("red", "car")])
        assert scores["object"] == scores["r_precision"] == 0.5
        assert scores["colour"] is None

    def test_a_prompt_of_another_world(self) -> None:
        scores = score("a dragon", [("red", "mug")] * 4)
        assert scores == dict.fromkeys(("r_precision", "object", "colour", "janus"))

    def test_synonyms(self) -> None:
        assert score("a grey cup", [("gray", "mug")] * 2)["r_precision"] == 1.0
