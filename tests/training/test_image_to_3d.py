"""From a picture to 3D with teachers that read pictures: what they are told of each view, runs, and what is refused."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dreamkit.diffusion.condition import Condition
from dreamkit.diffusion.loading import load_teacher
from dreamkit.errors import ConfigError, DreamkitError, TeacherError
from dreamkit.runs import Run
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.training import generate
from dreamkit.training.generate import GenerateOptions, settings_for
from dreamkit.training.presets import preset
from dreamkit.training.scene import SceneTrainer
from dreamkit.training.visual_prompt import VisualPrompt
from tests.diffusion.test_picture_teachers import make_picture_teacher
from tests.training.test_scene import PaintTeacher

SMALL = ("gaussians.count=200", "gaussians.initial_opacity=0.5", "density.enabled=false")


class ReadingTeacher(PaintTeacher):
    """A teacher that reads pictures, and notes which.

    The condition of a picture is its mean colour; a picture's pose is noted too.
    """

    reads_pictures = True

    def __init__(self, supports_camera: bool = True) -> None:
        super().__init__(supports_camera=supports_camera)
        self.pictures: list[tuple[Tensor, Tensor | None]] = []

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        raise TeacherError("It reads no words.")

    def encode_picture(self, picture: Tensor, pose: Tensor | None = None) -> Condition:
        self.pictures.append((picture, pose))
        return Condition(picture.mean(dim=(1, 2))[None, None])

    def null_condition(self, n: int = 1) -> Condition:
        return Condition(torch.zeros(n, 1, 3))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A red square in the middle of a transparent picture."""
    image = Image.new("RGBA", (32, 32))
    image.paste((255, 0, 0, 255), (8, 8, 24, 24))
    image.save(tmp_path / "mug.png")
    return tmp_path / "mug.png"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = make_picture_teacher(kind, tmp_path_factory.mktemp(kind) / "teacher")
        return made[kind]

    return get


def options(picture: Path | str, **changes: Any) -> GenerateOptions:
    plain = GenerateOptions(
        "qwertz", steps=3, views=2, resolution=16, pictures=str(picture), pictures_from=(30.0, 15.0), device="cpu"
    )
    return replace(plain, **{"options": SMALL, **changes})


def make_settings(picture: Path | str, **changes: Any) -> Any:
    return settings_for(options(picture, **changes), ReadingTeacher())


class TestWhatTheTeacherIsTold:
    def test_presets_are_of_its_kind(self, picture: Path) -> None:
        """Guidance as Zero123 is used with, before the white it was trained on; the user's own value goes before."""
        settings = make_settings(picture)
        assert (settings.objective_options["guidance"], settings.gaussians.background) == (5, "white")
        assert make_settings(picture, guidance=3.0).objective_options["guidance"] == 3.0

    def test_the_picture_on_white_with_its_camera(self, picture: Path) -> None:
        teacher = ReadingTeacher()
        SceneTrainer(make_settings(picture), teacher)
        ((read, pose),) = teacher.pictures
        assert read.shape == (3, teacher.image_size, teacher.image_size)
        middle = teacher.image_size // 2
        torch.testing.assert_close(read[:, middle, middle], torch.tensor([1.0, 0.0, 0.0]))
        torch.testing.assert_close(read[:, 0, 0], torch.ones(3))
        torch.testing.assert_close(pose, Camera.orbit(30.0, 15.0, 3.0).pose[0])

    def test_every_view_is_asked_about_with_the_picture_and_its_own_camera(self, picture: Path) -> None:
        teacher = ReadingTeacher()
        trainer = SceneTrainer(make_settings(picture), teacher)
        trainer.step()
        told = teacher.encode_picture(teacher.pictures[0][0]).embeddings
        positive, negative = teacher.queries[-2:]
        torch.testing.assert_close(positive.condition.embeddings, told.expand(2, 1, 3))
        assert negative.condition.embeddings.abs().max() == 0
        assert positive.camera is not None
        assert not torch.equal(positive.camera[0], positive.camera[1])

    def test_a_teacher_that_takes_no_camera_gets_none(self, picture: Path) -> None:
        teacher = ReadingTeacher(supports_camera=False)
        SceneTrainer(make_settings(picture), teacher).step()
        assert all(query.camera is None for query in teacher.queries)

    def test_of_several_pictures_the_nearest(self) -> None:
        cameras = Camera.orbit([0.0, 90.0, 180.0], 0.0, 3.0, 40.0, 4, 4)
        images = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
        prompt = VisualPrompt(ReadingTeacher(), Capture(cameras, images, torch.ones(3, 1, 4, 4), torch.zeros(3)))
        views = Camera.orbit([80.0, -170.0, 10.0, 130.0], [20.0, 0.0, -30.0, 0.0], [2.0, 5.0, 3.0, 3.0])
        nearest = prompt.seen_from(views).embeddings[:, 0].argmax(dim=1)
        assert nearest.tolist() == [1, 2, 0, 1]


