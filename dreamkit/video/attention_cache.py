"""The rolling memory of a video stream: keys and values of what a new chunk may see, in tensors of a fixed size.

Keys are stored before the rotary embedding and turned on read, by times that count within what is visible. So a
stream never runs out of positions, and what a chunk sees does not depend on how long the stream has run.

Frames lie in slots: first those of the sink, then a ring of window + chunk frames. The ring's free frames hold the
chunk that is being made; when it is done, only numbers move. All of them are Python's: nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from dreamkit_kernels.stream_attention import Rope3d, Stream, attend
from torch import Tensor

from dreamkit.checks import one_of, require
from dreamkit.errors import ConfigError
from dreamkit.video.sparse_attention import Sparsity, attend_chunk, choose_among, pool_frames
from dreamkit.video.wan_blocks import KeysValues

SinkKind = Literal["none", "first", "ema", "shot"]


@dataclass(frozen=True)
class ChunkView:
    """Where a chunk and what it sees lie in the cache."""

    context: tuple[int, ...]
    """Slots of the frames before it, in the order of the stream."""
    own: tuple[int, ...]
    """Slots of its own frames, in order."""


@dataclass
class _Place:
    """Where the stream stands: numbers that only say which slots are filled, in what order."""

    frames: int = 0
    """Frames that were written since the beginning; nothing depends on it."""
    sink: int = 0
    """Slots of the sink that are filled."""
    ring: int = 0
    """Frames of the ring that are visible."""
    before_sink: int = 0
    """How many of those are older than the sink."""
    next: int = 0
    """Place in the ring of the next frame."""
    merges: int = 0
    """Frames that went into the sink's average."""


@dataclass(frozen=True)
class CacheSnapshot:
    """A copy of a cache's content, for `AttentionCache.restore`."""

    tensors: tuple[Tensor, ...]
    place: _Place


@dataclass(frozen=True)
class _TextKeys:
    text: Tensor
    version: int
    layers: list[KeysValues]


