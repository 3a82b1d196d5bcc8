"""A stream over the rolling cache against one pass over the whole clip, formulas, and itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from dreamkit_kernels.stream_attention import Rope3d, Stream
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dreamkit.errors import ConfigError
from dreamkit.video.attention_cache import AttentionCache, SinkKind
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.sparse_attention import Sparsity

STREAM = Stream(1, 2, chunk=2, sink=2, window=4)
ROPE = Rope3d.split_evenly(12)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network() -> CausalTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CausalTransformer.from_config(
            {
                "patch_size": [1, 2, 2],
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 3,
                "out_channels": 3,
                "text_dim": 7,
                "freq_dim": 10,
                "ffn_dim": 22,
                "num_layers": 3,
            }
        )
    return made.requires_grad_(False)


def clip(frames: int, seed: int = 1, batch: int = 2, **kind: Any) -> Tensor:
    return torch.randn(batch, 3, frames, 2, 4, generator=torch.Generator().manual_seed(seed), **kind)


def prompt(seed: int = 2, batch: int = 2, **kind: Any) -> Tensor:
    return torch.randn(batch, 5, 7, generator=torch.Generator().manual_seed(seed), **kind)


def write(network: CausalTransformer, x: Tensor, text: Tensor, cache: AttentionCache, chunk: int = 2) -> Tensor:
    """Stream a clip into the cache; the predictions of the writing passes."""
    zero = torch.zeros(len(x))
    return torch.cat([network.step(part, zero, text, cache, write=True) for part in x.split(chunk, dim=2)], dim=2)


def small_cache(sink: SinkKind = "first", stream: Stream = STREAM, **settings: Any) -> AttentionCache:
    """One layer, one head, whose keys are the numbers of the frames."""
    return AttentionCache(1, 1, Rope3d(2, 0, 0), stream, sink=sink, **settings)


def push(cache: AttentionCache, numbers: Sequence[float]) -> None:
    """Write a chunk whose keys and values are these numbers, a frame each."""
    view = cache.next_view(len(numbers))
    frames = torch.tensor(numbers, dtype=torch.float64).repeat_interleave(cache.stream.tokens)
    frames = frames[None, :, None, None].expand(1, -1, 1, 2).float()
    cache.attend(0, view, frames, frames, frames)
    cache.commit(view)


def seen(cache: AttentionCache) -> list[float]:
    """The numbers of the visible frames in the order of the stream."""
    view = cache.next_view(1)
    return [float(cache._keys[0, 0, slot, 0, 0, 0]) for slot in view.context]


class TestAgainstOnePass:
    @pytest.mark.parametrize("sink", ["first", "none"])
    @pytest.mark.parametrize("stream", [STREAM, Stream(1, 2, chunk=3, sink=4, window=3), Stream(1, 2, 1, 1, 3)])
    def test_far_past_the_window(self, network: CausalTransformer, stream: Stream, sink: SinkKind) -> None:
        frames = 7 * stream.chunk + 1
        x, text = clip(frames), prompt()
        cache = network.new_cache(stream, batch=2, sink=sink)
        expected = network(x, torch.zeros(2), text, stream=replace(stream, sink=stream.sink if sink == "first" else 0))
        got = write(network, x, text, cache, stream.chunk)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
        assert cache.frames == frames

    def test_in_float64(self, network: CausalTransformer) -> None:
        x, text = clip(13, dtype=torch.float64), prompt(dtype=torch.float64)
        double = network.double()
        cache = double.new_cache(STREAM, batch=2)
        expected = double(x, torch.zeros(2), text, stream=STREAM)
        # As exact as the sinusoidal features of the timesteps, which are float32 in both.
        torch.testing.assert_close(write(double, x, text, cache), expected, atol=1e-12, rtol=0)

    def test_denoising_steps_leave_no_trace(self, network: CausalTransformer) -> None:
        x, text = clip(10), prompt()
        plain, disturbed = (network.new_cache(STREAM, batch=2) for _ in range(2))
        expected = write(network, x, text, plain)
        parts = []
        for part in x.split(2, dim=2):
            for timestep in (1000.0, 500.0):
                network.step(torch.randn_like(part), torch.full((2,), timestep), text, disturbed)
            parts.append(network.step(part, torch.zeros(2), text, disturbed, write=True))
        assert torch.equal(torch.cat(parts, dim=2), expected)

    def test_a_batch_of_two_is_two_streams(self, network: CausalTransformer) -> None:
        x, text = clip(10), prompt()
        both = write(network, x, text, network.new_cache(STREAM, batch=2))
        for sample in range(2):
            alone = write(network, x[[sample]], text[[sample]], network.new_cache(STREAM))
            torch.testing.assert_close(both[[sample]], alone, atol=1e-6, rtol=0)

    def test_gradients_of_a_step(self, network: CausalTransformer) -> None:
        """What the cache holds is constant to them, and what is written later doesn't change them."""
        x, text = clip(10, batch=1), prompt(batch=1)
        caches = [network.new_cache(STREAM) for _ in range(2)]
        for cache in caches:
            write(network, x[:, :, :8], text, cache)
        chunk, timesteps = x[:, :, 8:], torch.tensor([700.0])
        expected = network.step(chunk, timesteps, text, caches[0])
        network.requires_grad_(True)
        leaf = chunk.clone().requires_grad_()
        out = network.step(leaf, timesteps, text, caches[1], write=True)
        write(network, x[:, :, :6], text, caches[1])  # what follows in the stream must not change the gradient
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        out.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert leaf.grad is not None
        with torch.no_grad():
            step, nudge = 1e-2, torch.randn(chunk.shape, generator=torch.Generator().manual_seed(3))
            high, low = (network.step(chunk + s * step * nudge, timesteps, text, caches[0]).sum() for s in (1, -1))
        torch.testing.assert_close((leaf.grad * nudge).sum(), (high - low) / (2 * step), atol=1e-3, rtol=1e-3)

    def test_autocast_and_inference_mode(self, network: CausalTransformer) -> None:
        x, text = clip(8), prompt()
        expected = write(network, x, text, network.new_cache(STREAM, batch=2))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            cache = network.new_cache(STREAM, batch=2)
            rough = write(network, x, text, cache)
        torch.testing.assert_close(rough.float(), expected, atol=0.05, rtol=0.05)
        cache.reset()
        torch.testing.assert_close(write(network, x, text, cache), expected, atol=0, rtol=0)


