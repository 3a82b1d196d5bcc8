"""Everything that decides a text-to-3D run, as one frozen dataclass that a run folder keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from keyword import iskeyword
from typing import Any, Literal, Protocol, get_args, get_type_hints

from dreamkit.config import Schedule
from dreamkit.diffusion.critic import CriticConfig
from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import CameraSampler
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.latent_refinement import RefinementConfig
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.training.anchor_config import AnchorConfig
from dreamkit.training.edit_config import EditConfig

EMBEDDED = "toyworld"
SceneKind = Literal["gaussians", "nerf", "sdf", "mesh", "latent-nerf"]
SCENES: tuple[SceneKind, ...] = get_args(SceneKind)
Precision = Literal["auto", "float32", "bfloat16", "float16"]


class SceneChoice(Protocol):
    """What decides how a scene starts and learns, of whatever kind of run."""

    @property
    def scene(self) -> SceneKind:
        """Kind of scene."""
        ...

    @property
    def gaussians(self) -> GaussianConfig:
        """Of Gaussians."""
        ...

    @property
    def nerf(self) -> NerfConfig:
        """Of a field."""
        ...

    @property
    def mesh(self) -> MeshSceneConfig:
        """Of a mesh."""
        ...

    @property
    def refinement(self) -> RefinementConfig:
        """Of latents."""
        ...

    @property
    def teacher(self) -> str:
        """Whose latents a latent scene is made of."""
        ...

    @property
    def device(self) -> str:
        """auto, cpu or cuda."""
        ...

    @property
    def density(self) -> DensityConfig:
        """When Gaussians come and go."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        ...


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
    scene: SceneKind = "gaussians"
    """Kind of scene: Gaussians, a NeRF of density, one of signed distance (sdf), a mesh, or a NeRF of the teacher's
    latents (latent-nerf)."""
    gaussians: GaussianConfig = field(default_factory=GaussianConfig)
    """Start, learning rates and regularisers of a Gaussian scene."""
    nerf: NerfConfig = field(default_factory=NerfConfig)
    """Start, sampling, light, learning rates and penalties of a NeRF."""
    mesh: MeshSceneConfig = field(default_factory=MeshSceneConfig)
    """Start, light, learning rates and penalties of a mesh."""
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    """Size and learning rate of what corrects the latents of a latent-nerf."""
    density: DensityConfig = field(default_factory=DensityConfig)
    """When Gaussians are added and removed."""
    cameras: CameraSampler = field(default_factory=CameraSampler)
    """Where training cameras stand."""
    steps: int = 300
    """Optimisation steps."""
    views: int = 4
    """Cameras a step."""
    resolution: int = 64
    """Side of the training views, pixels; those of a latent-nerf are as large as the teacher's latents."""
    resolution_share: Schedule = field(default=Schedule.constant(1.0))
    """Share of the resolution that views are rendered at along the run, above 0, at most 1."""
    view_prompts: bool = True
    """Whether the prompt says which side a camera looks at."""
    camera_conditioning: bool = True
    """Whether a teacher that can take a camera pose gets one."""
    perp_neg: bool = False
    """Whether prompts turn with the camera and other views push it away (Perp-Neg), instead of four view names."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    """How the critic of vsd and esd is made and trained."""
    particles: int = 1
    """Scenes that are optimised in turn and share a critic."""
    source_prompt: str = ""
    """What the scene shows before an edit (dds); nothing by default."""
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    """Pictures that the scene must agree with."""
    edit: EditConfig = field(default_factory=EditConfig)
    """What must stay as it was in the scene that the run starts from."""
    reference: str = ""
    """A picture that the result should resemble (csm), the path of an image file; none by default."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    preview_every: int = 0
    """Steps between pictures of the run for whoever watches it (`preview/` in its folder); 0 for none."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Precision = "auto"
    """What the teacher computes in: float32, bfloat16 (faster on processors that multiply in it), float16 (GPU), or
    auto: float32 on a CPU, half on a GPU."""

    then: "tuple[SceneSettings, ...]" = ()
    """Stages after this one, each complete in itself; each starts from the scene of the one before."""

    @property
    def stages(self) -> "tuple[SceneSettings, ...]":
        """This stage and those after it."""
        return (replace(self, then=()), *self.then) if self.then else (self,)

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return self.steps + sum(stage.steps for stage in self.then)

    def __post_init__(self) -> None:
        if self.then and (self.particles > 1 or any(stage.then or stage.particles > 1 for stage in self.then)):
            raise ConfigError("Stages of several particles can't follow each other.", "Use particles=1.")
        limits = {
            "steps": (1, 10**7),
            "views": (1, 1024),
            "resolution": (16, 2048),
            "particles": (1, 64),
            "checkpoint_every": (1, 10**7),
            "preview_every": (0, 10**7),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}.", f"Use a whole number from {low} to {high}.")
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"The precision {self.precision!r} is not known.", f"Known: {', '.join(get_args(Precision))}."
            )
        scene_kind(self.scene)
        object.__setattr__(self, "resolution_share", Schedule.parse(self.resolution_share))
        share = self.resolution_share
        if not (0 < share.start_value <= 1 and 0 < share.end_value <= 1):
            raise ConfigError(f"resolution_share is {share.data()}.", "Use values above 0, at most 1.")
        if self.scene == "latent-nerf" and self.anchors.pictures:
            raise ConfigError(
                "A latent scene can't be held to pictures while it is imagined.", "Fit it to them, then edit the fit."
            )
        kinds = [stage.scene for stage in self.stages]
        if any(now == "latent-nerf" != before for before, now in pairwise(kinds)):
            raise ConfigError("A stage 'latent-nerf' can start only from another of its kind.", "Put it first.")
        if self.scene in ("nerf", "sdf", "latent-nerf") and self.nerf.signed != (self.scene == "sdf"):
            raise ConfigError(
                f"A scene {self.scene!r} can't have the geometry {self.nerf.geometry!r}.",
                "nerf.geometry is density for a nerf or latent-nerf, volsdf or neus for an sdf.",
            )


def scene_kind(name: str) -> SceneKind:
    """A kind of scene by its name.

    Raises:
        ConfigError: there is none.
    """
    for kind in SCENES:
        if kind == name:
            return kind
    raise ConfigError(f"The scene {name!r} is not known.", f"Known: {', '.join(SCENES)}.")


def from_plain(kind: type, content: Mapping[str, Any]) -> Any:
    """A dataclass from the plain dicts and lists of a file; the inverse of `files.plain`.

    Raises:
        ConfigError: a field that the dataclass does not have, or lacks, or a value of the wrong kind.
    """
    hints = get_type_hints(kind)
    content = {field_name(name): value for name, value in content.items()}
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ConfigError(
            f"{kind.__name__} has no {', '.join(unknown)}.",
            f"It has: {', '.join(n.rstrip('_') for n in sorted(known))}.",
        )
    values: dict[str, Any] = {}
    for name, value in content.items():
        hint = hints[name]
        if hasattr(hint, "parse"):  # Schedule, TimestepSchedule: the forms that files and command lines use
            value = hint.parse(value)
        elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
            value = from_plain(hint, value)
        elif isinstance(value, list):
            inner = next(iter(get_args(hint)), None)
            nested = isinstance(inner, type) and is_dataclass(inner)
            value = tuple(from_plain(inner, item) for item in value) if nested else tuple(value)  # type: ignore[arg-type]
        if not _is_of(value, hint):
            raise ConfigError(f"{kind.__name__}.{name} is {value!r}.", f"It must be of the kind {hint.__name__}.")
        values[name] = value
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # a required field left out, or a tuple of another length
        raise ConfigError(f"These values don't make a {kind.__name__}: {error}.", "Check the configuration.") from error


def field_name(name: str) -> str:
    """The field for an option's name: itself, with an underscore behind the words that Python keeps (lambda)."""
    return f"{name}_" if iskeyword(name) else name


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a plain kind or dataclass; `True` for hints of any other form."""
    if isinstance(value, bool):
        return hint not in (int, float, str)
    if hint is float:
        return isinstance(value, int | float)
    return not (hint in (bool, int, str) or is_dataclass(hint)) or isinstance(value, hint)
