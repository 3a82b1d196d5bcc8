"""Antialiased silhouettes: exact coverage of straight edges, gradients of areas, what is no silhouette."""

from __future__ import annotations

import math

import pytest
import torch
from backends import needs_native, needs_triton
from dreamkit_kernels.mesh_rasterize import Fragments, antialias, mesh_edges, rasterize
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_scenes import perspective, polygon, soup, sphere, square
from torch import Tensor
from torch.autograd import gradcheck

KERNELS = [pytest.param("native", marks=needs_native), pytest.param("triton", marks=needs_triton)]
BACKENDS = ["reference", *KERNELS]


def coverage(positions: Tensor, faces: Tensor, height: int, width: int, backend: str | None = None) -> Tensor:
    """The antialiased mask [H, W] of a mesh."""
    fragments = rasterize(positions[None], faces, height, width, backend)
    mask = (fragments.faces >= 0).to(positions.dtype)[..., None]
    return antialias(mask, fragments, positions[None], faces, backend)[0, ..., 0]


class TestEdges:
    def test_by_hand(self) -> None:
        """Two faces at the diagonal, three at another edge, an edge twice in one face."""
        faces = torch.tensor([[0, 1, 2], [2, 1, 3], [3, 4, 1], [1, 3, 5], [6, 6, 7]])
        expected = [[3 * 1 + 2, -1, -1], [-1, -1, 0], [-1, -1, -1], [-1, -1, -1], [3 * 4 + 1, 3 * 4, -1]]
        for backend in ("reference", None):
            assert mesh_edges(faces, backend).tolist() == expected
            assert mesh_edges(faces[:0], backend).shape == (0, 3)

    @needs_native
    @given(st.lists(st.tuples(*[st.integers(0, 7)] * 3), max_size=12), st.integers(1, 10**6))
    def test_native(self, corners: list[tuple[int, int, int]], apart: int) -> None:
        faces = torch.tensor(corners, dtype=torch.int64).view(-1, 3) * apart
        assert torch.equal(mesh_edges(faces, "native"), mesh_edges(faces, "reference"))

    def test_a_closed_mesh_has_no_border(self) -> None:
        edges = mesh_edges(sphere(5, 7)[1])
        assert (edges >= 0).all()
        assert torch.equal(edges.flatten()[edges.flatten().long()], torch.arange(edges.numel()).int())

    def test_what_is_refused(self) -> None:
        with pytest.raises(ValueError, match="got -2 to 1"):
            mesh_edges(torch.tensor([[0, 1, -2]]))
        with pytest.raises(TypeError, match="faces must be int32 or int64"):
            mesh_edges(torch.zeros(1, 3))


