"""What runs inside a stream: one line of works from the denoiser through the decoder to the reader.

    denoise -> queue of latents -> decode -> queue of frames -> reader

in two threads of its own, or all in the reader's. Commands are read between two chunks, so a chunk is made under one
prompt and one set of controls. Both queues are bounded: a reader that stops stops everything.

Over a moving buffer a prompt changes what is made from the next chunk on, while controls are those of the frames that
enter: they are asked for some chunks ahead of the one that is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamkit.video.autoencoders import StreamDecoder
from dreamkit.video.buffer_stream import BufferTrail, new_denoiser
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import source_chunk
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import ControlTrail, Steering, TrailState
from dreamkit.video.stream_metrics import StreamMeter
from dreamkit.video.stream_queue import BoundedQueue, Closed

_MAX_EVENTS = 4096
_OVERLAP_THREADS = 4  # with two, the threads of denoising and decoding take each other's time


@dataclass(frozen=True)
class StreamFrame:
    """A frame of a stream."""

    number: int
    """0, 1, 2, ...; after a rewind numbers come again."""
    pixels: Tensor
    """[H, W, 3] uint8, on the CPU."""
    prompt: str
    """Under which its chunk was made."""


@dataclass(frozen=True)
class Event:
    """A change of prompt, or of controls, at the first chunk that begins at its frame or later."""

    at: int | None
    """Frame of video; `None` is the next chunk."""
    prompt: str | None = None
    text: Tensor | None = None
    """[1, L, D] the prompt's tokens."""
    steering: Steering | None = None
    given: int | None = None
    """Frame that came next when it was given while playing, for the next chunk: going back to before it forgets it."""


@dataclass
class Snapshot:
    """All that the frames from a chunk on depend on; the decoder puts its share in when it comes to that chunk."""

    chunk: int
    frame: int
    denoiser: Any
    trail: TrailState
    prompt: str
    is_wanted: bool
    decoder: StreamDecoder | None = None


@dataclass(frozen=True)
class _Work:
    """A chunk of latents on its way."""

    epoch: int
    first: int
    show_from: int
    prompt: str
    latents: Tensor
    save: Snapshot | None
    restore: Snapshot | None


@dataclass(frozen=True)
class _Shown:
    epoch: int
    frame: StreamFrame


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Frames:
    """Which frames of video the latent frames of a stream give: the first one 1, every other `stride`."""

    def __init__(self, stride: int, chunk: int) -> None:
        self.stride = stride
        self.chunk = chunk

    def first(self, chunk: int) -> int:
        """Number of a chunk's first frame."""
        latents = chunk * self.chunk
        return 0 if latents == 0 else 1 + self.stride * (latents - 1)

    def chunk_of(self, frame: int) -> int:
        """The chunk that a frame is in."""
        latent = 0 if frame == 0 else 1 + (frame - 1) // self.stride
        return latent // self.chunk


