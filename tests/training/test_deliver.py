"""Films of a scene, read back from their files, and of a run, through the command line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
import torch
from PIL import Image

from dreamkit.cli.main import main
from dreamkit.errors import DreamkitError, RunError, SceneError
from dreamkit.runs import Run
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.film_config import FilmConfig
from dreamkit.scenes.gaussians import GaussianConfig, GaussianScene
from dreamkit.scenes.rendering import Rendering
from dreamkit.training.callbacks import Callback
from dreamkit.training.checkpoints import save_checkpoint
from dreamkit.training.deliver import render_films
from dreamkit.training.presets import preset

LIGHT = 217  # 0.85 in 8 bits


@dataclass
class Card:
    """A disc that always faces the camera: its middle is the origin, and half the picture is its diameter."""

    color: tuple[float, float, float] = (0.8, 0.2, 0.1)
    size: float = 0.5
    calls: list[int] = field(default_factory=list)

    def render(self, cameras: Camera, background: torch.Tensor | None = None) -> Rendering:
        assert background is not None
        self.calls.append(len(cameras) * cameras.height * cameras.width)
        v, u = (torch.linspace(-1, 1, side) for side in (cameras.height, cameras.width))
        alpha = ((v[:, None] ** 2 + u**2) < self.size**2).float().expand(len(cameras), 1, -1, -1)
        color = torch.tensor(self.color).view(1, 3, 1, 1)
        normal = -cameras.forward[:, :, None, None]
        depth = cameras.radius.view(-1, 1, 1, 1)
        image = alpha * color + (1 - alpha) * background.view(-1, 3, 1, 1)
        return Rendering(image, alpha, alpha * depth, alpha * normal)


@dataclass
class Recorder(Callback):
    stages: list[tuple[str, int | None]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def on_stage(self, name: str, total_steps: int | None) -> None:
        self.stages.append((name, total_steps))

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((step, total))

    def on_message(self, level: str, text: str) -> None:
        assert level == "warning"
        self.warnings.append(text)


def gaussians() -> GaussianScene:
    """A ball of radius 0.5, painted red."""
    config = GaussianConfig(count=300, initialisation="points", initial_opacity=0.95, initial_scale=0.9)
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(300, 3, generator=generator), dim=1)
    return GaussianScene.initialise(config, generator, 0.5 * points, torch.tensor([0.8, 0.1, 0.1]).expand(300, 3))


@pytest.mark.parametrize("kind", ["mp4", "gif", "webp", "png"])
def test_films_of_several_styles_in_one_pass(tmp_path: Path, kind: str) -> None:
    scene, told = Card(), Recorder()
    styles = ("rgb", "normal", "clay", "depth")
    config = FilmConfig(styles=styles, format=kind, resolution=48, frames=6, fps=12, elevation=0.0)  # type: ignore[arg-type]
    files = render_films(scene, config, tmp_path / "renders", told)
    assert list(files) == list(styles)
    assert scene.calls.count(6 * 48 * 48) == 1
    for style, path in files.items():
        if kind == "png":
            frames = np.stack([np.asarray(Image.open(picture)) for picture in sorted(path.iterdir())])
        elif kind == "mp4":
            frames = imageio.v3.imread(path, plugin="FFMPEG")
        else:
            # Frames of the card that all look the same are written as one.
            picture = Image.open(path)
            assert picture.info["loop"] == 0 or style != "normal"
            frames = np.stack([np.asarray(frame.convert("RGB")) for frame in _frames(picture)])
        assert frames.shape[1:] == (48, 48, 3)
        assert len(frames) == 6 or (kind in ("gif", "webp") and style in ("rgb", "depth", "clay"))
        assert np.abs(frames[:, 2, 2].astype(int) - LIGHT).max() <= 3
        middle = frames[:, 24, 24].astype(int)
        if style == "rgb":
            assert np.abs(middle - [204, 51, 25]).max() <= 6
        if style == "normal":  # the card turns to +z, +x and -z
            assert np.abs(middle[[0, 3]] - [[128, 128, 255], [128, 128, 0]]).max() <= 6
    assert told.stages == [("looking at the scene", None), (f"filming {', '.join(styles)}", 6)]
    assert told.steps == [(6, 6)]
    assert told.warnings == []


def _frames(picture: Image.Image) -> list[Image.Image]:
    frames = []
    for index in range(getattr(picture, "n_frames", 1)):
        picture.seek(index)
        frames.append(picture.copy())
    return frames


def test_long_films_are_rendered_a_few_frames_at_a_time(tmp_path: Path) -> None:
    scene, told = Card(), Recorder()
    render_films(scene, FilmConfig(format="png", resolution=512, frames=5), tmp_path, told)
    assert max(scene.calls) <= 2**19
    assert told.steps == [(2, 5), (4, 5), (5, 5)]
    assert len(list((tmp_path / "turntable-rgb").iterdir())) == 5


def test_a_single_picture(tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "figure.png"
    config = FilmConfig(output=str(output), frames=1, resolution=32, background="#102030")
    assert render_films(Card(), config, tmp_path, Recorder()) == {"rgb": output}
    pixels = np.asarray(Image.open(output))
    assert pixels.shape == (32, 32, 3)
    assert pixels[0, 0].tolist() == [16, 32, 48]


def test_wires_are_of_the_scene_s_own_mesh(tmp_path: Path) -> None:
    config = FilmConfig(styles=("wireframe", "rgb"), format="png", resolution=64, frames=2, faces=200, fov=25.0)
    told = Recorder()
    files = render_films(gaussians(), config, tmp_path, told)
    assert ("cutting the mesh", None) in told.stages
    wires, colors = (np.asarray(Image.open(files[style] / "0000.png")).astype(int) for style in ("wireframe", "rgb"))
    covered = np.abs(wires - LIGHT).max(axis=-1) > 8
    assert (wires[covered].max(axis=-1) < 128).any()  # lines
    assert (np.ptp(wires, axis=-1) <= 1).all()  # gray
    painted = np.abs(colors - LIGHT).max(axis=-1) > 40
    assert (covered & painted).sum() > 0.7 * (covered | painted).sum()
    with pytest.raises(SceneError, match="No mesh can be cut from a Card"):
        render_films(Card(), config, tmp_path / "other", told)


def test_an_empty_film_and_a_camera_inside_are_told(tmp_path: Path) -> None:
    told = Recorder()
    render_films(Card(size=0.0), FilmConfig(format="png", resolution=16, frames=2), tmp_path, told)
    assert len(told.warnings) == 1
    assert "Nothing is to be seen" in told.warnings[0]
    told = Recorder()
    render_films(gaussians(), FilmConfig(format="png", resolution=16, frames=2, radius=0.1), tmp_path / "near", told)
    assert len(told.warnings) == 1
    assert "2 of 2 cameras stand inside the ball about the object: the nearest at a radius of 0.1" in told.warnings[0]
    assert "Try a radius of" in told.warnings[0]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    class Breaking(Card):
        def render(self, cameras: Camera, background: torch.Tensor | None = None) -> Rendering:
            if cameras.height == 512 and len([call for call in self.calls if call > 4096]) > 0:
                raise SceneError("It broke.", "Mend it.")
            return super().render(cameras, background)

    config = FilmConfig(styles=("rgb", "clay"), frames=4)
    with pytest.raises(SceneError, match="It broke"):
        render_films(Breaking(), config, tmp_path, Recorder())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Could not write"):
        render_films(Card(), FilmConfig(output=str(tmp_path / "file" / "a.gif")), tmp_path, Recorder())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the main job with a scene that nobody trained."""
    scene = gaussians()
    settings = replace(preset("draft", "sds", True), prompt="a ball", gaussians=scene.config, device="cpu")
    run = Run.create(tmp_path / "outputs", "a-ball", "sds", settings)
    save_checkpoint(run.checkpoints, settings.steps, {f"scene/{name}": value for name, value in scene.state().items()})
    return run


