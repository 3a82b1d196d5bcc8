"""A scene from posed pictures: plain reconstruction, the measure of what a representation and its kernels can do."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.errors import CheckpointError, ConfigError, SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.density import DensityConfig
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.latent_nerf import LatentNerfScene, LatentSpace
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.rendering import Rendering
from dreamkit.scenes.trainable import Moment, TrainableScene
from dreamkit.training.fit_settings import FitSettings
from dreamkit.training.particles import Particle, seeded
from dreamkit.training.poses import PoseRefiner

_SSIM_SHARE = 0.2
_MSE_SCALE = 10.0
"""Brings the penalties' weights of text-to-3D, whose losses are sums over pixels, to pictures' means."""
_LEVELS = (0.0, 0.5, 1.0)  # gray behind the pictures that are encoded
_FEWEST_POINTS = 200  # of a cloud that is worth starting from
_REACH = 1.2  # from the origin; farther points are of what stands behind


@dataclass(frozen=True)
class FitOptions:
    """How a scene is fitted to pictures."""

    steps: int = 2000
    """Optimisation steps."""
    rays: int = 4096
    """Pixels a step of a NeRF; Gaussians take a whole picture."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name, low, high in (("steps", 1, 10**7), ("rays", 16, 2**20)):
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}.", f"Use a whole number from {low} to {high}.")


@dataclass(frozen=True)
class FitStep:
    """What one step did.

    Args:
        metrics: numbers for the log.
        image: [3, H, W] what was rendered, `None` where it was pixels from everywhere.
        target: always `None`: no teacher would rather see anything.
    """

    metrics: dict[str, float]
    image: Tensor | None
    target: None = None


class Difference(Protocol):
    """How much a scene differs from some of the pictures of a capture."""

    def __call__(self, scene: TrainableScene, cameras: Camera, moment: Moment) -> tuple[Tensor, Rendering | None]:
        """The loss, differentiable in the scene and the cameras' poses; and the rendering, if it was a whole view."""
        ...


class PictureDifference:
    """0.8 L1 + 0.2 (1 - SSIM) of one view, over a random background, as 3D Gaussian Splatting (arXiv 2308.04079).

    Args:
        capture: pictures with masks.
    """

    def __init__(self, capture: Capture) -> None:
        self.capture = capture

    def __call__(self, scene: TrainableScene, cameras: Camera, moment: Moment) -> tuple[Tensor, Rendering]:
        """The loss of a view drawn at random, and its rendering."""
        from dreamkit_kernels.ssim import ssim  # type: ignore[import-not-found]

        capture = self.capture
        view = int(torch.randint(len(cameras), (), generator=moment.generator))
        behind = torch.rand(1, 3, generator=moment.generator).to(capture.images)
        wanted = over(capture.images[view : view + 1], capture.alphas[view : view + 1], capture.background, behind)
        rendering = scene.render_training(cameras[view : view + 1], behind, moment)
        l1 = (rendering.image - wanted).abs().mean()
        return (1 - _SSIM_SHARE) * l1 + _SSIM_SHARE * (1 - ssim(rendering.image, wanted).mean()), rendering


