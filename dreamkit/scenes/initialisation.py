"""Where a scene of Gaussians starts: a ball of fog, a cloud of points, or the skin of a shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dreamkit.errors import SceneError


def ball_points(
    count: int,
    radius: float,
    generator: torch.Generator,
) -> Tensor:
    """Uniform points in a ball about the origin: direction from a normal draw, distance radius u^(1/3).

    Args:
        count: how many, >= 1.
        radius: world units, > 0.
        generator: the only source of randomness.

    Returns:
        [count, 3] world units.
    """
    device = generator.device
    directions = torch.randn(count, 3, generator=generator, device=device)
    directions = directions / directions.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    distance = torch.rand(count, 1, generator=generator, device=device) ** (1.0 / 3.0)
    return directions * distance * radius


def ball_spacing(count: int, radius: float, device: torch.device | str = "cpu") -> Tensor:
    """The edge of the cube that each of `count` points in a ball of `radius` has to itself.

    Returns:
        [count] world units, all equal.
    """
    return torch.full((count,), radius * (4.0 * math.pi / 3.0 / count) ** (1.0 / 3.0), device=device)


def neighbour_distance(
    points: Tensor,  # [N, 3] world units
    neighbours: int = 3,
) -> Tensor:
    """The mean distance of every point to its nearest `neighbours`.

    How 3D Gaussian Splatting starts its scales (arXiv 2308.04079). A lone point gets 0.1; distances are at
    least 1e-4, so that doubles do not vanish.

    Args:
        points: [N, 3] world units.
        neighbours: how many to average, >= 1.

    Returns:
        [N] world units.
    """
    from scipy.spatial import cKDTree

    count = min(neighbours, len(points) - 1)
    if count < 1:
        return points.new_full((len(points),), 0.1)
    host = points.detach().cpu().double().numpy()
    distances, _ = cKDTree(host).query(host, k=count + 1)
    mean = torch.from_numpy(distances[:, 1:].mean(axis=1)).to(points)
    return mean.clamp_min(1e-4)


def align_to_normals(
    normals: Tensor,  # [N, 3] any length but zero
) -> Tensor:
    """Quaternions whose local z axis is the normal: the shortest rotation from z, (1 + n_z, -n_y, n_x, 0).

    Args:
        normals: [N, 3] any length; a zero normal keeps z.

    Returns:
        [N, 4] unit quaternions, wxyz.
    """
    lengths = normals.norm(dim=-1, keepdim=True)
    up = normals.new_tensor([0.0, 0.0, 1.0])
    unit = torch.where(lengths > 1e-12, normals / lengths.clamp_min(1e-12), up)
    quaternions = torch.stack([1.0 + unit[:, 2], -unit[:, 1], unit[:, 0], torch.zeros_like(unit[:, 0])], dim=-1)
    # Straight down has no shortest rotation: half a turn about x is one of them.
    flip = quaternions.new_tensor([0.0, 1.0, 0.0, 0.0])
    quaternions = torch.where(quaternions.norm(dim=-1, keepdim=True) > 1e-6, quaternions, flip)
    return quaternions / quaternions.norm(dim=-1, keepdim=True)


def random_subset(total: int, count: int, generator: torch.Generator) -> Tensor:
    """The sorted indices of `count` of `total` things, without repetition; all when there are fewer."""
    if total <= count:
        return torch.arange(total, device=generator.device)
    return torch.randperm(total, generator=generator, device=generator.device)[:count].sort().values


def check_cloud(
    points: Tensor | None,
    colors: Tensor | None,
    normals: Tensor | None,
    needs_normals: bool,
) -> None:
    """Refuse a cloud that can't start a scene.

    Raises:
        SceneError: it is missing or empty, a shape is not [N, 3], or a value is not finite.
    """
    if points is None or len(points) == 0:
        raise SceneError("This initialisation needs points, and there are none.", "Give points [N, 3].")
    if needs_normals and normals is None:
        raise SceneError("The shape initialisation needs normals.", "Give normals [N, 3], or use 'points'.")
    for name, values in (("points", points), ("colors", colors), ("normals", normals)):
        if values is None:
            continue
        if values.shape != (len(points), 3):
            raise SceneError(f"The {name} have shape {tuple(values.shape)}.", f"Use [{len(points)}, 3].")
        if not bool(torch.isfinite(values).all()):
            raise SceneError(f"Some of the {name} are not finite.", "Remove NaN and infinite values.")
