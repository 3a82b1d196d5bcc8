"""Scores of videos: verdicts that are made up, and frames whose scores are known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.metrics.scores import Target
from dreamkit.metrics.video import (
    camera_error,
    colour_statistics,
    flicker,
    frame_accuracy,
    frame_hits,
    motion_magnitude,
    point_error,
    prompt_things,
    sharpness,
)
from dreamkit.metrics.video_judge import (
    COMPOSITIONS,
    NOTHING,
    REACH,
    ClipVerdict,
    FrameVerdict,
    VideoJudge,
    VideoJudgeNetwork,
    camera_motion,
)
from dreamkit.metrics.video_stream import Drift, VideoScorer, Windows, score_video
from dreamkit.toyworld.motion_scripts import CAMERA_MOVES, CameraPath
from dreamkit.video.controls import Controls

RED_CUBE, BLUE_BALL = ("red", "cube"), ("blue", "ball")


def verdict(*frames: dict[tuple[str, str] | None, float]) -> FrameVerdict:
    """What frames show, by the probability of each composition; None is nothing."""
    table = torch.full((len(frames), NOTHING + 1), 1e-6)
    for row, shares in zip(table, frames, strict=True):
        for pair, share in shares.items():
            row[NOTHING if pair is None else COMPOSITIONS.index(pair)] = share
    return FrameVerdict((table / table.sum(dim=1, keepdim=True)).log(), torch.zeros(len(frames), 2))


class StubJudge(VideoJudge):
    """Red frames show a red cube, others nothing; the camera stands still."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def frames(self, images: Tensor) -> FrameVerdict:
        red = images.mean(dim=(2, 3)).argmax(dim=1) == 0
        return verdict(*({RED_CUBE if flag else None: 1.0} for flag in red.tolist()))

    def clips(self, clips: Tensor) -> ClipVerdict:
        self.lengths.append(clips.shape[1])
        count = len(clips)
        return ClipVerdict(
            torch.eye(15)[:count],
            torch.eye(7)[:count],
            torch.zeros(count, clips.shape[1] - 1, 3),
            torch.zeros(count, 2),
        )


