"""Latent scenes in the loops: fits to encoded pictures, text to latents, edits, runs of a latent diffusion model."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamkit.cli.main import main
from dreamkit.diffusion.loading import load_teacher
from dreamkit.diffusion.network_teacher import NetworkTeacher
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.runs import Run, RunInterrupted
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.latent_nerf import LatentNerfScene, pixel_space
from dreamkit.scenes.latent_refinement import RefinementConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.trainable import Moment
from dreamkit.toyworld.capture import CaptureRecipe, capture_cameras, capture_object, write_capture
from dreamkit.training import deliver, fit_settings, generate
from dreamkit.training.edit import EditOptions, beginning_of, edit
from dreamkit.training.edit_config import EditConfig
from dreamkit.training.fit import FitTrainer, LatentDifference, held_out_psnr, squared
from dreamkit.training.fit_run import fit
from dreamkit.training.fit_settings import FitSettings, fit_preset
from dreamkit.training.generate import GenerateOptions, load_scene, resume
from dreamkit.training.latent_space import shared_teacher, space_of, space_when_asked
from dreamkit.training.particles import continued, new_scene, seeded
from dreamkit.training.presets import preset
from dreamkit.training.scene import SceneTrainer
from dreamkit.training.settings import SceneSettings
from tests.training.test_generate import Recorder

CheckpointMaker = Callable[[str], Path]
TINY = NerfConfig(
    grid=HashNetworkConfig(levels=4, log2_size=11, coarsest=4, finest=32, hidden=16), step=0.05, occupancy_resolution=16
)
NARROW = RefinementConfig(width=8)
SMALL = (
    *("nerf.grid.levels=3", "nerf.grid.log2_size=10", "nerf.grid.hidden=8", "nerf.occupancy_resolution=16"),
    *("nerf.step=0.1", "nerf.blob=20", "refinement.width=8"),
)


@pytest.fixture
def small_deliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "PICTURE_SIZE", 16)
    monkeypatch.setattr(deliver, "TURNTABLE_FRAMES", 8)
    monkeypatch.setattr(generate, "score_scene", lambda scene, prompt: {})


@pytest.fixture(scope="module")
def views() -> Capture:
    return capture_object("red", "cube", capture_cameras(8, 24))


def small_fit(capture: Capture, teacher: Teacher | None = None, **options: Any) -> FitTrainer:
    settings = FitSettings(**{"scene": "latent-nerf", "nerf": TINY, "refinement": NARROW, "rays": 1024, **options})
    space = pixel_space(capture.cameras.height) if teacher is None else space_of(teacher)
    trainer = FitTrainer(settings, capture, space=space)
    while trainer.step_index < settings.steps:
        trainer.step()
    return trainer


class TestFit:
    @pytest.mark.parametrize("width", [0, 8])
    def test_comes_close_in_decoded_pictures(self, views: Capture, width: int) -> None:
        trainer = small_fit(views, steps=100, refinement=RefinementConfig(width=width))
        assert held_out_psnr(trainer.scene, views) > 20

    def test_the_loss_is_the_formula(self, views: Capture) -> None:
        scene = small_fit(views, steps=1).scene
        assert isinstance(scene, LatentNerfScene)
        moment = middle()
        loss, _ = LatentDifference(views, 24 * 24)(scene, views.cameras, moment)
        again = middle()
        view = torch.randperm(8, generator=again.generator)[:1]
        level = torch.tensor([0.0, 0.5, 1.0])[torch.randint(3, (1,), generator=again.generator)]
        raw = scene.composite(views.cameras[view], level.expand(3), again).image
        wanted = 2 * (views.images[view] + (1 - views.alphas[view]) * (level - 0.5)) - 1
        expected = 10 * ((raw - wanted).square().mean() + (scene.refine(raw) - wanted).square().mean())
        assert torch.isclose(loss, expected, rtol=1e-5)

    def test_pictures_made_square_show_the_same(self) -> None:
        generator = torch.Generator().manual_seed(0)
        scene = GaussianScene.initialise(GaussianConfig(count=80, initial_opacity=0.9), generator)
        for height, width in ((20, 30), (30, 21)):
            cameras = Camera.orbit([0.0, 70.0], [10.0, 30.0], 3.0, 40.0, height, width)
            gray = torch.full((3,), 0.5)
            seen = scene.render(cameras, gray)
            made = squared(Capture(cameras, seen.image.detach(), seen.alpha.detach(), gray))
            assert made.images.shape == (2, 3, 30, 30)
            top, left = (30 - height) // 2, (30 - width) // 2
            if (30 - height) % 2 or (30 - width) % 2:  # the centre lies half a pixel off
                continue
            whole = scene.render(made.cameras, gray)
            for ours, theirs in ((whole.image, made.images), (whole.alpha, made.alphas)):
                inner = ours[..., top : top + height, left : left + width]
                outer = theirs[..., top : top + height, left : left + width]
                assert torch.allclose(inner, outer, atol=1e-4)

    def test_a_teacher_is_named_only_where_one_is_asked(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fit", "nowhere", "--teacher", "toyworld"]) == 2
        assert "latent-nerf" in capsys.readouterr().err


def middle() -> Moment:
    """Of a run, the same each time."""
    return Moment(0.5, 10, seeded(7, 2))


class TestEdit:
    def test_a_red_cube_becomes_blue_by_the_embedded_teacher(self) -> None:
        teacher = load_teacher("toyworld", "cpu")
        views = capture_object("red", "cube", capture_cameras(6, 64))
        scene = small_fit(views, teacher, steps=40, rays=4096).scene
        base = preset("draft", "dds", True, "latent-nerf")
        still = replace(NARROW, refinement_rate=replace(NARROW.refinement_rate, start_value=0.0, end_value=0.0))
        # As quick as a text-to-3D run: gentle rates take an edit's 200 steps.
        quick = replace(TINY, table_rate=base.nerf.table_rate, network_rate=base.nerf.network_rate)
        settings = replace(
            base, prompt="a blue cube", source_prompt="a red cube", nerf=quick, refinement=still, steps=30, views=1
        )
        trainer = SceneTrainer(settings, teacher, None, scene)
        before = mean_color(scene)
        for _ in range(settings.steps):
            trainer.step()
        after = mean_color(trainer.scene)
        assert before[0] > before[2] + 0.3
        assert after[2] > after[0]
        kept, now = scene.state(), trainer.scene.state()
        assert torch.equal(kept["refinement.leave.weight"], now["refinement.leave.weight"])

    def test_latents_change_under_the_region_alone(self, tiny_teacher: Callable[[str], NetworkTeacher]) -> None:
        teacher = tiny_teacher("sd15")
        settings = replace(preset("draft", "dds", False, "latent-nerf"), prompt="a blue mug", nerf=TINY, views=2)
        start = new_scene(settings, seeded(0, 1), space_of(teacher))
        settings = replace(settings, edit=EditConfig("box:-1,-1,-1,0,1,1", shape_weight=1.0))
        draw = SceneTrainer(settings, teacher, None, start).draw()
        assert draw.x is draw.rendering.image
        assert draw.x.shape == (2, 4, 8, 8)
        untouched = (draw.gradient.grad == 0).all(dim=1)
        assert 0 < float(untouched.float().mean()) < 1
        assert bool(torch.isfinite(draw.losses["kept"]))


def mean_color(scene: Any) -> Tensor:
    """[3] of what is opaque from four sides."""
    with torch.no_grad():
        seen = scene.render(Camera.orbit([0.0, 90.0, 180.0, 270.0], [20.0] * 4, 3.0, 40.0, 64, 64))
    return seen.image.permute(1, 0, 2, 3)[:, seen.alpha[:, 0] > 0.9].mean(dim=1)


@pytest.fixture(scope="module")
def eightfold(checkpoint: CheckpointMaker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny Stable Diffusion whose latents are an eighth of the picture's side: 8 x 8 of 64 x 64 pixels."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("eightfold") / "teacher"
    shutil.copytree(checkpoint("sd21"), folder)
    shutil.rmtree(folder / "vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        AutoencoderKL(
            block_out_channels=[4] * 4,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=4,
            norm_num_groups=2,
            sample_size=64,
        ).save_pretrained(folder / "vae")
    return folder


@pytest.mark.usefixtures("small_deliveries")
class TestLatentTeacher:
    def test_the_space_is_the_teacher_s(self, eightfold: Path) -> None:
        teacher = shared_teacher(str(eightfold), "cpu")
        space = space_when_asked(str(eightfold), "cpu", (4, 8, 8))
        image = torch.rand(1, 3, 64, 64, generator=seeded(0, 1))
        latents = space.encode(image)
        assert latents.shape == (1, *space.shape) == (1, *teacher.sample_shape)
        assert torch.equal(latents, teacher.encode_image(image))
        assert torch.equal(space.decode(latents), teacher.decode(latents))

    def test_fit_edit_and_render(
        self, eightfold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_capture(CaptureRecipe(name="mug", colour="red", views=8, size=80), tmp_path / "mug")
        settings = fit_preset("latent-nerf", data=str(tmp_path / "mug"), teacher=str(eightfold), steps=3, device="cpu")
        dense = replace(TINY, blob=20.0)
        result = fit(replace(settings, nerf=dense, refinement=NARROW), str(tmp_path / "out"))
        assert result.size == (64, 64)  # the teacher's: the scene has no more detail
        assert set(result.scores) == {"psnr", "ssim", "psnr_training", "ssim_training"}
        assert result.exports["ply"].is_file()
        beginning = beginning_of(str(result.run))
        assert beginning.settings.teacher == str(eightfold)
        options = EditOptions(
            str(result.run), "a blue mug", source_prompt="a red mug", region="ball:0,0,0,0.5", steps=2, views=1
        )
        edited = edit(replace(options, out=str(tmp_path / "edits"), device="cpu")).run
        old, new = beginning.scene.state(), load_scene(Run.open(edited)).state()
        assert any(not torch.equal(old[name], new[name]) for name in old)
        assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("refinement"))
        assert main(["render", str(edited), "--json"]) == 0

    def test_generated_interrupted_and_resumed_bitwise(self, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
        options = GenerateOptions("a red mug", scene="latent-nerf", steps=4, views=1, device="cpu", options=SMALL)
        options = replace(options, teacher=str(checkpoint("sd15")), out=str(tmp_path / "straight"))
        straight = generate.generate(options).run
        with pytest.raises(RunInterrupted) as stopped:
            generate.generate(replace(options, out=str(tmp_path / "stopped")), [Recorder(interrupt_after=2)])
        resumed = resume(str(stopped.value.run)).run
        one, two = (load_scene(Run.open(run)).state() for run in (straight, resumed))
        assert all(torch.equal(one[name], two[name]) for name in one)
        for name in ("exports/scene.ply", "renders/contact_sheet.png"):
            assert (straight / name).read_bytes() == (resumed / name).read_bytes()

    def test_another_teacher_s_latents_are_refused(
        self, tiny_teacher: Callable[[str], NetworkTeacher], checkpoint: CheckpointMaker
    ) -> None:
        settings = SceneSettings("", scene="latent-nerf", nerf=TINY, refinement=NARROW)
        start = new_scene(settings, seeded(0, 1), space_of(tiny_teacher("sd15")))
        with pytest.raises(CheckpointError, match="latents of"):
            SceneTrainer(replace(settings, prompt="a mug"), tiny_teacher("toyworld"), None, start)


class TestSettings:
    def test_fields_of_colour_and_of_latents_are_not_each_other(self) -> None:
        latent = SceneSettings("", scene="latent-nerf", nerf=TINY, refinement=NARROW)
        color = replace(latent, scene="nerf")
        for one, other in ((latent, color), (color, latent)):
            with pytest.raises(ConfigError, match="can't start"):
                continued(one, new_scene(other, seeded(0, 1), pixel_space(8)), seeded(0, 1))

    def test_stages(self) -> None:
        base = SceneSettings("a mug")
        latent = replace(base, scene="latent-nerf")
        replace(latent, then=(replace(base, scene="mesh"),))
        replace(latent, then=(latent,))
        with pytest.raises(ConfigError, match="first"):
            replace(base, scene="nerf", then=(latent,))

    def test_pictures_are_for_fits(self) -> None:
        latent = SceneSettings("a mug", scene="latent-nerf")
        with pytest.raises(ConfigError, match="Fit it"):
            replace(latent, anchors=replace(latent.anchors, pictures="mug.png"))

    def test_bench_and_fit_know_their_kinds(self) -> None:
        assert set(fit_settings.FIT_STEPS) == {*fit_settings.FITS, "latent-nerf"}
