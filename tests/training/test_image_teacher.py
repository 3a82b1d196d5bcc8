"""Training of the embedded image teacher, with a tiny network on a drawn world."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_caches import write_cache

from dreamkit.diffusion.hourglass import HourglassTransformer
from dreamkit.diffusion.loading import load_teacher
from dreamkit.errors import CheckpointError, ConfigError, TeacherError
from dreamkit.files import read_jsonl
from dreamkit.toyworld.captions import content_words, vocabulary
from dreamkit.toyworld.dataset import ToyWorld
from dreamkit.toyworld.muon import Muon
from dreamkit.training import image_teacher
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.image_teacher import (
    GRID_PROMPTS,
    PROMPT_LENGTH,
    ImageTeacherOptions,
    ImageTeacherTrainer,
    make_tokenizer,
    train_image_teacher,
)
from dreamkit.training.teacher_loop import learning_rate_factor

EMBEDDED = Path(image_teacher.__file__).parents[2] / "assets" / "toyworld-teacher"
TINY: dict[str, Any] = {
    "sample_size": 16,
    "stem_channels": 8,
    "outer_dim": 32,
    "outer_depth": 1,
    "inner_dim": 64,
    "inner_depth": 3,
    "head_dim": 16,
    "cond_dim": 32,
    "cross_attention_dim": 32,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("world") / "cache.safetensors", size=32, views=3, pairs=6)


@pytest.fixture(autouse=True)
def tiny_world(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(image_teacher, "HourglassTransformer", partial(HourglassTransformer, **TINY))
    monkeypatch.setattr(image_teacher, "build_cache", lambda config, folder, workers: cache)


def options(out: Path = Path("unused"), **changes: Any) -> ImageTeacherOptions:
    base = ImageTeacherOptions(
        out=out, steps=6, batch=8, warmup=2, cooldown=2, checkpoint_every=3, sample_every=0, device="cpu"
    )
    return replace(base, **changes)


def trainer(cache: Path, **changes: Any) -> ImageTeacherTrainer:
    return ImageTeacherTrainer(options(**changes), ToyWorld(cache))


class Stopped(Exception):
    """What stands in for a power cut."""


class TestTraining:
    def test_the_loss_falls(self, cache: Path) -> None:
        run = trainer(cache, steps=60, batch=16, warmup=5, cooldown=1, lr=0.02, lr_rest=0.01)
        steps = [run.train_step() for _ in range(30)]
        for name in ("loss", "shape"):
            losses = [step[name] for step in steps]
            first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
            assert last < 0.9 * first, (name, losses)

    def test_an_untrained_network_has_the_loss_of_predicting_nothing(self, cache: Path) -> None:
        """Its last layer starts at zero: the loss is the mean square of v itself."""
        run = trainer(cache)
        batch, _, _, index, generator = run.draw(0)
        x0 = 2 * batch.images - 1
        eps = torch.randn(x0.shape, generator=generator)
        velocity = run.schedule.velocity(x0, eps, run.schedule.from_timestep(index))
        assert run.train_step()["loss"] == pytest.approx(float(velocity.square().mean()), rel=1e-4)

    def test_the_average_follows(self, cache: Path) -> None:
        run = trainer(cache, ema=0.5)
        name, parameter = next(iter(run.networks.named_parameters()))
        expected = parameter.detach().clone()
        for step in range(3):
            run.train_step()
            decay = min(0.5, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(run.average[name], expected)

    def test_every_parameter_is_trained_once(self, cache: Path) -> None:
        run = trainer(cache)
        groups = [group["params"] for optimizer in run.optimizers for group in optimizer.param_groups]
        trained = [parameter for group in groups for parameter in group]
        names = {id(parameter): name for name, parameter in run.networks.named_parameters()}
        assert sorted(names) == sorted(id(parameter) for parameter in trained)
        assert isinstance(run.optimizers[0], Muon)
        muon = [names[id(parameter)] for parameter in groups[0]]
        assert len(muon) > 10
        assert not any(word in name for name in muon for word in ("embed", "position", "modulation", "norm"))

    def test_every_parameter_moves(self, cache: Path) -> None:
        run = trainer(cache, steps=10, warmup=1, batch=16)
        before = {name: p.detach().clone() for name, p in run.networks.named_parameters()}
        for _ in range(4):
            run.train_step()
        still = [name for name, p in run.networks.named_parameters() if torch.equal(before[name], p)]
        # CLIP's position table is as long as the longest caption, every row is read.
        assert still == []


class TestLearningRate:
    def test_it_rises_stays_and_falls_to_zero(self) -> None:
        given = options(steps=100, warmup=10, cooldown=20)
        factors = [learning_rate_factor(step, given) for step in range(100)]
        assert factors[0] == pytest.approx(0.1)
        assert factors[9:81] == [1.0] * 72
        assert factors[90] == pytest.approx(0.5)
        assert factors[99] == pytest.approx(0.05)
        assert factors[80:] == sorted(factors[80:], reverse=True)
        assert learning_rate_factor(100, given) == learning_rate_factor(150, given) == 0

    def test_no_warmup_and_no_cooldown(self) -> None:
        given = options(steps=5, warmup=0, cooldown=0)
        assert [learning_rate_factor(step, given) for step in range(5)] == [1.0] * 5


class TestDraw:
    def test_it_is_a_function_of_seed_and_step(self, cache: Path) -> None:
        one, two, later = trainer(cache).draw(3), trainer(cache).draw(3), trainer(cache).draw(4)
        assert torch.equal(one[0].images, two[0].images)
        assert all(torch.equal(a, b) for a, b in zip(one[1:4], two[1:4], strict=True))
        assert torch.equal(torch.rand(3, generator=one[4]), torch.rand(3, generator=two[4]))
        assert not torch.equal(one[0].images, later[0].images)
        other = trainer(cache, seed=1).draw(3)
        assert not torch.equal(one[0].images, other[0].images)

    def test_what_is_dropped(self, cache: Path) -> None:
        run = trainer(cache, batch=600, text_dropout=0.1, camera_dropout=0.5)
        batch, tokens, poses, index, _ = run.draw(0)
        assert tokens.shape == (600, PROMPT_LENGTH)
        empty = (tokens[:, 2:] == 0).all(dim=1)  # [BOS] [EOS] and padding
        assert float(empty.float().mean()) == pytest.approx(0.1, abs=0.04)
        without = (poses == 0).all(dim=1)
        assert float(without.float().mean()) == pytest.approx(0.5, abs=0.07)
        assert torch.equal(poses[~without], batch.poses[~without])
        assert index.shape == (600,)

    def test_noise_levels_are_stratified_training_indices(self, cache: Path) -> None:
        _, _, _, index, _ = trainer(cache, batch=50).draw(0)
        assert bool((index == index.floor()).all())
        assert torch.equal((index.sort().values / 20).floor(), torch.arange(50.0))

    def test_tokens_are_those_of_the_captions(self, cache: Path) -> None:
        run = trainer(cache, text_dropout=0.0)
        batch, tokens, *_ = run.draw(0)
        known = make_tokenizer()
        for caption, ids in zip(batch.captions, tokens, strict=True):
            assert known.decode(ids, skip_special_tokens=True).split() == caption.replace(",", " ,").split()


class TestTokenizer:
    def test_every_word_is_one_token(self) -> None:
        tokenizer = make_tokenizer()
        for word in vocabulary():
            ids = tokenizer(word)["input_ids"]
            assert len(ids) == 3, word
            assert tokenizer.unk_token_id not in ids
        assert tokenizer("a red dragon")["input_ids"].count(tokenizer.unk_token_id) == 1
        assert tokenizer("A RED, Mug")["input_ids"] == tokenizer("a red , mug")["input_ids"]

    def test_it_survives_its_file(self, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        make_tokenizer().save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded("a red mug, front view")["input_ids"] == make_tokenizer()("a red mug, front view")["input_ids"]


class TestResuming:
    def run(self, out: Path, stop: int | None = None, **changes: Any) -> dict[str, Tensor]:
        def report(step: int, metrics: dict[str, float]) -> None:
            assert metrics["step"] == step
            assert metrics["loss"] > 0
            if step == stop:
                raise Stopped

        train_image_teacher(options(out, **changes), report)
        return load_latest(out / "checkpoints")[0].tensors

    @pytest.mark.parametrize("stop", [4, 6])
    def test_stopped_and_continued_equals_never_stopped(self, tmp_path: Path, stop: int) -> None:
        """Checkpoints at 3 and 6; stopped before the one at 6 the run goes on from 3."""
        straight = self.run(tmp_path / "straight")
        with pytest.raises(Stopped):
            self.run(tmp_path / "stopped", stop)
        assert list_checkpoints(tmp_path / "stopped" / "checkpoints")[0].name == "step-00000003"
        resumed = self.run(tmp_path / "stopped")
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        for out in ("straight", "stopped"):
            assert [row["step"] for row in read_jsonl(tmp_path / out / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
        for file in ("denoiser/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
            contents = [(tmp_path / out / "teacher" / file).read_bytes() for out in ("straight", "stopped")]
            assert contents[0] == contents[1]

    def test_a_finished_run_only_exports(self, tmp_path: Path) -> None:
        before = self.run(tmp_path)
        told: list[str] = []
        folder = train_image_teacher(options(tmp_path), lambda step, metrics: pytest.fail("trained on"), told.append)
        assert (folder / "model_index.json").exists()
        assert "continuing from step 6" in told
        after = load_latest(tmp_path / "checkpoints")[0].tensors
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_more_steps_go_on_from_the_end(self, tmp_path: Path) -> None:
        self.run(tmp_path)
        seen: list[int] = []
        train_image_teacher(options(tmp_path, steps=8), lambda step, metrics: seen.append(step))
        assert seen == [7, 8]

    def test_a_checkpoint_of_another_network(self, cache: Path) -> None:
        run = trainer(cache)
        state = run.state()
        name = next(name for name in state if name.startswith("weights."))
        with pytest.raises(CheckpointError, match="another network"):
            trainer(cache).load_state({key: t for key, t in state.items() if key != name}, 1)
        with pytest.raises(CheckpointError, match="another network"):
            trainer(cache).load_state(state | {name: torch.zeros(1, 2, 3)}, 1)

    def test_it_may_start_from_an_exported_teacher(self, cache: Path, tmp_path: Path) -> None:
        first = trainer(cache)
        for _ in range(2):
            first.train_step()
        folder = first.export(tmp_path / "teacher")
        second = trainer(cache, start=folder, seed=5)
        for name, parameter in second.networks.named_parameters():
            if not name.startswith("shape_head"):  # it only serves training, and is not exported
                torch.testing.assert_close(parameter, first.average[name].half().float(), rtol=0, atol=0)
        assert second.step == 0
        with pytest.raises(CheckpointError, match="denoiser"):
            trainer(cache, start=tmp_path / "nowhere")


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageTeacherTrainer, Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_teacher, "HourglassTransformer", partial(HourglassTransformer, **TINY))
        run = trainer(cache, steps=20, warmup=1)
    for _ in range(4):
        run.train_step()
    before = {name: tensor.clone() for name, tensor in run.state().items()}
    folder = run.export(tmp_path_factory.mktemp("export") / "teacher")
    after = run.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "exporting changed the training state"
    return run, folder


class TestExport:
    def test_a_diffusers_folder_of_half_precision(self, trained: tuple[ImageTeacherTrainer, Path]) -> None:
        from safetensors.torch import load_file

        folder = trained[1]
        names = {path.name for path in folder.iterdir()}
        assert names == {"denoiser", "text_encoder", "tokenizer", "scheduler", "model_index.json"}
        weights = list(folder.rglob("*.safetensors"))
        assert len(weights) == 2
        for file in weights:
            assert {tensor.dtype for tensor in load_file(file).values()} <= {torch.float16, torch.int64}
            assert file.stat().st_mode & 0o444 == 0o444  # an installed package is read by others than its builder
        assert not list(folder.rglob("*.bin"))

    def test_it_loads_and_predicts_as_the_averaged_weights(self, trained: tuple[ImageTeacherTrainer, Path]) -> None:
        run, folder = trained
        teacher = load_teacher(str(folder), "cpu")
        assert teacher.prediction_type == "v"
        assert teacher.supports_camera
        assert teacher.image_size == 16
        average = trainer_with(run.average, run)
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn(3, 3, 16, 16, generator=generator)
        camera = torch.randn(3, 12, generator=generator)
        camera[0] = 0
        t = torch.tensor([0.1, 0.5, 0.9])
        prompts = ["a red mug", "", "a blue car, side view"]
        tokens = run.tokenizer(prompts, padding="max_length", max_length=PROMPT_LENGTH, return_tensors="pt")
        with torch.no_grad():
            index = run.schedule.to_timestep(t)
            expected, _ = average(x_t, index, tokens["input_ids"], camera)
            got = teacher.predict(x_t, t, teacher.encode_prompt(prompts), camera)
        assert float(expected.abs().mean()) > 1e-3
        torch.testing.assert_close(got.v, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))

    def test_training_and_loading_share_one_schedule(self, trained: tuple[ImageTeacherTrainer, Path]) -> None:
        run, folder = trained
        teacher, t = load_teacher(str(folder), "cpu"), torch.linspace(0, 1, 101)
        assert torch.equal(teacher.schedule.alpha(t), run.schedule.alpha(t))
        assert torch.equal(teacher.schedule.to_timestep(t), run.schedule.to_timestep(t))

    def test_its_words(self, trained: tuple[ImageTeacherTrainer, Path]) -> None:
        teacher = load_teacher(str(trained[1]), "cpu")
        assert teacher.content_words() == content_words()
        assert teacher.unknown_words("a red dragon, front view") == ["dragon"]
        assert teacher.dropped_text("a red mug") == ""

    def test_a_grid_as_it_goes(self, tmp_path: Path) -> None:
        from PIL import Image

        train_image_teacher(options(tmp_path, steps=4, sample_every=3, checkpoint_every=4))
        for step in (3, 4):
            with Image.open(tmp_path / f"samples-{step:06d}.png") as grid:
                grid.load()
        assert all(
            known in {*vocabulary(), ","} for prompt in GRID_PROMPTS for known in prompt.replace(",", " ,").split()
        )


def trainer_with(average: dict[str, Tensor], run: ImageTeacherTrainer) -> image_teacher.TeacherNetworks:
    """Networks that hold the averaged weights."""
    networks = image_teacher.TeacherNetworks(len(run.tokenizer))
    networks.load_state_dict(average, strict=False)
    return networks.eval()


class TestBadOptions:
    @pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"checkpoint_every": -1}], ids=str)
    def test_numbers(self, change: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match=f"--{next(iter(change)).replace('_', '-')}"):
            ImageTeacherOptions(**change)  # type: ignore[arg-type]

    def test_a_device_that_is_not_there(self, cache: Path) -> None:
        with pytest.raises(TeacherError, match="device"):
            trainer(cache, device="cuda:77")


@pytest.fixture(scope="module")
def teacher() -> Any:
    return load_teacher("toyworld", "cpu")


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded teacher is not in assets/ yet")
class TestEmbeddedTeacher:
    def test_it_is_what_it_should_be(self, teacher: Any) -> None:
        assert teacher.prediction_type == "v"
        assert teacher.image_size == 64
        assert teacher.supports_camera
        assert teacher.content_words() == content_words()
        assert sum(path.stat().st_size for path in EMBEDDED.rglob("*.safetensors")) <= 20e6

    def test_it_draws_the_colours_it_is_asked_for(self, teacher: Any) -> None:
        prompts = ["a red ball", "a green cube", "a blue car", "a red cone"]
        images = teacher.sample(prompts, 12, 3.0, torch.Generator().manual_seed(0))
        middle = images[:, :, 24:44, 22:42].mean(dim=(2, 3))
        assert middle.argmax(dim=1).tolist() == [0, 1, 2, 0]
