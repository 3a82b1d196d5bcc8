"""Students as teachers: their own few steps, negative prompts in the cross-attention, and their folders."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreamkit.diffusion.hub import INDEX_FILE
from dreamkit.diffusion.loading import load_teacher, network_component, student_config
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.schedule import NoiseSchedule
from dreamkit.diffusion.students import (
    STUDENT_KEY,
    NetworkStudent,
    StudentConfig,
    few_levels,
    noisy_start,
    save_student,
    steered_away,
)
from dreamkit.errors import CheckpointError, ConfigError, TeacherError

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = ["a red mug", "the blue cube"]
KEYS = {"toyworld": "denoiser", "sd15": "unet", "sdxl": "unet"}


@pytest.fixture(scope="module")
def student(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., NetworkStudent]:
    """A tiny teacher of a kind, taken for a student of itself."""

    def make(kind: str = "sd15", **config: Any) -> NetworkStudent:
        folder = tmp_path_factory.mktemp(kind) / "student"
        network = load_teacher(str(checkpoint(kind)), "cpu").network
        save_student(network, KEYS[kind], checkpoint(kind), folder, StudentConfig(**config))
        loaded = load_teacher(str(folder), "cpu")
        assert isinstance(loaded, NetworkStudent)
        return loaded

    return make


def noise(teacher: NetworkTeacher, generator: torch.Generator) -> Tensor:
    return torch.randn(len(PROMPTS), *teacher.sample_shape, generator=generator)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestLevels:
    def test_they_are_evenly_spaced(self) -> None:
        assert few_levels(1, 1.0) == (1.0,)
        assert few_levels(4, 1.0) == (1.0, 0.75, 0.5, 0.25)
        assert few_levels(2, 0.5) == (0.5, 0.25)
        assert StudentConfig(2, 0.8).levels == (0.8, 0.4)

    def test_what_a_student_is_asked(self) -> None:
        """Noise of its size, then what it has made noised afresh: by hand."""
        schedule = NoiseSchedule.ddpm("cosine")
        draws = [torch.full((1, 1, 1, 1), value) for value in (1.0, -2.0, 3.0)]
        waiting, asked = list(draws), []

        def predict(x_t: Tensor, level: float) -> Tensor:
            asked.append(level)
            return x_t + 10

        got = noisy_start(predict, lambda: waiting.pop(0), (0.9, 0.6, 0.3), schedule)
        a, s = (lambda t: float(schedule.alpha(t))), (lambda t: float(schedule.sigma(t)))
        first = s(0.9) * 1.0
        second = a(0.6) * (first + 10) + s(0.6) * -2.0
        assert float(got) == pytest.approx(a(0.3) * (second + 10) + s(0.3) * 3.0, rel=1e-5)
        assert asked == [0.9, 0.6]


class TestSampling:
    @pytest.mark.parametrize("kind", KEYS)
    def test_one_call_by_default(self, student: Callable[..., NetworkStudent], kind: str) -> None:
        model = student(kind, level=0.9)
        images = model.sample(PROMPTS, generator=seeded())
        assert model.calls == len(PROMPTS)
        x_t = float(model.schedule.sigma(0.9)) * noise(model, seeded())
        x0 = model.predict(x_t, 0.9, model.encode_prompt(PROMPTS)).x0
        torch.testing.assert_close(images, model.decode(x0), rtol=0, atol=1e-6)

    def test_several_with_fresh_noise(self, student: Callable[..., NetworkStudent]) -> None:
        model, generator = student("toyworld", steps=2), seeded()
        images = model.sample(PROMPTS, generator=generator)
        assert model.calls == 2 * len(PROMPTS)
        generator, prompts = seeded(), model.encode_prompt(PROMPTS)
        x_t = float(model.schedule.sigma(1.0)) * noise(model, generator)
        x0 = model.predict(x_t, 1.0, prompts).x0
        x_t = model.schedule.add_noise(x0, noise(model, generator), 0.5)
        torch.testing.assert_close(images, model.decode(model.predict(x_t, 0.5, prompts).x0), rtol=0, atol=1e-6)
        model.calls = 0
        assert not torch.equal(model.sample(PROMPTS, 3, generator=seeded()), images)
        assert model.calls == 3 * len(PROMPTS)

    def test_as_any_teacher_is_called(self, student: Callable[..., NetworkStudent]) -> None:
        model = student("toyworld")
        camera = torch.randn(2, 12, generator=seeded(1))
        own = model.sample(PROMPTS, generator=seeded(), camera=camera)
        assert torch.equal(model.sample(PROMPTS, 1, 1.0, seeded(), camera), own)
        assert not torch.equal(model.sample(PROMPTS, generator=seeded()), own)
        assert not torch.equal(model.sample(PROMPTS, generator=seeded(4), camera=camera), own)
        assert torch.equal(model.sample(PROMPTS), model.sample(PROMPTS, generator=seeded(0)))

    def test_guidance_that_is_asked_for(self, student: Callable[..., NetworkStudent]) -> None:
        model = student("toyworld")
        images = model.sample(PROMPTS, None, 3.0, seeded(), negative="the green duck")
        x_t = float(model.schedule.sigma(1.0)) * noise(model, seeded())
        positive, negative = model.encode_prompt(PROMPTS), model.encode_prompt(["the green duck"])
        guided = model.predict_guided(x_t, 1.0, positive, negative, 3.0).guided.x0
        torch.testing.assert_close(images, model.decode(guided), rtol=0, atol=1e-6)

    def test_mistakes(self, student: Callable[..., NetworkStudent]) -> None:
        model = student("sd15")
        with pytest.raises(ConfigError, match="at least 1 step"):
            model.sample(PROMPTS, 0)
        with pytest.raises(ConfigError, match="negative"):
            model.sample(PROMPTS, negative="a mug", negative_scale=-1.0)
        with pytest.raises(TeacherError, match="no camera"):
            model.sample(PROMPTS, camera=torch.ones(2, 12))


class TestNegativePrompts:
    """NASA: Z+ - alpha Z- before the last projection of each cross-attention."""

    @pytest.mark.parametrize("kind", KEYS)
    def test_scale_zero_is_plain(self, student: Callable[..., NetworkStudent], kind: str) -> None:
        model = student(kind)
        plain = model.sample(PROMPTS, generator=seeded())
        assert torch.equal(model.sample(PROMPTS, generator=seeded(), negative="blue", negative_scale=0.0), plain)
        x_t, positive = noise(model, seeded()), model.encode_prompt(PROMPTS)
        with steered_away(model.network, model.encode_prompt(["blue"]), 0.0):
            steered = model.predict(x_t, 1.0, positive).x0
        torch.testing.assert_close(steered, model.predict(x_t, 1.0, positive).x0, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("kind", KEYS)
    def test_the_prompt_itself_at_scale_one_leaves_no_features(
        self, student: Callable[..., NetworkStudent], kind: str
    ) -> None:
        """What enters each last projection is 0, and the network says what it would with these projections at 0."""
        model = student(kind)
        x_t, positive = noise(model, seeded()), model.encode_prompt(PROMPTS)
        entering: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            entering.append(args[0])

        with steered_away(model.network, positive, 1.0):
            hooks = [out.register_forward_hook(note) for out in projections(model.network)]
            steered = model.predict(x_t, 0.7, positive).x0
            for hook in hooks:
                hook.remove()
        assert len(entering) == len(projections(model.network))
        assert all(float(features.abs().max()) < 1e-5 for features in entering)
        silent = copy.copy(model)
        silent.network = copy.deepcopy(model.network)
        for out in projections(silent.network):
            nn.init.zeros_(out.weight)
        torch.testing.assert_close(steered, silent.predict(x_t, 0.7, positive).x0, rtol=0, atol=1e-4)

    def test_it_is_the_formula(self, student: Callable[..., NetworkStudent]) -> None:
        """One attention layer of the embedded network, by its own parts."""
        model = student("toyworld")
        layer = model.network.mid_blocks[0].attn2
        hidden = torch.randn(2, 5, 32, generator=seeded())
        positive, negative = model.encode_prompt(PROMPTS), model.encode_prompt(["a green duck"])
        with steered_away(model.network, negative, 0.7), torch.no_grad():
            got = layer(hidden, positive.embeddings)
        with torch.no_grad():
            parts = [layer(hidden, c.expanded(2).embeddings) for c in (positive, negative)]
        torch.testing.assert_close(got, parts[0] - 0.7 * parts[1], rtol=0, atol=1e-5)  # it has no bias

    @pytest.mark.parametrize("kind", KEYS)
    def test_a_student_obeys_its_own_scale(self, student: Callable[..., NetworkStudent], kind: str) -> None:
        model = student(kind, negative_scale=0.8)
        plain = model.sample(PROMPTS, generator=seeded())
        away = model.sample(PROMPTS, generator=seeded(), negative="on the table")
        assert model.calls == 2 * len(PROMPTS)  # the samples go through once
        assert not torch.allclose(away, plain, atol=1e-6)
        asked = model.sample(PROMPTS, generator=seeded(), negative="on the table", negative_scale=0.8)
        assert torch.equal(asked, away)
        assert torch.equal(model.sample(PROMPTS, generator=seeded()), plain)  # nothing stays behind

    def test_a_network_without_cross_attention(self, tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
        """DeepFloyd attends to picture and text at once."""
        model = tiny_teacher("deepfloyd")
        with (
            pytest.raises(TeacherError, match="no cross-attention"),
            steered_away(model.network, model.null_condition(1), 0.5),
        ):
            pass

    def test_hooks_leave_with_an_error(self, student: Callable[..., NetworkStudent]) -> None:
        model = student("sd15")
        with pytest.raises(TeacherError, match="no camera"):
            model.sample(PROMPTS, camera=torch.ones(2, 12), negative="a mug")
        assert not any(module._forward_pre_hooks for module in model.network.modules())


def projections(network: nn.Module) -> list[nn.Linear]:
    layers = [module for name, module in network.named_modules() if name.endswith("attn2")]
    return [layer.to_out[0] if isinstance(layer.to_out, nn.ModuleList) else layer.to_out for layer in layers]


class TestFolders:
    def test_the_layout_is_the_teachers(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        teacher = checkpoint("sd15")
        network = load_teacher(str(teacher), "cpu").network
        config = StudentConfig(2, 0.9, negative_scale=0.2, objective="dmd", teacher="me")
        folder = save_student(network, "unet", teacher, tmp_path / "deep" / "student", config)
        index, before = (json.loads((path / INDEX_FILE).read_text()) for path in (folder, teacher))
        assert index.pop(STUDENT_KEY) == {
            "steps": 2, "level": 0.9, "guidance": 1.0, "negative_scale": 0.2, "objective": "dmd", "teacher": "me",
        }  # fmt: skip
        assert index == before
        assert {path.name for path in folder.iterdir()} == {path.name for path in teacher.iterdir()}
        for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
            for file in (teacher / part).iterdir():
                assert (folder / part / file.name).read_bytes() == file.read_bytes()
        assert student_config(str(folder), "cpu") == config
        assert student_config(str(teacher), "cpu") is None
        assert student_config("toyworld", "cpu") is None
        assert network_component(folder) == "unet"

    def test_diffusers_reads_it_too(self, student: Callable[..., NetworkStudent]) -> None:
        from diffusers import StableDiffusionPipeline

        model = student("sd15")
        pipeline = StableDiffusionPipeline.from_pretrained(model.name)
        for ours, theirs in zip(model.network.parameters(), pipeline.unet.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_weights_that_are_not_finite(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
        network = load_teacher(str(checkpoint("toyworld")), "cpu").network
        with torch.no_grad():
            network.stem.weight[0] = float("inf")
        with pytest.raises(CheckpointError, match=r"stem.weight is not finite in float32"):
            save_student(network, "denoiser", checkpoint("toyworld"), tmp_path / "student", StudentConfig())
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "content",
        [7, ["steps"], {"steps": 0}, {"steps": "two"}, {"level": 1.5}, {"colour": 1}, {"guidance": -1}],
        ids=str,
    )
    def test_damaged_settings(self, student: Callable[..., NetworkStudent], content: object) -> None:
        path = Path(student("toyworld").name)
        index = json.loads((path / INDEX_FILE).read_text())
        (path / INDEX_FILE).write_text(json.dumps({**index, STUDENT_KEY: content}))
        with pytest.raises(TeacherError, match=f"{STUDENT_KEY}.*does not fit"):
            load_teacher(str(path), "cpu")
