"""Marching tetrahedra: a surface from signed distances at the vertices of a tetrahedral grid, with gradients to both.

After DMTet (Shen et al., "Deep Marching Tetrahedra", arXiv 2111.04276). The grid is Kuhn's: every cube of a regular
grid is cut into the six tetrahedra that go from its lowest to its highest corner along the edges, one for each order of
the axes. Neighbouring cubes cut their common face along the same diagonal, so that the tetrahedra fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import torch
from torch import Tensor

from dreamkit.checks import require_integer, require_number
from dreamkit.errors import ConfigError, SceneError

MAX_RESOLUTION = 256
"""Cells an axis; the 6 x 256^3 tetrahedra of the finest grid take 3.2 GB."""

_CHUNK = 4_194_304
"""Tetrahedra looked at together: 16 million flags."""
_ALL_INSIDE = 0x01010101
"""Four flags of one byte, read as one number."""
_SMALLEST_GAP = 1e-12
"""Floor of s_b - s_a, below which the gradient 1 / (s_b - s_a) would leave the range of float32."""
_EDGES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
"""Corners of the six edges of a tetrahedron."""


@dataclass(frozen=True)
class TetrahedralGrid:
    """The cube [-half, half]^3 cut into tetrahedra."""

    vertices: Tensor  # [G, 3] world units, G = (resolution + 1)^3, the last axis fastest
    tetrahedra: Tensor  # [T, 4] int64, T = 6 resolution^3, each with (b - a) x (c - a) . (d - a) > 0
    resolution: int
    half: float

    @property
    def cell(self) -> float:
        """Edge of the cubes, world units."""
        return 2.0 * self.half / self.resolution

    @property
    def border(self) -> Tensor:
        """[G] bool: the vertices on the faces of the cube. A surface that leaves them outside is closed."""
        return self.vertices.abs().amax(dim=1) > self.half - 0.5 * self.cell


def tetrahedral_grid(resolution: int, half: float = 1.0, device: torch.device | str = "cpu") -> TetrahedralGrid:
    """Cut the cube [-half, half]^3 into 6 resolution^3 tetrahedra.

    Args:
        resolution: cells an axis, 1 to 256.
        half: half the edge of the cube, world units.
        device: where the tensors go.

    Returns:
        The grid, float32; (resolution + 1)^3 vertices.

    Raises:
        ConfigError: a resolution or half edge out of range.
    """
    require_integer("The tetrahedral grid's resolution", resolution, 1, MAX_RESOLUTION)
    require_number("The tetrahedral grid's half edge", half, 1e-6, 1e6)
    side = resolution + 1
    axis = torch.linspace(-half, half, side, device=device)
    vertices = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    cells = torch.arange(resolution, device=device)
    strides = (side * side, side, 1)
    lowest = (cells[:, None, None] * strides[0] + cells[:, None] * strides[1] + cells).reshape(-1, 1)
    steps = []
    for order in permutations(range(3)):
        first, second = strides[order[0]], strides[order[0]] + strides[order[1]]
        # An odd order of the axes is a mirror image: swap two corners.
        even = (order[1] - order[0]) % 3 == 1
        steps.append([0, first, second, sum(strides)] if even else [0, second, first, sum(strides)])
    corners = lowest[:, None] + torch.tensor(steps, device=device)
    return TetrahedralGrid(vertices, corners.reshape(-1, 4), resolution, float(half))


def marching_tetrahedra(
    vertices: Tensor,  # [G, 3] world units
    sdf: Tensor,  # [G], negative inside
    tetrahedra: Tensor,  # [T, 4] int64
) -> tuple[Tensor, Tensor]:
    """The surface {sdf = 0} of a field that is linear in every tetrahedron.

    A surface vertex lies on every edge (a, b) whose ends have different signs,

        v = (v_a s_b - v_b s_a) / (s_b - s_a),

    and a tetrahedron holds one triangle (a corner apart from three) or two (two from two). Memory grows with the number
    of tetrahedra that the surface crosses, beyond one flag a vertex.

    Args:
        vertices: of the grid, moved or not. Gradients reach them.
        sdf: signed distances, or any field that is negative inside; zero counts as outside. Gradients reach them.
        tetrahedra: corners, each with (b - a) x (c - a) . (d - a) > 0 in the grid at rest.

    Returns:
        Vertices [V, 3], each used, and faces [F, 3] int64, counter-clockwise seen from outside. Closed and manifold
        where the surface stays off the border of the grid.

    Raises:
        SceneError: the field is not finite, or everything or nothing is inside.
        ConfigError: tensors of other shapes.
    """
    _check(vertices, sdf, tetrahedra)
    inside = sdf.detach() < 0
    crossed, code = _crossed(inside, tetrahedra)
    if len(crossed) == 0:
        everything = bool(inside.any())
        raise SceneError(
            f"The signed field is {'negative' if everything else 'positive'} at all {len(sdf)} vertices of the grid, "
            "so there is no surface.",
            f"Negative is inside: start from a {'smaller' if everything else 'larger'} shape, or lower the learning "
            "rate if there was one before.",
        )
    edges, numbers = _edges(inside, crossed, len(sdf))
    a, b = edges.unbind(dim=1)
    from_a, from_b = sdf.index_select(0, a), sdf.index_select(0, b)
    # As a + t (b - a): it stays on the edge whatever is rounded.
    t = from_a / (from_a - from_b).clamp_max(-_SMALLEST_GAP)
    start = vertices.index_select(0, a)
    surface = start + t.to(vertices.dtype)[:, None] * (vertices.index_select(0, b) - start)
    table = torch.tensor(_triangles(), device=sdf.device)[code]  # [K, 2, 3] edges of a tetrahedron, or -1
    real = table[..., 0] >= 0
    owner = real.nonzero()[:, 0]
    return surface, numbers[owner[:, None], table[real]]


def crossed_edges(
    sdf: Tensor,  # [G]
    tetrahedra: Tensor,  # [T, 4] int64
) -> Tensor:
    """The edges of the grid whose ends have different signs.

    A surface has its vertices on them, and DMTet's followers regularise there: a cross entropy between the signs at
    their ends takes off what floats inside (Munkberg et al., "nvdiffrec", arXiv 2111.12503, equation 2).

    Args:
        sdf: negative inside.
        tetrahedra: corners.

    Returns:
        [E, 2] int64, the end that is inside first, sorted by the numbers of the vertices; E may be 0.
    """
    inside = sdf.detach() < 0
    crossed, _ = _crossed(inside, tetrahedra)
    return _edges(inside, crossed, len(sdf))[0]


def _check(vertices: Tensor, sdf: Tensor, tetrahedra: Tensor) -> None:
    """Check shapes and values.

    Raises:
        ConfigError: a wrong shape.
        SceneError: values that are not finite.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or sdf.shape != vertices.shape[:1]:
        raise ConfigError(
            f"The grid's vertices and signed distances have shapes {tuple(vertices.shape)} and {tuple(sdf.shape)}.",
            "Use [G, 3] and [G].",
        )
    if tetrahedra.ndim != 2 or tetrahedra.shape[1] != 4 or tetrahedra.dtype != torch.int64:
        raise ConfigError(
            f"The tetrahedra are {tetrahedra.dtype} of shape {tuple(tetrahedra.shape)}.", "Use int64 [T, 4]."
        )
    for name, tensor in (("signed distances", sdf), ("vertices", vertices)):
        broken = len(tensor) - int(torch.isfinite(tensor.detach()).reshape(len(tensor), -1).all(dim=1).sum())
        if broken:
            raise SceneError(
                f"The grid's {name} are not finite at {broken} of {len(tensor)} vertices.",
                "Lower the learning rate, or go back to an earlier checkpoint.",
            )


