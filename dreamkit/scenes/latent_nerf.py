"""A NeRF in the latent space of a teacher: rays give latents, a refinement layer corrects them, a decoder shows them.

After Metzer et al., "Latent-NeRF", arXiv 2211.07600 (a field of latents, distilled without an encoder), and Park et
al., "ED-NeRF", arXiv 2310.02712 (fitted to encoded pictures, refined, and edited there).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.config import Schedule
from dreamkit.errors import CheckpointError, ConfigError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.field import Field, HashNetwork
from dreamkit.scenes.latent_refinement import RefinementConfig, RefinementLayer
from dreamkit.scenes.nerf import NerfScene
from dreamkit.scenes.nerf_config import NerfConfig
from dreamkit.scenes.rendering import Rendering, background_colors, expand_background
from dreamkit.scenes.trainable import Moment

_SOLID = 8  # pixels along a side of a picture of one colour
_LEVELS = 4  # steps of each channel of the backgrounds of training, so that each is encoded once
_MOST_COLORS = 128  # that are remembered with their latents
_COLOR_AZIMUTHS, _COLOR_ELEVATIONS = [45.0 * k for k in range(8)], [0.0, 35.0] * 4
_MOST_CELLS = 2**20  # of a latent picture that a file may ask for


@dataclass(frozen=True)
class LatentSpace:
    """What a teacher denoises, and the way there and back.

    Args:
        shape: (C, h, w) of a square picture.
        encode: pictures [B, 3, H, W] in [0, 1] to latents [B, C, h, w].
        decode: latents [B, C, h', w'] to pictures [B, 3, H', W'] in [0, 1].
    """

    shape: tuple[int, int, int]
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def pixel_space(size: int = 64) -> LatentSpace:
    """The space of a teacher of square pictures without an autoencoder: x = 2 image - 1."""
    return LatentSpace((3, size, size), lambda image: 2 * image - 1, lambda x: (x / 2 + 0.5).clamp(0, 1))


class LatentField(Field):
    """What is at a point: a raw value that density comes from, and a latent. Shape and look have a hash grid each.

    Args:
        config: its kind and size.
        channels: C of a latent.
        generator: the only source of randomness.
        find_rgb: [3, C + 1], the linear map from latents to colours; asked for when colours are.
    """

    def __init__(
        self, config: NerfConfig, channels: int, generator: torch.Generator, find_rgb: Callable[[], Tensor]
    ) -> None:
        nn.Module.__init__(self)  # the networks are others than those of a field of colours
        self.config = config
        self.network = HashNetwork(config.grid, config.half, 1, generator)
        self.look = HashNetwork(config.grid, config.half, channels, generator)
        self._find_rgb = find_rgb
        self._rgb: Tensor | None = None

    def forward(
        self,
        points: Tensor,  # [N, 3] world units
    ) -> tuple[Tensor, Tensor]:
        """Raw values [N], and black [N, 3]: the look of a ray is summed as `latents`."""
        return self.raw(points), torch.zeros_like(points)

    def latents(
        self,
        points: Tensor,  # [N, 3] world units
    ) -> Tensor:
        """Latents [N, C]."""
        out: Tensor = self.look(points)
        return out

    def colors(self, points: Tensor) -> Tensor:
        """Colours [N, 3] in [0, 1], about: a decoder needs a whole picture, a point has the linear map alone."""
        if self._rgb is None:
            self._rgb = self._find_rgb()
        return functional.linear(self.latents(points), self._rgb[:, :-1], self._rgb[:, -1]).clamp(0, 1)

    def forget_colors(self) -> None:
        """The field changed: the map to colours has to be found again."""
        self._rgb = None


class LatentNerfScene(NerfScene):
    """A field of latents in a cube, with a refinement layer, that is trained on latents and shown as pictures.

        z = sum_s w_s z_s + (1 - sum_s w_s) encode(background);   image = decode(z + f(z))

    `render` decodes: films, scores and files see what they see of other scenes. `render_training`, `latents` and
    `composite` give latents in the place of the image, from cameras of h x w pixels.

    Args:
        state: what `state` returned.
        config: kind and size of the field; must fit the state.
        space: that of the teacher it is made for; must fit the state.
        refinement: size of the refinement layer; must fit the state.

    Raises:
        CheckpointError: the state is incomplete, misshapen, not finite, or of another latent space.
        ConfigError: a configuration of what latents don't have, see `initialise`.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        config: NerfConfig,
        space: LatentSpace,
        refinement: RefinementConfig | None = None,
    ) -> None:
        self.space = space
        self.refinement = refinement or RefinementConfig()
        super().__init__(state, config)

    @classmethod
    def initialise(
        cls,
        config: NerfConfig,
        generator: torch.Generator,
        space: LatentSpace | None = None,
        refinement: RefinementConfig | None = None,
    ) -> LatentNerfScene:
        """A new scene: a ball of fog.

        Args:
            config: its kind and size.
            generator: the only source of randomness.
            space: that of the teacher; by default pixels, 64 x 64.
            refinement: size of the refinement layer.

        Raises:
            ConfigError: signed distances, light or a learned background, which latents don't have.
        """
        scene = cls.__new__(cls)
        scene.space = space or pixel_space()
        scene.refinement = refinement or RefinementConfig()
        scene._build(config, generator)
        scene.update_occupancy(0.0, 1, generator)
        return scene

    def _build(self, config: NerfConfig, generator: torch.Generator) -> None:
        _check(config)
        self._behind_colors: dict[tuple[float, ...], Tensor] = {}
        super()._build(config, generator)
        if self.refinement.width:
            self.modules["refinement"] = RefinementLayer(self.space.shape[0], self.refinement.width, generator)

    def _make_field(self, config: NerfConfig, generator: torch.Generator) -> LatentField:
        return LatentField(config, self.space.shape[0], generator, self._linear_colors)

    @property
    def field(self) -> LatentField:
        """What is at a point."""
        field = self.modules["field"]
        assert isinstance(field, LatentField)
        return field

    def rate(self, name: str) -> Schedule:
        """Learning rate of a parameter."""
        return self.refinement.refinement_rate if name.startswith("refinement") else super().rate(name)

    def backgrounds(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """[n, 3] colours in the mode of the config, rounded to fourths: each is encoded once."""
        colors = background_colors(self.config.background, n, generator, self.device)  # type: ignore[arg-type]
        return (colors * _LEVELS).round() / _LEVELS

    def refine(
        self,
        latents: Tensor,  # [B, C, h, w]
    ) -> Tensor:
        """What the refinement layer makes of latents from rays; they themselves without one."""
        refined: Tensor = self.modules["refinement"](latents) if self.refinement.width else latents
        return refined

    def composite(
        self,
        cameras: Camera,
        background: Tensor | None = None,
        moment: Moment | None = None,
        with_normals: bool = False,
    ) -> Rendering:
        """Latents of rays, before the refinement layer.

        Args:
            cameras: B views.
            background: [3] or [B, 3] colours in [0, 1]; the config's own by default (gray if it is random).
            moment: when in a run, which jitters the samples.
            with_normals: whether there shall be normals also where no penalty needs them.

        Returns:
            Latents [B, C, h, w] in the place of the image, alpha, depth and normal; `info` is the `Trace`.

        Raises:
            SceneError: the background's shape does not fit, or more samples than memory can be expected to hold.
        """
        from dreamkit_kernels.volume_render import accumulate  # type: ignore[import-not-found]

        cameras = cameras.to(self.device)
        rays, views = self._rays(cameras, None if moment is None else moment.generator)
        oriented = with_normals or (moment is not None and moment.value(self.config.orientation_weight) > 0)
        trace = self._tracer().trace(rays, views, oriented)
        latents = accumulate(trace.weights, self.field.latents(trace.points), trace.samples)
        behind = self._latents_behind(background, cameras).permute(0, 2, 3, 1).reshape(len(views), -1)
        rendering = self._composed(cameras, rays, behind, latents, trace.alpha, trace.depth, trace.normal)
        rendering.info = trace
        return rendering

    def latents(self, cameras: Camera, background: Tensor | None = None, with_normals: bool = False) -> Rendering:
        """Refined latents [B, C, h, w] in the place of the image, see `composite`."""
        rendering = self.composite(cameras, background, None, with_normals)
        return replace(rendering, image=self.refine(rendering.image))

    def render_training(self, cameras: Camera, background: Tensor | None, moment: Moment) -> Rendering:
        """Refined latents [B, C, h, w] in the place of the image, of jittered samples. `info` is the `Trace`.

        Raises:
            SceneError: more samples than memory can be expected to hold.
        """
        self.field.forget_colors()
        rendering = self.composite(cameras, background, moment)
        return replace(rendering, image=self.refine(rendering.image))

    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Decoded pictures at the cameras' size, a view at a time: they have the detail of h rows of latents.

        Args:
            cameras: B views.
            background: [3] or [B, 3] colours in [0, 1]; the config's own by default (gray if it is random).

        Returns:
            image, and alpha, depth and normal enlarged from those of the latents.

        Raises:
            SceneError: the background's shape does not fit.
        """
        size = (cameras.height, cameras.width)
        rows = self.space.shape[1]
        small = cameras.resized(rows, max(1, round(rows * cameras.width / cameras.height)))
        behind = None if background is None else expand_background(background, len(cameras))
        views: list[tuple[Tensor, ...]] = []
        for view in range(len(cameras)):
            seen = self.latents(small[view : view + 1], None if behind is None else behind[view], with_normals=True)
            image = _at_size(self.space.decode(seen.image), size).clamp(0, 1)
            views.append((image, *(_at_size(layer, size) for layer in (seen.alpha, seen.depth, seen.normal))))
        return Rendering(*(torch.cat(layers) for layers in zip(*views, strict=True)))

    def state(self) -> dict[str, Tensor]:
        """A copy of the parameters, the occupancy grid and the shape of a latent picture."""
        return super().state() | {"shape": torch.tensor(self.space.shape)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned, exactly. Optimisers are dropped: make them again.

        Raises:
            CheckpointError: the state is incomplete, misshapen, not finite, of another kind of scene or latent space.
        """
        shape = latent_shape(state)
        if shape != self.space.shape:
            raise CheckpointError(
                f"The scene is made of latents of {shape}, and its teacher's are of {self.space.shape}.",
                "Use it with the teacher it was made with.",
            )
        self._behind_colors = {}
        super().load_state({name: value for name, value in state.items() if name != "shape"})
        self.field.forget_colors()

    def to(self, device: torch.device | str) -> LatentNerfScene:
        """A copy of the scene on `device`, without optimisers."""
        state = {name: value.to(device) for name, value in self.state().items()}
        return LatentNerfScene(state, self.config, self.space, self.refinement)

    @torch.no_grad()
    def _latents_behind(self, background: Tensor | None, cameras: Camera) -> Tensor:
        """Encoded backgrounds [B, C, h, w]: all of it, for an encoder's borders differ from the middle."""
        if background is None:
            background = self.backgrounds(1)[0]
        rows = expand_background(background, len(cameras))
        encoded = torch.cat([self._encoded(tuple(row.tolist())) for row in rows])
        return _at_size(encoded, (cameras.height, cameras.width))

    def _encoded(self, color: tuple[float, ...]) -> Tensor:
        """The latents [1, C, h, w] of a picture of one colour."""
        if color not in self._behind_colors:
            if len(self._behind_colors) >= _MOST_COLORS:
                self._behind_colors.clear()
            solid = torch.tensor(color, device=self.device)[None, :, None, None].expand(1, 3, _SOLID, _SOLID)
            self._behind_colors[color] = _at_size(self.space.encode(solid).to(self.device), self.space.shape[1:])
        return self._behind_colors[color]

    @torch.no_grad()
    def _linear_colors(self) -> Tensor:
        """[3, C + 1]: the linear map and the shift from latents of rays to what is decoded there, by least squares.

        Over pixels of eight views all round that are opaque. A few numbers a colour are all there is to it: Latent-NeRF
        shows latents the same way.
        """
        _, height, width = self.space.shape
        cameras = Camera.orbit(_COLOR_AZIMUTHS, _COLOR_ELEVATIONS, 3.2 * self.config.half, 40.0, height, width)
        latents, wanted = [], []
        for view in range(len(cameras)):
            seen = self.composite(cameras[view : view + 1])
            picture = _at_size(self.space.decode(self.refine(seen.image)), (height, width))
            opaque = seen.alpha[0, 0] > 0.9
            latents.append(seen.image[0][:, opaque].T)
            wanted.append(picture[0][:, opaque].T)
        known = torch.cat(latents).double().cpu()
        known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
        # Of the smallest norm where views don't decide it, as of an empty scene.
        found = torch.linalg.lstsq(known, torch.cat(wanted).double().cpu(), driver="gelsd").solution
        return found.T.float().to(self.device)


def latent_shape(state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """(C, h, w) of the latent pictures of a scene, from its state.

    Raises:
        CheckpointError: the state is not of a latent scene.
    """
    shape = [int(value) for value in state["shape"].flatten()] if "shape" in state else []
    if len(shape) != 3 or min(shape) < 1 or shape[1] != shape[2] or shape[0] * shape[1] * shape[2] > _MOST_CELLS:
        raise CheckpointError("The state is not of a latent scene.", "Load it with the configuration it was made with.")
    return shape[0], shape[1], shape[2]


def _check(config: NerfConfig) -> None:
    """Refuse what latents don't have.

    Raises:
        ConfigError: naming it.
    """
    if config.signed:
        raise ConfigError("A latent scene has no signed distance.", "Use nerf.geometry=density.")
    if config.background in ("learned", "environment"):
        raise ConfigError(
            f"A latent scene has no {config.background} background.", "Use a colour: nerf.background=neutral."
        )
    for name in ("lambertian_share", "textureless_share"):
        schedule: Schedule = getattr(config, name)
        if schedule.start_value or schedule.end_value:
            raise ConfigError("A latent scene can't be lit: light falls on colours.", f"Use nerf.{name}=0.")


def _at_size(layer: Tensor, size: tuple[int, int]) -> Tensor:
    """Layers [B, C, H, W] at another height and width."""
    if tuple(layer.shape[-2:]) == tuple(size):
        return layer
    return functional.interpolate(layer, size, mode="bilinear", antialias=True)
