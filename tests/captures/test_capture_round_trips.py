"""What is written comes back: the same cameras, pixels and points; and a point is seen where the camera says."""

import struct
from dataclasses import replace

import pytest
import torch
from capture_sets import (
    FORMATS,
    MODELS,
    dot_of,
    dot_picture,
    dotted_cameras,
    load,
    opencv_plane,
    small_capture,
    store,
    write_set,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.captures import CaptureOptions, read_capture, read_capture_set
from dreamkit.captures.colmap import read_model
from dreamkit.captures.lens import Lens
from dreamkit.captures.write import write_colmap, write_transforms
from dreamkit.scenes.cameras import Camera


@pytest.mark.parametrize("kind", FORMATS)
def test_a_set_comes_back(tmp_path, kind):
    taken = small_capture(10, 32)
    read = read_capture(write_set(taken, tmp_path, kind))
    torch.testing.assert_close(read.cameras.camera_to_world, taken.cameras.camera_to_world, atol=1e-6, rtol=0)
    torch.testing.assert_close(read.cameras.fov_y, taken.cameras.fov_y, atol=1e-5, rtol=0)
    torch.testing.assert_close(read.images, taken.images, atol=0.5 / 255 + 1e-3, rtol=0)
    torch.testing.assert_close(read.alphas, taken.alphas, atol=0.5 / 255 + 1e-6, rtol=0)
    if not kind.startswith("colmap"):  # whose quaternions are rounded
        assert torch.equal(read.cameras.camera_to_world, taken.cameras.camera_to_world)


@settings(max_examples=25)
@given(azimuth=st.floats(-180, 180), elevation=st.floats(-90, 90), fov=st.floats(5, 120), data=st.sampled_from(FORMATS))
def test_points_project_to_the_same_pixels(tmp_path_factory, azimuth, elevation, fov, data):
    folder = tmp_path_factory.mktemp("sets")
    taken = small_capture(1, 16)
    cameras = Camera.orbit([azimuth], [elevation], 3.0, [fov], 16, 16)
    write_set(replace(taken, cameras=cameras), folder, data)
    read = read_capture(folder, CaptureOptions(normalise="never"))
    points = torch.rand(20, 3, generator=torch.Generator().manual_seed(3)) - 0.5
    torch.testing.assert_close(read.cameras.project(points)[0], cameras.project(points)[0], atol=1e-3, rtol=1e-4)


def test_text_is_binary(tmp_path):
    cameras = small_capture(5).cameras
    names = [f"a picture {index}.png" for index in range(5)]
    points, colors = torch.rand(7, 3), torch.rand(7, 3)
    lens = Lens(20, 10, 11.5, 12.5, 9.0, 5.5, (0.1, -0.02), (0.003, 0.004))
    for binary, name in ((True, "b"), (False, "t")):
        write_colmap(cameras, names, tmp_path / name, lens, points, colors, binary)
    one, two = read_model(tmp_path / "b"), read_model(tmp_path / "t")
    assert one.cameras == two.cameras == {1: lens}
    assert one.images == two.images
    assert torch.equal(one.points, two.points)
    assert torch.equal(one.colors, two.colors)
    torch.testing.assert_close(one.points.float() * torch.tensor([1.0, -1, -1]), points * torch.tensor([1.0, -1, -1]))


@pytest.mark.parametrize("model", MODELS)
def test_a_dot_is_where_its_point_projects_to(tmp_path, model):
    """Through the whole reader: pictures taken by a lens, each of a dot, against the cameras that come out."""
    cameras, points = dotted_cameras()
    parameters, formula = MODELS[model]
    names = [f"{index}.png" for index in range(len(cameras))]
    for index, name in enumerate(names):
        u, v = formula(*opencv_plane(cameras[index], points[index]))
        dot_picture(u, v, 160, 120, tmp_path / "images" / name)
    folder = tmp_path / "colmap" / "sparse" / "0"
    write_colmap(cameras, names, folder, binary=False)
    line = " ".join(map(str, (1, model, 160, 120, *parameters)))
    (folder / "cameras.txt").write_text(f"# a comment\n{line}\n")
    read = read_capture(tmp_path, CaptureOptions(max_size=200))
    assert (read.cameras.width, read.cameras.height) == (160, 120)
    for index, point in enumerate(points):
        wanted = read.cameras[index].project(point[None])[0][0, 0].tolist()
        assert dot_of(read.images[index]) == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize(
    "lens",
    [
        {"camera_model": "OPENCV", "k1": -0.2, "k2": 0.05, "p1": 0.004, "p2": -0.003},
        {"camera_model": "OPENCV_FISHEYE", "k1": -0.05, "k2": 0.02, "k3": -0.01, "k4": 0.002},
        {},
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_dots_of_a_transforms_json(tmp_path, lens, shared):
    from capture_sets import brown, equidistant

    cameras, points = dotted_cameras()
    lens = {**lens, "fl_x": 150.0, "fl_y": 145.0, "cx": 82.0, "cy": 58.0, "w": 160, "h": 120}
    bend = tuple(lens.get(name, 0.0) for name in ("k1", "k2", "k3", "k4"))
    names = []
    for index in range(len(cameras)):
        x, y = opencv_plane(cameras[index], points[index])
        fisheye = lens.get("camera_model") == "OPENCV_FISHEYE"
        x, y = equidistant(x, y, *bend) if fisheye else brown(x, y, *bend[:2], lens.get("p1", 0), lens.get("p2", 0))
        names.append(f"shots/{index}.png")
        dot_picture(150 * x + 82, 145 * y + 58, 160, 120, tmp_path / names[-1])
    write_transforms(cameras, names, tmp_path / "transforms.json")
    frames = load(tmp_path / "transforms.json")["frames"]
    frames = [{name: frame[name] for name in ("file_path", "transform_matrix")} for frame in frames]
    value = {**lens, "frames": frames} if shared else {"frames": [{**frame, **lens} for frame in frames]}
    store(tmp_path / "transforms.json", value)
    read = read_capture(tmp_path / "transforms.json")
    for index, point in enumerate(points):
        wanted = read.cameras[index].project(point[None])[0][0, 0].tolist()
        assert dot_of(read.images[index]) == pytest.approx(wanted, abs=0.06)


@pytest.mark.parametrize("factor", [2, 3, 5.3])
def test_scaled_pictures_show_the_same(tmp_path, factor):
    cameras, points = dotted_cameras()
    names = [f"{index}.png" for index in range(len(cameras))]
    for index, name in enumerate(names):
        x, y = opencv_plane(cameras[index], points[index])
        dot_picture(150 * x + 80, 150 * y + 60, 160, 120, tmp_path / "images" / name)
    write_colmap(cameras, names, tmp_path / "sparse" / "0", Lens(320, 240, 300, 300, 160, 120))  # scaled since
    read = read_capture(tmp_path, CaptureOptions(max_size=round(160 / factor)))
    assert read.cameras.width == round(160 / factor)
    for index, point in enumerate(points):
        wanted = read.cameras[index].project(point[None])[0][0, 0].tolist()
        assert dot_of(read.images[index]) == pytest.approx(wanted, abs=0.08)


def test_upright_and_lying_pictures_become_squares(tmp_path):
    cameras, points = dotted_cameras(2)
    sizes = [(160, 120), (120, 160)]
    frames = []
    for index, (width, height) in enumerate(sizes):
        x, y = opencv_plane(cameras[index], points[index])
        dot_picture(150 * x + width / 2, 150 * y + height / 2, width, height, tmp_path / f"{index}.png")
        frames.append({"file_path": f"{index}.png", "fl_x": 150.0, "w": width, "h": height})
    write_transforms(cameras, ["0.png", "1.png"], tmp_path / "transforms.json")
    written = load(tmp_path / "transforms.json")["frames"]
    value = [{**frame, "transform_matrix": own["transform_matrix"]} for frame, own in zip(frames, written, strict=True)]
    store(tmp_path / "transforms.json", {"frames": value})
    read = read_capture(tmp_path)
    assert (read.cameras.width, read.cameras.height) == (120, 120)
    for index, point in enumerate(points):
        wanted = read.cameras[index].project(point[None])[0][0, 0].tolist()
        assert dot_of(read.images[index]) == pytest.approx(wanted, abs=0.06)


def test_points_move_with_the_cameras(tmp_path):
    """A set in another world, turned, moved and larger: what a camera saw, it sees."""
    taken = small_capture(12, 32)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.7, 0.2], [0.7, 0, 0.5], [-0.2, -0.5, 0]]))
    poses = taken.cameras.camera_to_world.clone()
    poses[:, :3, :3] = turn @ poses[:, :3, :3]
    poses[:, :3, 3] = 7.0 * poses[:, :3, 3] @ turn.T + torch.tensor([10.0, -4.0, 3.0])
    points = 0.5 * torch.rand(30, 3)
    moved = replace(taken.cameras, camera_to_world=poses)
    there = 7.0 * points @ turn.T + torch.tensor([10.0, -4.0, 3.0])
    write_set(replace(taken, cameras=moved), tmp_path, "colmap-binary", there)
    read = read_capture_set(tmp_path, CaptureOptions(hold_out=0))
    assert read.held_out is None
    pixels, _ = read.training.cameras.project(read.points)
    torch.testing.assert_close(pixels, taken.cameras.project(points)[0], atol=0.02, rtol=0)
    assert float(read.training.cameras.radius.median()) == pytest.approx(3.0, abs=1e-3)
    # The cameras were level, so their world's up is found again.
    torch.testing.assert_close(read.training.cameras.elevation, taken.cameras.elevation, atol=0.5, rtol=0)


