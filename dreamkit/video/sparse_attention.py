"""Attention that computes only the blocks which matter: chosen by what is in them, for every head and chunk anew.

Video-BLADE (Gu et al., "Video-BLADE: Block-Sparse Attention Meets Step Distillation", arXiv 2508.10774) estimates the
importance of blocks by pooling, keeps the best and trains the student with that from the first step on. Here, with
R(x) the rotation by position that attention itself applies, the scores of a block of queries I against blocks of keys J
are pooled by the mean,

    s(I, J) = mean R(q_i) . mean R(k_j) / sqrt(D) = mean of all scores in the block,   p(I, .) = softmax s(I, .),

and I sees the chunk's own blocks and those of the sink always, of the others the share `keep` with the largest p, or as
few as bring the sum of p to `mass`.

The paper samples some rotated queries and keys of each block and takes the largest softmax of theirs. Pooled by the
mean there are no samples to draw, so a stream plays the same again; and on the toy world's video teacher the chosen
blocks of 16, 32, 64 tokens held 0.59, 0.45, 0.36 of the window's attention at a share of a quarter against 0.57, 0.42,
0.34 with the paper's four samples (0.59, 0.45, 0.36 is the best there is). Pooled before the rotation they hold 0.40,
0.34, 0.34: then a block doesn't know where it is. Left out are the paper's order of tokens along a Gilbert curve and
its pooled keys for what is not seen; the sink takes the place of those.

**Blocks.** What a chunk sees is cut into blocks of `block` tokens in the order of the stream, its own frames last; so a
roll-out over a cache, a masked clip and a clip behind clean frames choose the same. The last block may be shorter. The
tokens of a block within one frame have one time, and the rotation by that turns their mean as it turns them: so a cache
keeps the mean of a block once, whatever time it will be read at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from dreamkit_kernels.stream_attention import Rope3d, Stream, attend, rollout_attention
from torch import Tensor

from dreamkit.checks import nearest_first, require_integer, require_number
from dreamkit.errors import ConfigError
from dreamkit.video.wan_blocks import at_least_single

DENSE = "dense"
_SMALLEST = 1e-6
_EXAMPLE = f'Write for example keep=0.3,block=16 or mass=0.9, or "{DENSE}" for all of them.'


@dataclass(frozen=True)
class Sparsity:
    """Which blocks of attention are computed, see the module's docstring.

    Raises:
        ConfigError: neither `keep` nor `mass`, or both, or a number out of range.
    """

    keep: float | None = None
    """Share of the blocks between the sink and the chunk itself that a block of queries sees, above 0, at most 1; at
    least one block. 1 is dense."""
    mass: float | None = None
    """Or the probability that the seen blocks must have together, above 0, at most 1; those always seen count."""
    block: int = 64
    """Side of a block, tokens: smaller ones choose better, larger ones compute faster, and a GPU skips only those of a
    multiple of 128. One that doesn't divide the tokens of a frame makes the cache be copied in every call."""
    dense_layers: int = 0
    """First blocks of the transformer that see everything."""

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.mass is None):
            raise ConfigError("A sparsity has a share to keep or a mass to reach, one of the two.", _EXAMPLE)
        require_number("The sparsity's keep", self.keep, _SMALLEST, 1)
        require_number("The sparsity's mass", self.mass, _SMALLEST, 1)
        require_integer("The sparsity's block", self.block, 1, 65536)
        require_integer("The sparsity's dense_layers", self.dense_layers, 0, 10_000)

    def __str__(self) -> str:
        """What `parse` reads."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return ",".join(f"{name}={value}" for name, value in parts.items() if value is not None)

    @classmethod
    def parse(cls, given: Sparsity | Mapping[str, Any] | str | None) -> Sparsity | None:
        """A sparsity from any form that files and command lines use; `None` is dense.

        Args:
            given: itself; its fields; a text such as "keep=0.3,block=16", "mass=0.9" or "dense"; a number alone is a
                share to keep.

        Raises:
            ConfigError: another form, an unknown name, or a value out of range.
        """
        if given is None or isinstance(given, Sparsity):
            return given
        if isinstance(given, str):
            if given.strip() == DENSE:
                return None
            given = _read(given)
        known = [item.name for item in fields(cls)]
        for name in given:
            if name not in known:
                names = ", ".join(nearest_first(str(name), known))
                raise ConfigError(f"A sparsity has no {name!r}.", f"It has: {names}.")
        return cls(**given)

    def fits(self, stream: Stream) -> bool:
        """Whether no block lies in two frames."""
        return stream.tokens % self.block == 0

    def is_dense(self, layer: int) -> bool:
        """Whether a block of the transformer sees everything."""
        return layer < self.dense_layers or 1 in (self.keep, self.mass)

    def computed_share(self, stream: Stream) -> float | None:
        """Share of all blocks that are computed where the window is full, in sparse layers; `None` if data decides."""
        if self.mass is not None:
            return None
        frames = stream.sink + stream.window + stream.chunk
        always = _always(frames, range(stream.sink), stream.chunk, stream.tokens, self.block)
        return self.count(always) / len(always)

    def count(self, always: Sequence[bool]) -> int:
        """How many blocks a block of queries sees: those that it always sees and a share of the others.

        With a mass, the most that it may see.
        """
        fixed = sum(always)
        share = 1.0 if self.keep is None else self.keep
        return fixed + math.ceil(share * (len(always) - fixed) - 1e-9)  # 0.1 of 30 is 3, whatever floats say


def _read(text: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for part in text.split(","):
        name, separator, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise ConfigError(f"The sparsity {text!r} is not understood.", _EXAMPLE) from None
        name = name.strip() if separator else "keep"
        values[name] = int(value) if value.is_integer() and name in ("block", "dense_layers") else value
    return values


# Attention -----------------------------------------------------------------------------------------------------------


def attend_chunk(
    layer: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    stream: Stream,
    rope: Rope3d,
    sparsity: Sparsity | None,
    sink: Sequence[int],
) -> Tensor:
    """Attention of a chunk's queries to the frames that it sees, given in the order of the stream, its own last.

    Args:
        layer: block of the transformer.
        q: [B, f * tokens, H, D], not rotated. Gradients reach q, k and v; none goes through the choice of blocks.
        k: [B, F * tokens, H, D], not rotated.
        v: the same shape.
        stream: the tokens of a frame.
        rope: how the channels of a head are turned.
        sparsity: which blocks are computed; `None` is all, bit for bit `attend`.
        sink: places of the sink's frames among the F.

    Returns:
        [B, f * tokens, H, D].
    """
    if sparsity is None or sparsity.is_dense(layer):
        return attend(q, k, v, stream, rope)
    blocks = choose_blocks(q, k, stream, rope, sparsity, sink)
    return attend(q, k, v, stream, rope, blocks=blocks, block=sparsity.block)


def attend_clip(
    layer: int, q: Tensor, k: Tensor, v: Tensor, stream: Stream, rope: Rope3d, sparsity: Sparsity | None
) -> Tensor:
    """Attention of a whole clip as a stream would have done it, chunk after chunk; with `None` `rollout_attention`.

    Args:
        layer: block of the transformer.
        q: [B, T * tokens, H, D], not rotated. Gradients reach q, k and v.
        k: the same shape.
        v: the same shape.
        stream: chunk, sink, window and the tokens of a frame.
        rope: how the channels of a head are turned.
        sparsity: which blocks are computed.

    Returns:
        [B, T * tokens, H, D].
    """
    if sparsity is None or sparsity.is_dense(layer):
        return rollout_attention(q, k, v, stream, rope)
    parts = []
    count = q.shape[1] // stream.tokens
    for start in range(0, count, stream.chunk):
        stop = min(count, start + stream.chunk)
        own = q[:, start * stream.tokens : stop * stream.tokens]
        keys, values = (frames_of(item, stream.visible(start, stop), stream.tokens) for item in (k, v))
        sink = range(min(stream.sink, start))
        parts.append(attend_chunk(layer, own, keys, values, stream, rope, sparsity, sink))
    return torch.cat(parts, dim=1) if parts else torch.zeros_like(q)


def frames_of(x: Tensor, frames: Sequence[int], tokens: int) -> Tensor:
    """Some frames of [B, T * tokens, H, D], in the order given."""
    return torch.cat([x[:, frame * tokens : (frame + 1) * tokens] for frame in frames], dim=1)


# The choice ----------------------------------------------------------------------------------------------------------


def choose_blocks(
    q: Tensor, k: Tensor, stream: Stream, rope: Rope3d, sparsity: Sparsity, sink: Sequence[int]
) -> Tensor | None:
    """Which blocks of keys each block of queries sees; see the module's docstring. Equals go to the older block.

    Nothing waits for a device, and equal inputs give equal blocks.

    Args:
        q: [B, f * tokens, H, D] of the chunk's frames, not rotated.
        k: [B, F * tokens, H, D] of the frames that it sees, in the order of the stream, its own last, not rotated.
        stream: the tokens of a frame.
        rope: how the channels of a head are turned.
        sparsity: how many.
        sink: places among the F of frames that are always seen.

    Returns:
        [B, H, ceil(Nq / block), ceil(Nk / block)] bool; `None` where no block may be left out.
    """
    if sparsity.fits(stream):
        return choose_among(q, pool_frames(k, stream, rope, sparsity.block), stream, rope, sparsity, sink)
    frames, own = k.shape[1] // stream.tokens, q.shape[1] // stream.tokens
    plan = _Plan.of(frames, own, stream, sparsity, sink)
    if plan is None:
        return None
    turns = _turns(rope, tuple(range(frames)), stream.height, stream.width, at_least_single(k[:0]).dtype, k.device)
    with torch.no_grad():
        queries, keys = _pooled(q, turns[-q.shape[1] :], sparsity.block), _pooled(k, turns, sparsity.block)
        return _chosen(queries, keys, plan)


def choose_among(
    q: Tensor, pooled: Tensor, stream: Stream, rope: Rope3d, sparsity: Sparsity, sink: Sequence[int]
) -> Tensor | None:
    """`choose_blocks` from what `pool_frames` made of the keys, [B, F * n, H, D], n blocks a frame."""
    each = stream.tokens // sparsity.block
    frames, own = pooled.shape[1] // each, q.shape[1] // stream.tokens
    plan = _Plan.of(frames, own, stream, sparsity, sink)
    if plan is None:
        return None
    times = _turns(rope, tuple(range(frames)), 1, 1, pooled.dtype, q.device).repeat_interleave(each, dim=0)
    with torch.no_grad():
        queries = _turned(pool_frames(q, stream, rope, sparsity.block), times[-own * each :])
        keys = _turned(pooled, times)
        return _chosen(torch.view_as_real(queries).flatten(-2), torch.view_as_real(keys).flatten(-2), plan)


@torch.no_grad()
def pool_frames(x: Tensor, stream: Stream, rope: Rope3d, block: int) -> Tensor:
    """Means of the queries or keys of each block, rotated by their place in the frame and not by its time.

    Args:
        x: [B, F * tokens, H, D], not rotated.
        stream: rows and columns of a frame, together a multiple of the block.
        rope: how the channels of a head are turned.
        block: tokens of a block.

    Returns:
        [B, F * tokens / block, H, D], float32 (or float64).
    """
    wide = at_least_single(x).unflatten(1, (-1, stream.tokens))
    turns = _turns(rope, (0,), stream.height, stream.width, wide.dtype, x.device)
    means = _turned(wide, turns).unflatten(2, (-1, block)).mean(dim=3)
    return torch.view_as_real(means).flatten(-2).flatten(1, 2)


@dataclass(frozen=True)
class _Plan:
    """How many of some blocks are seen, and which of them always."""

    always: tuple[bool, ...]
    count: int
    mass: float | None
    last: float
    """Tokens of the last block, as a share of a whole one."""

    @classmethod
    def of(cls, frames: int, own: int, stream: Stream, sparsity: Sparsity, sink: Sequence[int]) -> _Plan | None:
        """The plan for what a chunk sees; `None` where nothing may be left out."""
        always = _always(frames, sink, own, stream.tokens, sparsity.block)
        count = sparsity.count(always)
        if all(always) or (sparsity.mass is None and count == len(always)):
            return None
        rest = frames * stream.tokens % sparsity.block
        return cls(always, count, sparsity.mass, rest / sparsity.block if rest else 1.0)


def _chosen(queries: Tensor, keys: Tensor, plan: _Plan) -> Tensor:
    """Blocks [B, H, Q, K] from pooled queries [B, Q, H, D] and keys [B, K, H, D], both rotated."""
    with torch.autocast(queries.device.type, enabled=False):  # half precision makes equals of scores that are not
        scores = torch.einsum("bihd,bjhd->bhij", queries, keys) / math.sqrt(queries.shape[-1])
    always, places = _flags(plan.always, scores.device), torch.arange(len(plan.always), device=scores.device)
    order = scores.masked_fill(always, math.inf).argsort(dim=-1, descending=True, stable=True)
    if plan.mass is None:
        wanted = (places < plan.count).expand_as(order)
    else:
        scores[..., -1] += math.log(plan.last)  # a block counts as many times as it has tokens
        likely = scores.softmax(dim=-1).gather(-1, order)
        wanted = (likely.cumsum(dim=-1) - likely < plan.mass) | (places < sum(plan.always))
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, wanted)


def _always(frames: int, sink: Sequence[int], own: int, tokens: int, block: int) -> tuple[bool, ...]:
    """Which blocks of some frames have tokens of the sink or of the last `own` frames."""
    seen = [False] * -(-frames * tokens // block)
    for frame in (*sink, *range(frames - own, frames)):
        for place in range(frame * tokens // block, ((frame + 1) * tokens - 1) // block + 1):
            seen[place] = True
    return tuple(seen)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """Rows [..., N, H, D] rotated by turns [N, D / 2], as complex numbers [..., N, H, D / 2]."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turns[:, None]


def _pooled(x: Tensor, turns: Tensor, block: int) -> Tensor:
    """Means of the rotated rows of each block, wherever it lies: [B, N, H, D] to [B, ceil(N / block), H, D]."""
    turned = _turned(at_least_single(x), turns)
    whole = x.shape[1] // block * block
    parts = [turned[:, :whole].unflatten(1, (-1, block)).mean(dim=2)] if whole else []
    if whole < x.shape[1]:
        parts.append(turned[:, whole:].mean(dim=1, keepdim=True))
    return torch.view_as_real(torch.cat(parts, dim=1)).flatten(-2)


# A stream asks for the same for ever once its window is full. What is kept must serve training, too: hence no inference
# mode.


@lru_cache(maxsize=64)
def _turns(
    rope: Rope3d, times: tuple[int, ...], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """exp(i angle) of every token of some frames: [frames * height * width, D / 2] complex."""
    with torch.inference_mode(False):
        angles = rope.angles(torch.tensor(times, device=device), height, width)
        return torch.polar(torch.ones_like(angles), angles).to(dtype.to_complex())


@lru_cache(maxsize=256)
def _flags(flags: tuple[bool, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(flags, device=device)
