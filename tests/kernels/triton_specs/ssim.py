"""Structural similarity of pictures of any size."""

from . import Spec

CONSTANTS = {"WINDOW": 11, "BLOCK": 256}
SIZES = {"pixels": "i32", "height": "i32", "width": "i32"}
NUMBERS = {"C1": "fp32", "C2": "fp32"}


def pointers(*names: str) -> dict[str, str]:
    return {f"{name}_ptr": "*fp32" for name in names}


SPECS = [
    Spec("rows_kernel", pointers("x", "y", "weights", "sums") | {"pixels": "i32", "width": "i32"}, CONSTANTS),
    Spec("map_kernel", pointers("sums", "weights", "map") | SIZES | NUMBERS, CONSTANTS),
    Spec("slopes_kernel", pointers("sums", "weights", "d_map", "slopes") | SIZES | NUMBERS, CONSTANTS),
    Spec("slope_rows_kernel", pointers("slopes", "weights", "sums") | {"pixels": "i32", "width": "i32"}, CONSTANTS),
    Spec(
        "gradient_kernel",
        pointers("sums", "weights", "x", "y", "d_x", "d_y") | SIZES,
        CONSTANTS | {"OF_X": True, "OF_Y": True},
    ),
]