def noise(count: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class TestPrompts:
    @pytest.mark.parametrize(
        ("prompt", "things"),
        [
            ("a red cube spinning, the camera pans left", [("cube", "red")]),
            ("A box rolling", [("cube", None)]),
            ("a clip of a striped red cube and a blue sphere pass each other", [("cube", "red"), ("ball", "blue")]),
            ("a red cube passes a blue ball", [("cube", "red"), ("ball", "blue")]),
            ("a red cube and a blue ball passing each other", [("cube", "red"), ("ball", "blue")]),
            ("a red cat", []),
            ("a red cube and a cat", []),
            ("the sea", []),
        ],
    )
    def test_what_they_name(self, prompt: str, things: list[tuple[str, str | None]]) -> None:
        assert prompt_things(prompt) == [Target(*thing) for thing in things]

    def test_every_caption_of_the_world_is_understood(self) -> None:
        from types import SimpleNamespace

        from dreamkit.toyworld.captions import Thing
        from dreamkit.toyworld.motion_captions import MotionWriter
        from dreamkit.toyworld.motion_scripts import MOTIONS, directions_of

        writer = MotionWriter(torch.Generator().manual_seed(0))
        for motion in MOTIONS:
            things = [Thing("cube", "red", "spotted"), Thing("ball", "gray")][: 1 + (motion == "passing")]
            for direction in directions_of(motion) * 10:
                script = SimpleNamespace(things=things, motion=motion, direction=direction, camera_move="pans left")
                caption = writer.clip(script, True)
                assert prompt_things(caption) == [Target(thing.name, thing.colour) for thing in things], caption


class TestHits:
    def test_one_thing(self) -> None:
        seen = verdict({RED_CUBE: 0.9}, {("red", "ball"): 0.9}, {("blue", "cube"): 0.9}, {None: 0.6, RED_CUBE: 0.4})
        hits = frame_hits(seen, "a red cube")
        assert {name: values.tolist() for name, values in hits.items()} == {
            "object": [True, False, True, False],
            "colour": [True, True, False, False],
            "prompt": [True, False, False, False],
        }

    def test_marginals_decide_about_objects(self) -> None:
        """Cubes of two colours outweigh the likeliest composition."""
        hits = frame_hits(verdict({("blue", "cube"): 0.3, ("red", "cube"): 0.3, BLUE_BALL: 0.4}), "a cube")
        assert hits["object"].tolist() == hits["prompt"].tolist() == [True]
        assert "colour" not in hits

    def test_two_things_keep_their_colours(self) -> None:
        right = {RED_CUBE: 0.3, BLUE_BALL: 0.6}
        exchanged = {("blue", "cube"): 0.5, ("red", "ball"): 0.4}
        hits = frame_hits(verdict(right, exchanged, {RED_CUBE: 1.0}), "a red cube and a blue ball pass each other")
        assert hits["object"].tolist()[:2] == hits["colour"].tolist()[:2] == [True, True]
        assert hits["prompt"].tolist() == [True, False, False]

    def test_two_alike(self) -> None:
        assert frame_hits(verdict({RED_CUBE: 1.0}), "a red cube passes a red cube")["prompt"].tolist() == [True]

    def test_nothing_known(self) -> None:
        assert frame_hits(verdict({RED_CUBE: 1.0}), "the sea") == {}

    def test_accuracy_is_the_share(self) -> None:
        frames = torch.zeros(4, 3, 32, 32)
        frames[:3, 0] = 0.5
        frames[3, 1] = 0.5
        assert frame_accuracy(StubJudge(), frames, "a red ball") == {"object": 0.0, "colour": 0.75, "prompt": 0.0}


class TestMotionAndLook:
    def test_magnitude_is_the_length(self) -> None:
        flow = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(2, 2, 8, 8)
        assert motion_magnitude(flow) == pytest.approx(5)

    def test_flicker_is_what_motion_does_not_explain(self) -> None:
        still = noise(1).expand(4, -1, -1, -1)
        none = torch.zeros(3, 2, 32, 32)
        assert flicker(still, none, none) == pytest.approx(0, abs=1e-6)
        lit = 0.5 * still + torch.tensor([0.0, 0.1, 0.0, 0.1]).view(4, 1, 1, 1)
        assert flicker(lit, none, none) == pytest.approx(0.1, abs=1e-6)
        picture = noise(1, 40)
        moving = torch.cat([picture[..., 4:36, 4 - step : 36 - step] for step in range(4)])
        flow = none.clone()
        flow[:, 0] = 1.0
        assert flicker(moving, flow, -flow) == pytest.approx(0, abs=1e-5)
        assert flicker(moving, none, none) > 0.1

    def test_sharpness_of_a_ramp(self) -> None:
        ramp = (torch.arange(11.0) / 20).expand(2, 3, 7, 11)
        torch.testing.assert_close(sharpness(ramp), torch.full((2,), 0.05**2))
        torch.testing.assert_close(sharpness(0.5 * ramp), torch.full((2,), 0.025**2))

    def test_colour_statistics(self) -> None:
        frames = torch.zeros(1, 3, 4, 4)
        frames[:, 1] = 0.5
        frames[:, 2, :, :2] = 1.0
        torch.testing.assert_close(colour_statistics(frames), torch.tensor([[0, 0.5, 0.5, 0, 0, 0.5]]))


class TestControls:
    @pytest.mark.parametrize("move", CAMERA_MOVES)
    def test_camera_motion_of_each_move(self, move: str) -> None:
        path = CameraPath(move, azimuth=7.0, elevation=0.0, radius=4.0, end_radius=3.0, rate=3.0, swing=10.0)
        right, forward, left = camera_motion(path.cameras(torch.arange(6.0)).pose).unbind(dim=1)
        progress = (1 - torch.exp(-torch.arange(6.0) / 10)).diff()
        side = -1.0 if move.endswith("left") else 1.0
        wanted = {
            "orbits": (side * 4 * math.sin(math.radians(3)) + 0 * progress, side * math.radians(3) + 0 * progress),
            "pans": (0 * progress, -side * 2 * math.radians(10) * progress),
        }.get(move.split()[0], (0 * progress, 0 * progress))
        torch.testing.assert_close(right, wanted[0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(left, wanted[1], atol=1e-4, rtol=1e-3)
        if move.startswith("dollies"):
            torch.testing.assert_close(forward, progress, atol=1e-4, rtol=1e-3)

    def test_camera_error(self) -> None:
        asked = torch.tensor([[0.3, 0.0, 0.0], [0.0, 0.0, 0.1]])
        assert camera_error(asked, asked)[0] == 0
        assert camera_error(torch.zeros(2, 3), asked) == pytest.approx((0.3 + 0.1 * REACH,) * 2)
        assert camera_error(2 * asked, asked)[0] == pytest.approx(0.3 + 0.1 * REACH)

    def test_point_error(self) -> None:
        """One point goes as asked, one two pixels too far a frame, and one counts only until it is hidden."""
        flow = torch.zeros(2, 2, 32, 32)
        flow[:, 0] = 2.0
        start = torch.tensor([[0.25, 0.5], [0.5, 0.25], [0.5, 0.75]])
        steps = torch.tensor([[2 / 32, 0.0], [0.0, 0.0], [2 / 32, 0.0]])
        tracks = torch.stack([start, start + steps, start + 2 * steps])
        visible = torch.ones(3, 3, dtype=torch.bool)
        visible[1, 2] = False
        assert point_error(flow, tracks, visible) == pytest.approx((0 + 2 + 4, 2 + 4, 4))
        with pytest.raises(ConfigError, match="tracks"):
            point_error(flow, tracks[:2], visible[:2])


class TestDrift:
    def test_windows(self) -> None:
        values = torch.arange(20.0)[:, None]
        whole, pieces = Windows(1, 3, 5), Windows(1, 3, 5)
        whole.add(values)
        for piece in values.split([1, 4, 9, 6]):
            pieces.add(piece)
        assert whole.means[:, 0].tolist() == pieces.means[:, 0].tolist() == [5.0, 10.0, 15.0]

    def test_parts(self) -> None:
        means = torch.zeros(3, 10, dtype=torch.float64)
        means[:, :6] = 0.5
        means[1, :6] = 0.4
        means[:, 6] = torch.tensor([0.02, 0.01, 0.04])
        means[:, 7] = torch.tensor([0.9, 0.6, 1.0])
        means[:, 8:] = torch.nan
        drift = Drift.of(means)
        assert drift.colour.tolist() == pytest.approx([0.1, 0])
        assert drift.sharpness.tolist() == pytest.approx([0.5, 0.5])
        assert set(drift.hits) == {"prompt"}
        assert drift.hits["prompt"].tolist() == pytest.approx([0.3, 0])
        assert drift.numbers()["drift"] == pytest.approx(((0.1 + 0.5 + 0.3) / 3 + 0.5 / 3) / 2)

    def scorer(self, frames: Tensor, prompt: str = "a red cube") -> VideoScorer:
        scorer = VideoScorer(StubJudge(), prompt, drift_start=15, drift_length=15)
        scorer.add(frames)
        return scorer

    def test_none_of_a_video_that_repeats(self) -> None:
        numbers = self.scorer(noise(15, 16).repeat(5, 1, 1, 1)).result()
        assert numbers["drift"] == pytest.approx(0, abs=1e-6)
        assert numbers["drift_colour"] == pytest.approx(0, abs=1e-6)

    def test_rising_where_it_fades(self) -> None:
        fading = noise(1, 16) * torch.linspace(1, 0.2, 75).view(75, 1, 1, 1)
        drift = self.scorer(fading).drift()
        assert drift is not None
        for curve in (drift.colour, drift.sharpness, drift.total):
            assert bool((curve.diff() > 0.01).all()), curve

    def test_what_is_forgotten(self) -> None:
        """Red for the first windows, green afterwards: the prompt is lost."""
        frames = torch.zeros(75, 3, 16, 16)
        frames[:45, 0] = 0.5
        frames[45:, 1] = 0.5
        numbers = self.scorer(frames).result()
        assert numbers["drift_prompt_accuracy"] == pytest.approx(2 / 3)
        assert "drift_prompt_accuracy" not in self.scorer(frames, "the sea").result()

    def test_short_videos_have_none(self) -> None:
        assert "drift" not in self.scorer(noise(44, 16)).result()
        assert "drift" in self.scorer(noise(45, 16)).result()


class TestScorer:
    def test_a_still_video(self) -> None:
        scores = score_video(noise(1).expand(20, -1, -1, -1), "a red cube", StubJudge())
        assert scores["motion_magnitude"] == 0
        assert scores["flicker"] == pytest.approx(0, abs=1e-6)
        assert scores["frames"] == 20

    @settings(max_examples=8, deadline=None)
    @given(cuts=st.lists(st.integers(1, 49), max_size=5, unique=True).map(sorted))
    def test_lots_make_no_difference(self, cuts: list[int]) -> None:
        frames = noise(50, 16)
        cameras = CameraPath("orbits left").cameras(torch.arange(50.0)).pose
        controls = Controls(cameras[None], torch.rand(1, 50, 2, 2, generator=torch.Generator().manual_seed(1)))

        def scorer() -> VideoScorer:
            return VideoScorer(StubJudge(), "a red cube", ("still", ""), "static", drift_start=10, drift_length=10)

        whole, pieces = scorer(), scorer()
        whole.add(frames, controls)
        for start, end in zip([0, *cuts], [*cuts, 50], strict=True):
            pieces.add(frames[start:end], controls.frames(start, end))
            pieces.result()  # looking does not disturb
        assert pieces.result() == whole.result()
        assert whole.result()["frames"] == 50

    def test_blocks_overlap_by_a_frame(self) -> None:
        judge = StubJudge()
        scorer = VideoScorer(judge, "a red cube")
        scorer.add(noise(15 + 14 + 8, 16))
        scorer.result()
        assert judge.lengths == [15, 15, 9]

    def test_a_still_camera_owes_all_that_was_asked(self) -> None:
        cameras = CameraPath("dollies in", radius=5.0, end_radius=3.0).cameras(torch.arange(15.0)).pose
        scores = score_video(noise(15, 16), "a red cube", StubJudge(), Controls(cameras[None]))
        assert scores["camera_error_share"] == pytest.approx(1)
        assert scores["camera_error"] == pytest.approx(2 * (1 - math.exp(-1.4)) / 14, rel=1e-4)
        still = score_video(noise(15, 16), "a red cube", StubJudge(), Controls(cameras[:1].expand(1, 15, -1)))
        assert "camera_error_share" not in still
        assert still["camera_error"] == 0

    def test_asked_points(self) -> None:
        """Points asked to stay, in a still video, and asked to leave."""
        frames = noise(1).expand(15, -1, -1, -1)
        stay = torch.full((15, 1, 2), 0.5)
        assert score_video(frames, "", StubJudge(), Controls(tracks=stay[None]))["point_error"] == 0
        leave = stay + torch.linspace(0, 0.25, 15).view(15, 1, 1)
        scores = score_video(frames, "", StubJudge(), Controls(tracks=leave[None]))
        assert scores["point_error_share"] == pytest.approx(1)
        assert scores["point_error"] == pytest.approx(32 * 2**0.5 * 0.25 * 15 / 28, rel=1e-5)

    def test_one_frame(self) -> None:
        scores = score_video(noise(1), "a red cube", StubJudge())
        assert set(scores) == {"prompt", "object", "colour", "empty", "sharpness", "frames"}

    def test_before_any(self) -> None:
        assert VideoScorer(StubJudge(), "a red cube").result() == {"frames": 0.0}

    def test_what_it_refuses(self) -> None:
        judge = VideoJudge(VideoJudgeNetwork(8, 8, 16))
        with pytest.raises(ConfigError, match="motion"):
            VideoScorer(judge, "", motion=("flying", ""))
        with pytest.raises(ConfigError, match="camera"):
            VideoScorer(judge, "", camera_move="flies")
        with pytest.raises(ConfigError, match="length"):
            VideoScorer(judge, "", drift_length=0)
        for frames, word in ((noise(0), "shape"), (noise(2)[:, :1], "shape"), (noise(2) / 0, "not finite")):
            with pytest.raises(ConfigError, match=word):
                score_video(frames, "", judge)
        scorer = VideoScorer(judge, "")
        scorer.add(noise(2))
        with pytest.raises(ConfigError, match="size"):
            scorer.add(noise(2, 48))
        for controls, word in (
            (Controls(camera=torch.zeros(1, 2, 12)), "camera asked"),
            (Controls(camera=torch.zeros(1, 3, 12)), r"\(1, 2\)"),
            (Controls(tracks=torch.zeros(2, 2, 3, 2)), r"\(1, 2\)"),
            (Controls(tracks=torch.full((1, 2, 3, 2), 7.0)), "outside"),
            (Controls(camera=torch.full((1, 2, 12), torch.nan)), "not finite"),
        ):
            with pytest.raises(ConfigError, match=word):
                scorer.add(noise(2), controls)

    def test_frames_without_a_camera_do_not_count(self) -> None:
        cameras = CameraPath("orbits left").cameras(torch.arange(15.0)).pose[None].clone()
        whole = score_video(noise(15, 16), "", StubJudge(), Controls(cameras))
        cameras[:, 10:] = 0.0
        assert score_video(noise(15, 16), "", StubJudge(), Controls(cameras)) == pytest.approx(whole)
        assert "camera_error" not in score_video(noise(15, 16), "", StubJudge(), Controls(0 * cameras))
