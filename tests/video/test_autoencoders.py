"""Autoencoders of video: against diffusers' own encode and decode, whole and chunk by chunk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamkit.errors import CheckpointError, ConfigError, TeacherError
from dreamkit.video.autoencoders import FrameAutoencoder, WanAutoencoder, load_autoencoder

TINY: dict[str, Any] = {
    "latent_channels": 4,
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (0, 1, 1),
    "num_decoder_blocks": (1, 1, 0),
    "shift_factor": 0.25,
    "scaling_factor": 1.5,
}
WAN: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1, -0.2, 0.3, -0.4],
    "latents_std": [1.1, 0.9, 1.3, 0.7],
}


pytestmark = pytest.mark.usefixtures("one_thread")


def save(name: str, folder: Path, **settings: Any) -> Path:
    import diffusers

    torch.manual_seed(0)
    getattr(diffusers, name)(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FrameAutoencoder:
    loaded = load_autoencoder(save("AutoencoderTiny", tmp_path_factory.mktemp("tiny"), **TINY))
    assert isinstance(loaded, FrameAutoencoder)
    return loaded


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> WanAutoencoder:
    loaded = load_autoencoder(save("AutoencoderKLWan", tmp_path_factory.mktemp("wan"), **WAN))
    assert isinstance(loaded, WanAutoencoder)
    return loaded


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frames(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class TestFrames:
    def test_sizes(self, tiny: FrameAutoencoder) -> None:
        assert (tiny.channels, tiny.spatial_factor, tiny.temporal_factor) == (4, 4, 1)
        assert [tiny.latent_frames(count) for count in (1, 2, 15)] == [1, 2, 15]

    def test_encode_is_diffusers_frame_by_frame(self, tiny: FrameAutoencoder) -> None:
        clip = frames(2, 3, 3, 16, 12)
        latents = tiny.encode(clip)
        assert latents.shape == (2, 4, 3, 4, 3)
        for b in range(2):
            for f in range(3):
                with torch.no_grad():
                    raw = tiny.network.encode(2 * clip[b, f][None] - 1).latents[0]
                torch.testing.assert_close(latents[b, :, f], (raw - 0.25) * 1.5)

    def test_decode_is_diffusers_frame_by_frame(self, tiny: FrameAutoencoder) -> None:
        latents = noise(2, 4, 3, 4, 3)
        clip = tiny.decode(latents)
        assert clip.shape == (2, 3, 3, 16, 12)
        assert float(clip.min()) >= 0
        assert float(clip.max()) <= 1
        for b in range(2):
            for f in range(3):
                with torch.no_grad():
                    raw = tiny.network.decode(latents[b, :, f][None] / 1.5 + 0.25).sample[0]
                torch.testing.assert_close(clip[b, f], (0.5 * (raw + 1)).clamp(0, 1))

    def test_a_stream_equals_the_whole(self, tiny: FrameAutoencoder) -> None:
        latents, stream = noise(1, 4, 7, 4, 4), tiny.stream()
        parts = [stream.decode(part) for part in latents.split(3, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=1), tiny.decode(latents), rtol=0, atol=1e-6)


class TestWan:
    def test_sizes(self, wan: WanAutoencoder) -> None:
        assert (wan.channels, wan.spatial_factor, wan.temporal_factor) == (4, 8, 4)
        assert [wan.latent_frames(count) for count in (1, 5, 81)] == [1, 2, 21]
        with pytest.raises(ConfigError, match="number of frames"):
            wan.latent_frames(4)

    def test_encode_is_the_normalised_mean(self, wan: WanAutoencoder) -> None:
        clip = frames(1, 5, 3, 16, 16)
        with torch.no_grad():
            raw = wan.network.encode(2 * clip.transpose(1, 2) - 1).latent_dist.mean
        mean, std = (torch.tensor(WAN[name]).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        torch.testing.assert_close(wan.encode(clip), (raw - mean) / std)

    def test_decode_is_diffusers(self, wan: WanAutoencoder) -> None:
        latents = noise(2, 4, 3, 2, 2)
        mean, std = (torch.tensor(WAN[name]).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        with torch.no_grad():
            expected = wan.network.decode(latents * std + mean).sample.transpose(1, 2)
        got = wan.decode(latents)
        assert got.shape == (2, 9, 3, 16, 16)
        torch.testing.assert_close(got, (0.5 * (expected + 1)).clamp(0, 1), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("sizes", [[1] * 7, [3, 3, 1], [2, 5], [7]])
    def test_a_stream_equals_the_whole(self, wan: WanAutoencoder, sizes: list[int]) -> None:
        latents, stream = noise(1, 4, 7, 2, 3), wan.stream()
        parts = [stream.decode(part) for part in latents.split(sizes, dim=2)]
        assert [part.shape[1] for part in parts] == [4 * sizes[0] - 3, *(4 * size for size in sizes[1:])]
        torch.testing.assert_close(torch.cat(parts, dim=1), wan.decode(latents), rtol=0, atol=1e-5)

    def test_streams_do_not_disturb_one_another(self, wan: WanAutoencoder) -> None:
        first, second = noise(1, 4, 4, 2, 2), noise(1, 4, 4, 2, 2, seed=1)
        streams, parts = (wan.stream(), wan.stream()), ([], [])
        for chunks in zip(first.split(2, dim=2), second.split(2, dim=2), strict=True):
            for stream, chunk, done in zip(streams, chunks, parts, strict=True):
                done.append(stream.decode(chunk))
            wan.encode(frames(1, 1, 3, 16, 16))  # diffusers forgets its own memory here
        for done, latents in zip(parts, (first, second), strict=True):
            torch.testing.assert_close(torch.cat(done, dim=1), wan.decode(latents), rtol=0, atol=1e-5)

    def test_the_memory_matters(self, wan: WanAutoencoder) -> None:
        """Chunks decoded on their own are something else: the test above can fail."""
        latents = noise(1, 4, 4, 2, 2)
        apart = [wan.decode(part) for part in latents.split(2, dim=2)]
        whole = wan.decode(latents)
        assert not torch.allclose(torch.cat(apart, dim=1), whole[:, : sum(part.shape[1] for part in apart)], atol=1e-3)

    def test_pixels_in_patches(self, tmp_path: Path) -> None:
        """Wan 2.2's autoencoder works on 2x2 pixels at a time."""
        settings = {**WAN, "patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16}
        loaded = load_autoencoder(save("AutoencoderKLWan", tmp_path, **settings))
        latents, stream = noise(1, 4, 3, 1, 2), loaded.stream()
        mean, std = (torch.tensor(WAN[name]).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        with torch.no_grad():
            expected = loaded.network.decode(latents * std + mean).sample.transpose(1, 2)
        parts = [stream.decode(part) for part in latents.split(1, dim=2)]
        torch.testing.assert_close(torch.cat(parts, dim=1), (0.5 * (expected + 1)).clamp(0, 1), rtol=0, atol=1e-5)


class TestErrors:
    @pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 2, 4, 16, 16), (1, 2, 3, 15, 16), (1, 0, 3, 16, 16)])
    def test_frames(self, tiny: FrameAutoencoder, shape: tuple[int, ...]) -> None:
        with pytest.raises(ConfigError):
            tiny.encode(torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(4, 4, 4), (1, 3, 2, 4, 4), (1, 4, 0, 4, 4)])
    def test_latents(self, tiny: FrameAutoencoder, wan: WanAutoencoder, shape: tuple[int, ...]) -> None:
        for autoencoder in (tiny, wan):
            with pytest.raises(ConfigError, match="latents' shape"):
                autoencoder.decode(torch.zeros(shape))

    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_autoencoder(tmp_path / "nowhere")
        folder = save("AutoencoderTiny", tmp_path / "vae", **TINY)
        config = json.loads((folder / "config.json").read_text())
        for change, error, match in (
            ({"_class_name": "AutoencoderKL"}, TeacherError, "no autoencoder of video"),
            ({"num_encoder_blocks": "x"}, TeacherError, "makes no AutoencoderTiny"),
            ({"latent_channels": 5}, CheckpointError, "shape"),
        ):
            (folder / "config.json").write_text(json.dumps({**config, **change}))
            with pytest.raises(error, match=match):
                load_autoencoder(folder)

    def test_means_of_another_number(self, tmp_path: Path) -> None:
        folder = save("AutoencoderKLWan", tmp_path, **{**WAN, "latents_mean": [0.0]})
        with pytest.raises(TeacherError, match="1 means"):
            load_autoencoder(folder)
