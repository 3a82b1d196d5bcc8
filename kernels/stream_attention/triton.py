"""The Triton kernels: contiguous float32, float16 or bfloat16 tensors on a GPU; sums and the softmax are in float32.

Queries and visible keys are rotated once, into [B, H, N, D], and then attended to in tiles with the softmax of Milakov
and Gimelshein (arXiv 1805.02867), as in FlashAttention-2 (Dao, arXiv 2307.08691). Values are read where they are
stored. Every tile belongs to one program that walks the other side in order: no atomics, so equal inputs give equal
bits.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
DENSE, WHOLE_TILES, ANY_BLOCKS = 0, 1, 2
"""How blocks are skipped: not; tile by tile, as tiles divide blocks; by a mask within tiles."""


@triton.jit
def turn_kernel(
    x_ptr,
    rows_ptr,
    turn_ptr,
    out_ptr,
    count,
    stored,
    heads,
    factor,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    BACK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows of x [B, stored, H, D] rotated and scaled, as [B, H, count, D]; `BACK` is the transpose of that."""
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1).to(tl.int64)
    exists = index < count
    pair = tl.arange(0, PAIRS)
    inside = exists[:, None] & (pair < DIM // 2)[None]
    row = tl.load(rows_ptr + index, mask=exists, other=0)
    spread = (((head // heads) * stored + row) * heads + head % heads)[:, None] * DIM + 2 * pair[None]
    packed = (head * count + index)[:, None] * DIM + 2 * pair[None]
    source, target = packed if BACK else spread, spread if BACK else packed
    turn = turn_ptr + index[:, None] * DIM + 2 * pair[None]
    cos = tl.load(turn, mask=inside, other=0.0) * factor
    sin = tl.load(turn + 1, mask=inside, other=0.0) * (-factor if BACK else factor)
    a = tl.load(x_ptr + source, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + source + 1, mask=inside, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + target, (a * cos - b * sin).to(kind), mask=inside)
    tl.store(out_ptr + target + 1, (a * sin + b * cos).to(kind), mask=inside)


@triton.jit
def _packed(x_ptr, index, count, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows [*, D] of one head of [B, H, count, D], zero beyond the end."""
    channel = tl.arange(0, WIDTH)
    inside = (index < count)[:, None] & (channel < DIM)[None]
    return tl.load(x_ptr + index[:, None].to(tl.int64) * DIM + channel[None], mask=inside, other=0.0)


@triton.jit
def _places(row, heads, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Where rows of one sample and head are in [B, N, H, D], from that head's first."""
    return row[:, None].to(tl.int64) * (heads * DIM) + tl.arange(0, WIDTH)[None]


@triton.jit
def _spread(x_ptr, row, exists, heads, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one sample and head of [B, N, H, D]."""
    inside = exists[:, None] & (tl.arange(0, WIDTH) < DIM)[None]
    return tl.load(x_ptr + _places(row, heads, DIM, WIDTH), mask=inside, other=0.0)


@triton.jit
def _wanted(blocks_ptr, query, key, across, block, SPARSE: tl.constexpr):
    """Whether the tile that begins at a query and a key is computed; one with a mask always is."""
    if SPARSE == 1:
        return tl.load(blocks_ptr + (query // block).to(tl.int64) * across + key // block) != 0
    return True


@triton.jit
def _masked(scores, blocks_ptr, query, key, queries, keys, across, block, SPARSE: tl.constexpr):
    """Scores with -inf where a pair of query and key [rows or columns] is not computed."""
    allowed = (query < queries) & (key < keys)
    if SPARSE == 2:
        place = (query // block).to(tl.int64) * across + key // block
        allowed &= tl.load(blocks_ptr + place, mask=allowed, other=0) != 0
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    blocks_ptr,
    out_ptr,
    log_sum_ptr,
    queries,
    keys,
    stored,
    heads,
    across,
    block,
    SPARSE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of queries over all keys: out and log_sum."""
    first, head = tl.program_id(0) * QUERIES, tl.program_id(1).to(tl.int64)
    sample, own = head // heads, head % heads
    index = first + tl.arange(0, QUERIES)
    q = _packed(q_ptr + head * queries * DIM, index, queries, DIM, WIDTH)
    k_ptr += head * keys * DIM
    v_ptr += (sample * stored * heads + own) * DIM
    blocks_ptr += head * tl.cdiv(queries, block) * across
    highest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, keys, KEYS):
        if _wanted(blocks_ptr, first, start, across, block, SPARSE):
            key = start + tl.arange(0, KEYS)
            k = _packed(k_ptr, key, keys, DIM, WIDTH)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scores = _masked(scores, blocks_ptr, index[:, None], key[None], queries, keys, across, block, SPARSE)
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            level = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores - level[:, None])
            shrink = tl.exp2(highest - level)
            row = tl.load(rows_ptr + key, mask=key < keys, other=0)
            v = _spread(v_ptr, row, key < keys, heads, DIM, WIDTH)
            out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
            total = total * shrink + tl.sum(weights, axis=1)
            highest = higher
    out = out / tl.where(total == 0.0, 1.0, total)[:, None]
    inside = (index < queries)[:, None] & (tl.arange(0, WIDTH) < DIM)[None]
    out_ptr += (sample * queries * heads + own) * DIM
    tl.store(out_ptr + _places(index, heads, DIM, WIDTH), out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(log_sum_ptr + head * queries + index, highest + tl.log2(total), mask=index < queries)


@triton.jit
def keys_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    blocks_ptr,
    log_sum_ptr,
    delta_ptr,
    d_out_ptr,
    d_k_ptr,
    d_v_ptr,
    queries,
    keys,
    stored,
    heads,
    across,
    block,
    SPARSE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of keys over all queries: d_k [B, H, Nk, D] of the rotated keys, and d_v where the values are stored."""
    first, head = tl.program_id(0) * KEYS, tl.program_id(1).to(tl.int64)
    sample, own = head // heads, head % heads
    key = first + tl.arange(0, KEYS)
    row = tl.load(rows_ptr + key, mask=key < keys, other=0)
    k = _packed(k_ptr + head * keys * DIM, key, keys, DIM, WIDTH)
    v = _spread(v_ptr + (sample * stored * heads + own) * DIM, row, key < keys, heads, DIM, WIDTH)
    q_ptr += head * queries * DIM
    d_out_ptr += (sample * queries * heads + own) * DIM
    blocks_ptr += head * tl.cdiv(queries, block) * across
    d_k = tl.zeros([KEYS, WIDTH], tl.float32)
    d_v = tl.zeros([KEYS, WIDTH], tl.float32)
    for start in range(0, queries, QUERIES):
        if _wanted(blocks_ptr, start, first, across, block, SPARSE):
            index = start + tl.arange(0, QUERIES)
            q = _packed(q_ptr, index, queries, DIM, WIDTH)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            scores = _masked(scores, blocks_ptr, index[None], key[:, None], queries, keys, across, block, SPARSE)
            log_sum = tl.load(log_sum_ptr + head * queries + index, mask=index < queries, other=0.0)
            weights = tl.where(scores == float("-inf"), 0.0, tl.exp2(scores - log_sum[None]))
            d_out = _spread(d_out_ptr, index, index < queries, heads, DIM, WIDTH)
            d_v = tl.dot(weights.to(d_out.dtype), d_out, d_v, input_precision=PRECISION)
            delta = tl.load(delta_ptr + head * queries + index, mask=index < queries, other=0.0)
            d_scores = weights * (tl.dot(v, tl.trans(d_out), input_precision=PRECISION) - delta[None])
            d_k = tl.dot(d_scores.to(q.dtype), q, d_k, input_precision=PRECISION)
    inside = (key < keys)[:, None] & (tl.arange(0, WIDTH) < DIM)[None]
    packed = (head * keys + key)[:, None] * DIM + tl.arange(0, WIDTH)[None]
    tl.store(d_k_ptr + packed, d_k, mask=inside)
    d_v_ptr += (sample * stored * heads + own) * DIM
    tl.store(d_v_ptr + _places(row, heads, DIM, WIDTH), d_v.to(d_v_ptr.dtype.element_ty), mask=inside)


@triton.jit
def queries_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    blocks_ptr,
    log_sum_ptr,
    delta_ptr,
    d_out_ptr,
    d_q_ptr,
    queries,
    keys,
    stored,
    heads,
    across,
    block,
    SPARSE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of queries over all keys: d_q [B, H, Nq, D] of the rotated queries.

    Scores stand as [keys, queries] here too: the other way round takes several times the registers.
    """
    first, head = tl.program_id(0) * QUERIES, tl.program_id(1).to(tl.int64)
    sample, own = head // heads, head % heads
    index = first + tl.arange(0, QUERIES)
    exists = index < queries
    q = _packed(q_ptr + head * queries * DIM, index, queries, DIM, WIDTH)
    d_out = _spread(d_out_ptr + (sample * queries * heads + own) * DIM, index, exists, heads, DIM, WIDTH)
    log_sum = tl.load(log_sum_ptr + head * queries + index, mask=exists, other=0.0)
    delta = tl.load(delta_ptr + head * queries + index, mask=exists, other=0.0)
    k_ptr += head * keys * DIM
    v_ptr += (sample * stored * heads + own) * DIM
    blocks_ptr += head * tl.cdiv(queries, block) * across
    d_q = tl.zeros([QUERIES, WIDTH], tl.float32)
    for start in range(0, keys, KEYS):
        if _wanted(blocks_ptr, first, start, across, block, SPARSE):
            key = start + tl.arange(0, KEYS)
            k = _packed(k_ptr, key, keys, DIM, WIDTH)
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
            scores = _masked(scores, blocks_ptr, index[None], key[:, None], queries, keys, across, block, SPARSE)
            weights = tl.where(scores == float("-inf"), 0.0, tl.exp2(scores - log_sum[None]))
            row = tl.load(rows_ptr + key, mask=key < keys, other=0)
            v = _spread(v_ptr, row, key < keys, heads, DIM, WIDTH)
            d_scores = weights * (tl.dot(v, tl.trans(d_out), input_precision=PRECISION) - delta[None])
            d_q = tl.dot(tl.trans(d_scores.to(k.dtype)), k, d_q, input_precision=PRECISION)
    inside = exists[:, None] & (tl.arange(0, WIDTH) < DIM)[None]
    packed = (head * queries + index)[:, None] * DIM + tl.arange(0, WIDTH)[None]
    tl.store(d_q_ptr + packed, d_q, mask=inside)


def tiles(dtype: torch.dtype, dim: int, gradient: bool) -> tuple[int, int, dict[str, int]]:
    """Queries and keys of a tile, and how it is launched; compiled without spills for sm_80, sm_90 and sm_100."""
    if dtype == torch.float32:
        side = 16 if dim > 64 or gradient else 32
        return side, side, {"num_warps": 8, "num_stages": 1}
    if gradient:
        return (
            (64, 64, {"num_warps": 8, "num_stages": 2}) if dim <= 128 else (32, 32, {"num_warps": 8, "num_stages": 1})
        )
    if dim <= 128:
        return 128, 64, {"num_warps": 8, "num_stages": 3}
    return 64, 32, {"num_warps": 8, "num_stages": 2}


def _sparsity(blocks: Tensor | None, block: int, queries: int, keys: int) -> int:
    if blocks is None:
        return DENSE
    return WHOLE_TILES if block % queries == 0 and block % keys == 0 else ANY_BLOCKS


def _turn(x: Tensor, rows: Tensor, turn: Tensor, factor: float, packed: Tensor, back: bool = False) -> None:
    """Fill `packed` [B, H, N, D] from rows of x [B, stored, H, D]; `back`: those rows of x from `packed`."""
    batch, stored, heads, dim = x.shape
    if not len(rows) * batch * heads:
        return
    pairs = triton.next_power_of_2(dim // 2)
    block = max(1024 // pairs, 1)
    source, target = (packed, x) if back else (x, packed)
    grid = (triton.cdiv(len(rows), block), batch * heads)
    turn_kernel[grid](
        source, rows, turn, target, len(rows), stored, heads, factor, DIM=dim, PAIRS=pairs, BACK=back, ROWS=block
    )


class _Call:
    """What the kernels of one call share: rotated queries and keys, where keys are stored, and the launch options."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        q_turn: Tensor,
        k_turn: Tensor,
        frames: Tensor,
        blocks: Tensor | None,
        block: int,
    ) -> None:
        self.batch, self.queries, self.heads, self.dim = q.shape
        self.keys, self.stored, self.block, self.blocks = len(k_turn), k.shape[1], block, blocks
        tokens = self.keys // max(len(frames), 1)
        self.rows = (frames[:, None] * tokens + torch.arange(tokens, device=q.device)).flatten()
        self.own = torch.arange(self.queries, device=q.device)
        self.q = q.new_empty(self.batch, self.heads, self.queries, self.dim)
        self.k = q.new_empty(self.batch, self.heads, self.keys, self.dim)
        _turn(q, self.own, q_turn, LOG2_E / math.sqrt(self.dim), self.q)
        _turn(k, self.rows, k_turn, 1.0, self.k)

    def launch(self, kernel: triton.JITFunction, v: Tensor, *tensors: Tensor, over_keys: bool, gradient: bool) -> None:
        """Run a kernel over tiles of queries, or of keys."""
        queries, keys, options = tiles(v.dtype, self.dim, gradient)
        count = triton.cdiv(self.keys, keys) if over_keys else triton.cdiv(self.queries, queries)
        if not count * self.batch * self.heads:
            return
        blocks = self.q.new_empty(0, dtype=torch.uint8) if self.blocks is None else self.blocks.view(torch.uint8)
        kernel[count, self.batch * self.heads](
            self.q,
            self.k,
            v,
            self.rows,
            blocks,
            *tensors,
            self.queries,
            self.keys,
            self.stored,
            self.heads,
            triton.cdiv(self.keys, self.block),
            self.block,
            SPARSE=_sparsity(self.blocks, self.block, queries, keys),
            DIM=self.dim,
            WIDTH=max(triton.next_power_of_2(self.dim), 16),
            QUERIES=queries,
            KEYS=keys,
            PRECISION="ieee",
            **options,
        )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    block: int,
) -> tuple[Tensor, Tensor]:
    """The attended values, and the logarithm of each softmax's sum; see `operators.stream_attention`."""
    call = _Call(q, k, q_turn, k_turn, frames, blocks, block)
    out = torch.empty_like(q)
    log_sum = q.new_empty(call.batch, call.heads, call.queries, dtype=torch.float32)
    call.launch(forward_kernel, v, out, log_sum, over_keys=False, gradient=False)
    return out, log_sum


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_turn: Tensor,
    k_turn: Tensor,
    frames: Tensor,
    blocks: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
    block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    call = _Call(q, k, q_turn, k_turn, frames, blocks, block)
    delta = (out.float() * d_out.float()).sum(dim=-1).transpose(1, 2).contiguous()
    turned_q, turned_k = (torch.empty_like(item, dtype=torch.float32) for item in (call.q, call.k))
    d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    known = (log_sum, delta, d_out)
    call.launch(keys_kernel, v, *known, turned_k, d_v, over_keys=True, gradient=True)
    call.launch(queries_kernel, v, *known, turned_q, over_keys=False, gradient=True)
    _turn(d_q, call.own, q_turn, 1.0 / math.sqrt(call.dim), turned_q, back=True)
    _turn(d_k, call.rows, k_turn, 1.0 / LOG2_E, turned_k, back=True)  # call.q has a factor log2(e) too much
    return d_q, d_k, d_v