class RayDifference:
    """Mean squared error of random pixels of all views, each over a random background.

    Args:
        capture: pictures with masks.
        rays: pixels a call.
    """

    def __init__(self, capture: Capture, rays: int) -> None:
        self.rays = rays
        self.background = capture.background
        self.colors = capture.images.permute(0, 2, 3, 1).reshape(-1, 3)
        self.alphas = capture.alphas.reshape(-1, 1)
        # In the cameras' own axes, so that poses can change.
        here = torch.eye(4, device=self.colors.device).expand(len(capture.cameras), 4, 4)
        self.directions = replace(capture.cameras, camera_to_world=here).rays()[1].reshape(-1, 3)
        self.pixels = capture.cameras.height * capture.cameras.width

    def __call__(self, scene: TrainableScene, cameras: Camera, moment: Moment) -> tuple[Tensor, None]:
        """The loss with the scene's penalties."""
        assert isinstance(scene, NerfScene)
        chosen = torch.randint(len(self.colors), (self.rays,), generator=moment.generator).to(self.colors.device)
        behind = torch.rand(self.rays, 3, generator=moment.generator).to(self.colors)
        wanted = self.colors[chosen] + (1 - self.alphas[chosen]) * (behind - self.background)
        poses = cameras.camera_to_world[chosen // self.pixels]
        directions = (poses[:, :3, :3] @ self.directions[chosen, :, None])[..., 0]
        seen, trace = scene.render_rays(poses[:, :3, 3], directions, behind, moment)
        terms = scene.trace_penalties(trace, moment)
        error = _MSE_SCALE * functional.mse_loss(seen, wanted)
        return torch.stack([error, *terms.values()]).sum(), None


class LatentDifference:
    """Mean squared error against encoded pictures, of the latents of rays and of the refined ones (ED-NeRF).

        L = 10 (mean |z - E(I)|^2 + mean |z + f(z) - E(I)|^2)

    The first term keeps the field itself right, so that the layer f has only to add what rays can't know.

    Args:
        capture: pictures with masks, made square by their background; each is encoded over three gray levels.
        rays: latents a call, in whole views: one at least.
    """

    def __init__(self, capture: Capture, rays: int) -> None:
        self.capture = squared(capture)
        self.rays = rays
        self._encoded: tuple[LatentSpace, Tensor] | None = None

    def __call__(self, scene: TrainableScene, cameras: Camera, moment: Moment) -> tuple[Tensor, None]:
        """The loss with the scene's penalties."""
        assert isinstance(scene, LatentNerfScene)
        wanted = self._wanted(scene.space)
        size = wanted.shape[-1]
        count = min(max(1, self.rays // size**2), len(cameras))
        views = torch.randperm(len(cameras), generator=moment.generator)[:count]
        levels = torch.randint(len(wanted), (count,), generator=moment.generator)
        behind = torch.tensor(_LEVELS)[levels, None].expand(count, 3)
        # The lens of a picture that was made square is that of its larger side.
        seen = replace(cameras, fov_y=self.capture.cameras.fov_y)[views].resized(size, size)
        rendering = scene.composite(seen, behind.to(wanted), moment)
        target = wanted[levels, views]
        error = functional.mse_loss(rendering.image, target)
        if scene.refinement.width:
            error = error + functional.mse_loss(scene.refine(rendering.image), target)
        return torch.stack([_MSE_SCALE * error, *scene.penalties(rendering, moment).values()]).sum(), None

    @torch.no_grad()
    def _wanted(self, space: LatentSpace) -> Tensor:
        """Encoded pictures [L, V, C, h, w] over the gray levels, made once; one level where nothing shows through."""
        if self._encoded is None or self._encoded[0] is not space:
            capture = self.capture
            levels = _LEVELS if bool((capture.alphas < 1).any()) else _LEVELS[:1]
            layers = []
            for level in levels:
                behind = torch.full_like(capture.background, level)[None]
                pictures = over(capture.images, capture.alphas, capture.background, behind)
                layers.append(torch.cat([space.encode(picture[None]) for picture in pictures]))
            self._encoded = (space, torch.stack(layers))
        return self._encoded[1]


def difference(settings: FitSettings, capture: Capture) -> Difference:
    """What a kind of scene is fitted by."""
    if settings.scene == "latent-nerf":
        return LatentDifference(capture, settings.rays)
    return PictureDifference(capture) if settings.scene == "gaussians" else RayDifference(capture, settings.rays)


class FitTrainer:
    """A scene under optimisation, and the poses of its pictures if those are corrected.

    Args:
        settings: the run.
        capture: pictures with cameras and masks.
        device: where to compute.
        points: [M, 3] of the surface that Gaussians may start from.
        colors: [M, 3] of those.
        space: the latent space of the settings' teacher, for a scene that lives in it; loaded by default.
    """

    def __init__(
        self,
        settings: FitSettings,
        capture: Capture,
        device: torch.device | str = "cpu",
        points: Tensor | None = None,
        colors: Tensor | None = None,
        space: LatentSpace | None = None,
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.capture = on_device(capture, self.device)
        self.particle = Particle(settings, 0, self.device, _start(settings, points, colors), space)
        self.poses = PoseRefiner(self.capture.cameras, settings.poses) if settings.poses.enabled else None
        self.step_index = 0
        self._difference = difference(settings, self.capture)

    @property
    def scene(self) -> TrainableScene:
        """What is fitted."""
        return self.particle.scene

    def cameras(self) -> Camera:
        """The cameras as they are corrected so far, differentiable in the corrections."""
        return self.capture.cameras if self.poses is None else self.poses.cameras()

    def step(self, show_target: bool = False) -> FitStep:
        """Take one optimisation step.

        Args:
            show_target: as of `SceneTrainer.step`; there is none.

        Raises:
            SceneError: the loss is not finite any more.
        """
        settings, scene, upkeep = self.settings, self.particle.scene, self.particle.upkeep
        moment = Moment(self.step_index / settings.steps, settings.steps, seeded(settings.seed, 2, self.step_index))
        scene.set_learning_rates(moment.progress, moment.total)
        moving = self.poses is not None and moment.progress >= settings.poses.start
        loss, rendering = self._difference(scene, self.cameras() if moving else self.capture.cameras, moment)
        if not bool(torch.isfinite(loss)):
            raise SceneError(f"The loss of step {self.step_index + 1} is not finite.", "Lower the learning rates.")
        if rendering is not None:
            upkeep.before_backward(rendering)
        loss.backward()
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        metrics = {"loss": float(loss.detach())}
        if moving and self.poses is not None:
            self.poses.step(moment.value(settings.poses.rate))
            metrics["pose_correction"] = float(self.poses.corrections.detach().norm(dim=1).mean())
        change = upkeep.after_step(scene, rendering, self.step_index, settings.steps)  # type: ignore[arg-type]
        self.step_index += 1
        return FitStep(metrics | change.metrics, None if rendering is None else rendering.image[0].detach())

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs."""
        poses = {} if self.poses is None else self.poses.state()
        return self.particle.state() | {f"poses/{name}": value for name, value in poses.items()}

    def load_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Continue from what `state` returned after `step` steps.

        Raises:
            CheckpointError: the state is of another kind of run.
        """
        own = {name: value for name, value in tensors.items() if not name.startswith("poses/")}
        poses = {name.removeprefix("poses/"): tensors[name] for name in tensors if name not in own}
        if bool(poses) != (self.poses is not None):
            raise CheckpointError("The checkpoint is of a fit with other cameras.", "Use an earlier one.")
        self.particle.load_state(own, self.device)
        if self.poses is not None:
            self.poses.load_state(poses)
        self.step_index = step


def fit_gaussians(
    capture: Capture,
    options: FitOptions,
    config: GaussianConfig | None = None,
    density: DensityConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> GaussianScene:
    """Gaussians that show what the pictures show, see `PictureDifference`.

    Args:
        capture: pictures with cameras and masks.
        options: how long.
        config: start and learning rates.
        density: how Gaussians come and go.
        on_step: told the steps made and the loss.
    """
    settings = FitSettings(steps=options.steps, seed=options.seed)
    settings = replace(settings, gaussians=config or settings.gaussians, density=density or settings.density)
    scene = _fitted(settings, capture, on_step)
    assert isinstance(scene, GaussianScene)
    return scene


def fit_nerf(
    capture: Capture,
    options: FitOptions,
    config: NerfConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> NerfScene:
    """A NeRF that shows what the pictures show, see `RayDifference`.

    Args:
        capture: pictures with cameras and masks.
        options: how long.
        config: kind, size and learning rates.
        on_step: told the steps made and the loss.
    """
    config = config or NerfConfig()
    settings = FitSettings(
        scene="sdf" if config.signed else "nerf",
        nerf=config,
        steps=options.steps,
        rays=options.rays,
        seed=options.seed,
    )
    scene = _fitted(settings, capture, on_step)
    assert isinstance(scene, NerfScene)
    return scene


def _fitted(settings: FitSettings, capture: Capture, on_step: Callable[[int, float], None] | None) -> TrainableScene:
    """Step to the end."""
    trainer = FitTrainer(settings, capture)
    while trainer.step_index < settings.steps:
        result = trainer.step()
        if on_step is not None:
            on_step(trainer.step_index, result.metrics["loss"])
    return trainer.scene


def _start(settings: FitSettings, points: Tensor | None, colors: Tensor | None) -> GaussianScene | None:
    """Gaussians on points of the surface, if that is what is fitted and there are enough of them."""
    if settings.scene != "gaussians" or points is None:
        return None
    near = points.norm(dim=1) < _REACH
    if int(near.sum()) < _FEWEST_POINTS:
        return None
    config = replace(settings.gaussians, initialisation="points")
    generator = seeded(settings.seed, 1)
    return GaussianScene.initialise(config, generator, points[near], None if colors is None else colors[near])


def on_device(capture: Capture, device: torch.device) -> Capture:
    """The same capture on a device."""
    return Capture(
        capture.cameras.to(device),
        capture.images.to(device),
        capture.alphas.to(device),
        capture.background.to(device),
    )


def squared(capture: Capture) -> Capture:
    """The capture with its background above and below, or beside, so that the pictures are square."""
    cameras = capture.cameras
    height, width = cameras.height, cameras.width
    side = max(height, width)
    if height == width:
        return capture
    top, left = (side - height) // 2, (side - width) // 2
    room = (left, side - width - left, top, side - height - top)
    alphas = functional.pad(capture.alphas, room)
    kept = functional.pad(torch.ones_like(capture.alphas), room)
    images = functional.pad(capture.images, room) + (1 - kept) * capture.background[:, None, None]
    fov_y = torch.rad2deg(2 * torch.atan(torch.tan(torch.deg2rad(cameras.fov_y) / 2) * side / height))
    return replace(
        capture, cameras=replace(cameras, fov_y=fov_y, height=side, width=side), images=images, alphas=alphas
    )


def over(images: Tensor, alphas: Tensor, background: Tensor, behind: Tensor) -> Tensor:
    """Pictures [V, 3, H, W] taken before `background` [3], put before `behind` [V, 3] instead."""
    return images + (1 - alphas) * (behind - background)[:, :, None, None]


@torch.no_grad()
def held_out_scores(scene: TrainableScene, capture: Capture) -> dict[str, float]:
    """psnr, the mean over pictures of -10 log10 MSE in dB, and ssim, their mean structural similarity.

    Args:
        scene: what was fitted.
        capture: pictures to measure on.
    """
    from dreamkit_kernels.ssim import ssim

    errors, likenesses = [], []
    for view in range(len(capture.cameras)):
        image = scene.render(capture.cameras[view : view + 1], capture.background).image
        wanted = capture.images[view : view + 1]
        errors.append((image - wanted).square().mean())
        likenesses.append(ssim(image.contiguous(), wanted.contiguous()).mean())
    # A picture met exactly has no finite PSNR; that of 16 bits will do.
    psnr = -10 * torch.stack(errors).clamp_min(1e-10).log10().mean()
    return {"psnr": float(psnr), "ssim": float(torch.stack(likenesses).mean())}


def held_out_psnr(scene: TrainableScene, capture: Capture) -> float:
    """Mean over pictures of -10 log10 MSE, dB."""
    return held_out_scores(scene, capture)["psnr"]
