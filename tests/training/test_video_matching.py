"""Distribution matching of a causal video student, on tiny random models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_video import streams_as, write_pipeline, write_pool

from dreamkit.errors import ConfigError, TrainingError
from dreamkit.objectives.matching import MatchingContext
from dreamkit.objectives.segments import TrajectoryDistributionMatching
from dreamkit.training import video_matching
from dreamkit.training.checkpoints import list_checkpoints
from dreamkit.training.clip_judges import ClipCritic, ClipJudge
from dreamkit.training.student import open_pool
from dreamkit.training.student_networks import load_networks
from dreamkit.training.video_matching import (
    VideoMatchingOptions,
    VideoMatchingTrainer,
    motion_reward,
    train_video_matching,
)
from dreamkit.training.video_systems import video_system
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import load_video_teacher
from dreamkit.video.sparse_attention import Sparsity
from dreamkit.video.stream import StreamSession
from dreamkit.video.students import STREAM_KEY, load_student, read_stream_config

pytestmark = pytest.mark.usefixtures("one_thread", "float32")


STREAM = {"size": [8, 8], "chunk": 2, "window": 3, "sink": 1, "sink_kind": "first", "times": [1.0, 0.5], "shift": 5.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a causal student of other weights, and a pool."""
    folder = tmp_path_factory.mktemp("matching")
    write_pipeline(folder / "teacher")
    streams_as(write_pipeline(folder / "student", seed=1), **STREAM)
    write_pool(folder / "pool")
    return folder


def options(world: Path, out: Path, **changes: Any) -> VideoMatchingOptions:
    base = VideoMatchingOptions(
        teacher=world / "teacher",
        student=world / "student",
        pool=world / "pool",
        out=out,
        steps=2,
        cooldown=0,
        warmup=0,
        frames=6,
        steps_per_chunk=2,
        critic_steps=2,
        checkpoint_every=1,
        sample_every=0,
    )
    return replace(base, **changes)


def trainer(world: Path, out: Path, name: str = "dmd", **changes: Any) -> VideoMatchingTrainer:
    return VideoMatchingTrainer(options(world, out, objective=name, **changes), open_pool(world / "pool"))


