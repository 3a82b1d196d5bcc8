"""DreamKit's objectives as methods of nerfstudio (arXiv 2302.04264): `ns-train dreamkit-esd --prompt "a red mug"`.

Nerfstudio's Trainer runs the loop, with its optimisers, checkpoints, logs and viewer; scene, cameras, teacher,
objective and critic are DreamKit's, with the settings of `dreamkit generate`. A run makes `--max-num-iterations` steps,
over which all schedules stretch; resumed with `--load-dir`, it makes as many more. Every objective of this package has
a method `dreamkit-NAME` (entry points `nerfstudio.method_configs`); one of another package gets it through the
environment: `NERFSTUDIO_METHOD_CONFIGS="dreamkit-mine=dreamkit.nerfstudio:dreamkit_mine"`.

World: nerfstudio's has z up, DreamKit's y up: (x, y, z) there is (x, z, -y) here. Camera axes are the same (OpenGL).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.diffusion.loading import load_teacher
from dreamkit.errors import BackendError, ConfigError, PromptError, SceneError
from dreamkit.objectives import objective_class, objective_names
from dreamkit.prompts import check_prompt, slug
from dreamkit.scenes import conventions
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.rendering import Rendering, check_backend
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.training.assets import export_format
from dreamkit.training.generate import GenerateOptions, reference_picture, settings_for
from dreamkit.training.presets import preset
from dreamkit.training.scene import Draw, SceneTrainer
from dreamkit.training.settings import EMBEDDED, SceneSettings


class NerfstudioMissing(BackendError, ImportError):
    """Nerfstudio can't be imported."""


try:
    from nerfstudio.cameras.cameras import Cameras, CameraType
    from nerfstudio.configs.base_config import MachineConfig, ViewerConfig
    from nerfstudio.data.datamanagers.base_datamanager import DataManager, DataManagerConfig
    from nerfstudio.data.datamanagers.random_cameras_datamanager import TrivialDataset
    from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader
    from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
    from nerfstudio.engine.optimizers import OptimizerConfig, Optimizers
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.models.base_model import Model, ModelConfig
    from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
    from nerfstudio.plugins.types import MethodSpecification
    from nerfstudio.utils.rich_utils import CONSOLE
except (ImportError, RuntimeError) as error:  # torchvision without its operators raises a RuntimeError
    raise NerfstudioMissing(
        f"Nerfstudio can't be imported: {error}.",
        "`bash .ci/nerfstudio` in DreamKit's repository makes an environment in which it works; elsewhere: "
        "pip install --no-deps nerfstudio==1.1.5, then pip install 'dreamkit[nerfstudio]'.",
    ) from error

_PREFIX = "dreamkit-"


def to_nerfstudio(cameras: Camera) -> Cameras:
    """DreamKit's cameras as nerfstudio's, in its world: the same rays, turned."""
    matrices, _ = conventions.to_nerfstudio(cameras)
    focal = cameras.focal[:, None]
    return Cameras(
        *(matrices, focal, focal, 0.5 * cameras.width, 0.5 * cameras.height, cameras.width, cameras.height),
        camera_type=CameraType.PERSPECTIVE,
    )


def from_nerfstudio(cameras: Cameras) -> Camera:
    """Nerfstudio's cameras ([B], or one) as DreamKit's, in its world.

    Raises:
        SceneError: they are no pinholes with square pixels and a centre in the middle, or differ in size.
    """
    cameras = cameras.reshape((-1,))
    width, height = (int(side.flatten()[0]) for side in (cameras.width, cameras.height))
    pinhole = (
        bool((cameras.camera_type == CameraType.PERSPECTIVE.value).all())
        and (cameras.distortion_params is None or not bool(cameras.distortion_params.any()))
        and bool((cameras.width == width).all() and (cameras.height == height).all())
        and torch.allclose(cameras.fx, cameras.fy, rtol=1e-3)
        and torch.allclose(cameras.cx, cameras.cx.new_tensor(0.5 * width), atol=1.0)
        and torch.allclose(cameras.cy, cameras.cy.new_tensor(0.5 * height), atol=1.0)
    )
    if not pinhole:
        raise SceneError(
            "DreamKit's scenes are seen by pinhole cameras with square pixels and the centre in the middle only.",
            "Choose a perspective camera.",
        )
    lenses = torch.eye(3).to(cameras.fy).repeat(len(cameras.fy), 1, 1)
    lenses[:, 0, 0] = lenses[:, 1, 1] = cameras.fy[:, 0]
    lenses[:, 0, 2], lenses[:, 1, 2] = 0.5 * width, 0.5 * height
    return conventions.from_nerfstudio(cameras.camera_to_worlds, lenses, width, height)