class TestPlaces:
    """Which frames are seen, in what order, by their numbers."""

    def test_the_window_moves_and_the_sink_stays(self) -> None:
        first, none = small_cache("first"), small_cache("none")
        for chunk in range(6):
            for cache in (first, none):
                push(cache, [2 * chunk, 2 * chunk + 1])
        assert seen(first) == [0, 1, 8, 9, 10, 11]
        assert seen(none) == [8, 9, 10, 11]
        assert (first.frames, first.visible) == (12, 6)

    @settings(max_examples=60)
    @given(
        chunk=st.integers(1, 4),
        more=st.integers(0, 4),
        sink=st.integers(1, 5),
        frames=st.lists(st.integers(1, 4), min_size=1, max_size=12),
        cut=st.integers(0, 12),
        kind=st.sampled_from(["none", "first", "shot"]),
    )
    def test_any_chunks(self, chunk: int, more: int, sink: int, frames: list[int], cut: int, kind: SinkKind) -> None:
        stream = Stream(1, 1, chunk=chunk, sink=sink, window=chunk + more)
        cache = small_cache(kind, stream)
        kept: list[int] = []  # the sink
        rest: list[int] = []
        count = 0
        for number, size in enumerate(frames):
            if kind == "shot" and number == cut:
                cache.new_shot()
                kept = []
            own = list(range(count, count + min(size, chunk)))
            count += len(own)
            push(cache, own)
            for frame in own:
                if kind != "none" and len(kept) < sink:
                    kept.append(frame)
                else:
                    rest.append(frame)
            rest = rest[-stream.window :]
            assert seen(cache) == sorted(kept + rest)
        assert cache.frames == count

    def test_a_new_shot(self) -> None:
        cache = small_cache("shot")
        for chunk in range(4):
            push(cache, [2 * chunk, 2 * chunk + 1])
        assert seen(cache) == [0, 1, 4, 5, 6, 7]
        cache.new_shot()
        assert seen(cache) == [4, 5, 6, 7]
        push(cache, [8, 9])
        push(cache, [10, 11])
        assert seen(cache) == [6, 7, 8, 9, 10, 11]  # 8 and 9 are the sink, in their place among the others
        for chunk in range(6, 9):
            push(cache, [2 * chunk, 2 * chunk + 1])
        assert seen(cache) == [8, 9, 14, 15, 16, 17]

    def test_the_average(self) -> None:
        """S <- a S + (1 - a) f, the oldest frame first, against scalars."""
        decay, cache = 0.9, small_cache("ema", ema_decay=0.9)
        numbers = [float(number**2) for number in range(20)]
        for start in range(0, 20, 2):
            push(cache, numbers[start : start + 2])
        expected = numbers[:2]
        for place, number in enumerate(numbers[2:-4]):
            expected[place % 2] = decay * expected[place % 2] + (1 - decay) * number
        assert seen(cache) == pytest.approx(expected + numbers[-4:], rel=1e-6)

    def test_the_average_is_float32_in_a_cache_of_bfloat16(self) -> None:
        decay, cache = 0.999, small_cache("ema", ema_decay=0.999, dtype=torch.bfloat16)
        push(cache, [0.0, 0.0])
        for _ in range(52):
            push(cache, [1.0, 1.0])
        expected = 1 - decay**50  # of the first two frames of ones only the window's four have not left
        assert [item.dtype for item in cache._averages] == [torch.float32] * 2
        assert float(cache._averages[0][0, 0, 0, 0, 0, 0]) == pytest.approx(expected, rel=1e-4)
        assert seen(cache)[0] == pytest.approx(expected, rel=2**-8)

    def test_values_are_averaged_as_keys_are(self) -> None:
        cache = small_cache("ema")
        for start in range(0, 12, 2):
            push(cache, [start, start + 1])
        assert torch.equal(cache._keys, cache._values)


