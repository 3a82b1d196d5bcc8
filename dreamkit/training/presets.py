"""Settings by name: what gives a good asset without a flag, for each objective; and what a user changes about them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from dreamkit.checks import nearest_first
from dreamkit.config import Schedule
from dreamkit.diffusion.students import NetworkStudent
from dreamkit.diffusion.teacher import Teacher
from dreamkit.errors import ConfigError
from dreamkit.files import plain
from dreamkit.objectives import objective_class
from dreamkit.scenes.cameras import CameraSampler
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.training.named_options import placed, read_option
from dreamkit.training.settings import SceneKind, SceneSettings, field_name, from_plain

PRESETS = ("draft", "standard", "high")

# Noise falls from nearly all to a little.
_TOY_LEVELS = "timesteps={level: [0, 0.94, 0.04, 1], jitter: 0.03}"
# What has no pull back to the data (a classifier alone) exaggerates for as long as colours may move.
_COOLING = "gaussians.colors_rate=[0, 0.05, 0.005, 1, exponential]"
_TOY: dict[str, tuple[str, ...]] = {
    "sds": ("guidance=6", "weighting=sigma_ratio", _TOY_LEVELS),
    "sjc": ("guidance=6", _TOY_LEVELS),
    "nfsd": ("guidance=3", "weighting=sigma_ratio", _TOY_LEVELS, _COOLING),
    "csd": ("timesteps={level: [0, 0.94, 0.3, 1], jitter: 0.03}", _COOLING),
    "csm": ("timesteps={level: [0, 0.94, 0.3, 1], jitter: 0.03}", _COOLING),
    "vsd": ("guidance=2", "weighting=sigma_ratio", _TOY_LEVELS, "critic.rate=3e-4"),
    "esd": (
        *("guidance=1", "lambda=1", "weighting=sigma_ratio", _TOY_LEVELS),
        *("critic.rate=3e-3", "critic.camera_dropout=0.5"),
    ),
    "cds": ("guidance=6", "weighting=sigma_ratio"),
    "ism": ("guidance=3", _TOY_LEVELS),
    "tsm": ("guidance=3", _TOY_LEVELS),
    "asd": ("guidance=2", "weighting=sigma_ratio", _TOY_LEVELS, _COOLING),
    "bsd": ("guidance=6", "weighting=sigma_ratio", _TOY_LEVELS),
    "dds": ("guidance=6", "weighting=sigma_ratio", _TOY_LEVELS),
    "sdi": (
        *("guidance=6", "timesteps={level: [0, 0.94, 0.25, 1], jitter: 0.03}"),
        *("inversion_guidance=-6", "inversion_steps=3"),
    ),
}
# High guidance, and never close to t = 0, where a latent teacher's gradients are noise.
_GENERAL: dict[str, tuple[str, ...]] = {
    "sds": ("guidance=50", "weighting=sigma_squared", "timesteps={level: [0, 0.90, 0.30, 1], jitter: 0.10}"),
}
"""Objective -> options; an objective without an entry runs with its paper's, which are its own defaults."""


# What such teachers were trained with: their picture says nearly all, and stands before white.
_READS_PICTURES = (
    "guidance=5",
    *(f"{kind}.background=white" for kind in ("gaussians", "nerf", "mesh")),
)
_REFINING = "timesteps={level: [0, 0.5, 0.04, 1], jitter: 0.03}"
# Several pictures say what guidance would exaggerate, and give the rough shape within a few steps.
_HELD = ("guidance=2", "timesteps={level: [0, 0.7, 0.04, 1], jitter: 0.03}")
# A student of few steps has its teacher's guidance inside of it; at sigma_ratio its gradient is x - x0.
_FEW_STEPS = ("guidance=1", "weighting=sigma_ratio")
# Distillation takes hundreds of steps where a fit takes thousands: at lower rates small parts stay gray fog.
_DENSITY = NerfConfig(
    table_rate=Schedule(0.0, 5e-2, 1e-2, 1.0, "exponential"),
    network_rate=Schedule(0.0, 1e-2, 2e-3, 1.0, "exponential"),
    opacity_weight=Schedule(0.4, 0.0, 2000.0, 1.0),
)
# Softer at the start, or stiffer, and thin parts (the handle of a mug) merge with what is beside them.
_SIGNED = replace(
    _DENSITY,
    geometry="neus",
    sharpness=Schedule(0.0, 10.0, 200.0, 1.0, "exponential"),
    eikonal_weight=Schedule.constant(30.0),
    opacity_weight=Schedule.constant(0.0),
)


