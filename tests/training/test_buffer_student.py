"""Training of a student that streams from a moving buffer, with tiny networks on random clips."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamkit_kernels.stream_attention import Stream
from tiny_video import CHANNELS, SIDE, streams_as, write_pipeline, write_pool
from torch import Tensor

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.objectives.buffer_video import Partition
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.student import StudentOptions, StudentTrainer, open_pool, train_student
from dreamkit.training.student_losses import BufferFlowMatching, BufferSettings, Lesson, LossSettings, Models
from dreamkit.training.student_networks import load_networks
from dreamkit.training.student_samples import sample_student
from dreamkit.video import pipeline
from dreamkit.video.buffer_stream import BufferDenoiser, BufferTrail
from dreamkit.video.camera_paths import ListedPath
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import load_video_teacher
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import Steering
from dreamkit.video.students import STREAM_KEY, read_stream_config

pytestmark = pytest.mark.usefixtures("one_thread", "float32")

BOTH = ["buffer-flow-matching", "segment-distillation"]


def write_buffer_teacher(folder: Path, **settings: Any) -> Path:
    """A teacher that says it streams from a buffer: of six frames, in three chunks of two."""
    stream = {"chunk": 2, "sink": 0, "buffer": 3, "times": [1.0, 2 / 3, 1 / 3], **settings}
    return streams_as(write_pipeline(folder, seed=3), **stream)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def buffered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_buffer_teacher(tmp_path_factory.mktemp("buffered") / "teacher")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool-abc")


@pytest.fixture
def options(teacher: Path, buffered: Path, pool: Path, tmp_path: Path) -> Any:
    def make(objective: str = BOTH[0], **changes: Any) -> StudentOptions:
        base = StudentOptions(
            teacher=teacher if objective == BOTH[0] else buffered, pool=pool, objective=BOTH[0],
            out=tmp_path / "run", steps=6, cooldown=2, warmup=2, batch=2, frames=6, chunk=2, micro_steps=3,
            checkpoint_every=3, sample_every=0, device="cpu",
        )  # fmt: skip
        return replace(base, objective=objective, **changes)

    return make


def trainer(options: StudentOptions) -> StudentTrainer:
    return StudentTrainer(options, open_pool(options.pool))


class Stopped(Exception):
    """What stands in for a power cut."""


class TestObjectives:
    @pytest.mark.parametrize("objective", BOTH)
    def test_the_gradient_is_where_it_should_be(self, options: Any, objective: str) -> None:
        run = trainer(options(objective, camera_dropout=0.0, track_dropout=0.0))
        total, metrics = run.losses()
        total.backward()
        assert [name for name, parameter in run.networks.named_parameters() if parameter.grad is None] == []
        assert metrics["loss"] == pytest.approx(float(total.detach()))
        assert (run.models.teacher is not None) == (objective == "segment-distillation")
        if run.models.teacher is not None:
            assert all(parameter.grad is None for parameter in run.models.teacher.parameters())

    @pytest.mark.parametrize("objective", BOTH)
    def test_the_loss_falls(self, options: Any, objective: str) -> None:
        """On one step's clips and noise, again and again."""
        run = trainer(options(objective, warmup=1, cooldown=0, steps=50, lr=0.005, lr_rest=0.005))
        losses = []
        for _ in range(8):
            losses.append(run.train_step()["loss"])
            run.step = 0
        assert losses[-1] < 0.9 * losses[0], losses

    def test_a_pass_at_one_level_is_the_teachers_clip(self, options: Any, teacher: Path) -> None:
        run = trainer(options(camera_dropout=0.0, track_dropout=0.0))
        lesson = run.draw(torch.Generator().manual_seed(0))
        x = torch.randn(lesson.x0.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            got = run.objective.flow(run.models.student, lesson, None)(x, torch.full((2, 6), 0.4))
        want = load_video_teacher(teacher).predict(x, 0.4, lesson.text, lesson.controls)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)

    def test_all_frames_see_all(self, options: Any) -> None:
        run = trainer(options())
        lesson = run.draw(torch.Generator().manual_seed(0))
        flow = run.objective.flow(run.models.student, lesson, None)
        levels = torch.tensor([[0.1, 0.1, 0.5, 0.5, 0.9, 0.9]]).expand(2, -1)
        with torch.no_grad():
            whole = flow(lesson.x0, levels)
            for frame in (0, 5):
                changed = lesson.x0.clone()
                changed[:, :, frame] += 1
                moved = (flow(changed, levels) - whole).abs().amax(dim=(0, 1, 3, 4))
                assert float(moved.min()) > 1e-4

    def test_only_noisy_frames_are_learned(self) -> None:
        """A student that predicts zero: with a reference its error is the mean of (eps - x0)^2 over the others."""
        x0 = torch.ones(400, 1, 5, 2, 2)
        x0[:, :, 0] = 100
        seen: list[Tensor] = []

        def student(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
            seen.append(t)
            return torch.zeros_like(x)

        cut = Partition(2, 2, 4, reference=1)
        plain = trainer_settings(cut, (cut,), 0.0)
        lesson = Lesson(x0, torch.zeros(400, 1, 1), torch.zeros(1, 1, 1), None)
        losses = BufferFlowMatching(plain).losses(lesson, Models(student, student), torch.Generator().manual_seed(0))
        assert bool((seen[0][:, 0] == 0).all())
        assert float(losses["flow"]) == pytest.approx(2, abs=0.1)

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_the_target_is_the_guided_walk_of_the_teacher(self, options: Any, share: float) -> None:
        """Three guided steps within every segment, done here by hand; the student is asked once, at its beginning."""
        run = trainer(options("segment-distillation", guidance=2.5, uniform_share=share, shift=2.0, batch=3))
        lesson = run.draw(torch.Generator().manual_seed(5))
        asked: list[tuple[Tensor, Tensor]] = []

        def student(x: Tensor, t: Tensor, *rest: Any) -> Tensor:
            asked.append((x, t))
            return torch.zeros_like(x)

        models = Models(student, student, run.models.teacher)
        got = run.objective.losses(lesson, models, torch.Generator().manual_seed(1))["segment"]
        ((x, levels),) = asked
        begin = levels / (2 - levels)  # t = 2 u / (1 + u)
        thirds = torch.tensor([1, 1, 2, 2, 3, 3]) / 3
        if share == 0:
            torch.testing.assert_close(begin, thirds.expand(3, -1))
        else:
            assert bool((begin == begin[:, :1]).all())
            torch.testing.assert_close(3 * begin, (3 * begin).round())
        teacher, first = load_networks(run.options.teacher, "cpu"), x
        stream, empty = run.objective.settings.stream, lesson.empty.expand_as(lesson.text)
        for step in range(3):
            places = (begin - step / 9, begin - (step + 1) / 9)
            upper, lower = (2 * u.clamp(min=0) / (1 + u.clamp(min=0)) for u in places)
            with torch.no_grad():
                positive, negative = (teacher(x, upper, text, lesson.controls, stream) for text in (lesson.text, empty))
            x = x + (lower - upper)[:, None, :, None, None] * (negative + 2.5 * (positive - negative))
        goal = (x - first) / (lower - levels)[:, None, :, None, None]
        torch.testing.assert_close(got, goal.square().mean(), atol=1e-4, rtol=1e-4)

    def test_cameras_are_relative_to_the_buffers_first(self, options: Any, pool: Path) -> None:
        run = trainer(options(camera_dropout=0.0, frames=4))
        generator = torch.Generator().manual_seed(0)
        lesson = run.draw(generator)
        clips = open_pool(pool).draw(2, 4, torch.Generator().manual_seed(0))
        assert lesson.controls is not None
        torch.testing.assert_close(lesson.controls.camera, clips.cameras, atol=1e-6, rtol=0)

    def test_captions_are_emptied_only_where_the_guidance_comes_later(self, options: Any) -> None:
        for objective, share in zip(BOTH, (1.0, 0.0), strict=True):
            lesson = trainer(options(objective, batch=20, text_dropout=1.0)).draw(torch.Generator().manual_seed(0))
            empty = (lesson.text == lesson.empty).flatten(1).all(dim=1)
            assert float(empty.float().mean()) == share


def trainer_settings(partition: Partition, mixed: tuple[Partition, ...], share: float) -> LossSettings:
    """Of a buffer alone: nothing else is asked."""
    stream = Stream(1, 1, partition.frames, 0, partition.frames)
    return LossSettings(stream, 1.0, buffer=BufferSettings(partition, mixed, share))


class TestTraining:
    def run(self, options: StudentOptions, stop: int | None = None) -> dict[str, Tensor]:
        def report(step: int, metrics: dict[str, float]) -> None:
            if step == stop:
                raise Stopped

        train_student(options, report)
        return load_latest(options.out / "checkpoints")[0].tensors

    @pytest.mark.parametrize("objective", BOTH)
    def test_stopped_and_continued_equals_never_stopped(self, options: Any, tmp_path: Path, objective: str) -> None:
        straight = self.run(options(objective, out=tmp_path / "straight"))
        stopped = options(objective, out=tmp_path / "stopped")
        with pytest.raises(Stopped):
            self.run(stopped, 4)
        assert list_checkpoints(stopped.out / "checkpoints")[0].name == "step-00000003"
        resumed = self.run(stopped)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        name = "student/transformer/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()

    def test_both_runs_of_the_recipe_stream(self, options: Any, tmp_path: Path) -> None:
        """From a teacher of clips to a student of one step a chunk, drawn and played as any other."""
        from PIL import Image

        settings = options(out=tmp_path / "first", steps=2, checkpoint_every=1, sample_every=2, reference=1, frames=5)
        first = train_student(settings)
        with Image.open(settings.out / "samples-000002.png") as grid:
            grid.load()
            assert grid.width > 7 * 8
        again = {"out": tmp_path / "second", "teacher": first, "steps": 1, "reference": 1, "frames": 5}
        second = train_student(options("segment-distillation", **again))
        for folder, calls, guidance in ((first, 6, 4.0), (second, 2, 1.0)):
            config = read_stream_config(folder)
            assert config is not None
            assert (config.buffer, config.reference, config.chunk) == (2, 1, 2)
            assert (len(config.times), config.guidance, config.shift) == (calls, guidance, 1.0)
            with StreamSession(load_video_teacher(folder), "a red ball", config=config, frames=9) as session:
                frames = [frame.pixels for frame in session]
            assert len(frames) == 9

    def test_in_bfloat16(self, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for objective in BOTH:
            exact = trainer(options(objective))
            with monkeypatch.context() as patch:
                patch.setattr(pipeline, "has_fast_bfloat16", lambda device: True)
                rough = trainer(options(objective))
            got, wanted = rough.losses()[0], exact.losses()[0]
            assert float(got.detach()) != float(wanted.detach())
            torch.testing.assert_close(got, wanted, atol=0.02, rtol=0.05)


class TestExport:
    def test_how_it_is_streamed(self, options: Any) -> None:
        """The teacher's shift is 3; a buffer's levels are not moved unless that is asked for."""
        flows = trainer(options(guidance=2.0))
        folder = flows.export(flows.options.out / "student")
        times = tuple((9 - step) / 9 for step in range(9))
        wanted = StreamConfig(
            size=(8, 8), chunk=2, window=6, sink=0, sink_kind="none", times=times, shift=1.0, guidance=2.0, buffer=3
        )
        assert read_stream_config(folder) == wanted
        distilled = trainer(options("segment-distillation", shift=2.0)).stream_config()
        assert distilled == replace(wanted, times=(1.0, 2 / 3, 1 / 3), shift=2.0, guidance=1.0)

    def test_a_rolling_students_index_knows_no_buffer(self, options: Any) -> None:
        run = trainer(options("teacher-forcing", window=2, sink=1))
        folder = run.export(run.options.out / "student")
        assert not {"buffer", "reference"} & set(json.loads((folder / "model_index.json").read_text())[STREAM_KEY])

    def test_samples_obey_controls_as_a_session_does(self, buffered: Path) -> None:
        student = load_video_teacher(buffered)
        config = StreamConfig(size=(8, 8), chunk=2, sink=0, buffer=3, reference=1, times=(1.0, 2 / 3, 1 / 3))
        generator = torch.Generator().manual_seed(0)
        tracks = torch.rand(10, 3, 2, generator=generator)
        poses = torch.eye(4, dtype=torch.float64).repeat(10, 1, 1)
        poses[:, :3, 3] = torch.randn(10, 3, dtype=torch.float64, generator=generator)
        controls = Controls(poses[None, :, :3].flatten(2).float(), tracks[None])
        got = sample_student(student, config, ["a red ball"], 3, seed=4, controls=controls)
        assert got.shape == (1, CHANNELS, 6, SIDE, SIDE)
        trail = BufferTrail(config, 1)
        trail.follow(Steering(ListedPath(poses), tracks))
        denoiser = BufferDenoiser(student, config, 4, student.encode_prompt(["a red ball"]))
        want = torch.cat([denoiser.next(trail.next(6 if chunk == 0 else 2)) for chunk in range(3)], dim=2)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        without = sample_student(student, config, ["a red ball"], 3, seed=4)
        assert not torch.allclose(got, without)


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"micro_steps": 0}, "micro-steps is 0"),
            ({"reference": -1}, "--reference"),
            ({"chunk": 4}, r"--frames is 6.*whole chunks of 4"),
            ({"reference": 1}, r"--frames is 6.*--reference \(1\)"),
            ({"reference": 6}, "--frames"),
            ({"partitions": (1, 4)}, "One of --partitions is 4"),
            ({"partitions": (0,)}, "One of --partitions is 0"),
            ({"uniform_share": 1.5}, "uniform-share"),
        ],
        ids=str,
    )
    def test_numbers(self, options: Any, change: dict[str, Any], name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            options(**change)

    def test_cuts_that_are_mixed(self, options: Any) -> None:
        assert options().buffer == replace(
            options(partitions=(1, 2, 3)).buffer, mixed=tuple(Partition(c, 6 // c) for c in (1, 2, 3))
        )
        assert options(partitions=(3,)).buffer.mixed == (Partition(3, 2),)
        assert options("teacher-forcing").buffer is None
        options(window=1)  # a buffer has no window that a chunk would have to fit into

    def test_clips_shorter_than_the_buffer(self, options: Any) -> None:
        with pytest.raises(ConfigError, match=r"frames is 8.*1 to 6"):
            trainer(options(frames=8))

    def test_a_buffer_larger_than_the_teachers(self, options: Any, tmp_path: Path) -> None:
        small = write_buffer_teacher(tmp_path / "small", buffer=2, times=[1.0, 0.5])
        with pytest.raises(ConfigError, match=r"--frames is 6.*at most 4"):
            trainer(options("segment-distillation", teacher=small))
        trainer(options("segment-distillation", teacher=small, frames=4))

    def test_a_teacher_that_was_not_taught(self, options: Any, teacher: Path, buffered: Path) -> None:
        with pytest.raises(ConfigError, match="--objective buffer-flow-matching first"):
            trainer(options("segment-distillation", teacher=teacher))
        with pytest.raises(ConfigError, match="not taught to be causal"):
            trainer(options("causal-consistency", teacher=buffered))

    def test_an_index_that_does_not_fit(self, tmp_path: Path) -> None:
        folder = write_buffer_teacher(tmp_path / "torn", buffer=2)
        with pytest.raises(CheckpointError, match="3 noise levels can't be shared out"):
            read_stream_config(folder)

    def test_settings_without_a_buffer(self) -> None:
        with pytest.raises(ConfigError, match="no buffer"):
            BufferFlowMatching(LossSettings(Stream(1, 1), 1.0))
