"""Frames of moving toys: meshes rasterised a clip at a time, on a checkered floor with soft shadows.

    colour = albedo * (ambient + (1 - ambient) * max(0, n.l)),

as in `shading`, at twice the frame's size and averaged 2x2. The floor is evaluated at the frame's own size, since it is
smooth: its checker and its shadows have no hard edges, and where its squares become too small for the pixels they fade.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.projection import projection_matrix
from dreamkit.toyworld.motion_meshes import ToyMesh
from dreamkit.toyworld.motion_scripts import Script
from dreamkit.toyworld.shading import palettes, stripes_and_spots

_TILE = 0.8  # edge of a square of the floor, world units
_EDGE = 3.0  # steepness of the squares' edges
_FADE = (5.0, 12.0)  # distances between which the floor turns into the background
_SHADOW = 0.5  # darkest share
_TOLERANCE = 0.06  # world units by which a tracked point may lie behind what is seen


@dataclass(frozen=True)
class Stage:
    """The look of a clip.

    Args:
        light: [3] unit vector towards the light, from above.
        ambient: share of light that comes from everywhere, in [0, 1].
        background: [3] colour far away, in [0, 1].
        floor: [2, 3] colours of the squares.
        shift: [2] where the squares begin along x and z, world units.
        jitter: [3] added to the body colours.
    """

    light: Tensor
    ambient: float
    background: Tensor
    floor: Tensor
    shift: Tensor
    jitter: Tensor


def random_stage(generator: torch.Generator) -> Stage:
    """A light high above and in front, a mostly neutral floor, and a background, mostly paler than the floor."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    azimuth, elevation = uniform(-1.1, 1.1), uniform(0.85, 1.25)
    light = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()])
    tinted = bool(uniform(0, 1) < 0.4)
    base = uniform(0.45, 0.9, 3) if tinted else uniform(0.4, 0.88, 1) + uniform(-0.02, 0.02, 3)
    step = uniform(0.025, 0.05)
    background = (base + uniform(0.0, 0.25)).clamp(0, 1) if bool(uniform(0, 1) < 0.7) else uniform(0.35, 0.95, 3)
    return Stage(
        light=light,
        ambient=float(uniform(0.5, 0.7)),
        background=background,
        floor=torch.stack([base - step, base + step]).clamp(0, 1),
        shift=uniform(0, 2 * _TILE, 2),
        jitter=0.04 * uniform(-1, 1, 3),
    )


@dataclass(frozen=True)
class Shot:
    """What the rasteriser saw of a script, before any colour.

    Args:
        cameras: F views at the frames' size.
        poses: [F, K, 4, 4] object to world.
        meshes: K meshes.
        faces: [F, 2 S, 2 S] int32 faces of the joined meshes, -1 for none.
        barycentrics: [F, 2 S, 2 S, 3].
        depth: [F, 2 S, 2 S] along the viewing axis, world units; the far plane where there is nothing.
    """

    cameras: Camera
    poses: Tensor
    meshes: list[ToyMesh]
    faces: Tensor
    barycentrics: Tensor
    depth: Tensor


@torch.no_grad()
def shoot(script: Script, meshes: list[ToyMesh], times: Tensor, size: int, cameras: Camera | None = None) -> Shot:
    """Rasterise a script's objects at times [F] for frames of `size` pixels, seen by its own cameras or others."""
    from dreamkit_kernels.mesh_rasterize import rasterize  # type: ignore[import-not-found]

    cameras, poses = cameras or script.cameras(times, size), script.poses(times)
    to_clip = (projection_matrix(cameras) @ cameras.view_matrix)[:, None] @ poses  # [F, K, 4, 4]
    clip = torch.cat([_transform(to_clip[:, slot], mesh.vertices) for slot, mesh in enumerate(meshes)], dim=1)
    faces, first = [], 0
    for mesh in meshes:
        faces.append(mesh.faces + first)
        first += len(mesh.vertices)
    seen = rasterize(clip, torch.cat(faces), 2 * size, 2 * size)
    near, far = cameras.near, cameras.far
    depth = 2 * near * far / (far + near - seen.depth * (far - near))
    return Shot(cameras, poses, meshes, seen.faces, seen.barycentrics, depth)


def _transform(matrices: Tensor, points: Tensor) -> Tensor:
    """[F, 4, 4] times points [V, 3]: [F, V, 4]."""
    return torch.baddbmm(matrices[:, None, :, 3], points.expand(len(matrices), -1, -1), matrices[:, :, :3].mT)


