"""Shading against its formula: compositing, light, gloss, patterns, palettes."""

import math

import pytest
import torch
from torch import Tensor

from dreamkit.scenes.cameras import Camera
from dreamkit.toyworld.captions import COLOURS, MATERIALS, OBJECTS, Thing
from dreamkit.toyworld.objects import ACCENT_COLOURS
from dreamkit.toyworld.shading import (
    NOTHING,
    PARTS,
    Geometry,
    Look,
    contrast_colour,
    random_look,
    shade,
    stripes_and_spots,
)

SIDE = 8
UP = torch.tensor([0.0, 0.0, 1.0])


def geometry(code: int | Tensor = 0, normal: Tensor = UP, pattern: int = 0, batch: int = 1) -> Geometry:
    """A wall that fills the picture, one part and one normal."""
    codes = code if isinstance(code, Tensor) else torch.full((batch, SIDE, SIDE), code)
    return Geometry(
        normal=normal.expand(batch, SIDE, SIDE, 3).clone(),
        code=codes.to(torch.uint8),
        pattern=torch.full((batch, SIDE, SIDE), pattern, dtype=torch.uint8),
        to_camera=UP.expand(batch, 3).clone(),
    )


def look(light: Tensor = UP, ambient: float = 1.0, background: float = 0.3, batch: int = 1) -> Look:
    return Look(light.expand(batch, 3), torch.full((batch,), ambient), torch.full((batch, 3, 1, 1), background))


def paint(wall: Geometry, things: list[list[Thing]], light: Look, jitter: Tensor | None = None) -> Tensor:
    return shade(wall, things, light, torch.zeros(len(things), 3) if jitter is None else jitter)


def colour(image: Tensor) -> Tensor:
    """The one colour of a uniform picture."""
    flat = image[0].flatten(1)
    torch.testing.assert_close(flat, flat[:, :1].expand_as(flat), rtol=0, atol=1e-6)
    return flat[:, 0]


