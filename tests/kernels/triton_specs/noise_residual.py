"""Samples in single and half precision."""

from . import Spec

SAMPLES = ("positive_ptr", "negative_ptr", "noisy_ptr", "noise_ptr", "out_ptr", "clean_ptr")
SPECS = [
    spec
    for kind in ("*fp32", "*bf16")
    for spec in (
        Spec(
            "add_noise_kernel",
            {"x_ptr": kind, "noise_ptr": kind, "levels_ptr": "*fp32", "out_ptr": kind, "size": "i32"},
            {"BLOCK": 1024},
        ),
        Spec(
            "residual_kernel",
            dict.fromkeys(SAMPLES, kind) | {"table_ptr": "*fp32", "size": "i32"},
            {"BLOCK": 1024},
        ),
    )
]
