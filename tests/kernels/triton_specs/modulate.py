"""adaLN at the width of Wan 1.3B, in bfloat16, and of the embedded teacher, in float32."""

from . import Spec

SPECS = [
    Spec(
        kernel="forward_kernel",
        signature=dict.fromkeys(("x_ptr", "scale_ptr", "shift_ptr", "out_ptr"), "*bf16")
        | {"tokens": "i32", "dim": "i32", "eps": "fp32"},
        constants={"BLOCK": 2048},
        num_warps=8,
        divisible=("dim",),
    ),
    Spec(
        kernel="backward_kernel",
        signature=dict.fromkeys(("x_ptr", "scale_ptr", "d_out_ptr", "d_x_ptr"), "*bf16")
        | dict.fromkeys(("d_scale_ptr", "d_shift_ptr"), "*fp32")
        | {"tokens": "i32", "dim": "i32", "eps": "fp32"},
        constants={"ROWS": 16, "BLOCK": 2048},
        num_warps=8,
        divisible=("dim",),
    ),
    Spec(
        kernel="backward_kernel",
        signature=dict.fromkeys(("x_ptr", "scale_ptr", "d_out_ptr", "d_x_ptr", "d_scale_ptr", "d_shift_ptr"), "*fp32")
        | {"tokens": "i32", "dim": "i32", "eps": "fp32"},
        constants={"ROWS": 16, "BLOCK": 512},
        num_warps=2,
        divisible=("dim",),
        note="float32",
    ),
]
