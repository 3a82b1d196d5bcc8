"""Attention over a stream's cache: the reference against loops, caching against one pass, native against reference."""

import math
from typing import Any

import pytest
import torch
from backends import needs_native, needs_triton
from dreamkit_kernels.dispatch import native_module
from dreamkit_kernels.stream_attention import Rope3d, Stream, attend, rollout_attention
from dreamkit_kernels.stream_attention.reference import attend_reference, rotate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

STREAM = Stream(2, 3, chunk=2, sink=1, window=3)
ROPE = Rope3d(4, 2, 2, theta=100.0)


def clip(
    frames: int,
    stream: Stream = STREAM,
    rope: Rope3d = ROPE,
    heads: int = 2,
    batch: int = 2,
    seed: int = 0,
    **kind: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, frames * stream.tokens, heads, rope.head_dim)
    q, k, v = (torch.randn(shape, generator=generator, **kind) for _ in range(3))
    return q, k, v


def frames_of(x: Tensor, frames: list[int], tokens: int = STREAM.tokens) -> Tensor:
    return x.unflatten(1, (-1, tokens))[:, frames].flatten(1, 2)


class TestRope:
    def test_the_split_of_wan(self) -> None:
        assert Rope3d.split_evenly(128) == Rope3d(44, 42, 42)
        assert Rope3d.split_evenly(12) == Rope3d(4, 4, 4)

    def test_angles(self) -> None:
        angles = Rope3d(4, 2, 4, theta=100.0).angles(torch.tensor([0, 7]), 2, 3)
        assert angles.shape == (12, 5)
        assert angles.dtype == torch.float64
        expected = torch.tensor([7.0, 7 * 100**-0.5, 1.0, 2.0, 2 * 100**-0.5], dtype=torch.float64)
        torch.testing.assert_close(angles[-1], expected)  # the last token: time 7, row 1, column 2

    def test_turning_keeps_lengths_and_depends_on_differences(self) -> None:
        generator = torch.Generator().manual_seed(0)
        q, k = (torch.randn(1, 1, 1, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        turn = ROPE.angles(torch.arange(1000), 1, 1)
        torch.testing.assert_close(rotate(q, turn[5:6]).norm(), q.norm())
        near = (rotate(q, turn[3:4]) * rotate(k, turn[1:2])).sum()
        far = (rotate(q, turn[903:904]) * rotate(k, turn[901:902])).sum()
        torch.testing.assert_close(near, far)

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            ((3, 2, 2), ValueError, "time must be even"),
            ((2, -2, 2), ValueError, "rows must be even and not negative"),
            ((2, 2, 2.0), TypeError, "columns must be an int"),
            ((0, 0, 0), ValueError, "2 to 256 channels"),
            ((200, 100, 100), ValueError, "2 to 256 channels"),
            ((2, 2, 2, 1.0), ValueError, "theta must be above 1"),
        ],
    )
    def test_what_is_refused(self, wrong: tuple[Any, ...], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Rope3d(*wrong)


class TestStream:
    def test_what_a_chunk_sees(self) -> None:
        stream = Stream(1, 1, chunk=3, sink=3, window=4)
        assert stream.visible(0, 3) == [0, 1, 2]
        assert stream.visible(3, 6) == [0, 1, 2, 3, 4, 5]
        assert stream.visible(9, 12) == [0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
        assert Stream(1, 1, chunk=2, sink=0, window=0).visible(4, 6) == [4, 5]

    @pytest.mark.parametrize("wrong", [{"height": 0}, {"chunk": 0}, {"sink": -1}, {"window": -1}])
    def test_what_is_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match="must be at least"):
            Stream(**{"height": 2, "width": 2, **wrong})
        with pytest.raises(TypeError, match="must be an int"):
            Stream(2, 2, chunk=1.5)  # type: ignore[arg-type]


class TestReference:
    def test_by_hand(self) -> None:
        q, k, v = clip(3, dtype=torch.float64)
        q = q[:, -STREAM.tokens :]
        out = attend(q, k, v, STREAM, ROPE)
        angles = ROPE.angles(torch.arange(3), 2, 3)
        for sample, head, query in ((0, 0, 0), (1, 1, 4), (0, 1, 5)):
            turned = [
                [complex(x[2 * i], x[2 * i + 1]) * complex(math.cos(a[i]), math.sin(a[i])) for i in range(4)]
                for x, a in [
                    (q[sample, query, head].tolist(), angles[12 + query].tolist()),
                    *((k[sample, j, head].tolist(), angles[j].tolist()) for j in range(18)),
                ]
            ]
            scores = [
                sum((one * two.conjugate()).real for one, two in zip(turned[0], key, strict=True)) / math.sqrt(8)
                for key in turned[1:]
            ]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
            torch.testing.assert_close(out[sample, query, head], weights @ v[sample, :, head])

    def test_gradients(self) -> None:
        q, k, v = (x.requires_grad_() for x in clip(2, Stream(1, 2), batch=1, dtype=torch.float64))
        assert gradcheck(lambda q, k, v: attend(q[:, 2:], k, v, Stream(1, 2), ROPE), (q, k, v), fast_mode=True)

    def test_only_differences_of_times_matter(self) -> None:
        q, k, v = clip(3, dtype=torch.float64)
        q = q[:, -STREAM.tokens :]
        shifted = attend(q, k, v, STREAM, ROPE, k_times=[100, 101, 102])
        torch.testing.assert_close(shifted, attend(q, k, v, STREAM, ROPE))
        apart = attend(q, k, v, STREAM, ROPE, k_times=[0, 101, 102])
        assert not torch.allclose(apart, shifted)


@pytest.mark.parametrize("backend", ["native", "reference"])
class TestCaching:
    def test_a_roll_out_is_what_a_cache_gives(self, backend: str) -> None:
        """A ring of slots that is written in place, frame by frame, in whatever order they come free."""
        q, k, v = clip(11)
        whole = rollout_attention(q, k, v, STREAM, ROPE, backend)
        slots = STREAM.sink + STREAM.window + STREAM.chunk
        cache_k, cache_v = (torch.full_like(frames_of(k, list(range(slots))), float("nan")) for _ in range(2))
        holds = [-1] * slots
        tokens = STREAM.tokens
        for start in range(0, 11, STREAM.chunk):
            stop = min(11, start + STREAM.chunk)
            visible = STREAM.visible(start, stop)
            free = [slot for slot in range(slots) if holds[slot] not in visible]
            for frame in range(start, stop):
                slot = free.pop()
                holds[slot] = frame
                cache_k[:, slot * tokens : (slot + 1) * tokens] = frames_of(k, [frame])
                cache_v[:, slot * tokens : (slot + 1) * tokens] = frames_of(v, [frame])
            times = [visible.index(frame) if frame in visible else -1 for frame in holds]
            part = attend(
                frames_of(q, list(range(start, stop))), cache_k, cache_v, STREAM, ROPE, times, backend=backend
            )
            torch.testing.assert_close(part, frames_of(whole, list(range(start, stop))), rtol=1e-5, atol=1e-6)

    def test_a_short_clip_is_one_masked_pass(self, backend: str) -> None:
        """While nothing has left the window, positions are absolute and the mask is block-causal."""
        stream = Stream(2, 3, chunk=2, sink=2, window=8)
        q, k, v = clip(8, stream)
        angles = ROPE.angles(torch.arange(8), 2, 3)
        chunk = torch.arange(8 * stream.tokens) // (stream.chunk * stream.tokens)
        allowed = (chunk[:, None] >= chunk[None, :])[None, None]
        expected = attend_reference(q, k, v, angles, angles, allowed)
        torch.testing.assert_close(rollout_attention(q, k, v, stream, ROPE, backend), expected, rtol=1e-4, atol=1e-5)

    def test_what_left_the_window_has_no_influence(self, backend: str) -> None:
        q, k, v = clip(10)
        changed = k.clone()
        changed[:, 2 * STREAM.tokens : 5 * STREAM.tokens] = 7.0  # frames 2 to 4; the last chunk sees 0 and 5 to 9
        last = slice(8 * STREAM.tokens, None)
        one, two = (rollout_attention(q, keys, v, STREAM, ROPE, backend)[:, last] for keys in (k, changed))
        assert torch.equal(one, two)


def both_ways(
    kernels: str, q: Tensor, k: Tensor, v: Tensor, stream: Stream, rope: Rope3d, **options: Any
) -> list[list[Tensor]]:
    """Output and gradients by a backend's kernels, and by the reference."""
    results = []
    for backend in (kernels, "reference"):
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attend(*given, stream, rope, **options, backend=backend)
        incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
        results.append([out.detach(), *torch.autograd.grad(out, given, incoming)])
    return results


BACKENDS = [pytest.param("native", marks=needs_native), pytest.param("triton", marks=needs_triton)]


@pytest.mark.parametrize("backend", BACKENDS)
class TestKernels:
    @pytest.mark.parametrize(
        ("height", "width", "rope", "heads", "frames", "made"),
        [
            (1, 1, Rope3d(2, 0, 0), 1, 1, 1),
            (2, 3, ROPE, 2, 4, 2),
            (4, 5, Rope3d.split_evenly(12), 3, 5, 1),
            (5, 7, Rope3d.split_evenly(64), 2, 9, 3),
            (8, 8, Rope3d.split_evenly(32), 1, 15, 3),
            (3, 3, Rope3d.split_evenly(128), 1, 3, 3),
            (2, 2, Rope3d(6, 8, 8), 2, 2, 2),
        ],
    )
    def test_as_the_reference(
        self, backend: str, height: int, width: int, rope: Rope3d, heads: int, frames: int, made: int
    ) -> None:
        stream = Stream(height, width)
        frames = frames if backend == "native" else min(frames, 5)  # the interpreter takes milliseconds a tile
        q, k, v = clip(frames, stream, rope, heads)
        kernels, reference = both_ways(backend, q[:, -made * stream.tokens :], k, v, stream, rope)
        for name, one, other in zip(("out", "dq", "dk", "dv"), kernels, reference, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")

    def test_float16(self, backend: str) -> None:
        """Not bfloat16, which the interpreter multiplies as if its bits were integers."""
        q, k, v = clip(3)
        halves = [x.half() for x in (q, k, v)]
        if backend == "native":
            with pytest.raises(ValueError, match="takes float32 tensors"):
                attend(*halves, STREAM, ROPE, backend=backend)
            return
        exact = both_ways("reference", q, k, v, STREAM, ROPE)[0]
        for one, other in zip(both_ways(backend, *halves, STREAM, ROPE)[0], exact, strict=True):
            assert one.dtype == torch.float16
            torch.testing.assert_close(one.float(), other, rtol=0, atol=5e-3 * float(other.abs().max()))

    def test_slots_that_are_empty_and_out_of_order(self, backend: str) -> None:
        q, k, v = clip(6)
        k[:, 2 * STREAM.tokens : 3 * STREAM.tokens] = float("nan")
        v[:, 2 * STREAM.tokens : 3 * STREAM.tokens] = float("nan")
        q = q[:, -2 * STREAM.tokens :]
        kernels, reference = both_ways(backend, q, k, v, STREAM, ROPE, k_times=[4, 0, -1, 3, 1, 2], q_times=[3, 4])
        for one, other in zip(kernels, reference, strict=True):
            assert bool(torch.isfinite(one).all())
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert not kernels[2][:, 2 * STREAM.tokens : 3 * STREAM.tokens].any()

    @pytest.mark.parametrize("block", [1, 4, 7, 64])
    def test_blocks(self, backend: str, block: int) -> None:
        q, k, v = clip(5)
        q = q[:, -2 * STREAM.tokens :]
        shape = (2, 2, -(-q.shape[1] // block), -(-k.shape[1] // block))
        blocks = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
        blocks[0, 0, 0] = False  # queries that see nothing
        blocks[0, 1, 0, 0] = True
        kernels, reference = both_ways(backend, q, k, v, STREAM, ROPE, blocks=blocks, block=block)
        for one, other in zip(kernels, reference, strict=True):
            assert bool(torch.isfinite(one).all())
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert not kernels[0][0, : min(block, q.shape[1]), 0].any()

    def test_nothing_visible(self, backend: str) -> None:
        q, k, v = clip(1)
        kernels, reference = both_ways(backend, q, k, v, STREAM, ROPE, k_times=[-1], q_times=[0])
        for one, other in zip(kernels, reference, strict=True):
            assert not one.any()
            torch.testing.assert_close(one, other)
        empty = attend(q[:, :0], k, v, STREAM, ROPE, backend=backend)
        assert empty.shape == (2, 0, 2, 8)

    def test_huge_scores_and_nonsense(self, backend: str) -> None:
        q, k, v = clip(2)
        kernels, reference = (
            attend(1e4 * q, 1e4 * k, v, STREAM, ROPE, backend=name) for name in (backend, "reference")
        )
        torch.testing.assert_close(kernels, reference, rtol=1e-3, atol=1e-3)
        k[0, 0, 0, 0] = float("nan")
        k[0, 1, 1, 0] = float("inf")
        assert attend(q, k, v, STREAM, ROPE, backend=backend).shape == q.shape

    def test_the_bits_do_not_depend_on_the_threads(self, backend: str) -> None:
        side, frames = (8, 9) if backend == "native" else (2, 5)
        stream, rope = Stream(side, side), Rope3d.split_evenly(32)
        q, k, v = clip(frames, stream, rope)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                given = [x.clone().requires_grad_() for x in (q, k, v)]
                out = rollout_attention(*given, stream, rope, backend)
                results.append([out.detach(), *torch.autograd.grad(out.square().sum(), given)])
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))

    def test_it_compiles(self, backend: str) -> None:
        q, k, v = clip(5)
        q.requires_grad_()

        def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return rollout_attention(q, k, v, STREAM, ROPE, backend).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected, gradient = (torch.autograd.grad(run(q, k, v), q)[0] for run in (loss, compiled))
        torch.testing.assert_close(gradient, expected)

    def test_the_operator_is_registered_well(self, backend: str) -> None:
        q, k, v = (x.requires_grad_() for x in clip(2))
        turn = torch.rand(q.shape[1], 8)
        arguments = (q, k, v, turn, turn, torch.tensor([0, 1]), None, 64, backend)
        torch.library.opcheck(torch.ops.dreamkit.stream_attention.default, arguments)

    @settings(max_examples=30, deadline=None)
    @given(
        st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3),
        st.integers(1, 3), st.integers(0, 6), st.integers(0, 4), st.integers(1, 4), st.integers(0, 10**6),
    )  # fmt: skip
    def test_any_stream(
        self, backend: str, height: int, width: int, rows: int, columns: int, time: int, heads: int, frames: int,
        sink: int, chunk: int, seed: int,
    ) -> None:  # fmt: skip
        stream = Stream(height, width, chunk, sink, 2)
        rope = Rope3d(2 * time, 2 * rows, 2 * columns)
        q, k, v = clip(frames, stream, rope, heads, 1, seed)
        kernels, reference = (rollout_attention(q, k, v, stream, rope, name) for name in (backend, "reference"))
        torch.testing.assert_close(kernels, reference, rtol=1e-4, atol=1e-5)


HALF = 2.0**-8
"""Half a step of bfloat16 at 1: what rounding a number to it can change."""


@needs_native
@pytest.mark.parametrize("multiplies", [True, False])
class TestBfloat16:
    """On a CPU: by a processor that multiplies bfloat16 (where this one does), and by one that doesn't."""

    @pytest.fixture(autouse=True)
    def processor(self, multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if not multiplies:
            monkeypatch.setattr(native_module(), "has_bfloat16", lambda: False)
        elif not native_module().has_bfloat16():
            pytest.skip("this processor does not multiply bfloat16")

    @pytest.mark.parametrize(
        ("height", "width", "rope", "heads", "frames", "made"),
        [
            (1, 1, Rope3d(2, 0, 0), 1, 1, 1),
            (2, 3, ROPE, 2, 4, 2),
            (4, 5, Rope3d.split_evenly(12), 3, 5, 1),
            (5, 7, Rope3d.split_evenly(64), 2, 9, 3),
            (8, 8, Rope3d.split_evenly(32), 1, 15, 3),
            (3, 3, Rope3d.split_evenly(128), 1, 3, 3),
            (2, 2, Rope3d(86, 84, 84), 2, 2, 2),
        ],
    )
    def test_as_the_reference(self, height: int, width: int, rope: Rope3d, heads: int, frames: int, made: int) -> None:
        """Turned queries and keys, weights and the result are rounded; what is summed up is not."""
        stream = Stream(height, width)
        given = [x.bfloat16() for x in clip(frames, stream, rope, heads)]
        given[0] = given[0][:, -made * stream.tokens :]
        results = []
        for dtype in (torch.bfloat16, torch.float64):
            inputs = [x.to(dtype).requires_grad_() for x in given]
            out = attend(*inputs, stream, rope)
            incoming = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).bfloat16().to(dtype)
            results.append([out.detach(), *torch.autograd.grad(out, inputs, incoming)])
        for name, one, other in zip(("out", "dq", "dk", "dv"), *results, strict=True):
            assert one.dtype == torch.bfloat16
            error = float((one.double() - other).abs().max() / other.abs().max().clamp_min(1e-6))
            assert error < 4 * HALF, f"{name} is off by {error}"

    def test_slots_that_are_empty_and_out_of_order(self, multiplies: bool) -> None:
        q, k, v = (x.bfloat16() for x in clip(6))
        k[:, 2 * STREAM.tokens : 3 * STREAM.tokens] = float("nan")
        q = q[:, -2 * STREAM.tokens :]
        times = {"k_times": [4, 0, -1, 3, 1, 2], "q_times": [3, 4]}
        out = attend(q, k, v, STREAM, ROPE, **times)
        expected = attend(q.double(), k.double(), v.double(), STREAM, ROPE, **times)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=4 * HALF)

    def test_blocks(self, multiplies: bool) -> None:
        q, k, v = (x.bfloat16() for x in clip(5))
        blocks = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.5
        out = attend(q, k, v, STREAM, ROPE, blocks=blocks, block=4)
        expected = attend(q.double(), k.double(), v.double(), STREAM, ROPE, blocks=blocks, block=4)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=8 * HALF)

    def test_nothing_visible_and_nonsense(self, multiplies: bool) -> None:
        q, k, v = (x.bfloat16() for x in clip(2))
        assert not attend(q, k, v, STREAM, ROPE, k_times=[-1, -1], q_times=[0, 1]).any()
        assert attend(q[:, :0], k, v, STREAM, ROPE).shape == (2, 0, 2, 8)
        huge = attend(1e4 * q, 1e4 * k, v, STREAM, ROPE)
        assert bool(torch.isfinite(huge).all())
        k[0, 0, 0, 0] = float("nan")
        k[0, 1, 1, 0] = float("inf")
        out = attend(q, k, v, STREAM, ROPE)
        assert bool(torch.isfinite(out[1]).all())

    def test_the_bits_do_not_depend_on_the_threads(self, multiplies: bool) -> None:
        stream, rope = Stream(8, 8), Rope3d.split_evenly(32)
        q, k, v = (x.bfloat16() for x in clip(9, stream, rope, heads=3))
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                results.append(rollout_attention(q, k, v, stream, rope))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[0], results[2])

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3),
        st.integers(1, 3), st.integers(0, 6), st.integers(0, 4), st.integers(1, 4), st.integers(0, 10**6),
    )  # fmt: skip
    def test_any_stream(
        self, multiplies: bool, height: int, width: int, rows: int, columns: int, time: int, heads: int, frames: int,
        sink: int, chunk: int, seed: int,
    ) -> None:  # fmt: skip
        stream = Stream(height, width, chunk, sink, 2)
        rope = Rope3d(2 * time, 2 * rows, 2 * columns)
        given = [x.bfloat16() for x in clip(frames, stream, rope, heads, 1, seed)]
        out = rollout_attention(*given, stream, rope)
        expected = rollout_attention(*(x.double() for x in given), stream, rope)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=8 * HALF)


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"q": None}, TypeError, "q must be a torch.Tensor, got NoneType"),
            ({"k": torch.zeros(1, 6, 2, 8).double()}, TypeError, "k must have the dtype of q"),
            ({"v": torch.zeros(1, 6, 2, 8, device="meta")}, ValueError, "v must be on the device of q"),
            ({"q": torch.zeros(1, 6, 2, 6)}, ValueError, r"q must have shape \[B, N, H, 8\]"),
            ({"k": torch.zeros(1, 6, 3, 8)}, ValueError, "k must have the batch and heads of q"),
            ({"k": torch.zeros(1, 7, 2, 8)}, ValueError, "k must hold whole frames of 6 tokens"),
            ({"v": torch.zeros(1, 12, 2, 8)}, ValueError, "v must have the shape of k"),
            ({"k_times": [0, 1]}, ValueError, "k_times must hold a time for each of the 1 frames, got 2"),
            ({"q_times": []}, ValueError, "q_times must hold a time for each"),
            ({"blocks": torch.ones(1, 2, 1, 1)}, TypeError, "blocks must be a bool"),
            ({"blocks": torch.ones(1, 2, 1, 2) > 0}, ValueError, "blocks must have shape"),
            ({"blocks": torch.ones(1, 2, 1, 1) > 0, "block": 0}, ValueError, "block must be at least 1"),
            ({"backend": "flash"}, ValueError, "backend must be one of"),
        ],
    )
    def test_what_is_refused(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments: dict[str, Any] = {name: torch.zeros(1, 6, 2, 8) for name in ("q", "k", "v")}
        with pytest.raises(error, match=message):
            attend(**{**arguments, "stream": STREAM, "rope": ROPE, **change})

    def test_a_roll_out_needs_keys_for_its_queries(self) -> None:
        with pytest.raises(ValueError, match="k must have the shape of q"):
            rollout_attention(torch.zeros(1, 6, 2, 8), *(torch.zeros(1, 12, 2, 8) for _ in range(2)), STREAM, ROPE)
