"""Density control: Gaussians are added where the images ask for detail and removed where they show nothing.

The idea of 3D Gaussian Splatting (arXiv 2308.04079), at the scale of score distillation on a CPU: a few hundred
steps and a few thousand Gaussians. Every `interval` steps

1. prune what is too transparent, too large or too far out;
2. score what is left by g_i = mean over the views that saw it of |d loss / d (projected centre)|, in half image
   sizes, and take the best `grow_share` of them, as far as the budget lets;
3. clone those smaller than `split_scale`, split the others into two of scale / 1.6 drawn from the parent itself.

A fixed threshold on g, as in the paper, would mean something else for every objective, guidance scale and teacher;
a share of the best means the same for all. The threshold is there too (`grow_gradient`), 0 by default.

The surgery on parameters and Adam's moments is gsplat's (`gsplat.strategy.ops`), which runs on a CPU. Its split draws
from torch's global generator: the draw is made in a fork of that, seeded from the generator given here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.rendering import Rendering

_GSPLAT_NAMES = {
    "means": "means",
    "log_scales": "scales",
    "quaternions": "quats",
    "opacity_logits": "opacities",
}


@dataclass(frozen=True)
class DensityConfig:
    """When and how the number of Gaussians changes."""

    enabled: bool = True
    """Whether Gaussians are added and removed at all."""
    start: float = 0.15
    """Share of the run before which nothing changes, 0 to 1."""
    stop: float = 0.8
    """Share of the run after which nothing changes, 0 to 1; the rest of the run settles what is there."""
    interval: int = 30
    """Steps between changes, at least 1."""
    max_count: int = 4000
    """The budget: growth stops at this many Gaussians. At least 1."""
    min_count: int = 200
    """Pruning never leaves fewer than this; the most opaque stay. At least 1."""
    grow_share: float = 0.1
    """Largest share of the Gaussians that is cloned or split at a change, 0 to 1."""
    grow_gradient: float = 0.0
    """Smallest mean gradient (loss by half an image size) that is cloned or split; 0 leaves it to grow_share."""
    split_scale: float = 0.04
    """Gaussians with a larger standard deviation are split, smaller ones cloned, world units."""
    prune_opacity: float = 0.02
    """Gaussians more transparent than this are removed, 0 to 1."""
    prune_scale: float = 0.4
    """Gaussians with a larger standard deviation are removed, world units."""
    prune_radius: float = 1.3
    """Gaussians whose centre is farther from the origin are removed, world units."""
    reset_interval: int = 0
    """Steps between resets of all opacities to at most reset_opacity; 0 never resets: short runs can't afford it."""
    reset_opacity: float = 0.1
    """Opacity that a reset leaves at most, above 0 and below 1."""

    def __post_init__(self) -> None:
        shares = ("start", "stop", "grow_share", "prune_opacity")
        positive = ("split_scale", "prune_scale", "prune_radius")
        wanted = {
            **{name: (0.0 <= getattr(self, name) <= 1.0, "0 to 1") for name in shares},
            **{name: (0.0 < getattr(self, name) < math.inf, "a positive number") for name in positive},
            "stop": (0.0 <= self.start <= self.stop <= 1.0, "0 to 1, not before start"),
            "interval": (self.interval >= 1, "at least 1"),
            "max_count": (self.max_count >= 1, "at least 1"),
            "min_count": (1 <= self.min_count <= self.max_count, "1 to max_count"),
            "grow_gradient": (0.0 <= self.grow_gradient < math.inf, "0 or a positive number"),
            "reset_interval": (self.reset_interval >= 0, "0 or a positive number"),
            "reset_opacity": (0.0 < self.reset_opacity < 1.0, "above 0 and below 1"),
        }
        for name, (holds, hint) in wanted.items():
            if not holds:
                raise ConfigError(f"Density control's {name} is {getattr(self, name)}.", f"Use {hint}.")