class Shelf:
    """Snapshots to go back to, as many as memory is given for; those that were asked for stay longest.

    Args:
        megabytes: of memory.
        each: bytes of a snapshot.
    """

    def __init__(self, megabytes: int, each: int) -> None:
        self.room = int(megabytes * 1_000_000 // max(each, 1))
        self._kept: list[Snapshot] = []

    @property
    def frames(self) -> list[int]:
        """Frames at which they were taken, in order."""
        return sorted(item.frame for item in self._kept)

    def has(self, chunk: int) -> bool:
        """Whether there is one of a chunk."""
        return any(item.chunk == chunk for item in self._kept)

    def add(self, snapshot: Snapshot) -> None:
        """Keep one; the oldest that nobody asked for leaves, then the oldest."""
        self._kept.append(snapshot)
        while len(self._kept) > max(self.room, 1):
            self._kept.remove(min(self._kept, key=lambda item: (item.is_wanted, item.chunk)))

    def latest(self, chunk: int) -> Snapshot | None:
        """The last one at a chunk or before it."""
        return max((item for item in self._kept if item.chunk <= chunk), key=lambda item: item.chunk, default=None)

    def forget_after(self, chunk: int) -> None:
        """Forget those of later chunks."""
        self._kept = [item for item in self._kept if item.chunk <= chunk]


class StreamEngine:
    """The machinery of one stream; `StreamSession` is its handle.

    Args:
        teacher: the student and its parts.
        config: of the stream.
        seed: of the noise.
        prompt: the first one.
        text: [1, L, D] its tokens.
        steering: the first controls.
        frames: how many to make; `None` is no end.
        source: [1, C, F, h, w] latents of a video that is filmed again, for a model that does that.
    """

    def __init__(
        self,
        teacher: VideoTeacher,
        config: StreamConfig,
        seed: int,
        prompt: str,
        text: Tensor,
        steering: Steering,
        frames: int | None,
        source: Tensor | None = None,
    ) -> None:
        stride = teacher.autoencoder.temporal_factor
        self.config = config
        self.total = frames
        self.frames = Frames(stride, config.chunk)
        self.denoiser = new_denoiser(teacher, config, seed, text)
        until_full = config.chunk + config.reference if config.buffer else config.sink + config.window
        self.meter = StreamMeter(config.fps, -(-until_full // config.chunk))
        self.shelf = Shelf(config.snapshot_mb, self.denoiser.cache.bytes)
        self.shown = -1
        self._device = teacher.device
        self._autoencoder = teacher.autoencoder
        self._decoder = teacher.autoencoder.stream()
        window = None if teacher.pairs else config.window
        self._trail = BufferTrail(config, stride) if config.buffer else ControlTrail(window, stride)
        self._source_latents = source
        self._lookahead = max(0, config.buffer - 1)
        self._trail.follow(steering)
        self._prompt = prompt
        self._changed = threading.Condition()
        self._commands: list[Event | int] = []  # an int is a frame to go back to
        self._schedule: list[Event] = []
        self._wants_snapshot = False
        self._is_paused = False
        self._is_closed = False
        self._epoch = self._asked_epoch = 0
        self._show_from = 0
        self._restore: Snapshot | None = None
        self._start = self._snapshot(is_wanted=True)
        self._latents: BoundedQueue[_Work | _Failure] = BoundedQueue(config.ahead)
        self._pictures: BoundedQueue[_Shown | _Failure] = BoundedQueue(config.ahead * config.chunk * stride)
        self._threads: list[threading.Thread] = []
        self._source: Callable[[], _Shown] | None = None

    # For the reader and whoever gives commands -------------------------------------------------------------------

    @property
    def overlaps(self) -> bool:
        """Whether denoising and decoding have threads of their own."""
        if self.config.overlap is not None:
            return self.config.overlap
        return self._device.type != "cpu" or torch.get_num_threads() >= _OVERLAP_THREADS

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return self._is_paused

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._is_closed

    @property
    def earliest(self) -> int:
        """The first frame that can be gone back to."""
        return self._start.frame

    def order(self, command: Event) -> None:
        """Take a command, read before the next chunk."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify_all()

    def rewind(self, frame: int) -> None:
        """Let `frame` be the next frame that is read."""
        with self._changed:
            self._asked_epoch += 1
            self._commands.append(frame)
            self.shown = frame - 1
            self._changed.notify_all()

    def want_snapshot(self) -> None:
        """Take a snapshot before the next chunk."""
        with self._changed:
            self._wants_snapshot = True

    def pause(self, is_paused: bool) -> None:
        """Stand still, or go on."""
        with self._changed:
            self._is_paused = is_paused
            (self.meter.pause if is_paused else self.meter.resume)()
            self._changed.notify_all()

    def read(self) -> StreamFrame:
        """The next frame; waits for it, and as long as the stream is paused.

        Raises:
            Closed: the stream is over.
            BaseException: whatever went wrong in a thread.
        """
        if self._source is None:
            self._begin()
        assert self._source is not None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or not self._is_paused)
            if self._is_closed:
                raise Closed
            shown = self._source()
            with self._changed:
                if shown.epoch != self._asked_epoch:
                    continue  # of a time that was taken back
                if self._is_paused:
                    self._changed.wait_for(lambda: self._is_closed or not self._is_paused)
                    if shown.epoch != self._asked_epoch:
                        continue
                self.shown = shown.frame.number
            self.meter.frame()
            return shown.frame

    def close(self) -> None:
        """Stop everything and wait for the threads; a chunk that is being made is finished first."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._latents.close()
        self._pictures.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _begin(self) -> None:
        self.meter.open()
        if not self.overlaps:
            frames = self._in_this_thread()
            self._source = lambda: _next_or_closed(frames)
            return
        # Daemons: a session that nobody closed must not keep the interpreter from ending.
        for name, run in (("denoise", self._denoise_all), ("decode", self._decode_all)):
            self._threads.append(threading.Thread(target=run, name=f"dreamkit-stream-{name}", daemon=True))
        self._source = self._from_queue
        for thread in self._threads:
            thread.start()

    # Threads -----------------------------------------------------------------------------------------------------

    def _from_queue(self) -> _Shown:
        item = self._pictures.get()
        if isinstance(item, _Failure):
            raise item.error
        return item

    def _in_this_thread(self) -> Iterator[_Shown]:
        while (work := self._next_work()) is not None:
            yield from self._decode(work)

    def _denoise_all(self) -> None:
        try:
            # Kept open: the weights are cast once, not once a chunk.
            with self._own_stream(), self.denoiser.precision():
                while (work := self._next_work()) is not None:
                    self._latents.put(work)
        except Closed:
            pass
        except BaseException as error:
            _pass_on(self._latents, error)

    def _decode_all(self) -> None:
        try:
            with self._own_stream():
                while True:
                    work = self._latents.get()
                    if isinstance(work, _Failure):
                        raise work.error
                    for shown in self._decode(work):
                        self._pictures.put(shown)
        except Closed:
            pass
        except BaseException as error:
            _pass_on(self._pictures, error)

    def _own_stream(self) -> AbstractContextManager[object]:
        """On a GPU, a queue of operations of this thread's own, so that decoding overlaps denoising there too."""
        if self._device.type != "cuda":
            return nullcontext()
        return torch.cuda.stream(torch.cuda.Stream(self._device))

    def _finish_device(self) -> None:
        """Wait for what this thread has asked of a GPU: another thread's stream will use it."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    # Denoising ---------------------------------------------------------------------------------------------------

    def _next_work(self) -> _Work | None:
        """Obey the commands and make the next chunk; `None` when the stream is closed."""
        with self._changed:
            self._changed.wait_for(self._may_go_on)
            if self._is_closed:
                return None
            commands, self._commands = self._commands, []
            wants, self._wants_snapshot = self._wants_snapshot, False
        self._obey(commands)
        start = time.perf_counter()
        chunk = self.denoiser.chunk
        first, after = self.frames.first(chunk), self.frames.first(chunk + 1)
        save = self._kept_snapshot(wants)
        with self.denoiser.precision():
            for event in self._due(chunk):
                if event.prompt is not None and event.text is not None:
                    self.denoiser.say(event.text)
                    self._prompt = event.prompt
            latents = self.denoiser.next(self._next_controls(chunk), self._source_of(chunk))
            self._finish_device()
        self.meter.chunk(after - first, time.perf_counter() - start)
        restore, self._restore = self._restore, None
        return _Work(self._epoch, first, self._show_from, self._prompt, latents, save, restore)

    def _may_go_on(self) -> bool:
        if self._is_closed or any(isinstance(command, int) for command in self._commands):
            return True
        is_done = self.total is not None and self.frames.first(self.denoiser.chunk) >= self.total
        return not self._is_paused and not is_done

    def _obey(self, commands: list[Event | int]) -> None:
        """Go back, and put the other commands on the schedule."""
        for command in commands:
            if isinstance(command, int):
                self._go_back(command)
                continue
            chunk = self.denoiser.chunk
            first = self.frames.first(chunk if command.steering is None else self._entering(chunk))
            if command.at is None:
                self._schedule.append(replace(command, at=first, given=self.frames.first(chunk)))
            else:
                self._schedule.append(replace(command, at=max(command.at, first)))
        if len(self._schedule) > _MAX_EVENTS:
            # Nothing may grow for ever: the stream's beginning is forgotten.
            self.shelf.forget_after(-1)
            self._start = self._snapshot(is_wanted=True)
            self._schedule = [event for event in self._schedule if (event.at or 0) >= self._start.frame]

    def _go_back(self, frame: int) -> None:
        chunk = self.frames.chunk_of(frame)
        snapshot = self.shelf.latest(chunk) or self._start
        self.shelf.forget_after(chunk)
        self.denoiser.restore(snapshot.denoiser)
        self._trail.restore(snapshot.trail)
        self._prompt = snapshot.prompt
        self._schedule = [event for event in self._schedule if event.given is None or event.given <= frame]
        self._restore, self._show_from = snapshot, frame
        self._epoch += 1

    def _due(self, chunk: int) -> list[Event]:
        """Events of a chunk: those whose frame lies after the beginning of the chunk before it."""
        first = self.frames.first(chunk)
        before = self.frames.first(chunk - 1) if chunk else -1
        return [event for event in self._schedule if event.at is not None and before < event.at <= first]

    def _entering(self, chunk: int) -> int:
        """The first of the chunks that enter when one is made: itself, or one ahead of it, or at first all of them."""
        return chunk + self._lookahead if chunk else 0

    def _next_controls(self, chunk: int) -> Controls | None:
        """What the denoiser is to obey when it makes a chunk."""
        controls = None
        for entering in range(self._entering(chunk), chunk + self._lookahead + 1):
            for event in self._due(entering):
                if event.steering is not None:
                    # A later latent frame stands for the last of its frames of video.
                    self._trail.follow(event.steering, self.frames.stride - 1 if entering else 0)
            controls = self._trail.next(self.config.chunk)
        return controls

    def _source_of(self, chunk: int) -> Tensor | None:
        """The source's frames of a chunk, where a video is filmed again."""
        if self._source_latents is None:
            return None
        return source_chunk(self._source_latents, chunk * self.config.chunk, self.config.chunk)

    def _kept_snapshot(self, is_wanted: bool) -> Snapshot | None:
        """A snapshot of this moment, where one is wanted or due."""
        chunk = self.denoiser.chunk
        is_due = chunk % self.config.snapshot_every == 0 and self.shelf.room > 0
        if chunk == self._start.chunk:
            return self._start
        if self.shelf.has(chunk) or not (is_wanted or is_due):
            return None
        snapshot = self._snapshot(is_wanted)
        self.shelf.add(snapshot)
        return snapshot

    def _snapshot(self, is_wanted: bool) -> Snapshot:
        chunk = self.denoiser.chunk
        state = self.denoiser.snapshot()
        return Snapshot(chunk, self.frames.first(chunk), state, self._trail.state(), self._prompt, is_wanted)

    # Decoding ----------------------------------------------------------------------------------------------------

    def _decode(self, work: _Work) -> Iterator[_Shown]:
        """The frames of a chunk, as they are decoded."""
        if work.restore is not None:
            assert work.restore.decoder is not None
            self._decoder = work.restore.decoder.fork()
        if work.save is not None and work.save.decoder is None:
            work.save.decoder = self._decoder.fork()
        number = work.first
        # Latent frames of several frames are decoded one by one: the first ones leave sooner.
        parts = [work.latents] if self.frames.stride == 1 else work.latents.split(1, dim=2)
        for part in parts:
            frames = self._decoder.decode(part)[0]
            pixels = (255 * frames).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu()
            if number == work.first:
                self.meter.look(number, pixels[0])
            for picture in pixels:
                is_over = self.total is not None and number >= self.total
                if number >= work.show_from and not is_over:
                    yield _Shown(work.epoch, StreamFrame(number, picture, work.prompt))
                number += 1


def _pass_on(queue: BoundedQueue[_Work | _Failure] | BoundedQueue[_Shown | _Failure], error: BaseException) -> None:
    with suppress(Closed):
        queue.put(_Failure(error))


def _next_or_closed(frames: Iterator[_Shown]) -> _Shown:
    for shown in frames:
        return shown
    raise Closed
