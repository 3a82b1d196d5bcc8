"""Training of a causal video student, with tiny networks on random clips."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamkit_kernels.stream_attention import Stream
from tiny_video import CHANNELS, SIDE, write_causal, write_pipeline, write_pool
from torch import Tensor

from dreamkit.errors import CheckpointError, ConfigError, DreamkitError, TrainingError
from dreamkit.files import read_jsonl
from dreamkit.toyworld.muon import Muon
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.student import StudentOptions, StudentTrainer, open_pool, streamed_cameras, train_student
from dreamkit.training.student_losses import Lesson, LossSettings, Models, TeacherForcing
from dreamkit.training.student_networks import load_networks
from dreamkit.training.student_samples import sample_student
from dreamkit.video import pipeline
from dreamkit.video.camera_paths import CameraTrail, ListedPath
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import load_video_teacher
from dreamkit.video.rollout import chunk_noise
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.students import STREAM_KEY, read_stream_config

pytestmark = pytest.mark.usefixtures("one_thread", "float32")

ALL = ["teacher-forcing", "diffusion-forcing", "causal-consistency"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_causal(tmp_path_factory.mktemp("causal") / "teacher")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pool(tmp_path_factory.mktemp("pool") / "pool-abc")


@pytest.fixture
def options(teacher: Path, causal: Path, pool: Path, tmp_path: Path) -> Any:
    def make(**changes: Any) -> StudentOptions:
        folder = causal if changes.get("objective") == "causal-consistency" else teacher
        base = StudentOptions(
            teacher=folder, pool=pool, out=tmp_path / "run", steps=6, cooldown=2, warmup=2, batch=2, frames=6, chunk=2,
            sink=1, window=2, solver_steps=8, checkpoint_every=3, sample_every=0, device="cpu",
        )  # fmt: skip
        return replace(base, **changes)

    return make


def trainer(options: StudentOptions) -> StudentTrainer:
    return StudentTrainer(options, open_pool(options.pool))


def snapshot(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


class Stopped(Exception):
    """What stands in for a power cut."""


class TestObjectives:
    @pytest.mark.parametrize("objective", ALL)
    def test_the_gradient_is_where_it_should_be(self, options: Any, objective: str) -> None:
        run = trainer(options(objective=objective, camera_dropout=0.0, track_dropout=0.0))
        average = snapshot(run.average.items())
        total, metrics = run.losses()
        total.backward()
        without = [name for name, parameter in run.networks.named_parameters() if parameter.grad is None]
        assert without == []
        assert metrics["loss"] == pytest.approx(float(total.detach()))
        assert all(not tensor.requires_grad for tensor in run.average.values())
        assert all(torch.equal(average[name], run.average[name]) for name in average)
        assert (run.models.teacher is not None) == (objective == "causal-consistency")
        if run.models.teacher is not None:
            assert all(parameter.grad is None for parameter in run.models.teacher.parameters())
        assert all(parameter.grad is None for parameter in run.text.encoder.parameters())

    @pytest.mark.parametrize("objective", ALL)
    def test_the_loss_falls(self, options: Any, objective: str) -> None:
        """On one step's clips and noise, again and again."""
        run = trainer(options(objective=objective, warmup=1, cooldown=0, steps=50, lr=0.005, lr_rest=0.005, ema=0.0))
        losses = []
        for _ in range(8):
            losses.append(run.train_step()["loss"])
            run.step = 0
        assert losses[-1] < 0.9 * losses[0], losses

    def test_the_guided_teacher_is_two_calls(self, options: Any) -> None:
        run = trainer(options(objective="causal-consistency", guidance=2.5, camera_dropout=0.0))
        generator = torch.Generator().manual_seed(5)
        lesson = run.draw(generator)
        x_t, levels = torch.randn(lesson.x0.shape, generator=generator), torch.full((2, 6), 0.7)
        flow = run.objective.guided(run.models, lesson, lesson.x0)
        stream, teacher = run.objective.settings.stream, load_networks(run.options.teacher, "cpu")
        with torch.no_grad():
            positive = teacher(x_t, levels, lesson.text, lesson.controls, stream, lesson.x0)
            empty = lesson.empty.expand_as(lesson.text)
            negative = teacher(x_t, levels, empty, lesson.controls, stream, lesson.x0)
            assert not torch.allclose(positive, negative)
            # In the other convention, E(y) + (s - 1) (E(y) - E(n)).
            torch.testing.assert_close(flow(x_t, levels), positive + 1.5 * (positive - negative), atol=1e-5, rtol=0)

    def test_one_is_no_guidance_and_one_call(self, options: Any) -> None:
        run = trainer(options(objective="causal-consistency", guidance=1.0))
        calls: list[int] = []

        def teacher(x: Tensor, *_: Any) -> Tensor:
            calls.append(len(x))
            return x

        lesson = run.draw(torch.Generator().manual_seed(5))
        models = Models(run.models.student, run.models.average, teacher)
        run.objective.losses(lesson, models, torch.Generator().manual_seed(0))
        assert calls == [2]

    def test_the_past_gets_its_noise(self) -> None:
        """A student that predicts zero: what it was shown as the past is x0 with a level up to the largest."""
        x0 = torch.ones(4, 2, 6, 3, 3)
        shown: list[Tensor] = []

        def student(x_t: Tensor, levels: Tensor, text: Any, controls: Any, stream: Any, past: Tensor) -> Tensor:
            shown.append(past)
            return torch.zeros_like(x_t)

        lesson = Lesson(x0, torch.zeros(4, 1, 1), torch.zeros(1, 1, 1), None)
        stream = Stream(1, 1, chunk=2, sink=1, window=2)
        for noise in (0.0, 0.5):
            objective = TeacherForcing(LossSettings(stream, 1.0, past_noise=noise))
            objective.losses(lesson, Models(student, student), torch.Generator().manual_seed(0))
        assert torch.equal(shown[0], x0)
        level = 1 - shown[1].mean(dim=(1, 3, 4))
        assert 0.05 < float((shown[1] - x0).abs().mean()) < 0.5
        assert float(level.abs().max()) < 0.9

    def test_a_teacher_that_is_not_causal(self, options: Any, teacher: Path) -> None:
        with pytest.raises(ConfigError, match="teacher-forcing"):
            trainer(options(objective="causal-consistency", teacher=teacher))


