"""What a job is asked to do: checked when it is submitted, by the checks of the command that will run it.

A stranger may fill these in. So nothing in them names a file of the server: teachers are those the server was started
with, the source of an edit is a run of its own, options are those of the objective, and sizes have limits.
"""

from __future__ import annotations

import json
import re
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from dreamkit_apps.jobs.gallery import RunFolders

from dreamkit.checks import nearest_first, require_choice, require_integer, require_number
from dreamkit.errors import ConfigError
from dreamkit.files import plain
from dreamkit.prompts import clean_prompt

PRESETS = {
    "draft": "a first look, with the fewest steps",
    "standard": "twice the steps and half as many views again",
    "high": "six times the steps, twice the views, room for detail",
}
"""Quality against time: name -> one line."""
SCENES = {
    "gaussians": "coloured blobs: fast, and what splat viewers show",
    "nerf": "a field of density and colour: soft shapes, a mesh is cut from it",
    "sdf": "a field of signed distance: clean closed surfaces",
    "mesh": "triangles with a texture: what games and printers take",
    "latent-nerf": "a field of the teacher's latents: for large latent teachers",
}
"""What an asset is made of while it is optimised: name -> one line."""
EMBEDDED = "toyworld"
MODES = {
    "text": "the teacher hears the same prompt for every view",
    "views": "the teacher hears the name of the view as well",
    "camera": "the teacher knows the camera's pose too",
}
MAX_REQUEST = 64 * 1024  # bytes of a whole request
_SEED_LIMIT = 2**63 - 1
_MAX_OPTIONS = 20
# Names and plain YAML values; no anchors and aliases, which make much of little.
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,60}=[A-Za-z0-9_.,+\-\[\]{}: ]{1,200}")
_FREE_OPTIONS = ("perp_neg", "view_prompts", "camera_conditioning", "resolution_share")
"""Options of a run, besides those of its objective, that cost nothing and name no file."""
_KINDS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    int | None: (int, type(None)),
    float | None: (int, float, type(None)),
    str | None: (str, type(None)),
    tuple[str, ...]: (list, tuple),
}


@dataclass(frozen=True)
class Rules:
    """What a job may ask for.

    Args:
        runs: the folders of the runs, where the source of an edit must be.
        teachers: name -> what `--teacher` is given for it; the embedded one is always there.
        any_teacher: whether a teacher may be any folder or hub id: for the user at their own command line.
        max_steps: optimisation steps of a run, all stages together as far as they are named.
        max_views: cameras in each step.
        max_resolution: side of a training view, pixels.
    """

    runs: RunFolders
    teachers: Mapping[str, str] = field(default_factory=dict)
    any_teacher: bool = False
    max_steps: int = 20_000
    max_views: int = 64
    max_resolution: int = 512

    def teacher(self, name: str) -> str:
        """What `--teacher` is given for a name.

        Raises:
            ConfigError: it is none that may be used.
        """
        if name == EMBEDDED:
            return name
        if self.any_teacher:
            path = Path(name).expanduser()
            return str(path.absolute()) if path.exists() else name
        require_choice("The teacher", name, (EMBEDDED, *self.teachers))
        return self.teachers[name]

    def teacher_name(self, argument: str) -> str:
        """The name that users see for what `--teacher` is given: never a path of the server."""
        named = {value: name for name, value in self.teachers.items()}
        return named.get(argument, argument if argument == EMBEDDED else Path(argument).name)


@dataclass(frozen=True)
class JobSettings(ABC):
    """What all kinds of jobs are told; `None` leaves the preset's value."""

    kind: ClassVar[str]

    prompt: str
    """What to make, in words."""
    preset: str = "draft"
    """draft, standard or high."""
    teacher: str = EMBEDDED
    """The diffusion model; once checked, what `--teacher` is given."""
    steps: int | None = None
    """Optimisation steps."""
    views: int | None = None
    """Cameras in each step."""
    seed: int = 0
    """Seed of everything random; a comparison has `seeds` instead."""
    options: tuple[str, ...] = ()
    """NAME=VALUE options of the objective."""

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        content: dict[str, Any] = plain(self)
        return content

    def checked(self, rules: Rules) -> Self:
        """The settings in one form: prompts cleaned, the teacher looked up, everything checked.

        Raises:
            DreamkitError: a value out of range, unknown or not allowed.
        """
        require_choice("The preset", self.preset, PRESETS)
        require_integer("steps", self.steps, 1, rules.max_steps)
        require_integer("views", self.views, 1, rules.max_views)
        require_integer("seed", self.seed, 0, _SEED_LIMIT)
        return replace(self, prompt=clean_prompt(self.prompt), teacher=rules.teacher(self.teacher))

    @abstractmethod
    def words(self, rules: Rules) -> list[str]:
        """The command with its arguments, without `dreamkit`, output folder and device. Prompts stand behind `--`."""

    def as_command(self, rules: Rules) -> str:
        """The same job for a shell, to copy."""
        return shlex.join(["dreamkit", *self.words(rules)])

    def flags(self, *names: str) -> list[str]:
        """`--name=value` for each named field that isn't its default."""
        default = {item.name: item.default for item in fields(self)}
        return [
            f"--{name.replace('_', '-')}={getattr(self, name)}"
            for name in names
            if getattr(self, name) != default[name]
        ] + [f"--option={option}" for option in self.options]


