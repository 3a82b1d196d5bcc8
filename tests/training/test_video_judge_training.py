"""Training of the video judge: what it is told about frames, mirrors, learning, repetition."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreamkit.errors import ConfigError
from dreamkit.metrics.video_judge import COMPOSITIONS, MOTION_CLASSES, NOTHING, VideoJudgeNetwork, load_video_judge
from dreamkit.toyworld.captions import Thing
from dreamkit.toyworld.motion import CAMERA_MOVES, Clips
from dreamkit.training import video_judge
from dreamkit.training.video_judge import (
    MIRRORED_MOTION,
    MIRRORED_MOVE,
    Lessons,
    VideoJudgeOptions,
    VideoJudgeTrainer,
    composition_loss,
    disturb_clips,
    frame_classes,
    measure_video_judge,
    train_video_judge,
)

RED_CUBE, BLUE_BALL = (COMPOSITIONS.index(pair) for pair in (("red", "cube"), ("blue", "ball")))


def squares(count: int, seed: int = 0) -> Lessons:
    """Clips of 8 frames of a red square that stands, or moves to the right."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.full((count, 8, 3, 64, 64), 128, dtype=torch.uint8)
    moves = torch.arange(count) % 2
    for row, moving in zip(frames, moves.tolist(), strict=True):
        top, left = torch.randint(8, 24, (2,), generator=generator).tolist()
        for step, frame in enumerate(row):
            shift = 3 * step * moving
            frame[:, top : top + 20, left + shift : left + shift + 16] = torch.tensor([220, 20, 20]).view(3, 1, 1)
    still, right = MOTION_CLASSES.index(("still", "")), MOTION_CLASSES.index(("sliding", "right"))
    things = torch.tensor([RED_CUBE, -1]).expand(count, 8, 2)
    return Lessons(
        frames, things, torch.where(moves > 0, right, still), torch.zeros_like(moves), torch.zeros(count, 7, 3)
    )


def small() -> VideoJudgeNetwork:
    return VideoJudgeNetwork(width=8, motion_width=8, features=16)


