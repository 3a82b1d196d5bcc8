"""The words of the moving toy world."""

import re

import pytest
import torch
from test_motion_scripts import every_way, mover

from dreamkit.toyworld.captions import vocabulary
from dreamkit.toyworld.motion_captions import MotionWriter, motion_content_words, motion_vocabulary
from dreamkit.toyworld.motion_config import MOTION_OBJECTS
from dreamkit.toyworld.motion_scripts import CAMERA_MOVES, CameraPath, Script


def scripts(camera_move: str = "static") -> list[Script]:
    """One of every motion and direction."""
    found = []
    for motion, direction in every_way():
        movers = [mover(motion, direction)]
        if motion == "passing":
            movers.append(mover(motion, {"left": "right", "right": "left"}[direction], "cube"))
        found.append(Script(tuple(movers), CameraPath(camera_move)))
    return found


def captions(script: Script, name_camera: bool, count: int = 40) -> set[str]:
    """Different wordings."""
    writer = MotionWriter(torch.Generator().manual_seed(0))
    return {writer.clip(script, name_camera) for _ in range(count)}


def tokens(text: str) -> list[str]:
    """Words and punctuation."""
    return re.findall(r"[a-z]+|[^\sa-z]", text)


class TestCaptions:
    @pytest.mark.parametrize("script", scripts(), ids=lambda script: f"{script.motion} {script.direction}")
    def test_wordings(self, script: Script) -> None:
        for text in captions(script, name_camera=True):
            words = tokens(text)
            assert "red" in words
            assert {"ball", "sphere"} & set(words)
            assert (script.direction in words) == (script.direction != "" and script.motion != "passing")
            assert not {"left", "right"} - {script.direction} & set(words)
            assert "camera" not in words  # a static one is not worth a word
        assert len(captions(script, name_camera=True)) > 8

    @pytest.mark.parametrize("move", CAMERA_MOVES[1:])
    def test_the_camera(self, move: str) -> None:
        script = Script((mover("still"),), CameraPath(move))
        for text in captions(script, name_camera=True):
            assert re.search(r", (the )?camera \w+ ", text)
            assert move.split()[1] in text or "closer" in text or "away" in text or "zooming" in text
        assert not any("camera" in text for text in captions(script, name_camera=False))

    def test_both_of_a_pair_are_named(self) -> None:
        pair = next(script for script in scripts() if script.motion == "passing")
        for text in captions(pair, name_camera=False):
            assert re.search(r"(ball|sphere).*(cube|box)", text)

    def test_nothing_is_told_of_what_stands_still_in_part_of_the_captions(self) -> None:
        texts = captions(scripts()[0], name_camera=False, count=200)
        assert any(re.fullmatch(r"a red (ball|sphere)", text) for text in texts)
        assert any("standing still" in text for text in texts)


class TestVocabulary:
    def test_it_covers_every_wording(self) -> None:
        known = set(motion_vocabulary())
        for move in CAMERA_MOVES:
            for script in scripts(move):
                for text in captions(script, name_camera=True):
                    assert set(tokens(text)) <= known, text

    def test_it_holds_the_words_of_pictures(self) -> None:
        words = motion_vocabulary()
        assert words == sorted(set(words))
        assert set(vocabulary()) < set(words)
        assert {"video", "clip", "spinning", "camera", "orbits", "left", ","} <= set(words)

    def test_content_words(self) -> None:
        words = motion_content_words()
        assert words == sorted(set(words))
        assert set(words) < set(motion_vocabulary())
        assert {*MOTION_OBJECTS, "red", "grey", "spotted", "dotted", "spinning", "left", "camera", "pans"} <= set(words)
        assert not {"a", "the", "and", "to", "teapot", "shiny", "big"} & set(words)
