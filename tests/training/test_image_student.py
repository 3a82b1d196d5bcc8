"""Training of image students, with tiny teachers."""

import json
import math
from collections.abc import Callable
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
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.students import NetworkStudent, StudentConfig, save_student
from dreamkit.errors import ConfigError, DreamkitError, PromptError, TrainingError
from dreamkit.files import read_jsonl
from dreamkit.metrics.judge import COMPOSITIONS, Judge
from dreamkit.objectives import student_objective_names
from dreamkit.scenes.pictures import save_image
from dreamkit.toyworld.dataset import ToyWorld
from dreamkit.training import image_student, image_teacher
from dreamkit.training.checkpoints import list_checkpoints, load_latest
from dreamkit.training.image_student import (
    ImageStudentOptions,
    ImageStudentTrainer,
    agreement,
    image_objective,
    published_steps,
    train_image_student,
)
from dreamkit.training.image_student_path import FILE as PATH_FILE
from dreamkit.training.image_teacher import ImageTeacherOptions, ImageTeacherTrainer

pytestmark = pytest.mark.usefixtures("one_thread")

TINY: dict[str, Any] = {
    "sample_size": 16,
    "stem_channels": 4,
    "outer_dim": 32,
    "outer_depth": 1,
    "inner_dim": 32,
    "inner_depth": 3,
    "head_dim": 16,
    "cond_dim": 32,
    "cross_attention_dim": 32,
}
FROM_PICTURES = ("f-distill", "uni-instruct")
NAMES = student_objective_names()