def trainer(out: Path, **changes: Any) -> VideoJudgeTrainer:
    options = VideoJudgeOptions(out=out, **{"steps": 3, "cooldown": 2, "frames": 4, "batch": 4} | changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return VideoJudgeTrainer(options, squares(6), small())


class TestLessons:
    def clips(self, things: list[Thing], tracks: torch.Tensor, visible: torch.Tensor) -> Clips:
        script: Any = SimpleNamespace(things=things)
        return Clips(torch.zeros(1), [""], torch.zeros(1), tracks[None], visible[None], [script], torch.zeros(1))

    def test_one_object(self) -> None:
        """Inside, a third inside, hardly inside, outside: eight points, the first six on the object."""
        tracks = torch.full((4, 8, 2), 0.5)
        tracks[1, 2:6, 0] = 1.2
        tracks[2, 1:6, 0] = -0.1
        tracks[3, :6, 1] = 1.0
        visible = ((tracks >= 0) & (tracks < 1)).all(dim=-1)
        classes = frame_classes(self.clips([Thing("cube", "red")], tracks, visible))
        assert classes.tolist() == [[[RED_CUBE, -1], [RED_CUBE, -1], [-1, -1], [NOTHING, -1]]]

    def test_two_objects(self) -> None:
        """Both, one of them outside, one hidden by the other."""
        tracks = torch.full((3, 8, 2), 0.5)
        tracks[1, :3, 0] = 2.0
        visible = ((tracks >= 0) & (tracks < 1)).all(dim=-1)
        visible[2, 3:6] = False
        classes = frame_classes(self.clips([Thing("cube", "red"), Thing("ball", "blue")], tracks, visible))
        both = sorted([RED_CUBE, BLUE_BALL], reverse=True)
        assert classes.tolist() == [[both, [BLUE_BALL, -1], [-1, -1]]]


class TestMirrors:
    def test_left_and_right_change_places(self) -> None:
        for index, (motion, direction) in enumerate(MOTION_CLASSES):
            other = {"left": "right", "right": "left"}.get(direction, "")
            assert MOTION_CLASSES[MIRRORED_MOTION[index]] == (motion, other)
        assert [CAMERA_MOVES[index] for index in MIRRORED_MOVE.tolist()] == [
            "static", "orbits right", "orbits left", "dollies in", "dollies out", "pans right", "pans left",
        ]  # fmt: skip

    def test_disturbing_is_mild_and_repeats(self) -> None:
        clips = torch.full((20, 3, 3, 16, 16), 0.5)
        one, two = (disturb_clips(clips, torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(one, two)
        gains = one.mean(dim=(1, 2, 3, 4)) / 0.5
        assert 0.84 < float(gains.min()) < 0.93 < 1.07 < float(gains.max()) < 1.16
        assert float(one.std(dim=(1, 2, 3, 4)).max()) < 0.02
        assert bool((clips == 0.5).all())


class TestLoss:
    def test_mean_over_the_objects_of_each_frame(self) -> None:
        verdicts = torch.randn(2, NOTHING + 1, generator=torch.Generator().manual_seed(0)).log_softmax(dim=1)
        wanted = -(verdicts[0, 5] + 0.5 * (verdicts[1, 9] + verdicts[1, 7])) / 2
        torch.testing.assert_close(composition_loss(verdicts, torch.tensor([[5, -1], [9, 7]])), wanted)


class TestTraining:
    def test_the_loss_falls(self, tmp_path: Path) -> None:
        learner = trainer(tmp_path, steps=25, cooldown=5)
        losses = [learner.train_step()["loss"] for _ in range(25)]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), losses

    def test_it_starts_from_the_pictures_judge(self, tmp_path: Path) -> None:
        from dreamkit.metrics.judge import load_judge

        options = VideoJudgeOptions(out=tmp_path)
        own = VideoJudgeTrainer(options, squares(2)).network.frames.stages.state_dict()
        known = load_judge().network.stages.state_dict()
        for name in ("0.weight", "4.conv2.weight", "8.weight"):
            torch.testing.assert_close(own[name], known[name])

    def test_all_of_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rendered, trained, written, measured; the same seed gives the same file; a finished run is only measured."""
        monkeypatch.setattr(video_judge, "_render", lambda options, config, count, seed: squares(count, seed))
        monkeypatch.setattr(video_judge, "VideoJudgeNetwork", small)
        files = []
        for name, seed in (("one", 1), ("two", 1), ("other", 2), ("one", 1)):
            options = VideoJudgeOptions(
                out=tmp_path / name, steps=2, cooldown=1, frames=2, batch=2, clips=4, measured=3, seed=seed
            )
            folder, accuracy = train_video_judge(options)
            files.append((folder / "model.safetensors").read_bytes())
            assert {"object", "colour", "composition", "motion", "camera_move"} < set(accuracy)
        assert files[0] == files[1] == files[3] != files[2]
        load_video_judge(folder)

    def test_options(self) -> None:
        with pytest.raises(ConfigError, match="clips is 0"):
            VideoJudgeOptions(clips=0)


class TestMeasuring:
    def test_shares(self) -> None:
        """A judge that always says red cube, and still."""
        lessons = squares(4)

        class Stubborn:
            def frames(self, images: torch.Tensor) -> Any:
                table = torch.zeros(len(images), NOTHING + 1)
                table[:, RED_CUBE] = 1.0
                return SimpleNamespace(compositions=table)

            def clips(self, clips: torch.Tensor) -> Any:
                still = torch.zeros(len(clips), len(MOTION_CLASSES))
                still[:, MOTION_CLASSES.index(("still", ""))] = 1.0
                return SimpleNamespace(
                    motion=still,
                    camera_move=torch.eye(7)[[0] * len(clips)],
                    camera_motion=torch.zeros(len(clips), 7, 3),
                )

        judge: Any = Stubborn()
        things = torch.tensor(
            [[RED_CUBE, -1], [BLUE_BALL, -1], [COMPOSITIONS.index(("red", "ball")), -1], [NOTHING, -1]]
        )
        lessons = Lessons(
            lessons.frames,
            torch.cat([things, torch.tensor([[-1, -1]] * 4)]).expand(4, 8, 2),
            lessons.motion,
            torch.tensor([0, 0, 1, 0]),
            torch.ones(4, 7, 3),
        )
        got = measure_video_judge(judge, lessons)
        assert got["object"] == pytest.approx(1 / 3)
        assert got["colour"] == pytest.approx(2 / 3)
        assert got["composition"] == pytest.approx(1 / 3)
        assert got["empty"] == 0
        assert got["motion"] == 0.5
        assert got["camera_move"] == 0.75
        assert got["camera_error"] == pytest.approx(1)
        assert got["pair"] != got["pair"]  # there was none