class TestState:
    def test_snapshot_and_restore(self, network: CausalTransformer) -> None:
        for sink in ("first", "ema", "none", "shot"):
            text = prompt()
            cache = network.new_cache(STREAM, batch=2, sink=sink, keep_inputs=True)  # type: ignore[arg-type]
            write(network, clip(9), text, cache)
            saved = cache.snapshot()
            more = clip(12, seed=5)
            expected = write(network, more, text, cache)
            content = [tensor.clone() for tensor in cache._tensors()]
            write(network, clip(5, seed=6), prompt(seed=7), cache)
            cache.restore(saved)
            assert cache.frames == 9
            assert torch.equal(write(network, more, text, cache), expected)
            assert all(torch.equal(one, other) for one, other in zip(content, cache._tensors(), strict=True))
            cache.restore(saved)  # a snapshot is not used up
            assert torch.equal(write(network, more, text, cache), expected)

    def test_reset(self, network: CausalTransformer) -> None:
        cache = network.new_cache(STREAM, batch=2, sink="ema")
        expected = write(network, clip(14), prompt(), cache)
        cache.reset()
        assert (cache.frames, cache.visible) == (0, 0)
        assert torch.equal(write(network, clip(14), prompt(), cache), expected)

    def test_memory_stays(self, network: CausalTransformer) -> None:
        cache = network.new_cache(STREAM, batch=2, sink="ema", keep_inputs=True)
        before = cache.bytes
        places = [tensor.data_ptr() for tensor in cache._tensors()]
        frame = 3 * 2 * 24 * 2 * 2 * 4  # layers, batch, width, tokens, keys and values, bytes
        assert before == frame * (STREAM.sink + STREAM.window + STREAM.chunk) + frame * STREAM.sink + 8 * 2 * 2 * 24 * 4
        write(network, clip(200), prompt(), cache)
        assert cache.frames == 200
        assert cache.bytes == before
        assert [tensor.data_ptr() for tensor in cache._tensors()] == places

    def test_no_position_runs_out(self, network: CausalTransformer) -> None:
        """Frame 10 + k and frame 100,000 + k come out equal, bit for bit, from equal frames in the window."""
        text, near = prompt(), network.new_cache(STREAM, batch=2)
        far = network.new_cache(STREAM, batch=2)
        write(network, clip(10), text, near)
        write(network, clip(2), text, far)  # the sink
        ring = STREAM.window + STREAM.chunk
        while far.frames < 100_006 or (far.frames - 6) % ring:
            far.commit(far.next_view(2))
        write(network, clip(10)[:, :, 6:], text, far)
        # Deeper layers also saw what was before: make the window's content equal, by reading its frames again.
        for cache in (near, far):
            network.recache(text, cache, clip(6, seed=9))
        assert far.frames >= 100_010
        more = clip(12, seed=4)
        assert torch.equal(write(network, more, text, near), write(network, more, text, far))
        far.commit(far.next_view(1))  # from here on the frames lie elsewhere in the ring
        for cache in (near, far):
            network.recache(text, cache, clip(6, seed=9))
        torch.testing.assert_close(write(network, more, text, near), write(network, more, text, far), atol=1e-5, rtol=0)

    def test_the_text_is_read_once(self, network: CausalTransformer) -> None:
        reads = []
        network.condition_embedder.text_embedder.register_forward_hook(lambda *_: reads.append(1))
        cache, text, x = network.new_cache(STREAM, batch=2), prompt(), clip(2)
        with torch.no_grad():
            first = [network.step(x, torch.zeros(2), text, cache) for _ in range(3)][-1]
            assert len(reads) == 1
            other = network.step(x, torch.zeros(2), prompt(seed=8), cache)
            assert len(reads) == 2
            assert not torch.allclose(first, other)
            assert torch.equal(network.step(x, torch.zeros(2), text, cache), first)
            text.copy_(prompt(seed=8))  # the same tensor, changed in place
            assert torch.equal(network.step(x, torch.zeros(2), text, cache), other)