class Stopped(Exception):
    """What stands in for a power cut."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("world") / "cache.safetensors", size=32, views=2, pairs=6)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A tiny teacher that reads the toy world's captions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_teacher, "HourglassTransformer", partial(HourglassTransformer, **TINY))
        run = ImageTeacherTrainer(ImageTeacherOptions(device="cpu"), ToyWorld(cache))
    with torch.no_grad():  # what starts at zero would make it ignore text and camera
        for value in run.average.values():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    return run.export(tmp_path_factory.mktemp("toy") / "teacher")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("a red mug\n\n  a blue cube on the table \na green duck\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(3):
        shade = torch.rand(3, 20 + 6 * index, 24, generator=torch.Generator().manual_seed(index))
        save_image(shade, folder / f"{index}.png")
    return folder


@pytest.fixture
def options(
    checkpoint: Callable[[str], Path], prompts: Path, pictures: Path, tmp_path: Path
) -> Callable[..., ImageStudentOptions]:
    def make(kind: str = "toyworld", **changes: Any) -> ImageStudentOptions:
        learns = changes.get("objective") in FROM_PICTURES or any("gan_weight" in o for o in changes.get("option", ()))
        base = ImageStudentOptions(
            teacher=str(checkpoint(kind)), prompts=prompts, out=tmp_path / "run", steps=4, cooldown=1, warmup=1,
            batch=2, critic_steps=1, path_length=2, path_steps=1, checkpoint_every=2, sample_every=0, device="cpu",
            pictures=pictures if learns else None,
        )  # fmt: skip
        return replace(base, **changes)

    return make


Make = Callable[..., ImageStudentOptions]


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(module: torch.nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


class TestObjectives:
    @pytest.mark.parametrize("kind", ["toyworld", "sd15"])
    @pytest.mark.parametrize("name", NAMES)
    def test_each_trains(self, options: Make, name: str, kind: str) -> None:
        run = ImageStudentTrainer(options(kind, objective=name))
        student, teacher = snapshot(run.trained), snapshot(run.teacher.network)
        critic = {} if run.critic is None else snapshot(run.critic)
        rows = [run.train_step() for _ in range(2)]
        assert all(math.isfinite(value) for row in rows for value in row.values())
        assert moved(run.trained, student)
        assert not moved(run.teacher.network, teacher)
        if run.critic is None:
            assert name == "scm"
        else:
            assert moved(run.critic, critic)
            assert ("discriminator" in rows[0]) == (name in FROM_PICTURES)

    @pytest.mark.parametrize("name", sorted({*NAMES} - {"phased-dmd", *FROM_PICTURES}))
    def test_each_takes_a_student_of_several_steps(self, options: Make, name: str) -> None:
        run = ImageStudentTrainer(options(objective=name, steps_per_sample=3))
        rows = [run.train_step() for _ in range(2)]
        assert all(math.isfinite(value) for row in rows for value in row.values())

    @pytest.mark.parametrize("name", ["dmd", "swiftbrush", "tdm"])
    def test_a_gan_beside_it(self, options: Make, name: str) -> None:
        run = ImageStudentTrainer(options(objective=name, option=("gan_weight=1e-2", "gan_penalty=0.1")))
        assert run.critic is not None
        before = snapshot(run.critic)
        row = run.train_step()
        assert row["discriminator"] == pytest.approx(2 * math.log(2), rel=1e-5)  # its last layer starts at zero
        assert row["gan"] > 0
        moving = {name for name, value in run.critic.named_parameters() if not torch.equal(value, before[name])}
        assert {"head.logit.weight", "network.head_out.weight"} <= moving

    def test_consistency_of_pictures_has_an_exact_derivative(self, options: Make, pictures: Path) -> None:
        row = ImageStudentTrainer(options("sd15", objective="scm", pictures=pictures)).train_step()
        assert row["jvp"] == 1.0

    def test_steps_of_the_critic_as_published(self, options: Make) -> None:
        for name, steps in {"dmd": 5, "tdm": 5, "swiftbrush": 1, "sid": 1, "sim": 1, "uni-instruct": 1}.items():
            given = options(objective=name, critic_steps=0)
            assert published_steps(image_objective(given)) == steps
        assert ImageStudentTrainer(options(critic_steps=0)).critic_steps == 5
        assert ImageStudentTrainer(options(critic_steps=3)).critic_steps == 3


class TestSamples:
    def test_one_step_is_the_students_clean_sample(self, options: Make) -> None:
        run = ImageStudentTrainer(options(camera_dropout=1.0, start_level=0.9))
        made = run.make(torch.Generator().manual_seed(7), trained=True)
        generator = torch.Generator().manual_seed(7)
        lesson = run.maker.draw(generator)
        torch.randint(1, (), generator=generator)
        x_t = float(run.teacher.schedule.sigma(0.9)) * torch.randn(made.x.shape, generator=generator)
        expected = run.teacher.predict(x_t, 0.9, lesson.condition).x0  # untrained, it is the teacher
        torch.testing.assert_close(made.x.detach(), expected, rtol=0, atol=1e-5)
        assert made.x.requires_grad
        assert made.context.student_level is not None
        assert made.context.student_level.tolist() == [0.9, 0.9]

    def test_a_random_exit_with_the_gradient_of_its_step_alone(self, options: Make) -> None:
        run = ImageStudentTrainer(options(steps_per_sample=3))
        levels = set()
        for seed in range(12):
            run.model.calls = 0
            made = run.make(torch.Generator().manual_seed(seed), trained=True)
            assert made.context.student_level is not None
            level = float(made.context.student_level[0])
            levels.add(round(level, 4))
            assert run.model.calls == 2 * round((1 - level) * 3 + 1)
            (grad,) = torch.autograd.grad(made.x.sum(), [run.model.network.head_out.weight])
            assert float(grad.abs().sum()) > 0
        assert levels == {1.0, 0.6667, 0.3333}

    def test_a_pure_function_of_seed_and_step(self, options: Make) -> None:
        one, two = (ImageStudentTrainer(options()) for _ in range(2))
        given = [run.make(run._generator(1), trained=False).x for run in (one, two)]
        assert torch.equal(*given)
        assert not torch.equal(given[0], one.make(one._generator(0), trained=False).x)
        assert not given[0].requires_grad

    def test_cameras_go_to_everybody_and_half_are_withheld(self, toy: Path, options: Make) -> None:
        run = ImageStudentTrainer(options(teacher=str(toy), batch=400, prompts=None))
        lesson = run.maker.draw(torch.Generator().manual_seed(0))
        assert lesson.camera is not None
        withheld = lesson.camera.abs().sum(dim=1) == 0
        assert float(withheld.float().mean()) == pytest.approx(0.5, abs=0.1)
        context = run._context(lesson, torch.Generator())
        for judge in (context.teacher, context.critic):
            assert judge.camera is lesson.camera  # type: ignore[union-attr]
        # A teacher that takes none gets none.
        plain = ImageStudentTrainer(options("sd15")).maker.draw(torch.Generator().manual_seed(0))
        assert plain.camera is None

    def test_precision(self, options: Make) -> None:
        """In bfloat16 the student's own weights stay float32, and what consistency differentiates is exact."""
        run = ImageStudentTrainer(options(objective="rcm", precision="bfloat16"))
        assert {p.dtype for p in run.trained.parameters()} == {torch.float32}
        assert {p.dtype for p in run.teacher.network.parameters()} == {torch.bfloat16}
        made = run.make(torch.Generator().manual_seed(0), trained=True)
        assert made.x.dtype == torch.float32
        assert made.context.teacher.half_precision  # type: ignore[attr-defined]
        assert not made.context.student.half_precision  # type: ignore[union-attr]
        assert all(math.isfinite(value) for value in run.train_step().values())
        assert not ImageStudentTrainer(options()).half_precision


