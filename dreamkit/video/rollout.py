"""Few-step denoising of a stream's chunks, each over the cache of those before it.

    x_1 = eps_1,   x0 = x_t - t v(x_t, t),   x_t' = (1 - t') x0 + t' eps_t'

down a list of noise levels, with fresh noise for each (Yin et al., "From Slow Bidirectional to Fast Autoregressive
Video Diffusion Models", arXiv 2412.07772; Huang et al., "Self Forcing", arXiv 2506.08009); then one pass over the clean
chunk writes its keys and values. The noise of a chunk is a function of the seed and its number alone, so a stream that
goes back plays the same again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor

from dreamkit.checks import require
from dreamkit.video.attention_cache import AttentionCache, CacheSnapshot
from dreamkit.video.causal_transformer import CausalTransformer
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import interleave, paired_controls, paired_stream, target_levels, targets
from dreamkit.video.pipeline import VideoTeacher, shifted
from dreamkit.video.spoken_text import SpokenState, SpokenText
from dreamkit.video.stream_config import StreamConfig


def chunk_noise(seed: int, chunk: int, count: int, shape: Sequence[int]) -> Tensor:
    """The standard normal noise of a chunk, the same on every machine's CPU.

    Args:
        seed: of the stream, at least 0.
        chunk: its number in the stream.
        count: how many tensors of noise.
        shape: of each.

    Returns:
        [count, *shape] float32 on the CPU.
    """
    # SeedSequence mixes: neighbouring seeds and chunks have nothing in common.
    state = int(np.random.SeedSequence([seed, chunk]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(state & (2**63 - 1))
    return torch.randn(count, *shape, generator=generator)


def chunk_flow(
    network: CausalTransformer,
    latents: Tensor,  # [1, C, f, H, W]
    t: float,
    text: Tensor,  # [R, L, D]
    cache: AttentionCache,
    features: Tensor | None = None,  # [1, f' * h * w, dim]
    guidance: float = 1.0,
    write: bool = False,
    source: Tensor | None = None,  # [1, C, f, H, W]
) -> Tensor:
    """The flow that the network sees in a chunk.

        v = v(null) + guidance (v(prompt) - v(null))

    Args:
        network: of the stream.
        latents: the chunk, noisy, or clean for the pass that writes.
        t: its noise level in [0, 1].
        text: the prompt's tokens; with guidance the prompt's and those of no prompt, R = 2, the cache's batch.
        cache: of the stream.
        features: of the chunk's controls.
        guidance: used where R = 2.
        write: see `CausalTransformer.step`.
        source: clean frames beside which the chunk's are made, see `dreamkit.video.pairs`; the features are then of
            pairs.

    Returns:
        [1, C, f, H, W] float32 (or float64).
    """
    rows = len(text)
    times = torch.full((rows,), 1000 * t, dtype=torch.float32, device=latents.device)
    if source is not None:
        latents = interleave(source, latents)
        times = target_levels(times[:, None].expand(-1, latents.shape[2]))
    wide = None if features is None else features.expand(rows, -1, -1)
    flow = network.step(latents.expand(rows, -1, -1, -1, -1), times, text, cache, wide, write=write)
    flow = flow if source is None else targets(flow)
    flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
    return flow if rows == 1 else flow[1:] + guidance * (flow[:1] - flow[1:])


def denoise_chunk(
    network: CausalTransformer,
    noise: Tensor,  # [K, 1, C, f, H, W]
    times: Sequence[float],
    text: Tensor,  # [R, L, D]
    cache: AttentionCache,
    features: Tensor | None = None,  # [1, f' * h * w, dim]
    guidance: float = 1.0,
    source: Tensor | None = None,  # [1, C, f, H, W]
) -> Tensor:
    """Make the next chunk of noise, without writing it; see the module's docstring.

    Args:
        network: of the stream.
        noise: standard normal, one for each call.
        times: K noise levels, from 1 down.
        text: see `chunk_flow`.
        cache: of the stream.
        features: of the chunk's controls.
        guidance: see `chunk_flow`.
        source: see `chunk_flow`.

    Returns:
        The clean latents [1, C, f, H, W].

    Raises:
        ConfigError: another number of noises than of levels.
    """
    require("The number of noises", len(noise) == len(times) > 0, len(noise), f"{len(times)}, one for each level")
    x0 = noise[0]
    for eps, t in zip(noise, times, strict=True):
        x_t = eps if t == 1 else (1 - t) * x0 + t * eps
        x0 = x_t - t * chunk_flow(network, x_t, t, text, cache, features, guidance, source=source)
    return x0


def prepared_cache(teacher: VideoTeacher, config: StreamConfig) -> AttentionCache:
    """An empty cache for a stream of a model, in the dtype that its device's attention computes in.

    Raises:
        ConfigError: a size that the model can't make.
    """
    rows, columns = token_size(teacher, config.size)
    weight = teacher.network.proj_out.weight
    dtype = torch.bfloat16 if teacher.half_precision else weight.dtype
    if dtype == torch.float16 and not weight.is_cuda:
        dtype = torch.float32  # a CPU's kernels know no float16
    sink = config.sink_kind if config.sink else "none"
    stream = Stream(rows, columns, config.chunk, config.sink, config.window)
    return AttentionCache(
        layers=teacher.network.config.num_layers,
        heads=teacher.network.config.num_attention_heads,
        rope=teacher.network.rope,
        stream=paired_stream(stream) if teacher.pairs else stream,
        batch=1 if config.guidance == 1 else 2,
        sink=sink,
        ema_decay=config.sink_decay,
        keep_inputs=config.switch == "recache",
        dtype=dtype,
        device=weight.device,
        sparsity=config.sparsity,
    )


def latent_size(teacher: VideoTeacher, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the latents of frames of a size in pixels.

    Raises:
        ConfigError: the sides don't divide into latents and patches.
    """
    factor = teacher.autoencoder.spatial_factor
    _, *patch = teacher.network.config.patch_size
    steps = [factor * side for side in patch]
    fits = all(pixels % step == 0 for pixels, step in zip(size, steps, strict=True))
    require("The frames' [height, width]", fits, list(size), f"multiples of {steps}")
    return size[0] // factor, size[1] // factor


