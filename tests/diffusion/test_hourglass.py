"""The embedded teacher's network: what its inputs mean, that all of it learns, that it survives a save."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.diffusion.hourglass import RAY_DIM, HourglassTransformer, ray_features
from dreamkit.embeddings import timestep_features
from dreamkit.scenes.cameras import Camera

TINY: dict[str, Any] = {
    "sample_size": 16,
    "stem_channels": 4,
    "outer_dim": 32,
    "outer_depth": 1,
    "inner_dim": 48,
    "inner_depth": 2,
    "head_dim": 16,
    "cond_dim": 32,
    "cross_attention_dim": 24,
}


def tiny(awake: bool = True, **options: Any) -> HourglassTransformer:
    """A tiny network; awake: the parts that start at zero are randomised too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = HourglassTransformer(**{**TINY, **options})
        if awake:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs(batch: int = 2, dtype: torch.dtype = torch.float32, size: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 3, size, size, generator=generator).to(dtype),
        "timestep": torch.linspace(100, 900, batch),
        "encoder_hidden_states": torch.randn(batch, 7, 24, generator=generator).to(dtype),
        "camera": torch.randn(batch, 12, generator=generator).to(dtype),
    }


@pytest.fixture(scope="module")
def network() -> HourglassTransformer:
    return tiny()


@torch.no_grad()
def run(network: HourglassTransformer, **changes: Any) -> Tensor:
    return network(**{**inputs(), **changes}).sample