def test_the_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["render", str(run.path), "--style", "rgb, depth", "--path", "spiral", "--format", "webp"]
    assert main([*words, "--resolution", "32", "--frames", "5", "--fps", "10", "--device", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out.splitlines()[-1])
    renders = {style: str(run.renders / f"spiral-{style}.webp") for style in ("rgb", "depth")}
    assert answer == {"run": str(run.path), "renders": renders, "warnings": []}
    assert "filming rgb, depth 5/5" in captured.err
    for path in renders.values():
        with Image.open(path) as picture:
            assert (picture.size, picture.n_frames) == ((32, 32), 5)  # type: ignore[attr-defined]


def test_the_command_along_a_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrices = Camera.orbit([0.0, 20.0, 40.0], 10.0, 0.05).camera_to_world
    frames = [{"transform_matrix": matrix.tolist()} for matrix in matrices]
    path = tmp_path / "walk.json"
    path.write_text(json.dumps({"fl_y": 70, "w": 128, "h": 64, "frames": frames}))
    output = tmp_path / "walk.gif"
    words = ["render", str(run.path), "--path", str(path), "--output", str(output), "--resolution", "16"]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    assert "3 of 3 cameras stand inside" in captured.err
    assert "3 of 3 cameras stand inside" in json.loads(captured.out.splitlines()[-1])["warnings"][0]
    with Image.open(output) as picture:
        assert picture.size == (32, 16)


def test_a_run_of_an_older_kind_is_explained(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "a-ball", "sds", preset("draft", "sds", True))
    from dreamkit.training.generate import render

    with pytest.raises(DreamkitError, match="checkpoint"):
        render(str(run.path), film=FilmConfig(frames=1))