@dataclass
class DreamkitDataManagerConfig(DataManagerConfig):
    """Cameras to look from: there are no data."""

    _target: type = field(default_factory=lambda: DreamkitDataManager)
    eval_views: int = 8
    """Views of the turntable that evaluation goes through."""
    eval_resolution: int = 128
    """Their side, pixels."""


class DreamkitDataManager(DataManager):
    """No data: training cameras are drawn by the objective's loop, evaluation looks round the object.

    Args:
        config: how many views.
        device: where they are wanted.
    """

    def __init__(self, config: DreamkitDataManagerConfig, device: torch.device | str = "cpu", **_: Any) -> None:
        self.config = config
        self.test_mode = "inference"  # nothing to set up
        size = config.eval_resolution
        cameras = to_nerfstudio(turntable(config.eval_views, height=size, width=size)).to(device)
        self.train_dataset = self.eval_dataset = TrivialDataset(cameras)
        super().__init__()
        self.eval_dataloader = FixedIndicesEvalDataloader(self.eval_dataset, device=device)
        self.fixed_indices_eval_dataloader = self.eval_dataloader

    def next_eval_image(self, step: int) -> tuple[Cameras, dict[str, Any]]:
        """The next view of the turntable."""
        view = self.eval_count % len(self.eval_dataset)
        self.eval_count += 1
        camera, batch = self.eval_dataloader.get_camera(view)
        return camera, batch

    def next_train(self, step: int) -> tuple[Any, dict[str, Any]]:
        """Not asked for.

        Raises:
            SceneError: always.
        """
        raise SceneError("There are no data to train on.", "The pipeline draws its own cameras.")

    next_eval = next_train

    def get_train_rays_per_batch(self) -> int:
        """Pixels of an evaluation view, for nerfstudio's statistics."""
        return int(self.config.eval_resolution**2)

    get_eval_rays_per_batch = get_train_rays_per_batch

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Nothing to learn."""
        return {}


@dataclass
class DreamkitModelConfig(ModelConfig):
    """What `dreamkit generate` takes."""

    _target: type = field(default_factory=lambda: DreamkitModel)
    enable_collider: bool = False
    """Not used."""
    objective: str = "sds"
    """Registered name of the objective."""
    negative: str = ""
    """What to stay away from."""
    preset: Literal["draft", "standard", "high"] = "draft"
    """Settings by name; the length of the run is --max-num-iterations in any case."""
    scene: Literal["nerf", "sdf", "gaussians", "mesh"] = "nerf"
    """Kind of scene."""
    teacher: str = EMBEDDED
    """The embedded teacher, a diffusers folder or a hub id."""
    guidance: float | None = None
    """Guidance scale; the preset's by default."""
    views: int | None = None
    """Cameras a step; the preset's by default."""
    resolution: int | None = None
    """Side of the training views; the preset's by default."""
    seed: int = 0
    """Seed of everything random."""
    options: tuple[str, ...] = ()
    """Further settings as NAME=VALUE, e.g. guidance=5 critic.rank=16 nerf.background=learned."""
    export: tuple[str, ...] = ("ply", "glb")
    """Formats that the asset is written in at the end: ply, splat, glb, obj."""


