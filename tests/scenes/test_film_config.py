"""What may be asked of a film, what that means, and what is said where it can't be."""

import json
from pathlib import Path

import pytest
import torch

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.film_config import FilmConfig


def path_file(folder, frames=3, **content):
    matrices = Camera.orbit([10.0 * k for k in range(frames)], 20.0, 2.5).camera_to_world
    entries = [{"camera_to_world": matrix.flatten().tolist(), "fov": 50} for matrix in matrices]
    path = folder / "my walk.json"
    path.write_text(json.dumps({"camera_path": entries, **content}))
    return path


def test_a_film_without_wishes_is_a_turntable():
    cameras = FilmConfig().cameras()
    assert (len(cameras), cameras.height, cameras.width) == (120, 512, 512)
    torch.testing.assert_close(cameras.elevation, torch.full((120,), 15.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.radius, torch.full((120,), 3.0))
    assert FilmConfig().kind == "mp4"
    assert FilmConfig().frames_per_second == 24


def test_numbers_reach_the_cameras():
    cameras = FilmConfig(resolution=64, frames=4, elevation=-30.0, radius=2.0, fov=60.0).cameras()
    torch.testing.assert_close(cameras.azimuth, torch.tensor([0.0, 90.0, 180.0, -90.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.elevation, torch.full((4,), -30.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.radius, torch.full((4,), 2.0))
    assert cameras.fov_y.tolist() == [60.0] * 4


@pytest.mark.parametrize(("elevation", "top"), [(0.0, 45.0), (60.0, 85.0), (89.0, 89.0), (-90.0, -45.0)])
def test_a_spiral_rises_but_not_over_the_pole(elevation, top):
    cameras = FilmConfig(path="spiral", frames=8, elevation=elevation).cameras()
    wanted = torch.tensor([elevation, top])
    torch.testing.assert_close(cameras.elevation[[0, 4]], wanted, atol=0.1, rtol=0)


def test_a_file_says_where_and_how_wide(tmp_path):
    path = path_file(tmp_path, render_width=128, render_height=64)
    cameras = FilmConfig(path=str(path), resolution=32).cameras()
    assert (len(cameras), cameras.height, cameras.width) == (3, 32, 64)
    torch.testing.assert_close(cameras.azimuth, torch.tensor([0.0, 10.0, 20.0]), atol=1e-3, rtol=0)
    assert cameras.fov_y.tolist() == [50.0] * 3


@pytest.mark.parametrize(
    ("options", "files"),
    [
        ({}, {"rgb": "renders/turntable-rgb.mp4"}),
        (
            {"styles": ("depth", "clay", "depth"), "path": "spiral", "format": "gif"},
            {"depth": "renders/spiral-depth.gif", "clay": "renders/spiral-clay.gif"},
        ),
        ({"format": "png"}, {"rgb": "renders/turntable-rgb"}),
        ({"path": "films/my walk.v2.json"}, {"rgb": "renders/my-walk-v2-rgb.mp4"}),
        ({"output": "a/b.WEBP"}, {"rgb": "a/b.WEBP"}),
        ({"output": "a/b.gif", "styles": ("rgb", "normal")}, {"rgb": "a/b-rgb.gif", "normal": "a/b-normal.gif"}),
        ({"output": "a/frames", "styles": ("rgb", "normal")}, {"rgb": "a/frames-rgb", "normal": "a/frames-normal"}),
        ({"output": "figure.png", "frames": 1, "format": "png"}, {"rgb": "figure.png"}),
    ],
)
def test_where_films_go(options, files):
    assert FilmConfig(**options).files(Path("renders")) == {style: Path(file) for style, file in files.items()}


@pytest.mark.parametrize(
    ("background", "color"),
    [
        ("light", [0.85] * 3),
        ("white", [1.0] * 3),
        ("gray", [0.5] * 3),
        ("black", [0.0] * 3),
        ("#ff8000", [1, 128 / 255, 0]),
    ],
)
def test_backgrounds(background, color):
    torch.testing.assert_close(FilmConfig(background=background).background_color(), torch.tensor(color).float())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"styles": ()}, "list of styles is empty"),
        ({"styles": ("rgb", "normals")}, "style 'normals' is not known"),
        ({"format": "avi"}, "format 'avi' is not known"),
        ({"colormap": "jet"}, "colour map 'jet' is not known"),
        ({"resolution": 15}, "resolution is 15. Use 16 to 2,048"),
        ({"resolution": 2049}, "resolution is 2049"),
        ({"fps": 0}, "fps is 0. Use 1 to 120"),
        ({"fps": 121}, "fps is 121"),
        ({"frames": 0}, "frames is 0. Use 1 to 10,000"),
        ({"frames": 10_001}, "frames is 10001"),
        ({"elevation": 91.0}, "elevation is 91"),
        ({"radius": float("nan")}, "radius is nan"),
        ({"radius": 0.0}, "radius is 0.0. Use 0.05 to 50"),
        ({"fov": float("inf")}, "fov is inf"),
        ({"faces": 99}, "faces is 99"),
        ({"line_width": 0.0}, "line width is 0.0"),
        ({"background": "pink"}, "background 'pink' is not known"),
        ({"background": "#12345"}, "#ffd080"),
        ({"path": "walk.json", "radius": 2.0}, "Leave --radius out"),
        ({"path": "walk.json", "frames": 2}, "says the frames itself"),
        ({"output": "film.avi"}, "ends in no known format"),
        ({"output": ""}, "ends in no known format"),
        ({"output": "film.mp4", "format": "gif"}, "Name it film.gif"),
        ({"output": "film", "format": "mp4"}, "Name it film.mp4"),
    ],
)
def test_what_can_not_be_is_explained(options, says):
    with pytest.raises(ConfigError) as caught:
        FilmConfig(**options).files(Path())
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"path": "spirall"}, "no camera path 'spirall'.*turntable or spiral"),
        ({"output": "figure.png", "frames": 2}, "one picture, and the film has 2 frames"),
        ({"format": "gif", "fps": 60}, "60 frames a second"),
        ({"format": "webp", "resolution": 2048, "frames": 1000}, "GB of memory"),
    ],
)
def test_what_only_the_cameras_show_is_explained(options, says):
    with pytest.raises(ConfigError, match=says):
        FilmConfig(**options).cameras()


def test_a_file_that_is_no_path(tmp_path):
    for name, content in (("empty.json", "{}"), ("text.json", "hello")):
        (tmp_path / name).write_text(content)
        with pytest.raises(SceneError, match=name):
            FilmConfig(path=str(tmp_path / name)).cameras()
    with pytest.raises(SceneError, match="can't be read"):
        FilmConfig(path=str(tmp_path)).cameras()
