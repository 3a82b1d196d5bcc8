"""Optical flow: shifted pictures, another library's, the moving world's own."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.errors import ConfigError
from dreamkit.metrics.flow import consistent, follow, optical_flow, warp


def texture(size: int = 96, grain: int = 4, seed: int = 0) -> Tensor:
    """A smooth random picture [1, 3, size, size]."""
    coarse = torch.rand(1, 3, size // grain, size // grain, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def shifted(x: int, y: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Two crops of a texture, the second's content moved by (x, y) pixels."""
    picture = texture()
    return picture[:, :, 16:, 16:][:, :, :size, :size], picture[:, :, 16 - y :, 16 - x :][:, :, :size, :size]


def inner(values: Tensor, border: int = 8) -> Tensor:
    return values[..., border:-border, border:-border]


class TestFlow:
    @pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, -2), (3, 2), (-5, 2)])
    def test_of_a_shift(self, shift: tuple[int, int]) -> None:
        flow = optical_flow(*shifted(*shift))
        wanted = torch.tensor(shift, dtype=torch.float32).view(1, 2, 1, 1)
        assert float(inner((flow - wanted).norm(dim=1, keepdim=True)).mean()) < 0.04

    def test_of_less_than_a_pixel(self) -> None:
        """A wave is known between its pixels."""
        x = torch.arange(64.0)

        def wave(shift: float) -> Tensor:
            phase = 2 * torch.pi * (x - shift) / 16
            return (0.5 + 0.2 * (phase.sin()[None, :] + (2 * torch.pi * x / 13).sin()[:, None])).expand(1, 3, 64, 64)

        flow = inner(optical_flow(wave(0.0), wave(0.3)))
        torch.testing.assert_close(flow[:, 0], torch.full_like(flow[:, 0], 0.3), atol=0.02, rtol=0)
        torch.testing.assert_close(flow[:, 1], torch.zeros_like(flow[:, 1]), atol=0.05, rtol=0)

    def test_as_good_as_the_other_library(self) -> None:
        """A picture that turns by 3 degrees about its middle: our error is no larger than scikit-image's."""
        from skimage.registration import optical_flow_ilk

        angle = torch.deg2rad(torch.tensor(3.0))
        y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
        true = torch.stack([x * (angle.cos() - 1) - y * angle.sin(), x * angle.sin() + y * (angle.cos() - 1)])[None]
        first = shifted(0, 0)[0]
        back = torch.stack([x * (angle.cos() - 1) + y * angle.sin(), -x * angle.sin() + y * (angle.cos() - 1)])[None]
        second = warp(first, back)
        theirs = optical_flow_ilk(first.mean(dim=1)[0].numpy(), second.mean(dim=1)[0].numpy(), radius=3)
        theirs = torch.from_numpy(theirs).flip(0)[None]
        errors = [float(inner((flow - true).norm(dim=1)).mean()) for flow in (optical_flow(first, second), theirs)]
        assert errors[0] < 0.1
        assert errors[0] < 1.1 * errors[1], errors

    def test_one_pair_does_not_see_another(self) -> None:
        pairs = [shifted(1, 0), shifted(-2, 3)]
        both = optical_flow(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))
        torch.testing.assert_close(both, torch.cat([optical_flow(*pair) for pair in pairs]), atol=1e-4, rtol=1e-4)

    def test_of_pictures_without_texture(self) -> None:
        flat = torch.full((1, 3, 16, 33), 0.5)
        assert torch.equal(optical_flow(flat, flat), torch.zeros(1, 2, 16, 33))
        assert bool(torch.isfinite(optical_flow(flat, 1 - 0.9 * flat)).all())

    def test_what_it_refuses(self) -> None:
        fine = torch.zeros(1, 3, 16, 16)
        for first, second, word in (
            (fine, fine[:, :1], "shape"),
            (fine[..., :8], fine[..., :8], "16 pixels"),
            (fine, fine / 0, "not finite"),
        ):
            with pytest.raises(ConfigError, match=word):
                optical_flow(first, second)
        with pytest.raises(ConfigError, match="iterations"):
            optical_flow(fine, fine, 0)


class TestWhatIsReadFromIt:
    def test_warping_undoes_a_shift(self) -> None:
        first, second = shifted(2, -1)
        flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 64, 64)
        torch.testing.assert_close(inner(warp(second, flow)), inner(first))

    def test_points_go_where_the_flow_points(self) -> None:
        flow = torch.zeros(3, 2, 32, 64)
        flow[0, 0], flow[1, 1], flow[2, :, :, :32] = 6.4, -3.2, 1.0
        places = follow(flow, torch.tensor([[0.1, 0.5], [0.8, 0.5]]))
        wanted = [[[0.1, 0.5], [0.8, 0.5]], [[0.2, 0.5], [0.9, 0.5]], [[0.2, 0.4], [0.9, 0.4]]]
        torch.testing.assert_close(places[:3], torch.tensor(wanted))
        torch.testing.assert_close(places[3], torch.tensor([[0.2 + 1 / 64, 0.4 + 1 / 32], [0.9, 0.4]]))

    def test_what_leaves_or_disagrees_is_hidden(self) -> None:
        there = torch.zeros(1, 2, 16, 16)
        there[:, 0] = 3.0
        assert bool(consistent(there, -there)[..., :13].all())
        assert not bool(consistent(there, -there)[..., 13:].any())
        assert not bool(consistent(there, torch.zeros_like(there)).any())
