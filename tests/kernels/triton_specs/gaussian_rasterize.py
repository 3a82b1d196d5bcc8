"""Projection, harmonics and compositing of colours, depth and normal."""

from dreamkit_kernels.gaussian_rasterize.triton import BLOCK, CHUNK
from dreamkit_kernels.gaussian_rasterize.triton_project import LANES

from . import Spec

WHOLE = {"entries", "starts", "counts", "stops", "boxes", "radii"}


def pointers(*names: str) -> dict[str, str]:
    kinds = dict.fromkeys(WHOLE, "*i32") | {"usable": "*u8"}
    return {f"{name}_ptr": kinds.get(name, "*fp32") for name in names}


def sizes(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def numbers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "fp32")


def forward(median: bool, behind: bool) -> Spec:
    names = ("means2d", "geometry", "colors", "background", "entries", "starts", "counts", "image", "alpha", "depth")
    signature = pointers(*names, "normal", "median", "rest", "stops")
    constants = {"MEDIAN": median, "BEHIND": behind, "BLOCK": BLOCK, "CHUNK": CHUNK}
    return Spec(
        "forward_kernel",
        signature | sizes("width", "height", "channels", "color_rows"),
        constants,
        num_warps=16,
        note=f"median {median}, background {behind}",
    )


def backward(absolute: bool) -> Spec:
    names = ("means2d", "geometry", "colors", "entries", "starts", "rest", "stops", "d_image", "d_rest", "d_depth")
    signature = pointers(*names, "d_normal", "d_means2d", "d_geometry", "d_colors", "absolute")
    counts = sizes("width", "height", "channels", "color_rows", "features")
    constants = {"ABSOLUTE": absolute, "BLOCK": BLOCK}
    return Spec("backward_kernel", signature | counts, constants, num_warps=8, note=f"absolute {absolute}")


GIVEN = pointers("means", "quaternions", "scales", "opacities", "poses", "lenses", "radii")


def projection(antialiased: bool, orthographic: bool) -> list[Spec]:
    kind = {"ANTIALIASED": antialiased, "ORTHOGRAPHIC": orthographic, "LANES": LANES}
    results = pointers("usable", "means2d", "geometry", "boxes")
    gradients = pointers(*("d_means2d", "d_geometry", "d_means", "d_quaternions", "d_scales", "d_opacities", "d_poses"))
    # Sizes of images are floats to projection.
    options = numbers("width", "height", "near", "far", "eps2d", "radius_clip")
    others = sizes("count", "views") | numbers("width", "height", "eps2d")
    module = "triton_project"
    return [
        Spec("project_kernel", GIVEN | results | sizes("count") | options, kind, module=module),
        Spec("project_backward_kernel", GIVEN | gradients | others, kind | {"OF_POSE": True}, module=module),
    ]


def harmonics(used: int) -> list[Spec]:
    given = pointers("means", "coefficients", "poses", "radii")
    gradients = pointers("d_colors", "d_means", "d_coefficients", "d_places")
    constants = {"USED": used, "LANES": LANES}
    module = "triton_project"
    return [
        Spec("shade_kernel", given | pointers("colors") | sizes("count", "held"), constants, module=module),
        Spec("shade_backward_kernel", given | gradients | sizes("count", "views", "held"), constants, module=module),
    ]


SPECS = [
    forward(False, True),
    forward(True, False),
    backward(False),
    backward(True),
    *projection(False, False),
    *projection(True, True),
    *harmonics(1),
    *harmonics(16),
]