@torch.no_grad()
def paint(shot: Shot, script: Script, stage: Stage) -> Tensor:
    """The frames of a shot: [F, 3, S, S] in [0, 1]."""
    covered = shot.faces >= 0
    layers = torch.zeros(covered.numel(), 4)
    where = covered.flatten().nonzero()[:, 0]
    layers[where, :3] = _object_colours(shot, script, stage, where)
    layers[where, 3] = 1.0
    blocks = layers.view(*covered.shape, 4).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [F, S, 2, S, 2, 4]
    # Four strided sums: pooling channels that come last takes thrice as long.
    pooled = (blocks[:, :, 0, :, 0] + blocks[:, :, 0, :, 1] + blocks[:, :, 1, :, 0] + blocks[:, :, 1, :, 1]) / 4
    colours, alpha = pooled.permute(0, 3, 1, 2).split([3, 1], dim=1)
    return colours + (1 - alpha) * _floor(shot, stage)


@torch.no_grad()
def shapes(shot: Shot) -> Tensor:
    """What stands where in a shot, at a quarter of the frames' size: [F, 4, S / 4, S / 4].

    Channel 0 is the share covered by objects, 1 to 3 the surface normal in camera axes (x right, y up, z towards the
    camera) times that share.
    """
    covered = shot.faces >= 0
    where = covered.flatten().nonzero()[:, 0]
    seen = _seen(shot, where)
    to_camera = shot.cameras.camera_to_world[:, None, :3, :3].mT @ shot.poses[..., :3, :3]  # [F, K, 3, 3]
    normal = (to_camera[seen.frame, seen.slot] @ seen.normal[..., None])[..., 0]
    layers = torch.zeros(covered.numel(), 4)
    layers[where, 0] = 1.0
    layers[where, 1:] = functional.normalize(normal, dim=1)
    return functional.avg_pool2d(layers.view(*covered.shape, 4).permute(0, 3, 1, 2), 8)


@dataclass(frozen=True)
class _Seen:
    """What P pixels see: frame and slot [P], face [P], position and normal [P, 3] in the object's space."""

    frame: Tensor
    slot: Tensor
    face: Tensor
    position: Tensor
    normal: Tensor


def _slots(meshes: list[ToyMesh]) -> Tensor:
    """The slot of each face of the joined meshes."""
    return torch.cat([torch.full((len(mesh.faces),), slot) for slot, mesh in enumerate(meshes)])


