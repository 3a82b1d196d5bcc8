"""Masked Adam: all rows against torch's own, the mask by hand, and the kernels against the reference."""

from typing import Any

import pytest
import torch
from backends import needs_triton
from dreamkit_kernels.adam import Adam, adam_step
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

KERNELS = ["native", pytest.param("triton", marks=needs_triton)]
SHAPES = ((3,), (4,), (), (1, 3))


def tensors(count: int, shapes: tuple[tuple[int, ...], ...] = SHAPES, seed: int = 0, **kind: Any) -> list[list[Tensor]]:
    """Parameters, gradients and both moments."""
    generator = torch.Generator().manual_seed(seed)
    groups = [[torch.randn((count, *shape), generator=generator, **kind) for shape in shapes] for _ in range(4)]
    groups[3] = [item.square() for item in groups[3]]
    return groups


def after(groups: list[list[Tensor]], backend: str, rows: Tensor | None = None, step: int = 3) -> list[Tensor]:
    """Parameters and moments after a step from copies."""
    parameters, gradients, first, second = ([item.clone() for item in group] for group in groups)
    rates = [0.1 / (1 + index) for index in range(len(parameters))]
    adam_step(parameters, gradients, first, second, rates, step, Adam(0.9, 0.99, 1e-12), rows, backend)
    return [*parameters, *first, *second]


def test_all_rows_are_torchs_adam() -> None:
    parameters, gradients, *_ = tensors(5, dtype=torch.float64)
    theirs = [item.clone().requires_grad_() for item in parameters]
    optimizer = torch.optim.Adam([{"params": [item], "lr": 0.1 * (i + 1)} for i, item in enumerate(theirs)], eps=1e-10)
    first, second = ([torch.zeros_like(item) for item in parameters] for _ in range(2))
    for step in range(1, 6):
        for item, gradient in zip(theirs, gradients, strict=True):
            item.grad = gradient * step
        optimizer.step()
        given = [gradient * step for gradient in gradients]
        adam_step(parameters, given, first, second, [0.1, 0.2, 0.3, 0.4], step, Adam(eps=1e-10))
    for ours, other in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", [*KERNELS, "reference"])
class TestEveryBackend:
    def test_rows_left_out_stay(self, backend: str) -> None:
        groups = tensors(9)
        rows = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1, 0]).bool()
        masked, all_of_them = after(groups, backend, rows), after(groups, backend)
        before = [*groups[0], *groups[2], *groups[3]]
        for item, old, moved in zip(masked, before, all_of_them, strict=True):
            assert torch.equal(item[~rows], old[~rows])
            torch.testing.assert_close(item[rows], moved[rows], rtol=1e-6, atol=0)
            assert not torch.equal(item[rows], old[rows])

    def test_a_gradient_that_is_no_number_spoils_its_own_number_only(self, backend: str) -> None:
        groups = tensors(6)
        groups[1][0][2, 1] = float("nan")
        moved = after(groups, backend)[0]
        assert (~torch.isfinite(moved)).nonzero().tolist() == [[2, 1]]

    def test_nothing(self, backend: str) -> None:
        after(tensors(0), backend)
        adam_step([], [], [], [], [], 1, backend=backend)


@pytest.mark.parametrize("backend", KERNELS)
class TestKernels:
    @pytest.mark.parametrize("count", [1, 7, 1000, 5003])
    @pytest.mark.parametrize("share", [None, 0.0, 0.3, 1.0])
    def test_as_the_reference(self, backend: str, count: int, share: float | None) -> None:
        groups = tensors(count)
        rows = None if share is None else torch.rand(count, generator=torch.Generator().manual_seed(4)) < share
        for one, other in zip(after(groups, backend, rows), after(groups, "reference", rows), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)

    def test_it_compiles(self, backend: str) -> None:
        groups = tensors(4)
        compiled = torch.compile(after, fullgraph=True, backend="aot_eager")
        for one, other in zip(compiled(groups, backend), after(groups, backend), strict=True):
            torch.testing.assert_close(one, other)

    def test_the_operator_is_registered_well(self, backend: str) -> None:
        numbers = ([0.1] * 4, 0.9, 0.99, 1e-8, 0.5)
        arguments = (*tensors(4), torch.tensor([1, 0, 1, 1]).bool(), *numbers, backend)
        torch.library.opcheck(torch.ops.dreamkit.adam.default, arguments)

    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(0, 70), st.lists(st.integers(0, 9), min_size=1, max_size=5), st.booleans(), st.integers(1, 10**5)
    )
    def test_any_rows(self, backend: str, count: int, widths: list[int], masked: bool, step: int) -> None:
        groups = tensors(count, tuple((width,) for width in widths), seed=step)
        rows = torch.rand(count, generator=torch.Generator().manual_seed(step)) < 0.5 if masked else None
        for one, other in zip(after(groups, backend, rows, step), after(groups, "reference", rows, step), strict=True):
            torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)


def test_the_bits_do_not_depend_on_the_threads() -> None:
    groups = tensors(9000)
    rows = torch.rand(9000, generator=torch.Generator().manual_seed(4)) < 0.7
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(after(groups, "native", rows))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"parameters": [None]}, TypeError, r"parameters\[0\] must be a torch.Tensor"),
        ({"gradients": []}, ValueError, "gradients must be as many as the parameters, 1, got 0"),
        ({"gradients": [torch.zeros(2, 4)]}, ValueError, r"gradients\[0\] must have shape \[2, 3\]"),
        ({"gradients": [torch.zeros(2, 3).double()]}, TypeError, r"gradients\[0\] must have the dtype of parameters"),
        ({"first": [torch.zeros(3, 2).mT]}, ValueError, r"first\[0\] must be contiguous"),
        ({"second": [torch.zeros(2, 3, device="meta")]}, ValueError, r"second\[0\] must be on the device"),
        ({"rates": [float("nan")]}, ValueError, r"rates\[0\] must be finite"),
        ({"step": 0}, ValueError, "step must be a whole number from 1 on, got 0"),
        ({"step": True}, ValueError, "step must be a whole number"),
        ({"rows": torch.ones(2)}, TypeError, "rows must be a bool"),
        ({"rows": torch.ones(3) > 0}, ValueError, r"rows must have shape \[2\]"),
        ({"rows": torch.ones(2, device="meta") > 0}, ValueError, "rows must be on the device of the parameters"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {name: [torch.zeros(2, 3)] for name in ("parameters", "gradients", "first", "second")}
    with pytest.raises(error, match=message):
        adam_step(**{**arguments, "rates": [0.1], "step": 1, **change})


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"beta_first": 1.0}, "beta_first must be"),
        ({"beta_second": -0.1}, "beta_second must be"),
        ({"eps": -1.0}, "eps must"),
    ],
)
def test_constants_out_of_range(constants: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adam(**constants)
