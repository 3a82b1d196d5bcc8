"""Pictures that a scene must agree with: the formula, what is read, and that they pull the scene."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreamkit.cli.main import main
from dreamkit.errors import ConfigError, DreamkitError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.trainable import Moment
from dreamkit.training.anchor_config import AnchorConfig
from dreamkit.training.anchors import Anchors, read_anchors
from dreamkit.training.generate import GenerateOptions, reference_picture, settings_for
from dreamkit.training.scene import SceneTrainer
from tests.training.test_scene import PaintTeacher


def moment(seed: int = 0) -> Moment:
    return Moment(0.0, 10, torch.Generator().manual_seed(seed))


def scene(background: str = "gray") -> GaussianScene:
    config = GaussianConfig(count=200, initial_opacity=0.6, background=background)  # type: ignore[arg-type]
    return GaussianScene.initialise(config, torch.Generator().manual_seed(0))


def cutout(path: Path, size: tuple[int, int] = (48, 32)) -> Path:
    """A red square in the middle of a transparent picture."""
    picture = Image.new("RGBA", size)
    picture.paste((255, 0, 0, 255), (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4))
    picture.save(path)
    return path


class TestFormula:
    cameras = Camera.orbit([0.0, 90.0], 0.0, 3.0, 40.0, 16, 16)

    def capture(self, background: float = 0.5) -> Capture:
        """What the scene looks like, before a background."""
        behind = torch.full((3,), background)
        with torch.no_grad():
            seen = scene().render(self.cameras, behind)
        return Capture(self.cameras, seen.image, seen.alpha, behind)

    @pytest.mark.parametrize("mode", ["gray", "neutral", "random"])
    def test_a_scene_that_agrees_costs_nothing_before_any_background(self, mode: str) -> None:
        anchors = Anchors(self.capture(background=0.2), AnchorConfig(views=2))
        assert float(anchors.loss(scene(mode), moment()).detach()) < 1e-6

    def test_by_hand(self) -> None:
        capture = self.capture()
        other = replace(capture, images=capture.images + 0.1, alphas=capture.alphas - 0.2)
        loss = Anchors(other, AnchorConfig(weight=3.0, views=2)).loss(scene(), moment())
        assert float(loss.detach()) == pytest.approx(1.5 * 256 * (3 * 0.01 + 0.04), rel=1e-4)

    def test_each_step_takes_others(self) -> None:
        anchors = Anchors(self.capture(), AnchorConfig())
        moved = Anchors(replace(self.capture(), images=torch.zeros(2, 3, 16, 16)), AnchorConfig())
        assert len({float(moved.loss(scene(), moment(seed)).detach()) for seed in range(8)}) == 2
        assert anchors.loss(scene(), moment()).requires_grad


class TestReading:
    def test_a_single_picture(self, tmp_path: Path) -> None:
        path = cutout(tmp_path / "a.png")
        found = read_anchors(AnchorConfig(str(path), azimuth=30.0, elevation=10.0), 16)
        assert found is not None
        assert found.images.shape == (1, 3, 16, 24)
        assert float(found.cameras.azimuth) == pytest.approx(30.0)
        assert found.alphas[0, 0, 8, 12] == 1
        assert found.alphas[0, 0, 0, 0] == 0
        assert torch.allclose(found.images[0, :, 0, 0], torch.full((3,), 0.5))

    def test_a_set(self, tmp_path: Path) -> None:
        words = ["toyworld", "capture", "mug", str(tmp_path / "mug"), "--views", "3", "--size", "32"]
        assert main(words) == 0
        found = read_anchors(AnchorConfig(str(tmp_path / "mug")), 16)
        assert found is not None
        assert found.images.shape == (3, 3, 16, 16)  # none is held out

    def test_none(self) -> None:
        assert read_anchors(AnchorConfig(), 16) is None

    def test_what_is_no_cutout(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8), "red").save(tmp_path / "full.png")
        Image.new("RGBA", (8, 8)).save(tmp_path / "empty.png")
        (tmp_path / "text.png").write_text("no picture")
        for name, said in (
            ("full", "transparency"),
            ("empty", "transparent"),
            ("text", "no picture"),
            ("gone", "gone"),
        ):
            with pytest.raises(DreamkitError, match=said):
                read_anchors(AnchorConfig(str(tmp_path / f"{name}.png")), 16)

    @pytest.mark.parametrize(
        "change", [{"weight": 0.0}, {"weight": float("nan")}, {"elevation": 91.0}, {"views": 0}, {"azimuth": 1e999}]
    )
    def test_bad_values(self, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="pictures'"):
            AnchorConfig(**change)


class TestRuns:
    def settings(self, path: Path, **changes: Any) -> Any:
        options = GenerateOptions("a red mug", steps=20, views=1, resolution=16, pictures=str(path), device="cpu")
        small = ("gaussians.count=300", "gaussians.initial_opacity=0.5", "density.enabled=false")
        return settings_for(replace(options, options=small, **changes))

    def test_the_scene_comes_to_look_like_it(self, tmp_path: Path) -> None:
        """The teacher would paint everything green; the picture says red, from the front."""
        path = cutout(tmp_path / "red.png", (32, 32))
        trainer = SceneTrainer(self.settings(path), PaintTeacher((0.1, 0.9, 0.1)))
        losses = [trainer.step().metrics["pictures"] for _ in range(20)]
        assert losses[-1] < 0.7 * losses[0]
        front = trainer.scene.render(Camera.orbit(0.0, 0.0, 3.0, 40.0, 16, 16), torch.full((3,), 0.5)).image
        assert float((front[0, 0, 8, 8] - front[0, 1, 8, 8]).detach()) > 0.2

    def test_only_what_reads_a_picture_is_shown_it(self, tmp_path: Path) -> None:
        path = cutout(tmp_path / "red.png")
        assert reference_picture(self.settings(path)) is None
        shown = reference_picture(self.settings(path, objective="csm"))
        assert shown is not None
        assert shown.shape == (3, 32, 48)

    def test_the_path_means_the_same_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.settings(Path("red.png")).anchors.pictures == str(tmp_path / "red.png")
        assert self.settings(Path()).anchors.pictures == str(tmp_path)

    def test_mistakes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["generate", "a red mug", "--out", str(tmp_path / "out")]
        assert main([*words, "--pictures", str(tmp_path / "gone.png")]) == 2
        assert "gone.png" in capsys.readouterr().err
        assert main([*words, "--pictures-from", "0", "99"]) == 2
        assert "elevation" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_set_asks_less_of_guidance(self, tmp_path: Path) -> None:
        """Several pictures hold the colours that guidance would exaggerate; a single one leaves the rest to it."""
        alone, held = (self.settings(path).objective_options for path in (cutout(tmp_path / "red.png"), tmp_path))
        assert (alone["guidance"], held["guidance"]) == (6, 2)
        chosen = settings_for(GenerateOptions("a red mug", pictures=str(tmp_path), guidance=4.0))
        assert chosen.objective_options["guidance"] == 4.0
