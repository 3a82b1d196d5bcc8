"""What `kernels/bench_gpu.py` runs: the shapes that matter on a GPU, against the best that is known to run there.

Each case says how much work its forward pass can't avoid, so that a time can be read as a share of what the machine
was measured to do: products of matrices by their operations, everything else by the bytes that must move.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .. import hash_grid, modulate, stream_attention
from ..stream_attention.reference import rotate
from .cases import Make, gaussians_in_a_ball, hash_of_random_points, rasterize_sphere, shade_sphere
from .measure import Pass, Problem, median_ms, run_case

WAN_FRAME = (30, 52)
"""Rows and columns of tokens of a latent frame of Wan 1.3B at 832x480: 1,560 tokens."""


@dataclass(frozen=True)
class GpuCase:
    """One thing to time on a GPU."""

    op: str
    name: str
    make: Make
    rivals: tuple[str, ...]
    """Names of backends, or of what `make`'s problem takes besides them."""
    flops: float = 0.0
    """Operations of the forward pass's matrix products."""
    bytes: float = 0.0
    """Bytes that the forward pass must read and write."""


def stream_chunk(height: int, width: int, heads: int, dim: int, frames: int, dtype: torch.dtype) -> Make:
    """A chunk of 3 frames over a cache of `frames`, keys rotated on read; forward and backward.

    The rivals get their keys and queries rotated by the reference first, as a stream that keeps them unrotated must.
    """
    stream = stream_attention.Stream(height, width)
    rope = stream_attention.Rope3d.split_evenly(dim)

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)

        def draw(count: int) -> Tensor:
            drawn = torch.randn(1, count * stream.tokens, heads, dim, generator=generator)
            return drawn.to(device, dtype).requires_grad_()

        q, k, v = draw(3), draw(frames), draw(frames)
        angles = rope.angles(torch.arange(frames, device=device), height, width)
        flex = torch.compile(_flex_attention, dynamic=False) if device.type == "cuda" else _flex_attention

        def forward(backend: str) -> Sequence[Tensor]:
            if backend not in ("sdpa", "flex_attention"):
                return [stream_attention.attend(q, k, v, stream, rope, backend=backend)]
            turned = (rotate(q, angles[-q.shape[1] :]), rotate(k, angles), v)
            heads_first = [item.transpose(1, 2) for item in turned]
            attention = functional.scaled_dot_product_attention if backend == "sdpa" else flex
            return [attention(*heads_first)]

        return Problem(forward, [q, k, v])

    return make


def _flex_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    result = flex_attention(q, k, v)
    if not isinstance(result, Tensor):
        raise TypeError("flex_attention gave no tensor")
    return result


def _tokens(tokens: int, dim: int, dtype: torch.dtype) -> Make:
    """Modulated layer norm of one clip's tokens."""

    def make(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, tokens, dim, generator=generator).to(device, dtype).requires_grad_()
        scale, shift = (torch.randn(1, dim, generator=generator).to(device, dtype).requires_grad_() for _ in range(2))
        compiled = torch.compile(modulate.modulate)

        def forward(backend: str) -> Sequence[Tensor]:
            if backend == "inductor":
                return [compiled(x, scale, shift, backend="reference")]
            return [modulate.modulate(x, scale, shift, backend=backend)]

        return Problem(forward, [x, scale, shift])

    return make


def _tiny_cuda_nn_or_torch(count: int) -> tuple[Make, tuple[str, ...]]:
    """The hash grid, with tiny-cuda-nn's encoding as a rival where it can be imported."""
    plain = hash_of_random_points(count, False)
    if importlib.util.find_spec("tinycudann") is None:
        return plain, ("reference",)

    def make(device: torch.device) -> Problem:
        import tinycudann

        grid = hash_grid.HashGrid()
        problem = plain(device)
        config = {
            "otype": "HashGrid",
            "n_levels": grid.levels,
            "n_features_per_level": grid.features,
            "log2_hashmap_size": grid.log2_size,
            "base_resolution": grid.base_resolution,
            "per_level_scale": grid.growth,
        }
        rival = tinycudann.Encoding(grid.dims, config, dtype=torch.float32)
        positions = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).to(device)

        def forward(backend: str) -> Sequence[Tensor]:
            return [rival(positions)] if backend == "tiny-cuda-nn" else problem.forward(backend)

        return Problem(forward, [*problem.inputs, *rival.parameters()])

    return make, ("tiny-cuda-nn", "reference")


def _attention_flops(queries: int, keys: int, heads: int, dim: int) -> float:
    return 4.0 * queries * keys * heads * dim


