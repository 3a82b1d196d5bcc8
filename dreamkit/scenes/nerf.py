"""A scene as a field that rays integrate: a NeRF of density or of signed distance (formulas in `field`, `tracing`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.scenes import ray_losses
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.field import Field
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.ray_sampling import OccupancySampler, ProposalSampler, RayBundle
from dreamkit.scenes.rendering import Rendering, background_colors, check_backend, expand_background
from dreamkit.scenes.shading import draw_lighting
from dreamkit.scenes.surroundings import EnvironmentMap, LearnedBackground
from dreamkit.scenes.tracing import Trace, Tracer
from dreamkit.scenes.trainable import Moment, TrainableScene, check_state

_CHUNK = 2**14
"""Rays that are followed at once where nothing is differentiated."""
_EIKONAL_POINTS = 2048
"""Places near the surface, and half as many anywhere, at which a signed distance is held to its slope."""


class NerfScene(TrainableScene):
    """A field in a cube that can be rendered, trained, saved and loaded exactly.

    Args:
        state: parameters by name, the occupancy grid, and the sharpness of a signed distance.
        config: its kind and size; must fit the state.

    Raises:
        CheckpointError: the state is incomplete, misshapen or not finite.
    """

    def __init__(self, state: Mapping[str, Tensor], config: NerfConfig) -> None:
        self._build(config, torch.Generator())
        self.load_state(state)

    @classmethod
    def initialise(cls, config: NerfConfig, generator: torch.Generator) -> NerfScene:
        """A new scene: a ball of fog, or a sphere.

        Args:
            config: its kind and size.
            generator: the only source of randomness.
        """
        scene = cls.__new__(cls)
        scene._build(config, generator)
        scene.update_occupancy(0.0, 1, generator)
        return scene

    def _build(self, config: NerfConfig, generator: torch.Generator) -> None:
        check_backend("hash_grid")
        self.config = config
        self.optimizers = {}
        self.sharpness = config.sharpness.start_value
        self.modules = nn.ModuleDict({"field": self._make_field(config, generator)})
        if config.sampler == "proposal":
            self.modules["proposal"] = ProposalSampler(config, generator)
        if config.background == "learned":
            self.modules["surroundings"] = LearnedBackground(generator)
        elif config.background == "environment":
            self.modules["surroundings"] = EnvironmentMap()
        self._occupancy = OccupancySampler.full(config, torch.device("cpu"))

    def _make_field(self, config: NerfConfig, generator: torch.Generator) -> Field:
        return Field(config, generator)

    @property
    def field(self) -> Field:
        """What is at a point."""
        field = self.modules["field"]
        assert isinstance(field, Field)
        return field

    def parameters_dict(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name."""
        return dict(self.modules.named_parameters())

    def rate(self, name: str) -> Schedule:
        """Learning rate of a parameter."""
        if name.startswith("surroundings"):
            return self.config.surroundings_rate
        schedule: Schedule = self.config.table_rate if name.endswith("table") else self.config.network_rate
        return schedule

    def backgrounds(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """[n, 3] colours in the mode of the config; `None` where what is behind is learned."""
        return None if "surroundings" in self.modules else super().backgrounds(n, generator)

    @property
    def occupied_share(self) -> float:
        """Share of the occupancy grid's cells in which there is something."""
        return float(self._occupancy.occupied.float().mean())

    def update_occupancy(self, progress: float, total: int, generator: torch.Generator, share: float = 1.0) -> None:
        """Bring the occupancy grid and the sharpness up to date.

        Args:
            progress: how much of the run is done, 0 to 1.
            total: steps of the run.
            generator: the only source of randomness.
            share: how many cells to look into; all of them are looked into afresh at 1.
        """
        self.sharpness = self.config.sharpness.at(progress, total)
        if share < 1:
            self._occupancy.update(self.field, self.sharpness, generator, share)
        else:
            self._occupancy.refresh(self.field, self.sharpness, generator)

    @torch.no_grad()
    def half_light(self, cameras: Camera) -> Tensor:
        """Raw values [M] where the rays of B views have lost half of their light; rays that never do are left out."""
        cameras = cameras.to(self.device)
        rays, views = self._rays(cameras)
        trace = self._tracer().trace(rays, views, with_normals=False)
        ray = trace.samples.rays
        before = trace.weights.cumsum(dim=0) - trace.weights
        first = torch.cat([before, before.new_zeros(1)])[trace.samples.offsets[:-1].clamp_max(len(before))]
        lost = before - first[ray]  # along the sample's own ray
        crossing = (lost < 0.5) & (lost + trace.weights >= 0.5)
        return self.field.raw(trace.points[crossing])

    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Render the scene as it is, in plain albedo with normals; without gradients memory is bounded.

        Args:
            cameras: B views.
            background: [3] or [B, 3] colours in [0, 1]; the config's own by default (gray if it is random).

        Returns:
            image, alpha, depth and normal.

        Raises:
            SceneError: the background's shape does not fit, or gradients are wanted of more than memory can hold.
        """
        cameras = cameras.to(self.device)
        rays, views = self._rays(cameras)
        chunk = len(views) if torch.is_grad_enabled() else _CHUNK
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, len(views), chunk):
            piece = slice(start, start + chunk)
            some = RayBundle(rays.origins[piece], rays.directions[piece], rays.near, rays.far)
            trace = self._tracer().trace(some, views[piece], with_normals=True)
            parts.append((trace.colors, trace.alpha, trace.depth, trace.normal))
        colors, alpha, depth, normal = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        behind = self._behind_pixels(cameras, rays, background)
        return self._composed(cameras, rays, behind, colors, alpha, depth, normal)

    def render_training(self, cameras: Camera, background: Tensor | None, moment: Moment) -> Rendering:
        """Render with jittered samples and, where the config says so, lit. `info` is the `Trace`.

        Normals are zero unless light or the orientation penalty needs them.

        Raises:
            SceneError: more samples than memory can be expected to hold.
        """
        cameras, config = cameras.to(self.device), self.config
        self.sharpness = moment.value(config.sharpness)
        rays, views = self._rays(cameras, moment.generator)
        shares = (moment.value(config.lambertian_share), moment.value(config.textureless_share))
        lighting = draw_lighting(cameras.position, *shares, config.ambient, moment.generator)
        oriented = moment.value(config.orientation_weight) > 0
        trace = self._tracer().trace(rays, views, oriented, None if lighting.is_plain else lighting)
        behind = self._behind_pixels(cameras, rays, background)
        rendering = self._composed(cameras, rays, behind, trace.colors, trace.alpha, trace.depth, trace.normal)
        rendering.info = trace
        return rendering

    def render_rays(
        self,
        origins: Tensor,  # [N, 3] world units
        directions: Tensor,  # [N, 3] unit
        background: Tensor | None,  # [3] or [N, 3]
        moment: Moment,
    ) -> tuple[Tensor, Trace]:
        """Colours [N, 3] of single rays, for training on pictures a handful of pixels at a time; and what they met."""
        self.sharpness = moment.value(self.config.sharpness)
        jitter = torch.rand(len(origins), generator=moment.generator).to(origins)
        near, far = self._range(origins)
        rays = RayBundle(origins, directions, near, far, jitter)
        views = torch.zeros(len(origins), dtype=torch.int64, device=origins.device)
        trace = self._tracer().trace(rays, views, moment.value(self.config.orientation_weight) > 0)
        return trace.colors + (1 - trace.alpha[:, None]) * self._behind(rays, background), trace

    def penalties(self, rendering: Rendering, moment: Moment) -> dict[str, Tensor]:
        """Opacity, sparsity, orientation, distortion and eikonal, each times its weight; weights of 0 are left out.

        Args:
            rendering: what `render_training` returned.
            moment: when in the run.
        """
        trace: Trace = rendering.info
        return self.trace_penalties(trace, moment)

    def trace_penalties(self, trace: Trace, moment: Moment) -> dict[str, Tensor]:
        """The same `penalties` of what single rays met."""
        from dreamkit_kernels.volume_render import distortion_loss  # type: ignore[import-not-found]

        config, rays = self.config, trace.alpha.numel()

        def orientation() -> Tensor:
            assert trace.normals is not None  # asked for in render_training
            return ray_losses.orientation(trace.weights, trace.normals, trace.directions, rays)

        terms: dict[str, tuple[Schedule, Callable[[], Tensor]]] = {
            "opacity": (config.opacity_weight, lambda: ray_losses.opacity_entropy(trace.alpha)),
            "sparsity": (config.sparsity_weight, lambda: ray_losses.opacity_sparsity(trace.alpha)),
            "orientation": (config.orientation_weight, orientation),
            "distortion": (config.distortion_weight, lambda: distortion_loss(trace.weights, trace.samples).mean()),
        }
        if config.signed:
            terms["eikonal"] = (config.eikonal_weight, lambda: self._eikonal(trace, moment.generator))
        weighted = {name: (moment.value(schedule), term) for name, (schedule, term) in terms.items()}
        found = {name: weight * term() for name, (weight, term) in weighted.items() if weight != 0}
        return found if trace.proposal_loss is None else found | {"proposal": trace.proposal_loss}

    def state(self) -> dict[str, Tensor]:
        """A copy of the parameters, the occupancy grid and the sharpness."""
        kept = {"occupancy": self._occupancy.values.clone(), "sharpness": torch.tensor(self.sharpness)}
        return super().state() | kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned, exactly. Optimisers are dropped: make them again.

        Raises:
            CheckpointError: the state is incomplete, misshapen, not finite or of another kind of scene.
        """
        parameters = self.parameters_dict()
        wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        wanted |= {"occupancy": tuple(self._occupancy.values.shape), "sharpness": ()}
        check_state("NeRF", state, wanted)
        device = state["occupancy"].device
        self.modules.to(device)
        with torch.no_grad():
            for name, parameter in self.parameters_dict().items():
                parameter.copy_(state[name])
        self._occupancy = OccupancySampler(self.config, state["occupancy"].detach().clone())
        self.sharpness = float(state["sharpness"])
        self.optimizers = {}

    def to(self, device: torch.device | str) -> NerfScene:
        """A copy of the scene on `device`, without optimisers."""
        return NerfScene({name: value.to(device) for name, value in self.state().items()}, self.config)

    def _tracer(self) -> Tracer:
        if "proposal" not in self.modules:
            return Tracer(self.field, self._occupancy, self.sharpness)
        proposal = self.modules["proposal"]
        assert isinstance(proposal, ProposalSampler)
        return Tracer(self.field, proposal, self.sharpness)

    def _rays(self, cameras: Camera, generator: torch.Generator | None = None) -> tuple[RayBundle, Tensor]:
        """A ray a pixel, and the view of each."""
        origins, directions = (part.reshape(-1, 3) for part in cameras.rays())
        views = torch.arange(len(cameras), device=self.device).repeat_interleave(cameras.height * cameras.width)
        jitter = None if generator is None else torch.rand(len(origins), generator=generator).to(origins)
        near, far = self._range(cameras.position)
        near, far = max(near, cameras.near), min(far, cameras.far)
        return RayBundle(origins, directions, near, max(far, near), jitter), views

    def _range(self, origins: Tensor) -> tuple[float, float]:
        """Distances from which, and up to which, rays from these places can be in the cube."""
        distance, reach = origins.detach().norm(dim=1), math.sqrt(3) * self.config.half
        return max(float(distance.min()) - reach, 0.0), float(distance.max()) + reach

    def _behind(self, rays: RayBundle, background: Tensor | None) -> Tensor:
        """Colours behind rays [N, 3]: those given ([3] or [N, 3]), learned ones, or the config's."""
        if background is None and "surroundings" in self.modules:
            learned: Tensor = self.modules["surroundings"](rays.directions)
            return learned
        if background is None:
            background = background_colors(self.config.background, 1)
        return expand_background(background.to(rays.directions), len(rays.directions))

    def _behind_pixels(self, cameras: Camera, rays: RayBundle, background: Tensor | None) -> Tensor:
        """Colours behind a ray a pixel of B views [R, 3], those given being [3] or [B, 3]."""
        if background is not None:
            pixels = cameras.height * cameras.width
            background = expand_background(background, len(cameras)).repeat_interleave(pixels, dim=0)
        return self._behind(rays, background)

    def _composed(
        self,
        cameras: Camera,
        rays: RayBundle,
        behind: Tensor,  # [R, C]
        colors: Tensor,  # [R, C]
        alpha: Tensor,  # [R]
        depth: Tensor,  # [R] along the ray
        normal: Tensor,  # [R, 3]
    ) -> Rendering:
        """Pictures from sums along rays, with what is behind them."""
        count, height, width = len(cameras), cameras.height, cameras.width
        image = colors + (1 - alpha[:, None]) * behind
        along = torch.einsum("bhwc,bc->bhw", rays.directions.view(count, height, width, 3), cameras.forward)

        def picture(values: Tensor) -> Tensor:
            return values.view(count, height, width, -1).permute(0, 3, 1, 2)

        return Rendering(picture(image), picture(alpha), picture(depth) * along[:, None], picture(normal))

    def _eikonal(self, trace: Trace, generator: torch.Generator) -> Tensor:
        """The slope of a signed distance, at some of the samples and at places anywhere."""
        seen = trace.points.detach()
        chosen = torch.randint(max(len(seen), 1), (min(_EIKONAL_POINTS, len(seen)),), generator=generator)
        anywhere = (2 * torch.rand(_EIKONAL_POINTS // 2, 3, generator=generator) - 1) * self.config.half
        points = torch.cat([seen[chosen.to(seen.device)], anywhere.to(seen)])
        _, gradient = self.field.normals(points, differentiable=True)
        return ray_losses.eikonal(gradient)
