"""The public operations: argument checks, then the backend that fits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_float, check_like, check_shape
from ..dispatch import choose_backend
from . import operators, reference
from .topology import edges_reference
from .types import Fragments, check_edges, check_faces, check_fragments, check_mesh, check_size


def rasterize(
    positions: Tensor,  # [B, V, 4] clip space
    faces: Tensor,  # [F, 3] int32 or int64
    height: int,
    width: int,
    backend: str | None = None,
) -> Fragments:
    """What the centre of every pixel sees of a triangle mesh.

    Row 0 is the top of the image: the pixel in row r and column c has its centre at x / w = (2 c + 1) / W - 1 and
    y / w = 1 - (2 r + 1) / H. Faces are seen from both sides. The smallest z / w wins, ties go to the face with the
    lower number. Faces that cross the near plane are cut there, and those with NaN or infinity or without an area are
    not drawn. Two faces that share an edge leave no gap, and a centre on the edge belongs to one of them.

    A gradient reaches positions through the barycentrics only; `antialias` has that of the silhouettes. Native kernels
    are deterministic: equal inputs give equal bits, for any number of threads.

    Args:
        positions: corners in OpenGL's clip space (x right, y up, visible where -w <= z <= w), one set an image.
        faces: numbers of the corners of each face.
        height: H, from 1 to 16384.
        width: W, from 1 to 16384.
        backend: "reference", "native" or "triton". None: DREAMKIT_BACKEND, else the fastest one that applies.

    Returns:
        Faces, barycentrics and depth by pixel.

    Raises:
        TypeError: an argument of the wrong kind or dtype, by name.
        ValueError: a wrong shape, device, size or number of a vertex, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Olano and Greer, "Triangle Scan Conversion using 2D Homogeneous Coordinates", 1997; Laine et al., "Modular
    Primitives for High-Performance Differentiable Rendering", arXiv 2011.03277.
    """
    check_mesh(positions, faces)
    check_size(len(positions), height, width)
    chosen = choose_backend(operators.OPERATION, backend, positions)
    if chosen == "reference":
        return Fragments(*reference.rasterize_reference(positions, faces, height, width))
    barycentrics, depth, seen = operators.rasterize(positions, faces.int(), height, width, chosen)
    return Fragments(seen, barycentrics, depth)


def interpolate(
    attributes: Tensor,  # [V, C] or [B, V, C]
    faces: Tensor,  # [F, 3]
    fragments: Fragments,
    backend: str | None = None,
) -> Tensor:
    """Attributes of vertices at every pixel: sum_i b_i a_i over the corners of the face that it sees.

    Args:
        attributes: of each vertex, for all images alike or by image. Gradients reach attributes and barycentrics.
        faces: numbers of the corners of each face.
        fragments: what `rasterize` gave for these faces.
        backend: as in `rasterize`.

    Returns:
        [B, H, W, C]; 0 where nothing is seen.

    Raises:
        TypeError: an argument of the wrong kind or dtype, by name.
        ValueError: a wrong shape, device or number of a vertex or face, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.
    """
    check_float("attributes", attributes)
    if attributes.ndim == 2:
        attributes = attributes[None]
    elif attributes.ndim != 3:
        raise ValueError(f"attributes must have shape [V, C] or [B, V, C], got {list(attributes.shape)}.")
    else:
        check_shape("attributes", attributes, [len(fragments.faces), "V", "C"])
    check_faces(faces, attributes.shape[1], attributes)
    check_fragments(fragments, len(faces), "attributes", attributes)
    chosen = choose_backend(operators.OPERATION, backend, attributes)
    seen, barycentrics = fragments.faces, fragments.barycentrics
    if chosen == "reference":
        return reference.interpolate_reference(attributes, faces, seen, barycentrics)
    return operators.interpolate(attributes, faces.int(), seen, barycentrics, chosen)


def mesh_edges(
    faces: Tensor,  # [F, 3] int32 or int64
    backend: str | None = None,
) -> Tensor:
    """What lies beyond every edge of every face. `antialias` takes it, so that it need not be found at every call.

    Edge i of a face is the one opposite to its corner i. It has a neighbour if exactly two faces have its two vertices;
    which way round they go does not matter.

    Args:
        faces: numbers of the corners of each face.
        backend: as in `rasterize`; all but "native" find them by torch's sort.

    Returns:
        [F, 3] int32: 3 f + i for edge i of the neighbouring face f, -1 for none.

    Raises:
        TypeError: faces are neither int32 nor int64.
        ValueError: a wrong shape, a number that is negative or no int32, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.
    """
    check_faces(faces)
    chosen = choose_backend(operators.OPERATION, backend, torch.empty(0, device=faces.device))
    return operators.find_edges(faces.int()) if chosen == "native" else edges_reference(faces)


def antialias(
    image: Tensor,  # [B, H, W, C]
    fragments: Fragments,
    positions: Tensor,  # [B, V, 4] clip space
    faces: Tensor,  # [F, 3]
    backend: str | None = None,
    edges: Tensor | None = None,  # [F, 3] int32
) -> Tensor:
    """Blend colours across silhouettes, so that a gradient reaches the positions that move them.

    Where two pixels that lie side by side see different faces, the surface that is nearer may end between their
    centres, at an edge behind which it turns back or stops. Of the segment between the centres it covers

        t = e(own) / (e(own) - e(other)),

    with the edge function e of that edge at the centre that sees the surface and at the other one. If t < 1/2, the own
    pixel gets 1/2 - t of the other's colour, else the other pixel gets t - 1/2 of the own. Steep edges count between
    columns only, flat ones between rows.

    As in nvdiffrast, but for the search, which follows the surface over any number of small faces to its end.

    Args:
        image: colours of the pixels. Gradients reach image and positions.
        fragments: what `rasterize` gave for these positions and faces.
        positions: corners in clip space, as in `rasterize`.
        faces: numbers of the corners of each face.
        backend: as in `rasterize`.
        edges: `mesh_edges(faces)`, found at every call if it is not given.

    Returns:
        [B, H, W, C].

    Raises:
        TypeError: an argument of the wrong kind or dtype, by name.
        ValueError: a wrong shape, device or number of a vertex or face, or an unknown backend.
        RuntimeError: the backend asked for is not available on this machine.

    Papers: Laine et al., "Modular Primitives for High-Performance Differentiable Rendering", arXiv 2011.03277, section
    3.5.
    """
    check_mesh(positions, faces)
    check_fragments(fragments, len(faces), "positions", positions)
    check_shape("fragments.faces", fragments.faces, [len(positions), "H", "W"])
    check_shape("image", image, [*fragments.faces.shape, "C"])
    check_like("image", image, "positions", positions)
    chosen = choose_backend(operators.OPERATION, backend, positions)
    edges = mesh_edges(faces, chosen) if edges is None else edges
    check_edges(edges, faces)
    inputs = (image, fragments.faces, fragments.depth, positions)
    if chosen == "reference":
        return reference.antialias_reference(*inputs, faces, edges)
    return operators.antialias(*inputs, faces.int(), edges, chosen)[0]