def gpu_cases(small: bool = False) -> list[GpuCase]:
    """The cases; `small` ones only show that the script runs."""
    sizes = ((500, 64, 48),) if small else (
        *((10_000, 256, 256), (100_000, 512, 512)),
        *((500_000, 1024, 1024), (2_000_000, 1920, 1080)),
    )  # fmt: skip
    cases = [
        GpuCase(
            "gaussian_rasterize",
            f"{count:,} at {width}x{height}",
            gaussians_in_a_ball(count, width, height, 1.5),
            ("gsplat",),
            bytes=4.0 * (14 * count + 8 * width * height),
        )
        for count, width, height in sizes
    ]
    grid = hash_grid.HashGrid()
    for count in (256,) if small else (65_536, 2**20):
        make, rivals = _tiny_cuda_nn_or_torch(count)
        reads = 4.0 * count * (3 + grid.width + 2**grid.dims * grid.width)
        cases.append(GpuCase("hash_grid", f"{count:,} points", make, rivals, bytes=reads))
    for rings, side in ((6, 16),) if small else ((100, 512), (500, 1024)):
        mesh, pixels = f"{2 * rings**2:,} faces at {side}x{side}", side**2
        drawing, shading = rasterize_sphere(rings, side), shade_sphere(rings, side)
        reads = 4.0 * (4 * rings**2 + 6 * rings**2)
        cases.append(GpuCase("mesh_rasterize", mesh, drawing, ("reference",), bytes=reads + 20.0 * pixels))
        cases.append(GpuCase("mesh_rasterize", f"antialias {mesh}", shading, ("reference",), bytes=60.0 * pixels))
    height, width = (2, 3) if small else WAN_FRAME
    heads, dim = (2, 16) if small else (12, 128)
    kinds = (torch.float32,) if small else (torch.bfloat16,)
    for dtype in kinds:
        for frames in (6,) if small else (12, 15):
            queries, keys = 3 * height * width, frames * height * width
            cases.append(
                GpuCase(
                    "stream_attention",
                    f"chunk of 3 over {frames} frames of {height * width} tokens, {heads} heads of {dim}",
                    stream_chunk(height, width, heads, dim, frames, dtype),
                    ("sdpa", "flex_attention"),
                    flops=_attention_flops(queries, keys, heads, dim),
                )
            )
        tokens, channels = (12, 32) if small else (3 * height * width, 1536)
        size = torch.finfo(dtype).bits / 8
        cases.append(
            GpuCase(
                "modulate",
                f"{tokens:,} tokens of {channels:,}",
                _tokens(tokens, channels, dtype),
                ("reference", "inductor"),
                bytes=2 * size * tokens * channels,
            )
        )
    return cases


def peaks(device: torch.device, small: bool = False) -> dict[str, float]:
    """What the machine does at best, measured: GB/s of a copy, TFLOP/s of products of matrices by dtype."""
    count, side = (2**16, 64) if small else (2**28, 8192)
    source = torch.empty(count, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    copying = median_ms(Pass(lambda _: target.copy_(source)), device, 0.3)
    found = {"copy_gb_s": 8 * count / copying / 1e6}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=device).to(dtype)
        ms = median_ms(Pass(lambda _, a=a: torch.matmul(a, a)), device, 0.3)
        found[f"{str(dtype).removeprefix('torch.')}_tflop_s"] = 2 * side**3 / ms / 1e9
    return {name: round(value, 3) for name, value in found.items()}


def run_gpu_case(
    case: GpuCase, backends: Sequence[str], device: torch.device, best: dict[str, float], seconds: float
) -> list[dict[str, object]]:
    """Measure a case against each of its rivals.

    Returns:
        Rows as `dreamkit bench kernels` gives them; those of forward passes with `share`, the part of the measured
        best ("copy_gb_s" or "bfloat16_tflop_s") that the least possible work amounts to.
    """
    problem = case.make(device)
    rows: list[dict[str, object]] = []
    for rival in case.rivals:
        others = [name for name in backends if name != rival]
        for row in run_case(case.op, case.name, problem, others, rival, device, torch.get_num_threads(), seconds):
            plain = row.plain()
            if row.pass_ == "forward":
                plain |= _share(case, row.ms, best)
            rows.append(plain)
    return rows


def _share(case: GpuCase, ms: float, best: dict[str, float]) -> dict[str, object]:
    if case.flops:
        return {"share": round(case.flops / ms / 1e9 / best["bfloat16_tflop_s"], 3), "share_of": "bfloat16_tflop_s"}
    return {"share": round(case.bytes / ms / 1e6 / best["copy_gb_s"], 3), "share_of": "copy_gb_s"}


Report = Callable[[list[dict[str, object]]], None]


def run_gpu(device: torch.device, seconds: float, small: bool, report: Report) -> dict[str, object]:
    """Run every case; one that fails leaves its reason in place of rows, and the rest go on.

    Args:
        device: where.
        seconds: time for each median.
        small: tiny shapes, to see that the script runs.
        report: called with the rows of each case as they come.

    Returns:
        `peaks`, `rows` and `missing` (case or rival -> why).
    """
    from ..dispatch import DEVICES, backend_report

    best = peaks(device, small)
    rows: list[dict[str, object]] = []
    missing: dict[str, str] = {}
    if importlib.util.find_spec("tinycudann") is None:
        missing["tiny-cuda-nn"] = "not installed, so there is no figure of it"
    for case in gpu_cases(small):
        statuses = [s for s in backend_report() if s.operation == case.op and s.name != "reference"]
        usable = [s.name for s in statuses if s.available and DEVICES[s.name] == device.type]
        missing |= {f"{case.op}/{s.name}": s.reason for s in statuses if not s.available}
        absent = {s.name for s in statuses} - set(usable)
        if device.type == "cpu":
            absent.add("flex_attention")  # has no backward pass there
        rivals = tuple(name for name in case.rivals if name not in absent)
        try:
            trimmed = GpuCase(case.op, case.name, case.make, rivals or ("reference",), case.flops, case.bytes)
            new = run_gpu_case(trimmed, usable, device, best, seconds)
        except Exception as error:  # one kernel that fails must not cost the hour of the others
            missing[f"{case.op}: {case.name}"] = f"{type(error).__name__}: {error}"[:500]
            continue
        rows.extend(new)
        report(new)
    return {"peaks": best, "rows": rows, "missing": missing}
