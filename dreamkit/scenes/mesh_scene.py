"""A scene as a surface that can change its shape and its topology: marching tetrahedra, a rasteriser, painted points.

The shape is a signed distance at every vertex of a tetrahedral grid, whose vertices move a little (DMTet, Shen et al.,
arXiv 2111.04276); the paint is a hash grid. After nvdiffrec (Munkberg et al., arXiv 2111.12503), Fantasia3D (Chen et
al., arXiv 2303.13873) and the mesh stage of ProlificDreamer (Wang et al., arXiv 2305.16213).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dreamkit.config import Schedule
from dreamkit.errors import SceneError
from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.field import HashNetwork
from dreamkit.scenes.mesh_config import MeshSceneConfig
from dreamkit.scenes.rendering import Rendering, background_colors, check_backend, expand_background
from dreamkit.scenes.shading import Lighting, draw_lighting
from dreamkit.scenes.static_mesh import layered
from dreamkit.scenes.tetrahedra import TetrahedralGrid, crossed_edges, marching_tetrahedra, tetrahedral_grid
from dreamkit.scenes.trainable import Moment, TrainableScene, check_state
from dreamkit.scenes.triangles import Mesh, sample_surface

_PAINT_STEPS = 300
"""Steps that teach the paint of a scene to a new mesh."""
_PAINT_POINTS, _PAINT_BATCH = 2**17, 4096
_CLEARANCE = 0.01
"""Cells that the surface keeps from every vertex of the grid."""
_FARTHEST = 2.0
"""Cells beyond which a signed distance is cut off where a shape is taken over."""


@dataclass(frozen=True)
class Surface:
    """The triangles of a scene now.

    Args:
        vertices: [V, 3] world units.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        normals: [V, 3] unit, outward.
    """

    vertices: Tensor
    faces: Tensor
    normals: Tensor


class MeshScene(TrainableScene):
    """A mesh that can be rendered, trained, saved and loaded exactly.

    Args:
        state: `distances` [G] in cells, `offsets` [G, 3] in cells, the paint's parameters, and `half`, half the edge of
            the grid's cube (what was larger than the config's cube got a larger one).
        config: its size; must fit the state.

    Raises:
        CheckpointError: the state is incomplete, misshapen or not finite.
    """

    def __init__(self, state: Mapping[str, Tensor], config: MeshSceneConfig) -> None:
        self._build(config, torch.Generator())
        self.load_state(state)

    @classmethod
    def initialise(cls, config: MeshSceneConfig, generator: torch.Generator) -> MeshScene:
        """A gray sphere."""
        scene = cls.__new__(cls)
        scene._build(config, generator)
        return scene

    @classmethod
    def from_field(
        cls,
        config: MeshSceneConfig,
        inside: Callable[[Tensor], Tensor],
        colors: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        half: float | None = None,
    ) -> MeshScene:
        """The shape and the paint of something else.

        Args:
            config: its size.
            inside: points [N, 3] to [N], negative inside, of any scale.
            colors: points [N, 3] on the surface to [N, 3] in [0, 1].
            generator: the only source of randomness.
            half: half the edge of the cube that holds it, by default the config's.

        Raises:
            SceneError: nothing is inside, or everything.
        """
        scene = cls.initialise(config, generator)
        scene._fill(half or config.half, torch.device("cpu"))
        with torch.no_grad():
            values = torch.cat([inside(part) for part in scene.grid.vertices.split(2**16)])
            scene._distances.copy_(_as_distances(values, config.resolution))
        scene.surface()  # refuses an empty one
        scene._learn_paint(colors, generator)
        return scene

    def _build(self, config: MeshSceneConfig, generator: torch.Generator) -> None:
        check_backend("mesh_rasterize")
        self.config = config
        self.optimizers = {}
        self.paint = HashNetwork(config.grid, config.half, 3, generator)
        self._fill(config.half, torch.device("cpu"))
        start = (self.grid.vertices.norm(dim=1) - config.radius) / self.grid.cell
        self._distances = nn.Parameter(start.clamp(-_FARTHEST, _FARTHEST))
        self._offsets = nn.Parameter(torch.zeros_like(self.grid.vertices))

    def _fill(self, half: float, device: torch.device) -> None:
        """Stretch the grids of shape and paint over the cube [-half, half]^3."""
        half = float(torch.tensor(half))  # as a state keeps it
        self.grid: TetrahedralGrid = tetrahedral_grid(self.config.resolution, half, device)
        self.paint.extent = half

    def parameters_dict(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name."""
        paint = {f"paint.{name}": parameter for name, parameter in self.paint.named_parameters()}
        return {"distances": self._distances, "offsets": self._offsets, **paint}

    def rate(self, name: str) -> Schedule:
        """Learning rate of a parameter."""
        key = {"distances": "distances", "offsets": "offsets", "paint.table": "table"}.get(name, "network")
        schedule: Schedule = getattr(self.config, f"{key}_rate")
        return schedule

    def colors(self, points: Tensor) -> Tensor:
        """Paint [N, 3] in [0, 1] at points [N, 3]."""
        return torch.sigmoid(self.paint(points))

    def surface(self) -> Surface:
        """The triangles, differentiable in distances and offsets.

        Raises:
            SceneError: nothing is inside, or everything.
        """
        # Closed at the border of the grid, whatever was learned there.
        distances = torch.where(self.grid.border, self._distances.detach().clamp_min(0.1), self._distances)
        # Less than half a cell either way: tetrahedra never turn inside out by much.
        moved = self.grid.vertices + 0.45 * self.grid.cell * torch.tanh(self._offsets)
        # Off zero: a surface that touches a vertex of the grid has slivers there, and gradients without bound.
        clear = torch.copysign(distances.abs().clamp_min(_CLEARANCE), distances)
        distances = distances + (clear - distances).detach()
        vertices, faces = marching_tetrahedra(moved, distances, self.grid.tetrahedra)
        a, b, c = (vertices[faces[:, k]] for k in range(3))
        area = torch.linalg.cross(b - a, c - a)
        sums = torch.zeros_like(vertices).index_add(0, faces.reshape(-1), area.repeat_interleave(3, dim=0))
        return Surface(vertices, faces, functional.normalize(sums, dim=1, eps=1e-12))

    def render(self, cameras: Camera, background: Tensor | None = None) -> Rendering:
        """Render the painted surface without light; see `TrainableScene.render`."""
        return self._render(cameras, background, None)

    def render_training(self, cameras: Camera, background: Tensor | None, moment: Moment) -> Rendering:
        """Render for training; some views are lit, as the config says. `info` is the `Surface`."""
        shares = (moment.value(self.config.lambertian_share), moment.value(self.config.textureless_share))
        cameras = cameras.to(self.device)
        lighting = draw_lighting(cameras.position, *shares, self.config.ambient, moment.generator)
        return self._render(cameras, background, None if lighting.is_plain else lighting)

    def penalties(self, rendering: Rendering, moment: Moment) -> dict[str, Tensor]:
        """Smoothness of the surface and agreement of the signs, each times its weight; weights of 0 are left out."""
        smooth, floater = (moment.value(getattr(self.config, f"{n}_weight")) for n in ("smoothness", "floater"))
        found: dict[str, Tensor] = {}
        if smooth:
            found["smoothness"] = smooth * normal_consistency(rendering.info)
        if floater:
            found["floater"] = floater * sign_entropy(self._distances, self.grid.tetrahedra)
        return found

    def state(self) -> dict[str, Tensor]:
        """A copy of the parameters, and the size of the cube."""
        return super().state() | {"half": torch.tensor(self.grid.half)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` returned, exactly. Optimisers are dropped: make them again.

        Raises:
            CheckpointError: the state is incomplete, misshapen, not finite or of another kind of scene.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters_dict().items()}
        check_state("mesh", state, shapes | {"half": ()})
        device = state["distances"].device
        self._fill(float(state["half"]), device)
        self._distances = nn.Parameter(state["distances"].detach().clone())
        self._offsets = nn.Parameter(state["offsets"].detach().clone())
        self.paint.to(device)
        with torch.no_grad():
            for name, parameter in self.paint.named_parameters():
                parameter.copy_(state[f"paint.{name}"])
        self.optimizers = {}

    def to(self, device: torch.device | str) -> MeshScene:
        """A copy of the scene on `device`, without optimisers."""
        return MeshScene({name: value.to(device) for name, value in self.state().items()}, self.config)

    def _render(self, cameras: Camera, background: Tensor | None, lighting: Lighting | None) -> Rendering:
        cameras = cameras.to(self.device)
        surface = self.surface()
        if background is None:
            background = background_colors(self.config.background, 1)

        def shade(known: Tensor, points: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
            normals, colors = functional.normalize(known, dim=1, eps=1e-12), self.colors(points)
            return (colors if lighting is None else lighting.shade(colors, normals, points, views)), normals

        behind = expand_background(background.to(self.device), len(cameras))
        rendering = layered(cameras, surface.vertices, surface.faces, surface.normals, shade, behind)
        rendering.info = surface
        return rendering

    def _learn_paint(self, colors: Callable[[Tensor], Tensor], generator: torch.Generator) -> None:
        """Regress the colours of points on the surface."""
        with torch.no_grad():
            surface = self.surface()
            vertices, normals = (values.numpy() for values in (surface.vertices, surface.normals))
            mesh = Mesh(vertices, surface.faces.int().numpy(), np.zeros_like(vertices), normals)
            points, _, _ = sample_surface(mesh, _PAINT_POINTS, generator)
            wanted = torch.cat([colors(part) for part in points.split(2**16)])
        optimizer = torch.optim.Adam(self.paint.parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-15)
        for step in range(_PAINT_STEPS):
            optimizer.param_groups[0]["lr"] = 1e-2 * 0.1 ** (step / _PAINT_STEPS)
            chosen = torch.randint(len(points), (_PAINT_BATCH,), generator=generator)
            loss = functional.mse_loss(self.colors(points[chosen]), wanted[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def normal_consistency(surface: Surface) -> Tensor:
    """A surface should be smooth: mean of 1 - n_a . n_b over the edges that two faces a and b share.

    As nvdiffrec and Magic3D regularise theirs.

    Returns:
        A scalar, 0 (flat) to 2.
    """
    from dreamkit_kernels.mesh_rasterize import mesh_edges  # type: ignore[import-not-found]

    faces = surface.faces
    a, b, c = (surface.vertices[faces[:, k]] for k in range(3))
    normals = functional.normalize(torch.linalg.cross(b - a, c - a), dim=1, eps=1e-12)
    beyond = mesh_edges(faces)  # 3 f + i, or -1
    own, edge = (beyond >= 0).nonzero().unbind(dim=1)
    neighbour = beyond[own, edge].long() // 3
    return (1 - (normals[own] * normals[neighbour]).sum(dim=1)).mean()


def sign_entropy(
    distances: Tensor,  # [G]
    tetrahedra: Tensor,  # [T, 4]
) -> Tensor:
    """Signs should change rarely: the mean binary cross-entropy of each end's sign by the other end's distance.

    Over the edges that the surface crosses; nvdiffrec's equation 2 (arXiv 2111.12503), against floaters.

    Returns:
        A scalar, >= 0.
    """
    a, b = distances[crossed_edges(distances, tetrahedra)].unbind(dim=1)
    cross = functional.binary_cross_entropy_with_logits
    return cross(a, (b > 0).to(a)) + cross(b, (a > 0).to(b))


def _as_distances(values: Tensor, resolution: int) -> Tensor:
    """Values of a field on the grid [G] in the scale of distances: divided by their slope at the surface, in cells.

    Raises:
        SceneError: not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise SceneError("The scene's field holds values that are not finite.", "Use an earlier checkpoint.")
    side = resolution + 1
    block = values.view(side, side, side)
    slopes = []
    for axis in range(3):
        low, high = block.narrow(axis, 0, resolution), block.narrow(axis, 1, resolution)
        crossing = (low < 0) != (high < 0)
        slopes.append((high - low)[crossing].abs())
    slope = torch.cat(slopes)
    scale = slope.median() if len(slope) else values.abs().max()
    return (values / scale.clamp_min(1e-12)).clamp(-_FARTHEST, _FARTHEST)