class DreamkitModel(Model):
    """A scene with what teaches it, seen through nerfstudio's eyes.

    `loop` is that of `dreamkit generate`, its steps taken in halves: nerfstudio's Trainer backpropagates and optimises
    in between. Its state (scene, upkeep, critic, step) travels in the checkpoint as this module's extra state; the
    optimisers' state is nerfstudio's own.
    """

    config: DreamkitModelConfig
    loop: SceneTrainer

    def populate_modules(self) -> None:
        """Load the teacher and make the scene.

        Raises:
            DreamkitError: anything the user can mend.
        """
        super().populate_modules()
        self.loop = _loop(self.config, self.kwargs.get("device", "cpu"))
        self._draw: Draw | None = None
        self._learned: dict[str, float] = {}

    @property
    def scene(self) -> TrainableScene:
        """What is made."""
        return self.loop.scene

    def train_step(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """Draw cameras, render, ask the objective: outputs, losses (whose gradient on the views is its), numbers."""
        self._draw = draw = self.loop.draw()
        losses = {"distillation": draw.losses["loss"]}
        losses |= {name: value for name, value in draw.losses.items() if name != "loss"}
        return {"rgb": draw.rendering.image}, losses, {**draw.gradient.diagnostics, **self._learned}

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The scene's parameters by what they are."""
        parameters = self.scene.parameters_dict()
        return {group: [parameters[name] for name in names] for group, names in self._groups().items()}

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self.scene.parameters_dict():
            groups.setdefault(_group(name), []).append(name)
        return groups

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        """What happens round an iteration: learning rates before, critic and upkeep after, and files at the end."""
        where, optimizers, trainer = TrainingCallbackLocation, attributes.optimizers, attributes.trainer
        assert optimizers is not None  # nerfstudio's Trainer gives both
        assert trainer is not None
        steps = self.loop.step_index + trainer.config.max_num_iterations
        self.loop.settings = replace(self.loop.settings, steps=steps)
        self._adopt(optimizers)

        usual = method(self.config.objective).config.optimizers

        def set_rates(step: int) -> None:
            self._set_rates(optimizers, usual)

        def conclude(step: int) -> None:
            assert self._draw is not None  # made in this iteration
            self._learned = {k: v for k, v in self.loop.conclude(self._draw).items() if k not in self._draw.losses}
            self._draw = None

        def export(step: int) -> None:
            self.export(trainer.base_dir / "exports")

        return [
            TrainingCallback([where.BEFORE_TRAIN_ITERATION], set_rates),
            TrainingCallback([where.AFTER_TRAIN_ITERATION], conclude),
            TrainingCallback([where.AFTER_TRAIN], export),
        ]

    def _adopt(self, optimizers: Optimizers) -> None:
        """Point nerfstudio's optimisers at the scene's parameters, which a checkpoint may have replaced.

        Gaussians come and go in the optimisers' moments too: density control finds them in the scene.
        """
        parameters = self.scene.parameters_dict()
        for group, names in self._groups().items():
            optimizer = optimizers.optimizers[group]
            own = [parameters[name] for name in names]
            for before, now in zip(optimizer.param_groups[0]["params"], own, strict=True):
                if before is not now and before in optimizer.state:
                    optimizer.state[now] = optimizer.state.pop(before)
            optimizer.param_groups[0]["params"] = own
        single = isinstance(self.scene, GaussianScene)
        self.scene.optimizers = {name: optimizers.optimizers[_group(name)] for name in parameters} if single else {}

    def _set_rates(self, optimizers: Optimizers, usual: dict[str, Any]) -> None:
        """The scene's learning rates now, times what the user made of the usual ones on the command line."""
        progress, total = self.loop.step_index / self.loop.settings.steps, self.loop.settings.steps
        for group, names in self._groups().items():
            factor = optimizers.config[group]["optimizer"].lr / usual[group]["optimizer"].lr
            rate = factor * self.scene.rate(names[0]).at(progress, total)
            optimizers.optimizers[group].param_groups[0]["lr"] = rate

    def export(self, folder: Path) -> list[Path]:
        """Write the asset; a scene too thin for a surface keeps what can be written, with a warning."""
        files: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        for kind in self.config.export:
            try:
                files.append(export_format(self.scene.to("cpu"), folder, kind)[0])
                CONSOLE.print(f"Wrote {files[-1]}")
            except SceneError as error:
                CONSOLE.print(f"[yellow]No {kind} was written: {error}")
        return files

    def get_extra_state(self) -> dict[str, Tensor]:
        """What nerfstudio's checkpoint keeps of the loop."""
        state = {name: value for name, value in self.loop.state().items() if not name.startswith("optimizer/")}
        return state | {"step": torch.tensor(self.loop.step_index)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: it is of another kind of scene.
        """
        self.loop.load_state({name: value for name, value in state.items() if name != "step"}, int(state["step"]))

    def get_outputs(self, ray_bundle: Any) -> dict[str, Tensor]:
        """The scene seen by one of nerfstudio's cameras: rgb, accumulation, depth along the ray, normals, [H, W, C].

        Raises:
            SceneError: rays without a camera, or a camera that is no pinhole.
        """
        if not isinstance(ray_bundle, Cameras):
            raise SceneError("DreamKit's scenes are rendered by the camera, not by the ray.", "Give Cameras.")
        camera = from_nerfstudio(ray_bundle).to(self.scene.device)
        with torch.no_grad():
            return _outputs(self.scene.render(camera[:1]), camera[:1])

    def get_outputs_for_camera(self, camera: Cameras, obb_box: Any = None) -> dict[str, Tensor]:
        """The scene seen by a camera; nothing is cropped."""
        return self.get_outputs(camera)

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """Not asked for: the pipeline asks for `train_step`."""
        return {}

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """A view of the turntable; without ground truth the only figure is how much of it is covered."""
        images = {"img": outputs["rgb"], "accumulation": outputs["accumulation"].expand_as(outputs["rgb"])}
        return {"coverage": float(outputs["accumulation"].mean())}, images | {"normals": outputs["normals"]}


@dataclass
class DreamkitPipelineConfig(VanillaPipelineConfig):
    """Score distillation."""

    _target: type = field(default_factory=lambda: DreamkitPipeline)
    datamanager: DreamkitDataManagerConfig = field(default_factory=DreamkitDataManagerConfig)
    """Where evaluation looks from."""
    model: DreamkitModelConfig = field(default_factory=DreamkitModelConfig)
    """Scene, teacher and objective."""


class DreamkitPipeline(VanillaPipeline):
    """Score distillation through nerfstudio's Trainer, in one process."""

    def __init__(self, config: DreamkitPipelineConfig, device: str, *arguments: Any, **named: Any) -> None:
        if named.get("world_size", 1) > 1:
            raise ConfigError("Score distillation runs in one process.", "Use --machine.num-devices 1.")
        super().__init__(config, device, *arguments, **named)

    def get_train_loss_dict(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """The first half of a step."""
        result: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]] = self.model.train_step()
        return result


@dataclass
class DreamkitTrainerConfig(TrainerConfig):
    """Nerfstudio's trainer; an experiment is called after its prompt."""

    def set_experiment_name(self) -> None:
        """The prompt as a name, unless there is one."""
        prompt = self.prompt or self.pipeline.model.prompt
        if prompt and not self.experiment_name:
            self.experiment_name: str | None = slug(prompt)
        super().set_experiment_name()


@dataclass
class SceneAdamConfig(OptimizerConfig):
    """Adam as DreamKit's scenes want it."""

    _target: type = torch.optim.Adam
    lr: float = 1e-2
    """Learning rate at the start; the scene's schedule takes it from there."""
    eps: float = 1e-15
    """Adam's term against division by zero."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates."""


def _rates(settings: SceneSettings) -> dict[str, Schedule]:
    """Learning rate of every group that a scene of any kind has."""
    nerf, gaussians, mesh = settings.nerf, settings.gaussians, settings.mesh
    return {
        "table": nerf.table_rate,
        "network": nerf.network_rate,
        "surroundings": nerf.surroundings_rate,
        "means": gaussians.means_rate,
        "log_scales": gaussians.scales_rate,
        "quaternions": gaussians.quaternions_rate,
        "opacity_logits": gaussians.opacities_rate,
        "rgb_logits": gaussians.colors_rate,
        "sh_base": gaussians.colors_rate,
        "sh_rest": gaussians.sh_rest_rate,
        "distances": mesh.distances_rate,
        "offsets": mesh.offsets_rate,
    }


_GROUPS = frozenset(_rates(preset("draft")))


def _group(name: str) -> str:
    """The group of a parameter: its own name for Gaussians and surfaces, what it is a part of for networks."""
    if name in _GROUPS:
        return name
    if name.startswith("surroundings"):
        return "surroundings"
    return "table" if name.endswith("table") else "network"


def _loop(config: DreamkitModelConfig, device: torch.device | str) -> SceneTrainer:
    """The loop that the configuration asks for.

    Raises:
        DreamkitError: anything the user can mend.
    """
    if not config.prompt:
        raise PromptError("There is no prompt.", 'Give one: ns-train dreamkit-sds --prompt "a red mug".')
    own = {item.name for item in fields(GenerateOptions)} & {item.name for item in fields(config)}
    options = GenerateOptions(**{name: getattr(config, name) for name in own}, device=str(device))
    settings_for(options)  # says what is wrong before a teacher is loaded
    check_backend()
    teacher = load_teacher(config.teacher, str(device))
    settings = settings_for(options, teacher)
    if settings.particles > 1:
        raise ConfigError(f"{settings.particles} particles are too many for one pipeline.", "Use particles=1.")
    for warning in check_prompt(teacher, settings.prompt):
        CONSOLE.print(f"[yellow]{warning}")
    return SceneTrainer(settings, teacher, reference_picture(settings))


def _outputs(rendering: Rendering, camera: Camera) -> dict[str, Tensor]:
    """Nerfstudio's pictures of one view, [H, W, C]."""
    alpha = rendering.alpha[0].permute(1, 2, 0)
    along = torch.einsum("hwc,c->hw", camera.rays()[1][0], camera.forward[0])[..., None]
    depth = rendering.depth[0].permute(1, 2, 0) / (alpha.clamp_min(1e-6) * along)
    normal = conventions.points_to_nerfstudio(rendering.normal[0].permute(1, 2, 0))
    return {
        "rgb": rendering.image[0].permute(1, 2, 0).clamp(0, 1),
        "accumulation": alpha,
        "depth": depth,
        "normals": 0.5 * (normal + 1),
    }


def method(objective: str) -> MethodSpecification:
    """An objective as a method of nerfstudio.

    Args:
        objective: registered name.

    Raises:
        ConfigError: there is none.
    """
    text = objective_class(objective).__doc__ or objective
    settings = preset("draft", objective, scene="nerf")
    config = DreamkitTrainerConfig(
        method_name=_PREFIX + objective,
        max_num_iterations=settings.steps,
        steps_per_save=settings.checkpoint_every,
        steps_per_eval_batch=0,
        steps_per_eval_image=50,
        steps_per_eval_all_images=0,
        machine=MachineConfig(device_type="cuda" if torch.cuda.is_available() else "cpu"),
        pipeline=DreamkitPipelineConfig(model=DreamkitModelConfig(objective=objective)),
        optimizers={
            group: {"optimizer": SceneAdamConfig(lr=rate.start_value), "scheduler": None}
            for group, rate in _rates(settings).items()
        },
        viewer=ViewerConfig(websocket_host="127.0.0.1"),  # nerfstudio itself listens to everybody
        vis="viewer",
    )
    return MethodSpecification(config, f"DreamKit: {text.splitlines()[0]}")


def __getattr__(name: str) -> MethodSpecification:
    """`dreamkit_NAME`: the method of an objective, which entry points refer to."""
    objective = name.removeprefix("dreamkit_")
    if objective == name or objective not in objective_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return method(objective)
