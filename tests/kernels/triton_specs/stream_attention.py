"""Attention of Wan's heads (128 channels) in half precision, of small ones and of float32."""

import torch
from dreamkit_kernels.stream_attention.triton import ANY_BLOCKS, DENSE, WHOLE_TILES, tiles

from . import Spec

SIZES = dict.fromkeys(("queries", "keys", "stored", "heads", "across", "block"), "i32")
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
INPUTS = ("q_ptr", "k_ptr", "v_ptr")
TABLES = {"rows_ptr": "*i64", "blocks_ptr": "*u8"}
KNOWN = {"log_sum_ptr": "*fp32", "delta_ptr": "*fp32"}
RESULTS = {
    "forward_kernel": {"out_ptr": "", "log_sum_ptr": "*fp32"},
    "keys_kernel": {**KNOWN, "d_out_ptr": "", "d_k_ptr": "*fp32", "d_v_ptr": ""},
    "queries_kernel": {**KNOWN, "d_out_ptr": "", "d_q_ptr": "*fp32"},
}


def spec(kernel: str, dtype: torch.dtype, dim: int, sparse: int) -> Spec:
    queries, keys, options = tiles(dtype, dim, gradient=kernel != "forward_kernel")
    pointers = {name: kind or f"*{TYPES[dtype]}" for name, kind in RESULTS[kernel].items()}
    signature = dict.fromkeys(INPUTS, f"*{TYPES[dtype]}") | TABLES | pointers | SIZES
    constants = {"SPARSE": sparse, "DIM": dim, "WIDTH": dim, "QUERIES": queries, "KEYS": keys, "PRECISION": "ieee"}
    return Spec(kernel, signature, constants, **options, note=f"{TYPES[dtype]}, {dim} channels, sparsity {sparse}")


def turn(kind: str, back: bool) -> Spec:
    ends = ("*fp32", f"*{kind}") if back else (f"*{kind}", f"*{kind}")
    signature = {"x_ptr": ends[0], "out_ptr": ends[1], "rows_ptr": "*i64", "turn_ptr": "*fp32", "factor": "fp32"}
    sizes = dict.fromkeys(("count", "stored", "heads"), "i32")
    return Spec("turn_kernel", signature | sizes, {"DIM": 128, "PAIRS": 64, "BACK": back, "ROWS": 16})


SPECS = [
    turn("bf16", back=False),
    turn("bf16", back=True),
    *(spec(kernel, torch.bfloat16, 128, DENSE) for kernel in RESULTS),
    *(spec(kernel, torch.bfloat16, 128, WHOLE_TILES) for kernel in RESULTS),
    *(spec(kernel, torch.float16, 64, ANY_BLOCKS) for kernel in RESULTS),
    *(spec(kernel, torch.float16, 256, DENSE) for kernel in RESULTS),
    *(spec(kernel, torch.float32, 32, DENSE) for kernel in RESULTS),
    *(spec(kernel, torch.float32, 64, DENSE) for kernel in RESULTS),
    *(spec(kernel, torch.float32, 128, DENSE) for kernel in RESULTS),
    *(spec(kernel, torch.float32, 256, DENSE) for kernel in RESULTS),
]
