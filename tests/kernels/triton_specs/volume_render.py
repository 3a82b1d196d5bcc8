"""Rays with any number of samples."""

from dreamkit_kernels.volume_render.triton import BLOCK, CHANNELS, LANES

from . import Spec


def pointers(*names: str) -> dict[str, str]:
    kinds = {"offsets": "*i64", "counts": "*i64", "occupied": "*u8"}
    return {f"{name}_ptr": kinds.get(name, "*fp32") for name in names}


COUNT = {"count": "i32"}
SAMPLES = pointers("starts", "ends", "offsets")
ALONG = {"BLOCK": BLOCK}
MARCH = (
    pointers("origins", "directions", "occupied", "box", "jitter", "offsets", "counts", "starts", "ends")
    | dict.fromkeys(("rays", "size_x", "size_y", "size_z", "steps"), "i32")
    | dict.fromkeys(("step", "near", "far"), "fp32")
)
RESAMPLE = pointers("edges", "cdf", "jitter", "result") | dict.fromkeys(("total", "bins", "count", "rounds"), "i32")
SPECS = [
    Spec("weights_kernel", SAMPLES | pointers("densities", "weights") | COUNT, ALONG, num_warps=1),
    Spec("passed_kernel", SAMPLES | pointers("densities", "passed") | COUNT, ALONG, num_warps=1),
    Spec(
        "weights_backward_kernel",
        SAMPLES | pointers("weights", "d_weights", "passed", "d_densities") | COUNT,
        ALONG,
        num_warps=1,
    ),
    Spec("distortion_kernel", SAMPLES | pointers("weights", "loss") | COUNT, ALONG, num_warps=1),
    Spec(
        "distortion_backward_kernel",
        SAMPLES | pointers("weights", "d_loss", "d_weights") | COUNT,
        ALONG,
        num_warps=1,
    ),
    Spec("march_kernel", MARCH, {"JITTERED": True, "FILL": False, "LANES": LANES}, note="count"),
    Spec("march_kernel", MARCH, {"JITTERED": True, "FILL": True, "LANES": LANES}, note="fill"),
    Spec("resample_kernel", RESAMPLE, {"JITTERED": True, "LANES": LANES}),
]
for channels in (1, 4, CHANNELS):
    constants = {"BLOCK": BLOCK, "CHANNELS": channels}
    inputs = pointers("offsets", "weights", "values")
    sizes = COUNT | {"channels": "i32"}
    backward = pointers("d_total", "d_weights", "d_values")
    SPECS += [
        Spec("accumulate_kernel", inputs | pointers("total") | sizes, constants, num_warps=1),
        Spec("accumulate_backward_kernel", inputs | backward | sizes, constants, num_warps=1),
    ]
