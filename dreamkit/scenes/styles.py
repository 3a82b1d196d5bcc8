"""How a rendering is shown: its colours, normals, depth, or as unpainted clay. `wireframe` has the lines of a mesh.

Every style lies over the background by the rendering's alpha, so that outlines are as smooth as those of the colours:

    picture = alpha style + (1 - alpha) background
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from dreamkit.scenes.cameras import Camera
from dreamkit.scenes.rendering import Rendering, Scene

Style = Literal["rgb", "normal", "depth", "clay", "wireframe"]
Colormap = Literal["magma", "inferno", "viridis", "turbo", "gray"]

_SOLID = 0.5  # alpha from which on a pixel counts as surface
_SURVEY_VIEWS = 32
_SURVEY_SIZE = 64
_LAMP = (-0.45, 0.6, 0.66)  # camera axes


def over(
    picture: Tensor,  # [B, 3, H, W]
    alpha: Tensor,  # [B, 1, H, W]
    background: Tensor,  # [3]
) -> Tensor:
    """A picture over a colour: alpha picture + (1 - alpha) background, [B, 3, H, W] in [0, 1]."""
    behind = background.to(picture).reshape(3, 1, 1)
    return (alpha * picture + (1.0 - alpha) * behind).clamp(0.0, 1.0)


def unit_normals(rendering: Rendering) -> Tensor:
    """Normals n / |n|, world axes, [B, 3, H, W]; 0 where there is none."""
    return torch.nn.functional.normalize(rendering.normal, dim=1, eps=1e-6)


def expected_depth(rendering: Rendering) -> Tensor:
    """Depth / alpha: where the surface is along the viewing axis, world units, [B, 1, H, W]; 0 where none is seen."""
    return rendering.depth / rendering.alpha.clamp_min(1e-6)


def normal_picture(
    rendering: Rendering,
    background: Tensor,  # [3]
) -> Tensor:
    """World normals as colours, (n / |n| + 1) / 2: red is +x (right of the front), green up, blue toward the front.

    Args:
        rendering: B views.
        background: [3] colour in [0, 1].

    Returns:
        [B, 3, H, W] in [0, 1].
    """
    return over((unit_normals(rendering) + 1.0) / 2.0, rendering.alpha, background)


def depth_picture(
    rendering: Rendering,
    background: Tensor,  # [3]
    limits: tuple[float, float],
    colormap: Colormap = "magma",
) -> Tensor:
    """Expected depth in the colours of a map, c((far - depth) / (far - near)): what is near is bright.

    Args:
        rendering: B views.
        background: [3] colour in [0, 1].
        limits: near and far in world units, the same for all frames of a film (see `depth_limits`); what lies beyond
            has the colours of the ends.
        colormap: its name.

    Returns:
        [B, 3, H, W] in [0, 1].
    """
    near, far = limits
    nearness = ((far - expected_depth(rendering)) / max(far - near, 1e-6)).clamp(0.0, 1.0)
    return over(map_colors(nearness[:, 0], colormap), rendering.alpha, background)


def clay_picture(
    rendering: Rendering,
    cameras: Camera,
    background: Tensor,  # [3]
) -> Tensor:
    """Matt gray under a light that moves with the camera, see `shade_clay`.

    The normals are the mean ones of each pixel, normal / alpha: where they disagree it is lit as from between.

    Args:
        rendering: B views.
        cameras: those that saw it.
        background: [3] colour in [0, 1].

    Returns:
        [B, 3, H, W] in [0, 1].
    """
    shade = shade_clay(rendering.normal / rendering.alpha.clamp_min(1e-6), cameras)
    return over(shade.expand(-1, 3, -1, -1), rendering.alpha, background)


def shade_clay(
    normals: Tensor,  # [B, 3, H, W] world axes, length at most 1
    cameras: Camera,
) -> Tensor:
    """The gray of clay: a soft lamp above the camera's left shoulder, under a sky that is brighter than the ground.

        (0.62 (0.08 + 0.92 h^2) (0.7 + 0.3 (n_y + 1) / 2))^(1 / 2.2),   h = (n . l + 1) / 2

    Light wraps round the shape (half Lambert), so that its dark side has a shape too. n_y is up in the world.

    Args:
        normals: [B, 3, H, W] world axes, length at most 1.
        cameras: B views.

    Returns:
        [B, 1, H, W] in [0, 1], sRGB.
    """
    lamp = torch.nn.functional.normalize(normals.new_tensor(_LAMP), dim=0)
    toward = torch.einsum("bij,j->bi", cameras.camera_to_world[:, :3, :3].to(normals), lamp)
    wrapped = (torch.einsum("bihw,bi->bhw", normals, toward)[:, None] + 1.0) / 2.0
    sky = (normals[:, 1:2] + 1.0) / 2.0
    return (0.62 * (0.08 + 0.92 * wrapped**2) * (0.7 + 0.3 * sky)).clamp(0.0, 1.0) ** (1.0 / 2.2)


@cache
def _color_table(colormap: Colormap) -> Tensor:
    """[256, 3] colours of a map, from its dark end to its bright one."""
    from matplotlib import colormaps

    return torch.from_numpy(colormaps[colormap](range(256))[:, :3]).float()


def map_colors(
    values: Tensor,  # [B, H, W] in [0, 1]
    colormap: Colormap,
) -> Tensor:
    """Colours of a map of matplotlib, interpolated between its 256 entries, [B, 3, H, W]."""
    table = _color_table(colormap).to(values.device)
    places = values.clamp(0.0, 1.0) * 255.0
    low = places.floor().clamp_max(254.0)
    index, share = low.long(), (places - low)[..., None]
    return (table[index] * (1.0 - share) + table[index + 1] * share).movedim(-1, 1)


@torch.no_grad()
def depth_limits(scene: Scene, cameras: Camera) -> tuple[float, float]:
    """Nearest and farthest surface that a film shows, world units: the range of its depth pictures.

    Looks at small pictures from at most 32 of the cameras, and leaves out the nearest and the farthest half percent
    of the pixels in each, where stray points and soft outlines are.

    Args:
        scene: what is filmed.
        cameras: the film's.

    Returns:
        near < far; (0, 1) if nothing is seen.
    """
    small = survey(cameras)
    nearest, farthest = [], []
    for index in range(len(small)):
        rendering = scene.render(small[index], torch.zeros(3))
        depth = expected_depth(rendering)[rendering.alpha > _SOLID]
        if depth.numel():
            ends = torch.quantile(depth.float().cpu(), torch.tensor([0.005, 0.995]))
            nearest.append(float(ends[0]))
            farthest.append(float(ends[1]))
    if not nearest:
        return 0.0, 1.0
    near, far = min(nearest), max(farthest)
    return near, max(far, near + 1e-3 * abs(near) + 1e-6)


@torch.no_grad()
def scene_radius(scene: Scene) -> float:
    """Radius of the smallest ball about the origin that holds the surface seen from 14 sides, world units.

    The cameras stand 3 from the origin with a field of view of 60 degrees, so what is more than 1.5 from the origin
    may be missed.

    Args:
        scene: what is measured.

    Returns:
        The radius; 0 if nothing is seen.
    """
    azimuth = [60.0 * k for k in range(6)]
    angles = [(a, e) for e in (-30.0, 30.0) for a in azimuth] + [(0.0, 90.0), (0.0, -90.0)]
    cameras = Camera.orbit(
        [a for a, _ in angles], [e for _, e in angles], 3.0, 60.0, _SURVEY_SIZE, _SURVEY_SIZE
    )  # fmt: skip
    largest = 0.0
    for index in range(len(cameras)):
        rendering = scene.render(cameras[index], torch.zeros(3))
        origins, directions = (rays.to(rendering.depth) for rays in cameras[index].rays())
        along = torch.einsum("bhwi,bi->bhw", directions, cameras[index].forward.to(directions))
        points = origins + directions * (expected_depth(rendering)[:, 0] / along)[..., None]
        distances = points.norm(dim=-1)[rendering.alpha[:, 0] > _SOLID]
        if distances.numel():
            largest = max(largest, float(distances.max()))
    return largest


def survey(cameras: Camera) -> Camera:
    """At most 32 of the cameras at equal steps, with small pictures of the same shape."""
    count = min(len(cameras), _SURVEY_VIEWS)
    picked = cameras[torch.arange(count) * len(cameras) // count]
    scale = _SURVEY_SIZE / max(cameras.height, cameras.width)
    return picked.resized(max(1, round(scale * cameras.height)), max(1, round(scale * cameras.width)))
