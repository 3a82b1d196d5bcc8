"""The video transformer against diffusers' own, and its causal passes against one another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor
from torch.autograd import gradcheck

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.wan_config import WanConfig

CONFIG: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 14,
    "in_channels": 3,
    "out_channels": 3,
    "text_dim": 7,
    "freq_dim": 10,
    "ffn_dim": 22,
    "num_layers": 3,
}
STREAM = Stream(2, 3, chunk=2, sink=2, window=4)

pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int = 0, **settings: Any) -> CausalTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CausalTransformer.from_config({**CONFIG, **settings}).requires_grad_(False)


def clip(frames: int, *shape: int, seed: int = 1, batch: int = 2, **kind: Any) -> Tensor:
    """Random latents [batch, 3, frames, 4, 6], or of another shape after the frames."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, frames, *(shape or (4, 6)), generator=generator, **kind)


def prompt(seed: int = 2, tokens: int = 5, batch: int = 2, **kind: Any) -> Tensor:
    return torch.randn(batch, tokens, 7, generator=torch.Generator().manual_seed(seed), **kind)


def twins(**settings: Any) -> tuple[CausalTransformer, WanTransformer3DModel]:
    """Ours and diffusers' with the same weights, none of them at a special value."""
    ours = network(**settings)
    generator = torch.Generator().manual_seed(3)
    for parameter in ours.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs = WanTransformer3DModel(**{**CONFIG, **settings})
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


class TestAgainstDiffusers:
    @pytest.mark.parametrize(
        ("settings", "shape"),
        [
            ({}, (4, 6)),
            ({}, (2, 10)),
            ({"patch_size": [1, 1, 1], "attention_head_dim": 32, "out_channels": 5}, (5, 3)),
            ({"patch_size": [2, 2, 3], "cross_attn_norm": False, "num_layers": 1, "eps": 1e-3}, (4, 9)),
        ],
    )
    def test_a_clip_and_its_gradients(self, settings: dict[str, Any], shape: tuple[int, int]) -> None:
        ours, theirs = twins(**settings)
        ours.requires_grad_(True)
        x, text, timesteps = clip(4, *shape), prompt(), torch.tensor([3.5, 900.0])
        expected = theirs(x, timesteps, text, return_dict=False)[0]
        got = ours(x, timesteps, text)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
        (expected * weights).sum().backward()
        (got * weights).sum().backward()
        wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None
            near = 1e-5 * float(wanted[name].abs().max())
            torch.testing.assert_close(parameter.grad, wanted[name], atol=near, rtol=1e-4)

    def test_a_timestep_for_each_frame(self) -> None:
        ours, theirs = twins()
        x, text = clip(5), prompt()
        timesteps = torch.rand(2, 5, generator=torch.Generator().manual_seed(5)) * 1000
        expected = theirs(x, timesteps.repeat_interleave(6, dim=1), text, return_dict=False)[0]
        torch.testing.assert_close(ours(x, timesteps, text), expected, atol=1e-5, rtol=0)

    def test_equal_timesteps_of_frames_are_one_of_the_clip(self) -> None:
        ours, x, text = network(), clip(3), prompt()
        each = torch.tensor([[7.0] * 3, [600.0] * 3])
        torch.testing.assert_close(ours(x, each, text), ours(x, each[:, 0], text), atol=1e-6, rtol=0)

    def test_checkpointing_changes_no_gradient(self) -> None:
        ours = network().requires_grad_(True)
        x, text, timesteps = clip(4), prompt(), torch.tensor([100.0, 900.0])
        gradients = []
        for switch in (False, True):
            ours.checkpointing = switch
            ours.zero_grad()
            (ours(x, timesteps, text, stream=STREAM).square().sum() + ours(x, timesteps, text).sum()).backward()
            gradients.append([parameter.grad.clone() for parameter in ours.parameters() if parameter.grad is not None])
        assert len(gradients[0]) == len(list(ours.parameters()))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)

    def test_autocast_stays_near(self) -> None:
        ours, x, text, timesteps = network(), clip(4), prompt(), torch.tensor([3.5, 900.0])
        for stream in (None, STREAM):
            with torch.autocast("cpu", torch.bfloat16):
                rough = ours(x, timesteps, text, stream=stream)
            torch.testing.assert_close(rough.float(), ours(x, timesteps, text, stream=stream), atol=0.05, rtol=0.05)


