"""Compositing of colours, depth and normal."""

from dreamkit_kernels.gaussian_rasterize.triton import BLOCK, CHUNK

from . import Spec

LISTS = dict.fromkeys(("entries_ptr", "starts_ptr"), "*i32")
FORWARD = (
    {"geometry_ptr": "*fp32", "features_ptr": "*fp32"}
    | LISTS
    | {"counts_ptr": "*i32", "stops_ptr": "*i32"}
    | dict.fromkeys(("sums_ptr", "rest_ptr", "middle_ptr"), "*fp32")
    | dict.fromkeys(("width", "height", "features", "halfway"), "i32")
)
NUMBERS = ("geometry", "features", "rest", "d_sums", "d_rest", "d_geometry", "d_features")
BACKWARD = (
    {f"{name}_ptr": "*fp32" for name in NUMBERS}
    | LISTS
    | {"stops_ptr": "*i32"}
    | dict.fromkeys(("width", "height", "features"), "i32")
)
SPECS = [
    Spec("forward_kernel", FORWARD, {"MEDIAN": False, "BLOCK": BLOCK, "CHUNK": CHUNK}, num_warps=8),
    Spec("forward_kernel", FORWARD, {"MEDIAN": True, "BLOCK": BLOCK, "CHUNK": CHUNK}, num_warps=8, note="median"),
    Spec("backward_kernel", BACKWARD, {"BLOCK": BLOCK}, num_warps=8),
]
