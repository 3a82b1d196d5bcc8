"""The public operations: argument checks, then the backend that fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..dispatch import choose_backend
from . import operators
from .reference import attend_reference
from .types import Rope3d, Stream, check_attention, check_times


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    stream: Stream,
    rope: Rope3d,
    k_times: Sequence[int] | None = None,
    q_times: Sequence[int] | None = None,
    blocks: Tensor | None = None,
    block: int = 64,
    backend: str | None = None,
) -> Tensor:
    """Attention of a chunk's queries over a rolling cache whose keys are stored without rotary embedding.

        out = softmax(R(q) R(k)^T / sqrt(D)) v,   R: rotation by the position (time, row, column) of each token

    Keys are rotated on read, by times that count within what is visible: a stream never runs out of positions, and a
    cache is written in place, in any order of frames. Native and Triton kernels are deterministic: equal inputs give
    equal bits, for any number of threads.

    Args:
        q: [B, Nq, H, D] queries of whole frames, not rotated. Gradients reach q, k and v. Native kernels also take
            bfloat16, Triton's that and float16, with sums in float32.
        k: [B, Nk, H, D] keys of whole frames, not rotated: the cache with the chunk's own.
        v: [B, Nk, H, D].
        stream: the tokens of a frame.
        rope: how the channels of a head are turned.
        k_times: time of each frame of k, a negative one for a slot that is empty; `None` is 0, 1, 2, ...
        q_times: time of each frame of q; `None` is the last ones of k.
        blocks: [B, H, ceil(Nq / block), ceil(Nv / block)] bool, which blocks of queries and visible keys (Nv tokens,
            in the order they are stored) are computed; `None` is all. A query without any gets zero.
        block: side of those blocks, tokens.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        [B, Nq, H, D].

    Raises:
        TypeError: an argument of the wrong kind or dtype, by name.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453; Yang et al.,
    "LongLive: Real-time Interactive Long Video Generation", arXiv 2509.22622.
    """
    check_attention(q, k, v, stream, rope)
    stored, made = k.shape[1] // stream.tokens, q.shape[1] // stream.tokens
    times = list(range(stored) if k_times is None else k_times)
    check_times("k_times", times, stored)
    last = sorted(time for time in times if time >= 0)[-made:] if made else []
    own = list(last if q_times is None else q_times)
    check_times("q_times", own, made)
    frames = [frame for frame, time in enumerate(times) if time >= 0]
    if blocks is not None:
        visible = len(frames) * stream.tokens
        _check_blocks(blocks, block, q, visible)
    chosen = choose_backend("stream_attention", backend, q)
    grid, seen = (stream.height, stream.width, q.device), tuple(times[frame] for frame in frames)
    if chosen != "reference":
        stored_frames = _indices(tuple(frames), q.device)
        turns = (_turns(rope, tuple(own), *grid), _turns(rope, seen, *grid))
        return operators.stream_attention(q, k, v, *turns, stored_frames, blocks, block, chosen)[0]
    q_angles, k_angles = (rope.angles(_indices(times, q.device), *grid[:2]) for times in (tuple(own), seen))
    if len(frames) < stored:
        k, v = (_frames_of(item, frames, stream.tokens) for item in (k, v))
    allowed = None
    if blocks is not None:
        allowed = blocks.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)
        allowed = allowed[:, :, : q.shape[1], : k.shape[1]]
    elif not frames:
        allowed = torch.zeros(1, 1, q.shape[1], 0, dtype=torch.bool, device=q.device)
    return attend_reference(q, k, v, q_angles, k_angles, allowed)


def rollout_attention(
    q: Tensor, k: Tensor, v: Tensor, stream: Stream, rope: Rope3d, backend: str | None = None
) -> Tensor:
    """Attention of a whole clip as a stream would have done it, chunk after chunk: for training on roll-outs.

    Every chunk sees the sink, its window and itself, at times that count within what it sees, exactly as `attend` on
    a rolling cache.

    Args:
        q: [B, T * tokens, H, D], not rotated. Gradients reach q, k and v.
        k: the same shape.
        v: the same shape.
        stream: chunk, sink, window and the tokens of a frame.
        rope: how the channels of a head are turned.
        backend: as in `attend`.

    Returns:
        [B, T * tokens, H, D].
    """
    check_attention(q, k, v, stream, rope)
    if q.shape != k.shape:
        raise ValueError(f"k must have the shape of q, {list(q.shape)}, got {list(k.shape)}.")
    count = q.shape[1] // stream.tokens
    parts = []
    for start in range(0, count, stream.chunk):
        stop = min(count, start + stream.chunk)
        own = q[:, start * stream.tokens : stop * stream.tokens]
        visible = stream.visible(start, stop)
        keys, values = (_frames_of(item, visible, stream.tokens) for item in (k, v))
        parts.append(attend(own, keys, values, stream, rope, backend=backend))
    return torch.cat(parts, dim=1) if parts else torch.zeros_like(q)


def _turns(rope: Rope3d, times: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    """Cosine and sine of every angle of some frames side by side, [N, D] float32.

    Every layer of every step asks for the same, a stream whose window is full for ever: so they are kept, except in a
    graph that is compiled.
    """
    if torch.compiler.is_compiling():
        return _new_turns(rope, times, height, width, device)
    return _kept_turns(rope, times, height, width, device)


def _new_turns(rope: Rope3d, times: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    angles = rope.angles(_indices(times, device), height, width)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1).float()


@lru_cache(maxsize=64)
def _kept_turns(rope: Rope3d, times: tuple[int, ...], height: int, width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept must serve training too
        return _new_turns(rope, times, height, width, device)


def _indices(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Whole numbers on a device, [N] int64."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _frames_of(x: Tensor, frames: Sequence[int], tokens: int) -> Tensor:
    """Some frames of [B, T * tokens, H, D], in the order given."""
    whole = x.unflatten(1, (-1, tokens))
    return whole[:, torch.tensor(frames, dtype=torch.int64, device=x.device)].flatten(1, 2)


def _check_blocks(blocks: Tensor, block: int, q: Tensor, visible: int) -> None:
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"block must be an int, got {type(block).__name__}.")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}.")
    if not isinstance(blocks, Tensor) or blocks.dtype != torch.bool:
        raise TypeError("blocks must be a bool torch.Tensor.")
    wanted = [q.shape[0], q.shape[2], -(-q.shape[1] // block), -(-visible // block)]
    if list(blocks.shape) != wanted:
        raise ValueError(f"blocks must have shape {wanted}, got {list(blocks.shape)}.")
    if blocks.device != q.device:
        raise ValueError(f"blocks must be on the device of q, {q.device}, got {blocks.device}.")
