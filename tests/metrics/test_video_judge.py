"""The video judge's network and file, what it refuses, and how right the embedded one is on the moving world."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamkit.errors import ConfigError, TeacherError
from dreamkit.metrics.flow import follow, optical_flow
from dreamkit.metrics.frechet import FeatureStatistics, frechet_distance
from dreamkit.metrics.video import camera_error, frame_accuracy
from dreamkit.metrics.video_judge import (
    COMPOSITIONS,
    FEWEST_FRAMES,
    MOTION_CLASSES,
    NOTHING,
    VideoJudge,
    VideoJudgeNetwork,
    camera_motion,
    load_video_judge,
    motion_class,
    motion_inputs,
    save_video_judge,
)
from dreamkit.toyworld.captions import COLOURS, Thing
from dreamkit.toyworld.motion import (
    CAMERA_MOVES,
    MOTION_OBJECTS,
    MOTIONS,
    Clips,
    MotionConfig,
    MotionWorld,
    build_motion_cache,
)

EMBEDDED = Path(__file__).parents[2] / "assets" / "motion-judge"
embedded = pytest.mark.skipif(not EMBEDDED.exists(), reason="the weights are not in this checkout")


def tiny() -> VideoJudgeNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VideoJudgeNetwork(width=8, motion_width=8, features=16)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge"
    save_video_judge(tiny(), path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> MotionWorld:
    """Shapes that no judge and no teacher was trained on."""
    config = MotionConfig(shapes=1, faces=800, resolution=56, seed=31, points=32)
    return MotionWorld(build_motion_cache(config, tmp_path_factory.mktemp("motion"), 1), config, hold_out=False)


@pytest.fixture(scope="module")
def clips(world: MotionWorld) -> Clips:
    return world.sample(60, torch.Generator().manual_seed(5))


class TestClasses:
    def test_every_composition_once(self) -> None:
        assert len(set(COMPOSITIONS)) == NOTHING == len(MOTION_OBJECTS) * len(COLOURS)

    def test_every_motion(self) -> None:
        assert {motion for motion, _ in MOTION_CLASSES} == set(MOTIONS)
        assert MOTION_CLASSES[motion_class("rolling", "left")] == ("rolling", "left")
        assert motion_class("passing", "left") == motion_class("passing", "right")


class TestNetwork:
    def test_a_mixture_over_cells(self) -> None:
        """Probabilities add to 1; the cells' own numbers, summed in plain loops, give the same."""
        network = tiny().eval()
        images = noise(2, 3, 64, 64)
        with torch.no_grad():
            verdict, features = network.frames(images)
            cells = network.frames.head(network.frames.stages(2 * images - 1)).flatten(2)
        torch.testing.assert_close(verdict.exp().sum(dim=1), torch.ones(2))
        assert features.shape == (2, 64)
        weights = cells[0, -1].softmax(dim=0)
        kinds, colours = cells[0, :17].softmax(dim=0), cells[0, 17:29].softmax(dim=0)
        index = COMPOSITIONS.index(("pink", "robot"))
        pair = kinds[MOTION_OBJECTS.index("robot")] * colours[list(COLOURS).index("pink")]
        torch.testing.assert_close(verdict[0, index].exp(), (weights * pair).sum())
        torch.testing.assert_close(verdict[0, NOTHING].exp(), (weights * kinds[16]).sum())

    def test_shapes(self) -> None:
        verdict = VideoJudge(tiny()).clips(noise(2, 9, 3, 64, 64))
        assert verdict.motion.shape == (2, len(MOTION_CLASSES))
        assert verdict.camera_move.shape == (2, len(CAMERA_MOVES))
        assert verdict.camera_motion.shape == (2, 8, 3)
        assert verdict.features.shape == (2, 32)
        torch.testing.assert_close(verdict.motion.exp().sum(dim=1), torch.ones(2))

    def test_marginals(self) -> None:
        verdict = VideoJudge(tiny()).frames(noise(3, 3, 64, 64))
        rest = 1 - verdict.compositions[:, NOTHING].exp()
        torch.testing.assert_close(verdict.objects.exp().sum(dim=1), rest)
        torch.testing.assert_close(verdict.colours.exp().sum(dim=1), rest)

    def test_frames_and_clips_do_not_see_one_another(self) -> None:
        judge, images, clips = VideoJudge(tiny()), noise(3, 3, 64, 64), noise(2, 8, 3, 64, 64)
        alone = torch.cat([judge.frames(image[None]).compositions for image in images])
        torch.testing.assert_close(judge.frames(images).compositions, alone, atol=1e-4, rtol=1e-4)
        alone = torch.cat([judge.clips(clip[None]).motion for clip in clips])
        torch.testing.assert_close(judge.clips(clips).motion, alone, atol=1e-3, rtol=1e-3)

    def test_large_frames_are_averaged(self) -> None:
        judge, images = VideoJudge(tiny()), noise(2, 3, 64, 64)
        large = images.repeat_interleave(3, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(judge.frames(large).compositions, judge.frames(images).compositions)

    def test_inputs_of_a_still_clip(self) -> None:
        inputs = motion_inputs(noise(1, 1, 3, 64, 64).expand(1, 3, -1, -1, -1))
        assert inputs.shape == (1, 2, 8, 32, 32)
        assert not bool(inputs[:, :, :5].any())

    def test_what_it_refuses(self) -> None:
        judge = VideoJudge(tiny())
        for images, word in (
            (torch.zeros(0, 3, 64, 64), "shape"),
            (torch.zeros(2, 4, 64, 64), "shape"),
            (torch.zeros(1, 3, 64, 64) / 0, "not finite"),
        ):
            with pytest.raises(ConfigError, match=word):
                judge.frames(images)
        with pytest.raises(ConfigError, match=f"F of {FEWEST_FRAMES}"):
            judge.clips(torch.zeros(1, 7, 3, 64, 64))
        with pytest.raises(ConfigError, match="not finite"):
            judge.clips(torch.zeros(1, 8, 3, 64, 64) / 0)


class TestFile:
    def test_round_trip(self, folder: Path) -> None:
        images = noise(2, 3, 64, 64)
        before, after = VideoJudge(tiny()).frames(images), load_video_judge(folder).frames(images)
        torch.testing.assert_close(before.compositions, after.compositions, atol=0.02, rtol=0.01)  # float16

    def test_same_weights_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        save_video_judge(tiny(), tmp_path / "again")
        for name in ("config.json", "model.safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", b"{"),
            ("config.json", json.dumps({"width": 16, "motion_width": 8, "features": 16}).encode()),
            ("config.json", json.dumps({"depth": 3}).encode()),
            ("model.safetensors", b"nothing"),
            ("model.safetensors", None),
        ],
    )
    def test_what_is_damaged(self, folder: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
        broken = shutil.copytree(folder, tmp_path / "broken")
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_bytes(content)
        with pytest.raises(TeacherError, match="broken"):
            load_video_judge(broken)

    def test_weights_that_are_not_finite(self, tmp_path: Path) -> None:
        network = tiny()
        with torch.no_grad():
            network.frames.head.bias[0] = torch.inf
        save_video_judge(network, tmp_path / "judge")
        with pytest.raises(TeacherError, match="not finite"):
            load_video_judge(tmp_path / "judge")


class TestFlowOfTheWorld:
    def test_against_its_tracks(self, clips: Clips) -> None:
        """From one frame to the next, where a point is seen in both."""
        pairs = []
        for frames, tracks, visible in zip(clips.frames[:12], clips.tracks, clips.visible, strict=False):
            flow = optical_flow(frames[:-1], frames[1:])
            for step in range(len(flow)):
                seen = visible[step] & visible[step + 1]
                start = tracks[step][seen]
                guess = follow(flow[step : step + 1], start)[1] - start
                pairs.append(64 * torch.stack([guess, tracks[step + 1][seen] - start], dim=1))
        guess, true = torch.cat(pairs).unbind(dim=1)
        assert float((guess - true).norm(dim=1).mean()) < 0.4 * float(true.norm(dim=1).mean())
        for axis in (0, 1):
            assert float(torch.corrcoef(torch.stack([guess[:, axis], true[:, axis]]))[0, 1]) > 0.8


@embedded
class TestEmbedded:
    def test_what_frames_show(self, clips: Clips) -> None:
        judge = load_video_judge()
        rows = [
            index for index, script in enumerate(clips.scripts) if script.motion in ("still", "spinning", "bouncing")
        ]
        scores = [frame_accuracy(judge, clips.frames[index, ::3], clips.captions[index]) for index in rows]
        assert len(rows) > 10
        for name, least in (("object", 0.85), ("colour", 0.9), ("prompt", 0.8)):
            assert sum(score[name] for score in scores) / len(scores) > least, name

    def test_an_empty_floor(self, world: MotionWorld) -> None:
        """Long after something has left."""
        script = world.script([Thing("cube", "red")], "leaving", "left")
        verdict = load_video_judge().frames(world.render(script, torch.tensor([0.0, 50.0, 90.0])))
        assert verdict.empty.tolist() == [False, True, True]

    def test_what_clips_show(self, clips: Clips) -> None:
        verdict = load_video_judge().clips(clips.frames)
        motion = torch.tensor([motion_class(script.motion, script.direction) for script in clips.scripts])
        move = torch.tensor([CAMERA_MOVES.index(script.camera_move) for script in clips.scripts])
        assert float((verdict.motion.argmax(dim=1) == motion).float().mean()) > 0.6
        assert float((verdict.camera_move.argmax(dim=1) == move).float().mean()) > 0.65

    def test_it_follows_the_camera(self, clips: Clips) -> None:
        """Obeyed cameras err less than a still one would, and far less than those of another clip."""
        moving = [index for index, script in enumerate(clips.scripts) if script.camera_move != "static"]
        seen = load_video_judge().clips(clips.frames[moving]).camera_motion.flatten(0, 1)
        asked = camera_motion(clips.cameras[moving])
        obeyed, wanted = camera_error(seen, asked.flatten(0, 1))
        exchanged, _ = camera_error(seen, asked.roll(1, dims=0).flatten(0, 1))
        assert obeyed < 0.4 * wanted
        assert obeyed < 0.4 * exchanged

    def test_it_tells_sets_apart(self, clips: Clips) -> None:
        """Two halves of the world are nearer to each other than to their pictures turned upside down."""
        judge = load_video_judge()
        frames = clips.frames[:, ::4].flatten(0, 1)
        halves = [FeatureStatistics.of(judge.frames(frames[start::2]).features) for start in (0, 1)]
        turned = FeatureStatistics.of(judge.frames(frames[::2].flip(2)).features)
        assert frechet_distance(*halves) < 0.6 * frechet_distance(turned, halves[1])
