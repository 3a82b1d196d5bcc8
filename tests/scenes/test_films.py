"""Films read back from their files."""

import imageio.v3
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes import films
from dreamkit.scenes.films import check_film, frame_durations, open_film, write_video


def moving(count=12, height=24, width=32):
    """A red bar that goes across a shaded ground: no two frames are the same."""
    frames = []
    for index in range(count):
        frame = torch.linspace(0.4, 0.9, width).expand(3, height, width).clone()
        column = index * (width - 4) // max(count - 1, 1)
        frame[:, 6:18, column : column + 4] = torch.tensor([0.8, 0.1, 0.1]).reshape(3, 1, 1)
        frames.append(frame)
    return frames


def film(path, kind, frames, fps=24):
    with open_film(path, kind, fps) as add:
        for frame in frames:
            add(frame)


def interrupted():
    yield torch.zeros(3, 24, 32)
    raise KeyboardInterrupt


def read(path, kind):
    """Frames as [N, H, W, 3] bytes."""
    if kind == "mp4":
        return imageio.v3.imread(path, plugin="FFMPEG")
    if kind == "png":
        return np.stack([np.asarray(Image.open(file)) for file in sorted(path.iterdir())])
    with Image.open(path) as image:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])


@pytest.mark.parametrize(("kind", "error"), [("mp4", 4.0), ("gif", 2.0), ("webp", 3.0), ("png", 0.0)])
def test_every_format_gives_back_its_frames(tmp_path, kind, error):
    frames = moving()
    film(tmp_path / f"film.{kind}", kind, frames)
    shown = read(tmp_path / f"film.{kind}", kind)
    wanted = films.to_bytes(torch.stack(frames))
    assert shown.shape == wanted.shape
    assert np.abs(shown.astype(int) - wanted).mean() <= error
    assert [path.name for path in tmp_path.iterdir()] == [f"film.{kind}"]


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp", "png"])
def test_the_same_frames_give_the_same_bytes(tmp_path, kind):
    files = []
    for name in ("a", "b"):
        film(tmp_path / name, kind, moving()) if kind == "png" else film(tmp_path / f"{name}.{kind}", kind, moving())
    files = [p for p in sorted(tmp_path.rglob("*")) if p.is_file()]
    half = len(files) // 2
    assert half >= 1
    for first, second in zip(files[:half], files[half:], strict=True):
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("fps", [1, 7, 24, 30, 50])
@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_loop_and_last_as_long_as_they_should(tmp_path, kind, fps):
    film(tmp_path / "film", kind, moving(10), fps)
    with Image.open(tmp_path / "film") as image:
        assert image.info["loop"] == 0
        assert image.n_frames == 10
        durations = []
        for index in range(10):
            image.seek(index)
            image.load()
            durations.append(image.info["duration"])
    unit = 10 if kind == "gif" else 1
    assert sum(durations) == pytest.approx(10_000 / fps, abs=unit)
    assert max(durations) - min(durations) <= unit


def test_a_video_has_its_frame_rate(tmp_path):
    film(tmp_path / "film.mp4", "mp4", moving(12), 12)
    meta = imageio.v3.immeta(tmp_path / "film.mp4", plugin="FFMPEG")
    assert (meta["fps"], meta["duration"]) == (12, 1.0)


@given(frames=st.integers(1, 300), fps=st.integers(1, 120), unit=st.sampled_from([1, 10]))
def test_durations_add_up(frames, fps, unit):
    durations = frame_durations(frames, fps, unit)
    assert len(durations) == frames
    assert abs(sum(durations) - 1000 * frames / fps) <= unit
    assert all(duration % unit == 0 and abs(duration - 1000 / fps) <= unit for duration in durations)


def test_the_ground_of_a_gif_is_exact_and_does_not_flicker(tmp_path):
    generator = torch.Generator().manual_seed(0)
    frames = []
    for _ in range(6):
        frame = torch.full((3, 40, 40), 217 / 255)
        frame[:, 10:30, 10:30] = torch.rand(3, 20, 20, generator=generator)
        frames.append(frame)
    film(tmp_path / "a.gif", "gif", frames)
    shown = read(tmp_path / "a.gif", "gif")
    assert (shown[:, :10] == 217).all()
    assert (shown[:, :, 30:] == 217).all()


