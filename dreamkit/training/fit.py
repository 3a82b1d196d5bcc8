"""A scene from posed pictures: plain reconstruction, the measure of what a representation and its kernels can do."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.errors import ConfigError, SceneError
from dreamkit.scenes.capture import Capture
from dreamkit.scenes.density import DensityConfig, DensityControl
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.ray_sampling import OccupancyUpkeep
from dreamkit.scenes.trainable import Moment, TrainableScene, Upkeep
from dreamkit.training.particles import seeded

_SSIM_SHARE = 0.2
_MSE_SCALE = 10.0
"""Brings the penalties' weights of text-to-3D, whose losses are sums over pixels, to pictures' means."""


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


def fit_gaussians(
    capture: Capture,
    options: FitOptions,
    config: GaussianConfig | None = None,
    density: DensityConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> GaussianScene:
    """Gaussians that show what the pictures show: 0.8 L1 + 0.2 (1 - SSIM), as 3D Gaussian Splatting (arXiv 2308.04079).

    Args:
        capture: pictures with cameras and masks.
        options: how long.
        config: start and learning rates.
        density: how Gaussians come and go.
        on_step: told the steps made and the loss.
    """
    from dreamkit_kernels.ssim import ssim  # type: ignore[import-not-found]

    config = config or GaussianConfig(count=4000, initial_opacity=0.1, background="random")
    density = density or DensityConfig(max_count=12_000, start=0.05, stop=0.6, interval=50)
    scene = GaussianScene.initialise(config, seeded(options.seed, 1))
    upkeep = DensityControl(density, seeded(options.seed, 3))

    def loss(moment: Moment) -> tuple[Tensor, object]:
        view = int(torch.randint(len(capture.cameras), (), generator=moment.generator))
        behind = torch.rand(1, 3, generator=moment.generator)
        wanted = over(capture.images[view : view + 1], capture.alphas[view : view + 1], capture.background, behind)
        rendering = scene.render_training(capture.cameras[view : view + 1], behind, moment)
        upkeep.before_backward(rendering)
        l1 = (rendering.image - wanted).abs().mean()
        return (1 - _SSIM_SHARE) * l1 + _SSIM_SHARE * (1 - ssim(rendering.image, wanted).mean()), rendering

    _run(scene, upkeep, options, loss, on_step)
    return scene


def fit_nerf(
    capture: Capture,
    options: FitOptions,
    config: NerfConfig | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> NerfScene:
    """A NeRF that shows what the pictures show: mean squared error of random pixels over random backgrounds.

    Args:
        capture: pictures with cameras and masks.
        options: how long.
        config: kind, size and learning rates.
        on_step: told the steps made and the loss.
    """
    config = config or NerfConfig()
    scene = NerfScene.initialise(config, seeded(options.seed, 1))
    upkeep = OccupancyUpkeep(config, seeded(options.seed, 3))
    origins, directions = (part.reshape(-1, 3) for part in capture.cameras.rays())
    colors = capture.images.permute(0, 2, 3, 1).reshape(-1, 3)
    alphas = capture.alphas.reshape(-1, 1)

    def loss(moment: Moment) -> tuple[Tensor, object]:
        chosen = torch.randint(len(colors), (options.rays,), generator=moment.generator)
        behind = torch.rand(options.rays, 3, generator=moment.generator)
        wanted = colors[chosen] + (1 - alphas[chosen]) * (behind - capture.background)
        seen, trace = scene.render_rays(origins[chosen], directions[chosen], behind, moment)
        terms = scene.trace_penalties(trace, moment)
        error = _MSE_SCALE * functional.mse_loss(seen, wanted)
        return torch.stack([error, *terms.values()]).sum(), None

    _run(scene, upkeep, options, loss, on_step)
    return scene


def _run(
    scene: TrainableScene,
    upkeep: Upkeep,
    options: FitOptions,
    loss_of: Callable[[Moment], tuple[Tensor, object]],
    on_step: Callable[[int, float], None] | None,
) -> None:
    """Step to the end.

    Raises:
        SceneError: the loss is not finite any more.
    """
    scene.make_optimizers()
    for step in range(options.steps):
        moment = Moment(step / options.steps, options.steps, seeded(options.seed, 2, step))
        scene.set_learning_rates(moment.progress, moment.total)
        loss, rendering = loss_of(moment)
        if not bool(torch.isfinite(loss)):
            raise SceneError(f"The loss of step {step + 1} is not finite.", "Lower the learning rates.")
        loss.backward()
        for optimizer in scene.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()
        upkeep.after_step(scene, rendering, step, options.steps)  # type: ignore[arg-type]
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))


def over(images: Tensor, alphas: Tensor, background: Tensor, behind: Tensor) -> Tensor:
    """Pictures [V, 3, H, W] taken before `background` [3], put before `behind` [V, 3] instead."""
    return images + (1 - alphas) * (behind - background)[:, :, None, None]


@torch.no_grad()
def held_out_psnr(scene: TrainableScene, capture: Capture) -> float:
    """Mean over pictures of -10 log10 MSE, dB."""
    errors = []
    for view in range(len(capture.cameras)):
        image = scene.render(capture.cameras[view : view + 1], capture.background).image
        errors.append((image - capture.images[view : view + 1]).square().mean())
    return float(-10 * torch.stack(errors).log10().mean())
