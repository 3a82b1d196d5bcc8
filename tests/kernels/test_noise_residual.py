"""Adding noise and the guided residual: against the schedule's own formulas, and the kernels against the reference."""

from typing import Any

import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.noise_residual import Coefficients, add_noise, guided_residual
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from dreamkit.diffusion.guidance import guide
from dreamkit.diffusion.schedule import NoiseSchedule, PredictionKind

KERNELS = ["native", pytest.param("triton", marks=needs_triton)]
DOUBLE = torch.float64


def samples(*shape: int, count: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


def numbers(batch: int, count: int = 6, seed: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.rand(count, batch, generator=generator, dtype=dtype))


def of_kind(kind: PredictionKind, alpha: Tensor, sigma: Tensor) -> list[Tensor]:
    """The four numbers that make eps and x0 of x_t and an output."""
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    if kind == "eps":
        return [zero, one, 1 / alpha, -sigma / alpha]
    if kind == "x0":
        return [1 / sigma, -alpha / sigma, zero, one]
    total = alpha**2 + sigma**2 if kind == "v" else alpha + sigma
    return [x / total for x in ((sigma, alpha, alpha, -sigma) if kind == "v" else (one, alpha, one, -sigma))]


class TestDefinition:
    def test_noise_is_the_schedules(self) -> None:
        schedule = NoiseSchedule.ddpm("cosine")
        x, noise = samples(3, 4, 5, 6, dtype=DOUBLE)
        t = torch.tensor([0.1, 0.5, 0.93], dtype=DOUBLE)
        ours = add_noise(x, noise, schedule.alpha(t), schedule.sigma(t))
        torch.testing.assert_close(ours, schedule.add_noise(x, noise, t), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
    def test_residual_is_guidance_then_conversion_then_weight(self, kind: PredictionKind) -> None:
        schedule = NoiseSchedule.flow(3.0) if kind == "flow" else NoiseSchedule.ddpm("scaled_linear")
        positive, negative, noisy, noise = samples(2, 3, 4, 4, count=4, dtype=DOUBLE)
        t = torch.tensor([0.3, 0.8], dtype=DOUBLE)
        weight = torch.tensor([0.5, 2.0], dtype=DOUBLE)
        scale = torch.full((2,), 7.5, dtype=DOUBLE)
        made = of_kind(kind, schedule.alpha(t), schedule.sigma(t))
        residual, clean = guided_residual(positive, negative, noisy, noise, Coefficients(scale, *made, weight))
        expected = schedule.convert(guide(positive, negative, 7.5), noisy, t, kind)
        wanted = weight[:, None, None, None] * (expected.eps - noise)
        torch.testing.assert_close(residual, wanted, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(clean, expected.x0, rtol=1e-10, atol=1e-10)

    def test_gradients_of_the_reference(self) -> None:
        given = [x.requires_grad_() for x in samples(2, 5, dtype=DOUBLE)]
        levels = numbers(2, 2, dtype=DOUBLE)
        assert gradcheck(lambda x, noise: add_noise(x, noise, *levels), given)


@pytest.mark.parametrize("backend", KERNELS)
class TestKernels:
    @pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 3, 64, 64), (5, 17), (1, 33000), (0, 4), (3, 0)])
    def test_as_the_reference(self, backend: str, shape: tuple[int, ...]) -> None:
        four = samples(*shape, count=4)
        coefficients = Coefficients(*numbers(shape[0]))
        alpha, sigma = numbers(shape[0], 2)
        results = []
        for name in (backend, "reference"):
            x, noise = (item.clone().requires_grad_() for item in four[:2])
            noisy = add_noise(x, noise, alpha, sigma, name)
            gradients = torch.autograd.grad(noisy, (x, noise), four[2])
            results.append([noisy.detach(), *gradients, *guided_residual(*four, coefficients, name)])
        for one, other in zip(*results, strict=True):
            assert one.shape == shape
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    def test_views_and_nonsense(self, backend: str) -> None:
        x, noise = (item.mT for item in samples(2, 6, 5))
        levels = numbers(2, 2)
        torch.testing.assert_close(
            add_noise(x, noise, *levels, backend), add_noise(x, noise, *levels, "reference"), rtol=1e-6, atol=1e-6
        )
        x = x.clone()
        x[0, 0, 0], x[1, 2, 2] = float("nan"), float("inf")
        broken = add_noise(x, noise, *levels, backend)
        assert (~torch.isfinite(broken)).nonzero().tolist() == [[0, 0, 0], [1, 2, 2]]

    def test_half_precision(self, backend: str) -> None:
        four = samples(2, 40, count=4)
        halves = [item.half() for item in four]
        coefficients = Coefficients(*numbers(2))
        if backend == "native":
            with pytest.raises(ValueError, match="takes float32 tensors"):
                guided_residual(*halves, coefficients, backend)
            return
        made = guided_residual(*halves, coefficients, backend)
        exact = guided_residual(*(item.float() for item in halves), coefficients, "reference")
        for one, other in zip(made, exact, strict=True):
            assert one.dtype == torch.float16
            torch.testing.assert_close(one.float(), other, rtol=2e-3, atol=2e-3)

    def test_it_compiles(self, backend: str) -> None:
        x, noise = samples(2, 8)
        levels = numbers(2, 2)
        x.requires_grad_()

        def loss(x: Tensor) -> Tensor:
            return add_noise(x, noise, *levels, backend).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(*(torch.autograd.grad(run(x), x)[0] for run in (loss, compiled)))

    def test_the_operators_are_registered_well(self, backend: str) -> None:
        x, noise = (item.requires_grad_() for item in samples(2, 8))
        torch.library.opcheck(torch.ops.dreamkit.add_noise.default, (x, noise, torch.rand(2, 2), backend))
        four = samples(2, 8, count=4)
        torch.library.opcheck(torch.ops.dreamkit.guided_residual.default, (*four, torch.rand(2, 6), backend))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 10**6))
    def test_any_shape(self, backend: str, shape: list[int], seed: int) -> None:
        four = samples(*shape, count=4, seed=seed)
        coefficients = Coefficients(*numbers(shape[0], seed=seed))
        made, expected = (guided_residual(*four, coefficients, name) for name in (backend, "reference"))
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": None}, TypeError, "x must be a torch.Tensor"),
            ({"x": torch.zeros(2, 3).int()}, TypeError, "x must be floating"),
            ({"noise": torch.zeros(2, 3).double()}, TypeError, "noise must have the dtype of x"),
            ({"noise": torch.zeros(2, 4)}, ValueError, r"noise must have shape \[2, 3\]"),
            ({"noise": torch.zeros(2, 3, device="meta")}, ValueError, "noise must be on the device of x"),
            ({"alpha": torch.zeros(3)}, ValueError, r"alpha must have shape \[2\]"),
            ({"sigma": torch.zeros(2).half()}, TypeError, "sigma must be float32 or float64"),
            ({"sigma": torch.zeros(2, device="meta")}, ValueError, "sigma must be on the device of the samples"),
            ({"x": torch.zeros(()), "noise": torch.zeros(())}, ValueError, r"x must have shape \[B, ...\]"),
            ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ],
    )
    def test_what_is_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments: dict[str, Any] = {"x": torch.zeros(2, 3), "noise": torch.zeros(2, 3)}
        arguments |= {"alpha": torch.zeros(2), "sigma": torch.zeros(2)}
        with pytest.raises(error, match=message):
            add_noise(**{**arguments, **change})

    @pytest.mark.parametrize("backend", [*KERNELS, "reference"])
    def test_the_residual_is_not_differentiated(self, backend: str) -> None:
        four = samples(2, 3, count=4)
        four[0].requires_grad_()
        with pytest.raises(ValueError, match="positive requires a gradient"):
            guided_residual(*four, Coefficients(*numbers(2)), backend)
        with torch.no_grad():
            assert not guided_residual(*four, Coefficients(*numbers(2)), backend)[0].requires_grad