class TestCoverage:
    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("right", [0.1, 0.3, 0.375, 0.49])
    def test_upright_edges_are_exact(self, backend: str, right: float) -> None:
        """A rectangle over the lower left: its last column and first row are as full as they are covered."""
        top = -0.2
        positions = torch.tensor([[-3, -3, 0, 1], [right, -3, 0, 1], [right, top, 0, 1], [-3, top, 0, 1.0]])
        mask = coverage(positions, torch.tensor([[0, 1, 2], [0, 2, 3]]), 6, 8, backend)
        column = ((right + 1) * 4 - torch.arange(8)).clamp(0, 1)
        row = ((top + 1) * 3 - torch.arange(6).flip(0)).clamp(0, 1)
        corner = (column > 0) & (column < 1) & ((row > 0) & (row < 1))[:, None]
        expected = row[:, None] * column
        torch.testing.assert_close(mask[~corner], expected[~corner], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_nothing_changes_inside_a_surface(self, backend: str) -> None:
        positions, faces = square(2 if backend == "triton" else 5, 0.3)
        positions[:, :2] *= 1.2
        image = torch.rand(1, 7, 8, 3)
        fragments = rasterize(positions[None], faces, 7, 8, backend)
        assert len(fragments.faces.unique()) > 4
        assert torch.equal(antialias(image, fragments, positions[None], faces, backend), image)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_a_fold_is_a_silhouette_and_a_crease_is_none(self, backend: str) -> None:
        """Two faces that share the edge x = 0.1; the further one goes on behind it, or back under the nearer one."""
        for x, blended in ((0.9, False), (-5.0, True)):
            positions = torch.tensor([[[0.1, -3, 0, 1], [0.1, 3, 0, 1], [-4, 0, -0.5, 1], [x * 4, 0, 0.5, 1]]])
            behind = torch.tensor([[[-5.0, -5, 0.9, 1], [9, -5, 0.9, 1], [-5, 9, 0.9, 1]]])
            faces = torch.tensor([[0, 1, 2], [0, 1, 3], [4, 5, 6]])
            every = torch.cat([positions, behind], dim=1)
            fragments = rasterize(every, faces, 2, 8, backend)
            image = (fragments.faces == 0).float()[..., None]
            result = antialias(image, fragments, every, faces, backend)
            assert torch.equal(result, image) != blended

    @pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
    @pytest.mark.parametrize("rows", [6, 60])
    def test_the_outline_of_faces_that_are_smaller_than_pixels(self, backend: str, rows: int) -> None:
        """A ball's area on the screen, though most of its outline's faces hide between the pixels' centres."""
        points, faces = sphere(rows, 2 * rows)
        points = points * torch.tensor([1.0, 1.0, 0.01]) - torch.tensor([0.03, -0.05, 2.2])
        mask = coverage(perspective(points), faces, 24, 24, backend)
        corners = 2 * rows  # the outline is this polygon, for it is almost flat
        area = corners / 2 * math.sin(2 * math.pi / corners) * (1.5 / 2.2) ** 2
        assert float(mask.sum()) / 144 == pytest.approx(area, rel=0.01)


class TestGradients:
    @pytest.mark.parametrize("of", ["image", "positions"])
    def test_against_differences(self, of: str) -> None:
        points, faces = soup(5, 1)
        positions = perspective(points)[None].requires_grad_(of == "positions")
        image = torch.rand(1, 4, 5, 2, dtype=torch.float64, requires_grad=of == "image")
        fragments = rasterize(positions.detach(), faces, 4, 5)
        result = antialias(image, fragments, positions, faces)
        assert (result != image).sum() > 5

        def blend(value: Tensor) -> Tensor:
            inputs = {"image": image, "positions": positions} | {of: value}
            return antialias(inputs["image"], fragments, inputs["positions"], faces)

        assert gradcheck(blend, (image if of == "image" else positions,), atol=1e-4)

    @pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
    def test_of_an_area(self, backend: str) -> None:
        """A regular polygon grows as fast as its area does, and its moments follow its middle."""
        corners, size = 48, 40
        x = (2 * torch.arange(size) + 1) / size - 1
        for number in (0.45, 0.6, 0.71):
            radius = torch.tensor(number, requires_grad=True)
            middle = torch.tensor([0.03, -0.07], requires_grad=True)
            mask = coverage(*polygon(corners, radius, middle), size, size, backend) * (2 / size) ** 2
            area = corners / 2 * math.sin(2 * math.pi / corners) * number**2
            assert float(mask.detach().sum()) == pytest.approx(area, rel=3e-3)
            growth, drift = torch.autograd.grad(mask.sum(), (radius, middle), retain_graph=True)
            assert float(growth) == pytest.approx(2 * area / number, rel=0.03)
            assert drift.abs().max() < 0.03 * area / number
            (across,) = torch.autograd.grad((mask * x).sum(), middle, retain_graph=True)
            (down,) = torch.autograd.grad((mask * -x[:, None]).sum(), middle)
            torch.testing.assert_close(torch.stack([across, down]), area * torch.eye(2), rtol=0.04, atol=0.04 * area)

    @pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
    def test_a_picture_is_found_again(self, backend: str) -> None:
        """Radius and middle of a polygon from its picture, by its silhouette alone."""
        with torch.no_grad():
            target = coverage(*polygon(24, torch.tensor(0.55), torch.tensor([0.2, -0.1])), 24, 24, backend)
        radius, middle = torch.tensor(0.3, requires_grad=True), torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([radius, middle], lr=0.03)
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 60)
            loss = (coverage(*polygon(24, radius, middle), 24, 24, backend) - target).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = torch.cat([radius.detach()[None], middle.detach()])
        torch.testing.assert_close(found, torch.tensor([0.55, 0.2, -0.1]), rtol=0, atol=0.01)


@pytest.mark.parametrize("kernels", KERNELS)
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_kernels(kernels: str, faces: int, height: int, width: int, channels: int, seed: int) -> None:
    """Any triangles, with vertices in common: as the reference, with the same fragments."""
    if kernels == "triton":
        height, width = min(height, 6), min(width, 6)
    generator = torch.Generator().manual_seed(seed)
    points, _ = soup(4, seed, torch.float32)
    positions = torch.stack([perspective(points), perspective(points.flip(0))]).requires_grad_()
    triangles = torch.randint(0, len(points), (faces, 3), generator=generator)
    fragments: Fragments = rasterize(positions.detach(), triangles, height, width, "reference")
    image, incoming = torch.rand(2, 2, height, width, channels, generator=generator)
    image.requires_grad_()
    results = []
    for backend in (kernels, "reference"):
        result = antialias(image, fragments, positions, triangles, backend)
        results.append([result.detach(), *torch.autograd.grad(result, (image, positions), incoming)])
    scale = max(1.0, float(results[1][2].abs().max()))
    for made, expected in zip(*results, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5 * scale)