class AttentionCache:
    """Keys and values of every layer for the frames that the next chunk sees.

    The sink is what stays visible when it has left the window (Xiao et al., arXiv 2309.17453):

        none   nothing
        first  the first `stream.sink` frames
        ema    they too, and then the average S <- a S + (1 - a) f over every frame f that leaves the window, the
               oldest first, frame after frame of the sink in turn (Reward Forcing, arXiv 2512.04678); S is float32
        shot   the first frames of the current shot: `new_shot` says where one begins

    Args:
        layers: blocks of the transformer.
        heads: of its self-attention.
        rope: how their channels are turned; it has the width of a head.
        stream: chunk, sink and window in frames, and the tokens of a frame.
        batch: streams side by side.
        sink: what stays visible.
        ema_decay: a above, in [0, 1).
        keep_inputs: also keep the visible frames' embedded patches, which `CausalTransformer.recache` needs unless it
            is given the latents.
        dtype: of the stored keys and values.
        device: where they are.
        sparsity: which blocks of attention are computed; `None` is all.

    Raises:
        ConfigError: a window that can't hold a chunk, a sink of no frames, or a number out of range.
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        rope: Rope3d,
        stream: Stream,
        batch: int = 1,
        sink: SinkKind = "first",
        ema_decay: float = 0.99,
        keep_inputs: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        sparsity: Sparsity | None = None,
    ) -> None:
        one_of("The sink", sink, get_args(SinkKind))
        require("The cache's batch", batch >= 1, batch, "a number of at least 1")
        require("The sink's decay", 0 <= ema_decay < 1, ema_decay, "a number from 0 to below 1")
        if stream.chunk > stream.window:
            raise ConfigError(
                f"A chunk of {stream.chunk} frames does not fit into a window of {stream.window}.",
                "Use a window of at least one chunk.",
            )
        require("The sink's number of frames", sink == "none" or stream.sink > 0, stream.sink, 'at least 1, or "none"')
        self.stream = stream if sink != "none" else replace(stream, sink=0)
        self.sink_kind = sink
        self.ema_decay = ema_decay
        self.sparsity = sparsity
        self.rope = rope
        self._averages: tuple[Tensor, ...] = ()
        self._inputs: Tensor | None = None
        self._pools: Tensor | None = None
        tokens, width = stream.tokens, rope.head_dim
        slots = self.stream.sink + self._ring_size
        # Tensors made under inference_mode could not be written outside of it.
        with torch.inference_mode(False):
            shape = (layers, batch, slots, tokens, heads, width)
            self._keys, self._values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            if sink == "ema":
                shape = (layers, batch, stream.sink, tokens, heads, width)
                wide = torch.promote_types(dtype, torch.float32)
                self._averages = tuple(torch.zeros(shape, dtype=wide, device=device) for _ in range(2))
            if keep_inputs:
                self._inputs = torch.zeros(batch, slots, tokens, heads * width, dtype=dtype, device=device)
            if sparsity is not None and sparsity.fits(stream):
                shape = (layers, batch, slots, tokens // sparsity.block, heads, width)
                wide = torch.promote_types(dtype, torch.float32)
                self._pools = torch.zeros(shape, dtype=wide, device=device)
        self._place = _Place()
        self._text: _TextKeys | None = None

    @property
    def batch(self) -> int:
        """Streams side by side."""
        return self._keys.shape[1]

    @property
    def frames(self) -> int:
        """Frames of the stream so far."""
        return self._place.frames

    @property
    def visible(self) -> int:
        """Frames that the next chunk sees, besides its own."""
        return self._place.sink + self._place.ring

    @property
    def keeps_inputs(self) -> bool:
        """Whether the visible frames' embedded patches are kept."""
        return self._inputs is not None

    @property
    def bytes(self) -> int:
        """Memory of all that grows with window, sink and model, and never with the stream."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors())

    @property
    def _ring_size(self) -> int:
        return self.stream.window + self.stream.chunk

    def _tensors(self) -> tuple[Tensor, ...]:
        kept = (item for item in (self._inputs, self._pools) if item is not None)
        return (self._keys, self._values, *self._averages, *kept)

    def reset(self) -> None:
        """Forget every frame and the text; the memory stays. Needed before a stream of changed weights."""
        self._place = _Place()
        self._text = None

    def new_shot(self) -> None:
        """Say that the next chunk begins a new shot: its first frames become the sink, the old sink is forgotten.

        Raises:
            ConfigError: the sink is of another kind than "shot".
        """
        require("The sink for a change of shots", self.sink_kind == "shot", repr(self.sink_kind), "'shot'")
        self._place.sink = 0
        self._place.before_sink = self._place.ring

    def snapshot(self) -> CacheSnapshot:
        """Copy the content."""
        return CacheSnapshot(tuple(tensor.clone() for tensor in self._tensors()), replace(self._place))

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Go back to a snapshot, bit for bit.

        Raises:
            ConfigError: it was made of a cache of other sizes.
        """
        own = self._tensors()
        if [item.shape for item in own] != [item.shape for item in snapshot.tensors]:
            raise ConfigError("The snapshot is of a cache of other sizes.", "Restore it into the cache it is of.")
        for tensor, copy in zip(own, snapshot.tensors, strict=True):
            tensor.copy_(copy)
        self._place = replace(snapshot.place)

    def next_view(self, frames: int) -> ChunkView:
        """Where the next chunk goes and what it sees.

        Args:
            frames: of the chunk, 1 to `stream.chunk`.

        Raises:
            ConfigError: another number.
        """
        fits = 1 <= frames <= self.stream.chunk
        require("The chunk's number of frames", fits, frames, f"1 to {self.stream.chunk}, as the cache was made for")
        place = self._place
        to_sink = min(frames, self.stream.sink - place.sink)
        own = [*range(place.sink, place.sink + to_sink), *self._ring_slots(place.next, frames - to_sink)]
        return ChunkView(tuple(self._context()), tuple(own))

    def rewrite_views(self) -> Iterator[ChunkView]:
        """The visible frames again, chunk by chunk, each seeing those before it: to compute them anew in place.

        The average of an "ema" sink is seen and is not among them: what it was made of is gone.
        """
        order = self._context()
        fixed = self.stream.sink if self._place.merges else 0
        for stop in sorted(range(len(order), fixed, -self.stream.chunk)):
            start = max(fixed, stop - self.stream.chunk)
            yield ChunkView(tuple(order[:start]), tuple(order[start:stop]))

    def attend(self, layer: int, view: ChunkView, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a chunk to what it sees and to itself; its keys and values are put into its slots.

        Gradients reach q, k and v, never what is stored.

        Args:
            layer: block of the transformer.
            view: where the chunk is.
            q: [B, f * tokens, H, D], not rotated.
            k: the same shape.
            v: the same shape.

        Returns:
            [B, f * tokens, H, D] in the dtype of v.
        """
        keys, values = self._keys[layer], self._values[layer]
        _put(keys, view.own, k)
        _put(values, view.own, v)
        order, block = (*view.context, *view.own), 1 if self.sparsity is None else self.sparsity.block
        blocks = None
        if self.sparsity is not None and not self.sparsity.is_dense(layer):
            sink = [place for place, slot in enumerate(view.context) if slot < self.stream.sink]
            if self._pools is None:  # blocks of several frames, which lie side by side in the stream alone
                seen = self._in_order(layer, view, k, v, keys.dtype)
                out = attend_chunk(layer, q.to(keys.dtype), *seen, self.stream, self.rope, self.sparsity, sink)
                return out.to(v.dtype)
            pools = self._pools[layer]
            _put(pools, view.own, pool_frames(k.to(keys.dtype), self.stream, self.rope, block))
            pooled = _take(pools, order)
            blocks = choose_among(q.to(keys.dtype), pooled, self.stream, self.rope, self.sparsity, sink)
        if torch.is_grad_enabled() and any(item.requires_grad for item in (q, k, v)):
            k, v = self._in_order(layer, view, k, v, v.dtype)
            return attend(q.to(v.dtype), k, v, self.stream, self.rope, blocks=blocks, block=block)
        times = [-1] * keys.shape[1]
        for time, slot in enumerate(order):
            times[slot] = time
        stored = (item.flatten(1, 2) for item in (keys, values))
        placed = None if blocks is None else _as_stored(blocks, order)
        out = attend(q.to(keys.dtype), *stored, self.stream, self.rope, times, blocks=placed, block=block)
        return out.to(v.dtype)

    def _in_order(self, layer: int, view: ChunkView, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of what a chunk sees, its own with their gradients, in the order of the stream."""
        seen_k, seen_v = (_take(item[layer], view.context).to(dtype) for item in (self._keys, self._values))
        return torch.cat([seen_k, k.to(dtype)], dim=1), torch.cat([seen_v, v.to(dtype)], dim=1)

    def keep(self, view: ChunkView, inputs: Tensor) -> None:
        """Keep a chunk's embedded patches [B, f * tokens, dim], if the cache keeps any."""
        if self._inputs is not None:
            _put(self._inputs, view.own, inputs)

    def kept(self, view: ChunkView) -> Tensor:
        """The embedded patches of a chunk, [B, f * tokens, dim].

        Raises:
            ConfigError: the cache keeps none.
        """
        if self._inputs is None:
            raise ConfigError(
                "The cache keeps no inputs to compute its frames from.",
                "Make it with keep_inputs, or give the latents.",
            )
        return _take(self._inputs, view.own)

    def commit(self, view: ChunkView) -> None:
        """Make a chunk, whose keys and values every layer has put into its slots, part of what is visible.

        Raises:
            ConfigError: the stream has gone on since the view was made.
        """
        if view != self.next_view(len(view.own)):
            raise ConfigError("The chunk is not the next one of the stream.", "Ask for a new view of the cache.")
        place = self._place
        to_sink = min(len(view.own), self.stream.sink - place.sink)
        to_ring = len(view.own) - to_sink
        place.frames += len(view.own)
        place.sink += to_sink
        place.next = (place.next + to_ring) % self._ring_size
        place.ring += to_ring
        leaving = max(0, place.ring - self.stream.window)
        for slot in self._ring_slots(place.next - place.ring, leaving):
            if self._averages:
                self._merge(slot)
        place.ring -= leaving
        place.before_sink = max(0, place.before_sink - leaving)

    def text_keys(self, text: Tensor, make: Callable[[], list[KeysValues]]) -> list[KeysValues]:
        """Cross-attention keys and values of a prompt, made once as long as the same tensor is given.

        Args:
            text: the prompt's tokens, as the caller holds them.
            make: computes keys and values of every layer.
        """
        if torch.is_grad_enabled():
            return make()
        # A tensor made under inference_mode counts no versions and may not be changed outside of it.
        version = -1 if text.is_inference() else text._version
        if self._text is None or self._text.text is not text or self._text.version != version:
            self._text = _TextKeys(text, version, make())
        return self._text.layers

    def _context(self) -> list[int]:
        """Slots of the visible frames in the order of the stream."""
        place = self._place
        ring = self._ring_slots(place.next - place.ring, place.ring)
        return [*ring[: place.before_sink], *range(place.sink), *ring[place.before_sink :]]

    def _ring_slots(self, start: int, count: int) -> list[int]:
        return [self.stream.sink + (start + step) % self._ring_size for step in range(count)]

    def _merge(self, slot: int) -> None:
        """S <- a S + (1 - a) f for the sink's frame whose turn it is."""
        sink = self.stream.sink
        frame = self._place.merges % sink
        for stored, average in zip((self._keys, self._values), self._averages, strict=True):
            if self._place.merges == 0:
                average.copy_(stored[:, :, :sink])
            average[:, :, frame].lerp_(stored[:, :, slot].to(average.dtype), 1 - self.ema_decay)
            stored[:, :, frame].copy_(average[:, :, frame])
        if self._pools is not None and self.sparsity is not None:
            keys = self._keys[:, :, frame].flatten(0, 1)
            pooled = pool_frames(keys, self.stream, self.rope, self.sparsity.block)
            self._pools[:, :, frame].copy_(pooled.view_as(self._pools[:, :, frame]))
        self._place.merges += 1


def _runs(slots: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Stretches of neighbouring slots, with the place in the sequence at which each begins."""
    start = 0
    for end in range(1, len(slots) + 1):
        if end == len(slots) or slots[end] != slots[end - 1] + 1:
            yield start, slice(slots[start], slots[end - 1] + 1)
            start = end


def _put(store: Tensor, slots: Sequence[int], x: Tensor) -> None:
    """Write frames [B, f * tokens, ...] into slots of [B, slots, tokens, ...]; no gradient follows."""
    frames = x.detach().unflatten(1, (len(slots), -1))
    for start, run in _runs(slots):
        store[:, run].copy_(frames[:, start : start + run.stop - run.start])


def _as_stored(blocks: Tensor, slots: Sequence[int]) -> Tensor:
    """Blocks [B, H, Q, frames * n] of frames that lie in these slots, in the order of the slots' numbers."""
    frames = blocks.unflatten(3, (len(slots), -1))
    places = sorted(range(len(slots)), key=lambda place: slots[place])
    return torch.cat([frames[:, :, :, run] for _, run in _runs(places)], dim=3).flatten(3)


def _take(store: Tensor, slots: Sequence[int]) -> Tensor:
    """A copy of the frames in slots of [B, slots, tokens, ...]: [B, f * tokens, ...]."""
    parts = [store[:, run] for _, run in _runs(slots)] or [store[:, :0]]
    return torch.cat(parts, dim=1).flatten(1, 2)