@dataclass(frozen=True)
class DensityChange:
    """What one step of density control did."""

    pruned: int = 0
    """Gaussians removed."""
    cloned: int = 0
    """Gaussians doubled in place."""
    split: int = 0
    """Gaussians replaced by two smaller ones."""
    reset: bool = False
    """Whether the opacities were reset."""
    count: int = 0
    """Gaussians after it."""

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for the log."""
        return {"gaussians": float(self.count)}


class DensityControl:
    """Collects gradients over the steps and changes the scene's Gaussians, with their optimisers, in place.

    ```python
    rendering = scene.render(cameras)
    density.before_backward(rendering)
    loss.backward()
    for optimizer in scene.optimizers.values(): optimizer.step(); optimizer.zero_grad()
    change = density.after_step(scene, rendering, step, total_steps)
    ```

    Args:
        config: when and how.
        generator: the only source of randomness (on any device; its state is part of `state()`).
    """

    def __init__(self, config: DensityConfig, generator: torch.Generator) -> None:
        self.config = config
        self.generator = generator
        self._gradient: Tensor | None = None  # [N] sum of gradient norms
        self._seen: Tensor | None = None  # [N] in how many views

    def is_active(self, step: int, total_steps: int) -> bool:
        """Whether step `step` (from 0) of `total_steps` collects gradients and may change the scene."""
        config = self.config
        return config.enabled and config.start * total_steps <= step < config.stop * total_steps

    def before_backward(self, rendering: Rendering) -> None:
        """Ask the rendering to keep the gradient of its projected centres. Call before `backward`."""
        if self.config.enabled and rendering.info.means2d.requires_grad:
            rendering.info.means2d.retain_grad()

    @torch.no_grad()
    def after_step(self, scene: GaussianScene, rendering: Rendering, step: int, total_steps: int) -> DensityChange:
        """Collect this step's gradients, and change the scene if it is time. Call after the optimisers' step.

        Args:
            scene: the scene, with its optimisers made.
            rendering: what `render` returned in this step, after `backward`.
            step: the step that has just been made, from 0.
            total_steps: the length of the run.

        Returns:
            What was done (all zero on most steps).
        """
        if not self.is_active(step, total_steps):
            return DensityChange(count=len(scene))
        self._collect(rendering)
        done = step + 1
        pruned = cloned = split = 0
        if done % self.config.interval == 0:
            pruned = self._prune(scene)
            cloned, split = self._grow(scene)
            self._gradient = self._seen = None
        reset = self.config.reset_interval > 0 and done % self.config.reset_interval == 0
        if reset:
            self._edit(scene, "reset_opa", value=self.config.reset_opacity)
        return DensityChange(pruned, cloned, split, reset, len(scene))

    def state(self) -> dict[str, Tensor]:
        """Everything that decides what happens next, flat: gradient sums, view counts, the generator."""
        tensors = {"generator": self.generator.get_state().clone()}
        if self._gradient is not None and self._seen is not None:
            tensors["gradient"] = self._gradient.clone()
            tensors["seen"] = self._seen.clone()
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned, exactly.

        Raises:
            CheckpointError: something is missing or misshapen.
        """
        gradient, seen = state.get("gradient"), state.get("seen")
        whole = "generator" in state and (gradient is None) == (seen is None)
        if not whole or (gradient is not None and seen is not None and gradient.shape != seen.shape):
            raise CheckpointError(
                f"The state of density control holds only {', '.join(sorted(state)) or 'nothing'}.",
                "The checkpoint is damaged: use an earlier one.",
            )
        self._gradient = None if gradient is None else gradient.detach().clone()
        self._seen = None if seen is None else seen.detach().clone()
        self.generator.set_state(state["generator"].detach().to("cpu", torch.uint8))

    def _collect(self, rendering: Rendering) -> None:
        """Add this step's gradient norms: pixels to half image sizes, and the mean over views to a sum."""
        gradient = rendering.info.means2d.grad
        if gradient is None:
            return
        views, _, height, width = rendering.image.shape
        half_size = gradient.new_tensor([0.5 * width, 0.5 * height])
        visible = (rendering.info.radii > 0).to(gradient.dtype)  # [B, N]
        norms = (gradient * half_size).norm(dim=-1) * views * visible
        norms = torch.nan_to_num(norms, nan=0.0, posinf=0.0)
        if self._gradient is None or self._seen is None:
            self._gradient, self._seen = torch.zeros_like(norms[0]), torch.zeros_like(norms[0])
        self._gradient += norms.sum(0)
        self._seen += visible.sum(0)

    def _prune(self, scene: GaussianScene) -> int:
        """Remove the transparent, the huge and the lost, but leave `min_count`; the number removed."""
        config = self.config
        opacities = scene.opacities
        unwanted = opacities < config.prune_opacity
        unwanted |= scene.scales.amax(-1) > config.prune_scale
        unwanted |= scene.means.norm(dim=-1) > config.prune_radius
        spare = len(scene) - min(config.min_count, len(scene))
        if int(unwanted.sum()) > spare:
            # Keep the most opaque of the unwanted; a stable sort leaves ties in their order.
            rank = torch.where(unwanted, opacities, torch.inf)
            worst = torch.argsort(rank, stable=True)[:spare]
            unwanted = torch.zeros_like(unwanted).index_fill_(0, worst, True)
        count = int(unwanted.sum())
        if count:
            self._edit(scene, "remove", mask=unwanted)
        return count

    def _grow(self, scene: GaussianScene) -> tuple[int, int]:
        """Clone and split the Gaussians with the largest mean gradient; how many of each."""
        config = self.config
        room = min(math.ceil(config.grow_share * len(scene)), config.max_count - len(scene))
        if room <= 0 or self._gradient is None or self._seen is None:
            return 0, 0
        score = self._gradient / self._seen.clamp_min(1.0)
        best = torch.argsort(score, descending=True, stable=True)[:room]
        best = best[(score[best] > config.grow_gradient)]
        chosen = torch.zeros(len(scene), dtype=torch.bool, device=scene.device).index_fill_(0, best, True)
        large = scene.scales.amax(-1) > config.split_scale
        clone, split = chosen & ~large, chosen & large
        cloned, halved = int(clone.sum()), int(split.sum())
        if cloned:
            self._edit(scene, "duplicate", mask=clone)
            split = torch.cat([split, split.new_zeros(cloned)])
        if halved:
            with self._seeded(scene.device):
                self._edit(scene, "split", mask=split)
        return cloned, halved

    def _edit(self, scene: GaussianScene, operation: str, **arguments: Tensor | float) -> None:
        """Run one of gsplat's operations on the scene, its optimisers and the running sums."""
        from gsplat.strategy import ops

        names = {name: _GSPLAT_NAMES.get(name, name) for name in scene.parameters_dict()}
        parameters: dict[str, nn.Parameter] = {names[k]: p for k, p in scene.parameters_dict().items()}
        optimizers = {names[name]: optimizer for name, optimizer in scene.optimizers.items()}
        running = {}
        if self._gradient is not None and self._seen is not None:
            running = {"gradient": self._gradient, "seen": self._seen}
        getattr(ops, operation)(params=parameters, optimizers=optimizers, state=running, **arguments)
        scene.replace_parameters({name: parameters[gsplat_name] for name, gsplat_name in names.items()})
        self._gradient, self._seen = running.get("gradient"), running.get("seen")

    @contextmanager
    def _seeded(self, device: torch.device) -> Iterator[None]:
        """Seed torch's global generators from ours inside, and leave them as they were."""
        seed = int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
