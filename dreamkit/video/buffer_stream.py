"""A moving buffer of frames at mixed noise levels, denoised together: what StreamDiT streams from.

Kodaira et al., "StreamDiT: Real-Time Streaming Text-to-Video Generation" (arXiv 2507.03745). The buffer holds N chunks
of c frames, almost clean at its front and noise at its back, and before them up to K finished frames, the reference.
Levels t_0 = 1 > t_1 > ... > t_(T - 1) > t_T = 0, T = s N, lead a chunk from noise to a clean one. Chunk i, counted from
the front, begins a round at t_((N - 1 - i) s), and a call of the network moves every chunk one level on,

    x <- x + (t_(k + 1) - t_k) v(x, t),      k of its own for every chunk, the finished frames at level 0

so after s calls, its micro steps, the front is clean: it is shown, and a chunk of noise enters at the back, level with
the others again. All frames of the buffer see one another, at positions that count within it: nothing depends on how
long the stream has run. N = 1 makes ordinary clips (with a reference, clips that go on), c = s = 1 is diagonal
denoising (Kim et al., "FIFO-Diffusion", arXiv 2405.11473).

The first buffer is cut from an ordinary clip that is denoised at one level for all frames, each chunk at the moment at
which the clip is as noisy as the chunk's place demands (as published, appendix 8). That takes (N - 1) s calls before
the s of the first chunk. By itself each chunk is then as it should be; how they depend on one another is not quite that
of a buffer, which wears off with the first chunks.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.checks import require
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import Controls
from dreamkit.video.pipeline import VideoTeacher, shifted
from dreamkit.video.rollout import ChunkDenoiser, chunk_noise, latent_size
from dreamkit.video.spoken_text import SpokenState, SpokenText
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import ControlTrail, TrailState


class _Memory(Protocol):
    @property
    def bytes(self) -> int:
        """What it takes, whatever the stream's length."""


class Denoiser(Protocol):
    """Makes the latents of one stream, chunk after chunk: a `ChunkDenoiser` or a `BufferDenoiser`."""

    chunk: int
    """Number of the next chunk."""

    @property
    def cache(self) -> _Memory:
        """What is kept from one chunk to the next."""

    def precision(self) -> AbstractContextManager[object]:
        """What to make chunks in."""

    def next(self, controls: Controls | None = None, source: Tensor | None = None) -> Tensor:
        """The next chunk's clean latents [1, C, f, H, W], made beside a source's where the model films one again."""

    def say(self, text: Tensor) -> None:
        """Change the prompt from the next chunk on."""

    def snapshot(self) -> Any:
        """Copy the state."""

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot of this stream, bit for bit."""


def new_denoiser(teacher: VideoTeacher, config: StreamConfig, seed: int, text: Tensor) -> Denoiser:
    """The denoiser that a configuration asks for: of a moving buffer, or over a rolling cache.

    Args:
        teacher: the student and its parts.
        config: of the stream.
        seed: of the noise, at least 0.
        text: [1, L, D] the first prompt.

    Raises:
        ConfigError: a size that the model can't make, or a configuration that pairs can't be streamed with.
    """
    if teacher.pairs:
        require("The buffer of a model that films a video again", config.buffer == 0, config.buffer, "0")
        # A cache that is computed anew reads all its frames at one level, and a source's are clean.
        require("The context's level of such a model", config.context_time == 0, config.context_time, "0")
    return (BufferDenoiser if config.buffer else ChunkDenoiser)(teacher, config, seed, text)


def buffer_levels(config: StreamConfig, shift: float) -> Tensor:
    """Noise levels of the frames of a buffer's chunks before and after every micro step, [s + 1, N c] float32.

    Args:
        config: of the stream, with a buffer.
        shift: moves them towards more noise, see `shifted`.
    """
    steps = len(config.times) // config.buffer
    down = shifted(torch.tensor([*config.times, 0.0], dtype=torch.float64), shift).float()
    begin = steps * torch.arange(config.buffer - 1, -1, -1)
    return down[begin + torch.arange(steps + 1)[:, None]].repeat_interleave(config.chunk, dim=1)


def buffer_flow(
    network: CausalTransformer,
    latents: Tensor,  # [1, C, F, H, W]
    levels: Tensor,  # [F]
    text: Tensor,  # [R, L, D]
    features: Tensor | None = None,  # [1, F * h * w, dim]
    guidance: float = 1.0,
) -> Tensor:
    """The flow that the network sees in a buffer, all frames seeing all.

        v = v(null) + guidance (v(prompt) - v(null))

    Args:
        network: of the stream.
        latents: of the buffer's frames.
        levels: their noise levels in [0, 1].
        text: the prompt's tokens; with guidance the prompt's and those of no prompt, R = 2.
        features: of the frames' controls.
        guidance: used where R = 2.

    Returns:
        [1, C, F, H, W] float32 (or float64).
    """
    rows = len(text)
    wide = None if features is None else features.expand(rows, -1, -1)
    times = (1000 * levels).expand(rows, -1)
    flow: Tensor = network(latents.expand(rows, -1, -1, -1, -1), times, text, wide)
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    return flow if rows == 1 else flow[1:] + guidance * (flow[:1] - flow[1:])


class MovingBuffer:
    """What lies in a stream's buffer between two rounds: the last finished frames and the chunks that are on their way.

    Args:
        shape: of the latents when the reference is full, [1, C, K + (N - 1) c, H, W].
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.bytes = 4 * torch.Size(shape).numel()
        """Memory that it takes at most; it does not grow with the stream."""
        self.latents: Tensor | None = None
        """[1, C, F, H, W] float32, never changed in place; `None` before the first round."""


