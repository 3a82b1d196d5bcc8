"""What a stream is made with: its window, its denoising steps, its queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dreamkit.checks import one_of, require, require_integer, require_number
from dreamkit.errors import ConfigError
from dreamkit.video.attention_cache import SinkKind
from dreamkit.video.sparse_attention import Sparsity

Switch = Literal["recache", "interpolate"]
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class StreamConfig:
    """Settings of a stream. Frames of chunk, window and sink are latent ones.

    Raises:
        ConfigError: a setting out of range, or a chunk larger than its window.
    """

    size: tuple[int, int] = (64, 64)
    """Height and width of the frames in pixels."""
    fps: int = 12
    """Frames a second at which the video is meant to be played, 1 to 240."""
    chunk: int = 3
    """Frames that are made together."""
    window: int = 9
    """Frames before a chunk that it sees, at least a chunk."""
    sink: int = 3
    """First frames that stay visible for good."""
    sink_kind: SinkKind = "first"
    """What the sink holds, see `AttentionCache`."""
    sink_decay: float = 0.99
    """Of an "ema" sink, 0 to below 1."""
    times: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    """Noise levels of the denoising calls before the shift, from 1 down, above 0."""
    shift: float | None = None
    """Moves the levels towards more noise, the model's own by default; 5 makes 1, 0.9375, 0.8333, 0.625 of them."""
    context_time: float = 0.0
    """Noise level at which a finished chunk is read into the cache, 0 to below 1."""
    guidance: float = 1.0
    """Classifier-free guidance s in v(0) + s (v(y) - v(0)); 1 is none, as distilled students want it."""
    sparsity: Sparsity | None = None
    """Which blocks of attention are computed, in any form that `Sparsity.parse` reads; `None` is all."""
    buffer: int = 0
    """Chunks of a moving buffer that are denoised together, see `BufferDenoiser`; 0 streams over a rolling cache.
    `times` are then the levels that a chunk goes through, a multiple of it; the window means nothing, a sink, sparsity
    and a level of the context there are none, and a switch by recache is one at once: there is no cache."""
    reference: int = 0
    """Finished frames that stay visible at the front of a moving buffer."""
    switch: Switch = "recache"
    """What a new prompt does: compute what the window remembers anew with it, or come in gradually."""
    blend_chunks: int = 4
    """Chunks over which an interpolated prompt comes in, 1 to 1000."""
    ahead: int = 2
    """Chunks that may wait to be decoded, and as many to be read, 1 to 64."""
    overlap: bool | None = None
    """Whether threads of their own denoise and decode; by default on a GPU, and on a CPU of four cores or more."""
    snapshot_every: int = 8
    """Chunks from one automatic snapshot to the next, at least 1."""
    snapshot_mb: int = 256
    """Memory for snapshots to rewind to, MB; 0 keeps only the newest that was asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sparsity", Sparsity.parse(self.sparsity))
        one_of("The sink", self.sink_kind, get_args(SinkKind))
        one_of("The switch of prompts", self.switch, get_args(Switch))
        require_integer("The stream's chunk", self.chunk, 1, 10_000)
        require_integer("The stream's window", self.window, 1, 10_000)
        require_integer("The stream's sink", self.sink, 0, 10_000)
        if self.chunk > self.window:
            raise ConfigError(
                f"A chunk of {self.chunk} frames does not fit into a window of {self.window}.",
                "Use a window of at least one chunk.",
            )
        require("The size", len(self.size) == 2 and all(side > 0 for side in self.size), self.size, "positive sides")
        for name, low, high in (("fps", 1, 240), ("blend_chunks", 1, 1000), ("ahead", 1, 64)):
            require_integer(f"The stream's {name}", getattr(self, name), low, high)
        require_integer("The stream's snapshot_every", self.snapshot_every, 1)
        require_integer("The stream's snapshot_mb", self.snapshot_mb, 0)
        falling = all(later < earlier for earlier, later in zip(self.times, self.times[1:], strict=False))
        begins = len(self.times) > 0 and self.times[0] == 1.0 and self.times[-1] > 0
        require("The stream's times", begins and falling, list(self.times), "levels that fall from 1, all above 0")
        require("The stream's shift", self.shift is None or 0 < self.shift < 1e6, self.shift, "a positive number")
        require("The context's level", 0 <= self.context_time < 1, self.context_time, "a number from 0 to below 1")
        require("The sink's decay", 0 <= self.sink_decay < 1, self.sink_decay, "a number from 0 to below 1")
        require_number("The guidance", self.guidance, 0, MAX_GUIDANCE)
        require_integer("The stream's buffer", self.buffer, 0, 10_000)
        require_integer("The stream's reference", self.reference, 0, 10_000)
        if self.buffer:
            self._check_buffer()
        else:
            require("The reference of a stream", self.reference == 0, self.reference, "0, or a moving buffer")

    def _check_buffer(self) -> None:
        if len(self.times) % self.buffer:
            raise ConfigError(
                f"The {len(self.times)} noise levels can't be shared out among the {self.buffer} chunks of the buffer.",
                "Every chunk takes as many micro steps, at least 1: use a multiple of the buffer's chunks.",
            )
        require("The sink of a moving buffer", self.sink == 0, self.sink, "0: it has none, but may have a reference")
        require("The sparsity of a moving buffer", self.sparsity is None, self.sparsity, "none: all its frames see all")
        require("The context's level", self.context_time == 0, self.context_time, "0 with a buffer: it has no cache")
