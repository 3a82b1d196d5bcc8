"""Images with three channels; vertices, sides and channels in any number."""

from dreamkit_kernels.mesh_rasterize.reference import DEGENERATE, ROUNDING
from dreamkit_kernels.mesh_rasterize.triton import TILE
from dreamkit_kernels.mesh_rasterize.triton_common import BLOCK
from dreamkit_kernels.mesh_rasterize.types import MAX_STEPS

from . import Spec

KINDS = {
    **dict.fromkeys(("faces", "edges", "seen", "silhouettes"), "*i32"),
    **dict.fromkeys(("low", "sizes", "owners", "first", "keys"), "*i64"),
    **dict.fromkeys(("functions", "sums"), "*fp64"),
}


def pointers(*names: str) -> dict[str, str]:
    return {f"{name}_ptr": KINDS.get(name, "*fp32") for name in names}


def integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


SIZES = integers("pixels", "vertices", "height", "width")
CHANNELS = integers("channels")
ATTRIBUTES = integers("pixels", "vertices", "area", "channels")
EACH = {"BLOCK": BLOCK}
COVER = pointers("functions", "low", "sizes", "owners", "first", "keys") | integers("count", "height", "width")
FRAGMENTS = pointers("keys", "positions", "faces", "seen", "barycentrics", "depth") | SIZES | {"nothing": "i64"}
BARYCENTRICS = pointers("positions", "faces", "seen", "d_barycentrics", "sums") | SIZES
INTERPOLATE = pointers("attributes", "faces", "seen", "barycentrics", "image") | ATTRIBUTES
INTERPOLATE_BACKWARD = (
    pointers("attributes", "faces", "seen", "barycentrics", "d_image", "sums", "d_barycentrics") | ATTRIBUTES
)
SILHOUETTES = pointers("seen", "depth", "positions", "faces", "edges", "silhouettes") | SIZES
BLEND = pointers("image", "silhouettes", "positions", "faces", "result") | SIZES | CHANNELS
EDGES = pointers("image", "silhouettes", "positions", "faces", "d_result", "sums") | SIZES | CHANNELS
BOTH = {"OF_ATTRIBUTES": True, "OF_BARYCENTRICS": True}
WALK = {"MAX_STEPS": MAX_STEPS, "DEGENERATE": DEGENERATE, "ROUNDING": ROUNDING}
ANTIALIAS = "triton_antialias"

SPECS = [
    Spec("cover_kernel", COVER, {"TILE": TILE, "ROUNDING": ROUNDING}, num_warps=2),
    Spec("fragments_kernel", FRAGMENTS, EACH),
    Spec("barycentrics_backward_kernel", BARYCENTRICS, EACH),
    Spec("interpolate_kernel", INTERPOLATE, EACH | {"SHARED": True}),
    Spec("interpolate_kernel", INTERPOLATE, EACH | {"SHARED": False}, note="attributes by view"),
    Spec("interpolate_backward_kernel", INTERPOLATE_BACKWARD, EACH | BOTH | {"SHARED": False}),
    Spec("silhouettes_kernel", SILHOUETTES, EACH | WALK, module=ANTIALIAS),
    Spec("blend_kernel", BLEND, EACH | {"BACKWARD": False}, module=ANTIALIAS),
    Spec("blend_kernel", BLEND, EACH | {"BACKWARD": True}, module=ANTIALIAS, note="backward"),
    Spec("edges_backward_kernel", EDGES, EACH, module=ANTIALIAS),
]
