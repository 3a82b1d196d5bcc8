"""Options: what no method can use is one clear error, before the first step."""

from typing import Any

import pytest

from dreamkit.config import Schedule
from dreamkit.errors import ConfigError
from dreamkit.objectives import objective_class, objective_names
from dreamkit.training.scene import make_objective
from dreamkit.training.settings import SceneSettings

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON: list[dict[str, Any]] = [
    {"guidance": -1.0},
    {"guidance": [0.0, 7.5, -1.0, 1.0]},
    {"guidance": float("nan")},
    {"guidance": float("inf")},
    {"guidance": "much"},
    {"guidance": None},
    {"guidance": True},
    {"weighting": "cubed"},
    {"weighting": 2},
    {"rescale": -0.1},
    {"rescale": 1.1},
    {"rescale": float("nan")},
    {"rescale": "half"},
    {"pixel_clip": -1.0},
    {"pixel_clip": float("inf")},
    {"image_term": -0.1},
    {"image_term": float("nan")},
    {"timesteps": "unifrom"},
    {"timesteps": {"t_min": 0.5, "t_max": 0.4}},
    {"timesteps": {"t_min": "low"}},
    {"timesteps": {"t_mean": 0.5}},
    {"timesteps": 0.5},
    {"an_option_that_no_method_has": 1},
]
OWN: list[tuple[str, dict[str, Any]]] = [
    ("asd", {"shift": -0.1}),
    ("asd", {"shift": 1.5}),
    ("cds", {"smallest_gap": 0.0}),
    ("cds", {"smallest_gap": 0.4}),
    ("cds", {"largest_gap": 1.5}),
    ("csd", {"negative_share": 2.0}),
    ("csd", {"negative_share": [0.0, 0.0, 1.5, 1.0]}),
    ("csm", {"stride": 0.0}),
    ("csm", {"stride": 2.0}),
    ("csm", {"stride": float("nan")}),
    ("csm", {"negative_share": -0.5}),
    ("esd", {"lambda": 2.0}),
    ("esd", {"lambda": -0.1}),
    ("esd", {"lambda": "half"}),
    ("ism", {"gap": 0.0}),
    ("ism", {"gap": [0.0, 0.1, 2.0, 1.0]}),
    ("ism", {"stride": -1.0}),
    ("nfsd", {"domain_below": 1.5}),
    ("sdi", {"inversion_guidance": 7.5}),
    ("sdi", {"inversion_steps": 0}),
    ("sdi", {"inversion_steps": 2.5}),
    ("sjc", {"variance_reduced": "yes"}),
    ("tsm", {"gamma": 0.0}),
    ("tsm", {"gamma": 1.5}),
    ("tsm", {"gap": -0.1}),
    ("vsd", {"lambda": 0.5}),  # ESD's
]


def settings(name: str, options: dict[str, Any]) -> SceneSettings:
    return SceneSettings("a red mug", objective=name, objective_options=options)


@pytest.mark.parametrize("options", COMMON, ids=str)
@pytest.mark.parametrize("name", objective_names())
def test_bad_options_of_all_methods(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_objective(settings(name, options))


@pytest.mark.parametrize(("name", "options"), OWN, ids=str)
def test_bad_options_of_one(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_objective(settings(name, options))
    assert caught.value.hint  # what to do about it


def test_an_unknown_option_lists_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        make_objective(settings("esd", {"lamda": 0.3}))
    assert "lamda" in str(caught.value)
    assert "lambda," in str(caught.value)  # without Python's underscore


def test_defaults_are_the_papers() -> None:
    """shared/methods.md, part A."""

    def default(name: str, option: str) -> Any:
        return getattr(objective_class(name)(), option)

    assert default("sds", "guidance") == Schedule.constant(100.0)
    for name in ("asd", "bsd", "dds", "esd", "ism", "nfsd", "sdi", "tsm", "vsd"):
        assert default(name, "guidance") == Schedule.constant(7.5), name
    assert default("cds", "guidance") == Schedule(0.0, 100.0, 50.0, 1.0)
    assert default("csd", "guidance") == default("csm", "guidance") == Schedule.constant(1.0)
    weightings = {
        "sigma_squared": {"asd", "csd", "csm", "esd", "nfsd", "sds", "vsd"},
        "uniform": {"cds", "dds", "sjc"},
        "sigma_ratio": {"ism", "sdi", "tsm"},
        "alpha": {"bsd"},
    }
    for weighting, names in weightings.items():
        assert all(default(name, "weighting") == weighting for name in names)
    assert default("esd", "lambda_") == 0.5
    assert (default("cds", "smallest_gap"), default("cds", "largest_gap")) == (0.1, 0.3)
    assert default("cds", "timesteps").level == Schedule(0.0, 0.7, 0.1, 1.0, "sqrt")
    assert default("ism", "gap") == default("tsm", "gap") == Schedule(0.0, 0.1, 0.05, 1.0)
    assert default("ism", "stride") == default("tsm", "stride") == default("csm", "stride") == 0.2
    assert default("tsm", "gamma") == 0.3
    assert default("asd", "shift") == 0.1
    assert (default("sdi", "inversion_guidance"), default("sdi", "inversion_steps")) == (-7.5, 10)
    assert default("sdi", "timesteps").level == Schedule(0.0, 0.98, 0.25, 1.0)
    assert default("nfsd", "domain_below") == 0.2


@pytest.mark.parametrize("name", ["ism", "tsm"])
def test_lucid_dreamers_levels(name: str) -> None:
    """U[0.02, t_max] with t_max from 0.98 to 0.5 over the first 30 % of the run."""
    levels = objective_class(name)().timesteps  # type: ignore[attr-defined]
    for progress, top in ((0.0, 0.98), (0.15, 0.74), (0.3, 0.5), (0.9, 0.5)):
        assert levels.level.at(progress) + levels.jitter.at(progress) == pytest.approx(top)
        assert levels.level.at(progress) - levels.jitter.at(progress) == pytest.approx(0.02)