class TestTraining:
    def test_passes_add_up_to_the_mean(self, options: Any) -> None:
        """Two passes of two clips: gradients and metrics are the means over the passes that the step draws."""
        run = trainer(options(accumulate=2))
        total, metrics = run.losses()
        total.backward()
        got = {name: parameter.grad.clone() for name, parameter in run.networks.named_parameters()}
        run.networks.zero_grad()
        generator = torch.Generator().manual_seed(0)
        losses = []
        for _ in range(2):
            (term,) = run.objective.losses(run.draw(generator), run.models, generator).values()
            losses.append(float(term.detach()))
            (term / 2).backward()
        assert losses[0] != losses[1]
        assert metrics["loss"] == pytest.approx(sum(losses) / 2)
        for name, parameter in run.networks.named_parameters():
            torch.testing.assert_close(got[name], parameter.grad, atol=1e-7, rtol=1e-5)

    def test_the_average_follows(self, options: Any) -> None:
        run = trainer(options(ema=0.5))
        name, parameter = next(iter(run.networks.named_parameters()))
        expected = parameter.detach().clone()
        for step in range(3):
            run.train_step()
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(run.average[name], expected)

    def test_consistency_asks_the_averaged_weights(self, options: Any) -> None:
        run = trainer(options(objective="causal-consistency"))
        lesson = run.draw(torch.Generator().manual_seed(0))
        asked = (lesson.x0, torch.full((2, 6), 0.5), lesson.text, lesson.controls, run.objective.settings.stream)
        with torch.no_grad():
            assert torch.equal(run.models.average(*asked), run.models.student(*asked))
            for value in run.average.values():
                value.mul_(1.1)
            got = run.models.average(*asked)
            assert not torch.allclose(got, run.models.student(*asked))
            with run.averaged():
                assert torch.equal(got, run.models.student(*asked))

    def test_every_parameter_is_trained_once_and_matrices_by_muon(self, options: Any) -> None:
        run = trainer(options())
        groups = [group["params"] for optimizer in run.optimizers for group in optimizer.param_groups]
        names = {id(parameter): name for name, parameter in run.networks.named_parameters()}
        assert sorted(names) == sorted(id(parameter) for group in groups for parameter in group)
        assert isinstance(run.optimizers[0], Muon)
        assert all(".blocks." in names[id(parameter)] for parameter in groups[0])

    def test_checkpointing_changes_no_gradient(self, options: Any) -> None:
        gradients = []
        for checkpointing in (False, True):
            run = trainer(options(objective="causal-consistency", checkpointing=checkpointing))
            assert run.networks.transformer.checkpointing == checkpointing
            run.losses()[0].backward()
            gradients.append(snapshot((name, p.grad) for name, p in run.networks.named_parameters()))
        assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])

    def test_what_is_dropped(self, options: Any) -> None:
        run = trainer(options(batch=300, text_dropout=0.2, camera_dropout=0.4, track_dropout=0.3))
        lesson = run.draw(torch.Generator().manual_seed(0))
        assert lesson.controls is not None
        assert lesson.controls.camera is not None
        assert lesson.controls.visible is not None
        empty = (lesson.text == lesson.empty).flatten(1).all(dim=1)
        assert float(empty.float().mean()) == pytest.approx(0.2, abs=0.08)
        no_camera = (lesson.controls.camera == 0).flatten(1).all(dim=1)
        assert float(no_camera.float().mean()) == pytest.approx(0.4, abs=0.1)
        no_tracks = (~lesson.controls.visible).flatten(1).all(dim=1)
        assert float(no_tracks.float().mean()) == pytest.approx(0.3, abs=0.1)
        first = lesson.controls.camera[~no_camera][:, 0]
        torch.testing.assert_close(first, torch.eye(3, 4).flatten().expand_as(first), atol=1e-5, rtol=0)
        consistency = trainer(options(objective="causal-consistency", batch=100, text_dropout=1.0))
        lesson = consistency.draw(torch.Generator().manual_seed(0))
        assert not bool((lesson.text == lesson.empty).flatten(1).all(dim=1).any())

    def test_clips_of_any_length(self, options: Any, tmp_path: Path) -> None:
        pool = write_pool(tmp_path / "long", frames=11)
        assert trainer(options(pool=pool, frames=11)).train_step()["loss"] > 0
        assert trainer(options(pool=pool, frames=1)).train_step()["loss"] > 0
        with pytest.raises(ConfigError, match="frames"):
            trainer(options(pool=pool, frames=12))

    def test_in_bfloat16(self, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for objective in ALL:
            exact = trainer(options(objective=objective))
            with monkeypatch.context() as patch:
                patch.setattr(pipeline, "has_fast_bfloat16", lambda device: True)
                rough = trainer(options(objective=objective))
            assert rough.half_precision
            got, wanted = rough.losses()[0], exact.losses()[0]
            assert float(got.detach()) != float(wanted.detach())
            torch.testing.assert_close(got, wanted, atol=0.02, rtol=0.05)
            got.backward()
            assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in rough.networks.parameters())


