"""Options by NAME=VALUE over a preset, and presets for every objective."""

from dataclasses import replace
from typing import Any

import pytest

from dreamkit.config import Schedule
from dreamkit.errors import ConfigError
from dreamkit.files import plain
from dreamkit.objectives import TimestepSchedule, objective_class, objective_names
from dreamkit.objectives.timesteps import NAMED
from dreamkit.training.presets import (
    PRESETS,
    asked_at,
    for_student,
    preset,
    taught_levels,
    with_options,
    with_overrides,
)
from dreamkit.training.scene import make_objective, settings_from_config
from dreamkit.training.settings import SceneSettings


def changed(*options: str, objective: str = "esd") -> SceneSettings:
    return with_options(SceneSettings("a red mug", objective=objective), options)


def made(*options: str, objective: str = "esd") -> Any:
    return make_objective(changed(*options, objective=objective))


class TestOptionsOfTheObjective:
    @pytest.mark.parametrize(
        ("option", "field", "value"),
        [
            ("lambda=0.3", "lambda_", 0.3),
            ("lambda=1", "lambda_", 1),
            ("guidance=7.5", "guidance", Schedule.constant(7.5)),
            ("guidance=[0, 100, 50, 1]", "guidance", Schedule(0, 100, 50, 1)),
            ("guidance=[0, 100, 50, 1, sqrt]", "guidance", Schedule(0, 100, 50, 1, "sqrt")),
            ("guidance=0, 100, 50, 1", "guidance", Schedule(0, 100, 50, 1)),
            ("weighting=uniform", "weighting", "uniform"),
            ("rescale=1e-1", "rescale", 0.1),
            (" pixel_clip = 0.5 ", "pixel_clip", 0.5),
            ("image_term=1e-3", "image_term", 1e-3),
            ("timesteps=dreamtime", "timesteps", NAMED["dreamtime"]),
            ("timesteps={level: 0.5, jitter: 0.3}", "timesteps",
             TimestepSchedule(Schedule.constant(0.5), Schedule.constant(0.3))),
            ("timesteps.t_min=0.1", "timesteps", replace(NAMED["two_phase"], t_min=0.1)),
            ("timesteps={level: 0.5, levels: [0.75, 0.5]}", "timesteps",
             TimestepSchedule(Schedule.constant(0.5), levels=(0.75, 0.5))),
            ("timesteps.levels=[0.25]", "timesteps", replace(NAMED["two_phase"], levels=(0.25,))),
        ],
    )  # fmt: skip
    def test_each_form(self, option: str, field: str, value: Any) -> None:
        assert getattr(made(option), field) == value

    def test_deeper_ones_add_up(self) -> None:
        levels = made("timesteps.t_min=0.1", "timesteps.t_max=0.9", "timesteps.level=[0, 0.9, 0.2, 1]").timesteps
        assert levels == replace(NAMED["two_phase"], level=Schedule(0, 0.9, 0.2, 1), t_min=0.1, t_max=0.9)

    def test_they_add_to_the_presets_own(self) -> None:
        """SDS's preset has noise levels of its own, of which one field changes."""
        base = preset("draft", "sds")
        plain, one = (make_objective(with_options(base, given)).timesteps for given in ((), ("timesteps.t_min=0.1",)))
        assert one.level == plain.level != NAMED["uniform"].level
        assert (one.t_min, plain.t_min) == (0.1, 0.02)

    def test_a_later_one_wins(self) -> None:
        assert made("lambda=0.3", "lambda=0.7").lambda_ == 0.7
        assert made("timesteps.t_min=0.1", "timesteps=uniform").timesteps == NAMED["uniform"]

    def test_they_win_over_the_other_flags(self) -> None:
        settings = with_options(with_overrides(preset("draft", "sds"), guidance=3.0), ["guidance=9"])
        assert make_objective(settings).guidance == Schedule.constant(9.0)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("name", objective_names())
    def test_every_objective_takes_its_defaults_as_options(self, name: str) -> None:
        """What `describe` shows can be typed back."""
        from dreamkit.objectives.describe import describe

        options = []
        for option, (shown, _) in describe(objective_class(name))["options"].items():
            text = str(shown).replace("True", "true").replace("False", "false")
            options.append(f"{option}={text}")
        objective = make_objective(with_options(SceneSettings("a red mug", objective=name), options))
        assert objective == objective_class(name)()


class TestOptionsOfTheRun:
    def test_fields_of_the_settings(self) -> None:
        settings = changed("perp_neg=true", "particles=3", "view_prompts=no", "source_prompt=a blue cube", "steps=7")
        assert (settings.perp_neg, settings.particles, settings.view_prompts) == (True, 3, False)
        assert (settings.source_prompt, settings.steps) == ("a blue cube", 7)

    def test_fields_of_fields(self) -> None:
        settings = changed("critic.rank=16", "critic.kind=copy", "critic.rate=[0, 1e-3, 1e-4, 1]", "gaussians.count=50")
        assert (settings.critic.rank, settings.critic.kind) == (16, "copy")
        assert settings.critic.rate == Schedule(0, 1e-3, 1e-4, 1)
        assert settings.gaussians.count == 50
        assert settings.gaussians.means_rate == SceneSettings("").gaussians.means_rate  # the others stay

    def test_nothing_changes_nothing(self) -> None:
        assert with_options(preset("high", "vsd"), []) == preset("high", "vsd")

    def test_the_run_folder_has_them(self) -> None:
        settings = changed("lambda=0.3", "critic.rank=16", "timesteps=sqrt")
        assert settings_from_config(plain(settings)) == settings


