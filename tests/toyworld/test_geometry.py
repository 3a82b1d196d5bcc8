"""Primitives against closed forms; tracing, sampling and layouts against the distance function itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamkit.errors import ConfigError
from dreamkit.toyworld import primitives as p
from dreamkit.toyworld.geometry import (
    SUPPORTS,
    Placed,
    beside,
    on_top,
    sample_surface,
    signed_distance,
    trace,
)
from dreamkit.toyworld.marching import TOLERANCE
from dreamkit.toyworld.objects import OBJECT_NAMES, OBJECTS, ShapeParameters

Views = list[tuple[float, float]]


def orbit_rays(views: Views, size: int, radius: float = 3.0, fov: float = 40.0) -> tuple[Tensor, Tensor]:
    """Rays [B, size, size, 3] of cameras at (azimuth, elevation) degrees that look at the origin."""
    origins, directions = [], []
    reach = math.tan(math.radians(fov / 2)) * ((torch.arange(size) + 0.5) / size * 2 - 1)
    for azimuth, elevation in views:
        a, e = math.radians(azimuth), math.radians(elevation)
        back = torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
        right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]), back), dim=0)
        up = torch.linalg.cross(back, right)
        direction = -back + reach[None, :, None] * right - reach[:, None, None] * up
        directions.append(torch.nn.functional.normalize(direction, dim=-1))
        origins.append((radius * back).expand_as(direction))
    return torch.stack(origins), torch.stack(directions)


def points(count: int, seed: int = 0, limit: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, generator=generator, dtype=torch.float64) * 2 - 1) * limit


def placed(name: str, seed: int | None = None, **changes: object) -> Placed:
    parameters = ShapeParameters()
    if seed is not None:
        parameters = ShapeParameters.sample(torch.Generator().manual_seed(seed))
    return Placed(OBJECTS[name], parameters, **changes)  # type: ignore[arg-type]


# Primitives against closed forms, in float64.


def test_sphere_and_half_space_closed_forms() -> None:
    q = points(500)
    torch.testing.assert_close(p.sphere(0.7)(q), q.norm(dim=1) - 0.7)
    torch.testing.assert_close(p.half_space(0, 2, 0, 0.3)(q), q[:, 1] - 0.3)


def test_box_closed_form_by_clamping() -> None:
    q, half = points(500), torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    nearest = q.clamp(-half, half)
    outside = (q - nearest).norm(dim=1)
    inside = (half - q.abs()).amin(1)
    expected = torch.where(outside > 0, outside, -inside)
    torch.testing.assert_close(p.box(0.3, 0.5, 0.9)(q), expected, atol=1e-9, rtol=0)


def test_torus_and_capsule_closed_forms() -> None:
    q = points(500)
    ring = torch.stack((q[:, 0], torch.zeros(500), q[:, 2]), 1)
    ring = 0.8 * torch.nn.functional.normalize(ring, dim=1)
    torch.testing.assert_close(p.torus(0.8, 0.2)(q), (q - ring).norm(dim=1) - 0.2)
    a, b = torch.tensor([0.1, -0.4, 0.2]).double(), torch.tensor([-0.5, 0.6, 0.3]).double()
    along = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    expected = torch.cdist(q, a + along * (b - a)).amin(1) - 0.15
    torch.testing.assert_close(p.capsule(a.tolist(), b.tolist(), 0.15)(q), expected, atol=1e-4, rtol=0)


def _revolved(profile: list[tuple[float, float]], q: Tensor) -> Tensor:
    """Signed distance to a convex profile (r, y), counter-clockwise and closed on the axis, revolved about y."""
    from scipy.spatial import cKDTree

    r = np.hypot(q[:, 0].numpy(), q[:, 2].numpy())
    flat = np.stack((r, q[:, 1].numpy()), 1)
    corners = np.array(profile)
    t = np.linspace(0, 1, 20001)[:, None]
    border = np.concatenate([corners[i] + t * (corners[i + 1] - corners[i]) for i in range(len(corners) - 1)])
    distance, _ = cKDTree(border).query(flat)
    inside = np.ones(len(flat), dtype=bool)
    for i in range(len(corners) - 1):
        edge = corners[i + 1] - corners[i]
        relative = flat - corners[i]
        inside &= edge[0] * relative[:, 1] - edge[1] * relative[:, 0] >= 0
    return torch.from_numpy(np.where(inside, -distance, distance))


def test_cylinder_and_cones_against_sampled_profiles() -> None:
    q = points(400, seed=3)
    cases = [
        (p.cylinder(0.5, 0.8), [(0.0, -0.8), (0.5, -0.8), (0.5, 0.8), (0.0, 0.8)]),
        (p.capped_cone(0.6, 0.9, 0.3), [(0.0, -0.6), (0.9, -0.6), (0.3, 0.6), (0.0, 0.6)]),
        (p.cone(0.7, 0.5), [(0.0, -0.7), (0.5, -0.7), (0.0, 0.7)]),
    ]
    for field, profile in cases:
        torch.testing.assert_close(field(q), _revolved(profile, q), atol=2e-4, rtol=0)


def test_extruded_polygon_equals_box_and_handles_notches() -> None:
    q = points(500, seed=4)
    square = [(-0.4, -0.6), (0.4, -0.6), (0.4, 0.6), (-0.4, 0.6)]
    torch.testing.assert_close(p.extruded_polygon(square, 0.3)(q), p.box(0.4, 0.6, 0.3)(q), atol=1e-8, rtol=0)
    notched = p.extruded_polygon([(-1, -1), (1, -1), (1, 1), (0, 0), (-1, 1)], 0.5)
    inside = notched(torch.tensor([[0.0, 0.5, 0.0], [0.0, -0.5, 0.0], [0.8, 0.5, 0.0]]))
    assert inside[0] > 0
    assert inside[1] < 0
    assert inside[2] < 0


def test_lower_bounds_have_the_right_sign_and_never_exceed_the_exact_distance() -> None:
    q = points(800, seed=5)
    triangle = [(-0.6, -0.5), (0.7, -0.5), (0.1, 0.6)]
    exact, cheap = p.extruded_polygon(triangle, 0.3)(q), p.convex_prism(triangle, 0.3)(q)
    assert bool((cheap <= exact + 1e-9).all())
    assert bool(((cheap < 0) == (exact < 0)).all())
    pyramid = p.pyramid(0.5, 0.6)
    corners = torch.tensor([[0, 0.6, 0], [0.5, -0.6, 0.5], [-0.5, -0.6, 0.5], [0.5, -0.6, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(pyramid(corners), torch.zeros(4).double(), atol=1e-9, rtol=0)
    assert bool((pyramid(q) <= (torch.cdist(q, corners).amin(1)) + 1e-9).all())


@settings(max_examples=20, deadline=None)
@given(radii=st.tuples(*[st.floats(0.2, 1.0)] * 3))
def test_ellipsoid_sign_axes_and_bound(radii: tuple[float, float, float]) -> None:
    field = p.ellipsoid(*radii)
    q = points(300, seed=6)
    r = torch.tensor(radii, dtype=torch.float64)
    k = (q / r).norm(dim=1)
    assert bool(((field(q) < 0) == (k < 1)).all())
    axis = torch.diag(r) * 1.5
    torch.testing.assert_close(field(axis), r * 0.5, atol=1e-6, rtol=1e-6)
    surface = torch.nn.functional.normalize(points(20000, seed=7), dim=1) * r
    nearest = torch.cdist(q, surface).amin(1)
    outside = k > 1
    assert bool((field(q) <= nearest * 1.15 + 1e-3)[outside].all())


@settings(max_examples=20, deadline=None)
@given(move=st.tuples(*[st.floats(-1, 1)] * 3), angles=st.tuples(*[st.floats(-180, 180)] * 3), size=st.floats(0.3, 3))
def test_rigid_moves_and_scale_keep_exactness(
    move: tuple[float, float, float], angles: tuple[float, float, float], size: float
) -> None:
    field = p.box(0.3, 0.5, 0.4)
    q = points(100, seed=8)
    ax, ay, az = angles
    moved = field.rotated_x(ax).rotated_y(ay).rotated_z(az).scaled(size).moved(*move)

    def turn(axis: int, degrees: float) -> Tensor:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        m = torch.eye(3, dtype=torch.float64)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        m[i, i], m[j, j], m[i, j], m[j, i] = c, c, -s, s
        return m

    image = size * (q @ (turn(2, az) @ turn(1, ay) @ turn(0, ax)).T) + torch.tensor(move, dtype=torch.float64)
    torch.testing.assert_close(moved(image), size * field(q), atol=1e-8, rtol=1e-8)


def test_operators_combine_like_sets() -> None:
    q = points(2000, seed=9)
    a, b = p.sphere(0.9), p.box(0.6, 0.9, 0.6).moved(0.4, 0, 0)
    inside_a, inside_b = a(q) < 0, b(q) < 0
    assert torch.equal((a | b)(q) < 0, inside_a | inside_b)
    assert torch.equal((a & b)(q) < 0, inside_a & inside_b)
    assert torch.equal((a - b)(q) < 0, inside_a & ~inside_b)
    assert torch.equal(p.union(a, b)(q), (a | b)(q))
    blended = a.smooth_union(b, 0.2)(q)
    assert bool((blended <= (a | b)(q) + 1e-12).all())
    far = (a(q) - b(q)).abs() > 0.2
    torch.testing.assert_close(blended[far], (a | b)(q)[far])
    mirrored = p.sphere(0.3).moved(0.8, 0, 0.8).mirrored_x().mirrored_z()
    centres = torch.tensor([[sx * 0.8, 0.0, sz * 0.8] for sx in (-1, 1) for sz in (-1, 1)]).double()
    torch.testing.assert_close(mirrored(q), torch.cdist(q, centres).amin(1) - 0.3)


# Tracing.


def test_traced_sphere_matches_the_closed_form() -> None:
    ball = placed("ball", translation=(0.1, -0.05, 0.2), scale=0.7)
    o, d = orbit_rays([(20, 10), (200, -5)], 48)
    g = trace([ball], o, d)
    centre, radius = torch.tensor(ball.translation), 0.88 * 0.7
    along = ((centre - o) * d).sum(-1)
    squared = radius**2 - ((centre - o) ** 2).sum(-1) + along**2
    sure = squared.abs() > 2e-3
    assert torch.equal(g.hit[sure], (squared > 0)[sure])
    both = g.hit & (squared > 0.02)
    expected = along - squared.clamp(min=0).sqrt()
    assert float((g.depth - expected)[both].abs().max()) < 5e-3
    normal = torch.nn.functional.normalize(o + g.depth[..., None].nan_to_num(posinf=0.0) * d - centre, dim=-1)
    assert float(((g.normal * normal).sum(-1))[both].min()) > 0.999
    assert bool(torch.isinf(g.depth[~g.hit]).all())
    assert float(g.normal[~g.hit].abs().max()) == 0


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_hits_lie_on_the_surface_and_misses_see_no_inside(name: str) -> None:
    scene = [placed(name, seed=11, yaw=30.0)]
    o, d = orbit_rays([(0, 10), (125, 40)], 40)
    g = trace(scene, o, d)
    hits = (o + g.depth[..., None] * d)[g.hit]
    assert g.hit.float().mean() > 0.04
    assert float(signed_distance(scene, hits).abs().max()) <= 2 * TOLERANCE
    torch.testing.assert_close(g.normal[g.hit].norm(dim=-1), torch.ones(len(hits)), atol=1e-5, rtol=0)
    # Dense steps along every ray: none that missed goes into the object, none passes through before its hit.
    misses = 0
    for depth in torch.arange(2.0, 4.0, 0.04).tolist():
        inside = signed_distance(scene, o + depth * d) < -4e-3
        misses += int((inside & (depth < g.depth - 0.01)).sum())
    assert misses == 0


@pytest.mark.parametrize("name", ["duck", "car", "mug", "bottle"])
def test_normals_agree_with_the_gradient(name: str) -> None:
    scene = [placed(name, seed=2, yaw=-50.0, scale=0.8)]
    o, d = orbit_rays([(40, 25)], 64)
    g = trace(scene, o, d)
    hits = (o + g.depth[..., None] * d)[g.hit].double().requires_grad_()
    (gradient,) = torch.autograd.grad(signed_distance(scene, hits).sum(), hits)
    cosine = torch.cosine_similarity(gradient, g.normal[g.hit].double(), dim=-1)
    # Edges and seams are bevelled by the finite difference; everything else agrees.
    assert float((cosine > 0.995).float().mean()) > 0.93
    assert float(((g.normal * d).sum(-1))[g.hit].median()) < -0.3


def test_buffers_are_the_same_twice_and_for_any_batching() -> None:
    scene = [placed("robot", seed=5)]
    o, d = orbit_rays([(0, 0), (70, 30), (180, 10)], 32)
    first, second = trace(scene, o, d), trace(scene, o, d)
    for name in ("hit", "normal", "part", "slot", "position", "depth"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    alone = trace(scene, o[1:2], d[1:2])
    assert float((alone.hit != first.hit[1:2]).float().mean()) < 0.002
    both = alone.hit & first.hit[1:2]
    assert float((alone.depth - first.depth[1:2])[both].abs().max()) < 0.05


def test_sizes_that_are_no_multiple_of_a_tile_agree_with_tiles() -> None:
    scene = [placed("cat")]
    o, d = orbit_rays([(15, 15)], 40)
    whole, part = trace(scene, o, d), trace(scene, o[:, :37, :39], d[:, :37, :39])
    assert part.hit.shape == (1, 37, 39)
    assert float((whole.hit[:, :37, :39] != part.hit).float().mean()) < 0.004


def test_placement_turns_the_front_and_reports_object_space() -> None:
    o, d = orbit_rays([(90, 0)], 64)
    turned = trace([placed("duck", yaw=90.0)], o, d)
    front = trace([placed("duck")], *orbit_rays([(0, 0)], 64))
    assert float((turned.part != front.part).float().mean()) < 0.01
    both = turned.hit & front.hit
    assert float((turned.position - front.position)[both].abs().quantile(0.95)) < 0.01


def test_bad_scenes_and_rays_are_explained() -> None:
    o, d = orbit_rays([(0, 0)], 8)
    with pytest.raises(ConfigError, match="1 to 255"):
        trace([], o, d)
    with pytest.raises(ConfigError, match=r"\[B, H, W, 3\]"):
        trace([placed("ball")], o[0], d[0])
    with pytest.raises(ConfigError, match="positive"):
        placed("ball", scale=0.0)
    with pytest.raises(ConfigError, match="at least 1"):
        sample_surface([placed("ball")], 0, torch.Generator())
    with pytest.raises(ConfigError, match="flat top"):
        on_top(placed("cube"), placed("duck"))
    with pytest.raises(ConfigError, match="left or right"):
        beside(placed("cube"), placed("duck"), side="above")


# Samples and layouts.


def test_surface_samples_are_uniform_on_a_sphere_and_seeded() -> None:
    scene = [placed("ball")]
    a, normals = sample_surface(scene, 4000, torch.Generator().manual_seed(1))
    b, _ = sample_surface(scene, 4000, torch.Generator().manual_seed(1))
    assert a.shape == (4000, 3)
    assert torch.equal(a, b)
    torch.testing.assert_close(a.norm(dim=1), torch.full((4000,), 0.88), atol=2e-3, rtol=0)
    # Archimedes: every coordinate of a uniform point on a sphere is uniform.
    for axis in range(3):
        share = torch.histc(a[:, axis] / 0.88, 4, -1, 1) / 4000
        assert float((share - 0.25).abs().max()) < 0.04
    assert float((torch.nn.functional.normalize(a, dim=1) * normals).sum(1).min()) > 0.999


@pytest.mark.parametrize("support", SUPPORTS)
def test_on_top_stands_on_the_support(support: str) -> None:
    upper, lower = on_top(placed("duck", seed=11, yaw=40.0), placed(support, seed=2, yaw=15.0))
    assert (upper.object.name, lower.object.name) == ("duck", support)
    above, _ = sample_surface([upper], 3000, torch.Generator().manual_seed(0))
    below, _ = sample_surface([lower], 3000, torch.Generator().manual_seed(0))
    assert abs(float(above[:, 1].min() - below[:, 1].max())) < 0.03
    assert float(signed_distance([lower], above).min()) > -0.01
    assert 0.9 < float(torch.cat((above, below)).norm(dim=1).max()) < 1.0
    g = trace([upper, lower], *orbit_rays([(0, 20)], 64))
    rows = torch.arange(64)[:, None].expand(64, 64)
    assert rows[g.hit[0] & (g.slot[0] == 0)].float().mean() < rows[g.hit[0] & (g.slot[0] == 1)].float().mean()


@pytest.mark.parametrize("side", ["left", "right"])
def test_beside_separates_and_fits(side: str) -> None:
    a, b = beside(placed("car", seed=3, yaw=60.0), placed("house", seed=4), side=side)
    first, _ = sample_surface([a], 3000, torch.Generator().manual_seed(0))
    second, _ = sample_surface([b], 3000, torch.Generator().manual_seed(0))
    gap = second[:, 0].min() - first[:, 0].max() if side == "left" else first[:, 0].min() - second[:, 0].max()
    assert 0.02 < float(gap) < 0.2
    assert abs(float(first[:, 1].min() - second[:, 1].min())) < 0.03
    assert 0.9 < float(torch.cat((first, second)).norm(dim=1).max()) < 1.0