class TestResuming:
    def run(self, options: StudentOptions, stop: int | None = None) -> dict[str, Tensor]:
        def report(step: int, metrics: dict[str, float]) -> None:
            assert metrics["step"] == step
            if step == stop:
                raise Stopped

        train_student(options, report)
        return load_latest(options.out / "checkpoints")[0].tensors

    @pytest.mark.parametrize("objective", ALL)
    def test_stopped_and_continued_equals_never_stopped(self, options: Any, tmp_path: Path, objective: str) -> None:
        """Checkpoints at 3 and 6; stopped before the one at 6 the run goes on from 3. The pool has grown meanwhile."""
        pool = write_pool(tmp_path / "pool", shards=1)
        straight = self.run(options(objective=objective, pool=pool, out=tmp_path / "straight", batch=1, accumulate=2))
        stopped = options(objective=objective, pool=pool, out=tmp_path / "stopped", batch=1, accumulate=2)
        with pytest.raises(Stopped):
            self.run(stopped, 4)
        assert list_checkpoints(stopped.out / "checkpoints")[0].name == "step-00000003"
        write_pool(pool, shards=3)
        resumed = self.run(stopped)
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        for out in ("straight", "stopped"):
            assert [row["step"] for row in read_jsonl(tmp_path / out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
        name = "student/transformer/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()

    def test_a_pool_that_has_lost_shards(self, options: Any, tmp_path: Path) -> None:
        pool = write_pool(tmp_path / "pool", shards=2)
        self.run(options(pool=pool))
        (pool / "shard-00001.safetensors").unlink()
        with pytest.raises(CheckpointError, match="shards"):
            train_student(options(pool=pool, steps=7))

    def test_what_is_not_finite_stops_it_by_name(self, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = options()
        losses = TeacherForcing.losses

        def broken(self: TeacherForcing, *arguments: Any) -> dict[str, Tensor]:
            broken_calls.append(0)
            terms = losses(self, *arguments)
            return terms if len(broken_calls) < 5 else {name: term * float("nan") for name, term in terms.items()}

        broken_calls: list[int] = []
        monkeypatch.setattr(TeacherForcing, "losses", broken)
        with pytest.raises(TrainingError, match=r"flow loss of teacher-forcing is not finite at step 4"):
            train_student(settings)
        kept = load_latest(settings.out / "checkpoints")[0]
        assert kept.step == 3
        assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.tensors.values())
        monkeypatch.setattr(TeacherForcing, "losses", losses)
        assert (train_student(settings) / "model_index.json").exists()


class TestExport:
    def test_a_pipeline_folder_that_loads_as_its_average(self, options: Any) -> None:
        run = trainer(options(ema=0.5))
        run.train_step()
        before = snapshot(run.state().items())
        folder = run.export(run.options.out / "student")
        assert all(torch.equal(before[name], tensor) for name, tensor in run.state().items())
        loaded = load_video_teacher(folder)
        names = {path.name for path in folder.iterdir()}
        parts = {"controls", "model_index.json", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
        assert names == parts
        assert loaded.shift == 3.0
        for name, parameter in loaded.network.named_parameters():
            torch.testing.assert_close(parameter, run.average[f"transformer.{name}"].half().float(), rtol=0, atol=0)
        assert loaded.controls is not None
        for name, parameter in loaded.controls.named_parameters():
            torch.testing.assert_close(parameter, run.average[f"controls.{name}"].half().float(), rtol=0, atol=0)

    def test_how_it_is_streamed(self, options: Any) -> None:
        run = trainer(options(objective="causal-consistency", steps_per_chunk=4, shift=5.0, sink_kind="ema"))
        folder = run.export(run.options.out / "student")
        config = read_stream_config(folder)
        wanted = StreamConfig(
            size=(8, 8), chunk=2, window=2, sink=1, sink_kind="ema", times=(1.0, 0.75, 0.5, 0.25), shift=5.0
        )
        assert config == wanted
        assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "DreamKitVideoPipeline"
        adapted = trainer(options(guidance=2.0)).stream_config()
        assert (len(adapted.times), adapted.guidance, adapted.shift) == (8, 2.0, 3.0)
        index = json.loads((folder / "model_index.json").read_text())
        for damage in ({"wobble": 1}, {"chunk": 0}, 7):
            (folder / "model_index.json").write_text(json.dumps({**index, STREAM_KEY: damage}))
            with pytest.raises(CheckpointError, match=STREAM_KEY):
                read_stream_config(folder)

    def test_it_is_a_teacher_for_the_next_stage(self, options: Any, tmp_path: Path) -> None:
        first = train_student(options(steps=1, out=tmp_path / "first"))
        second = trainer(options(objective="causal-consistency", teacher=first, out=tmp_path / "second"))
        loaded = load_networks(first, "cpu")
        for name, parameter in second.networks.named_parameters():
            assert torch.equal(parameter, dict(loaded.named_parameters())[name])
        assert second.train_step()["consistency"] > 0

    def test_starting_elsewhere(self, options: Any, causal: Path, tmp_path: Path) -> None:
        start = write_pipeline(tmp_path / "start", seed=9)
        run = trainer(options(objective="causal-consistency", start=start))
        assert torch.equal(
            run.networks.transformer.proj_out.weight, load_networks(start, "cpu").transformer.proj_out.weight
        )
        assert not torch.equal(
            run.networks.transformer.proj_out.weight, load_networks(causal, "cpu").transformer.proj_out.weight
        )


class TestStreams:
    def test_cameras_are_those_of_a_stream(self) -> None:
        """Chunk by chunk against the trail that a stream's camera leaves; the last chunk is a short one."""
        generator = torch.Generator().manual_seed(0)
        turns, places = torch.randn(11, 3, 4, dtype=torch.float64, generator=generator).split([3, 1], dim=2)
        listed = torch.eye(4, dtype=torch.float64).repeat(11, 1, 1)
        listed[:, :3] = torch.cat([torch.linalg.matrix_exp(turns - turns.mT), places], dim=2)
        cameras = listed[:, :3].flatten(1)[None]
        for chunk, window in ((2, 4), (3, 3), (1, 2), (3, 9)):
            trail = CameraTrail(window, 1)
            trail.follow(ListedPath(listed))
            wanted = [trail.next(chunk) for _ in range(0, 11, chunk)]
            got = streamed_cameras(cameras, chunk, window)
            assert got.shape == (1, 11, 12)
            torch.testing.assert_close(got.float(), torch.cat(wanted, dim=1)[:, :11], atol=1e-5, rtol=0)

    def test_of_a_clip_that_fits_are_relative_to_its_first(self, pool: Path) -> None:
        cameras = open_pool(pool).draw(2, 6, torch.Generator().manual_seed(0)).cameras
        torch.testing.assert_close(streamed_cameras(cameras, 2, 4), cameras, atol=1e-6, rtol=0)
        assert not torch.allclose(streamed_cameras(cameras, 2, 2)[:, 4:], cameras[:, 4:])

    def test_one_step_of_the_first_chunk_is_the_network(self, causal: Path) -> None:
        """And every row and chunk is itself: no row sees another, and the noise changes from chunk to chunk."""
        student = load_video_teacher(causal)
        config = StreamConfig(size=(8, 8), chunk=2, window=2, sink=1, times=(1.0,))
        prompts = ("a red ball", "a blue cube")
        generator = torch.Generator().manual_seed(0)
        controls = Controls(torch.randn(2, 6, 12, generator=generator), torch.rand(2, 6, 3, 2, generator=generator))
        latents = sample_student(student, config, prompts, 3, seed=4, controls=controls)
        assert latents.shape == (2, CHANNELS, 6, SIDE, SIDE)
        noise = chunk_noise(4, 0, 1, (1, CHANNELS, 2, SIDE, SIDE))[0].expand(2, -1, -1, -1, -1)
        flow = student.predict(noise, 1.0, student.encode_prompt(prompts), controls.frames(0, 2))
        torch.testing.assert_close(latents[:, :, :2], noise - flow, atol=1e-5, rtol=0)
        alone = sample_student(student, config, prompts[1:], 2, seed=4, controls=Controls(*(
            item[1:] for item in (controls.camera, controls.tracks)
        )))  # fmt: skip
        torch.testing.assert_close(alone, latents[1:, :, :4], atol=1e-5, rtol=0)
        assert not torch.allclose(latents[:, :, :2], latents[:, :, 2:4])

    def test_a_grid_as_it_goes(self, options: Any) -> None:
        from PIL import Image

        settings = options(objective="causal-consistency", steps=2, checkpoint_every=1, sample_every=2)
        train_student(settings)
        with Image.open(settings.out / "samples-000002.png") as grid:
            grid.load()
            assert grid.width > 7 * 8


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"steps": 0}, "steps"),
            ({"accumulate": 0}, "accumulate"),
            ({"solver_steps": 9}, "solver-steps"),
            ({"window": 1}, "window"),
            ({"ema": 1.5}, "ema"),
            ({"guidance": -1.0}, "guidance"),
            ({"shift": 0.0}, "shift"),
            ({"past_noise": 2.0}, "past-noise"),
            ({"objective": "magic"}, "objective"),
        ],
        ids=str,
    )
    def test_numbers(self, options: Any, change: dict[str, Any], name: str) -> None:
        with pytest.raises(ConfigError, match=name):
            options(**change)

    def test_pools(self, options: Any, pool: Path, tmp_path: Path) -> None:
        assert open_pool(pool.parent).folder == pool
        with pytest.raises(ConfigError, match="no pool"):
            open_pool(tmp_path / "nowhere")
        write_pool(tmp_path / "pools" / "pool-a")
        write_pool(tmp_path / "pools" / "pool-b")
        with pytest.raises(ConfigError, match="pool-a, pool-b"):
            open_pool(tmp_path / "pools")
        with pytest.raises(ConfigError, match="channels is 5"):
            trainer(options(pool=write_pool(tmp_path / "other", channels=5)))

    def test_a_start_that_does_not_fit(self, options: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="patch_size"):
            trainer(options(start=write_pipeline(tmp_path / "patch", patch_size=[1, 1, 1])))
        with pytest.raises(CheckpointError, match="tracks"):
            trainer(options(start=write_pipeline(tmp_path / "plain", with_controls=False)))
        with pytest.raises(CheckpointError):
            trainer(options(start=tmp_path / "nowhere"))

    def test_a_teacher_that_is_none(self, options: Any, teacher: Path, tmp_path: Path) -> None:
        with pytest.raises(DreamkitError):
            trainer(options(teacher=tmp_path / "nowhere"))
        folder = write_pipeline(tmp_path / "torn")
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
        with pytest.raises(CheckpointError):
            trainer(options(teacher=folder))

    def test_a_checkpoint_of_another_student(self, options: Any, tmp_path: Path) -> None:
        train_student(options(steps=1, checkpoint_every=1))
        with pytest.raises(CheckpointError, match="another network"):
            train_student(options(start=write_pipeline(tmp_path / "wide", ffn_dim=16), steps=2))
        with pytest.raises(CheckpointError, match="another network"):
            train_student(options(start=write_pipeline(tmp_path / "deep", num_layers=3), steps=2))