def _seen(shot: Shot, where: Tensor) -> _Seen:
    """What the flat pixels `where` [P] see, each of which sees an object."""
    face = shot.faces.flatten()[where].long()
    weights = shot.barycentrics.view(-1, 3)[where][..., None]
    corners = torch.cat([mesh.vertices[mesh.faces] for mesh in shot.meshes])
    normals = torch.cat([mesh.normals for mesh in shot.meshes])
    known = (torch.cat([corners, normals], dim=-1)[face] * weights).sum(dim=1)
    return _Seen(where // shot.faces[0].numel(), _slots(shot.meshes)[face], face, *known.split(3, dim=1))


def _object_colours(shot: Shot, script: Script, stage: Stage, where: Tensor) -> Tensor:
    """Colours [P, 3] of the flat pixels `where` [P], which see an object."""
    seen = _seen(shot, where)
    face, frame, slot, position, normal = seen.face, seen.frame, seen.slot, seen.position, seen.normal
    parts = torch.cat([mesh.parts for mesh in shot.meshes])
    colours, bits, _ = palettes([script.things], stage.jitter[None])
    code = (parts + 16 * _slots(shot.meshes))[face]
    patterned = (stripes_and_spots(position) & bits[0][code]) > 0
    albedo = colours[0].flatten(0, 1)[code + colours.shape[2] * patterned]
    # The light as the object sees it: turning one vector an object and frame is less than turning all normals.
    lights = functional.normalize(stage.light @ shot.poses[..., :3, :3], dim=-1)  # [F, K, 3]
    lambert = (functional.normalize(normal, dim=1) * lights[frame, slot]).sum(dim=1).clamp_min(0)
    return albedo * (stage.ambient + (1 - stage.ambient) * lambert)[:, None]


def _floor(shot: Shot, stage: Stage) -> Tensor:
    """The floor and what is beyond it, without objects: [F, 3, S, S]."""
    origins, directions = shot.cameras.rays()
    down = -directions[..., 1]
    reach = torch.where(down > 1e-3, origins[..., 1] / down.clamp_min(1e-3), math.inf)
    near = reach < _FADE[1]
    distance = reach.clamp(max=_FADE[1])
    spot = origins[..., ::2] + distance[..., None] * directions[..., ::2]  # x and z, [F, S, S, 2]
    wave = torch.sin((spot + stage.shift) * (math.pi / _TILE)).prod(dim=-1)
    # A pixel's length on the floor, seen at a grazing angle, in squares.
    footprint = distance / shot.cameras.focal[:, None, None] / down.clamp_min(1e-2) / _TILE
    contrast = (1.4 - 2 * footprint).clamp(0, 1)
    checker = 0.5 + 0.5 * contrast * (_EDGE * wave).clamp(-1, 1)
    fade = ((distance - _FADE[0]) / (_FADE[1] - _FADE[0])).clamp(0, 1)
    fade = torch.where(near, fade * fade * (3 - 2 * fade), 1.0)
    light = (1 - fade) * _shadow(shot, stage, spot)
    first, second = stage.floor[:, :, None, None]
    colour = torch.lerp(first, second, checker[:, None])
    return colour * light[:, None] + stage.background[:, None, None] * fade[:, None]


def _shadow(shot: Shot, stage: Stage, spot: Tensor) -> Tensor:
    """Light [F, S, S] that the objects leave on floor points [F, S, S, 2]: 1 - s exp(-d^4), d in half sizes.

    Each object casts the soft shadow of the ellipsoid of its size, away from the light, wider and fainter the higher
    it is.
    """
    light = torch.ones_like(spot[..., 0])
    for slot, mesh in enumerate(shot.meshes):
        pose = shot.poses[:, slot]
        axes = pose[:, :3, :3] * mesh.half_sizes
        spread = axes @ axes.mT  # [F, 3, 3]
        height = (pose[:, 1, 3] - spread[:, 1, 1].sqrt()).clamp_min(0)
        middle = pose[:, :3:2, 3] - stage.light[::2] / stage.light[1] * height[:, None]
        flat = spread[:, ::2, ::2] * (1 + 0.6 * height)[:, None, None] ** 2
        offset = spot - middle[:, None, None]
        square = torch.einsum("fhwi,fij,fhwj->fhw", offset, torch.linalg.inv(flat), offset)
        light = light * (1 - _SHADOW * torch.exp(-height / 0.9)[:, None, None] * torch.exp(-square * square))
    return light


@torch.no_grad()
def track(shot: Shot, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Follow points through a shot.

    Three quarters are points of the objects, first those that the first frame shows, the others of the floor.

    Args:
        shot: what was seen.
        count: points N.
        generator: source of the points.

    Returns:
        tracks [F, N, 2]: x to the right and y down, in [0, 1] inside the frame; and visible [F, N].
    """
    kinds = len(shot.meshes)
    on_objects = max(kinds, 3 * count // 4)
    tracks, visible = [], []
    for slot, mesh in enumerate(shot.meshes):
        share = on_objects // kinds + (slot < on_objects % kinds)
        points, normals = mesh.sample_surface(3 * share, generator)
        pose = shot.poses[:, slot]
        world = _transform(pose, points)[..., :3]
        facing = ((shot.cameras.position[:, None] - world) * (normals @ pose[:, :3, :3].mT)).sum(dim=-1) > 0
        where, seen = _look(shot, world)
        seen &= facing
        best = torch.argsort(seen[0].int(), descending=True, stable=True)[:share]
        tracks.append(where[:, best])
        visible.append(seen[:, best])
    radius = 1.6 * torch.rand(count - on_objects, generator=generator).sqrt()
    angle = 2 * math.pi * torch.rand(count - on_objects, generator=generator)
    floor = torch.stack([radius * angle.cos(), torch.zeros_like(radius), radius * angle.sin()], dim=-1)
    where, seen = _look(shot, floor.expand(len(shot.poses), -1, -1))
    return torch.cat([*tracks, where], dim=1), torch.cat([*visible, seen], dim=1)


def _look(shot: Shot, world: Tensor) -> tuple[Tensor, Tensor]:
    """Where points [F, N, 3] appear, [F, N, 2], and whether nothing hides them there, [F, N]."""
    matrices = projection_matrix(shot.cameras) @ shot.cameras.view_matrix
    clip = world @ matrices[:, :, :3].mT + matrices[:, None, :, 3]
    depth = clip[..., 3]
    ndc = clip[..., :2] / depth.clamp_min(shot.cameras.near)[..., None]
    where = 0.5 + 0.5 * ndc * torch.tensor([1.0, -1.0])
    inside = ((where >= 0) & (where < 1)).all(dim=-1) & (depth > shot.cameras.near)
    size = shot.depth.shape[-1]
    column, row = (where * size).long().clamp(0, size - 1).unbind(-1)
    first = shot.depth.flatten(1).gather(1, row * size + column)
    return where, inside & (depth < first + _TOLERANCE)
