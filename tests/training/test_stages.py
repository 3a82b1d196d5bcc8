"""Runs of several stages: what they are made of, and that stopping between or inside them changes nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from dreamkit.errors import CheckpointError, ConfigError, TeacherError
from dreamkit.files import plain
from dreamkit.scenes.field_config import HashNetworkConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.mesh_scene import MeshScene
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.training.generate import GenerateOptions, settings_for
from dreamkit.training.scene import SceneTrainer, settings_from_config
from dreamkit.training.settings import SceneSettings
from dreamkit.training.stages import StagedTrainer, joined, make_trainer, parse_stages, stage_at
from tests.training.test_scene import PaintTeacher

TINY = HashNetworkConfig(levels=3, log2_size=10, coarsest=4, finest=16, hidden=8)


def stage(scene: str, steps: int, **options: Any) -> SceneSettings:
    """A small stage."""
    geometry = "volsdf" if scene == "sdf" else "density"
    return SceneSettings(
        prompt="a red mug",
        scene=scene,  # type: ignore[arg-type]
        steps=steps,
        views=2,
        resolution=16,
        nerf=NerfConfig(grid=TINY, geometry=geometry, occupancy_resolution=16, occupancy_interval=2),  # type: ignore[arg-type]
        mesh=MeshSceneConfig(grid=TINY, resolution=12),
        **options,
    )


def staged() -> SceneSettings:
    return joined([stage("sdf", 3), stage("mesh", 2), stage("gaussians", 2)])


def trainer(settings: SceneSettings) -> Any:
    return make_trainer(settings, PaintTeacher())


class TestWhatIsAskedFor:
    def test_forms(self) -> None:
        assert parse_stages("nerf:sds, mesh:vsd:100") == [("nerf", "sds", None), ("mesh", "vsd", 100)]

    @pytest.mark.parametrize(
        ("text", "said"),
        [("nerf", "form"), ("nerf:sds:x", "form"), ("cube:sds", "cube"), ("mesh:sds,nerf:sds", "start"), (",", "form")],
    )
    def test_bad_forms(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            parse_stages(text)

    def test_each_stage_has_its_own_preset_and_all_have_the_options_they_know(self) -> None:
        options = GenerateOptions("a red mug", stages="sdf:sds:50,mesh:vsd", options=("critic.rank=2",), seed=4)
        made = settings_for(options)
        first, second = made.stages
        assert (first.scene, first.objective, first.steps, first.nerf.geometry) == ("sdf", "sds", 50, "neus")
        assert (second.scene, second.objective, second.steps) == ("mesh", "vsd", 250)
        assert first.critic.rank == second.critic.rank == 2
        assert first.seed == second.seed == 4
        assert made.total_steps == 300
        assert second.objective_options["timesteps"] != first.objective_options["timesteps"]

    def test_an_option_that_no_stage_has(self) -> None:
        with pytest.raises(ConfigError, match="lambda"):
            settings_for(GenerateOptions("a red mug", stages="sdf:sds,mesh:sds", options=("lambda=0.5",)))

    def test_an_option_that_one_stage_has(self) -> None:
        made = settings_for(GenerateOptions("a red mug", stages="sdf:sds,mesh:esd", options=("lambda=0.25",)))
        assert made.stages[1].objective_options["lambda_"] == 0.25

    def test_a_config_goes_round(self) -> None:
        assert settings_from_config(plain(staged())) == staged()

    def test_geometry_must_fit_the_scene(self) -> None:
        with pytest.raises(ConfigError, match="geometry"):
            settings_for(GenerateOptions("a red mug", scene="nerf", options=("nerf.geometry=neus",)))
        assert settings_for(GenerateOptions("a mug", scene="sdf", options=("nerf.geometry=neus",))).nerf.signed

    def test_stages_of_particles(self) -> None:
        with pytest.raises(ConfigError, match="particles"):
            replace(stage("sdf", 1), then=(stage("mesh", 1, particles=2),))

    def test_which_stage_made_a_step(self) -> None:
        assert [stage_at(staged(), step) for step in (0, 3, 4, 5, 6, 7, 9)] == [
            (0, 0), (0, 0), (1, 3), (1, 3), (2, 5), (2, 5), (2, 5),
        ]  # fmt: skip


class TestRunning:
    @pytest.mark.parametrize("scene", ["nerf", "sdf", "mesh"])
    def test_every_kind_learns_resumes_and_repeats(self, scene: str) -> None:
        straight, first = (trainer(stage(scene, 4)) for _ in range(2))
        assert isinstance(straight, SceneTrainer)
        for _ in range(4):
            straight.step()
        for _ in range(2):
            first.step()
        second = trainer(stage(scene, 4))
        second.load_state(first.state(), 2)
        for _ in range(2):
            second.step()
        one, two = straight.state(), second.state()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_run_goes_through_its_stages(self) -> None:
        run = trainer(staged())
        assert isinstance(run, StagedTrainer)
        kinds = []
        while run.step_index < run.settings.total_steps:
            run.step()
            kinds.append(type(run.scene))
        assert kinds == [NerfScene] * 3 + [MeshScene] * 2 + [GaussianScene] * 2

    @pytest.mark.parametrize("stop", [1, 3, 4, 5, 6])
    def test_stopping_inside_or_between_stages_changes_nothing(self, stop: int) -> None:
        straight, first = (trainer(staged()) for _ in range(2))
        while straight.step_index < 7:
            straight.step()
        while first.step_index < stop:
            first.step()
        second = trainer(staged())
        second.load_state(first.state(), stop)
        assert second.step_index == stop
        while second.step_index < 7:
            second.step()
        one, two = straight.state(), second.state()
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_a_later_stage_that_cannot_run_is_refused_before_the_first_step(self) -> None:
        with pytest.raises(TeacherError, match="critic"):
            trainer(joined([stage("sdf", 3), stage("mesh", 2, objective="vsd")]))

    def test_a_state_of_another_stage_is_refused(self) -> None:
        run = trainer(staged())
        run.step()
        with pytest.raises(CheckpointError):
            trainer(staged()).load_state(run.state(), 4)

    def test_a_smaller_picture_at_first(self) -> None:
        grown = replace(stage("nerf", 4), resolution=32, resolution_share="0, 0.5, 1, 1")  # type: ignore[arg-type]
        run = trainer(grown)
        run.teacher.encode_image = lambda image: 2 * functional.interpolate(image, (16, 16)) - 1
        assert [run.step().image.shape[-1] for _ in range(4)] == [16, 20, 24, 28]
