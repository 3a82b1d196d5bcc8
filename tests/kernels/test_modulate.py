"""The modulated layer norm: the definition, and the native backend against it."""

from typing import Any

import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.modulate import modulate
from dreamkit_kernels.modulate.reference import modulate_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

KERNELS = ["native", pytest.param("triton", marks=needs_triton)]


def inputs(batch: int, tokens: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, tokens, dim), (batch, dim), (batch, dim))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def both_ways(*given: Tensor, backend: str = "native") -> list[list[Tensor]]:
    results = []
    for name in (backend, "reference"):
        out = modulate(*given, backend=name)
        incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
        results.append([out.detach(), *torch.autograd.grad(out, given, incoming)])
    return results


def test_definition() -> None:
    x, scale, shift = (item.detach() for item in inputs(2, 3, 6, dtype=torch.float64))
    out = modulate(x, scale, shift, 0.1)
    row = x[1, 2]
    normal = (row - row.mean()) / torch.sqrt(((row - row.mean()) ** 2).mean() + 0.1)
    torch.testing.assert_close(out[1, 2], normal * (1 + scale[1]) + shift[1])


def test_gradients_of_the_reference() -> None:
    assert gradcheck(lambda x, a, b: modulate_reference(x, a, b, 1e-5), inputs(2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 3, 7), (1, 5, 8), (3, 70, 30), (8, 64, 288), (4, 256, 128), (0, 4, 8), (2, 0, 8)]
)
def test_as_the_reference(shape: tuple[int, int, int], backend: str) -> None:
    if backend == "triton" and shape[0] * shape[1] > 210:
        pytest.skip("the interpreter takes a millisecond a program")
    results, reference = both_ways(*inputs(*shape), backend=backend)
    for name, one, other in zip(("out", "dx", "dscale", "dshift"), results, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4, msg=lambda m, name=name: f"{name}: {m}")


@needs_triton
def test_half_precision() -> None:
    """Triton's sums are in float32, whatever the tensors are."""
    given = [item.detach().half().requires_grad_() for item in inputs(2, 20, 48)]
    results, _ = both_ways(*given, backend="triton")
    _, exact = both_ways(*(item.detach().float().requires_grad_() for item in given))
    for one, other in zip(results, exact, strict=True):
        assert one.dtype == torch.float16
        torch.testing.assert_close(one.float(), other, rtol=2e-3, atol=4e-3)


@pytest.mark.parametrize("backend", KERNELS)
def test_rows_far_from_zero(backend: str) -> None:
    """The variance of a small wave on a large constant."""
    x, scale, shift = (item.detach() for item in inputs(1, 4, 64))
    far = (1000 + x).requires_grad_()
    out = modulate(far, scale, shift, backend=backend)
    expected = modulate_reference(far.double(), scale.double(), shift.double(), 1e-5)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-3)


def test_the_bits_do_not_depend_on_the_threads() -> None:
    given = inputs(6, 80, 136)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(both_ways(*given)[0])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_it_compiles() -> None:
    given = inputs(2, 4, 16)
    compiled = torch.compile(
        lambda *t: modulate(*t, backend="native").square().sum(), fullgraph=True, backend="aot_eager"
    )
    expected = torch.autograd.grad(modulate(*given, backend="native").square().sum(), given)
    for one, other in zip(torch.autograd.grad(compiled(*given), given), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_is_registered_well() -> None:
    torch.library.opcheck(torch.ops.dreamkit.modulate.default, (*inputs(2, 3, 8), 1e-5, "native"))


@pytest.mark.parametrize("backend", KERNELS)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(0, 9), st.integers(2, 40), st.integers(0, 10**6))
def test_any_size(backend: str, batch: int, tokens: int, dim: int, seed: int) -> None:
    x, scale, shift = (item.detach() for item in inputs(batch, tokens, dim, seed))
    result, reference = (modulate(x, scale, shift, 1e-3, name) for name in (backend, "reference"))
    torch.testing.assert_close(result, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": None}, TypeError, "x must be a torch.Tensor"),
        ({"x": torch.zeros(2, 8)}, ValueError, r"x must have shape \[B, N, D\]"),
        ({"x": torch.zeros(2, 3, 0)}, ValueError, r"x must have shape \[B, N, D\]"),
        ({"scale": torch.zeros(2, 7)}, ValueError, r"scale must have shape \[2, 8\], got \[2, 7\]"),
        ({"shift": torch.zeros(8)}, ValueError, "shift must have shape"),
        ({"shift": torch.zeros(2, 8).double()}, TypeError, "shift must have the dtype of x"),
        ({"scale": torch.zeros(2, 8, device="meta")}, ValueError, "scale must be on the device of x"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 8), "scale": torch.zeros(2, 8), "shift": torch.zeros(2, 8)} | change
    with pytest.raises(error, match=message):
        modulate(**arguments)
