"""Training of the embedded video teacher, with a tiny network on drawn squares."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_clips import CONFIG, SquareWorld, fill_here, use_squares, write_autoencoder

from dreamkit.cli.main import main
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.files import read_jsonl
from dreamkit.toyworld.muon import Muon
from dreamkit.training import video_clips, video_teacher
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.video_clips import ClipPool, PoolRecipe
from dreamkit.training.video_teacher import (
    CHUNK,
    GRID_PROMPTS,
    PROMPT_LENGTH,
    VideoNetworks,
    VideoTeacherOptions,
    VideoTeacherTrainer,
    noise_levels,
    train_video_teacher,
)
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import load_video_teacher

FULL_NETWORK = dict(video_teacher.NETWORK)

pytestmark = pytest.mark.usefixtures("one_thread", "tiny")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    use_squares(monkeypatch)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder") / "vae")


@pytest.fixture(scope="module")
def recipe(vae: Path) -> PoolRecipe:
    return PoolRecipe(CONFIG, Path("motion-none.safetensors"), vae, clips=10, shard=4)


@pytest.fixture(scope="module")
def place(recipe: PoolRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_clips, "MotionWorld", SquareWorld)
        fill_here(recipe, folder, 2)
    return folder


@pytest.fixture
def make(vae: Path, place: Path) -> Callable[..., VideoTeacherTrainer]:
    return lambda **changes: VideoTeacherTrainer(options(vae, **changes), ClipPool(place))


def options(vae: Path, out: Path = Path("unused"), **changes: Any) -> VideoTeacherOptions:
    base = VideoTeacherOptions(
        out=out,
        autoencoder=vae,
        steps=6,
        image_steps=2,
        warmup=1,
        cooldown=2,
        image_batch=6,
        batch=2,
        images=3,
        short_frames=3,
        checkpoint_every=3,
        sample_every=0,
        clips=10,
        device="cpu",
        world=CONFIG,
    )
    return replace(base, **changes)


class TestDraw:
    def test_it_is_a_function_of_seed_and_step(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        def flat(run: VideoTeacherTrainer, step: int) -> list[Tensor]:
            lessons = run.draw(step)
            return [item for lesson in lessons for item in (lesson.latents, lesson.noise, lesson.t, lesson.tokens)]

        one, two = make(), make()
        for step in (0, 4):
            assert all(torch.equal(a, b) for a, b in zip(flat(one, step), flat(two, step), strict=True))
        assert not torch.equal(flat(one, 0)[1], flat(one, 1)[1])
        assert not torch.equal(flat(one, 0)[1], flat(make(seed=1), 0)[1])

    def test_single_frames_first_then_clips_beside_them(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make(image_steps=3, short=0.4)
        for step in range(3):
            (lesson,) = run.draw(step)
            assert lesson.latents.shape == (6, 4, 1, 4, 4)
            assert lesson.controls is None
        lengths = []
        for step in range(3, 103):
            clips, images = run.draw(step)
            assert images.latents.shape == (3, 4, 1, 4, 4)
            count, frames = clips.latents.shape[0], clips.latents.shape[2]
            assert count * frames == 12
            lengths.append(frames)
        assert set(lengths) == {3, 6}
        assert lengths.count(3) / 100 == pytest.approx(0.4, abs=0.15)
        assert len(make(images=0).draw(5)) == 1

    def test_what_is_withheld(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make(batch=600, short=0.0, text_dropout=0.1, camera_dropout=0.5, track_dropout=0.7)
        lesson = run.draw(2)[0]
        assert lesson.tokens.shape == (600, PROMPT_LENGTH)
        empty = (lesson.tokens[:, 2:] == 0).all(dim=1)  # [BOS] [EOS] and padding
        assert float(empty.float().mean()) == pytest.approx(0.1, abs=0.04)
        assert lesson.controls is not None
        assert lesson.controls.camera is not None
        without = (lesson.controls.camera == 0).flatten(1).all(dim=1)
        assert float(without.float().mean()) == pytest.approx(0.5, abs=0.07)
        assert lesson.controls.visible is not None
        blind = ~lesson.controls.visible.flatten(1).any(dim=1)
        assert float(blind.float().mean()) == pytest.approx(0.7, abs=0.07)
        assert float((without & blind).float().mean()) == pytest.approx(0.35, abs=0.07)

    def test_every_word_is_known(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make()
        for prompt in GRID_PROMPTS:
            assert run.tokenizer.unk_token_id not in run.tokenizer(prompt)["input_ids"]
            assert len(run.tokenizer(prompt)["input_ids"]) <= PROMPT_LENGTH


class TestNoiseLevels:
    def test_one_for_a_clip_or_one_for_a_chunk(self) -> None:
        levels = noise_levels(2000, 8, 0.25, torch.Generator().manual_seed(0))
        assert levels.shape == (2000, 8)
        assert float(levels.min()) >= 0
        assert float(levels.max()) <= 1
        chunks = levels.split(CHUNK, dim=1)
        assert all(bool((chunk == chunk[:, :1]).all()) for chunk in chunks)
        forced = (levels != levels[:, :1]).any(dim=1)
        assert float(forced.float().mean()) == pytest.approx(0.25, abs=0.03)
        correlation = torch.corrcoef(torch.stack([chunk[forced, 0] for chunk in chunks])) - torch.eye(3)
        assert float(correlation.abs().max()) < 0.15

    def test_whole_clips_are_stratified(self) -> None:
        levels = noise_levels(50, 2, 0.0, torch.Generator().manual_seed(0))[:, 0]
        assert torch.equal((levels.sort().values * 50).floor(), torch.arange(50.0))


class TestTraining:
    def test_an_untrained_network_has_the_loss_of_predicting_nothing(
        self, make: Callable[..., VideoTeacherTrainer]
    ) -> None:
        run = make(shape_weight=0.0)
        for step in (0, 3):
            run.step = step
            total, metrics = run.losses()
            expected = [(lesson.noise - lesson.latents).square().mean() for lesson in run.draw(step)]
            assert metrics["loss"] == pytest.approx(float(expected[0]), rel=1e-4)
            assert float(total.detach()) == pytest.approx(float(sum(expected)) / len(expected), rel=1e-4)

    def test_the_network_is_asked_for_the_flow(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make(shift=2.0)
        run.step = 4
        asked = []

        def answer(noisy: Tensor, timesteps: Tensor, tokens: Tensor, controls: Controls | None) -> Any:
            asked.append((noisy, timesteps, tokens, controls))
            return torch.zeros_like(noisy, requires_grad=True), torch.zeros(len(noisy), noisy.shape[2], 4, 4, 4)

        run.networks.forward = answer  # type: ignore[method-assign]
        run.losses()
        for lesson, (noisy, timesteps, tokens, controls) in zip(run.draw(4), asked, strict=True):
            t = lesson.t[:, None, :, None, None]
            torch.testing.assert_close(noisy, (1 - t) * lesson.latents + t * lesson.noise)
            torch.testing.assert_close(timesteps, 1000 * lesson.t)
            assert torch.equal(tokens, lesson.tokens)
            assert (controls is None) == (lesson.controls is None)

    def test_two_clips_are_learnt_by_heart(self, vae: Path, recipe: PoolRecipe, tmp_path: Path) -> None:
        fill_here(replace(recipe, clips=2, shard=2), tmp_path, 1)
        changes = {"image_steps": 0, "images": 0, "short": 0.0, "batch": 8, "lr": 0.02, "lr_rest": 0.01, "steps": 200}
        run = VideoTeacherTrainer(options(vae, **changes), ClipPool(tmp_path))
        losses = [run.train_step()["loss"] for _ in range(60)]
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5])

    def test_every_parameter_is_trained_once(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make()
        groups = [group["params"] for optimizer in run.optimizers for group in optimizer.param_groups]
        trained = [parameter for group in groups for parameter in group]
        names = {id(parameter): name for name, parameter in run.networks.named_parameters()}
        assert sorted(names) == sorted(id(parameter) for parameter in trained)
        assert isinstance(run.optimizers[0], Muon)
        muon = [names[id(parameter)] for parameter in groups[0]]
        assert len(muon) == 2 * 10 + 2 * 6
        assert not any(word in name for name in muon for word in ("embed", "table", "norm", "time", "controls"))

    def test_every_parameter_moves(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make(steps=20, warmup=1, image_steps=0, camera_dropout=0.0, track_dropout=0.0)
        before = {name: p.detach().clone() for name, p in run.networks.named_parameters()}
        for _ in range(4):
            run.train_step()
        still = [name for name, p in run.networks.named_parameters() if torch.equal(before[name], p)]
        assert still == []


class TestRuns:
    def run(self, vae: Path, out: Path, stop: int | None = None, **changes: Any) -> dict[str, Tensor]:
        def report(step: int, metrics: dict[str, float]) -> None:
            if step == stop:
                raise InterruptedError

        train_video_teacher(options(vae, out, **changes), report)
        return load_latest(out / "checkpoints")[0].tensors

    @pytest.mark.parametrize("stop", [2, 5])
    def test_stopped_and_continued_equals_never_stopped(self, vae: Path, tmp_path: Path, stop: int) -> None:
        straight = self.run(vae, tmp_path / "straight")
        with pytest.raises(InterruptedError):
            self.run(vae, tmp_path / "stopped", stop)
        resumed = self.run(vae, tmp_path / "stopped")
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        for part in ("transformer/diffusion_pytorch_model", "text_encoder/model", "controls/diffusion_pytorch_model"):
            files = [tmp_path / out / "teacher" / f"{part}.safetensors" for out in ("straight", "stopped")]
            assert files[0].read_bytes() == files[1].read_bytes()
        rows = read_jsonl(tmp_path / "stopped" / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
        assert [row["frames"] > 1 for row in rows] == [False, False, True, True, True, True]
        assert (tmp_path / "stopped" / "loss.png").exists()

    def test_a_signal_saves_exports_and_says_how_to_go_on(self, vae: Path, tmp_path: Path) -> None:
        told: list[str] = []

        def report(step: int, metrics: dict[str, float]) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(KeyboardInterrupt):
            train_video_teacher(options(vae, tmp_path), report, told.append)
        assert list_checkpoints(tmp_path / "checkpoints")[0].name == "step-00000004"
        assert (tmp_path / "teacher" / "model_index.json").exists()
        assert "--steps 6 " in told[-1]
        assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
        straight = self.run(vae, tmp_path / "straight")
        resumed = self.run(vae, tmp_path)
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)

    def test_it_may_end_early(self, vae: Path, tmp_path: Path) -> None:
        with pytest.raises(InterruptedError):
            self.run(vae, tmp_path, 4, steps=1000)
        self.run(vae, tmp_path, steps=5)
        assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]

    def test_samples(self, vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[int] = []
        monkeypatch.setattr(video_teacher, "draw_grid", lambda folder, picture, frames: drawn.append(frames))
        self.run(vae, tmp_path, sample_every=2)
        assert drawn == [1, 6, 6]
        monkeypatch.undo()
        monkeypatch.setattr(video_teacher, "GRID_PROMPTS", GRID_PROMPTS[:2])
        video_teacher.draw_grid(tmp_path / "teacher", tmp_path / "grid.png", 6)
        from PIL import Image

        width, height = Image.open(tmp_path / "grid.png").size
        assert width > 2 * height  # six frames by two prompts

    def test_another_network(self, make: Callable[..., VideoTeacherTrainer]) -> None:
        run = make()
        state = run.state()
        name = next(name for name in state if name.startswith("weights."))
        with pytest.raises(CheckpointError, match="another network"):
            make().load_state({key: value for key, value in state.items() if key != name}, 1)

    def test_it_may_start_from_an_exported_teacher(
        self, make: Callable[..., VideoTeacherTrainer], tmp_path: Path
    ) -> None:
        first = make()
        for _ in range(4):
            first.train_step()
        second = make(start=first.export(tmp_path / "teacher"), seed=5)
        for name, parameter in second.networks.named_parameters():
            if not name.startswith("shape_head"):  # it is not exported
                torch.testing.assert_close(parameter, first.average[name].half().float(), rtol=0, atol=0)
        with pytest.raises(CheckpointError):
            make(start=tmp_path / "nowhere")


class TestExport:
    @pytest.fixture
    def trained(self, make: Callable[..., VideoTeacherTrainer], tmp_path: Path) -> tuple[VideoTeacherTrainer, Path]:
        run = make(image_steps=0, camera_dropout=0.0, track_dropout=0.0, lr=0.02, lr_rest=0.02)
        for _ in range(5):
            run.train_step()
        before = {name: tensor.clone() for name, tensor in run.state().items()}
        folder = run.export(tmp_path / "teacher")
        assert all(torch.equal(before[name], value) for name, value in run.state().items())
        return run, folder

    def test_it_loads_and_predicts_as_the_averaged_weights(self, trained: tuple[VideoTeacherTrainer, Path]) -> None:
        run, folder = trained
        teacher = load_video_teacher(folder)
        teacher.half_precision = False
        assert teacher.shift == run.options.shift
        networks = VideoNetworks(len(run.tokenizer)).eval()
        with torch.no_grad():
            for name, parameter in networks.named_parameters():
                parameter.copy_(run.average[name])
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 4, 3, 4, 4, generator=generator)
        controls = Controls(torch.randn(2, 3, 12, generator=generator), torch.rand(2, 3, 3, 2, generator=generator))
        t, prompts = torch.tensor([0.3, 0.8]), ["a red cube spinning", ""]
        with torch.no_grad():
            expected, shapes = networks(x, 1000 * t, run.tokens(prompts), controls)
        assert shapes.shape == (2, 3, 4, 4, 4)
        got = teacher.predict(x, t, teacher.encode_prompt(prompts), controls)
        assert float(expected.abs().mean()) > 1e-2
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))
        plain = teacher.predict(x, t, teacher.encode_prompt(prompts))
        assert not torch.allclose(plain, got, atol=1e-4)
        assert teacher.text.unknown_words("a red dragon spinning") == ["dragon"]

    def test_diffusers_opens_it(self, trained: tuple[VideoTeacherTrainer, Path]) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

        folder = trained[1]
        theirs = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        teacher = load_video_teacher(folder)
        teacher.half_precision = False
        x, text = torch.randn(1, 4, 3, 4, 4), teacher.encode_prompt(["a red cube"])
        with torch.no_grad():
            expected = theirs(x, torch.tensor([400.0]), text, return_dict=False)[0]
        torch.testing.assert_close(teacher.predict(x, 0.4, text), expected, rtol=1e-3, atol=1e-4)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        assert scheduler.config.shift == 3.0

    def test_files(self, trained: tuple[VideoTeacherTrainer, Path]) -> None:
        from safetensors.torch import load_file

        folder = trained[1]
        wanted = {"transformer", "controls", "vae", "text_encoder", "tokenizer", "scheduler", "model_index.json"}
        assert {path.name for path in folder.iterdir()} == wanted
        assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "DreamKitVideoPipeline"
        weights = list(folder.rglob("*.safetensors"))
        assert len(weights) == 4
        for file in weights:
            assert {tensor.dtype for tensor in load_file(file).values()} <= {torch.float16, torch.int64}
            assert file.stat().st_mode & 0o444 == 0o444
        assert not list(folder.rglob("*.bin"))

    def test_the_embedded_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(video_teacher, "NETWORK", FULL_NETWORK)
        networks = VideoNetworks(150)
        transformer = sum(p.numel() for p in networks.transformer.parameters())
        assert 8e6 < transformer < 10e6  # two bytes each: under 20 MB
        assert networks.transformer.token_grid(torch.zeros(1, 8, 15, 16, 16)) == (15, 8, 8)


class TestOptions:
    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"steps": 0}, "steps"),
            ({"batch": 0}, "batch"),
            ({"images": -1}, "images"),
            ({"image_steps": -1}, "image-steps"),
            ({"text_dropout": 1.5}, "text-dropout"),
            ({"forcing": float("nan")}, "forcing"),
            ({"shift": 0.0}, "shift"),
            ({"short_frames": 7}, "short-frames"),
            ({"start_clips": -5}, "start-clips"),
        ],
    )
    def test_out_of_range(self, vae: Path, change: dict[str, Any], word: str) -> None:
        with pytest.raises(ConfigError, match=word):
            options(vae, **change)

    def test_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["teachers", "train", "video", "--steps", "0"]) == 2
        assert "steps" in capsys.readouterr().err
        given = ["--out", str(tmp_path), "--autoencoder", str(tmp_path / "none"), "--clips", "4"]
        assert main(["teachers", "train", "video", *given]) == 2
        assert "video-autoencoder" in capsys.readouterr().err
        assert main(["teachers", "train", "video-autoencoder", "--noise", "-1"]) == 2

    def test_a_whole_run_from_the_command_line(
        self, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = {
            "out": tmp_path,
            "autoencoder": vae,
            "clips": 6,
            "steps": 2,
            "image-steps": 1,
            "image-batch": 2,
            "batch": 1,
            "images": 1,
            "short-frames": 2,
            "sample-every": 0,
            "world.frames": 4,
            "world.size": 16,
            "world.points": 3,
            "workers": 1,
        }
        given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        assert main(["teachers", "train", "video", *given]) == 0
        assert str(tmp_path / "teacher") in capsys.readouterr().out
        assert load_video_teacher(tmp_path / "teacher").autoencoder.channels == 4
