"""Block-sparse attention: the choice against its definition, and every way a stream attends against one another."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from dreamkit_kernels.stream_attention import Rope3d, Stream, attend
from dreamkit_kernels.stream_attention.reference import attend_reference, rotate
from torch import Tensor
from torch.autograd import gradcheck

from dreamkit.errors import ConfigError
from dreamkit.video import sparse_attention
from dreamkit.video.attention_cache import AttentionCache
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.random_models import random_student
from dreamkit.video.sparse_attention import Sparsity, attend_chunk, attend_clip, choose_blocks
from dreamkit.video.stream import StreamSession
from dreamkit.video.stream_config import StreamConfig

ROPE = Rope3d.split_evenly(12)
STREAM = Stream(2, 3, chunk=2, sink=2, window=4)
CONFIG: dict[str, Any] = {
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
SPARSITIES = [
    Sparsity(keep=0.3, block=2),  # divides the six tokens of a frame
    Sparsity(keep=0.5, block=6),  # a frame each
    Sparsity(mass=0.7, block=3),
    Sparsity(keep=0.4, block=4),  # blocks across frames, the last of an odd number of frames is shorter
    Sparsity(mass=0.6, block=10),  # more than a frame
    Sparsity(keep=0.3, block=2, dense_layers=1),
]

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape: int, seed: int = 0, **kind: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kind)


def chunk_and_history(frames: int, own: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Queries of the last frames, and keys and values of all of them: sharp enough to tell blocks apart."""
    shape = (2, frames * STREAM.tokens, 2, 12)
    q, k, v = (2 * random(*shape, seed=3 * seed + n, dtype=dtype) for n in range(3))
    return q[:, -own * STREAM.tokens :], k, v


