"""Camera paths and tracks of a stream: against the toy world's cameras, and however the stream is cut into chunks."""

import json
import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.errors import ConfigError
from dreamkit.toyworld.motion_scripts import CameraPath as ToyPath
from dreamkit.video.camera_paths import MOVES, CameraTrail, ListedPath, MovePath, camera_path, read_poses
from dreamkit.video.stream_controls import ControlTrail, Steering, read_tracks

IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
TOY = {"orbit": "orbits", "dolly": "dollies", "pan": "pans", "static": "static"}


def relative(poses):
    return torch.linalg.inv(poses[0]) @ poses


@pytest.mark.parametrize("move", MOVES)
def test_moves_are_those_of_the_toy_world(move):
    kind, _, way = move.partition("-")
    ends = (4.9, 3.2) if way == "in" else (3.2, 4.9)
    radius, end = ends if kind == "dolly" else (3.9, 3.9)
    toy = ToyPath(f"{TOY[kind]} {way}".strip(), 7.0, 21.5, radius, 0.5, 3.0, end, 9.0)
    times = torch.arange(15.0)
    want = relative(toy.cameras(times).camera_to_world.double())
    torch.testing.assert_close(relative(MovePath(move).poses(times)), want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("short", ["orbit", "dolly", "pan"])
def test_short_names_are_moves(short):
    assert camera_path(short).move.startswith(f"{short}-")


def as_matrices(rows):
    poses = torch.eye(4).repeat(len(rows), 1, 1)
    poses[:, :3] = rows.view(-1, 3, 4)
    return poses.double()


@settings(max_examples=25)
@given(chunk=st.integers(1, 4), window=st.integers(4, 9), stride=st.sampled_from([1, 4]))
def test_poses_are_relative_to_the_frame_a_window_back(chunk, window, stride):
    trail, path = CameraTrail(window, stride), MovePath("orbit-left")
    trail.follow(path)
    every = path.poses(torch.arange(40.0) * stride)
    for start in range(0, 40 - chunk, chunk):
        got = as_matrices(trail.next(chunk)[0])
        reference = max(0, start - window)
        want = torch.linalg.inv(every[reference]) @ every[start : start + chunk]
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_a_steady_camera_looks_the_same_for_ever():
    trail = CameraTrail(9, 1)
    trail.follow(MovePath("orbit-right"))
    rows = [trail.next(3) for _ in range(4000)]
    torch.testing.assert_close(rows[4], rows[-1], atol=2e-6, rtol=0)
    assert trail.state()[2].shape == (9, 4, 4)


def test_a_new_path_begins_where_the_camera_is():
    trail = CameraTrail(6, 1)
    trail.follow(MovePath("pan-left"))
    trail.next(3)
    last = as_matrices(trail.next(3)[0])[-1]  # still relative to the first frame
    turned = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    turned[:, 2, 3] = torch.tensor([5.0, 6.0, 8.0])  # begins anywhere
    trail.follow(ListedPath(turned))
    got = as_matrices(trail.next(2)[0])
    moves = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    moves[:, 2, 3] = torch.tensor([1.0, 3.0])
    torch.testing.assert_close(got, last @ moves, atol=1e-6, rtol=0)


def test_a_camera_that_comes_later_stood_still_before():
    trail = CameraTrail(9, 1)
    assert trail.next(3) is None
    trail.follow(MovePath("static"))
    torch.testing.assert_close(trail.next(3), torch.tensor(IDENTITY).float().expand(1, 3, 12))
    trail.follow(None)
    assert trail.next(3) is None


def test_a_trail_goes_back_to_a_state():
    trail = ControlTrail(6, 1)
    trail.follow(Steering(MovePath("orbit-left"), torch.rand(20, 3, 2)))
    for _ in range(4):
        trail.next(2)
    state = trail.state()
    first = [trail.next(2) for _ in range(5)]
    trail.restore(state)
    for a, b in zip(first, [trail.next(2) for _ in range(5)], strict=True):
        assert torch.equal(a.camera, b.camera)
        assert torch.equal(a.tracks, b.tracks)
        assert torch.equal(a.visible, b.visible)


def test_tracks_are_cut_into_chunks_and_end():
    trail = ControlTrail(9, 1)
    tracks, visible = torch.rand(5, 2, 2), torch.tensor([[True, False]] * 5)
    trail.follow(Steering(tracks=tracks, visible=visible))
    first, second = trail.next(3), trail.next(3)
    assert first.camera is None
    assert torch.equal(first.tracks[0], tracks[:3])
    assert torch.equal(first.visible[0], visible[:3])
    assert torch.equal(second.tracks[0, :2], tracks[3:])
    assert second.visible[0].tolist() == [[True, False], [True, False], [False, False]]
    assert not trail.next(3).visible.any()


def test_a_latent_frame_takes_the_last_of_its_frames():
    trail = ControlTrail(9, 4)
    tracks = torch.linspace(0, 1, 30)[:, None, None].expand(30, 1, 2)
    trail.follow(Steering(tracks=tracks))
    assert torch.equal(trail.next(3).tracks[0], tracks[[0, 4, 8]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tracks": torch.tensor([[[0.5, 1.2]]])}, r"\(0.5, 1.2\), outside of the picture"),
        ({"tracks": torch.full((1, 1, 2), math.nan)}, "not finite"),
        ({"tracks": torch.zeros(3, 2)}, "shape"),
        ({"tracks": torch.zeros(0, 1, 2)}, "at least one frame"),
        ({"visible": torch.ones(3, 2, dtype=torch.bool)}, "visibility"),
    ],
)
def test_tracks_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Steering(**options)


def test_a_point_that_is_not_seen_may_be_anywhere():
    Steering(tracks=torch.full((1, 1, 2), math.nan), visible=torch.zeros(1, 1, dtype=torch.bool))


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_poses_come_back_from_both_kinds_of_files(tmp_path, wide):
    poses = MovePath("orbit-left").poses(torch.arange(6.0))
    rows = poses.flatten(1) if wide else poses[:, :3].flatten(1)
    table = tmp_path / "camera.csv"
    table.write_text("# a comment\nr00,r01\n" + "\n".join(",".join(map(repr, row)) for row in rows.tolist()) + "\n\n")
    assert torch.equal(read_poses(table), poses)
    listed = tmp_path / "camera.json"
    listed.write_text(json.dumps(poses[:, : 4 if wide else 3].tolist()))
    assert torch.equal(camera_path(str(listed)).poses(torch.tensor([0.0, 5.0, 99.0])), poses[[0, 5, 5]])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "1,0,0\n", r"a.csv, line 1 has 3 numbers"),
        ("a.csv", ",".join(map(str, IDENTITY)) + "\n" + ",".join(["1"] * 12), r"line 2 has no rotation"),
        ("a.csv", ",".join(map(str, IDENTITY)) + "\n" + ",".join(["nan"] * 12), r"line 2: 'nan' is no finite number"),
        ("a.csv", ",".join(["x"] * 12), "holds no camera"),
        ("a.csv", "", "holds no camera"),
        ("a.json", "[[1, 2", r"a.json is no JSON: .*line 1"),
        ("a.json", '{"a": 1}', "holds no list"),
        ("a.json", "[]", "holds no camera"),
        ("a.json", json.dumps([IDENTITY, [True] * 12]), "row 2: True is no finite number"),
        ("a.json", json.dumps([[*IDENTITY, 0, 0, 0, 2]]), r"row 1 ends with \[0.0, 0.0, 0.0, 2.0\]"),
        ("a.json", json.dumps([[-1, *IDENTITY[1:]]]), "row 1 has no rotation"),
        ("a.json", json.dumps([["x"]]), "row 1 has 1 numbers"),
        ("a.json", "[" * 100_000, "nests too deeply|no JSON"),
        ("a.json", json.dumps([[10**400, *IDENTITY[1:]]]), "no finite number"),
    ],
)
def test_malformed_cameras_are_refused_by_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        camera_path(str(tmp_path / name))


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        camera_path(str(tmp_path / "none.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no text"):
        camera_path(str(tmp_path / "bytes.csv"))
    with pytest.raises(ConfigError, match="'zoom' is not known"):
        camera_path("zoom")


@given(content=st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists))
def test_any_json_is_read_or_explained(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("any") / "any.json"
    file.write_text(json.dumps(content))
    for read in (read_poses, read_tracks):
        with suppress(ConfigError):  # anything else is a bug
            assert torch.isfinite(torch.cat([item.flatten().float() for item in read(file)])).all()


def test_tracks_come_back_from_a_file(tmp_path):
    file = tmp_path / "tracks.json"
    file.write_text("[[[0.25, 0.5], null], [[1, 0], [0.125, 1.0]]]")
    places, visible = read_tracks(file)
    assert places.tolist() == [[[0.25, 0.5], [0, 0]], [[1, 0], [0.125, 1]]]
    assert visible.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[[0.5, 1.5]]]", r"frame 0, point 0 is \[0.5, 1.5\]"),
        ("[[[0.5, 0.5]], []]", "frame 1: not 1 points"),
        ("[[]]", "no list of points"),
        ("[[[true, 0]]]", "frame 0, point 0"),
        ("[[[NaN, 0]]]", "frame 0, point 0"),
    ],
)
def test_malformed_tracks_are_refused_by_place(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_tracks(tmp_path / "t.json")