@pytest.mark.parametrize("name", ["dmd", "decoupled-dmd", "re-dmd", "f-distill", "sid", "sim", "tdm", "swiftbrush"])
def test_every_objective_of_clips_moves_the_student(
    world: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Frames of eight pixels are too small for an optical flow.
    monkeypatch.setattr(video_matching, "motion_reward", lambda latents, autoencoder: latents.mean(dim=(1, 2, 3, 4)))
    one = trainer(world, tmp_path, name)
    before = {key: p.detach().clone() for key, p in one.student.named_parameters()}
    teacher = {key: p.detach().clone() for key, p in one.frozen.named_parameters()}
    critic = {key: p.detach().clone() for key, p in one.critic.named_parameters()}
    metrics = one.train_step()
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert {"loss", "critic"} <= set(metrics)
    assert any(not torch.equal(p, before[key]) for key, p in one.student.named_parameters())
    assert any(not torch.equal(p, critic[key]) for key, p in one.critic.named_parameters())
    assert all(torch.equal(p, teacher[key]) and p.grad is None for key, p in one.frozen.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in one.critic.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"history": "data"},
        {"before": 3, "switches": 1.0},
        {"sink_kind": "ema", "sink_decay": 0.9},
        {"chunk": 3, "window": 3, "steps_per_chunk": 1},
        {"checkpointing": True},
        {"sparsity": "keep=0.3,block=2", "before": 2},
        {"sparsity": "mass=0.5,block=4", "history": "data"},
    ],
)
def test_ways_to_roll_out(world: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    one = trainer(world, tmp_path, **changes)
    for _ in range(3):
        assert all(torch.isfinite(torch.tensor(value)) for value in one.train_step().values())


def test_stopping_changes_nothing(world: Path, tmp_path: Path) -> None:
    objective = {"objective": "f-distill"}
    whole = train_video_matching(options(world, tmp_path / "whole", steps=3, cooldown=2, **objective))
    train_video_matching(options(world, tmp_path / "parts", steps=1, cooldown=0, **objective))
    # A first part without cooldown of its own: its rate is that of the whole run's first step.
    parts = train_video_matching(options(world, tmp_path / "parts", steps=3, cooldown=2, **objective))
    for path in sorted(whole.rglob("*.safetensors")):
        assert path.read_bytes() == (parts / path.relative_to(whole)).read_bytes(), path.name


def test_what_comes_out_streams(world: Path, tmp_path: Path) -> None:
    folder = train_video_matching(options(world, tmp_path, sample_every=2))
    config = read_stream_config(folder)
    assert config is not None
    assert (config.chunk, config.window, config.times, config.shift) == (2, 3, (1.0, 0.5), 5.0)
    with StreamSession(load_student(str(folder)), "a red ball", frames=5, config=config) as session:
        assert len(list(session)) == 5
    assert (tmp_path / "samples-000002.png").exists()


def test_a_sparse_student_streams_as_it_was_trained(world: Path, tmp_path: Path) -> None:
    """And is trained on as its folder says, unless told otherwise."""
    folder = train_video_matching(options(world, tmp_path / "first", steps=1, sparsity="keep=0.4,block=2"))
    config = read_stream_config(folder)
    assert config is not None
    assert config.sparsity == Sparsity(keep=0.4, block=2)
    assert json.loads((folder / "model_index.json").read_text())[STREAM_KEY]["sparsity"] == {
        "keep": 0.4, "mass": None, "block": 2, "dense_layers": 0,
    }  # fmt: skip
    with StreamSession(load_student(str(folder)), "a red ball", frames=8, config=config) as session:
        sparse = torch.stack([frame.pixels for frame in session])
    dense = replace(config, sparsity=None)
    with StreamSession(load_student(str(folder)), "a red ball", frames=8, config=dense) as session:
        assert not torch.equal(torch.stack([frame.pixels for frame in session]), sparse)
    assert trainer(world, tmp_path / "second", student=folder).roller.sparsity == config.sparsity
    last = trainer(world, tmp_path / "third", student=folder, sparsity="dense")
    assert last.roller.sparsity is None
    exported = json.loads((last.export(tmp_path / "out") / "model_index.json").read_text())[STREAM_KEY]
    assert "sparsity" not in exported


def test_the_segments_of_tdm_are_the_students_steps(world: Path, tmp_path: Path) -> None:
    one = trainer(world, tmp_path, "tdm", steps_per_chunk=4, option=("guidance=2",))
    assert isinstance(one.objective, TrajectoryDistributionMatching)
    assert (one.objective.segments, one.objective.shift) == (4, 5.0)
    for number, level in enumerate(one.roller.levels):
        context = MatchingContext(one.frozen, one.schedule, torch.Generator(), student_level=torch.tensor([level]))  # type: ignore[arg-type]
        bottom, top = one.objective.critic_range(torch.zeros(1, 4, 2, 4, 4), context)
        assert float(top) == pytest.approx(level)
        assert float(bottom) == pytest.approx([*one.roller.levels, 0.001][number + 1])
    assert trainer(world, tmp_path, "tdm", option=("segments=2", "shift=5")).objective.segments == 2
    for option, message in (("segments=4", "segments=4 does not fit.*2 steps a chunk"), ("shift=1", "shift=1.*by 5")):
        with pytest.raises(ConfigError, match=message):
            trainer(world, tmp_path, "tdm", option=(option,))


def test_the_system_blade(world: Path, tmp_path: Path) -> None:
    system = video_system("blade")
    one = trainer(world, tmp_path, system.objective, option=system.objective_options, **system.options)
    assert one.roller.sparsity == Sparsity(keep=0.3, block=16)
    assert one.objective.shared_level
    assert all(torch.isfinite(torch.tensor(value)) for value in one.train_step().values())


def test_a_teacher_judges_as_itself(world: Path) -> None:
    """x_t - t v, with and without a prompt, one level a clip or one a frame."""
    teacher = load_video_teacher(world / "teacher")
    text, empty = teacher.encode_prompt(["a red ball", "a blue cube"]), teacher.encode_prompt([""])
    controls = Controls(torch.randn(2, 4, 12))
    judge = ClipJudge(load_networks(world / "teacher", "cpu"), text, empty, controls)
    x_t, t = torch.randn(2, 4, 4, 4, 4), torch.tensor([0.3, 0.8])
    flow = teacher.predict(x_t, t, text, controls)
    with torch.no_grad():
        full, without = judge.pair(x_t, t)
        torch.testing.assert_close(full, x_t - t[:, None, None, None, None] * flow)
        torch.testing.assert_close(judge.predict(x_t, t[:, None].expand(-1, 4)), full)
    expected = x_t - t[:, None, None, None, None] * teacher.predict(x_t, t, empty.expand_as(text), controls)
    torch.testing.assert_close(without, expected)


def test_a_head_reads_the_clips_that_went_through_last(world: Path) -> None:
    critic = ClipCritic(load_networks(world / "teacher", "cpu"), with_head=True)
    text = torch.randn(2, 10, 32)
    judge = ClipJudge(critic.networks, text, text[:1])
    x = torch.randn(2, 4, 4, 4, 4)
    judge.predict(x, torch.tensor([0.5, 0.5]))
    first = critic.logits()
    judge.predict(x.flip(0), torch.tensor([0.5, 0.5]))
    assert first.shape == (2,)
    assert not torch.allclose(first, critic.logits())


def test_what_moves_more_is_rewarded(world: Path) -> None:
    class Pixels:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents.movedim(1, 2)

    wave = torch.sin(torch.arange(32.0) / 3)
    still = wave.expand(3, 32, 32)[None, :, None].expand(1, -1, 4, -1, -1)
    moving = torch.stack([torch.stack([torch.roll(wave.expand(32, 32), 2 * f, 1) for f in range(4)])] * 3)[None]
    reward = motion_reward(torch.cat([still, moving]) / 2 + 0.5, Pixels())  # type: ignore[arg-type]
    assert float(reward[0]) < 0.01
    assert 0.5 < float(reward[1]) < 3


def test_a_critic_that_is_lost_stops_the_training(world: Path, tmp_path: Path) -> None:
    one = trainer(world, tmp_path)
    one.train_step()
    next(iter(one.critic.parameters())).data.fill_(float("nan"))
    weights = [p.detach().clone() for p in one.student.parameters()]
    with pytest.raises(TrainingError, match=r"critic's loss of dmd is not finite at step 1"):
        one.train_step()
    assert all(torch.equal(p, kept) for p, kept in zip(one.student.parameters(), weights, strict=True))
    assert one.step == 1
    assert list_checkpoints(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "--batch"),
        ({"history": "both"}, "--history 'both' is not known"),
        ({"history": "data", "before": 2}, "--before is 2"),
        ({"switches": 1.5}, "--switches is 1.5"),
        ({"critic_steps": 0}, "--critic-steps"),
        ({"sparsity": "keep=2"}, "sparsity's keep is 2"),
    ],
)
def test_options_out_of_range(world: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(world, tmp_path, **changes)


@pytest.mark.parametrize("name", ["scm", "rcm", "phased-dmd", "disback"])
def test_objectives_that_judge_no_clips(world: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} needs .* which clips of a stream don't have"):
        trainer(world, tmp_path, name)


def test_a_student_that_is_not_causal(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was not taught to be causal"):
        trainer(world, tmp_path, student=world / "teacher")


def test_a_student_of_a_moving_buffer(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "buffered"
    shutil.copytree(world / "student", folder)
    streams_as(folder, size=[8, 8], chunk=2, sink=0, sink_kind="none", buffer=2, times=[1.0, 0.5])
    with pytest.raises(ConfigError, match="streams from a moving buffer"):
        trainer(world, tmp_path, student=folder)
