"""Loading a video pipeline's folder and asking it: against diffusers' WanPipeline."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLIP_WORDS, clip_config, clip_tokenizer

from dreamkit.errors import CheckpointError, ConfigError, DreamkitError, PromptError, TeacherError
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import ControlEncoder, Controls
from dreamkit.video.pipeline import VideoTeacher, load_video_teacher, shifted

TRANSFORMER: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
}
PROMPTS = ["a red ball rolling", "  a blue &amp; green   car\n"]

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = [(chr(code), -4.0) for code in range(ord("!"), ord("~") + 1)]
    words = [(f"▁{word}", -2.0) for word in CLIP_WORDS]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *letters, *words]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


@pytest.fixture(scope="module")
def wan_pipeline() -> Any:
    """A tiny WanPipeline whose solver is Euler's, at the noise levels that `sample` takes."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    class Euler(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, count: int, device: Any = None) -> None:  # type: ignore[override]
            super().set_timesteps(device=device, sigmas=torch.linspace(1, 0, count + 1)[:-1].tolist())

    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    text = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, -0.4],
        latents_std=[1.1, 0.9, 1.3, 0.7],
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(text).eval(),
        vae=vae.eval(),
        scheduler=Euler(shift=3.0),
        transformer=WanTransformer3DModel(**TRANSFORMER).eval(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def wan(wan_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    wan_pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wan_teacher(wan: Path) -> VideoTeacher:
    teacher = load_video_teacher(wan)
    teacher.half_precision = False
    return teacher


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's format, with CLIP's ordinary tokenizer."""
    from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler
    from transformers import CLIPTextModel

    folder = tmp_path_factory.mktemp("ours")
    torch.manual_seed(1)
    CausalTransformer.from_config(TRANSFORMER).save_pretrained(folder / "transformer", torch.float32)
    controls = ControlEncoder(24, 8, 16)
    for parameter in controls.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    controls.save_pretrained(folder / "controls", torch.float32)
    AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
    ).save_pretrained(folder / "vae")
    CLIPTextModel(clip_config()).save_pretrained(folder / "text_encoder")
    clip_tokenizer(20).save_pretrained(folder / "tokenizer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DreamKitVideoPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def teacher(ours: Path) -> VideoTeacher:
    teacher = load_video_teacher(ours)
    teacher.half_precision = False
    return teacher


class TestWan:
    def test_its_text(self, wan_pipeline: Any, wan_teacher: VideoTeacher) -> None:
        expected = wan_pipeline._get_t5_prompt_embeds(PROMPTS, max_sequence_length=512)
        got = wan_teacher.encode_prompt(PROMPTS)
        assert got.shape == (2, 512, 32)
        torch.testing.assert_close(got, expected)
        assert float(got[:, 400:].abs().max()) == 0

    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_its_samples(self, wan_pipeline: Any, wan_teacher: VideoTeacher, guidance: float) -> None:
        latents = noise(2, 4, 3, 4, 2)
        with torch.no_grad():
            expected = wan_pipeline(
                PROMPTS,
                negative_prompt="",
                height=32,
                width=16,
                num_frames=9,
                num_inference_steps=4,
                guidance_scale=guidance,
                latents=latents,
                output_type="latent",
            ).frames
        generator = torch.Generator().manual_seed(0)
        got = wan_teacher.sample(PROMPTS, 9, 4, guidance, generator, size=(32, 16))
        assert float((expected - latents).abs().mean()) > 0.1
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_its_shift(self, wan: Path, wan_teacher: VideoTeacher, tmp_path: Path) -> None:
        assert wan_teacher.shift == 3.0
        folder = tmp_path / "wan"
        shutil.copytree(wan, folder)
        config = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0}
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        assert load_video_teacher(folder).shift == 5.0

    def test_it_knows_no_controls(self, wan_teacher: VideoTeacher) -> None:
        with pytest.raises(TeacherError, match="no cameras"):
            wan_teacher.predict(noise(1, 4, 2, 2, 2), 0.5, noise(1, 5, 32), Controls(torch.zeros(1, 2, 12)))


class TestOurs:
    def test_its_text_is_the_encoder_s(self, teacher: VideoTeacher) -> None:
        ids = teacher.text.tokenizer(PROMPTS[:1], padding="max_length", max_length=20, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = teacher.text.encoder(ids).last_hidden_state
        torch.testing.assert_close(teacher.encode_prompt(PROMPTS[:1]), expected)
        assert teacher.encode_prompt(["", "a"]).shape == (2, 20, 32)
        assert teacher.text.unknown_words("zzz") == []

    def test_prediction_is_the_network_at_1000_t(self, teacher: VideoTeacher) -> None:
        latents, text = noise(2, 4, 3, 4, 4), noise(2, 5, 32)
        controls = Controls(noise(2, 3, 12), torch.rand(2, 3, 5, 2))
        encoded = teacher.controls(controls, (2, 2)) if teacher.controls else None
        assert encoded is not None
        for t in (torch.tensor([0.25, 0.75]), torch.rand(2, 3)):
            with torch.no_grad():
                expected = teacher.network(latents, 1000 * t, text, encoded.flatten(1, 2))
            torch.testing.assert_close(teacher.predict(latents, t, text, controls), expected)
        single = teacher.predict(latents, 0.5, text)
        torch.testing.assert_close(single, teacher.predict(latents, torch.full((2, 3), 0.5), text))

    def test_a_flow_that_knows_the_answer_is_followed_to_it(self, teacher: VideoTeacher) -> None:
        """The exact flow towards one clip, (x - x_0) / t, ends there from any noise, with any number of steps."""
        goal = noise(1, 4, 2, 16, 16, seed=3)

        class Known(VideoTeacher):
            def predict(self, latents: Any, t: Any, text: Any, controls: Any = None) -> torch.Tensor:
                return (latents - goal) / t

        known = Known(teacher.name, teacher.network, teacher.autoencoder, teacher.text, None, 3.0)
        for guidance, steps in itertools.product((1.0, 5.0), (1, 7)):
            torch.testing.assert_close(known.sample(["a"], 2, steps, guidance), goal, rtol=0, atol=1e-5)

    def test_samples_follow_seed_prompt_and_controls(self, teacher: VideoTeacher) -> None:
        def sample(prompt: str = "a red ball", seed: int = 0, **options: Any) -> torch.Tensor:
            return teacher.sample([prompt], 2, 2, 3.0, torch.Generator().manual_seed(seed), size=(16, 8), **options)

        base = sample()
        assert base.shape == (1, 4, 2, 4, 2)
        assert torch.equal(base, sample())
        camera = Controls(noise(1, 2, 12))
        for other in (sample("a blue car"), sample(seed=1), sample(controls=camera), sample(shift=1.0)):
            assert not torch.allclose(base, other)
        assert teacher.decode(base).shape == (1, 2, 3, 16, 8)
        assert teacher.encode(teacher.decode(base)).shape == base.shape

    def test_half_precision_is_near(self, ours: Path, teacher: VideoTeacher) -> None:
        half = load_video_teacher(ours)
        half.half_precision = True
        latents, text = noise(1, 4, 2, 4, 4), noise(1, 5, 32)
        got, expected = half.predict(latents, 0.5, text), teacher.predict(latents, 0.5, text)
        assert got.dtype == torch.float32
        assert not torch.equal(got, expected)
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)


class TestShift:
    def test_ends_and_middle(self) -> None:
        t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        torch.testing.assert_close(shifted(t, 3.0), torch.tensor([0.0, 0.75, 1.0], dtype=torch.float64))
        assert torch.equal(shifted(t, 1.0), t)
        torch.testing.assert_close(shifted(shifted(t, 3.0), 1 / 3), t)


class TestErrors:
    def test_prompts(self, teacher: VideoTeacher) -> None:
        for prompts in ("a red ball", []):
            with pytest.raises(PromptError):
                teacher.encode_prompt(prompts)

    @pytest.mark.parametrize("options", [{"steps": 0}, {"guidance": float("nan")}, {"size": (15, 16)}, {"frames": 0}])
    def test_sampling(self, teacher: VideoTeacher, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            teacher.sample(["a"], **{"frames": 2, **options})

    @pytest.mark.parametrize(
        ("file", "content", "match"),
        [
            ("model_index.json", None, "can't be read"),
            ("model_index.json", "[]", "no JSON object"),
            ("model_index.json", '{"_class_name": "FluxPipeline"}', "FluxPipeline"),
            ("model_index.json", '{"_class_name": "WanPipeline"}', "names no text_encoder"),
            ("scheduler/scheduler_config.json", '{"shift": -1}', "shift"),
            ("text_encoder/model.safetensors", "x", "text encoder"),
            ("tokenizer/tokenizer.json", "x", "tokenizer"),
            ("transformer/config.json", "{}", None),
            ("controls/config.json", '{"_class_name": "ControlEncoder", "dim": 6}', None),
        ],
    )
    def test_folders(self, ours: Path, tmp_path: Path, file: str, content: str | None, match: str | None) -> None:
        folder = tmp_path / "model"
        shutil.copytree(ours, folder)
        (folder / file).unlink()
        if content is not None:
            (folder / file).write_text(content)
        with pytest.raises(DreamkitError, match=match):
            load_video_teacher(folder)

    def test_a_class_that_is_not_known(self, ours: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(ours, folder)
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder": ["os", "system"]}))
        with pytest.raises(ConfigError, match="system"):
            load_video_teacher(folder)

    def test_parts_of_different_models(self, ours: Path, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(ours, folder)
        other = CausalTransformer.from_config({**TRANSFORMER, "text_dim": 8})
        other.save_pretrained(folder / "transformer", torch.float32)
        with pytest.raises(TeacherError, match="8 features of text"):
            load_video_teacher(folder)
        with pytest.raises(CheckpointError):
            load_video_teacher(tmp_path)