@dataclass(frozen=True)
class BufferSnapshot:
    """All that the next chunk depends on."""

    chunk: int
    latents: Tensor | None
    text: SpokenState


class BufferDenoiser:
    """Makes the latents of one stream from a moving buffer, in one thread; see the module's docstring.

    A chunk's noise is a function of the seed and its number alone, and enters N - 1 chunks before the chunk is shown.

    Args:
        teacher: the student and its parts.
        config: of the stream, with a buffer.
        seed: of the noise, at least 0.
        text: [1, L, D] the first prompt.

    Attributes:
        chunk: number of the next chunk.
        cache: what is kept from one chunk to the next.

    Raises:
        ConfigError: no buffer, or a size that the model can't make.
    """

    def __init__(self, teacher: VideoTeacher, config: StreamConfig, seed: int, text: Tensor) -> None:
        require("The stream's buffer", config.buffer > 0, config.buffer, "at least one chunk")
        self.teacher = teacher
        self.config = config
        self.seed = seed
        self.chunk = 0
        shift = teacher.shift if config.shift is None else config.shift
        self._levels = buffer_levels(config, shift).to(teacher.device)
        height, width = latent_size(teacher, config.size)
        self._shape = (1, teacher.autoencoder.channels, config.chunk, height, width)
        kept = config.reference + (config.buffer - 1) * config.chunk
        self.cache = MovingBuffer((*self._shape[:2], kept, height, width))
        null = teacher.encode_prompt([""]) if config.guidance != 1 else None
        self._text = SpokenText(text.to(teacher.device), null, config.blend_chunks)

    def precision(self) -> AbstractContextManager[object]:
        """What to make chunks in: the same casts of the weights serve as long as one is open."""
        return torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=self.teacher.half_precision)

    @torch.inference_mode()
    def next(self, controls: Controls | None = None, source: Tensor | None = None) -> Tensor:
        """Denoise the buffer until its front is clean, and move it on.

        Args:
            controls: of all frames that lie in the buffer meanwhile: the reference that there is, then those of chunk
                `chunk` to `chunk + N - 1`, cameras relative to the first of them (see `BufferTrail`).
            source: none: a buffer is not filmed again.

        Returns:
            The front's clean latents [1, C, c, H, W].

        Raises:
            TeacherError: controls for a model that knows none.
            ConfigError: controls of another number of frames, or a source.
        """
        self.teacher.check_source(source)
        size, count = self.config.chunk, self.config.buffer
        text = self._text.next()
        begins = self.cache.latents is None
        noise = [self._noise(chunk) for chunk in range(self.chunk + (0 if begins else count - 1), self.chunk + count)]
        x = torch.cat(noise if self.cache.latents is None else [self.cache.latents, *noise], dim=2)
        features = self.teacher.features(controls, x)
        if begins:
            x = self._first_buffer(x, text, features)
        finished = x.shape[2] - count * size
        for before, after in itertools.pairwise(functional.pad(self._levels, (finished, 0))):
            x = self._step(x, before, after, text, features)
        self.chunk += 1
        # Copies: a view would hold the whole buffer for as long as the chunk waits to be decoded.
        self.cache.latents = x[:, :, max(0, finished + size - self.config.reference) :].clone()
        return x[:, :, finished : finished + size].clone()

    @torch.inference_mode()
    def say(self, text: Tensor) -> None:
        """Change the prompt from the next call of the network on, for all frames of the buffer at once.

        Those at its front keep most of what they are: a new prompt is seen fully N chunks later. With the
        configuration's switch "interpolate" it comes in over `blend_chunks` chunks besides.

        Args:
            text: [1, L, D].
        """
        gradually = self.config.switch == "interpolate" and self.chunk > 0
        self._text.say(text.to(self.teacher.device), gradually)

    def snapshot(self) -> BufferSnapshot:
        """The state; what it holds is never changed in place."""
        return BufferSnapshot(self.chunk, self.cache.latents, self._text.state)

    def restore(self, snapshot: BufferSnapshot) -> None:
        """Go back to a snapshot of this stream, bit for bit."""
        self.chunk, self.cache.latents, self._text.state = snapshot.chunk, snapshot.latents, snapshot.text

    def _noise(self, chunk: int) -> Tensor:
        return chunk_noise(self.seed, chunk, 1, self._shape)[0].to(self.teacher.device)

    def _step(self, x: Tensor, before: Tensor, after: Tensor, text: Tensor, features: Tensor | None) -> Tensor:
        flow = buffer_flow(self.teacher.network, x, before, text, features, self.config.guidance)
        return x + (after - before)[:, None, None] * flow

    def _first_buffer(self, noise: Tensor, text: Tensor, features: Tensor | None) -> Tensor:
        """A clip on its way from noise, every chunk of it as it was at the level at which it begins the first round."""
        size, frames = self.config.chunk, noise.shape[2]
        x, parts = noise, [noise[:, :, -size:]]
        # From the back of the buffer to its front, the levels of a chunk's round lead to where the next one begins.
        for start in range(frames - size, 0, -size):
            for before, after in itertools.pairwise(self._levels[:, start]):
                x = self._step(x, before.expand(frames), after.expand(frames), text, features)
            parts.insert(0, x[:, :, start - size : start])
        return torch.cat(parts, dim=2)


