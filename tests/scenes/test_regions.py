"""Regions of space: what they hold, what sees into them, and words that mean none."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreamkit.errors import DreamkitError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.regions import Ball, Box, Painted, parse_region, rays_through

POINTS = torch.tensor([[0.0, 0.0, 0.0], [0.4, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, -0.9]])


class TestWhatTheyHold:
    def test_a_box_from_any_two_corners(self) -> None:
        box = parse_region("box:0.5,-0.1,0.5,-0.5,0.7,-0.5")
        assert box == Box((-0.5, -0.1, -0.5), (0.5, 0.7, 0.5))
        assert box.contains(POINTS).tolist() == [True, True, True, False]

    def test_a_ball(self) -> None:
        ball = parse_region("ball:0,0,-0.5,0.5")
        assert ball == Ball((0.0, 0.0, -0.5), 0.5)
        assert ball.contains(POINTS).tolist() == [True, False, False, True]

    def test_a_painted_picture_reaches_through(self, tmp_path: Path) -> None:
        mask = Image.new("L", (40, 40), 0)
        mask.paste(255, (20, 0, 40, 40))  # the right half, seen from the front: x > 0
        mask.save(tmp_path / "a@b.png")
        region = parse_region(f"{tmp_path}/a@b.png@0,0")
        assert isinstance(region, Painted)
        points = torch.tensor([[0.2, 0.1, 0.5], [0.2, 0.1, -0.5], [-0.2, 0.1, 0.5], [0.2, 0.0, 5.0], [9.0, 0.0, 0.0]])
        assert region.contains(points).tolist() == [True, True, False, False, False]

    @pytest.mark.parametrize(
        "text",
        [
            *("", "box", "box:1,2,3", "box:0,0,0,0,1,1", "box:a,b,c,d,e,f", "box:0,0,0,1,1,nan", "ball:0,0,0,0"),
            *("ball:0,0,0,-1", "ball:1e999,0,0,1", "cone:1,2", "nowhere.png", "nowhere.png@0,0", "x@1", "@0,0"),
        ],
    )
    def test_no_region(self, text: str) -> None:
        with pytest.raises(DreamkitError):
            parse_region(text)

    def test_a_picture_without_white(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
        with pytest.raises(DreamkitError, match="white"):
            parse_region(f"{tmp_path}/black.png@0,0")

    @given(st.text(max_size=40))
    def test_any_text_is_a_region_or_an_error(self, text: str) -> None:
        try:
            region = parse_region(text)
        except DreamkitError:
            return
        assert region.contains(POINTS).shape == (4,)


class TestWhatSeesIntoThem:
    front = Camera.orbit([0.0, 180.0], 0.0, 3.0, 40.0, 32, 32)

    def test_pixels_are_those_that_the_centre_falls_on(self) -> None:
        centre = torch.tensor([0.3, 0.2, 0.1])
        seen = rays_through(Ball((0.3, 0.2, 0.1), 0.1), self.front, torch.full((2, 1, 32, 32), torch.inf))
        pixels, _ = self.front.project(centre[None])
        for view, (u, v) in enumerate(pixels[:, 0].tolist()):
            rows, columns = torch.nonzero(seen[view, 0], as_tuple=True)
            assert abs(float(columns.float().mean()) + 0.5 - u) < 1
            assert abs(float(rows.float().mean()) + 0.5 - v) < 1

    def test_what_is_in_front_hides_them(self) -> None:
        behind = Ball((0.0, 0.0, -0.5), 0.2)  # behind a wall at depth 3, for the first camera
        seen = rays_through(behind, self.front, torch.full((2, 1, 32, 32), 3.0))
        assert not seen[0].any()
        assert seen[1].any()