def is_toy(teacher: Teacher) -> bool:
    """Whether a teacher is one of the toy world: it takes a camera and reads words."""
    return teacher.supports_camera and not teacher.reads_pictures


def taught_levels(teacher: Teacher | None) -> tuple[float, ...]:
    """Noise levels at which a student can judge a scene; none for any other teacher, which knows all.

    A student of few steps was taught at its own levels only, and at the first of them on noise alone (see
    `dreamkit.diffusion.students`): what it answers there says nothing about a scene.

    Args:
        teacher: of the run, if it is loaded.

    Raises:
        ConfigError: a student of one step, which has no further level.
    """
    if not isinstance(teacher, NetworkStudent):
        return ()
    levels = teacher.student.levels[1:]
    if not levels:
        raise ConfigError(
            "The teacher is a student of 1 step: it was taught on noise alone and can't judge a scene.",
            "Use a student of several steps: `dreamkit distill image --steps-per-sample 4` makes one.",
        )
    return levels


def for_student(settings: SceneSettings) -> SceneSettings:
    """A preset's settings as they suit a student of few steps: without guidance, the gradient x - x0."""
    return with_options(settings, [option for option in _FEW_STEPS if knows(settings, option)])


def asked_at(settings: SceneSettings, levels: tuple[float, ...], options: Sequence[str]) -> SceneSettings:
    """The settings with a student's levels as the only ones, unless the user's options name others.

    Args:
        settings: of a stage, the options over them.
        levels: see `taught_levels`; none changes nothing.
        options: NAME=VALUE options of the user.
    """
    if not levels or not knows(settings, "timesteps=") or any(map(_names_levels, options)):
        return settings
    chosen = from_plain(objective_class(settings.objective), settings.objective_options).timesteps  # type: ignore[arg-type]
    limited = plain(replace(chosen, levels=levels))
    return replace(settings, objective_options={**settings.objective_options, "timesteps": limited})


def _names_levels(option: str) -> bool:
    """Whether a NAME=VALUE option says which noise levels may be asked."""
    path, value = read_option(option)
    named = value if path == ["timesteps"] and isinstance(value, Mapping) else ()
    return path == ["timesteps", "levels"] or "levels" in named


def tuned_options(objective: str, toy: bool = True) -> tuple[str, ...]:
    """What the presets change about an objective and its run, as NAME=VALUE options.

    Args:
        objective: registered name.
        toy: whether the teacher is one of the toy world.
    """
    return (_TOY if toy else _GENERAL).get(objective, ())


