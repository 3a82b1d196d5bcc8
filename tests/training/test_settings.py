"""Settings: presets, overrides, and the way through a run folder's config.yaml and back."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dreamkit.config import Schedule
from dreamkit.diffusion.critic import CriticConfig
from dreamkit.errors import ConfigError, DreamkitError, PromptError
from dreamkit.files import plain
from dreamkit.objectives import TimestepSchedule
from dreamkit.runs import Run
from dreamkit.scenes.cameras import CameraSampler
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.training import generate
from dreamkit.training.generate import GenerateOptions
from dreamkit.training.presets import preset, with_overrides
from dreamkit.training.scene import make_objective, settings_from_config
from dreamkit.training.settings import SceneSettings, from_plain

PRESETS = ("draft", "standard", "high")

positive = st.floats(1e-6, 1e3)
schedules = st.builds(
    Schedule,
    start_step=st.floats(0, 0.4),
    start_value=positive,
    end_value=positive,
    end_step=st.sampled_from([0.5, 1.0, 300.0]),
    curve=st.sampled_from(["linear", "exponential", "sqrt", "step"]),
)
ordered = st.tuples(st.floats(-80, 0), st.floats(0, 80))
any_settings = st.builds(
    SceneSettings,
    prompt=st.text(max_size=40),
    negative=st.text(max_size=10),
    gaussians=st.builds(
        GaussianConfig,
        count=st.integers(1, 10**6),
        sh_degree=st.sampled_from([None, 0, 3]),
        means_rate=schedules,
        adam_betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)),
    ),
    density=st.builds(DensityConfig, enabled=st.booleans(), interval=st.integers(1, 100)),
    cameras=st.builds(CameraSampler, azimuth_range=ordered, elevation_range=ordered, jitter=st.floats(0, 1)),
    critic=st.builds(
        CriticConfig,
        kind=st.sampled_from(["lora", "copy"]),
        rank=st.integers(1, 64),
        rate=positive.map(Schedule.constant),
        camera_dropout=st.floats(0, 1),
    ),
    particles=st.integers(1, 64),
    perp_neg=st.booleans(),
    source_prompt=st.text(max_size=10),
    objective_options=st.fixed_dictionaries({}, optional={"guidance": positive, "weighting": st.just("uniform")}),
    steps=st.integers(1, 10**7),
    view_prompts=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)


class TestRoundTrip:
    @hypothesis_settings(max_examples=60, deadline=None)
    @given(any_settings)
    def test_plain_and_back(self, settings: SceneSettings) -> None:
        assert from_plain(SceneSettings, plain(settings)) == settings

    @pytest.mark.parametrize("name", PRESETS)
    @pytest.mark.parametrize("embedded", [True, False])
    def test_presets_through_a_run_folder(self, tmp_path: Path, name: str, embedded: bool) -> None:
        settings = replace(
            preset(name, toy=embedded), prompt="a red mug: {yes}, ${oc.env:HOME} \N{SNOWMAN}", seed=2**63 - 1
        )
        run = Run.create(tmp_path, "a-red-mug", "sds", settings)
        opened = settings_from_config(Run.open(run.path).config)
        assert opened == settings
        assert make_objective(opened) == make_objective(settings)

    @hypothesis_settings(max_examples=15, deadline=None)
    @given(any_settings)
    def test_anything_through_a_run_folder(self, settings: SceneSettings) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            run = Run.create(folder, "a", "sds", settings)
            assert settings_from_config(Run.open(run.path).config) == settings

    def test_an_objective_of_plain_values(self) -> None:
        objective = make_objective(
            SceneSettings(
                "a",
                objective_options={
                    "guidance": [0.0, 8.0, 4.0, 1.0, "exponential"],
                    "timesteps": {"level": 0.5, "jitter": 0.3, "t_min": 0.1},
                },
            )
        )
        assert objective.guidance == Schedule(0.0, 8.0, 4.0, 1.0, "exponential")  # type: ignore[attr-defined]
        expected = TimestepSchedule(Schedule.constant(0.5), Schedule.constant(0.3), t_min=0.1)
        assert objective.timesteps == expected  # type: ignore[attr-defined]


class TestBadConfigurations:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"colour": "red"}, "colour"),
            ({"gaussians": {"counts": 5}}, "counts"),
            ({"gaussians": {"count": "many"}}, "count"),
            ({"gaussians": {"count": True}}, "count"),
            ({"gaussians": {"means_rate": "fast"}}, "fast"),
            ({"gaussians": {"means_rate": {"speed": 3}}}, "speed"),
            ({"gaussians": 5}, "gaussians"),
            ({"gaussians": None}, "gaussians"),
            ({"cameras": {"azimuth_range": [0, 1, 2]}}, "CameraSampler"),
            ({"cameras": {"azimuth_range": 5}}, "CameraSampler"),
            ({"cameras": {"azimuth_range": ["a", "b"]}}, "CameraSampler"),
            ({"density": {"interval": 0}}, "interval"),
            ({"prompt": 5}, "prompt"),
            ({"view_prompts": "yes"}, "view_prompts"),
            ({"steps": 2.5}, "steps"),
            ({"steps": "3"}, "steps"),
            ({"steps": None}, "steps"),
            ({"critic": {"rank": 0}}, "rank"),
            ({"critic": {"kind": "full"}}, "kind"),
            ({"critic": {"size": 3}}, "size"),
            ({"critic": {"updates": 1.5}}, "updates"),
            ({"critic": "lora"}, "critic"),
            ({"perp_neg": "yes"}, "perp_neg"),
            ({"particles": "2"}, "particles"),
        ],
    )
    def test_each_is_one_clear_error(self, change: dict[str, Any], named: str) -> None:
        content = plain(SceneSettings("a red mug")) | change
        with pytest.raises(ConfigError, match=named):
            from_plain(SceneSettings, content)

    def test_a_missing_prompt(self) -> None:
        with pytest.raises(ConfigError, match="prompt"):
            from_plain(SceneSettings, {"steps": 3})

    @pytest.mark.parametrize(
        "options", [{"weight": 3}, {"guidance": "much"}, {"timesteps": {"t_min": 2.0}}, {"weighting": "cubed"}]
    )
    def test_options_of_an_objective(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError):
            make_objective(SceneSettings("a", objective_options=options))

    def test_an_unknown_objective(self) -> None:
        with pytest.raises(ConfigError, match="sds"):
            make_objective(SceneSettings("a", objective="sdz"))

    @pytest.mark.parametrize(
        "change",
        [
            {"steps": 0}, {"steps": -1}, {"steps": 10**8}, {"views": 0}, {"views": 2000}, {"resolution": 8},
            {"resolution": 4096}, {"checkpoint_every": 0}, {"seed": -1}, {"seed": 2**63}, {"scene": "cloud"},
            {"steps": 2.0}, {"particles": 0}, {"particles": 65},
        ],
        ids=str,
    )  # fmt: skip
    def test_values_out_of_range(self, change: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=next(iter(change))):
            SceneSettings("a red mug", **change)


class TestPresets:
    def test_each_takes_longer_than_the_one_before(self) -> None:
        for embedded in (True, False):
            steps = [preset(name, toy=embedded).steps * preset(name, toy=embedded).views for name in PRESETS]
            assert steps == sorted(set(steps))
            assert [preset(name, toy=embedded).preset for name in PRESETS] == list(PRESETS)

    def test_a_larger_teacher_sees_larger_pictures(self) -> None:
        assert preset("draft", toy=False).resolution > preset("draft", toy=True).resolution

    @pytest.mark.parametrize("embedded", [True, False])
    def test_their_objective_is_valid(self, embedded: bool) -> None:
        for name in PRESETS:
            make_objective(preset(name, toy=embedded))

    def test_an_unknown_one_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError) as caught:
            preset("drafty")
        assert "draft, standard, high" in str(caught.value)
        assert "Did you mean draft?" in str(caught.value)


class TestOverrides:
    def test_none_leaves_the_preset(self) -> None:
        base = preset("draft")
        names = {item.name: None for item in fields(base) if item.name != "prompt"}
        assert with_overrides(base, **names, guidance=None) == base

    def test_values_replace(self) -> None:
        changed = with_overrides(preset("draft"), prompt="a cat", steps=7, seed=0, negative="")
        assert (changed.prompt, changed.steps, changed.seed) == ("a cat", 7, 0)

    def test_guidance_goes_into_the_objective_and_keeps_its_other_options(self) -> None:
        base = preset("draft")
        changed = with_overrides(base, guidance=3.5)
        assert make_objective(changed).guidance == Schedule.constant(3.5)  # type: ignore[attr-defined]
        assert {**changed.objective_options, "guidance": 0} == {**base.objective_options, "guidance": 0}
        assert make_objective(base).guidance != make_objective(changed).guidance  # type: ignore[attr-defined]

    def test_bad_values_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="views"):
            with_overrides(preset("draft"), views=0)


class TestSettingsFor:
    def test_options_over_the_preset(self) -> None:
        given = GenerateOptions(" a  red\tmug ", negative=" blue ", guidance=3.0, views=5, seed=9)
        settings = generate.settings_for(given)
        base = preset("draft")
        assert settings.prompt == "a red mug"
        assert settings.negative == "blue"
        assert settings.objective_options["guidance"] == 3.0
        assert (settings.views, settings.seed) == (5, 9)
        assert (settings.steps, settings.resolution) == (base.steps, base.resolution)

    def test_a_larger_teacher_has_its_own_preset(self) -> None:
        larger = generate.settings_for(GenerateOptions("a dragon", teacher="someone/model", preset="high"))
        assert larger.resolution == preset("high", toy=False).resolution
        assert larger.teacher == "someone/model"
        assert larger.preset == "high"

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"prompt": ""}, PromptError),
            ({"prompt": "   \n"}, PromptError),
            ({"prompt": "mug " * 2500}, PromptError),
            ({"prompt": "a red\x00mug"}, PromptError),
            ({"negative": "a\x1bb"}, PromptError),
            ({"steps": 0}, ConfigError),
            ({"steps": -3}, ConfigError),
            ({"views": 0}, ConfigError),
            ({"resolution": -64}, ConfigError),
            ({"seed": -1}, ConfigError),
            ({"guidance": -1.0}, ConfigError),
            ({"guidance": float("nan")}, ConfigError),
            ({"guidance": float("inf")}, ConfigError),
            ({"preset": "best"}, ConfigError),
            ({"objective": "sdz"}, ConfigError),
            ({"objective": "esd", "options": ("lambda=2",)}, ConfigError),
            ({"options": ("lambda=0.5",)}, ConfigError),
            ({"options": ("guidance=-1",)}, ConfigError),
            ({"options": ("timesteps.t_min=0.99",)}, ConfigError),
            ({"options": ("critic.rank=0",)}, ConfigError),
            ({"options": ("steps",)}, ConfigError),
            ({"scene": "cloud"}, ConfigError),
        ],
        ids=str,
    )
    def test_bad_options_leave_nothing_behind(
        self, tmp_path: Path, change: dict[str, Any], error: type[DreamkitError]
    ) -> None:
        with pytest.raises(error):
            generate.generate(GenerateOptions(**{"prompt": "a red mug", "out": str(tmp_path / "out")} | change))
        assert list(tmp_path.iterdir()) == []