def test_a_peer_reads_what_is_written(tmp_path):
    """COLMAP's own reader, where it is installed; only on files that are whole: it ends the process on others."""
    pycolmap = pytest.importorskip("pycolmap")
    cameras = small_capture(5).cameras
    names = [f"{index}.png" for index in range(5)]
    lens = Lens(20, 10, 11.5, 12.5, 9.0, 5.5, (0.1, -0.02), (0.003, 0.004))
    points = torch.rand(9, 3)
    for binary in (True, False):
        folder = tmp_path / str(binary)
        write_colmap(cameras, names, folder, lens, points, binary=binary)
        model = pycolmap.Reconstruction(str(folder))
        assert len(model.images) == 5
        ours = read_model(folder)
        for image in model.images.values():
            own = next(item for item in ours.images if item.name == image.name)
            place = torch.tensor(image.cam_from_world().matrix()) if callable(image.cam_from_world) else None
            assert place is not None
            flip = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
            world_to_camera = torch.linalg.inv(flip @ own.pose("here") @ flip)
            torch.testing.assert_close(place, world_to_camera[:3], atol=1e-9, rtol=0)
            plane = torch.tensor([[0.2, -0.1]], dtype=torch.float64)
            theirs = model.cameras[image.camera_id].img_from_cam(torch.cat([plane, torch.ones(1, 1)], 1).numpy())
            torch.testing.assert_close(torch.as_tensor(theirs), lens.project(plane), atol=1e-9, rtol=0)
        assert len(model.points3D) == 9


def test_what_pictures_saw_in_binary_is_passed_over(tmp_path):
    """Files of COLMAP itself list the points that pictures saw; ours don't."""
    capture = small_capture(3)
    write_set(capture, tmp_path, "colmap-binary")
    path = tmp_path / "sparse" / "0" / "images.bin"
    content = path.read_bytes()
    pieces = [content[:8]]
    rest = content[8:]
    while rest:
        end = rest.index(b"\0", 64) + 1
        pieces.append(rest[:end] + struct.pack("<Q", 2) + struct.pack("<ddq", 1.0, 2.0, -1) * 2)
        rest = rest[end + 8 :]
    path.write_bytes(b"".join(pieces))
    assert len(read_capture(tmp_path).cameras) == 3
