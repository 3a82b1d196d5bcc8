"""Mesh rasterisation: the reference against rays, gradients against differences, the kernels against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from backends import needs_native, needs_triton
from dreamkit_kernels.mesh_rasterize import Fragments, antialias, interpolate, mesh_edges, rasterize
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import perspective, soup, sphere, square, trace
from torch import Tensor
from torch.autograd import gradcheck

KERNELS = [pytest.param("native", marks=needs_native), pytest.param("triton", marks=needs_triton)]
BACKENDS = ["reference", *KERNELS]
NAN, INF = float("nan"), float("inf")


def triangle(*corners: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    return torch.tensor([corners]), torch.arange(len(corners)).view(-1, 3)


def on_threads(work: Callable[[], list[Tensor]]) -> list[list[Tensor]]:
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(work())
        return results
    finally:
        torch.set_num_threads(threads)


def assert_same(made: Fragments, expected: Fragments) -> None:
    """Equal but where a centre is on an edge, within rounding, and may belong to either side."""
    same = made.faces == expected.faces
    on_edge = torch.zeros_like(same)
    for item in (made, expected):
        on_edge |= item.barycentrics.amin(-1).abs() < 1e-6
    assert bool((same | on_edge).all())
    torch.testing.assert_close(made.barycentrics[same], expected.barycentrics[same], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.depth[same], expected.depth[same], rtol=0, atol=1e-5)


class TestWhatIsSeen:
    @pytest.mark.parametrize("seed", range(4))
    def test_as_rays_find_it(self, seed: int) -> None:
        """Through the near plane, behind the camera, one behind the other, from both sides."""
        points, faces = soup(12, seed)
        fragments = rasterize(perspective(points)[None], faces, 13, 17)
        seen, weights, depth = trace(points, faces, 13, 17)
        np.testing.assert_array_equal(fragments.faces[0].numpy(), seen)
        np.testing.assert_allclose(fragments.barycentrics[0].numpy(), weights, atol=1e-9)
        np.testing.assert_allclose(fragments.depth[0].numpy(), depth, atol=1e-9)
        assert (seen >= 0).mean() > 0.2

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_first_row_is_the_top(self, backend: str) -> None:
        fragments = rasterize(*triangle((-1, 1, 0, 1), (-0.6, 1, 0, 1), (-1, 0.6, 0, 1)), 4, 8, backend)
        expected = torch.full((1, 4, 8), -1, dtype=torch.int32)
        expected[0, 0, 0] = 0
        assert torch.equal(fragments.faces, expected)
        assert fragments.barycentrics.dtype == torch.float32
        torch.testing.assert_close(fragments.barycentrics[0, 0, 0].sum(), torch.tensor(1.0))
        assert fragments.depth[0, 0, 0] == 0
        assert fragments.depth[0, 3, 3] == 1

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_nearest_wins_and_ties_go_to_the_lower_number(self, backend: str) -> None:
        corners = [[-1, -1], [3, -1], [-1, 3]]
        positions = torch.tensor([[[*corner, z, 1.0] for z in (0.3, -0.2, -0.2, 0.9) for corner in corners]])
        faces = torch.arange(12).view(4, 3)
        assert (rasterize(positions, faces, 3, 5, backend).faces == 1).all()
        assert (rasterize(positions, faces.flip(0), 3, 5, backend).faces == 1).all()
        assert (rasterize(positions, faces.flip(1), 3, 5, backend).faces == 1).all()  # seen from behind

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("jitter", [0.0, 0.35])
    def test_faces_that_share_edges_leave_no_gap_and_overlap_nowhere(self, backend: str, jitter: float) -> None:
        """On the grid of the pixels' centres too, where all corners and diagonals are on centres."""
        cells, size = (2, 4) if backend == "triton" else (4, 16)
        for centred in (False, True):
            positions, faces = square(cells, jitter)
            if centred:
                positions[:, :2] = 1.5 * positions[:, :2] + 1 / size
            faces[::2] = faces[::2].flip(1)
            alone = [rasterize(positions[None], face[None], size, size, backend).faces for face in faces]
            assert (sum((seen >= 0).int() for seen in alone) == 1).all()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_floor_under_the_camera(self, backend: str) -> None:
        """A square that runs from behind the camera to the horizon fills the lower half, up to the far plane."""
        points = torch.tensor([[-9, -1, 50], [9, -1, 50], [9, -1, -50], [-9, -1, -50.0]]) * torch.tensor([9, 1, 1])
        faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
        fragments = rasterize(perspective(points, near=0.1, far=20.0)[None], faces, 16, 8, backend)
        row = torch.arange(16)
        distance = 1.5 / ((2 * row + 1) / 16 - 1).double()
        expected = (distance > 0.1) & (distance < 20)
        assert torch.equal((fragments.faces[0] >= 0).all(1), expected)
        assert torch.equal((fragments.faces[0] >= 0).any(1), expected)
        ways = interpolate(points, faces, fragments)
        torch.testing.assert_close(ways[0, expected, 0, 2], -distance[expected].float(), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_what_is_no_triangle_is_not_drawn(self, backend: str) -> None:
        good = [(-1.0, -1.0, 0.0, 1.0), (3.0, -1.0, 0.0, 1.0), (-1.0, 3.0, 0.0, 1.0)]
        bad = [
            [(-1, -1, 0, 1), (0.1, 0.3, 0, 1), (-1, -1, 0, 1)],
            [(-0.7, -0.1, 0, 1), (-0.4, -0.2, 0, 1), (-0.1, -0.3, 0, 1)],
            [(0, 0, 0, 0)] * 3,
            [(1, 2, 0, 0), (-1, 1, 0, 0), (0, -1, 0, 0)],
            *([corner if axis == i else 0.5 for i in range(4)] and [
                tuple(corner if axis == i else value for i, value in enumerate(good[0])), *good[1:]
            ] for corner in (NAN, INF, -INF) for axis in range(4)),
        ]  # fmt: skip
        positions = torch.tensor([corner for face in bad for corner in face])[None].requires_grad_()
        faces = torch.arange(positions.shape[1]).view(-1, 3)
        fragments = rasterize(positions, faces, 9, 9, backend)
        assert (fragments.faces == -1).all()
        assert (fragments.depth == 1).all()
        assert (fragments.barycentrics == 0).all()
        blended = antialias(torch.rand(1, 9, 9, 2), fragments, positions, faces, backend)
        (gradient,) = torch.autograd.grad((fragments.barycentrics.sum() + blended.sum()), positions)
        assert (gradient == 0).all()

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize(("views", "faces", "height", "width"), [(1, 0, 3, 2), (0, 2, 3, 2), (2, 2, 1, 1)])
    def test_small_sizes(self, backend: str, views: int, faces: int, height: int, width: int) -> None:
        positions = square(1)[0].expand(views, 4, 4).clone().requires_grad_()
        triangles = square(1)[1][:faces]
        fragments = rasterize(positions, triangles, height, width, backend)
        assert fragments.faces.shape == (views, height, width)
        values = interpolate(torch.ones(4, 3), triangles, fragments, backend)
        torch.testing.assert_close(values, torch.full((views, height, width, 3), float(faces > 0)))
        image = antialias(values, fragments, positions, triangles, backend)
        torch.testing.assert_close(image, values)
        (gradient,) = torch.autograd.grad((image + fragments.barycentrics).sum(), positions)
        assert gradient.shape == positions.shape

    def test_ints_of_either_kind_and_float64_on_the_reference(self) -> None:
        positions, faces = square(2)
        one, other = (rasterize(positions[None], faces.to(kind), 5, 5) for kind in (torch.int32, torch.int64))
        assert torch.equal(one.faces, other.faces)
        assert rasterize(positions[None].double(), faces, 5, 5).depth.dtype == torch.float64


class TestGradients:
    def test_barycentrics(self) -> None:
        points, faces = soup(3, 8)
        positions = perspective(points)[None].requires_grad_()
        fragments = rasterize(positions, faces, 6, 8)
        assert (fragments.faces >= 0).sum() > 5
        assert gradcheck(lambda p: rasterize(p, faces, 6, 8).barycentrics, (positions,), atol=1e-4)
        assert not fragments.depth.requires_grad

    @pytest.mark.parametrize("shared", [True, False])
    def test_interpolate(self, shared: bool) -> None:
        points, faces = soup(3, 5)
        fragments = rasterize(perspective(points)[None].expand(2, -1, -1), faces, 3, 4)
        attributes = torch.rand((9, 2) if shared else (2, 9, 2), dtype=torch.float64, requires_grad=True)
        weights = fragments.barycentrics.clone().requires_grad_()
        assert gradcheck(lambda a, b: interpolate(a, faces, replace(fragments, barycentrics=b)), (attributes, weights))

    def test_a_linear_field_is_linear_on_the_screen(self) -> None:
        """Perspective-correct: the points themselves come back on their rays, at their depth."""
        points, faces = sphere(8, 12, torch.float64)
        points = points - torch.tensor([0.1, 0.2, 2.5])
        fragments = rasterize(perspective(points)[None], faces, 16, 16)
        seen = fragments.faces[0] >= 0
        found = interpolate(points, faces, fragments)[0]
        again = perspective(found[seen])
        column = (2 * torch.arange(16.0, dtype=torch.float64) + 1) / 16 - 1
        torch.testing.assert_close(again[:, 0] / again[:, 3], column.expand(16, 16)[seen])
        torch.testing.assert_close(again[:, 1] / again[:, 3], -column[:, None].expand(16, 16)[seen])
        torch.testing.assert_close(again[:, 2] / again[:, 3], fragments.depth[0][seen])


def render(positions: Tensor, attributes: Tensor, faces: Tensor, size: tuple[int, int], backend: str) -> Tensor:
    """Everything, one after the other."""
    fragments = rasterize(positions, faces, *size, backend)
    values = interpolate(attributes, faces, fragments, backend)
    return antialias(values, fragments, positions, faces, backend, mesh_edges(faces, backend))


@pytest.mark.parametrize("kernels", KERNELS)
class TestKernels:
    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 12), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(0, 10**6))
    def test_any_triangles(self, kernels: str, faces: int, views: int, height: int, width: int, seed: int) -> None:
        if kernels == "triton":
            views, height, width = 1, min(height, 7), min(width, 7)
        points, triangles = soup(faces, seed, torch.float32)
        points = torch.stack([points + 0.3 * view for view in range(views)])
        positions = perspective(points).requires_grad_()
        made, expected = (rasterize(positions, triangles, height, width, name) for name in (kernels, "reference"))
        assert_same(made, expected)
        if faces and torch.equal(made.faces, expected.faces):
            incoming = torch.rand(made.barycentrics.shape, generator=torch.Generator().manual_seed(seed))
            one, other = (torch.autograd.grad(item.barycentrics, positions, incoming)[0] for item in (made, expected))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))

    @pytest.mark.parametrize(("shared", "channels"), [(True, 5), (False, 1), (True, 0)])
    def test_all_of_it(self, kernels: str, shared: bool, channels: int) -> None:
        rows, columns, size = (3, 4, (6, 5)) if kernels == "triton" else (20, 31, (33, 41))
        points, faces = sphere(rows, columns)
        views = torch.stack([points, 0.6 * points.flip(0)]) - torch.tensor([0.1, 0.2, 2.2])
        generator = torch.Generator().manual_seed(0)
        shape = (len(points), channels) if shared else (2, len(points), channels)
        attributes = torch.rand(shape, generator=generator)
        incoming = torch.rand(2, *size, channels, generator=generator)
        results = []
        for backend in (kernels, "reference"):
            given_ = [perspective(views).requires_grad_(), attributes.clone().requires_grad_()]
            image = render(*given_, faces, size, backend)
            results.append([image.detach(), *torch.autograd.grad(image, given_, incoming)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def test_a_graph_over_and_over(self, kernels: str) -> None:
        """Only what is asked for is differentiated."""
        positions, faces = square(1, dtype=torch.float32)
        fragments = rasterize(positions[None], faces, 4, 4, kernels)
        attributes = torch.rand(4, 2, requires_grad=True)
        image = interpolate(attributes, faces, fragments, kernels)
        (gradient,) = torch.autograd.grad(image.sum(), attributes)
        torch.testing.assert_close(gradient.sum(), torch.tensor(32.0))
        weights = fragments.barycentrics.clone().requires_grad_()
        image = interpolate(attributes.detach(), faces, replace(fragments, barycentrics=weights), kernels)
        (gradient,) = torch.autograd.grad(image.sum(), weights)
        torch.testing.assert_close(gradient, attributes.detach().sum(1)[faces[fragments.faces.long()]])

    def test_it_compiles(self, kernels: str) -> None:
        points, faces = sphere(3, 4)
        positions = perspective(points - torch.tensor([0.1, 0.2, 2.2]))[None].requires_grad_()

        def loss(positions: Tensor, points: Tensor, faces: Tensor) -> Tensor:
            return render(positions, points, faces, (5, 6), kernels).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        losses = [run(positions, points, faces) for run in (loss, compiled)]
        expected, gradient = (torch.autograd.grad(value, positions)[0] for value in losses)
        torch.testing.assert_close(gradient, expected)

    def test_the_operators_are_registered_well(self, kernels: str) -> None:
        points, faces = sphere(3, 4)
        faces = faces.int()
        positions = perspective(points - torch.tensor([0.1, 0.2, 2.2]))[None].requires_grad_()
        fragments = rasterize(positions.detach(), faces, 5, 4, kernels)
        seen, weights = fragments.faces, fragments.barycentrics.clone().requires_grad_()
        operators = torch.ops.dreamkit
        torch.library.opcheck(operators.mesh_rasterize.default, (positions, faces, 5, 4, kernels))
        attributes = torch.rand(1, len(points), 2, requires_grad=True)
        torch.library.opcheck(operators.mesh_interpolate.default, (attributes, faces, seen, weights, kernels))
        image = torch.rand(1, 5, 4, 2, requires_grad=True)
        inputs = (image, seen, fragments.depth, positions, faces, mesh_edges(faces), kernels)
        torch.library.opcheck(operators.mesh_antialias.default, inputs)


@needs_native
def test_the_edges_operator_is_registered_well() -> None:
    torch.library.opcheck(torch.ops.dreamkit.mesh_edges.default, (sphere(3, 4)[1].int(),))


@needs_native
@pytest.mark.parametrize("views", [1, 5])
def test_the_bits_do_not_depend_on_the_threads(views: int) -> None:
    points, faces = sphere(30, 40)
    shifts = torch.linspace(-0.4, 0.4, views)[:, None, None] * torch.tensor([1.0, 0.5, 0.2])
    positions = perspective(points + shifts - torch.tensor([0, 0, 2.0])).requires_grad_()
    attributes = torch.rand(len(points), 3, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def work() -> list[Tensor]:
        fragments = rasterize(positions, faces, 70, 90, "native")
        image = render(positions, attributes, faces, (70, 90), "native")
        loss = image.square().sum() + fragments.barycentrics.square().sum()
        return [fragments.faces, fragments.depth, image, *torch.autograd.grad(loss, (positions, attributes))]

    first, *others = on_threads(work)
    for other in others:
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


class TestArguments:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"positions": "no"}, TypeError, "positions must be a torch.Tensor"),
            ({"positions": torch.zeros(1, 4, 4).half()}, TypeError, "positions must be float32 or float64"),
            ({"positions": torch.zeros(4, 4)}, ValueError, r"positions must have shape \[B, V, 4\]"),
            ({"faces": torch.zeros(1, 4).int()}, ValueError, r"faces must have shape \[F, 3\]"),
            ({"faces": torch.zeros(1, 3)}, TypeError, "faces must be int32 or int64"),
            ({"faces": torch.tensor([[0, 1, 4]])}, ValueError, "faces must hold numbers of the 4 vertices, got 0 to 4"),
            ({"faces": torch.tensor([[-1, 1, 2]])}, ValueError, "got -1 to 2"),
            ({"height": 0}, ValueError, "height must be between 1 and 16384, got 0"),
            ({"width": 2.0}, TypeError, "width must be an int, got float"),
            ({"positions": torch.zeros(99, 4, 4), "height": 9999, "width": 9999}, ValueError, "2.31 pixels or more"),
            ({"backend": "cuda"}, ValueError, "backend must be one of"),
        ],
    )
    def test_of_rasterize(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        arguments = {"positions": torch.zeros(1, 4, 4), "faces": torch.tensor([[0, 1, 2]]), "height": 2, "width": 3}
        with pytest.raises(error, match=message):
            rasterize(**(arguments | change))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"image": torch.zeros(1, 2, 2, 1)}, ValueError, r"image must have shape \[1, 2, 3, C\]"),
            ({"image": torch.zeros(1, 2, 3, 1).double()}, TypeError, "image must have the dtype of positions"),
            ({"positions": torch.zeros(2, 4, 4)}, ValueError, r"fragments.faces must have shape \[2, H, W\]"),
            ({"edges": torch.zeros(1, 3)}, TypeError, "edges must be int32"),
            ({"edges": torch.zeros(2, 3).int()}, ValueError, r"edges must have shape \[1, 3\]"),
            ({"edges": torch.tensor([[0, 3, -1]]).int()}, ValueError, "edges must hold -1 or numbers of the 3 edges"),
        ],
    )
    def test_of_antialias(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        positions, faces = torch.zeros(1, 4, 4), torch.tensor([[0, 1, 2]])
        fragments = rasterize(positions, faces, 2, 3)
        arguments = {"image": torch.zeros(1, 2, 3, 1), "fragments": fragments, "positions": positions, "faces": faces}
        with pytest.raises(error, match=message):
            antialias(**(arguments | change))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"faces": torch.zeros(1, 2, 3)}, TypeError, "fragments.faces must be int32"),
            ({"faces": torch.ones(1, 2, 3).int()}, ValueError, "fragments.faces must hold -1 or numbers"),
            ({"barycentrics": torch.zeros(1, 2, 3, 2)}, ValueError, "fragments.barycentrics must have shape"),
            ({"depth": torch.zeros(1, 2, 3).double()}, TypeError, "fragments.depth must have the dtype of attributes"),
        ],
    )
    def test_of_fragments(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        fragments = rasterize(torch.zeros(1, 4, 4), torch.tensor([[0, 1, 2]]), 2, 3)
        with pytest.raises(error, match=message):
            interpolate(torch.zeros(4, 1), torch.tensor([[0, 1, 2]]), replace(fragments, **change))

    def test_of_interpolate(self) -> None:
        faces = torch.tensor([[0, 1, 2]])
        fragments = rasterize(torch.zeros(1, 4, 4), faces, 2, 3)
        with pytest.raises(ValueError, match=r"attributes must have shape \[V, C\] or \[B, V, C\]"):
            interpolate(torch.zeros(4), faces, fragments)
        with pytest.raises(ValueError, match=r"attributes must have shape \[1, V, C\]"):
            interpolate(torch.zeros(2, 4, 1), faces, fragments)
        with pytest.raises(ValueError, match="numbers of the 2 vertices"):
            interpolate(torch.zeros(2, 1), faces, fragments)