def by_definition(q: Tensor, k: Tensor, sparsity: Sparsity, sink: Sequence[int]) -> Tensor:
    """Blocks from the whole matrix of scores, one at a time."""
    tokens, block = STREAM.tokens, sparsity.block
    frames, own = k.shape[1] // tokens, q.shape[1] // tokens
    angles = ROPE.angles(torch.arange(frames), STREAM.height, STREAM.width)
    queries, keys = rotate(q, angles[-q.shape[1] :]), rotate(k, angles)
    scores = torch.einsum("bihd,bjhd->bhij", queries, keys) / math.sqrt(q.shape[-1])
    rows, columns = -(-q.shape[1] // block), -(-k.shape[1] // block)
    fixed = {
        token // block
        for frame in (*sink, *range(frames - own, frames))
        for token in range(frame * tokens, (frame + 1) * tokens)
    }
    others = [column for column in range(columns) if column not in fixed]
    chosen = torch.zeros(2, 2, rows, columns, dtype=torch.bool)
    for sample in range(2):
        for head in range(2):
            for row in range(rows):
                parts = scores[sample, head, row * block : (row + 1) * block].split(block, dim=1)
                means = [float(part.mean()) for part in parts]
                weights = [part.shape[1] * math.exp(mean) for part, mean in zip(parts, means, strict=True)]
                seen = set(fixed)
                for column in sorted(others, key=lambda column, means=means: -means[column]):
                    is_enough = (
                        len(seen) - len(fixed) >= sparsity.keep * len(others)
                        if sparsity.keep is not None
                        else sum(weights[column] for column in seen) >= sparsity.mass * sum(weights)
                    )
                    if is_enough:
                        break
                    seen.add(column)
                chosen[sample, head, row, list(seen)] = True
    return chosen


def under_mask(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block: int) -> Tensor:
    """Dense attention under the mask that blocks stand for, keys in the order of the stream."""
    angles = ROPE.angles(torch.arange(k.shape[1] // STREAM.tokens), STREAM.height, STREAM.width)
    allowed = blocks.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[:, :, : q.shape[1], : k.shape[1]]
    return attend_reference(q, k, v, angles[-q.shape[1] :], angles, allowed)


class TestTheChoice:
    @pytest.mark.parametrize("sparsity", SPARSITIES)
    @pytest.mark.parametrize(("frames", "own", "sink"), [(8, 2, [0, 1]), (5, 1, []), (7, 2, [2])])
    def test_against_its_definition(self, sparsity: Sparsity, frames: int, own: int, sink: list[int]) -> None:
        q, k, _ = chunk_and_history(frames, own)
        got = choose_blocks(q, k, STREAM, ROPE, sparsity, sink)
        assert got is not None
        assert torch.equal(got, by_definition(q, k, sparsity, sink))
        assert not got.all()
        single = choose_blocks(q.float(), k.float(), STREAM, ROPE, sparsity, sink)
        assert single is not None
        assert torch.equal(single, got)

    def test_it_depends_on_what_is_there(self) -> None:
        """A block of keys that points where a block of queries does is seen by that one, in that head and sample."""
        stream, rope = Stream(1, 4, chunk=1), Rope3d(0, 4, 4)  # no rotation that tells frames or rows apart
        q, k = torch.zeros(2, 4, 2, 8), torch.zeros(2, 24, 2, 8)
        q[1, 2:, 0, 0] = 1
        k[1, 8:10, 0, 0] = 5  # the fifth block
        blocks = choose_blocks(q, k, stream, rope, Sparsity(keep=0.1, block=2), [])
        assert blocks is not None
        own = [10, 11]
        assert blocks[1, 0, 1].nonzero().flatten().tolist() == [4, *own]
        # Where all are equal the oldest is seen.
        assert blocks[1, 0, 0].nonzero().flatten().tolist() == [0, *own]
        assert blocks[1, 1, 1].nonzero().flatten().tolist() == [0, *own]
        assert blocks[0, 0, 1].nonzero().flatten().tolist() == [0, *own]

    def test_as_few_as_have_the_mass(self) -> None:
        q, k, _ = chunk_and_history(8, 2)
        sizes = [int(choose_blocks(q, k, STREAM, ROPE, Sparsity(mass=m, block=2), [0]).sum()) for m in (0.1, 0.5, 0.9)]  # type: ignore[union-attr]
        assert sizes == sorted(set(sizes))
        assert sizes[0] >= 2 * 2 * 6 * 9  # sink and chunk, whatever their mass

    def test_where_nothing_may_be_left_out(self) -> None:
        q, k, _ = chunk_and_history(4, 2)
        for sparsity in SPARSITIES:
            assert choose_blocks(q, k, STREAM, ROPE, sparsity, [0, 1]) is None
        assert choose_blocks(q, k, STREAM, ROPE, Sparsity(keep=0.9, block=6), [0]) is None  # the one that is left

    def test_no_gradient_and_no_autocast(self) -> None:
        q, k, _ = chunk_and_history(8, 2, dtype=torch.float32)
        sparsity = SPARSITIES[0]
        expected = choose_blocks(q, k, STREAM, ROPE, sparsity, [0])
        with torch.autocast("cpu", torch.bfloat16):
            got = choose_blocks(q.requires_grad_(), k.requires_grad_(), STREAM, ROPE, sparsity, [0])
        assert got is not None
        assert not got.requires_grad
        assert torch.equal(got, expected)

    @pytest.mark.parametrize("sparsity", [Sparsity(keep=0.25, block=2), Sparsity(keep=0.5, block=4), SPARSITIES[1]])
    def test_the_share_that_is_computed(self, sparsity: Sparsity) -> None:
        q, k, _ = chunk_and_history(8, 2)
        blocks = choose_blocks(q, k, STREAM, ROPE, sparsity, [0, 1])
        assert blocks is not None
        assert sparsity.computed_share(STREAM) == pytest.approx(float(blocks.double().mean()))
        assert Sparsity(mass=0.5).computed_share(STREAM) is None


class TestOverACache:
    """Slots out of order, partial windows, short chunks: against dense attention under the mask, from lists."""

    @pytest.mark.parametrize("sparsity", SPARSITIES[:5])
    @pytest.mark.parametrize("kind", ["first", "none", "shot"])
    def test_is_dense_attention_under_the_mask(self, sparsity: Sparsity, kind: Any) -> None:
        cache = AttentionCache(1, 2, ROPE, STREAM, batch=2, sink=kind, sparsity=sparsity)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        sink: list[int] = []
        window: list[int] = []
        left_out = scattered = 0
        for number, own in enumerate([2, 2, 1, 2, 2, 2, 1, 2, 1, 2]):
            if kind == "shot" and number == 5:
                cache.new_shot()
                sink = []
            q, k, v = chunk_and_history(own, own, seed=number, dtype=torch.float32)
            made = range(len(keys), len(keys) + own)
            keys += k.split(STREAM.tokens, dim=1)
            values += v.split(STREAM.tokens, dim=1)
            order = [*sorted({*sink, *window}), *made]
            seen_k, seen_v = (torch.cat([item[frame] for frame in order], dim=1) for item in (keys, values))
            places = [order.index(frame) for frame in sink]
            blocks = choose_blocks(q, seen_k, STREAM, ROPE, sparsity, places)
            if blocks is None:
                blocks = torch.ones(2, 2, -(-q.shape[1] // sparsity.block), -(-seen_k.shape[1] // sparsity.block)) > 0
            left_out += int((~blocks).sum())
            view = cache.next_view(own)
            slots = [*view.context, *view.own]
            scattered += slots != sorted(slots)
            got = cache.attend(0, view, q, k, v)
            expected = under_mask(q, seen_k, seen_v, blocks, sparsity.block)
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
            with_gradient = cache.attend(0, view, q.requires_grad_(), k, v)
            torch.testing.assert_close(with_gradient.detach(), expected, atol=1e-5, rtol=0)
            cache.commit(view)
            for frame in made:
                (sink if kind != "none" and len(sink) < STREAM.sink else window).append(frame)
            window = window[-STREAM.window :]
        assert left_out > 0
        assert scattered > 0


class TestGradients:
    @pytest.mark.parametrize("sparsity", [SPARSITIES[0], SPARSITIES[3], SPARSITIES[4]])
    def test_are_those_of_dense_attention_under_the_mask(self, sparsity: Sparsity) -> None:
        inputs = [item.requires_grad_() for item in chunk_and_history(8, 2, dtype=torch.float32)]
        out = attend_chunk(0, *inputs, STREAM, ROPE, sparsity, [0])  # type: ignore[call-arg, arg-type]
        weight = random(*out.shape, seed=9)
        got = torch.autograd.grad((out * weight).sum(), inputs)
        exact = [item.detach().double().requires_grad_() for item in inputs]
        blocks = choose_blocks(*exact[:2], STREAM, ROPE, sparsity, [0])  # type: ignore[call-arg, arg-type]
        assert blocks is not None
        expected = under_mask(*exact, blocks, sparsity.block)  # type: ignore[call-arg, arg-type]
        for one, other in zip(got, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
            torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=1e-4)
        hidden = ~blocks.any(dim=(1, 2)).repeat_interleave(sparsity.block, dim=1)[:, : got[1].shape[1]]
        assert not got[1][hidden].any()


@pytest.fixture
def network() -> CausalTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = CausalTransformer.from_config(CONFIG).requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(0.1 * random(*parameter.shape, seed=parameter.numel()))
    return made


def clip(frames: int, seed: int = 1, **kind: Any) -> Tensor:
    return random(2, 3, frames, 4, 6, seed=seed, **kind)


def prompt(seed: int = 2, **kind: Any) -> Tensor:
    return random(2, 5, 7, seed=seed, **kind)


def write(network: CausalTransformer, x: Tensor, text: Tensor, cache: AttentionCache) -> Tensor:
    parts = x.split(STREAM.chunk, dim=2)
    return torch.cat([network.step(part, torch.zeros(2), text, cache, write=True) for part in parts], dim=2)


class TestThreeWays:
    @pytest.mark.parametrize("sparsity", SPARSITIES)
    @pytest.mark.parametrize("sink", ["first", "none"])
    def test_a_stream_is_the_masked_clip(self, network: CausalTransformer, sparsity: Sparsity, sink: Any) -> None:
        x, text = clip(15), prompt()
        cache = network.new_cache(STREAM, batch=2, sink=sink, sparsity=sparsity)
        expected = network(x, torch.zeros(2), text, stream=cache.stream, sparsity=sparsity)
        torch.testing.assert_close(write(network, x, text, cache), expected, atol=1e-5, rtol=0)
        assert not torch.allclose(expected, network(x, torch.zeros(2), text, stream=cache.stream), atol=1e-3)

    def test_in_float64(self, network: CausalTransformer) -> None:
        x, text = clip(13, dtype=torch.float64), prompt(dtype=torch.float64)
        double, sparsity = network.double(), SPARSITIES[0]
        cache = double.new_cache(STREAM, batch=2, sparsity=sparsity)
        expected = double(x, torch.zeros(2), text, stream=STREAM, sparsity=sparsity)
        torch.testing.assert_close(write(double, x, text, cache), expected, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("sparsity", SPARSITIES)
    def test_teacher_forcing_is_a_step_over_clean_history(self, network: CausalTransformer, sparsity: Sparsity) -> None:
        frames, text = 13, prompt()
        noisy, clean, timesteps = clip(frames), clip(frames, seed=9), 1000 * random(2, frames, seed=4).sigmoid()
        cache = network.new_cache(STREAM, batch=2, sparsity=sparsity)
        got = network.forward_teacher_forced(noisy, clean, timesteps, text, STREAM, sparsity=sparsity)
        for start in range(0, frames, 2):
            part = slice(start, start + 2)
            alone = network.step(noisy[:, :, part], timesteps[:, part], text, cache)
            torch.testing.assert_close(got[:, :, part], alone, atol=1e-5, rtol=0)
            network.step(clean[:, :, part], torch.zeros(2), text, cache, write=True)

    def test_a_new_prompt_is_a_stream_that_began_with_it(self, network: CausalTransformer) -> None:
        sparsity, x, old, new = Sparsity(keep=0.3, block=2), clip(6), prompt(), prompt(seed=8)
        cache, fresh = (network.new_cache(STREAM, batch=2, keep_inputs=True, sparsity=sparsity) for _ in range(2))
        write(network, x, old, cache)
        network.recache(new, cache)
        write(network, x, new, fresh)
        more = clip(8, seed=5)
        assert torch.equal(write(network, more, new, cache), write(network, more, new, fresh))

    def test_gradients_in_float64(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            small = {"num_layers": 2, "num_attention_heads": 1, "attention_head_dim": 6, "ffn_dim": 4}
            ours = CausalTransformer.from_config({**CONFIG, **small}).requires_grad_(False).double()
        x = random(1, 3, 7, 2, 4, seed=1, dtype=torch.float64).requires_grad_()
        text = random(1, 2, 7, seed=2, dtype=torch.float64)
        stream, sparsity = Stream(1, 2, chunk=1, sink=1, window=4), Sparsity(keep=0.3, block=1)
        levels = torch.tensor([[5.0, 50.0, 500.0, 700.0, 900.0, 950.0, 1000.0]])
        assert gradcheck(lambda x: ours(x, levels, text, stream=stream, sparsity=sparsity), (x,), fast_mode=True)

    @pytest.mark.parametrize("same", [None, Sparsity(keep=1.0, block=2), Sparsity(keep=0.1, dense_layers=3)])
    def test_dense_is_dense_to_the_bit(self, network: CausalTransformer, same: Sparsity | None) -> None:
        x, text, zero = clip(11), prompt(), torch.zeros(2)
        expected = write(network, x, text, network.new_cache(STREAM, batch=2))
        assert torch.equal(write(network, x, text, network.new_cache(STREAM, batch=2, sparsity=same)), expected)
        expected = network(x, zero, text, stream=STREAM)
        assert torch.equal(network(x, zero, text, stream=STREAM, sparsity=same), expected)
        forced = network.forward_teacher_forced(x, x, zero, text, STREAM)
        assert torch.equal(network.forward_teacher_forced(x, x, zero, text, STREAM, sparsity=same), forced)

    def test_checkpointing_changes_no_gradient(self, network: CausalTransformer) -> None:
        network.requires_grad_(True)
        gradients = []
        for switch in (False, True):
            network.checkpointing = switch
            network.zero_grad()
            out = network(clip(9), torch.zeros(2), prompt(), stream=STREAM, sparsity=SPARSITIES[0])
            out.square().sum().backward()
            gradients.append([parameter.grad for parameter in network.parameters()])
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))  # type: ignore[arg-type]

    def test_memory_stays(self, network: CausalTransformer) -> None:
        dense = network.new_cache(STREAM, batch=2).bytes
        assert network.new_cache(STREAM, batch=2, sparsity=Sparsity(keep=0.3, block=4)).bytes == dense
        cache = network.new_cache(STREAM, batch=2, sparsity=Sparsity(keep=0.3, block=2))
        assert cache.bytes == dense + dense // 4  # a mean of two keys; a value goes with every key
        write(network, clip(40), prompt(), cache)
        kept = [part.cache_info().currsize for part in (sparse_attention._turns, sparse_attention._flags)]
        write(network, clip(40), prompt(), cache)
        assert kept == [part.cache_info().currsize for part in (sparse_attention._turns, sparse_attention._flags)]
        assert cache.bytes == dense + dense // 4

    @pytest.mark.parametrize("sink", ["first", "ema", "shot"])
    def test_the_means_of_the_keys_go_with_them(self, network: CausalTransformer, sink: Any) -> None:
        """Through merges into an averaged sink, snapshots and a new prompt."""
        sparsity = Sparsity(keep=0.3, block=3)
        cache = network.new_cache(STREAM, batch=2, sink=sink, keep_inputs=True, sparsity=sparsity)
        write(network, clip(15), prompt(), cache)
        saved = cache.snapshot()
        more = clip(4, seed=6)
        expected = write(network, more, prompt(), cache)
        network.recache(prompt(seed=8), cache)
        self.check_means(cache)
        cache.restore(saved)
        self.check_means(cache)
        assert torch.equal(write(network, more, prompt(), cache), expected)

    def check_means(self, cache: AttentionCache) -> None:
        slots = list(cache.next_view(1).context)
        assert cache._pools is not None
        for layer in range(3):
            keys = cache._keys[layer][:, slots].flatten(1, 2)
            expected = sparse_attention.pool_frames(keys, STREAM, cache.rope, 3)
            torch.testing.assert_close(cache._pools[layer][:, slots].flatten(1, 2), expected, atol=1e-6, rtol=0)

    def test_in_half_precision(self) -> None:
        """bfloat16 queries and keys choose by float32 scores; an empty clip stays empty."""
        q, k, v = (item.bfloat16() for item in chunk_and_history(8, 8, dtype=torch.float32))
        out = attend_clip(0, q, k, v, STREAM, ROPE, SPARSITIES[0])
        expected = attend_clip(0, q.float(), k.float(), v.float(), STREAM, ROPE, SPARSITIES[0])
        torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
        assert attend_clip(0, q[:, :0], k[:, :0], v[:, :0], STREAM, ROPE, SPARSITIES[0]).shape == (2, 0, 2, 12)


class TestStreams:
    def frames(self, **settings: Any) -> Tensor:
        student = random_student("tiny-random", "cpu")
        config = StreamConfig(size=(16, 16), chunk=2, window=4, sink=1, overlap=False, **settings)
        with StreamSession(student, "a red cube", config=config, frames=12) as session:
            return torch.stack([frame.pixels for frame in session])

    def test_a_stream_plays_the_same_again(self) -> None:
        sparse = self.frames(sparsity="keep=0.3,block=4")
        assert torch.equal(sparse, self.frames(sparsity={"keep": 0.3, "block": 4}))
        dense = self.frames()
        assert torch.equal(dense, self.frames(sparsity="dense"))
        assert not torch.equal(sparse, dense)


class TestSparsity:
    @pytest.mark.parametrize(
        ("text", "meant"),
        [
            ("0.3", Sparsity(keep=0.3)),
            ("1", Sparsity(keep=1.0)),
            ("keep=0.3,block=16", Sparsity(keep=0.3, block=16)),
            (" mass = 0.9 , dense_layers = 2", Sparsity(mass=0.9, dense_layers=2)),
            ("dense", None),
        ],
    )
    def test_texts(self, text: str, meant: Sparsity | None) -> None:
        assert Sparsity.parse(text) == meant
        assert Sparsity.parse(str(meant or "dense")) == meant
        assert Sparsity.parse(meant) == meant
        assert StreamConfig(sparsity=text).sparsity == meant  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("keep=0", r"The sparsity's keep is 0\.0"),
            ("keep=1.5", "keep is 1.5"),
            ("mass=nan", "mass is nan"),
            ("mass=0.5,keep=0.5", "one of the two"),
            ("block=16", "one of the two"),
            ("keep=0.5,block=0", "block is 0"),
            ("keep=0.5,block=2.5", r"block is 2\.5"),
            ("keep=0.5,dense_layers=-1", "dense_layers is -1"),
            ("kep=0.5", "A sparsity has no 'kep'.*keep"),
            ("much", "'much' is not understood"),
            ("", "'' is not understood"),
            ({"keep": 0.5, "blocks": 2}, "no 'blocks'.*block"),
        ],
    )
    def test_mistakes(self, given: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            Sparsity.parse(given)

    def test_layers(self) -> None:
        sparsity = Sparsity(keep=0.5, dense_layers=2)
        assert [sparsity.is_dense(layer) for layer in range(4)] == [True, True, False, False]
        assert replace(sparsity, keep=1.0).is_dense(9)

    def test_none_is_the_kernels_own(self) -> None:
        q, k, v = chunk_and_history(6, 2, dtype=torch.float32)
        assert torch.equal(attend_chunk(0, q, k, v, STREAM, ROPE, None, [0]), attend(q, k, v, STREAM, ROPE))