class TestCausal:
    def test_the_future_and_other_samples_are_not_seen(self) -> None:
        ours, x, text, timesteps = network(), clip(8), prompt(), torch.rand(2, 8) * 1000
        out = ours(x, timesteps, text, stream=STREAM)
        changed = x.clone()
        changed[:, :, 4:] += 1
        changed[1] += 1
        again = ours(changed, timesteps, text, stream=STREAM)
        assert torch.equal(out[0, :, :4], again[0, :, :4])
        assert not torch.allclose(out[0, :, 4:], again[0, :, 4:])

    def test_gradients_in_float64(self) -> None:
        ours = network(num_layers=2, num_attention_heads=1, attention_head_dim=6, ffn_dim=4).double()
        x = clip(5, 2, 2, batch=1, dtype=torch.float64).requires_grad_()
        text = prompt(batch=1, tokens=2, dtype=torch.float64).requires_grad_()
        stream = Stream(1, 1, chunk=1, sink=1, window=2)
        timesteps = torch.tensor([[5.0, 50.0, 500.0, 900.0, 1000.0]])
        assert gradcheck(lambda x, text: ours(x, timesteps, text, stream=stream), (x, text), fast_mode=True)
        assert gradcheck(
            lambda x, clean: ours.forward_teacher_forced(x, clean, timesteps, text.detach(), stream),
            (x, x.detach().neg().requires_grad_()),
            fast_mode=True,
        )

    @pytest.mark.parametrize("frames", [1, 2, 7, 12])
    @pytest.mark.parametrize("sink", ["first", "none"])
    def test_teacher_forcing_is_a_step_over_clean_history(self, frames: int, sink: Any) -> None:
        ours, text = network(), prompt()
        noisy, clean, timesteps = clip(frames), clip(frames, seed=9), torch.rand(2, frames) * 1000
        features = 0.1 * torch.randn(2, frames * 6, 28, generator=torch.Generator().manual_seed(6))
        cache = ours.new_cache(STREAM, batch=2, sink=sink)
        got = ours.forward_teacher_forced(noisy, clean, timesteps, text, cache.stream, features)
        for start in range(0, frames, 2):
            part = slice(start, min(frames, start + 2))
            own = features[:, part.start * 6 : part.stop * 6]
            expected = ours.step(noisy[:, :, part], timesteps[:, part], text, cache, own)
            torch.testing.assert_close(got[:, :, part], expected, atol=1e-5, rtol=0)
            ours.step(clean[:, :, part], torch.zeros(2), text, cache, own, write=True)

    def test_teacher_forcing_reaches_every_weight(self) -> None:
        ours = network().requires_grad_(True)
        out = ours.forward_teacher_forced(clip(4), clip(4, seed=8), torch.tensor([9.0, 99.0]), prompt(), STREAM)
        out.sum().backward()
        assert all(parameter.grad is not None for parameter in ours.parameters())


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"latents": torch.zeros(2, 4, 2, 4, 6)}, "number of channels is 4"),
            ({"latents": torch.zeros(2, 3, 2, 5, 6)}, r"\[frames, height, width\] is \[2, 5, 6\]"),
            ({"latents": torch.zeros(2, 3, 0, 4, 6)}, r"is \[0, 4, 6\]"),
            ({"latents": torch.zeros(3, 2, 4, 6)}, r"latents' shape is \[3, 2, 4, 6\]"),
            ({"text": torch.zeros(2, 5, 8)}, r"text's shape is \[2, 5, 8\]. Use \[2, tokens, 7\]"),
            ({"text": torch.zeros(1, 5, 7)}, "text's shape"),
            ({"text": torch.zeros(2, 0, 7)}, "text's shape"),
            ({"timesteps": torch.zeros(2, 3)}, "timesteps' shape"),
            ({"timesteps": torch.zeros(3)}, "number of timesteps is 3"),
            ({"control_features": torch.zeros(2, 12, 27)}, "control features' shape"),
            ({"stream": Stream(3, 2)}, r"\[height, width\] is \[3, 2\]"),
        ],
    )
    def test_arguments(self, changes: dict[str, Any], message: str) -> None:
        fitting = {"latents": torch.zeros(2, 3, 2, 4, 6), "timesteps": torch.zeros(2), "text": torch.zeros(2, 5, 7)}
        with pytest.raises(ConfigError, match=message):
            network()(**{**fitting, **changes})

    def test_clean_frames_of_another_shape(self) -> None:
        with pytest.raises(ConfigError, match="clean latents' shape"):
            network().forward_teacher_forced(clip(4), clip(5), torch.zeros(2), prompt(), STREAM)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"image_dim": 1280}, "embedding of a picture .image_dim is 1280"),
            ({"added_kv_proj_dim": 5120}, "text-to-video"),
            ({"_class_name": "FluxTransformer2DModel"}, "'FluxTransformer2DModel'"),
            ({"vace_layers": [1]}, "unknown settings: vace_layers"),
            ({"num_layers": 0}, "num_layers is 0"),
            ({"num_layers": True}, "num_layers is True"),
            ({"freq_dim": 7}, "freq_dim is 7"),
            ({"attention_head_dim": 7}, "attention_head_dim is 7"),
            ({"patch_size": [1, 2]}, "patch_size"),
            ({"patch_size": 2}, "patch_size"),
            ({"qk_norm": None}, "qk_norm is None"),
            ({"eps": "small"}, "eps is 'small'"),
            ({"cross_attn_norm": 1}, "cross_attn_norm is 1"),
            ({"ffn_dim": "wide"}, "ffn_dim is 'wide'"),
        ],
    )
    def test_configurations(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            CausalTransformer.from_config({**CONFIG, **changes})

    def test_a_configuration_that_is_no_object(self) -> None:
        with pytest.raises(CheckpointError, match="no JSON object"):
            CausalTransformer.from_config([])  # type: ignore[arg-type]


class TestFolders:
    def test_ours_opens_in_diffusers(self, tmp_path: Path) -> None:
        ours = network()
        ours.save_pretrained(tmp_path, dtype=torch.float32)
        theirs, report = WanTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        x, text, timesteps = clip(3), prompt(), torch.tensor([1.0, 2.0])
        torch.testing.assert_close(
            theirs(x, timesteps, text, return_dict=False)[0], ours(x, timesteps, text), atol=1e-5, rtol=0
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "config.json",
            "diffusion_pytorch_model.safetensors",
        ]

    @pytest.mark.parametrize("how", [{}, {"max_shard_size": "20KB"}, {"variant": "fp16"}])
    def test_diffusers_opens_in_ours(self, tmp_path: Path, how: dict[str, str]) -> None:
        ours, theirs = twins()
        theirs.save_pretrained(tmp_path, **how)
        assert len(list(tmp_path.glob("*.safetensors"))) == 1 or "max_shard_size" in how
        loaded = CausalTransformer.from_pretrained(tmp_path)
        assert not loaded.training
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, ours.state_dict()[name]), name

    def test_half_precision_keeps_what_diffusers_keeps(self, tmp_path: Path) -> None:
        network().save_pretrained(tmp_path)
        ours = CausalTransformer.from_pretrained(tmp_path, dtype=torch.bfloat16)
        theirs = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
        wanted = {name: value.dtype for name, value in theirs.state_dict().items()}
        assert {name: value.dtype for name, value in ours.state_dict().items()} == wanted
        assert set(wanted.values()) == {torch.bfloat16, torch.float32}
        x, text, timesteps = clip(3), prompt(), torch.tensor([1.0, 900.0])
        exact = CausalTransformer.from_pretrained(tmp_path)
        for stream in (None, STREAM):
            rough = ours(x, timesteps, text, stream=stream).float()
            torch.testing.assert_close(rough, exact(x, timesteps, text, stream=stream), atol=0.05, rtol=0.05)

    def test_the_configuration_comes_back(self) -> None:
        config = WanConfig.from_dict(CONFIG)
        assert WanConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert WanConfig.from_dict({**CONFIG, "out_channels": None}).out_channels == 3
        theirs = dict(WanTransformer3DModel(**CONFIG).config)
        assert WanConfig.from_dict(theirs) == config

    def damaged(self, folder: Path, change: Any) -> Path:
        from safetensors.torch import load_file, save_file

        network().save_pretrained(folder)
        state = load_file(folder / "diffusion_pytorch_model.safetensors")
        change(state)
        save_file(state, folder / "diffusion_pytorch_model.safetensors")
        return folder

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("proj_out.bias"), r"lack proj_out.bias \(1 in all\)"),
            (lambda state: state.update(more=torch.zeros(1)), "more, which the network has no place for"),
            (lambda state: state.update({"proj_out.bias": torch.zeros(3)}), r"proj_out.bias has the shape \[3\]"),
            (lambda state: state["proj_out.bias"].fill_(float("nan")), "not made of finite numbers"),
            (lambda state: state.update({"proj_out.bias": torch.zeros(12, dtype=torch.int64)}), "finite numbers"),
        ],
    )
    def test_damaged_weights(self, tmp_path: Path, change: Any, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            CausalTransformer.from_pretrained(self.damaged(tmp_path, change))

    def test_missing_and_unreadable_files(self, tmp_path: Path) -> None:
        def load(message: str) -> None:
            with pytest.raises(CheckpointError, match=message):
                CausalTransformer.from_pretrained(tmp_path)

        load("There is no .*config.json")
        (tmp_path / "config.json").write_text("{")
        load("can't be read as JSON")
        (tmp_path / "config.json").write_text("[1]")
        load("holds no JSON object")
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        load("no diffusion_pytorch_model.safetensors and no index")
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text("{}")
        load("has no weight_map")
        index.write_text(json.dumps({"weight_map": {"proj_out.bias": "../weights.safetensors"}}))
        load("no safetensors file beside it")
        index.write_text(json.dumps({"weight_map": {"proj_out.bias": "part-1.safetensors"}}))
        load("There is no .*part-1.safetensors")
        index.unlink()
        (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"no tensors")
        load("fp16.safetensors can't be read")
        (tmp_path / "diffusion_pytorch_model.bf16.safetensors").write_bytes(b"")
        load("several variants")

    def test_what_half_precision_can_not_hold(self, tmp_path: Path) -> None:
        ours = network()
        ours.proj_out.bias.fill_(1e6)
        with pytest.raises(CheckpointError, match="bias is not finite in torch"):
            ours.save_pretrained(tmp_path)
        assert not list(tmp_path.iterdir())