class TestBadOptions:
    @pytest.mark.parametrize(
        ("option", "word"),
        [
            ("lambda", "NAME=VALUE"),
            ("=3", "NAME=VALUE"),
            ("", "NAME=VALUE"),
            ("a..b=3", "NAME=VALUE"),
            (".lambda=3", "NAME=VALUE"),
            ("lamda=0.3", "lambda"),
            ("critics.rank=3", "critic"),
            ("objective_options=3", "objective_options"),
            ("critic.ranks=3", "ranks"),
            ("critic.rank=many", "rank"),
            ("critic.rank=0", "rank"),
            ("critic=3", "critic"),
            ("particles=0", "particles"),
            ("particles=two", "particles"),
            ("steps=2.5", "steps"),
            ("perp_neg=maybe", "perp_neg"),
            ("gaussians.count=[", "read"),
            ("seed=-1", "seed"),
        ],
    )
    def test_of_the_run(self, option: str, word: str) -> None:
        with pytest.raises(ConfigError, match=word):
            changed(option)

    @pytest.mark.parametrize(
        ("option", "word"),
        [
            ("lambda=2", "lambda"),
            ("lambda=half", "lambda"),
            ("guidance=-1", "guidance"),
            ("guidance=much", "much"),
            ("timesteps=unifrom", "unifrom"),
            ("timesteps.t_min=0.99", "0.99"),
            ("timesteps.t_min=low", "low"),
            ("timesteps.t_mean=0.5", "t_mean"),
            ("timesteps.levels=0.5", "levels"),
            ("timesteps.levels=[1]", "levels"),
            ("weighting=cubed", "cubed"),
            ("weighting=true", "True"),
            ("rescale=.nan", "nan"),
        ],
    )
    def test_of_the_objective(self, option: str, word: str) -> None:
        with pytest.raises(ConfigError, match=word):
            made(option)

    def test_another_objectives_option(self) -> None:
        with pytest.raises(ConfigError) as caught:
            changed("lambda=0.3", objective="vsd")
        assert "vsd has no option 'lambda'" in str(caught.value)
        assert "guidance" in str(caught.value)


class TestStudents:
    LEVELS = (0.75, 0.5, 0.25)

    @pytest.mark.parametrize("toy", [True, False])
    @pytest.mark.parametrize("name", objective_names())
    def test_every_objective_asks_them_at_their_levels_without_guidance(self, name: str, toy: bool) -> None:
        own = preset("draft", name, toy)
        objective: Any = make_objective(asked_at(for_student(own), self.LEVELS, ()))
        usual: Any = make_objective(own)
        assert objective.timesteps == replace(usual.timesteps, levels=self.LEVELS)
        assert (objective.guidance, objective.weighting) == (Schedule.constant(1.0), "sigma_ratio")

    @pytest.mark.parametrize(
        ("option", "levels"),
        [
            ("timesteps.t_min=0.1", LEVELS),
            ("timesteps={level: 0.5, jitter: 0}", LEVELS),
            ("timesteps=sqrt", LEVELS),
            ("guidance=2", LEVELS),
            ("timesteps.levels=[0.5]", (0.5,)),
            ("timesteps={levels: [0.5]}", (0.5,)),
            ("timesteps.levels=[]", ()),
        ],
    )
    def test_the_users_levels_win_and_nothing_else_changes_them(self, option: str, levels: tuple[float, ...]) -> None:
        settings = asked_at(changed(option), self.LEVELS, [option])
        objective: Any = make_objective(settings)
        assert objective == replace(made(option), timesteps=replace(made(option).timesteps, levels=levels))
        assert settings_from_config(plain(settings)) == settings

    def test_any_other_teacher_is_asked_anywhere(self) -> None:
        assert taught_levels(None) == ()
        assert asked_at(changed(), (), ()) == changed()


class TestPresets:
    @pytest.mark.parametrize("toy", [True, False])
    @pytest.mark.parametrize("name", objective_names())
    def test_there_is_one_for_every_objective(self, name: str, toy: bool) -> None:
        for level in PRESETS:
            settings = preset(level, name, toy)
            assert settings.objective == name
            make_objective(settings)

    def test_an_objective_without_an_entry_runs_with_its_papers_options(self) -> None:
        from dreamkit.training import presets

        for name in objective_names():
            if name not in presets._TOY:
                assert make_objective(preset("draft", name)) == objective_class(name)()