@dataclass(frozen=True)
class GenerateSettings(JobSettings):
    """A sentence in, a 3D asset out."""

    kind: ClassVar[str] = "generate"

    objective: str = "sds"
    """How the teacher's opinion becomes a gradient."""
    scene: str = "gaussians"
    """What the asset is made of while it is optimised."""
    stages: str = ""
    """Several in a row, SCENE:OBJECTIVE or SCENE:OBJECTIVE:STEPS, separated by commas; replaces scene and objective."""
    negative: str = ""
    """What to stay away from, in words."""
    guidance: float | None = None
    """Classifier-free guidance, >= 0; 1 is no guidance."""
    resolution: int | None = None
    """Side of the training views, pixels."""

    def checked(self, rules: Rules) -> Self:
        """See `JobSettings.checked`; then what `dreamkit generate` would refuse before it loads its teacher."""
        settings = super().checked(rules)
        _require_objective(self.objective)
        require_choice("The scene", self.scene, SCENES)
        require_number("guidance", self.guidance, 0, 1000)
        require_integer("resolution", self.resolution, 16, rules.max_resolution)
        settings = replace(settings, negative=clean_prompt(self.negative, allow_empty=True))
        from dreamkit.training.generate import GenerateOptions, settings_for
        from dreamkit.training.stages import parse_stages

        methods = [method for _, method, _ in parse_stages(self.stages)] if self.stages else [self.objective]
        _require_options(self.options, methods)
        names = ("preset", "objective", "scene", "stages", "negative", "guidance", "steps", "views", "resolution")
        chosen = {name: getattr(settings, name) for name in (*names, "prompt", "teacher", "seed", "options")}
        total = settings_for(GenerateOptions(**chosen)).total_steps
        require_integer("steps (of all stages)", total, 1, rules.max_steps)
        return settings

    def words(self, rules: Rules) -> list[str]:
        """See `JobSettings.words`."""
        names = ("preset", "objective", "scene", "stages", "teacher", "negative", "guidance", "steps", "views")
        return ["generate", *self.flags(*names, "resolution", "seed"), "--", self.prompt]


@dataclass(frozen=True)
class EditSettings(JobSettings):
    """A finished run, changed to another prompt."""

    kind: ClassVar[str] = "edit"

    source: str = ""
    """The id of the run to change."""
    source_prompt: str | None = None
    """What it is now, in words; the run's own prompt by default."""
    region: str = ""
    """Where it may change: box:X0,Y0,Z0,X1,Y1,Z1 or ball:X,Y,Z,R; everywhere if empty."""
    shape_weight: float | None = None
    """How strongly silhouettes and depths are held, >= 0."""
    objective: str = "dds"
    """How the teacher's opinion becomes a gradient."""
    guidance: float | None = None
    """Classifier-free guidance, >= 0; 1 is no guidance."""
    resolution: int | None = None
    """Side of the training views, pixels."""

    def checked(self, rules: Rules) -> Self:
        """See `JobSettings.checked`; the source must be a run of this server's."""
        settings = super().checked(rules)
        _require_objective(self.objective)
        require_number("guidance", self.guidance, 0, 1000)
        require_number("shape_weight", self.shape_weight, 0, 1000)
        require_integer("resolution", self.resolution, 16, rules.max_resolution)
        rules.runs.folder(self.source)
        _require_options(self.options, [self.objective])
        if self.region:
            # The command also takes FILE@AZIMUTH,ELEVATION, which would read any picture of the server.
            if not re.fullmatch(r"(box|ball):[0-9eE+\-., ]{1,200}", self.region):
                raise ConfigError(f"The region {self.region[:80]!r} is not known.", "Use box:... or ball:...")
            from dreamkit.scenes.regions import parse_region

            parse_region(self.region)
        if self.source_prompt is None:
            return settings
        return replace(settings, source_prompt=clean_prompt(self.source_prompt, allow_empty=True))

    def words(self, rules: Rules) -> list[str]:
        """See `JobSettings.words`. The teacher is the run's own unless another was asked for."""
        return self._words(rules.runs.folder(self.source))

    def as_command(self, rules: Rules) -> str:
        """The same edit for a shell in the folder that holds the runs' folder: where that lies is the server's."""
        path = Path(rules.runs.root.name) / rules.runs.folder(self.source).relative_to(rules.runs.root)
        return shlex.join(["dreamkit", *self._words(path)])

    def _words(self, source: Path) -> list[str]:
        names = ("preset", "objective", "teacher", "source_prompt", "region", "shape_weight", "guidance")
        return ["edit", *self.flags(*names, "steps", "views", "resolution", "seed"), "--", str(source), self.prompt]