def test_a_gif_of_few_colours_is_exact(tmp_path):
    frames = [torch.tensor(color).reshape(3, 1, 1).expand(3, 9, 9) for color in ([1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0])]
    film(tmp_path / "a.gif", "gif", frames)
    np.testing.assert_array_equal(read(tmp_path / "a.gif", "gif"), films.to_bytes(torch.stack(frames)))


def test_a_single_frame(tmp_path):
    for kind in ("mp4", "gif", "webp", "png"):
        film(tmp_path / f"a.{kind}", kind, moving(1))
        assert len(read(tmp_path / f"a.{kind}", kind)) == 1


def test_odd_sizes_are_extended_in_mp4(tmp_path):
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1).expand(3, 15, 21)
    write_video([red] * 3, tmp_path / "odd.mp4")
    video = read(tmp_path / "odd.mp4", "mp4")
    assert video.shape == (3, 16, 22, 3)
    assert np.abs(video.astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp", "png"])
def test_what_fails_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / f"film.{kind}"
    film(path, kind, moving(3))
    before = read(path, kind)
    with pytest.raises(SceneError, match="one size"):
        film(path, kind, [*moving(2), torch.zeros(3, 8, 8)])
    with pytest.raises(SceneError, match="no frames"):
        film(path, kind, [])
    with pytest.raises(KeyboardInterrupt):
        film(path, kind, interrupted())
    np.testing.assert_array_equal(read(path, kind), before)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_failed_encoder_is_explained(tmp_path, monkeypatch):
    import imageio_ffmpeg

    def fail(*_, **__):
        raise RuntimeError("No ffmpeg exe could be found.\nlast line")

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", fail)
    with pytest.raises(SceneError, match="encoder failed: last line"):
        film(tmp_path / "a.mp4", "mp4", moving(2))
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_scene_is_not_the_encoder_s(tmp_path):
    def frames():
        yield from moving(2)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        film(tmp_path / "a.mp4", "mp4", frames())
    assert not list(tmp_path.iterdir())


def test_a_folder_of_frames_replaces_nothing_else(tmp_path):
    film(tmp_path / "frames", "png", moving(5))
    film(tmp_path / "frames", "png", moving(3))
    assert [path.name for path in sorted((tmp_path / "frames").iterdir())] == ["0000.png", "0001.png", "0002.png"]
    (tmp_path / "frames" / "thesis.tex").write_text("years of work")
    with pytest.raises(SceneError, match="no folder of frames only"):
        film(tmp_path / "frames", "png", moving(1))
    (tmp_path / "notes").write_text("more work")
    with pytest.raises(SceneError, match="no folder of frames only"):
        film(tmp_path / "notes", "png", moving(1))
    assert (tmp_path / "frames" / "thesis.tex").exists()
    assert (tmp_path / "notes").read_text() == "more work"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "avi"}, "not known"),
        ({"fps": 0}, "0 frames a second"),
        ({"fps": 121}, "1 to 120"),
        ({"kind": "gif", "fps": 60}, "1 to 50, or another format"),
        ({"kind": "webp", "frames": 10_000, "height": 512, "width": 512}, "13.1 GB of memory"),
        (
            {"kind": "webp", "frames": 200, "height": 600, "width": 600, "films": 5},
            "5 films in webp .* fewer frames or styles",
        ),
        ({"kind": "gif", "frames": 300, "height": 1024, "width": 1024}, "Use mp4 or png"),
    ],
)
def test_films_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(ConfigError, match=says):
        check_film(**{"kind": "mp4", "fps": 24, "frames": 10, "height": 64, "width": 64, **changes})


def test_a_long_video_fits():
    check_film("mp4", 24, 10_000, 2048, 2048)
