"""A scene of 3D Gaussians: parameters, initialisation, rendering, optimisers, exact state.

After 3D Gaussian Splatting (arXiv 2308.04079). The raw parameters are unbounded, and what they mean is

    scale = exp(log_scale)    opacity = sigmoid(opacity_logit)    rotation = quaternion / |quaternion| (wxyz)
    colour = sigmoid(rgb_logit)    or, with spherical harmonics,    max(0, 1/2 + sum_k sh_k Y_k(direction))
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError
from dreamkit.scenes import initialisation, regularisers
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.gaussian_config import GaussianConfig
from dreamkit.scenes.rendering import Rendering, background_colors, check_backend, expand_background
from dreamkit.scenes.trainable import Moment, TrainableScene, check_state

__all__ = ["SH_C0", "GaussianConfig", "GaussianScene", "Rendering", "color_parameters"]

SH_C0 = 0.28209479177387814
"""The constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 1/2 + SH_C0 * sh_base."""

_RATES = {
    "means": "means_rate",
    "log_scales": "scales_rate",
    "quaternions": "quaternions_rate",
    "opacity_logits": "opacities_rate",
    "rgb_logits": "colors_rate",
    "sh_base": "colors_rate",
    "sh_rest": "sh_rest_rate",
}


class GaussianScene(TrainableScene):
    """N Gaussians that can be rendered, trained, changed in number, saved and loaded exactly.

    Args:
        state: the raw parameters by name: means [N, 3], log_scales [N, 3], quaternions [N, 4], opacity_logits [N],
            and either rgb_logits [N, 3], or sh_base [N, 1, 3] with sh_rest [N, K - 1, 3] above degree 0.
        config: how it learns; its `sh_degree` must fit the state.

    Raises:
        CheckpointError: the state is incomplete, misshapen, not finite or of another colour model.
    """

    def __init__(self, state: Mapping[str, Tensor], config: GaussianConfig | None = None) -> None:
        check_backend()
        self.config = config if config is not None else GaussianConfig(sh_degree=_sh_degree(state))
        self.optimizers: dict[str, torch.optim.Adam] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.load_state(state)

    @classmethod
    def initialise(
        cls,
        config: GaussianConfig,
        generator: torch.Generator,
        points: Tensor | None = None,
        colors: Tensor | None = None,
        normals: Tensor | None = None,
    ) -> GaussianScene:
        """A new scene on the generator's device, as `config.initialisation` says.

        Args:
            config: how it starts and learns.
            generator: the only source of randomness.
            points: [M, 3] world units, for points and shape; a random `config.count` of them if there are more.
            colors: [M, 3] in [0, 1] with the points; a noisy gray without.
            normals: [M, 3] of any length, for shape.

        Returns:
            The scene: isotropic Gaussians, or discs of `config.flatness` along the normals for shape.

        Raises:
            SceneError: points or normals are needed and missing, or misshapen, or not finite.
        """
        device = generator.device
        if config.initialisation == "sphere":
            points = initialisation.ball_points(config.count, config.initial_radius, generator)
            colors = normals = None
            spacing = initialisation.ball_spacing(config.count, config.initial_radius, device)
        else:
            initialisation.check_cloud(points, colors, normals, config.initialisation == "shape")
            assert points is not None  # check_cloud has seen to it
            chosen = initialisation.random_subset(len(points), config.count, generator)
            points = points.to(device, torch.float32)[chosen]
            colors = None if colors is None else colors.to(device, torch.float32)[chosen]
            normals = None if normals is None else normals.to(device, torch.float32)[chosen]
            spacing = initialisation.neighbour_distance(points)
        count = len(points)
        if colors is None:
            noise = torch.rand(count, 3, generator=generator, device=device) * 2.0 - 1.0
            colors = (config.initial_color + config.initial_color_noise * noise).clamp(0.0, 1.0)
        scales = (spacing * config.initial_scale)[:, None].repeat(1, 3)
        quaternions = torch.tensor([1.0, 0.0, 0.0, 0.0], device=device).repeat(count, 1)
        if config.initialisation == "shape" and normals is not None:
            quaternions = initialisation.align_to_normals(normals)
            scales[:, 2] *= config.flatness
        state = {
            "means": points,
            "log_scales": scales.log(),
            "quaternions": quaternions,
            "opacity_logits": torch.full((count,), config.initial_opacity, device=device).logit(),
            **color_parameters(colors, config.sh_degree),
        }
        return cls(state, config)

    def __len__(self) -> int:
        return len(self._parameters["means"])

    @property
    def means(self) -> Tensor:
        """[N, 3] centres, world units."""
        return self._parameters["means"]

    @property
    def scales(self) -> Tensor:
        """[N, 3] standard deviations along the rotated axes, world units."""
        return self._parameters["log_scales"].exp()

    @property
    def quaternions(self) -> Tensor:
        """[N, 4] unit rotations, wxyz."""
        return nn.functional.normalize(self._parameters["quaternions"], dim=-1)

    @property
    def opacities(self) -> Tensor:
        """[N] in [0, 1]."""
        return torch.sigmoid(self._parameters["opacity_logits"])

    @property
    def sh_degree(self) -> int | None:
        """Degree of the spherical harmonics, or None for plain RGB."""
        return self.config.sh_degree

    @property
    def sh(self) -> Tensor:
        """[N, K, 3] spherical-harmonic coefficients, K = (degree + 1)^2; those of the plain colours for RGB."""
        if self.sh_degree is None:
            return ((self.colors - 0.5) / SH_C0)[:, None]
        if self.sh_degree == 0:
            return self._parameters["sh_base"]
        return torch.cat([self._parameters["sh_base"], self._parameters["sh_rest"]], dim=1)

    @property
    def colors(self) -> Tensor:
        """[N, 3] colours without view dependence, in [0, 1], as they appear on a screen (sRGB)."""
        if self.sh_degree is None:
            return torch.sigmoid(self._parameters["rgb_logits"])
        return (0.5 + SH_C0 * self._parameters["sh_base"][:, 0]).clamp(0.0, 1.0)

    def parameters_dict(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name (a new dict; the parameters are the scene's own)."""
        return dict(self._parameters)

    def replace_parameters(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take over parameters that an operation made anew, such as density control. The optimisers must agree.

        Args:
            parameters: all of the scene's parameters by name, any N.
        """
        self._parameters = {name: parameters[name] for name in self._parameters}

    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Render the scene, differentiable in every parameter.

        Args:
            cameras: B views.
            background: [3] or [B, 3] colours in [0, 1]; the config's mode by default (gray if it is random).

        Returns:
            image, alpha, depth and normal; `info` is the kernels' `Rasterization` (means2d, radii, ...).

        Raises:
            SceneError: the background's shape does not fit.
        """
        from dreamkit_kernels.gaussian_rasterize import (  # type: ignore[import-not-found]
            Gaussians,
            Settings,
            View,
            rasterize,
        )

        cameras = cameras.to(self.device)
        if background is None:
            background = background_colors(self.config.background, len(cameras))
        behind = expand_background(background.to(self.device), len(cameras))
        gaussians = Gaussians(
            means=self.means,
            quaternions=self._parameters["quaternions"],
            scales=self.scales,
            opacities=self.opacities,
            colors=self.colors if self.sh_degree is None else self.sh,
        )
        view = View(
            view_matrices=cameras.view_matrix,
            intrinsics=cameras.intrinsics,
            width=cameras.width,
            height=cameras.height,
            near=cameras.near,
            far=cameras.far,
        )
        settings = Settings(background=behind, antialiased=self.config.antialiased)
        result = rasterize(gaussians, view, settings)
        image = result.image.permute(0, 3, 1, 2)
        # Harmonics may add up to more than white. Clamp what is seen, but let the gradient through: a saturated
        # colour would otherwise never come back.
        image = image + (image.clamp(0.0, 1.0) - image).detach()
        return Rendering(
            image=image,
            alpha=result.alpha.permute(0, 3, 1, 2),
            depth=result.depth.permute(0, 3, 1, 2),
            normal=result.normal.permute(0, 3, 1, 2),
            info=result,
        )

    def rate(self, name: str) -> Schedule:
        """Learning rate of a parameter."""
        schedule: Schedule = getattr(self.config, _RATES[name])
        return schedule

    def penalties(self, rendering: Rendering, moment: Moment) -> dict[str, Tensor]:
        """The penalties of the config, each times its weight, for adding to a loss. Weights of 0 are left out.

        Args:
            rendering: not needed: Gaussians are judged by themselves.
            moment: when in the run.

        Returns:
            Weighted scalars by name: sparsity, entropy, size, needle (formulas in `regularisers`).
        """
        config = self.config
        logits, log_scales = self._parameters["opacity_logits"], self._parameters["log_scales"]
        penalties = {
            "sparsity": (config.sparsity_weight, lambda: regularisers.opacity_sparsity(torch.sigmoid(logits))),
            "entropy": (config.entropy_weight, lambda: regularisers.opacity_entropy(logits)),
            "size": (config.size_weight, lambda: regularisers.scale_size(log_scales, config.size_limit)),
            "needle": (
                config.needle_weight,
                lambda: regularisers.scale_anisotropy(log_scales, config.needle_limit),
            ),
        }
        weighted = {name: (moment.value(schedule), penalty) for name, (schedule, penalty) in penalties.items()}
        return {name: weight * penalty() for name, (weight, penalty) in weighted.items() if weight != 0}

    def to(self, device: torch.device | str) -> GaussianScene:
        """A copy of the scene on `device`, without optimisers."""
        return GaussianScene({name: p.detach().to(device) for name, p in self._parameters.items()}, self.config)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the parameters from `state`, any N, exactly. Optimisers are dropped: make them again.

        Args:
            state: what `state()` returned.

        Raises:
            CheckpointError: the state is incomplete, misshapen, not finite or of another colour model.
        """
        _check_state(state, self.config.sh_degree)
        self._parameters = {
            name: nn.Parameter(state[name].detach().clone()) for name in _parameter_shapes(self.config.sh_degree)
        }
        self.optimizers = {}


def color_parameters(
    colors: Tensor,  # [N, 3] in [0, 1]
    sh_degree: int | None,
) -> dict[str, Tensor]:
    """The raw parameters that show `colors` from everywhere.

    Args:
        colors: [N, 3] in [0, 1].
        sh_degree: the colour model, see `GaussianConfig.sh_degree`.

    Returns:
        rgb_logits [N, 3] (colours are kept off 0 and 1 by 1e-3, where a sigmoid can't go); or sh_base [N, 1, 3]
        and, above degree 0, a zero sh_rest.
    """
    if sh_degree is None:
        return {"rgb_logits": colors.clamp(1e-3, 1.0 - 1e-3).logit()}
    parameters = {"sh_base": ((colors - 0.5) / SH_C0)[:, None]}
    if sh_degree > 0:
        parameters["sh_rest"] = colors.new_zeros(len(colors), (sh_degree + 1) ** 2 - 1, 3)
    return parameters


def _parameter_shapes(sh_degree: int | None) -> dict[str, tuple[int, ...]]:
    """The names of the parameters and their shapes after N."""
    shapes: dict[str, tuple[int, ...]] = {
        "means": (3,),
        "log_scales": (3,),
        "quaternions": (4,),
        "opacity_logits": (),
    }
    if sh_degree is None:
        return {**shapes, "rgb_logits": (3,)}
    shapes["sh_base"] = (1, 3)
    if sh_degree > 0:
        shapes["sh_rest"] = ((sh_degree + 1) ** 2 - 1, 3)
    return shapes


def _sh_degree(state: Mapping[str, Tensor]) -> int | None:
    """The colour model that a state is of."""
    if "sh_base" not in state:
        return None
    rest = state["sh_rest"].shape[1] if "sh_rest" in state and state["sh_rest"].ndim == 3 else 0
    return {0: 0, 3: 1, 8: 2, 15: 3}.get(rest, 0)


def _check_state(state: Mapping[str, Tensor], sh_degree: int | None) -> None:
    """Refuse a state that is not a scene of this colour model.

    Raises:
        CheckpointError: a tensor is missing, too many, misshapen, or not finite; or there are no Gaussians.
    """
    count = len(state["means"]) if "means" in state and state["means"].ndim else 0
    if count == 0:
        raise CheckpointError("The scene's state holds no Gaussians.", "Use an earlier checkpoint.")
    kind = "scene of plain RGB" if sh_degree is None else f"scene of spherical harmonics of degree {sh_degree}"
    check_state(kind, state, {name: (count, *shape) for name, shape in _parameter_shapes(sh_degree).items()})