def token_size(teacher: VideoTeacher, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens of frames of a size in pixels; raises as `latent_size`."""
    height, width = latent_size(teacher, size)
    _, *patch = teacher.network.config.patch_size
    return height // patch[0], width // patch[1]


@dataclass(frozen=True)
class DenoiserSnapshot:
    """A copy of all that the next chunk depends on."""

    chunk: int
    cache: CacheSnapshot | None
    text: SpokenState


class ChunkDenoiser:
    """Makes the latents of one stream, chunk after chunk, in one thread.

    Args:
        teacher: the student and its parts.
        config: of the stream.
        seed: of the noise, at least 0.
        text: [1, L, D] the first prompt.

    Raises:
        ConfigError: a size that the model can't make.
    """

    def __init__(self, teacher: VideoTeacher, config: StreamConfig, seed: int, text: Tensor) -> None:
        self.teacher = teacher
        self.config = config
        self.seed = seed
        self.cache = prepared_cache(teacher, config)
        shift = teacher.shift if config.shift is None else config.shift
        self.times = tuple(shifted(torch.tensor(config.times, dtype=torch.float64), shift).tolist())
        self.chunk = 0
        height, width = latent_size(teacher, config.size)
        self.shape = (1, teacher.autoencoder.channels, config.chunk, height, width)
        null = teacher.encode_prompt([""]) if config.guidance != 1 else None
        self._text = SpokenText(text.to(teacher.device), null, config.blend_chunks)

    def precision(self) -> AbstractContextManager[object]:
        """What to make chunks in: the same casts of the weights serve as long as one is open."""
        return torch.autocast(self.teacher.device.type, torch.bfloat16, enabled=self.teacher.half_precision)

    @torch.inference_mode()
    def next(self, controls: Controls | None = None, source: Tensor | None = None) -> Tensor:
        """Make the next chunk and make it part of the stream.

        Args:
            controls: of its latent frames.
            source: [1, C, f, H, W] latents beside which it is made, by a model that films a video again.

        Returns:
            Its clean latents [1, C, f, H, W].

        Raises:
            TeacherError: controls for a model that knows none.
            ConfigError: a source for a model that wants none, or none for one that does.
        """
        self.teacher.check_source(source)
        network, device = self.teacher.network, self.teacher.device
        context = self.config.context_time
        count = len(self.times) + (context > 0)
        noise = chunk_noise(self.seed, self.chunk, count, self.shape).to(device)
        if source is not None:
            controls, source = paired_controls(controls, 1, self.config.chunk), source.to(device)
        features = self.teacher.features(controls, noise[0])
        text = self._text.next()
        arguments = (text, self.cache, features, self.config.guidance)
        x0 = denoise_chunk(network, noise[: len(self.times)], self.times, *arguments, source=source)
        seen = x0 if context == 0 else (1 - context) * x0 + context * noise[-1]
        chunk_flow(network, seen, context, *arguments, write=True, source=source)
        self.chunk += 1
        return x0

    @torch.inference_mode()
    def say(self, text: Tensor) -> None:
        """Change the prompt from the next chunk on, as the configuration's `switch` says.

        Args:
            text: [1, L, D].
        """
        gradually = self.config.switch == "interpolate" and self.chunk > 0
        after = self._text.say(text.to(self.teacher.device), gradually)
        if self.config.switch == "recache":
            self.teacher.network.recache(after, self.cache, timestep=1000 * self.config.context_time)

    def snapshot(self) -> DenoiserSnapshot:
        """Copy the state; of a stream that has not begun it takes no memory."""
        return DenoiserSnapshot(self.chunk, self.cache.snapshot() if self.chunk else None, self._text.state)

    def restore(self, snapshot: DenoiserSnapshot) -> None:
        """Go back to a snapshot of this stream, bit for bit."""
        if snapshot.cache is None:
            self.cache.reset()
        else:
            self.cache.restore(snapshot.cache)
        self.chunk, self._text.state = snapshot.chunk, snapshot.text
