"""A student's networks: with a clean past they are a chunk over a cache, with a noisy one a masked clip."""

from pathlib import Path

import pytest
import torch
from dreamkit_kernels.stream_attention import Stream
from tiny_video import CHANNELS, SIDE, write_pipeline
from torch import Tensor

from dreamkit.objectives.causal_video import noisy_clip
from dreamkit.training.student_networks import load_networks
from dreamkit.video.controls import Controls
from dreamkit.video.sparse_attention import Sparsity

pytestmark = pytest.mark.usefixtures("one_thread", "float32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("teacher") / "teacher")


class TestNetworks:
    def lesson(self, frames: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor, Controls]:
        generator = torch.Generator().manual_seed(1)
        x0, eps = torch.randn(2, 2, CHANNELS, frames, SIDE, SIDE, generator=generator)
        levels = torch.rand(2, frames // 2, generator=generator).repeat_interleave(2, dim=1)
        text = torch.randn(2, 5, 32, generator=generator)
        tracks = torch.rand(2, frames, 3, 2, generator=generator)
        return x0, eps, levels, text, Controls(torch.randn(2, frames, 12, generator=generator), tracks)

    @pytest.mark.parametrize("sparsity", [None, Sparsity(keep=0.3, block=2)])
    def test_a_clean_past_is_a_cache_filled_chunk_by_chunk(self, teacher: Path, sparsity: Sparsity | None) -> None:
        """The loss of teacher forcing, frame by frame, from single chunks over a cache of the clean frames."""
        networks = load_networks(teacher, "cpu").requires_grad_(False)
        x0, eps, levels, text, controls = self.lesson(frames=8)
        stream = Stream(2, 2, chunk=2, sink=1, window=2)
        x_t = noisy_clip(x0, eps, levels)
        got = networks(x_t, levels, text, controls, stream, x0, sparsity)
        cache = networks.transformer.new_cache(stream, batch=2, sparsity=sparsity)
        assert networks.controls is not None
        for start in range(0, 8, 2):
            part = slice(start, start + 2)
            features = networks.controls(controls.frames(start, start + 2), (2, 2))
            noisy, clean = x_t[:, :, part], x0[:, :, part]
            alone = networks.transformer.step(noisy, 1000 * levels[:, part], text, cache, features)
            torch.testing.assert_close(got[:, :, part], alone, atol=2e-5, rtol=0)
            networks.transformer.step(clean, torch.zeros(2), text, cache, features, write=True)
        assert cache.visible == 3  # frames have left the window

    def test_a_noisy_past_is_the_masked_clip(self, teacher: Path) -> None:
        networks = load_networks(teacher, "cpu").requires_grad_(False)
        x0, eps, levels, text, controls = self.lesson()
        stream = Stream(2, 2, chunk=2, sink=1, window=2)
        x_t = noisy_clip(x0, eps, levels)
        out = networks(x_t, levels, text, controls, stream)
        later = x_t.clone()
        later[:, :, 4:] += 1
        changed = networks(later, levels, text, controls, stream)
        assert torch.equal(out[:, :, :4], changed[:, :, :4])
        assert not torch.allclose(out[:, :, 4:], changed[:, :, 4:])
        before = x_t.clone()
        before[:, :, :1] += 1
        assert not torch.allclose(out[:, :, 2:], networks(before, levels, text, controls, stream)[:, :, 2:])

    def test_a_model_without_controls_ignores_them(self, tmp_path: Path) -> None:
        networks = load_networks(write_pipeline(tmp_path / "plain", with_controls=False), "cpu")
        x0, _, levels, text, controls = self.lesson()
        stream = Stream(2, 2, chunk=2, sink=1, window=2)
        assert networks.controls is None
        assert torch.equal(
            networks(x0, levels, text, controls, stream, x0), networks(x0, levels, text, None, stream, x0)
        )