class TestRuns:
    @pytest.mark.parametrize("kind", ["variation", "zero123"])
    def test_three_steps(self, kind: str, picture: Path, folder_of: Any, tmp_path: Path) -> None:
        """Everything is written; the prompt is only a name, whatever it is; the preset is not the toy world's."""
        asked = options(picture, teacher=str(folder_of(kind)), out=str(tmp_path / "out"))
        result = generate.generate(asked)
        assert result.steps == 3
        assert set(result.exports) >= {"ply"}
        assert not [warning for warning in result.warnings if "know" in warning]
        config = Run.open(result.run).config
        assert config["cameras"]["elevation_range"] == list(preset("draft", toy=False).cameras.elevation_range)
        rows = (result.run / "metrics.jsonl").read_text()
        assert rows.count('"pictures"') == 3  # and it is held to the picture

    @pytest.mark.parametrize("objective", ["vsd", "esd", "ism", "csm", "sdi", "nfsd"])
    @pytest.mark.parametrize("kind", ["variation", "zero123"])
    def test_other_objectives(self, kind: str, objective: str, picture: Path, folder_of: Any) -> None:
        settings = make_settings(picture, objective=objective, teacher=str(folder_of(kind)))
        teacher = load_teacher(settings.teacher, "cpu")
        trainer = SceneTrainer(settings, teacher, generate.reference_picture(settings))
        for _ in range(2):
            metrics = trainer.step().metrics
        assert metrics["loss"] == metrics["loss"]
        assert trainer.calls > 0

    def test_another_picture_moves_the_scene_elsewhere(self, picture: Path, folder_of: Any, tmp_path: Path) -> None:
        """Also when the reference view costs next to nothing."""
        blue = Image.open(picture)
        blue.paste((0, 0, 255, 255), (4, 4, 28, 28))
        blue.save(tmp_path / "blue.png")
        gradients = []
        for path in (picture, picture, tmp_path / "blue.png"):
            settings = make_settings(path, teacher=str(folder_of("zero123")))
            gradients.append(SceneTrainer(settings, load_teacher(settings.teacher, "cpu")).draw().gradient.grad)
        assert torch.equal(gradients[0], gradients[1])
        assert not torch.allclose(gradients[0], gradients[2], rtol=1e-3)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"pictures": ""}, r"reads a picture, and there is none.*--pictures FILE"),
            ({"negative": "blurry"}, "negative can't be used"),
            ({"options": (*SMALL, "perp_neg=true")}, "perp_neg can't be used"),
            ({"options": (*SMALL, "source_prompt=a mug")}, "source_prompt can't be used"),
            ({"options": (*SMALL, "camera_conditioning=false")}, "camera_conditioning can't be off"),
        ],
    )
    def test_settings(self, changes: dict[str, Any], match: str, picture: Path) -> None:
        with pytest.raises(ConfigError, match=match):
            SceneTrainer(make_settings(picture, **changes), ReadingTeacher())

    def test_nothing_is_left_behind(self, folder_of: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="there is none"):
            generate.generate(options("", teacher=str(folder_of("zero123")), out=str(tmp_path / "out")))
        assert not (tmp_path / "out").exists()

    def test_a_picture_that_is_not_cut_out(self, tmp_path: Path) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "full.png")
        with pytest.raises(DreamkitError, match="transparency"):
            SceneTrainer(make_settings(tmp_path / "full.png"), ReadingTeacher())

    def test_samples_of_words(self, folder_of: Any, tmp_path: Path) -> None:
        with pytest.raises(TeacherError, match="reads a picture, not words"):
            generate.sample("a mug", str(folder_of("variation")), count=1, steps=1, device="cpu", out=str(tmp_path))