class TestForward:
    def test_shape_and_both_ways_to_return(self, network: HourglassTransformer) -> None:
        given = inputs()
        with torch.no_grad():
            out = network(**given)
            (plain,) = network(**given, return_dict=False)
        assert out.sample.shape == (2, 3, 16, 16)
        assert torch.equal(out.sample, plain)

    def test_an_untrained_head_predicts_only_its_bias(self) -> None:
        out = run(tiny(awake=False))
        assert float((out - out[:1, :, :1, :1]).abs().max()) < 1e-6

    def test_one_time_for_all_is_as_many_equal_ones(self, network: HourglassTransformer) -> None:
        torch.testing.assert_close(
            run(network, timestep=500.0), run(network, timestep=torch.tensor([500.0, 500.0])), rtol=0, atol=0
        )

    @pytest.mark.parametrize("name", ["sample", "encoder_hidden_states", "camera", "timestep"])
    def test_every_input_matters(self, network: HourglassTransformer, name: str) -> None:
        changed = inputs()[name] + 50.0 if name == "timestep" else inputs()[name].flip(-1)
        assert not torch.allclose(run(network), run(network, **{name: changed}), atol=1e-4)

    @pytest.mark.parametrize("name", ["sample", "encoder_hidden_states", "camera", "timestep"])
    def test_rows_are_independent(self, network: HourglassTransformer, name: str) -> None:
        given = inputs()
        changed = given[name].clone()
        changed[1] = changed[1] * -0.5 + 0.1
        one, two = run(network), run(network, **{name: changed})
        torch.testing.assert_close(one[0], two[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one[1], two[1], atol=1e-4)

    def test_text_tokens_matter_one_by_one(self, network: HourglassTransformer) -> None:
        """Cross-attention reads the tokens, not only their mean: swapping what two tokens say changes nothing,
        moving content between them does."""
        text = inputs()["encoder_hidden_states"]
        moved = text.clone()
        moved[:, 0] += 1.0
        moved[:, 1] -= 1.0  # the mean, which modulates the blocks, stays
        assert not torch.allclose(run(network), run(network, encoder_hidden_states=moved), atol=1e-5)

    def test_a_pixel_reaches_all_pixels(self, network: HourglassTransformer) -> None:
        given = inputs()
        changed = given["sample"].clone()
        changed[:, :, 0, 0] += 3.0
        difference = (run(network) - run(network, sample=changed)).abs().amax(dim=(0, 1))
        assert float(difference.min()) > 0


class TestCamera:
    def test_none_is_a_row_of_zeros(self, network: HourglassTransformer) -> None:
        torch.testing.assert_close(run(network, camera=None), run(network, camera=torch.zeros(2, 12)), rtol=0, atol=0)

    def test_one_row_without_a_camera(self, network: HourglassTransformer) -> None:
        camera = inputs()["camera"]
        camera[1] = 0
        mixed, with_camera, without = run(network, camera=camera), run(network), run(network, camera=None)
        torch.testing.assert_close(mixed[0], with_camera[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mixed[1], without[1], rtol=1e-5, atol=1e-6)

    def test_a_network_without_camera_conditioning(self) -> None:
        network = tiny(camera_conditioning=False)
        assert not any("camera" in name for name, _ in network.named_parameters())
        given = inputs()
        given.pop("camera")
        with torch.no_grad():
            assert network(**given).sample.shape == (2, 3, 16, 16)


class TestRays:
    camera = Camera.orbit([30.0, -100.0, 170.0], [20.0, 50.0, -10.0], [3.0, 2.8, 3.2], 40.0, 6, 6)

    def test_they_are_those_of_the_camera(self) -> None:
        origins, directions = (item.reshape(3, 36, 3) for item in self.camera.rays())
        directions = functional.normalize(directions, dim=-1)
        closest = origins - (origins * directions).sum(dim=-1, keepdim=True) * directions
        features = ray_features(self.camera.pose, 6, 40.0)
        assert features.shape == (3, 36, RAY_DIM)
        torch.testing.assert_close(features[..., :3], closest, rtol=0, atol=1e-5)
        torch.testing.assert_close(features[..., 3:6], directions, rtol=0, atol=1e-5)
        torch.testing.assert_close(features[..., 6:12], torch.sin(torch.pi * features[..., :6]), rtol=0, atol=1e-5)

    def test_no_camera_has_none(self) -> None:
        pose = self.camera.pose.clone()
        pose[1] = 0
        features = ray_features(pose, 4, 40.0)
        assert not features[1].any()
        assert features[0].any()


class TestNumbers:
    def test_gradients_reach_every_parameter(self) -> None:
        network = tiny()
        camera = inputs()["camera"]
        camera[1] = 0  # so that the embedding of "no camera" is used as well
        network(**{**inputs(), "camera": camera}).sample.square().mean().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or float(p.grad.abs().max()) == 0]
        assert without == []

    def test_float64_agrees_with_float32(self, network: HourglassTransformer) -> None:
        double = tiny().double()
        with torch.no_grad():
            out = double(**inputs(dtype=torch.float64)).sample
        assert out.dtype == torch.float64
        torch.testing.assert_close(out.float(), run(network), rtol=1e-3, atol=1e-4)

    def test_gradcheck_in_float64(self) -> None:
        network = tiny(sample_size=8, inner_depth=1).double()
        given = inputs(batch=1, dtype=torch.float64, size=8)
        sample = given.pop("sample").requires_grad_()
        torch.autograd.gradcheck(lambda x: network(x, **given).sample[:, :, ::3, ::3], (sample,), fast_mode=True)

    def test_extreme_times_are_finite(self, network: HourglassTransformer) -> None:
        for t in (0.0, 1000.0):
            assert bool(torch.isfinite(run(network, timestep=t)).all())

    def test_timestep_features(self) -> None:
        t = torch.tensor([0.0, 3.0, 999.5])
        features = timestep_features(t, 8)
        frequency = 10000 ** (-torch.arange(4) / 4)
        expected = torch.cat([(t[:, None] * frequency).cos(), (t[:, None] * frequency).sin()], dim=1)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


class TestSaving:
    def test_round_trip(self, network: HourglassTransformer, tmp_path: Path) -> None:
        network.save_pretrained(tmp_path)
        assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()
        loaded, report = HourglassTransformer.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        settings = [{k: v for k, v in item.config.items() if not k.startswith("_")} for item in (loaded, network)]
        assert settings[0] == settings[1]
        torch.testing.assert_close(run(loaded), run(network), rtol=0, atol=0)

    def test_half_precision_file(self, network: HourglassTransformer, tmp_path: Path) -> None:
        tiny().half().save_pretrained(tmp_path)
        loaded = HourglassTransformer.from_pretrained(tmp_path, torch_dtype=torch.float32)
        torch.testing.assert_close(run(loaded), run(network), rtol=0.05, atol=0.02)

    def test_the_embedded_size(self) -> None:
        """The default network in float16 has to leave room for the text encoder in 20 MB."""
        with torch.device("meta"):
            count = sum(p.numel() for p in HourglassTransformer().parameters())
        assert 2 * count < 19e6


class TestBadInput:
    @pytest.mark.parametrize(
        "shape", [(2, 3, 32, 32), (2, 3, 8, 8), (2, 4, 16, 16), (2, 3, 16, 24), (3, 16, 16)], ids=str
    )
    def test_another_size_is_named(self, network: HourglassTransformer, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"sample must be \[B, 3, 16, 16\], got"):
            run(network, sample=torch.zeros(shape))

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"sample_size": 20}, "sample_size"),
            ({"sample_size": 0}, "sample_size"),
            ({"outer_dim": 40}, "outer_dim"),
            ({"inner_dim": 40}, "inner_dim"),
            ({"cond_dim": 31}, "cond_dim"),
        ],
    )
    def test_a_configuration_that_does_not_fit(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            tiny(**options)
