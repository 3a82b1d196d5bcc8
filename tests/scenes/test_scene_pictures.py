import imageio.v3
import numpy as np
import pytest
import torch
from PIL import Image

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes import films, pictures
from dreamkit.scenes.cameras import turntable
from dreamkit.scenes.gaussians import GaussianConfig, GaussianScene


def make_scene():
    config = GaussianConfig(count=3, initialisation="points", initial_opacity=0.95, initial_scale=0.15)
    return GaussianScene.initialise(config, torch.Generator().manual_seed(0), torch.eye(3) * 0.5, torch.eye(3))


def solid(color, height=20, width=30):
    return torch.tensor(color)[:, None, None].expand(3, height, width)


def test_a_turntable_starts_in_front_and_turns_toward_positive_azimuth(tmp_path):
    scene = make_scene()
    films.turntable_video(scene, tmp_path / "turn.mp4", frames=12, size=64, background=torch.zeros(3))
    video = imageio.v3.imread(tmp_path / "turn.mp4", plugin="FFMPEG")
    assert video.shape == (12, 64, 64, 3)
    with torch.no_grad():
        wanted = pictures.to_bytes(scene.render(turntable(12), torch.zeros(3)).image)
    assert np.abs(video.astype(int) - wanted).mean() < 2.0  # H.264 at half colour resolution
    assert imageio.v3.immeta(tmp_path / "turn.mp4", plugin="FFMPEG")["fps"] == 30
    assert [path.name for path in tmp_path.iterdir()] == ["turn.mp4"]


def test_bad_videos_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(SceneError, match="no frames"):
        films.write_video([], tmp_path / "a.mp4")
    with pytest.raises(SceneError, match="one size"):
        films.write_video([solid([0.0] * 3, 16, 16), solid([0.0] * 3, 18, 16)], tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match="0 frames a second"):
        films.write_video([solid([0.0] * 3)], tmp_path / "a.mp4", fps=0)
    with pytest.raises(SceneError, match="three channels"):
        films.write_video([torch.zeros(1, 16, 16)], tmp_path / "a.mp4")
    with pytest.raises(SceneError, match="none"):
        films.turntable_video(make_scene(), tmp_path / "a.mp4", frames=0)
    assert not list(tmp_path.iterdir())


def test_a_contact_sheet_has_every_picture_in_its_place(tmp_path):
    colors = [*torch.eye(3).tolist(), [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    images = [solid(color) for color in colors]
    pictures.contact_sheet(images, tmp_path / "sheet.png", columns=3, labels=list("abcde"), min_size=40)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * (40 + 20 + 6) + 6, 3 * (60 + 6) + 6, 3)
    for index, color in enumerate(colors):
        row, column = divmod(index, 3)
        assert (sheet[6 + row * 66 + 20, 6 + column * 66 + 30] == np.array(color) * 255).all()
    assert (sheet[6 + 66 + 20, 6 + 2 * 66 + 30] == 255).all()  # the empty place
    assert (sheet[6 + 40 : 6 + 60, 6:20] < 128).any()  # a label under the first
    pictures.contact_sheet(torch.stack(images), tmp_path / "plain.png", columns=8)
    assert Image.open(tmp_path / "plain.png").height == 160 + 12


def test_long_labels_are_cut(tmp_path):
    pictures.contact_sheet([solid([0.0] * 3)], tmp_path / "a.png", labels=["a very long label " * 20], min_size=20)
    assert Image.open(tmp_path / "a.png").width == 30 + 12


def test_bad_sheets_are_refused(tmp_path):
    for arguments in ({"images": []}, {"images": [solid([0.0] * 3)], "columns": 0}):
        with pytest.raises(SceneError, match="empty"):
            pictures.contact_sheet(path=tmp_path / "a.png", **arguments)
    with pytest.raises(SceneError, match="labels"):
        pictures.contact_sheet([solid([0.0] * 3)], tmp_path / "a.png", labels=["a", "b"])
    with pytest.raises(SceneError, match="one picture"):
        pictures.save_image(torch.zeros(2, 3, 4, 4), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_pixels_are_exact(tmp_path):
    image = torch.tensor([0.0, 0.5, 1.0, 2.0, -1.0, float("nan")]).repeat(3, 2, 1)
    pictures.save_image(image, tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255, 255, 0, 0]
