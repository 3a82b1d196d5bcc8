"""Clips that a causal student makes in training, with gradients where they are wanted.

On its own history, chunk by chunk over a cache, exactly as `dreamkit.video.rollout.ChunkDenoiser` streams it (Huang et
al., "Self Forcing", arXiv 2506.08009): a random exit among the steps of a chunk, the same for all of them, and the
gradient only through the call at the exit. Or behind the data's history, every chunk from a noisy clip at one of the
student's levels, in one pass (as CausVid, Yin et al., arXiv 2412.07772).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from dreamkit_kernels.stream_attention import Stream
from torch import Tensor

from dreamkit.checks import require
from dreamkit.objectives.causal_video import clean_clip, noisy_clip
from dreamkit.training.student_networks import StudentNetworks
from dreamkit.video.attention_cache import AttentionCache, SinkKind
from dreamkit.video.controls import Controls
from dreamkit.video.pairs import interleave, target_levels, targets
from dreamkit.video.sparse_attention import Sparsity


@dataclass(frozen=True)
class Rollout:
    """What a student made.

    Args:
        x: clean latents [B, C, F, h, w].
        levels: of the call that made each frame, [B, F].
    """

    x: Tensor
    levels: Tensor


@dataclass(frozen=True)
class Roller:
    """How a student is rolled out.

    Args:
        stream: chunk, sink, window and the tokens of a frame.
        levels: at which the student is asked for a chunk, from 1 down.
        sink_kind: what its cache keeps as its sink.
        sink_decay: of an "ema" sink.
        sparsity: which blocks of its attention are computed; `None` is all.
    """

    stream: Stream
    levels: Sequence[float]
    sink_kind: SinkKind = "first"
    sink_decay: float = 0.99
    sparsity: Sparsity | None = None

    def on_itself(
        self,
        networks: StudentNetworks,
        shape: tuple[int, int, int, int, int],  # B, C, F, h, w
        text: Tensor,  # [B, L, D]
        controls: Controls | None,
        generator: torch.Generator,
        trained: bool,
        before: int = 0,
        text_before: Tensor | None = None,  # [B, L, D]
        source: Tensor | None = None,  # [B, C, F, h, w]
    ) -> Rollout:
        """Roll a student out on its own history.

        Args:
            networks: the student.
            shape: of the clip that is returned, whole chunks.
            text: its prompts.
            controls: of its frames; none where chunks come before it.
            generator: source of the exit and of the noise, on the CPU.
            trained: whether gradients are wanted, through the exits' calls.
            before: chunks that come first and are not returned; they carry the cache along.
            text_before: their prompts, the same by default; at the clip's beginning the cache is computed anew.
            source: clips that are filmed again: stream and controls are then of pairs, and so is what is returned (see
                `dreamkit.video.pairs`). No chunks come before them.

        Raises:
            ConfigError: shapes that don't fit.
        """
        batch, channels, frames, height, width = shape
        require("The chunks before a clip that is filmed again", source is None or before == 0, before, "0")
        step, device = 1 if source is None else 2, text.device
        chunk = self.stream.chunk // step
        exit_at = int(torch.randint(len(self.levels), (), generator=generator))
        switches = text_before is not None and before > 0
        cache = self._new_cache(networks, batch, device, keep_inputs=switches)
        current = text_before if switches and text_before is not None else text
        parts: list[Tensor] = []
        # One block, so that the casts of the weights serve all calls.
        with torch.autocast(device.type, torch.bfloat16, enabled=networks.half_precision):
            for index in range(before + -(-frames // chunk)):
                if index == before and switches:
                    networks.transformer.recache(text, cache)
                    current = text
                made = index - before
                size = min(chunk, frames - made * chunk) if made >= 0 else chunk
                noise = torch.randn(len(self.levels), batch, channels, size, height, width, generator=generator)
                start, stop = made * chunk, made * chunk + size
                own = None if controls is None or made < 0 else controls.frames(step * start, step * stop)
                features = self._features(networks, own)
                beside = None if source is None else source[:, :, start:stop]
                wanted = trained and made >= 0
                x0 = self._chunk(networks, noise.to(device), current, cache, features, exit_at, wanted, beside)
                with torch.no_grad():
                    self._call(networks, x0.detach(), 0.0, current, cache, features, write=True, source=beside)
                if made >= 0:
                    parts.append(x0)
        x = torch.cat(parts, dim=2)
        levels = torch.full((batch, step * frames), self.levels[exit_at], device=device)
        return Rollout(x, levels) if source is None else Rollout(interleave(source, x), target_levels(levels))

    def on_data(
        self,
        networks: StudentNetworks,
        data: Tensor,  # [B, C, F, h, w]
        text: Tensor,  # [B, L, D]
        controls: Controls | None,
        generator: torch.Generator,
        trained: bool,
        pairs: bool = False,
    ) -> Rollout:
        """Let a student clean noisy clips of the data, every chunk at one of its levels, behind the noisy ones before.

        Args:
            networks: the student.
            data: clean clips.
            text: their prompts.
            controls: of their frames.
            generator: source of levels and noise, on the CPU.
            trained: whether gradients are wanted.
            pairs: whether the clips are pairs, whose source frames are clean.
        """
        batch, frames, chunk = data.shape[0], data.shape[2], self.stream.chunk
        which = torch.randint(len(self.levels), (batch, -(-frames // chunk)), generator=generator)
        grid = torch.tensor(list(self.levels), device=data.device)
        levels = grid[which.to(data.device)].repeat_interleave(chunk, dim=1)[:, :frames]
        levels = target_levels(levels) if pairs else levels
        x_t = noisy_clip(data, torch.randn(data.shape, generator=generator).to(data), levels)
        with nullcontext() if trained else torch.no_grad():
            flow = networks(x_t, levels, text, controls, self.stream, sparsity=self.sparsity)
            x0 = clean_clip(x_t, flow, levels)
        return Rollout(x0, levels)

    def _chunk(
        self,
        networks: StudentNetworks,
        noise: Tensor,  # [K, B, C, f, h, w]
        text: Tensor,
        cache: AttentionCache,
        features: Tensor | None,
        exit_at: int,
        trained: bool,
        source: Tensor | None = None,
    ) -> Tensor:
        """The clean chunk of the call at the exit; calls before it have no gradient."""
        x0 = noise[0]
        for index in range(exit_at + 1):
            t = self.levels[index]
            x_t = (1 - t) * x0 + t * noise[index] if t < 1 else noise[index]
            with nullcontext() if trained and index == exit_at else torch.no_grad():
                x0 = x_t - t * self._call(networks, x_t, t, text, cache, features, source=source)
        return x0

    def _call(
        self,
        networks: StudentNetworks,
        x_t: Tensor,
        t: float,
        text: Tensor,
        cache: AttentionCache,
        features: Tensor | None,
        write: bool = False,
        source: Tensor | None = None,
    ) -> Tensor:
        times = torch.full((len(x_t),), 1000 * t, device=x_t.device)
        if source is not None:
            x_t = interleave(source, x_t)
            times = target_levels(times[:, None].expand(-1, x_t.shape[2]))
        flow = networks.transformer.step(x_t, times, text, cache, features, write=write).to(x_t.dtype)
        return flow if source is None else targets(flow)

    def _features(self, networks: StudentNetworks, controls: Controls | None) -> Tensor | None:
        if networks.controls is None or controls is None:
            return None
        return networks.controls(controls, (self.stream.height, self.stream.width))

    def _new_cache(
        self, networks: StudentNetworks, batch: int, device: torch.device, keep_inputs: bool
    ) -> AttentionCache:
        transformer = networks.transformer
        return AttentionCache(
            layers=transformer.config.num_layers,
            heads=transformer.config.num_attention_heads,
            rope=transformer.rope,
            stream=self.stream,
            batch=batch,
            sink=self.sink_kind,
            ema_decay=self.sink_decay,
            keep_inputs=keep_inputs,
            dtype=torch.bfloat16 if networks.half_precision else transformer.proj_out.weight.dtype,
            device=device,
            sparsity=self.sparsity,
        )