@dataclass(frozen=True)
class CompareSettings(JobSettings):
    """Objectives side by side on one prompt, with a report."""

    kind: ClassVar[str] = "compare"

    objectives: tuple[str, ...] = ()
    """Names of objectives, 1 to 16."""
    mode: str = "camera"
    """What the teacher is told of the view: text, views or camera."""
    seeds: int = 1
    """Runs of each objective, 1 to 8."""

    def checked(self, rules: Rules) -> Self:
        """See `JobSettings.checked`."""
        settings = super().checked(rules)
        require_integer("The number of objectives", len(self.objectives), 1, 16)
        require_choice("The mode", self.mode, MODES)
        require_integer("seeds", self.seeds, 1, 8)
        if settings.prompt.startswith("#"):  # in a file of prompts that is a comment
            raise ConfigError(f"The prompt {settings.prompt[:80]!r} begins with #.", "Begin it with a word.")
        for name in self.objectives:
            _require_objective(name)
            _require_options(self.options, [name])
        return replace(settings, objectives=tuple(dict.fromkeys(self.objectives)))

    def words(self, rules: Rules) -> list[str]:
        """See `JobSettings.words`. The prompt is in a file, which `commands.Commands` writes."""
        flags = self.flags("preset", "teacher", "steps", "views", "seeds")
        return ["compare", f"--objectives={','.join(self.objectives)}", f"--modes={self.mode}", *flags]

    def as_command(self, rules: Rules) -> str:
        """The same comparison for a shell, the prompt through a pipe: no file is left behind."""
        words = shlex.join(["dreamkit", *self.words(rules)])
        return f"{words} --prompts <(printf '%s\\n' {shlex.quote(self.prompt)})"


_OF_KIND: dict[str, type[JobSettings]] = {kind.kind: kind for kind in (GenerateSettings, EditSettings, CompareSettings)}
KINDS: tuple[str, ...] = tuple(_OF_KIND)


def read_settings(kind: str, content: Mapping[str, Any], rules: Rules) -> JobSettings:
    """Settings that somebody sent, checked.

    Args:
        kind: one of `KINDS`.
        content: field -> value, plain.
        rules: what may be asked for.

    Raises:
        DreamkitError: an unknown kind or field, a value of the wrong kind, out of range or not allowed.
    """
    settings = stored_settings(kind, content)
    if len(json.dumps(settings.plain())) > MAX_REQUEST:
        raise ConfigError(f"The settings have more than {MAX_REQUEST // 1024} KiB.", "Say it in fewer words.")
    return settings.checked(rules)


def stored_settings(kind: str, content: Mapping[str, Any]) -> JobSettings:
    """Settings from the queue, which were checked when they were submitted.

    Raises:
        ConfigError: an unknown kind or field, or a value of the wrong kind.
    """
    require_choice("The kind of job", kind, KINDS)
    cls = _OF_KIND[kind]
    known = [item.name for item in fields(cls)]
    for name in content:
        if name not in known:
            near = nearest_first(str(name)[:100], known)
            raise ConfigError(
                f"A job of kind {kind} has no setting {str(name)[:100]!r}.", f"It has: {', '.join(near)}."
            )
    if "prompt" not in content:
        raise ConfigError("The prompt is missing.", 'Say what to make, for example "a red mug".')
    hints = get_type_hints(cls)
    return cls(**{name: _typed(name, value, hints[name]) for name, value in content.items()})


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A value of a field's kind; lists of text become tuples."""
    wrong = ConfigError(f"{name} is {repr(value)[:100]}.", f"It must be {_WORDS.get(hint, 'of another kind')}.")
    if isinstance(value, bool) or not isinstance(value, _KINDS[hint]):
        raise wrong
    given: Any = value  # whose kind the type checker would narrow to object
    if hint == tuple[str, ...]:
        if not all(isinstance(item, str) for item in given):
            raise wrong
        return tuple(given)
    if hint == float | None and value is not None:
        try:
            return float(given)
        except OverflowError:
            raise wrong from None
    return value


_WORDS: dict[Any, str] = {
    str: "text",
    str | None: "text",
    int: "a whole number",
    int | None: "a whole number",
    float | None: "a number",
    tuple[str, ...]: "a list of texts",
}


def _require_objective(name: str) -> None:
    from dreamkit.objectives import objective_names

    require_choice("The objective", name, objective_names())


def _require_options(options: Sequence[str], objectives: Sequence[str]) -> None:
    """Check that options are those of one of the objectives, of a plain form, and none but these."""
    require_integer("The number of options", len(options), 0, _MAX_OPTIONS)
    from dreamkit.objectives import objective_class
    from dreamkit.training.settings import field_name

    known = {item.name for name in objectives for item in fields(objective_class(name))}  # type: ignore[arg-type]
    for option in options:
        if not _OPTION.fullmatch(option):
            raise ConfigError(f"The option {option[:80]!r} is not of the form NAME=VALUE.", "For example: guidance=7.5")
        name = field_name(option.partition("=")[0].split(".")[0])
        if name not in known and name not in _FREE_OPTIONS:
            near = nearest_first(name, [item.rstrip("_") for item in (*known, *_FREE_OPTIONS)])
            raise ConfigError(f"There is no option {name[:60]!r} here.", f"There are: {', '.join(near)}.")