class TestRecache:
    def test_is_to_have_streamed_with_the_new_text(self, network: CausalTransformer) -> None:
        """As long as nothing has left the window."""
        x, old, new = clip(6), prompt(), prompt(seed=8)
        cache, fresh = (network.new_cache(STREAM, batch=2, keep_inputs=True) for _ in range(2))
        write(network, x, old, cache)
        network.recache(new, cache)
        write(network, x, new, fresh)
        assert torch.equal(cache._keys, fresh._keys)
        assert torch.equal(cache._values, fresh._values)
        more = clip(8, seed=5)
        assert torch.equal(write(network, more, new, cache), write(network, more, new, fresh))

    @pytest.mark.parametrize("given", [False, True])
    @pytest.mark.parametrize("frames", [5, 12, 17])
    def test_is_a_stream_that_began_with_the_visible_frames(
        self, network: CausalTransformer, given: bool, frames: int
    ) -> None:
        x, old, new = clip(frames), prompt(), prompt(seed=8)
        features = torch.randn(2, frames, 2, 24, generator=torch.Generator().manual_seed(3))
        cache = network.new_cache(STREAM, batch=2, keep_inputs=not given)
        for start in range(0, frames, 2):
            own = slice(start, start + 2)
            network.step(x[:, :, own], torch.zeros(2), old, cache, features[:, own], write=True)
        order = STREAM.visible(frames, frames)
        if given:
            network.recache(new, cache, x[:, :, order], features[:, order])
        else:
            network.recache(new, cache)
        fresh = network.new_cache(STREAM, batch=2)
        first = len(order) % 2  # an odd number of frames begins with a chunk of one
        starts = [0, *range(first, len(order), 2)] if first else list(range(0, len(order), 2))
        for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
            own = order[start:stop]
            network.step(x[:, :, own], torch.zeros(2), new, fresh, features[:, own], write=True)
        more = clip(6, seed=5)
        expected = write(network, more, new, fresh)
        torch.testing.assert_close(write(network, more, new, cache), expected, atol=1e-5, rtol=0)

    def test_what_is_not_equal(self, network: CausalTransformer) -> None:
        """Once frames have left, what they gave to the deeper layers of those that are visible is gone."""
        x, old, new = clip(12), prompt(), prompt(seed=8)
        cache, fresh = (network.new_cache(STREAM, batch=2, keep_inputs=True) for _ in range(2))
        write(network, x, old, cache)
        network.recache(new, cache)
        write(network, x, new, fresh)
        keys, expected = (item._keys[:, :, list(item.next_view(2).context)] for item in (cache, fresh))
        torch.testing.assert_close(keys[0], expected[0], atol=1e-5, rtol=0)  # the first layer sees the frame alone
        assert not torch.allclose(keys[-1], expected[-1], atol=1e-3)

    def test_an_average_is_kept(self, network: CausalTransformer) -> None:
        cache = network.new_cache(STREAM, batch=2, sink="ema", keep_inputs=True)
        write(network, clip(12), prompt(), cache)
        before = cache.snapshot()
        network.recache(prompt(seed=8), cache)
        assert torch.equal(cache._keys[:, :, :2], before.tensors[0][:, :, :2])
        assert not torch.equal(cache._keys[:, :, 2:], before.tensors[0][:, :, 2:])
        assert cache.frames == 12

    def test_twice_is_once(self, network: CausalTransformer) -> None:
        cache = network.new_cache(STREAM, batch=2, sink="shot", keep_inputs=True)
        write(network, clip(8), prompt(), cache)
        cache.new_shot()
        write(network, clip(4, seed=3), prompt(), cache)
        network.recache(prompt(seed=8), cache)
        once = cache.snapshot()
        network.recache(prompt(seed=9), cache)
        assert not torch.equal(cache._keys, once.tensors[0])
        network.recache(prompt(seed=8), cache)
        order = list(cache.next_view(1).context)
        assert torch.equal(cache._keys[:, :, order], once.tensors[0][:, :, order])