def _crossed(inside: Tensor, tetrahedra: Tensor) -> tuple[Tensor, Tensor]:
    """The tetrahedra [K, 4] with corners on both sides, and which ones are inside as a number of four bits [K]."""
    flags = inside.to(torch.uint8)
    kept = []
    for chunk in tetrahedra.split(_CHUNK):
        four = flags.index_select(0, chunk.reshape(-1)).view(torch.int32)
        kept.append(chunk[((four != 0) & (four != _ALL_INSIDE)).nonzero()[:, 0]])
    crossed = torch.cat(kept)
    bits = torch.tensor([1, 2, 4, 8], device=inside.device)
    return crossed, (flags[crossed] * bits).sum(dim=1)


def _edges(inside: Tensor, crossed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Distinct crossed edges [E, 2], inside first, and the number of each edge of each tetrahedron [K, 6], or -1."""
    pairs = crossed[:, torch.tensor(_EDGES, device=crossed.device)]  # [K, 6, 2]
    ends = inside[pairs]
    split = ends[..., 0] != ends[..., 1]
    pairs = torch.where(ends[..., :1], pairs, pairs.flip(-1))[split]
    keys, inverse = torch.unique(pairs[:, 0] * count + pairs[:, 1], return_inverse=True)
    numbers = torch.full(split.shape, -1, dtype=torch.int64, device=crossed.device)
    numbers[split] = inverse
    return torch.stack([keys // count, keys % count], dim=1), numbers


@cache
def _triangles() -> list[list[list[int]]]:
    """Triangles by the four bits that say which corners are inside: [16, 2, 3] edges, -1 where there is none.

    With (i, j, k, l) an even order of the corners: i alone inside gives the triangle ij, ik, il; i and j inside give
    the quadrilateral ik, il, jl, jk; i alone outside the mirror image of the first.
    """
    number = {edge: index for index, edge in enumerate(_EDGES)}
    table = [[[-1] * 3, [-1] * 3] for _ in range(16)]
    for i, j, k, l in permutations(range(4)):  # noqa: E741
        order = (i, j, k, l)
        if sum(order[m] > order[n] for m in range(4) for n in range(m + 1, 4)) % 2:
            continue

        def edge(m: int, n: int) -> int:
            return number[min(m, n), max(m, n)]

        alone = [edge(i, j), edge(i, k), edge(i, l)]
        table[1 << i][0] = alone
        table[15 - (1 << i)][0] = alone[::-1]
        ring = [edge(i, k), edge(i, l), edge(j, l), edge(j, k)]
        table[(1 << i) | (1 << j)] = [ring[:3], [ring[0], *ring[2:]]]
    return table
