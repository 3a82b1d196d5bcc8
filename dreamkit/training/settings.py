"""Everything that decides a text-to-3D run, as one frozen dataclass that a run folder keeps; and the presets."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, get_type_hints

from dreamkit.config import Schedule
from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import CameraSampler
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig

EMBEDDED = "toyworld"
SCENES = ("gaussians",)


@dataclass(frozen=True)
class SceneSettings:
    """A text-to-3D run, complete: with the same settings the same bytes come out on a CPU."""

    prompt: str
    """What to make."""
    negative: str = ""
    """What to stay away from."""
    preset: str = "draft"
    """Name of the preset the rest comes from."""
    teacher: str = EMBEDDED
    """The embedded teacher, a diffusers folder or a hub id."""
    objective: str = "sds"
    """Registered name of the objective."""
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the objective that differ from its defaults."""
    scene: str = "gaussians"
    """Kind of scene."""
    gaussians: GaussianConfig = field(default_factory=GaussianConfig)
    """Start, learning rates and regularisers of a Gaussian scene."""
    density: DensityConfig = field(default_factory=DensityConfig)
    """When Gaussians are added and removed."""
    cameras: CameraSampler = field(default_factory=CameraSampler)
    """Where training cameras stand."""
    steps: int = 300
    """Optimisation steps."""
    views: int = 4
    """Cameras a step."""
    resolution: int = 64
    """Side of the training views, pixels."""
    view_prompts: bool = True
    """Whether the prompt says which side a camera looks at."""
    camera_conditioning: bool = True
    """Whether a teacher that can take a camera pose gets one."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 10**7), ("views", 1, 1024), ("resolution", 16, 2048),
                                ("checkpoint_every", 1, 10**7), ("seed", 0, 2**63 - 1)):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}.", f"Use a whole number from {low} to {high}.")
        if self.scene not in SCENES:
            raise ConfigError(f"The scene {self.scene!r} is not known.", f"Known: {', '.join(SCENES)}.")


def from_plain(kind: type, content: Mapping[str, Any]) -> Any:
    """A dataclass from the plain dicts and lists of a file; the inverse of `files.plain`.

    Raises:
        ConfigError: a field that the dataclass does not have, or lacks, or a value of the wrong kind.
    """
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ConfigError(f"{kind.__name__} has no {', '.join(unknown)}.", f"It has: {', '.join(sorted(known))}.")
    values: dict[str, Any] = {}
    for name, value in content.items():
        hint = hints[name]
        if hint is Schedule:
            value = Schedule.parse(value)
        elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
            value = from_plain(hint, value)
        elif isinstance(value, list):
            value = tuple(value)
        if not _is_of(value, hint):
            raise ConfigError(f"{kind.__name__}.{name} is {value!r}.", f"It must be of the kind {hint.__name__}.")
        values[name] = value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # a required field left out, or a tuple of another length
        raise ConfigError(f"These values don't make a {kind.__name__}: {error}.", "Check the configuration.") from error


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a plain kind or dataclass; `True` for hints of any other form."""
    if isinstance(value, bool):
        return hint not in (int, float, str)
    if hint is float:
        return isinstance(value, int | float)
    return not (hint in (bool, int, str) or is_dataclass(hint)) or isinstance(value, hint)


_TOY_OPTIONS: dict[str, dict[str, Any]] = {
    # Noise falls from nearly all to a little; residual x - x0.
    "sds": {
        "guidance": 6.0,
        "weighting": "sigma_ratio",
        "timesteps": {"level": [0.0, 0.94, 0.04, 1.0], "jitter": 0.03},
    },
}
_GENERAL_OPTIONS: dict[str, dict[str, Any]] = {
    # High guidance, and never close to t = 0, where a latent teacher's gradients are noise.
    "sds": {
        "guidance": 50.0,
        "weighting": "sigma_squared",
        "timesteps": {"level": [0.0, 0.90, 0.30, 1.0], "jitter": 0.10},
    },
}
"""Objective -> options; an objective without an entry runs with its own defaults."""


def preset(name: str, objective: str = "sds", toy: bool = True) -> SceneSettings:
    """Settings by name, for a teacher of the toy world or for a larger one.

    Args:
        name: `draft`, `standard` or `high`.
        objective: registered name of the objective.
        toy: whether the teacher is one of the toy world (64x64 pixels, takes a camera); larger ones get larger
            views, more steps and cameras no higher than people photograph from.

    Raises:
        ConfigError: there is no such preset.
    """
    base = SceneSettings(
        prompt="",
        objective=objective,
        objective_options=(_TOY_OPTIONS if toy else _GENERAL_OPTIONS).get(objective, {}),
        gaussians=GaussianConfig(count=2000, background="neutral"),
        density=DensityConfig(max_count=4000),
        steps=250,
        views=4,
        resolution=64,
    )
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