class TestCompositing:
    def test_background_is_exact_where_nothing_is_hit(self) -> None:
        background = torch.rand(2, 3, SIDE // 2, SIDE // 2)
        light = Look(UP.expand(2, 3), torch.tensor([0.6, 0.7]), background)
        out = paint(geometry(NOTHING, batch=2), [[Thing("mug", "red")], [Thing("car", "blue", "shiny")]], light)
        assert torch.equal(out, background)

    def test_a_half_covered_pixel_is_half_of_each(self) -> None:
        code = torch.full((1, SIDE, SIDE), NOTHING)
        code[:, :, 0] = 0  # the left column of every 2x2 block at the left edge
        out = paint(geometry(code), [[Thing("mug", "red")]], look(background=0.4))
        torch.testing.assert_close(out[0, :, 0, 0], 0.5 * torch.tensor(COLOURS["red"]) + 0.2)
        assert torch.equal(out[0, :, :, 1:], torch.full((3, SIDE // 2, SIDE // 2 - 1), 0.4))

    def test_it_is_deterministic_and_in_range(self) -> None:
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 4, (3, SIDE, SIDE), generator=generator)
        codes[codes == 3] = NOTHING
        normal = torch.nn.functional.normalize(torch.randn(3, SIDE, SIDE, 3, generator=generator), dim=-1)
        wall = Geometry(normal, codes.to(torch.uint8), codes.to(torch.uint8) % 4, UP.expand(3, 3))
        poses = Camera.orbit([0.0, 90.0, 200.0], 10.0, 3.0).pose
        things = [[Thing("mug", "red", material)] for material in MATERIALS[1:]]
        light = random_look(poses, SIDE // 2, generator)
        one, two = (paint(wall, things, light, torch.full((3, 3), 0.04)) for _ in range(2))
        assert torch.equal(one, two)
        assert float(one.min()) >= 0
        assert float(one.max()) <= 1


class TestColours:
    @pytest.mark.parametrize("name", COLOURS)
    def test_a_plain_body_shows_its_palette_colour_under_full_ambient_light(self, name: str) -> None:
        out = paint(geometry(), [[Thing("mug", name)]], look(light=-UP))
        torch.testing.assert_close(colour(out), torch.tensor(COLOURS[name]))

    def test_jitter_shifts_the_body_within_range(self) -> None:
        jitter = torch.tensor([[0.04, -0.04, 0.0]])
        out = paint(geometry(), [[Thing("mug", "white")]], look(), 2 * jitter)
        torch.testing.assert_close(colour(out), (torch.tensor(COLOURS["white"]) + 2 * jitter[0]).clamp(0, 1))

    @pytest.mark.parametrize("part", range(1, len(ACCENT_COLOURS)))
    @pytest.mark.parametrize("slot", [0, 1])
    def test_parts_keep_their_own_colour(self, part: int, slot: int) -> None:
        """Eyes stay black and noses orange, whatever the body's colour, pattern and jitter."""
        things = [[Thing("mug", "green", "striped"), Thing("table", "blue", "spotted")]]
        wall = geometry(part + PARTS * slot, pattern=3)
        out = paint(wall, things, look(), torch.full((1, 3), 0.04))
        torch.testing.assert_close(colour(out), torch.tensor(ACCENT_COLOURS[part]))

    def test_slots_have_their_own_colours(self) -> None:
        things = [[Thing("mug", "green"), Thing("table", "blue")]]
        for slot, name in enumerate(("green", "blue")):
            out = paint(geometry(PARTS * slot), things, look())
            torch.testing.assert_close(colour(out), torch.tensor(COLOURS[name]))

    def test_rows_have_their_own_things(self) -> None:
        out = paint(geometry(batch=2), [[Thing("mug", "red")], [Thing("mug", "cyan")]], look(batch=2))
        for row, name in enumerate(("red", "cyan")):
            torch.testing.assert_close(out[row, :, 0, 0], torch.tensor(COLOURS[name]))

    def test_unknown_material(self) -> None:
        with pytest.raises(ValueError, match="material"):
            paint(geometry(), [[Thing("mug", "red", "furry")]], look())


class TestLight:
    @pytest.mark.parametrize("degrees", [0.0, 30.0, 60.0, 90.0, 150.0])
    @pytest.mark.parametrize("ambient", [0.0, 0.5])
    def test_lambert(self, degrees: float, ambient: float) -> None:
        angle = math.radians(degrees)
        light = torch.tensor([math.sin(angle), 0.0, math.cos(angle)])
        out = paint(geometry(), [[Thing("mug", "orange")]], look(light, ambient))
        factor = ambient + (1 - ambient) * max(0.0, math.cos(angle))
        torch.testing.assert_close(colour(out), torch.tensor(COLOURS["orange"]) * factor, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("degrees", [0.0, 10.0, 40.0])
    def test_gloss(self, degrees: float) -> None:
        """The half vector of a light at angle a is at a / 2 from the camera, to which the wall is turned."""
        angle = math.radians(degrees)
        light = torch.tensor([math.sin(angle), 0.0, math.cos(angle)])
        dull, shiny = (
            colour(paint(geometry(), [[Thing("mug", "blue", material)]], look(light))) for material in MATERIALS[::3]
        )
        expected = (dull + 0.55 * math.cos(angle / 2) ** 24).clamp(0, 1)
        torch.testing.assert_close(shiny, expected, rtol=1e-4, atol=1e-5)

    def test_normals_in_bytes(self) -> None:
        normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
        wall = geometry(normal=normal)
        packed = Geometry((wall.normal * 127).round().to(torch.int8), wall.code, wall.pattern, wall.to_camera)
        light = look(torch.tensor([0.6, 0.0, 0.8]), 0.5)
        things = [[Thing("mug", "red")]]
        torch.testing.assert_close(paint(packed, things, light), paint(wall, things, light), rtol=0, atol=0.01)

    def test_normals_are_not_changed(self) -> None:
        wall = geometry()
        kept = wall.normal.clone()
        paint(wall, [[Thing("mug", "red")]], look())
        assert torch.equal(wall.normal, kept)


class TestPatterns:
    @pytest.mark.parametrize(
        ("material", "bit", "patterned"),
        [
            ("striped", 1, True), ("striped", 2, False), ("spotted", 2, True), ("spotted", 1, False),
            ("plain", 3, False), ("shiny", 3, False), ("striped", 3, True), ("spotted", 3, True),
        ],
    )  # fmt: skip
    def test_which_bit_shows(self, material: str, bit: int, patterned: bool) -> None:
        # Light from behind: no gloss.
        out = colour(paint(geometry(pattern=bit), [[Thing("mug", "red", material)]], look(light=-UP)))
        red = torch.tensor(COLOURS["red"])
        torch.testing.assert_close(out, contrast_colour(red) if patterned else red)

    def test_stripes(self) -> None:
        y = torch.linspace(-1, 1, 401)
        points = torch.stack([torch.zeros_like(y), y, torch.full_like(y, 0.19)], dim=-1)
        striped = (stripes_and_spots(points) & 1).bool()
        assert torch.equal(striped, torch.sin(2 * torch.pi * y / 0.34) > 0.3)
        share = math.acos(0.3) / math.pi  # of a sine above 0.3
        assert float(striped.float().mean()) == pytest.approx(share, abs=0.05)

    def test_spots(self) -> None:
        """Balls of radius 0.3 on a body-centred lattice, in cells of 0.38."""
        inside = torch.tensor([[0.0, 0.0, 0.0], [0.38, -0.38, 0.76], [0.19, 0.19, 0.19], [0.11, 0.0, 0.0]])
        outside = torch.tensor([[0.19, 0.0, 0.0], [0.12, 0.0, 0.0], [0.0, 0.19, 0.19]])
        assert bool((stripes_and_spots(inside) & 2).bool().all())
        assert not bool((stripes_and_spots(outside) & 2).bool().any())
        points = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)) * 3.8
        share = float((stripes_and_spots(points) & 2).bool().float().mean())
        assert share == pytest.approx(2 * 4 / 3 * math.pi * 0.3**3, abs=0.01)

    @pytest.mark.parametrize("name", COLOURS)
    def test_stripes_stand_out_from_every_colour(self, name: str) -> None:
        body = torch.tensor(COLOURS[name])
        other = contrast_colour(body)
        assert float((body - other).abs().max()) > 0.25
        assert bool(((other >= 0) & (other <= 1)).all())


class TestRandomLook:
    azimuths = torch.linspace(-180, 170, 400)
    poses = Camera.orbit(azimuths, 20.0, 3.0).pose

    def test_the_light_is_above_and_on_the_cameras_side(self) -> None:
        light = random_look(self.poses, 8, torch.Generator().manual_seed(0)).light
        torch.testing.assert_close(light.norm(dim=-1), torch.ones(400))
        elevation = torch.asin(light[:, 1])
        assert float(elevation.min()) >= 0.5 - 1e-4
        assert float(elevation.max()) <= 1.2 + 1e-4
        off = torch.atan2(light[:, 0], light[:, 2]) - torch.deg2rad(self.azimuths)
        off = torch.remainder(off + math.pi, 2 * math.pi) - math.pi
        assert float(off.abs().max()) <= 1.2 + 1e-4
        assert float(off.abs().max()) > 1.1

    def test_ambient_and_background(self) -> None:
        look = random_look(self.poses, 8, torch.Generator().manual_seed(0))
        assert look.background.shape == (400, 3, 8, 8)
        assert float(look.background.min()) >= 0
        assert float(look.background.max()) <= 1
        assert 0.5 <= float(look.ambient.min()) < float(look.ambient.max()) <= 0.75
        spread = look.background.amax(dim=1) - look.background.amin(dim=1)
        neutral = (spread.amax(dim=(1, 2)) < 0.05).float().mean()
        assert 0.6 < float(neutral) < 0.95
        graded = (look.background[:, :, 0] - look.background[:, :, -1]).abs().amax(dim=(1, 2)) > 0.01
        assert 0.1 < float(graded.float().mean()) < 0.5

    def test_same_seed_same_look(self) -> None:
        one, two, other = (random_look(self.poses, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(one.light, two.light)
        assert torch.equal(one.background, two.background)
        assert not torch.equal(one.light, other.light)


def test_part_codes_fit() -> None:
    """Every part of every object has to fit beside the slot in the code, and in the colour tables."""
    assert len(ACCENT_COLOURS) <= PARTS
    assert len(OBJECTS) < 255