def preset(
    name: str,
    objective: str = "sds",
    toy: bool = True,
    scene: SceneKind = "gaussians",
    later: bool = False,
    held: bool = False,
    pictures: bool = False,
) -> SceneSettings:
    """Settings by name, for a teacher of the toy world or for a larger one.

    Args:
        name: `draft`, `standard` or `high`.
        objective: registered name of the objective.
        toy: whether the teacher is one of the toy world (64x64 pixels, takes a camera); larger ones get larger
            views, more steps and cameras no higher than people photograph from.
        scene: kind of scene.
        later: whether the run refines what a stage before it made: then it starts from half of the noise.
        held: whether a set of pictures holds the scene.
        pictures: whether the teacher reads a picture in place of the prompt.

    Raises:
        ConfigError: there is no such preset or kind.
    """
    base = SceneSettings(
        prompt="",
        objective=objective,
        scene=scene,
        nerf=_SIGNED if scene == "sdf" else _DENSITY,
        gaussians=GaussianConfig(count=2000, background="neutral"),
        density=DensityConfig(max_count=4000),
        steps=250,
        views=4,
        resolution=64,
    )
    base = with_options(base, tuned_options(objective, toy))
    if held and toy:
        base = with_options(base, [option for option in _HELD if knows(base, option)])
    if pictures:
        base = with_options(base, [option for option in _READS_PICTURES if knows(base, option)])
    if later and knows(base, _REFINING):
        base = with_options(base, [_REFINING])
    if not toy:
        base = replace(base, resolution=128, steps=1000, cameras=CameraSampler(elevation_range=(-10.0, 45.0)))
    scaled: dict[str, dict[str, Any]] = {
        "draft": {},
        "standard": {"steps": 2 * base.steps, "views": 6, "density": replace(base.density, max_count=8000)},
        "high": {"steps": 6 * base.steps, "views": 8, "density": replace(base.density, max_count=20000)},
    }
    if name not in scaled:
        near = get_close_matches(name, scaled, n=1)
        hint = f"Known: {', '.join(scaled)}." + (f" Did you mean {near[0]}?" if near else "")
        raise ConfigError(f"The preset {name!r} is not known.", hint)
    return replace(base, preset=name, **scaled[name])


def with_overrides(settings: SceneSettings, **options: Any) -> SceneSettings:
    """The settings with every option that is not `None` replaced; `guidance` goes into the objective's options."""
    guidance = options.pop("guidance", None)
    chosen = {name: value for name, value in options.items() if value is not None}
    if guidance is not None:
        chosen["objective_options"] = {**settings.objective_options, "guidance": guidance}
    return replace(settings, **chosen)


def with_options(settings: SceneSettings, options: Sequence[str]) -> SceneSettings:
    """The settings with NAME=VALUE options over them.

    A name is a field of the objective (`lambda`, `timesteps.t_min`) or of the settings (`critic.rank`, `perp_neg`,
    `gaussians.count`), dotted where it lies deeper. A value is YAML: a number, a list, true, a word.

    Args:
        settings: what the options change.
        options: "NAME=VALUE" each; a later one wins.

    Raises:
        ConfigError: an option of another form, a name that does not exist, a value of the wrong kind or out of range.
    """
    objective = {item.name for item in fields(objective_class(settings.objective))}  # type: ignore[arg-type]
    own = {item.name for item in fields(SceneSettings)} - {"objective_options", "then"}
    content: dict[str, Any] = plain(settings)
    for option in options:
        path, value = read_option(option)
        if path[0] in objective:
            if len(path) > 1:  # one field of an option changes: the others stay as the objective has them
                given = content["objective_options"]
                given.setdefault(path[0], plain(getattr(objective_class(settings.objective)(), path[0])))
            path = ["objective_options", *path]
        elif path[0] not in own:
            known = nearest_first(path[0], objective | own)
            raise ConfigError(
                f"{settings.objective} has no option {option.partition('=')[0].strip()!r}.",
                f"Did you mean {known[0].rstrip('_')}? The objective has: "
                f"{', '.join(item.rstrip('_') for item in sorted(objective))}.",
            )
        content = placed(content, path, value)
    return from_plain(SceneSettings, content)


def knows(settings: SceneSettings, option: str) -> bool:
    """Whether the settings have what a NAME=VALUE option names."""
    first = field_name(option.partition("=")[0].strip().split(".")[0])
    known = {item.name for item in (*fields(objective_class(settings.objective)), *fields(SceneSettings))}  # type: ignore[arg-type]
    return first in known - {"objective_options", "then"}
