"""Structural similarity: against scikit-image, its gradients, and the native backend against the reference."""

from typing import Any

import numpy as np
import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.ssim import ssim
from dreamkit_kernels.ssim.reference import ssim_reference, window
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.autograd import gradcheck

KERNELS = ["native", pytest.param("triton", marks=needs_triton)]


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=dtype)
    return x, (x + 0.3 * torch.randn(*shape, generator=generator, dtype=dtype)).clamp(0, 1)


class TestReference:
    def test_as_scikit_image(self) -> None:
        """Away from the border, where the two pad differently."""
        x, y = pictures(1, 1, 32, 40, dtype=torch.float64)
        _, expected = structural_similarity(
            x[0, 0].numpy(), y[0, 0].numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=1.0, full=True, truncate=3.4,
        )  # fmt: skip
        inner = (slice(None), slice(None), slice(5, -5), slice(5, -5))
        ours = ssim_reference(x, y)[inner][0, 0].numpy()
        np.testing.assert_allclose(ours, expected[5:-5, 5:-5], rtol=1e-9, atol=1e-9)

    def test_the_window(self) -> None:
        weights = window()
        assert len(weights) == 11
        assert sum(weights) == pytest.approx(1)
        assert weights == weights[::-1]

    def test_a_picture_is_like_itself(self) -> None:
        x, _ = pictures(2, 3, 9, 13)
        torch.testing.assert_close(ssim(x, x), torch.ones_like(x), rtol=0, atol=1e-4)

    def test_gradients(self) -> None:
        x, y = (picture.requires_grad_() for picture in pictures(1, 2, 4, 6, dtype=torch.float64))
        assert gradcheck(ssim_reference, (x, y), fast_mode=True)


def both_ways(x: Tensor, y: Tensor, backend: str = "native") -> list[list[Tensor]]:
    results = []
    for name in (backend, "reference"):
        given = [picture.clone().requires_grad_() for picture in (x, y)]
        value = ssim(*given, name)
        incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(3))
        results.append([value.detach(), *torch.autograd.grad(value, given, incoming)])
    return results


@pytest.mark.parametrize("backend", KERNELS)
class TestKernels:
    @pytest.mark.parametrize(
        "shape",
        [
            (1, 1, 1, 1),
            (1, 1, 3, 2),
            (2, 3, 8, 8),
            (1, 3, 11, 30),
            (2, 1, 40, 17),
            (1, 3, 64, 64),
            (1, 1, 5, 100),
            (1, 1, 60, 130),
        ],
    )
    def test_as_the_reference(self, backend: str, shape: tuple[int, ...]) -> None:
        results, reference = both_ways(*pictures(*shape), backend)
        for name, one, other in zip(("map", "dx", "dy"), results, reference, strict=True):
            scale = max(1.0, float(other.abs().max()))
            torch.testing.assert_close(
                one, other, rtol=1e-3, atol=2e-4 * scale, msg=lambda m, name=name: f"{name}: {m}"
            )

    def test_even_pictures(self, backend: str) -> None:
        """Variances that cancel to zero."""
        results, reference = both_ways(torch.full((1, 3, 20, 20), 0.5), torch.full((1, 3, 20, 20), 0.9), backend)
        for one, other in zip(results, reference, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)

    def test_nothing_and_nonsense(self, backend: str) -> None:
        assert ssim(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8), backend).shape == (0, 3, 8, 8)
        x, y = pictures(1, 1, 80, 80)
        x[0, 0, 3, 3] = float("nan")
        x[0, 0, 4, 4] = float("inf")
        value = ssim(x, y, backend)
        assert bool(value[0, 0, :9, :9].isnan().all())
        torch.testing.assert_close(value[..., 12:, 12:], ssim(x, y, "reference")[..., 12:, 12:])

    def test_the_gradient_of_one_picture(self, backend: str) -> None:
        x, y = (picture.requires_grad_() for picture in pictures(1, 1, 20, 20))
        both = torch.autograd.grad(ssim(x, y, backend).sum(), (x, y))
        (alone,) = torch.autograd.grad(ssim(x.detach(), y, backend).sum(), (y,))
        assert torch.equal(alone, both[1])

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
    def test_any_size(self, backend: str, batch: int, channels: int, height: int, width: int, seed: int) -> None:
        x, y = pictures(batch, channels, height, width, seed=seed)
        torch.testing.assert_close(ssim(x, y, backend), ssim_reference(x, y), rtol=1e-3, atol=5e-4)


class TestNative:
    def test_strided_pictures(self) -> None:
        x, y = pictures(2, 3, 12, 9)
        across = [picture.transpose(2, 3).contiguous().transpose(2, 3) for picture in (x, y)]
        assert torch.equal(ssim(*across, "native"), ssim(x, y, "native"))

    def test_the_bits_do_not_depend_on_the_threads(self) -> None:
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(both_ways(*pictures(2, 3, 50, 50))[0])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))

    def test_it_compiles(self) -> None:
        x, y = pictures(1, 3, 16, 16)
        x.requires_grad_()
        compiled = torch.compile(lambda x, y: ssim(x, y, "native").mean(), fullgraph=True, backend="aot_eager")
        (expected,) = torch.autograd.grad(ssim(x, y, "native").mean(), x)
        (gradient,) = torch.autograd.grad(compiled(x, y), x)
        torch.testing.assert_close(gradient, expected)

    def test_the_operator_is_registered_well(self) -> None:
        x, y = (picture.requires_grad_() for picture in pictures(1, 2, 6, 5))
        torch.library.opcheck(torch.ops.dreamkit.ssim.default, (x, y, "native"))


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (None, torch.zeros(1, 1, 2, 2), TypeError, "x must be a torch.Tensor, got NoneType"),
        (torch.zeros(1, 1, 2, 2).long(), torch.zeros(1, 1, 2, 2), TypeError, "x must be floating"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2).double(), TypeError, "y must have the dtype of x"),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), ValueError, r"x must have shape \[B, C, H, W\]"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 3), ValueError, "y must have shape"),
        (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, device="meta"), ValueError, "y must be on the device of x"),
    ],
)
def test_what_is_refused(x: Any, y: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ssim(x, y)
