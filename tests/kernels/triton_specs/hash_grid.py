"""The default grid (three axes, two features), smoothly interpolated with second derivatives, and eight features."""

from . import Spec

SIZES = {"count": "i32", "levels": "i32"}
PLAN = {"numbers_ptr": "*fp32", "sizes_ptr": "*i32"}
DEFAULT = {"AXES": 3, "FEATURES": 2, "SMOOTH": False, "BLOCK": 128}
SMOOTH = DEFAULT | {"SMOOTH": True, "FEATURES": 8}


def pointers(*names: str) -> dict[str, str]:
    return {f"{name}_ptr": "*fp32" for name in names} | PLAN | SIZES


ENCODE = pointers("positions", "table", "encoded")
TABLE = pointers("positions", "v", "d_encoded", "d_table")
POSITIONS = pointers("positions", "table", "v", "d_encoded", "d_d_encoded", "d_positions")

SPECS = [
    Spec("encode_kernel", ENCODE, DEFAULT),
    Spec("encode_kernel", ENCODE, SMOOTH, note="smooth, eight features"),
    Spec("table_kernel", TABLE, DEFAULT | {"ALONG": False}),
    Spec("table_kernel", TABLE, SMOOTH | {"ALONG": True}, note="second order, smooth, eight features"),
    Spec("positions_kernel", POSITIONS, DEFAULT | {"ALONG": False}),
    Spec("positions_kernel", POSITIONS, SMOOTH | {"ALONG": True}, note="second order, smooth, eight features"),
]
