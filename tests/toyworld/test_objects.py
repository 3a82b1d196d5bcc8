"""Every toy object: its size, its colours, its front, and that no two look alike."""

import pytest
import torch
from test_geometry import orbit_rays, placed

from dreamkit.errors import ConfigError
from dreamkit.toyworld.geometry import GBuffer, sample_surface, signed_distance, trace
from dreamkit.toyworld.objects import (
    ACCENT_COLOURS,
    BOUNDING_RADIUS,
    OBJECT_NAMES,
    OBJECTS,
    ShapeParameters,
    get_object,
)
from dreamkit.toyworld.solids import FITTED_RADIUS

ALL_ROUND = [(0.0, 10.0), (60.0, 20.0), (120.0, 0.0), (180.0, 15.0), (240.0, 30.0), (300.0, 45.0)]


def views(name: str, directions: list[tuple[float, float]], size: int = 48) -> GBuffer:
    return trace([placed(name)], *orbit_rays(directions, size))


def test_registry() -> None:
    assert len(OBJECTS) == 30
    assert len(set(OBJECT_NAMES)) == 30
    assert sum(kind.has_front for kind in OBJECTS.values()) == 18
    assert all(name == kind.name and name.islower() and name.isalpha() for name, kind in OBJECTS.items())
    assert get_object("duck") is OBJECTS["duck"]
    with pytest.raises(ConfigError, match="'unicorn'"):
        get_object("unicorn")


def test_palette_holds_colours() -> None:
    assert all(len(colour) == 3 and all(0 <= value <= 1 for value in colour) for colour in ACCENT_COLOURS)


def test_parameters_are_seeded_and_in_range() -> None:
    a = ShapeParameters.sample(torch.Generator().manual_seed(7))
    assert a == ShapeParameters.sample(torch.Generator().manual_seed(7))
    assert a != ShapeParameters.sample(torch.Generator().manual_seed(8))
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = ShapeParameters.sample(generator)
        assert 0.92 <= drawn.width <= 1.08
        assert 0.88 <= drawn.height <= 1.12
        assert 0.94 <= drawn.depth <= 1.06
        assert 0.90 <= min(drawn.feature, drawn.limb) <= max(drawn.feature, drawn.limb) <= 1.15


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_fits_and_fills_the_bounding_sphere(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    shell = torch.nn.functional.normalize(torch.randn(10000, 3, generator=generator), dim=1)
    for seed in (11, 12):
        instance = placed(name, seed=seed)
        assert bool((signed_distance([instance], shell * BOUNDING_RADIUS) > 0).all())
        surface, _ = sample_surface([instance], 1500, generator)
        radius = surface.norm(dim=1)
        assert 0.93 * FITTED_RADIUS < float(radius.max()) < 1.06 * FITTED_RADIUS
        middle = (surface.amin(0) + surface.amax(0)) / 2
        assert float(middle.abs().max()) < 0.06


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_distance_never_overestimates_outside(name: str) -> None:
    scene = [placed(name, seed=11)]
    generator = torch.Generator().manual_seed(4)
    surface, _ = sample_surface(scene, 3000, generator)
    q = torch.rand(1500, 3, generator=generator) * 2.4 - 1.2
    distance = signed_distance(scene, q)
    nearest = torch.cdist(q, surface).amin(1)
    outside = distance > 0
    assert bool((distance <= nearest + 2e-3)[outside].all())
    # Far away is outside.
    assert bool((distance[q.norm(dim=1) > BOUNDING_RADIUS] > 0).all())


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_just_above_the_surface_is_outside_and_just_below_inside(name: str) -> None:
    scene = [placed(name, seed=11)]
    surface, normals = sample_surface(scene, 800, torch.Generator().manual_seed(5))
    above, below = (signed_distance(scene, surface + step * normals) for step in (0.006, -0.006))
    # Parts that touch leave a few slits thinner than the step.
    assert float((above > 0).float().mean()) > 0.97
    assert float((below < 0).float().mean()) > 0.97


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_distance_and_part_agree_with_the_field(name: str) -> None:
    solid = OBJECTS[name].build(ShapeParameters())
    q = torch.rand(500, 3, generator=torch.Generator().manual_seed(6)) * 2 - 1
    distance, part = solid(q)
    torch.testing.assert_close(distance, solid.field(q), atol=1e-5, rtol=1e-5)
    assert part.dtype == torch.uint8
    assert int(part.max()) < len(ACCENT_COLOURS)


@pytest.mark.parametrize("name", OBJECT_NAMES)
def test_the_captions_colour_dominates(name: str) -> None:
    g = views(name, ALL_ROUND)
    share = ((g.part == 0) & g.hit).sum((1, 2)) / g.hit.sum((1, 2))
    assert int((share >= 0.6).sum()) >= 5
    assert float(share.min()) >= 0.45
    assert float(share.mean()) >= 0.68


@pytest.mark.parametrize("name", [kind.name for kind in OBJECTS.values() if kind.has_front])
def test_front_differs_from_back(name: str) -> None:
    g = views(name, [(0, 15), (180, 15)])
    # Seen from behind, mirrored so that the silhouettes match.
    back_part, back_hit, back_normal = g.part[1].flip(1), g.hit[1].flip(1), g.normal[1].flip(1)
    differs = (g.part[0] != back_part) | (g.hit[0] != back_hit)
    mirrored = back_normal * torch.tensor([1.0, 1.0, -1.0])
    differs |= (g.normal[0] * mirrored).sum(-1) < 0.7
    assert float(differs.sum() / (g.hit[0] | back_hit).sum()) > 0.05


@pytest.mark.parametrize("name", ["cube", "ball", "cone", "cylinder", "ring", "pyramid", "table", "tree", "rocket"])
def test_plain_objects_look_the_same_from_the_back(name: str) -> None:
    g = views(name, [(0, 15), (180, 15)])
    assert float((g.part[0] != g.part[1].flip(1)).sum() / g.hit[0].sum()) < 0.02
    assert float((g.hit[0] != g.hit[1].flip(1)).sum() / g.hit[0].sum()) < 0.03


def test_faces_show_only_from_the_front() -> None:
    for name in ("duck", "robot", "cat", "bear", "penguin", "ghost", "television", "clock"):
        g = views(name, [(0, 10), (180, 10)])
        accents = ((g.part != 0) & g.hit).sum((1, 2)) / g.hit.sum((1, 2))
        assert float(accents[0]) > float(accents[1]) + 0.08, name


def test_no_two_objects_look_alike() -> None:
    signatures = {}
    for name in OBJECT_NAMES:
        g = views(name, [(0, 15), (60, 20), (120, 20), (180, 15)], size=32)
        signatures[name] = torch.cat((g.hit[..., None].float(), g.normal, (g.part != 0)[..., None].float()), -1)
    for i, a in enumerate(OBJECT_NAMES):
        for b in OBJECT_NAMES[i + 1 :]:
            distance = (signatures[a] - signatures[b]).abs().mean((1, 2, 3))
            assert float(distance.mean()) > 0.02, (a, b)


def test_variation_changes_the_shape_but_not_the_object() -> None:
    o, d = orbit_rays([(30, 20)], 48)
    for name in ("duck", "house", "bottle"):
        a, b = (trace([placed(name, seed=seed)], o, d) for seed in (1, 2))
        changed = float((a.hit != b.hit).float().mean() / a.hit.float().mean())
        assert 0.005 < changed < 0.4
