"""The embedded teacher's network: an hourglass transformer over pixels, conditioned on text and camera.

A thin convolutional stem keeps pixel detail, two blocks at patch 4 see local structure, most of the depth works on
four times fewer tokens at patch 8, and the way back up joins the skips. On a CPU matrix products are fast and
convolutions are not, which is why this is not a U-Net. (Hourglass: Crowson et al., "Scalable High-Resolution
Pixel-Space Image Synthesis with Hourglass Diffusion Transformers", arXiv 2401.11605; adaptive layer norm: Peebles
and Xie, "Scalable Diffusion Models with Transformers", arXiv 2212.09748.)

It is an ordinary diffusers model: `save_pretrained` / `from_pretrained`, a config, and the call signature of
`UNet2DConditionModel` plus an optional `camera`.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.embeddings import timestep_features

POSE_DIM = 12  # camera_to_world[:3, :4], row-major
TEXT_POOLS = 4  # attention-weighted means of the text tokens that modulate every block
RAY_DIM = 30


@dataclass
class HourglassOutput(BaseOutput):
    """What the network predicts, in the prediction type its scheduler names.

    Args:
        sample: [B, C, H, W].
    """

    sample: Tensor


def grid_features(side: int, dim: int) -> Tensor:
    """Sinusoidal features of the cells of a square grid, [1, side * side, dim]; rows first."""
    quarter = dim // 4
    frequency = torch.exp(-torch.log(torch.tensor(100.0)) * torch.arange(quarter) / quarter)
    angles = torch.arange(side, dtype=torch.float32)[:, None] * frequency * (16 / side)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(1, side * side, dim)


def ray_features(camera: Tensor, side: int, fov_y: float) -> Tensor:
    """Where the rays through the cells of a square grid run in the world.

    Of each ray o + t d, the direction d (unit length) and the point closest to the origin p = o - (o . d) d, with sin
    and cos of pi and 2 pi times both. A pose that only modulates would have to be combined with the shape of every
    object; where a ray runs, a token can look up by itself (light fields: Sitzmann et al., arXiv 2106.02634).

    Args:
        camera: camera_to_world[:3, :4] row-major, [B, 12]; a row of zeros is no camera and gives zeros.
        side: cells along an axis.
        fov_y: angle of view, degrees.

    Returns:
        [B, side * side, 30], rows first.
    """
    pose = camera.unflatten(1, (3, 4))
    axis = ((torch.arange(side, device=camera.device) + 0.5) / side * 2 - 1) * math.tan(math.radians(fov_y) / 2)
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    local = torch.stack([x, y, -torch.ones_like(x)], dim=-1).flatten(0, 1).to(camera.dtype)
    direction = functional.normalize(torch.einsum("bij,nj->bni", pose[:, :, :3], local), dim=-1)
    origin = pose[:, None, :, 3]
    closest = origin - (origin * direction).sum(dim=-1, keepdim=True) * direction
    both = torch.cat([closest, direction], dim=-1)
    angles = torch.cat([math.pi * both, 2 * math.pi * both], dim=-1)
    given = (camera.abs().sum(dim=-1) > 0)[:, None, None]
    return torch.cat([both, angles.sin(), angles.cos()], dim=-1) * given


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (arXiv 2302.05442).

    Args:
        dim: width of the queries.
        head_dim: width of a head; `dim` is a multiple of it.
        context_dim: width of what is attended to; `None` for self-attention.
    """

    def __init__(self, dim: int, head_dim: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.norm_q = nn.RMSNorm(head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(head_dim, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend from `x` [B, N, D] to `context` [B, M, E], or to `x` itself; returns [B, N, D]."""
        context = x if context is None else context
        q, k, v = (
            project(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project, source in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        out = functional.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, optional cross-attention to the text, MLP; modulated by the condition (adaLN-zero).

    Args:
        dim: token width.
        head_dim: width of an attention head.
        mlp_ratio: hidden width of the MLP over `dim`.
        cond_dim: width of the condition vector.
        context_dim: width of the text tokens, or `None` for no cross-attention.
    """

    def __init__(
        self, dim: int, head_dim: int, mlp_ratio: float, cond_dim: int, context_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.attn1 = Attention(dim, head_dim)
        self.norm2 = nn.LayerNorm(dim) if context_dim else None
        self.attn2 = Attention(dim, head_dim, context_dim) if context_dim else None
        self.norm3 = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp_in = nn.Linear(dim, hidden)
        self.mlp_out = nn.Linear(hidden, dim)
        self.modulation = nn.Linear(cond_dim, 6 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        if self.attn2 is not None:
            nn.init.zeros_(self.attn2.to_out.weight)

    def forward(self, x: Tensor, cond: Tensor, context: Tensor) -> Tensor:
        """Map tokens [B, N, D] under the activated condition [B, C] and the context [B, L, E] to [B, N, D]."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn1(self.norm1(x) * (1 + scale1) + shift1)
        if self.attn2 is not None and self.norm2 is not None:
            x = x + self.attn2(self.norm2(x), context)
        hidden = functional.gelu(self.mlp_in(self.norm3(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self.mlp_out(hidden)


class HourglassTransformer(ModelMixin, ConfigMixin):
    """Text- and camera-conditional denoiser of small images.

    Args:
        sample_size: height and width of the image in pixels, a multiple of 8.
        in_channels: image channels; the output has as many.
        stem_channels: channels of the full-resolution stem.
        outer_dim: token width at patch 4.
        outer_depth: blocks at patch 4 on the way down, and again on the way up.
        inner_dim: token width at patch 8.
        inner_depth: blocks at patch 8.
        head_dim: width of an attention head.
        mlp_ratio: hidden width of an MLP over its token width.
        cond_dim: width of the vector that modulates every block.
        cross_attention_dim: width of the text encoder's tokens.
        camera_conditioning: whether a camera pose may be given.
        fov_y: angle of view of the given cameras, degrees.

    Raises:
        ValueError: a size that is not a multiple of what it must be.
    """

    config_name = "config.json"
    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        stem_channels: int = 32,
        outer_dim: int = 128,
        outer_depth: int = 2,
        inner_dim: int = 288,
        inner_depth: int = 5,
        head_dim: int = 32,
        mlp_ratio: float = 3.0,
        cond_dim: int = 192,
        cross_attention_dim: int = 128,
        camera_conditioning: bool = True,
        fov_y: float = 40.0,
    ) -> None:
        super().__init__()
        if sample_size < 8 or sample_size % 8:
            raise ValueError(f"sample_size must be a multiple of 8, got {sample_size}")
        for name, dim in (("outer_dim", outer_dim), ("inner_dim", inner_dim)):
            if dim % head_dim:
                raise ValueError(f"{name} must be a multiple of head_dim {head_dim}, got {dim}")
        if cond_dim % 2:
            raise ValueError(f"cond_dim must be even, got {cond_dim}")
        side = sample_size // 8
        patch = 16 * stem_channels
        self.stem = nn.Conv2d(in_channels, stem_channels, 3, padding=1)
        self.patch_in = nn.Linear(patch, outer_dim)
        self.position_outer = nn.Parameter(grid_features(2 * side, outer_dim))
        self.position_inner = nn.Parameter(grid_features(side, inner_dim))
        self.merge = nn.Linear(4 * outer_dim, inner_dim)
        self.split = nn.Linear(inner_dim, 4 * outer_dim)
        self.patch_out = nn.Linear(outer_dim, patch)
        self.skip_gain = nn.Linear(cond_dim, stem_channels)
        self.head_in = nn.Conv2d(2 * stem_channels, stem_channels, 3, padding=1)
        self.head_out = nn.Conv2d(stem_channels, in_channels, 3, padding=1)
        for parameter in (*self.skip_gain.parameters(), *self.head_out.parameters()):
            nn.init.zeros_(parameter)

        def outer() -> Block:
            return Block(outer_dim, head_dim, mlp_ratio, cond_dim)

        def inner() -> Block:
            return Block(inner_dim, head_dim, mlp_ratio, cond_dim, cross_attention_dim)

        self.down_blocks = nn.ModuleList(outer() for _ in range(outer_depth))
        self.mid_blocks = nn.ModuleList(inner() for _ in range(inner_depth))
        self.up_blocks = nn.ModuleList(outer() for _ in range(outer_depth))

        self.time_embedding = nn.Sequential(nn.Linear(cond_dim, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))
        # A caption's few telling words would drown in a plain mean over the padded tokens.
        self.text_pool = nn.Linear(cross_attention_dim, TEXT_POOLS, bias=False)
        self.text_projection = nn.Sequential(
            nn.Linear(TEXT_POOLS * cross_attention_dim, cond_dim), nn.LayerNorm(cond_dim)
        )
        self.camera_embedding: nn.Module | None = None
        if camera_conditioning:
            self.camera_embedding = nn.Sequential(
                nn.Linear(POSE_DIM, 2 * cond_dim), nn.SiLU(), nn.Linear(2 * cond_dim, cond_dim), nn.LayerNorm(cond_dim)
            )
            # Stands for "no camera given", so that the same network is also a text-only teacher.
            self.no_camera = nn.Parameter(torch.zeros(cond_dim))
            self.ray_outer = nn.Linear(RAY_DIM, outer_dim, bias=False)
            self.ray_inner = nn.Linear(RAY_DIM, inner_dim, bias=False)
            nn.init.zeros_(self.ray_outer.weight)
            nn.init.zeros_(self.ray_inner.weight)

    def _condition(self, timestep: Tensor, text: Tensor, camera: Tensor | None) -> Tensor:
        """The activated sum of time, pooled text and camera embeddings: [B, cond_dim]."""
        features = timestep_features(timestep, self.config.cond_dim).to(text.dtype)
        weights = self.text_pool(text).softmax(dim=1)
        pooled = torch.einsum("blp,bld->bpd", weights, text).flatten(1)
        cond = self.time_embedding(features) + self.text_projection(pooled)
        if self.camera_embedding is not None:
            if camera is None:
                cond = cond + self.no_camera
            else:
                # A row of zeros is no pose: that sample has no camera (dropout in training, mixed batches).
                given = camera.abs().sum(dim=-1, keepdim=True) > 0
                cond = cond + torch.where(given, self.camera_embedding(camera), self.no_camera)
        return functional.silu(cond)

    def _positions(self, camera: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to the tokens at patch 4 and at patch 8: where they are, and where their rays run."""
        if self.camera_embedding is None or camera is None:
            return self.position_outer, self.position_inner
        side, fov_y = self.config.sample_size // 8, self.config.fov_y
        outer = self.ray_outer(ray_features(camera.float(), 2 * side, fov_y).to(dtype))
        inner = self.ray_inner(ray_features(camera.float(), side, fov_y).to(dtype))
        return self.position_outer + outer, self.position_inner + inner

    def forward(
        self,
        sample: Tensor,  # [B, C, H, W]
        timestep: Tensor | float,  # [B] or a number, in [0, 1000]
        encoder_hidden_states: Tensor,  # [B, L, cross_attention_dim]
        camera: Tensor | None = None,  # [B, 12]
        return_dict: bool = True,
    ) -> HourglassOutput | tuple[Tensor]:
        """Predict eps, x0 or v (whichever the scheduler's prediction type says) for noisy images.

        Args:
            sample: noisy images, [B, C, H, W].
            timestep: training timestep in [0, 1000], [B] or one number for all.
            encoder_hidden_states: text tokens, [B, L, cross_attention_dim].
            camera: camera_to_world[:3, :4] row-major, [B, 12], OpenGL axes; a row of zeros or `None` is no camera.
            return_dict: whether to return a `HourglassOutput` rather than a tuple.

        Returns:
            The prediction, [B, C, H, W].

        Raises:
            ValueError: images of another size or number of channels than the network's.
        """
        expected = (self.config.in_channels, self.config.sample_size, self.config.sample_size)
        if sample.shape[1:] != expected:
            raise ValueError(f"sample must be [B, {', '.join(map(str, expected))}], got {list(sample.shape)}")
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        context = encoder_hidden_states
        camera = None if camera is None else camera.to(context.dtype)
        cond = self._condition(timestep, context, camera)
        position_outer, position_inner = self._positions(camera, context.dtype)
        height, width = sample.shape[2] // 4, sample.shape[3] // 4

        stem = self.stem(sample)
        patches = functional.pixel_unshuffle(stem, 4).flatten(2).transpose(1, 2)
        tokens = self.patch_in(patches) + position_outer
        for block in self.down_blocks:
            tokens = block(tokens, cond, context)

        grid = tokens.transpose(1, 2).unflatten(2, (height, width))
        inner = self.merge(functional.pixel_unshuffle(grid, 2).flatten(2).transpose(1, 2)) + position_inner
        for block in self.mid_blocks:
            inner = block(inner, cond, context)

        grid = self.split(inner).transpose(1, 2).unflatten(2, (height // 2, width // 2))
        tokens = tokens + functional.pixel_shuffle(grid, 2).flatten(2).transpose(1, 2)
        for block in self.up_blocks:
            tokens = block(tokens, cond, context)

        grid = self.patch_out(tokens).transpose(1, 2).unflatten(2, (height, width))
        # At little noise the output is the noise, many times amplified: the skip's gain is exponential in the time.
        skip = stem * self.skip_gain(cond).exp()[:, :, None, None]
        out = self.head_in(torch.cat([functional.pixel_shuffle(grid, 4), skip], dim=1))
        out = self.head_out(functional.silu(out))
        return HourglassOutput(sample=out) if return_dict else (out,)
