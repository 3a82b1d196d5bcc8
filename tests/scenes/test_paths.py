"""Camera paths: the spiral, and files in nerfstudio's format."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dreamkit.errors import SceneError
from dreamkit.scenes import paths
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.paths import read_camera_path, spiral

FRONT = Camera.orbit(0.0, 0.0, 3.0).camera_to_world[0].tolist()


def written(folder, value):
    path = folder / "camera_path.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_a_spiral_rises_to_the_top_and_comes_back():
    cameras = spiral(120, top=50.0, bottom=-10.0, turns=2)
    torch.testing.assert_close(cameras.elevation[[0, 60]], torch.tensor([-10.0, 50.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.azimuth[[0, 15, 60]], torch.tensor([0.0, 90.0, 0.0]), atol=1e-3, rtol=0)
    assert (cameras.elevation[:61].diff() > 0).all()
    torch.testing.assert_close(cameras.radius, torch.full((120,), 3.0))


@given(n=st.integers(3, 200), turns=st.integers(1, 4))
def test_a_spiral_loops_without_a_jump(n, turns):
    cameras = spiral(n, turns=turns)
    positions = torch.cat([cameras.position, cameras.position[:1]])
    steps = positions.diff(dim=0).norm(dim=1)
    limit = 3.0 * 2 * math.pi * turns / n + 3.0 * math.radians(50) * math.pi / n
    assert float(steps.max()) <= limit + 1e-4


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 3, "turns": 0}, {"n": 4, "top": 91.0}, {"n": 3, "radius": 0.0}])
def test_impossible_spirals_are_refused(options):
    with pytest.raises(SceneError):
        spiral(**options)


def test_a_camera_path_of_nerfstudio_s_viewer(tmp_path):
    wanted = turntable(5, elevation=20.0, fov_y=35.0)
    frames = [
        {"camera_to_world": matrix.flatten().tolist(), "fov": 35.0, "aspect": 2.0} for matrix in wanted.camera_to_world
    ]
    path = written(
        tmp_path,
        {
            "camera_type": "perspective",
            "render_height": 540,
            "render_width": 1080,
            "camera_path": frames,
            "fps": 24,
            "seconds": 4,
        },
    )
    cameras = read_camera_path(path, 64)
    torch.testing.assert_close(cameras.camera_to_world, wanted.camera_to_world)
    torch.testing.assert_close(cameras.fov_y, wanted.fov_y)
    assert (cameras.height, cameras.width) == (64, 128)


@pytest.mark.parametrize(
    "lens",
    [
        {"fov": 40.0},
        {"fl_y": 300 / math.tan(math.radians(20)), "h": 600, "w": 900},
        {"fl_x": 300 / math.tan(math.radians(20)), "h": 600},
        {"camera_angle_y": math.radians(40)},
        {"camera_angle_x": math.radians(40)},
        {"camera_angle_x": 2 * math.atan(1.5 * math.tan(math.radians(20))), "h": 600, "w": 900},
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_every_lens_of_a_dataset(tmp_path, lens, shared):
    size = {name: lens[name] for name in ("w", "h") if name in lens}
    frame = {"file_path": "a.png", "transform_matrix": FRONT}
    value = {**lens, "frames": [frame]} if shared else {**size, "frames": [{**frame, **lens}]}
    cameras = read_camera_path(written(tmp_path, value), 100)
    assert float(cameras.fov_y[0]) == pytest.approx(40.0, abs=1e-4)
    assert cameras.width == (150 if "w" in lens else 100)


def test_a_frame_s_own_lens_goes_before_that_of_all(tmp_path):
    frames = [{"transform_matrix": FRONT}, {"transform_matrix": FRONT, "fov": 60}]
    cameras = read_camera_path(written(tmp_path, {"fov": 30, "frames": frames}), 16)
    assert cameras.fov_y.tolist() == [30.0, 60.0]


def test_a_plain_list_of_frames(tmp_path):
    assert len(read_camera_path(written(tmp_path, [{"camera_to_world": FRONT, "fov": 40}] * 3), 16)) == 3


def frame(**changes):
    return {"frames": [{"transform_matrix": FRONT, "fov": 40, **changes}]}


def changed(row, column, value):
    matrix = [list(line) for line in FRONT]
    matrix[row][column] = value
    return frame(transform_matrix=matrix)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("not json", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("{}", "no frames"),
        ("7", "no frames"),
        ('{"frames": []}', "no frames"),
        ('{"frames": {}}', "no frames"),
        ('{"frames": [3]}', "Frame 0 of .* is no object"),
        ('{"frames": [{"fov": 40}]}', "neither"),
        (frame(transform_matrix=[[1, 2], [3, 4]]), "not 4 x 4"),
        (frame(transform_matrix="eye"), "not 4 x 4"),
        (frame(transform_matrix=[["a"] * 4] * 4), "not 4 x 4"),
        (frame(transform_matrix=[[1.0] * 4] * 3), "not 4 x 4"),
        (changed(0, 3, 10**400), "not 4 x 4|not finite"),
        (changed(0, 3, float("nan")), "not finite"),
        (changed(0, 3, float("inf")), "not finite"),
        (changed(0, 0, 2.0), "not rigid"),
        (changed(0, 0, -1.0), "not rigid"),
        (changed(3, 3, 2.0), "not rigid"),
        (changed(3, 0, 1.0), "not rigid"),
        (frame(fov=0), "fov is 0"),
        (frame(fov=-10), "fov is -10"),
        (frame(fov=180), "180 degrees is no pinhole"),
        (frame(fov="wide"), "fov is wide"),
        (frame(fov=True), "fov is True"),
        (frame(fov=float("nan")), "fov is nan"),
        (frame(fov=None), "no lens"),
        (frame(fov=None, fl_y=100), "no height"),
        (frame(fov=None, camera_angle_x=4.0), "no pinhole"),
        ({**frame(), "w": 0, "h": 100}, "w is 0"),
        ({**frame(), "w": 10**6, "h": 100}, "times as wide as high"),
    ],
)
def test_bad_files_are_explained(tmp_path, value, says):
    path = written(tmp_path, value)
    with pytest.raises(SceneError, match=says) as caught:
        read_camera_path(path, 64)
    assert str(path) in str(caught.value)
    assert caught.value.hint


def test_files_that_can_not_be_read(tmp_path, monkeypatch):
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(SceneError, match="can't be read"):
            read_camera_path(path, 64)
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(SceneError, match="no JSON"):
        read_camera_path(tmp_path / "picture.json", 64)
    monkeypatch.setattr(paths, "_MAX_BYTES", 10)
    with pytest.raises(SceneError, match="larger than"):
        read_camera_path(written(tmp_path, frame()), 64)


def test_too_many_frames(tmp_path):
    with pytest.raises(SceneError, match="at most 10000"):
        read_camera_path(written(tmp_path, [{}] * 10_001), 64)


@given(rounding=st.integers(4, 8), azimuth=st.floats(-180, 180), elevation=st.floats(-90, 90))
def test_rounded_matrices_are_rigid_enough(tmp_path_factory, rounding, azimuth, elevation):
    matrix = Camera.orbit(azimuth, elevation, 3.0).camera_to_world[0]
    rows = [[round(value, rounding) for value in line] for line in matrix.tolist()]
    path = tmp_path_factory.mktemp("paths") / "a.json"
    path.write_text(json.dumps([{"camera_to_world": rows, "fov": 40}]))
    read = read_camera_path(path, 16).camera_to_world[0]
    torch.testing.assert_close(read, matrix, atol=10.0**-rounding, rtol=0)