@dataclass(frozen=True)
class _FrameControls:
    """What a frame was asked to obey when it entered, besides its pose."""

    has_camera: bool
    tracks: Tensor | None
    """[N, 2]."""
    visible: Tensor | None
    """[N]."""


@dataclass(frozen=True)
class BufferTrailState(TrailState):
    """All that the controls of the next buffer depend on."""

    given: tuple[_FrameControls, ...]


class BufferTrail(ControlTrail):
    """Gives the controls of all frames of a stream's moving buffer, each time new ones have entered.

    A frame's controls are those of its own time in the stream, decided when it enters, and stay what they are; its pose
    is told anew each time, relative to the first frame of the buffer, as a training on clips tells it.

    Args:
        config: of the stream, with a buffer.
        stride: frames of video from one latent frame to the next.
    """

    def __init__(self, config: StreamConfig, stride: int) -> None:
        self._frames = config.reference + config.buffer * config.chunk
        super().__init__(self._frames, stride)
        self._given: tuple[_FrameControls, ...] = ()

    def next(self, frames: int) -> Controls | None:
        """Controls of the buffer after so many new latent frames have entered; `None` where nothing is steered."""
        own = super().next(frames) or Controls()
        has_camera = own.camera is not None
        entered = [
            _FrameControls(
                has_camera,
                None if own.tracks is None else own.tracks[0, frame],
                None if own.visible is None else own.visible[0, frame],
            )
            for frame in range(frames)
        ]
        self._given = (*self._given, *entered)[-self._frames :]
        camera, tracks = self._cameras(), self._tracks()
        return None if camera is None and tracks is None else Controls(camera, *(tracks or (None, None)))

    def state(self) -> BufferTrailState:
        """The state, cheap and never changed afterwards."""
        return BufferTrailState(**vars(super().state()), given=self._given)

    def restore(self, state: TrailState) -> None:
        """Go back to a state of this trail."""
        assert isinstance(state, BufferTrailState)
        super().restore(state)
        self._given = state.given

    def _cameras(self) -> Tensor | None:
        """[1, F, 12], a row of zeros where a frame's camera is not steered."""
        steered = torch.tensor([frame.has_camera for frame in self._given])
        poses: Tensor | None = self._camera.state()[2]  # of the last frames, steered or not
        if poses is None or not bool(steered.any()):
            return None
        relative = torch.linalg.inv(poses[0]) @ poses
        return (relative[:, :3].flatten(1) * steered[:, None])[None].float()

    def _tracks(self) -> tuple[Tensor, Tensor] | None:
        """[1, F, N, 2] places and [1, F, N] where they are seen, N the most points of a frame."""
        count = max((len(frame.tracks) for frame in self._given if frame.tracks is not None), default=0)
        if count == 0:
            return None
        places = torch.zeros(1, len(self._given), count, 2)
        seen = torch.zeros(1, len(self._given), count, dtype=torch.bool)
        for index, frame in enumerate(self._given):
            if frame.tracks is not None:
                points = len(frame.tracks)
                places[0, index, :points] = frame.tracks
                seen[0, index, :points] = True if frame.visible is None else frame.visible
        return places, seen