class TestRewards:
    def test_the_judges_agreement(self) -> None:
        """Of a judge that sees a red mug with 0.5, a blue mug with 0.25 and a red car with 0.25."""
        shares = torch.zeros(len(COMPOSITIONS))
        for pair, share in {("red", "mug"): 0.5, ("blue", "mug"): 0.25, ("red", "car"): 0.25}.items():
            shares[COMPOSITIONS.index(pair)] = share

        class Fixed(Judge):
            def __init__(self) -> None:
                pass

            def verdicts(self, images: Tensor) -> tuple[Tensor, Tensor]:
                return shares.log().expand(len(images), -1), torch.zeros(len(images), 4)

        said = ["a photo of a red cup, front view", "a mug", "a shiny blue mug", "a green car", "a dragon"]
        got = agreement(Fixed(), torch.zeros(5, 3, 8, 8), said)
        torch.testing.assert_close(got, torch.tensor([0.5, 0.75, 0.25, 0.0, 0.0]))

    def test_it_reaches_the_objective(self, options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(image_student, "agreement", lambda judge, images, prompts: torch.tensor([0.0, 2.0]))
        row = ImageStudentTrainer(options(objective="re-dmd")).train_step()
        assert row["largest_importance"] == pytest.approx(math.exp(2) / ((1 + math.exp(2)) / 2), rel=1e-5)


class TestRuns:
    def train(self, given: ImageStudentOptions, stop: int = 0) -> dict[str, Tensor]:
        def report(step: int, metrics: dict[str, float]) -> None:
            assert metrics["step"] == step
            if step == stop:
                raise Stopped

        train_image_student(given, report)
        return load_latest(given.out / "checkpoints")[0].tensors

    @pytest.mark.parametrize(
        "changes",
        [
            {"option": ("gan_weight=1e-3",)},
            {"objective": "disback", "steps_per_sample": 2},
            {"objective": "rcm", "option": ("warmup_steps=1",)},
        ],
        ids=["gan", "disback", "rcm"],
    )
    def test_stopped_and_continued_equals_never_stopped(
        self, options: Make, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        """4 steps, and 2 with 2 more."""
        straight = self.train(options(out=tmp_path / "straight", **changes))
        with pytest.raises(Stopped):
            self.train(options(out=tmp_path / "stopped", **changes), 3)
        resumed = self.train(options(out=tmp_path / "stopped", **changes))
        assert straight.keys() == resumed.keys()
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        weights = "denoiser/diffusion_pytorch_model.safetensors"
        contents = [(tmp_path / name / "student" / weights).read_bytes() for name in ("straight", "stopped")]
        assert contents[0] == contents[1]
        rows = read_jsonl(tmp_path / "stopped" / "metrics.jsonl")
        assert [row["step"] for row in rows] == [1, 2, 3, 4]

    def test_what_is_exported(self, options: Make) -> None:
        """The averaged weights, in half precision, under the student's own settings."""
        given = options("sd15", steps_per_sample=2, start_level=0.95, negative_scale=0.2, objective="tdm")
        run = ImageStudentTrainer(given)
        run.train_step()
        run.train_step()
        before = snapshot(run.trained)
        folder = run.export(given.out / "student")
        assert not moved(run.trained, before)
        student = load_teacher(str(folder), "cpu")
        assert isinstance(student, NetworkStudent)
        assert student.student == StudentConfig(2, 0.95, 1.0, 0.2, "tdm", given.teacher)
        for name, value in student.network.named_parameters():
            torch.testing.assert_close(value, run.average[name].half().float(), rtol=0, atol=0)
        images = student.sample(["a red mug"], generator=torch.Generator().manual_seed(0))
        assert images.shape == (1, 3, student.image_size, student.image_size)

    def test_grids_and_curves(self, options: Make) -> None:
        folder = train_image_student(options(steps=2, sample_every=1))
        assert folder.name == "student"
        names = {path.name for path in folder.parent.iterdir()}
        assert names >= {"samples-000001.png", "samples-000002.png", "loss.png", "metrics.jsonl", "checkpoints"}

    def test_a_number_that_is_not_finite(self, options: Make) -> None:
        """It names the term, and the last checkpoint is whole."""
        given = options(steps=9)

        def report(step: int, metrics: dict[str, float]) -> None:
            if step == 3:
                with torch.no_grad():
                    run.trained.head_out.bias[0] = float("nan")  # type: ignore[union-attr, index]

        run = ImageStudentTrainer(given)
        with pytest.raises(TrainingError, match=r"of dmd is not finite at step 3"):
            image_student.run_training(run, "student", report, lambda text: None)
        assert list_checkpoints(given.out / "checkpoints")[0].name == "step-00000002"
        assert not (given.out / "student").exists()
        train_image_student(replace(given, steps=4))

    def test_a_path_is_recorded_once(self, options: Make) -> None:
        given, told = options(objective="disback", path_length=3, option=("gan_weight=1e-3",)), []
        run = ImageStudentTrainer(given, told.append)
        assert len(run.path) == 3
        assert [text for text in told if "degraded" in text]
        written = (given.out / PATH_FILE).stat().st_mtime_ns
        again = ImageStudentTrainer(given, told.append)
        assert (given.out / PATH_FILE).stat().st_mtime_ns == written
        assert len(told) == 1
        distances = []
        for own, other in zip(run.path, again.path, strict=True):
            pairs = zip(own.network.parameters(), other.network.parameters(), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)
            assert not any(p.requires_grad for p in own.network.parameters())
            away = zip(own.network.parameters(), run.teacher.network.parameters(), strict=True)
            distances.append(sum(float((a - b).detach().square().sum()) for a, b in away))
        assert 0 < distances[0] < distances[1] < distances[2]  # the nearest to the teacher first
        assert run.critic is not None
        start = zip(run.critic_model.network.parameters(), run.path[-1].network.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in start)
        (given.out / PATH_FILE).write_bytes(b"torn")
        with pytest.raises(DreamkitError, match="can't be followed"):
            ImageStudentTrainer(given)


class TestToyWorld:
    def test_its_pictures_where_data_is_asked_for(
        self, options: Make, toy: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked: list[Path] = []

        def build(config: Any, folder: Path) -> Path:
            asked.append(folder)
            return cache

        monkeypatch.setattr(image_student, "build_cache", build)
        told: list[str] = []
        run = ImageStudentTrainer(
            options(teacher=str(toy), prompts=None, objective="f-distill", pictures=None, batch=6), told.append
        )
        lesson = run.maker.draw(torch.Generator().manual_seed(0))
        batch = ToyWorld(cache).sample(6, torch.Generator().manual_seed(0))
        assert lesson.paired
        assert lesson.prompts == batch.captions
        assert lesson.data is not None
        torch.testing.assert_close(lesson.data, 2 * batch.images - 1)
        assert asked == [tmp_path / "run" / "geometry"]
        assert "tracing" in told[0]
        assert math.isfinite(run.train_step()["discriminator"])
        consistency = options(teacher=str(toy), prompts=None, objective="scm", geometry=tmp_path / "shared")
        assert math.isfinite(ImageStudentTrainer(consistency).train_step()["loss"])
        assert asked[1] == tmp_path / "shared"
        ImageStudentTrainer(options(teacher=str(toy), prompts=None))
        assert len(asked) == 2

    def test_a_teacher_of_other_words(self, options: Make) -> None:
        for kind in ("toyworld", "sd15"):  # the first knows a few of the words
            with pytest.raises(ConfigError, match="no teacher of the toy world"):
                ImageStudentTrainer(options(kind, prompts=None))


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"objective": "sds"}, "--objective 'sds'"),
            ({"steps": 0}, "steps is 0"),
            ({"steps_per_sample": 0}, "steps-per-sample is 0"),
            ({"critic_steps": -1}, "--critic-steps"),
            ({"start_level": 1.5}, "--start-level"),
            ({"camera_dropout": -0.1}, "--camera-dropout"),
            ({"precision": "int8"}, "--precision"),
            ({"negative_scale": float("nan")}, "--negative-scale"),
        ],
        ids=str,
    )
    def test_options(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            ImageStudentOptions(**changes)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"objective": "phased-dmd", "steps_per_sample": 2}, "phased-dmd.*a critic for each of its phases"),
            ({"objective": "tdm", "steps_per_sample": 2, "option": ("segments=4",)}, "4 segments"),
            ({"objective": "tdm", "steps_per_sample": 2, "option": ("shift=3",)}, "shift of 3"),
            ({"objective": "f-distill", "pictures": None}, "f-distill learns from pictures.*--pictures"),
            ({"objective": "uni-instruct", "pictures": None}, "uni-instruct learns from pictures"),
            ({"option": ("gan_weight=1",), "pictures": None}, "dmd learns from pictures.*gan_weight=0"),
            ({"objective": "sid", "pictures": Path("somewhere")}, "sid learns from no pictures"),
            ({"objective": "f-distill", "pictures": Path("nowhere")}, "nowhere holds no pictures"),
            ({"option": ("guidence=3",)}, "guidance"),
        ],
        ids=str,
    )
    def test_what_is_said_before_anything_is_loaded(
        self, options: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
    ) -> None:
        monkeypatch.setattr(image_student, "load_teacher", lambda *_: pytest.fail("it was loaded"))
        with pytest.raises(ConfigError, match=message) as caught:
            ImageStudentTrainer(options(**changes))
        assert caught.value.hint

    def test_a_teacher_that_predicts_noise_out_of_nothing_but_noise(self, options: Make) -> None:
        with pytest.raises(ConfigError, match=r"predicts noise.*--start-level 0\.9"):
            ImageStudentTrainer(options("deepfloyd"))
        assert float(NoiseSchedule.ddpm("cosine").alpha(0.96)) > 0.05
        ImageStudentTrainer(options("deepfloyd", start_level=0.9, batch=1)).train_step()

    def test_a_reward_that_nobody_can_give(self, options: Make, tmp_path: Path) -> None:
        (tmp_path / "others.txt").write_text("a dragon\na castle\n")
        with pytest.raises(ConfigError, match=r"re-dmd is the embedded judge's"):
            ImageStudentTrainer(options("sd15", objective="re-dmd", prompts=tmp_path / "others.txt"))

    def test_a_student_has_no_students(self, options: Make, tmp_path: Path) -> None:
        given = options()
        network = load_teacher(given.teacher, "cpu").network
        config = StudentConfig(teacher="its own")
        folder = save_student(network, "denoiser", Path(given.teacher), tmp_path / "student", config)
        with pytest.raises(ConfigError, match=r"is a student itself.*its own"):
            ImageStudentTrainer(replace(given, teacher=str(folder)))

    def test_prompts(self, options: Make, tmp_path: Path) -> None:
        file = tmp_path / "prompts.txt"
        with pytest.raises(ConfigError, match="can't be read"):
            ImageStudentTrainer(options(prompts=file))
        file.write_text("\n \n")
        with pytest.raises(ConfigError, match="holds no prompts"):
            ImageStudentTrainer(options(prompts=file))
        file.write_text("a red mug\na dragon\n")
        with pytest.raises(PromptError, match="dragon"):
            ImageStudentTrainer(options(prompts=file))
        file.write_bytes(b"a \x01 mug")
        with pytest.raises(PromptError, match="control character"):
            ImageStudentTrainer(options(prompts=file))

    def test_a_checkpoint_of_another_student(self, options: Make) -> None:
        train_image_student(options(steps=2))
        with pytest.raises(DreamkitError, match="another network"):
            train_image_student(options("sd15", steps=2))


def test_settings_are_in_the_checkpoint(options: Make) -> None:
    given = options(steps=2, option=("guidance=3",))
    train_image_student(given)
    meta = load_latest(given.out / "checkpoints")[0].meta
    assert meta["option"] == ["guidance=3"]
    assert json.loads((given.out / "student" / "model_index.json").read_text())["dreamkit_student"]["steps"] == 1
