"""Lines of a mesh against the distances they should have."""

import numpy as np
import pytest
import torch

from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.projection import clip_positions
from dreamkit.scenes.wireframe import Wireframe, edge_coverage

WHITE = torch.ones(3)


def square(z=0.0, half=0.5):
    """Two triangles that face +z, their common edge from the lower left to the upper right."""
    corners = [[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]]
    return torch.tensor(corners), torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)


def wires(*meshes):
    vertices, faces, count = [], [], 0
    for points, triangles in meshes:
        vertices.append(points)
        faces.append(triangles + count)
        count += len(points)
    points = torch.cat(vertices)
    return Wireframe(points, torch.cat(faces), torch.tensor([0.0, 0.0, 1.0]).expand(len(points), 3))


def test_coverage_is_the_distance_to_the_nearest_edge():
    cameras = Camera.orbit(0.0, 0.0, 3.0, 40.0, 64, 64)
    points, faces = square()
    pixels, _ = cameras.project(points)
    low, high = pixels[0].amin(0).double(), pixels[0].amax(0).double()
    rows, columns = torch.meshgrid(*(torch.arange(64).double() + 0.5,) * 2, indexing="ij")
    inside = (columns > low[0]) & (columns < high[0]) & (rows > low[1]) & (rows < high[1])
    diagonal = ((columns - low[0]) + (rows - low[1]) - (high[0] - low[0])).abs() / 2**0.5
    border = torch.stack([columns - low[0], high[0] - columns, rows - low[1], high[1] - rows]).amin(0)
    wanted = (1.25 - torch.minimum(diagonal, border)).clamp(0.0, 1.0).float()
    below = (columns - low[0]) + (rows - low[1]) > (high[0] - low[0])
    seen = torch.where(inside, torch.where(below, 0, 1), -1).int()[None]
    coverage = edge_coverage(clip_positions(cameras, points), faces, seen, 1.5)
    torch.testing.assert_close(coverage[0], torch.where(inside, wanted, 0.0), atol=1e-4, rtol=0)


def test_lines_are_dark_over_pale_clay_and_hidden_ones_are_gone():
    cameras = Camera.orbit(0.0, 0.0, 3.0, 40.0, 64, 64)
    picture, alpha = wires(square()).draw(cameras, WHITE)
    hidden, _ = wires(square(), square(-0.3, 0.2)).draw(cameras, WHITE)
    torch.testing.assert_close(hidden, picture)
    front, _ = wires(square(), square(0.3, 0.2)).draw(cameras, WHITE)
    assert (front - picture).abs().amax() > 0.3
    assert float(picture[0, 0, 31, 32]) < 0.4  # on the diagonal
    assert float(picture[0, 0, 40, 36]) > 0.7  # between lines
    assert float(picture[0, 0, 2, 2]) == 1.0
    assert float(alpha[0, 0, 2, 2]) == 0.0
    assert float(alpha[0, 0, 32, 32]) == 1.0
    assert ((alpha > 0) & (alpha < 1)).any()  # smooth outlines


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0, 4.0])
def test_a_line_is_as_wide_as_asked(width):
    # Seen from above, the common edge of two triangles goes straight across the picture.
    points = torch.tensor([[-1.0, 0, 0], [0, 0, 1.0], [1.0, 0, 0], [0, 0, -1.0]]) * 50.0
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    cameras = Camera.orbit(0.0, 90.0, 3.0, 40.0, 64, 64)
    frame = Wireframe(points, faces, torch.tensor([0.0, 1.0, 0.0]).expand(4, 3))
    picture, _ = frame.draw(cameras, WHITE, width)
    column = picture[0, 0, :, 20]
    ground = float(column[0])
    ink = float(((ground - column) / (ground - 0.15)).sum())
    assert ink == pytest.approx(width, abs=0.02)


def test_a_face_that_reaches_behind_the_camera_has_no_lines():
    points = torch.tensor([[-50.0, -0.5, 50.0], [50.0, -0.5, 50.0], [0.0, -0.5, -50.0]])
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    cameras = Camera.orbit(0.0, 0.0, 3.0, 40.0, 32, 32)
    frame = Wireframe(points, faces, torch.tensor([0.0, 1.0, 0.0]).expand(3, 3))
    picture, alpha = frame.draw(cameras, WHITE)
    assert picture.isfinite().all()
    assert alpha.max() == 1.0
    assert picture.min() > 0.5


def test_views_do_not_see_one_another():
    cameras = Camera.orbit([0.0, 40.0, 200.0], 20.0, 3.0, 40.0, 24, 40)
    frame = wires(square(), square(0.3, 0.2))
    pictures, alphas = frame.draw(cameras, WHITE)
    assert pictures.shape == (3, 3, 24, 40)
    for index in range(3):
        picture, alpha = frame.draw(cameras[index], WHITE)
        torch.testing.assert_close(pictures[index : index + 1], picture)
        torch.testing.assert_close(alphas[index : index + 1], alpha)


def test_a_mesh_of_arrays():
    points, faces = square()
    normals = np.tile(np.array([[0.0, 0.0, 1.0]], np.float32), (4, 1))
    frame = Wireframe.of_arrays(points.numpy(), faces.numpy(), normals)
    torch.testing.assert_close(frame.vertices, points)
    with pytest.raises(SceneError, match="no triangles"):
        Wireframe.of_arrays(points.numpy(), np.zeros((0, 3), np.int32), normals)
