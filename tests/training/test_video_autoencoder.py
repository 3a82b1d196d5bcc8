"""Training of the embedded video model's autoencoder, on drawn squares."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn
from toy_clips import CONFIG, SquareWorld, build_nothing

from dreamkit.errors import ConfigError
from dreamkit.files import read_jsonl
from dreamkit.training import video_autoencoder
from dreamkit.training.checkpoints import load_latest
from dreamkit.training.video_autoencoder import (
    VideoAutoencoderOptions,
    VideoAutoencoderTrainer,
    make_autoencoder,
    measure_psnr,
    reconstruct,
    render_frames,
    train_video_autoencoder,
)
from dreamkit.video.autoencoders import load_autoencoder

pytestmark = pytest.mark.usefixtures("one_thread", "squares")


@pytest.fixture
def squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_autoencoder, "MotionWorld", SquareWorld)
    monkeypatch.setattr(video_autoencoder, "build_motion_cache", build_nothing)
    monkeypatch.setattr(video_autoencoder, "WIDTH", 8)


def options(out: Path = Path("unused"), **changes: Any) -> VideoAutoencoderOptions:
    base = VideoAutoencoderOptions(
        out=out, steps=4, batch=6, clips=4, warmup=1, cooldown=1, checkpoint_every=2, sample_every=0, world=CONFIG
    )
    return replace(base, **changes)


def trainer(**changes: Any) -> VideoAutoencoderTrainer:
    return VideoAutoencoderTrainer(options(**changes), render_frames(SquareWorld(Path(), CONFIG), 4, 0))


def test_the_loss_falls() -> None:
    run = trainer(steps=80, lr=0.01, lr_rest=0.01)
    rows = [run.train_step() for _ in range(60)]
    assert sum(row["loss"] for row in rows[-5:]) < 0.5 * sum(row["loss"] for row in rows[:5])
    assert rows[-1]["psnr"] > rows[0]["psnr"]


def test_the_loss_is_what_it_says() -> None:
    """Without noise; structural similarity from scikit-image, away from the borders that it treats otherwise."""
    run = trainer(noise=0.0, moment_weight=0.5, ssim_weight=0.25)
    run.half_precision = False
    total, metrics = run.losses()
    images, _ = run.draw(0)
    with torch.no_grad():
        latents = run.network.encode(images).latents
        x, y = 0.5 * (images + 1), 0.5 * (run.network.decode(latents).sample + 1)
    error = x - y
    rough = ((error**2 + 0.02**2).sqrt() - 0.02).mean()
    assert metrics["loss"] == pytest.approx(float(rough), rel=1e-4)
    assert metrics["psnr"] == pytest.approx(float(-10 * (error**2).mean().log10()), abs=1e-3)
    means, deviations = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    moments = float((means**2 + (deviations - 1) ** 2).mean())
    expected = float(rough) + 0.25 * (1 - metrics["ssim"]) + 0.5 * moments
    assert float(total.detach()) == pytest.approx(expected, rel=1e-4)
    peer = structural_similarity(
        x[0].numpy(), y[0].numpy(), channel_axis=0, data_range=1, gaussian_weights=True, use_sample_covariance=False
    )
    from dreamkit_kernels.ssim import ssim

    assert float(ssim(y, x)[0, :, 5:-5, 5:-5].mean()) == pytest.approx(float(peer), abs=2e-3)


def test_noise_on_the_latents_is_felt() -> None:
    calm, noisy = trainer(noise=0.0), trainer(noise=1.0)
    assert calm.train_step()["loss"] != noisy.train_step()["loss"]


def test_convolutions_go_to_muon_and_nothing_is_left_out() -> None:
    run = trainer()
    muon, adam = ([p for group in o.param_groups for p in group["params"]] for o in run.optimizers)
    assert {p.ndim for p in muon} == {4}
    assert {p.ndim for p in adam} == {1}
    assert len(muon) + len(adam) == len(list(run.network.parameters()))


def test_the_embedded_size() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_autoencoder, "WIDTH", 32)
        network = make_autoencoder()
    with torch.no_grad():
        latents = network.encode(torch.zeros(1, 3, 64, 64)).latents
        assert latents.shape == (1, 8, 16, 16)
        assert network.decode(latents).sample.shape == (1, 3, 64, 64)


def test_frames_are_a_function_of_the_seed() -> None:
    world = SquareWorld(Path(), CONFIG)
    one, two, other = (render_frames(world, 3, seed) for seed in (1, 1, 2))
    assert one.shape == (18, 3, 16, 16)
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_psnr() -> None:
    class Darker(nn.Module):
        """Takes 0.1 of [0, 1] away, which is 20 dB."""

        def encode(self, x: torch.Tensor) -> Any:
            return type("", (), {"latents": x})

        def decode(self, x: torch.Tensor) -> Any:
            return type("", (), {"sample": x - 0.2})

    frames = 0.2 + 0.7 * torch.rand(40, 3, 4, 4)
    torch.testing.assert_close(reconstruct(Darker(), frames), frames - 0.1)
    assert measure_psnr(Darker(), frames) == pytest.approx(20, abs=1e-3)


def test_stopped_and_continued_equals_never_stopped(tmp_path: Path) -> None:
    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise InterruptedError

    train_video_autoencoder(options(tmp_path / "straight"))
    with pytest.raises(InterruptedError):
        train_video_autoencoder(options(tmp_path / "stopped"), stop)
    folder, psnr = train_video_autoencoder(options(tmp_path / "stopped"))
    assert psnr > 0
    states = [load_latest(tmp_path / name / "checkpoints")[0].tensors for name in ("straight", "stopped")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "straight" / "autoencoder" / file).read_bytes() == (folder / file).read_bytes()
    assert [row["step"] for row in read_jsonl(tmp_path / "stopped" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_the_exported_folder_gives_latents_of_unit_variance(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = trainer(steps=50, lr=0.01, lr_rest=0.01, moment_weight=0.0)
    for _ in range(10):
        run.train_step()
    before = {name: value.clone() for name, value in run.state().items()}
    folder = run.export(tmp_path / "vae")
    assert all(torch.equal(before[name], value) for name, value in run.state().items())
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert json.loads((folder / "config.json").read_text())["_class_name"] == "AutoencoderTiny"
    latents = load_autoencoder(folder).encode(run.frames[None].float() / 255)
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)
    assert float(latents.std()) == pytest.approx(1, abs=0.02)
    run.draw_samples(folder, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


@pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"clips": 0}, {"noise": -0.1}, {"noise": float("nan")}])
def test_bad_options(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        options(**change)
