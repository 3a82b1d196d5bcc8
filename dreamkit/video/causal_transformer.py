"""A Wan video transformer that sees a whole clip, or makes it chunk by chunk over a rolling cache.

The weights and config.json are those of diffusers' `WanTransformer3DModel` (Wan Team, arXiv 2503.20314), so a Wan
folder loads here and ours opens there. What is new is how frames may look at one another: all at all, block-causally
as a stream would (Yin et al., "From Slow Bidirectional to Fast Autoregressive Video Diffusion Models", arXiv
2412.07772), or a chunk at a cache (Huang et al., "Self Forcing", arXiv 2506.08009; Yang et al., "LongLive", arXiv
2509.22622).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from dreamkit_kernels.stream_attention import Rope3d, Stream
from dreamkit_kernels.stream_attention.reference import rotate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dreamkit.checks import require
from dreamkit.video.attention_cache import AttentionCache, ChunkView, SinkKind
from dreamkit.video.sparse_attention import Sparsity, attend_chunk, attend_clip, frames_of
from dreamkit.video.wan_blocks import (
    ConditionEmbedder,
    KeysValues,
    Mix,
    WanBlock,
    at_least_single,
    modulated_norm,
    scaled_attention,
)
from dreamkit.video.wan_config import WanConfig
from dreamkit.video.weights import load_weights, read_config, save_weights

_FLOAT32 = ("time_embedder", "scale_shift_table", "norm2")
"""Parts that stay float32 in a network of half precision: those of diffusers that have weights."""


class CausalTransformer(nn.Module):
    """Predicts the flow (noise minus sample) of noisy video latents under a text.

    With `checkpointing` set, a pass over a whole clip keeps only each block's input for its gradient and computes the
    rest again: less memory for a third more time.

    Args:
        config: the sizes.
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        self.rope = Rope3d.split_evenly(config.attention_head_dim)
        self.patch_embedding = nn.Conv3d(
            config.in_channels, config.dim, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([WanBlock(config) for _ in range(config.num_layers)])
        self.proj_out = nn.Linear(config.dim, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)
        self.checkpointing = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A transformer with random weights.

        Args:
            config: the content of a config.json, see `WanConfig`.

        Raises:
            CheckpointError: a configuration that is not of a text-to-video Wan model.
        """
        return cls(WanConfig.from_dict(config))

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Self:
        """Load a transformer/ folder, diffusers' or ours.

        Args:
            folder: with config.json and diffusion_pytorch_model.safetensors, whole or in shards with an index.
            dtype: of the weights, by default float32. In half precision the time embedding and the norms stay float32,
                as in diffusers.
            device: where they go, by default the CPU.

        Raises:
            CheckpointError: something is missing, unreadable, of another model or shape, or not finite.
        """
        config = WanConfig.from_dict(read_config(folder))
        with torch.device("meta"):
            network = cls(config).to(dtype)
            for name, parameter in network.named_parameters():
                if dtype in (torch.float16, torch.bfloat16) and any(part in _FLOAT32 for part in name.split(".")):
                    parameter.data = parameter.data.float()
        load_weights(network, folder)
        return network.to(device).eval()

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float16) -> None:
        """Write a folder that `from_pretrained` and diffusers' `WanTransformer3DModel.from_pretrained` open.

        Args:
            folder: made if it isn't there.
            dtype: of the written weights.

        Raises:
            CheckpointError: weights that are not finite in that dtype.
            RunError: the system refused the write.
        """
        save_weights(self, self.config.to_dict(), folder, dtype)

    def new_cache(
        self,
        stream: Stream,
        batch: int = 1,
        sink: SinkKind = "first",
        ema_decay: float = 0.99,
        keep_inputs: bool = False,
        sparsity: Sparsity | None = None,
    ) -> AttentionCache:
        """An empty cache for this network, in the dtype and on the device of its weights.

        Args:
            stream: rows and columns of tokens, and chunk, sink and window in frames of tokens.
            batch: streams side by side.
            sink: see `AttentionCache`.
            ema_decay: see there.
            keep_inputs: keep what `recache` needs.
            sparsity: which blocks of attention are computed; `None` is all.

        Raises:
            ConfigError: sizes that can't be.
        """
        weight = self.proj_out.weight
        return AttentionCache(
            layers=self.config.num_layers,
            heads=self.config.num_attention_heads,
            rope=self.rope,
            stream=stream,
            batch=batch,
            sink=sink,
            ema_decay=ema_decay,
            keep_inputs=keep_inputs,
            dtype=weight.dtype,
            device=weight.device,
            sparsity=sparsity,
        )

    def forward(
        self,
        latents: Tensor,  # [B, C, F, H, W]
        timesteps: Tensor,  # [B], or [B, F'] one for each frame of tokens
        text: Tensor,  # [B, L, text_dim]
        control_features: Tensor | None = None,  # [B, F' * h * w, dim]
        stream: Stream | None = None,
        sparsity: Sparsity | None = None,
    ) -> Tensor:
        """Predict the flow of a clip.

        Args:
            latents: noisy latents; F, H and W are multiples of the patch, and F' = F / patch_size[0].
            timesteps: in [0, 1000], fractions allowed.
            text: the prompt's tokens.
            control_features: added to the embedded patches.
            stream: `None` lets every token see every other. A stream lets a chunk see the sink, its window and itself,
                at the positions and with the arithmetic that `step` has over a cache.
            sparsity: with a stream, which blocks of attention are computed; `None` is all.

        Returns:
            [B, C, F, H, W].

        Raises:
            ConfigError: shapes that don't fit.
        """
        grid = self.token_grid(latents)
        tokens = self._embed(latents, control_features, grid)
        mix = self._everywhere(grid) if stream is None else self._causal(stream, grid, sparsity)
        out = self._run(tokens, self._frame_timesteps(timesteps, grid), self._embed_text(text, len(latents)), mix)
        return self._unpatch(out, grid)

    def forward_teacher_forced(
        self,
        noisy: Tensor,  # [B, C, F, H, W]
        clean: Tensor,  # [B, C, F, H, W]
        timesteps: Tensor,  # [B], or [B, F'] one for each frame of tokens
        text: Tensor,  # [B, L, text_dim]
        stream: Stream,
        control_features: Tensor | None = None,  # [B, F' * h * w, dim]
        clean_timestep: float = 0.0,
        sparsity: Sparsity | None = None,
    ) -> Tensor:
        """Predict the flow of every chunk with the clean frames before it as its history, in one pass.

        The sequence is [clean; noisy]: a noisy chunk sees itself and the clean frames of sink and window before it, a
        clean chunk sees itself and those before it. So a chunk's prediction is what `step` gives over a cache that was
        filled with the clean frames (teacher forcing as in CausVid, arXiv 2412.07772, and Self Forcing, 2506.08009).

        Args:
            noisy: noisy latents.
            clean: the same clip without noise.
            timesteps: of the noisy frames, in [0, 1000].
            text: the prompt's tokens.
            stream: chunk, sink and window.
            control_features: of the clip's frames, for its noisy and its clean ones.
            clean_timestep: at which the clean frames are read.
            sparsity: which blocks of attention are computed; `None` is all.

        Returns:
            [B, C, F, H, W], for the noisy frames.

        Raises:
            ConfigError: shapes that don't fit.
        """
        grid = self.token_grid(noisy)
        require("The clean latents' shape", clean.shape == noisy.shape, list(clean.shape), f"{list(noisy.shape)}")
        self._check_stream(stream, grid)
        history = (grid[0] - 1) // stream.chunk * stream.chunk  # nobody sees the last chunk's clean frames
        tokens = self._embed(noisy, control_features, grid)
        past = self._embed(clean, control_features, grid)[:, : history * stream.tokens]
        own = self._frame_timesteps(timesteps, grid).expand(-1, grid[0])
        times = torch.cat([torch.full_like(own[:, :history], clean_timestep), own], dim=1)
        context = self._embed_text(text, len(noisy))
        mix = self._after_clean(stream, history, sparsity)
        out = self._run(torch.cat([past, tokens], dim=1), times, context, mix)
        return self._unpatch(out[:, history * stream.tokens :], grid)

    def step(
        self,
        latents: Tensor,  # [B, C, f, H, W]
        timesteps: Tensor,  # [B], or [B, f']
        text: Tensor,  # [B, L, text_dim]
        cache: AttentionCache,
        control_features: Tensor | None = None,  # [B, f' * h * w, dim]
        write: bool = False,
    ) -> Tensor:
        """Predict the flow of the next chunk of a stream, which sees what the cache holds and itself.

        With gradients enabled they reach the weights through this chunk, not through what the cache holds.

        Args:
            latents: the chunk, noisy, or clean for the pass that writes.
            timesteps: in [0, 1000].
            text: the prompt's tokens. Without gradients its keys and values are made once for the same tensor.
            cache: of the stream.
            control_features: of the chunk's frames.
            write: make the chunk part of the stream: its keys and values stay, the oldest frames leave the window.

        Returns:
            [B, C, f, H, W].

        Raises:
            ConfigError: shapes that don't fit, or a chunk longer than the cache was made for.
        """
        grid = self.token_grid(latents)
        self._check_stream(cache.stream, grid)
        require("The latents' batch", len(latents) == cache.batch, len(latents), f"{cache.batch}, as the cache has")
        view = cache.next_view(grid[0])
        tokens = self._embed(latents, control_features, grid)
        out = self._run_cached(tokens, self._frame_timesteps(timesteps, grid), text, cache, view)
        if write:
            cache.keep(view, tokens)
            cache.commit(view)
        return self._unpatch(out, grid)

    def recache(
        self,
        text: Tensor,  # [B, L, text_dim]
        cache: AttentionCache,
        latents: Tensor | None = None,  # [B, C, visible frames, H, W]
        control_features: Tensor | None = None,  # [B, visible' * h * w, dim]
        timestep: float = 0.0,
    ) -> None:
        """Compute the cache's keys and values anew for another prompt (Yang et al., "LongLive", arXiv 2509.22622).

        Afterwards the cache holds what it would hold had the stream begun with the frames that are visible now, sink
        first, and been written with this text from the start. As long as nothing has left the window, that is the
        whole stream. The average of an "ema" sink stays as it is once a frame has gone into it.

        Args:
            text: the new prompt's tokens.
            cache: of the stream.
            latents: the visible frames, clean, in the order of the stream; `None` takes what the cache keeps.
            control_features: of those frames, with `latents` only.
            timestep: at which clean frames are read.

        Raises:
            ConfigError: no latents and a cache that keeps none, or shapes that don't fit.
        """
        views = list(cache.rewrite_views())
        times = torch.full((cache.batch, 1), timestep, device=self.proj_out.weight.device)
        tokens = None
        if latents is not None:
            grid = self.token_grid(latents)
            self._check_stream(cache.stream, grid)
            frames = sum(len(view.own) for view in views)
            require("The latents' frames", grid[0] == frames, grid[0], f"the {frames} that are recomputed")
            require("The latents' batch", len(latents) == cache.batch, len(latents), f"{cache.batch}, as the cache has")
            tokens = self._embed(latents, control_features, grid)
        start = 0
        with torch.no_grad():
            for view in views:
                stop = start + len(view.own) * cache.stream.tokens
                chunk = cache.kept(view) if tokens is None else tokens[:, start:stop]
                self._run_cached(chunk, times, text, cache, view)
                cache.keep(view, chunk)
                start = stop

    def _run_cached(
        self, tokens: Tensor, timesteps: Tensor, text: Tensor, cache: AttentionCache, view: ChunkView
    ) -> Tensor:
        def text_keys() -> list[KeysValues]:
            context = self._embed_text(text, len(tokens))
            return [block.attn2.keys_values(context) for block in self._layers()]

        def mix(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return cache.attend(layer, view, q, k, v)

        return self._run(tokens, timesteps, cache.text_keys(text, text_keys), mix)

    def _layers(self) -> list[WanBlock]:
        return cast(list[WanBlock], list(self.blocks))

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """Frames, rows and columns of the tokens of latents [B, C, F, H, W].

        Raises:
            ConfigError: another number of axes or channels, or sides that are no multiples of the patch.
        """
        shape = list(latents.shape)
        require("The latents' shape", latents.ndim == 5, shape, "[batch, channels, frames, height, width]")
        channels = self.config.in_channels
        require("The latents' number of channels", shape[1] == channels, shape[1], f"{channels}, as the model has")
        patch = self.config.patch_size
        whole = all(side and side % part == 0 for side, part in zip(shape[2:], patch, strict=True))
        require(
            "The latents' [frames, height, width]", whole, shape[2:], f"positive multiples of the patch {list(patch)}"
        )
        frames, rows, columns = (side // part for side, part in zip(shape[2:], patch, strict=True))
        return frames, rows, columns

    def _embed(self, latents: Tensor, control_features: Tensor | None, grid: tuple[int, int, int]) -> Tensor:
        """Patches with their controls, [B, F' * h * w, dim], in the dtype of the weights even under autocast."""
        weight = self.patch_embedding.weight
        tokens = self.patch_embedding(latents.to(weight.dtype)).flatten(2).transpose(1, 2).to(weight.dtype).contiguous()
        if control_features is None:
            return tokens
        if control_features.ndim == 4:  # as `ControlEncoder` gives them, [B, F', h * w, dim]
            control_features = control_features.flatten(1, 2)
        wanted = [len(latents), math.prod(grid), self.config.dim]
        shape = list(control_features.shape)
        require("The control features' shape", shape == wanted, shape, f"{wanted}")
        return tokens + control_features.to(tokens.dtype)

    def _embed_text(self, text: Tensor, batch: int) -> Tensor:
        fits = text.ndim == 3 and text.shape[0] == batch and text.shape[1] > 0
        wanted = f"[{batch}, tokens, {self.config.text_dim}]"
        require("The text's shape", fits and text.shape[2] == self.config.text_dim, list(text.shape), wanted)
        return self.condition_embedder.text_embedder(text)

    def _frame_timesteps(self, timesteps: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Timesteps for each group of tokens: [B, 1] or [B, F']."""
        fits = timesteps.ndim == 1 or (timesteps.ndim == 2 and timesteps.shape[1] in (1, grid[0]))
        require("The timesteps' shape", fits, list(timesteps.shape), f"[batch] or [batch, {grid[0]}]")
        return timesteps[:, None] if timesteps.ndim == 1 else timesteps

    def _run(self, tokens: Tensor, timesteps: Tensor, text: Tensor | list[KeysValues], mix: Mix) -> Tensor:
        """Every block and the head: tokens [B, G * n, dim], timesteps [B, G] to [B, G * n, patch * channels]."""
        require("The number of timesteps", len(timesteps) == len(tokens), len(timesteps), f"{len(tokens)}, the batch")
        embedded, modulation = self.condition_embedder(timesteps)
        # A step over a cache is not computed again: by then the cache may hold other frames.
        keep = self.checkpointing and torch.is_grad_enabled() and isinstance(text, Tensor)
        for layer, block in enumerate(self.blocks):
            context = text if isinstance(text, Tensor) else text[layer]
            if keep:
                tokens = checkpoint(block, tokens, context, modulation, layer, mix, use_reentrant=False)
            else:
                tokens = block(tokens, context, modulation, layer, mix)
        table = at_least_single(self.scale_shift_table)[None] + at_least_single(embedded)[:, :, None]
        shift, scale = table.unbind(dim=2)
        return self.proj_out(modulated_norm(tokens, scale, shift, self.config.eps).to(tokens.dtype))

    def _unpatch(self, out: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens [B, F' * h * w, patch * channels] to latents [B, C, F, H, W]."""
        parts = out.unflatten(2, (*self.config.patch_size, self.config.out_channels)).unflatten(1, grid)
        return parts.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _everywhere(self, grid: tuple[int, int, int]) -> Mix:
        """Every token sees every token."""
        times = torch.arange(grid[0], device=self.proj_out.weight.device)
        angles = self.rope.angles(times, *grid[1:])

        def mix(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # Half precision would round the angles' sines: turn in float32.
            return scaled_attention(rotate(at_least_single(q), angles), rotate(at_least_single(k), angles), v)

        return mix

    def _causal(self, stream: Stream, grid: tuple[int, int, int], sparsity: Sparsity | None) -> Mix:
        """A chunk sees the sink, its window and itself."""
        self._check_stream(stream, grid)

        def mix(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_clip(layer, *_for_kernels(q, k, v), stream, self.rope, sparsity).to(v.dtype)

        return mix

    def _after_clean(self, stream: Stream, history: int, sparsity: Sparsity | None) -> Mix:
        """[clean history; noisy clip]: see `forward_teacher_forced`."""
        tokens = stream.tokens

        def mix(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            made, split = v.dtype, history * tokens
            q, k, v = _for_kernels(q, k, v)
            parts = [attend_clip(layer, q[:, :split], k[:, :split], v[:, :split], stream, self.rope, sparsity)]
            frames = q.shape[1] // tokens - history
            for start in range(0, frames, stream.chunk):
                stop = min(frames, start + stream.chunk)
                own = range(history + start, history + stop)
                seen = [*(frame for frame in stream.visible(start, stop) if frame < start), *own]
                keys, values = (frames_of(item, seen, tokens) for item in (k, v))
                queries = q[:, own.start * tokens : own.stop * tokens]
                sink = range(min(stream.sink, start))
                parts.append(attend_chunk(layer, queries, keys, values, stream, self.rope, sparsity, sink))
            return torch.cat(parts, dim=1).to(made)

        return mix

    def _check_stream(self, stream: Stream, grid: tuple[int, int, int]) -> None:
        size = [stream.height, stream.width]
        require("The stream's [height, width]", size == list(grid[1:]), size, f"{list(grid[1:])}, the latents' tokens")


def _for_kernels(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All in the dtype of v; a CPU's kernels know no float16."""
    dtype = torch.float32 if v.dtype == torch.float16 and not v.is_cuda else v.dtype
    return q.to(dtype), k.to(dtype), v.to(dtype)
