"""The public operation: argument checks, then the backend that fits."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import choose_backend
from . import operators
from .reference import encode_reference
from .types import HashGrid, check_arguments

DEFAULT_GRID = HashGrid()


def encode(positions: Tensor, table: Tensor, grid: HashGrid = DEFAULT_GRID, backend: str | None = None) -> Tensor:
    """Multiresolution hash encoding of positions.

    On every level the features of the 2^D grid points around x are interpolated, and the levels are concatenated:

        y_l(x) = sum_c prod_d (c_d ? w_d : 1 - w_d) table_l[index(floor(x s_l + b_l) + c)],  w = fraction(x s_l + b_l)

    with index the row-major place on dense levels and (i_1 p_1 xor i_2 p_2 xor i_3 p_3) mod size on hashed ones.
    Gradients reach the table and the positions; that of the positions can be differentiated again. The native backend
    is deterministic: equal inputs give equal bits, for any number of threads. So is the Triton one, except in the
    gradient of the table, whose sums atomics reorder.

    Args:
        positions: [N, D] in [0, 1]; coordinates outside are clamped (and get no gradient there), rows that hold NaN
            or infinity encode to zero.
        table: [grid.entries, grid.features].
        grid: the layout.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        [N, levels * features], coarse levels first.

    Raises:
        TypeError: an argument of the wrong kind or dtype (float32 or float64), by name.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Mueller et al., "Instant Neural Graphics Primitives with a Multiresolution Hash Encoding", 2022
    (arXiv 2201.05989).
    """
    check_arguments(positions, table, grid)
    chosen = choose_backend(operators.OPERATION, backend, positions)
    if chosen == "reference":
        return encode_reference(positions, table, grid)
    return operators.encode(positions, table, grid.spec, chosen)