class _NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a device: reading a number out of a tensor, or a size that data decides."""

    refused = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in self.refused, name
        return func(*args, **(kwargs or {}))


class TestWaiting:
    @pytest.fixture(autouse=True)
    def reference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DREAMKIT_BACKEND", "reference")

    def test_the_mode_sees_it(self) -> None:
        with pytest.raises(AssertionError, match="_local_scalar_dense"), _NoWaiting():
            torch.ones(1).item()

    @pytest.mark.parametrize("sparsity", [None, Sparsity(keep=0.3, block=2), Sparsity(mass=0.5, block=3)])
    @pytest.mark.parametrize("sink", ["none", "first", "ema", "shot"])
    def test_a_stream_never_waits_for_the_device(
        self, network: CausalTransformer, sink: SinkKind, sparsity: Sparsity | None
    ) -> None:
        cache = network.new_cache(STREAM, batch=2, sink=sink, keep_inputs=True, sparsity=sparsity)
        x, text = clip(12), prompt()
        with torch.no_grad(), _NoWaiting():
            write(network, x, text, cache)
            network.recache(prompt(seed=3), cache)
            saved = cache.snapshot()
            write(network, x, text, cache)
            cache.restore(saved)
            cache.reset()


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"stream": Stream(1, 2, chunk=5, window=4)}, "chunk of 5 frames does not fit into a window of 4"),
            ({"stream": Stream(1, 2, chunk=2, sink=0, window=4)}, "sink's number of frames is 0"),
            ({"sink": "last"}, "The sink 'last' is not known"),
            ({"ema_decay": 1.0}, "decay is 1.0"),
            ({"batch": 0}, "batch is 0"),
        ],
    )
    def test_caches(self, network: CausalTransformer, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            network.new_cache(**{"stream": STREAM, **changes})

    def test_steps(self, network: CausalTransformer) -> None:
        cache, text = network.new_cache(STREAM, batch=2), prompt()
        for x, message in (
            (clip(3), "chunk's number of frames is 3"),
            (clip(2, batch=1), "batch is 1"),
            (torch.zeros(2, 3, 2, 4, 4), r"\[height, width\]"),
            (torch.zeros(2, 4, 2, 2, 4), "number of channels is 4"),
        ):
            with pytest.raises(ConfigError, match=message):
                network.step(x, torch.zeros(len(x)), text[: len(x)], cache)
        assert cache.frames == 0

    def test_the_rest(self, network: CausalTransformer) -> None:
        cache = network.new_cache(STREAM, batch=2)
        write(network, clip(4), prompt(), cache)
        with pytest.raises(ConfigError, match="keeps no inputs"):
            network.recache(prompt(), cache)
        with pytest.raises(ConfigError, match="latents' frames is 3"):
            network.recache(prompt(), cache, clip(3))
        with pytest.raises(ConfigError, match="for a change of shots is 'first'"):
            cache.new_shot()
        view = cache.next_view(2)
        cache.commit(view)
        with pytest.raises(ConfigError, match="not the next one"):
            cache.commit(view)
        with pytest.raises(ConfigError, match="other sizes"):
            cache.restore(network.new_cache(STREAM, batch=1).snapshot())
