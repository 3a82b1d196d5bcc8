"""From cached geometry to pictures: colours, patterns, light and background, fresh for every sample.

    colour = albedo * (ambient + (1 - ambient) * max(0, n.l)) + gloss * max(0, n.h)^24

with n the normal, l the direction to the light, h the half vector between l and the direction to the camera.
Geometry is cached at twice the picture's size and averaged 2x2, which antialiases edges and patterns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.toyworld.captions import COLOURS, MATERIALS, Thing
from dreamkit.toyworld.objects import ACCENT_COLOURS

PARTS = 16  # part codes a slot can hold
NOTHING = 2 * PARTS  # code of a pixel that shows no object
_GLOSS = {"plain": 0.0, "striped": 0.0, "spotted": 0.0, "shiny": 0.55}


@dataclass(frozen=True)
class Geometry:
    """What the camera sees of B scenes, before any colour.

    Args:
        normal: [B, H, W, 3] world space, unit; int8 in 1/127 steps is accepted.
        code: [B, H, W] uint8: part + 16 * slot, or `NOTHING`.
        pattern: [B, H, W] uint8: bit 0 in a stripe, bit 1 in a spot.
        to_camera: [B, 3] unit vector from the scene to the camera.
    """

    normal: Tensor
    code: Tensor
    pattern: Tensor
    to_camera: Tensor


@dataclass(frozen=True)
class Look:
    """Light and background of B pictures.

    Args:
        light: [B, 3] unit vector towards the light.
        ambient: [B] share of light that comes from everywhere, in [0, 1].
        background: [B, 3, 1, 1] or [B, 3, H, W], in [0, 1].
    """

    light: Tensor
    ambient: Tensor
    background: Tensor


def stripes_and_spots(position: Tensor) -> Tensor:
    """Pattern bits of object-space points [..., 3]: bit 0 in a horizontal stripe, bit 1 in a spot; uint8 [...]."""
    stripe = torch.sin(position[..., 1] * (2 * torch.pi / 0.34)) > 0.3
    cell = position / 0.38
    first = (cell - cell.round()).norm(dim=-1)
    second = (cell + 0.5 - (cell + 0.5).round()).norm(dim=-1)  # body-centred lattice: spots on every face
    spot = torch.minimum(first, second) < 0.30
    return stripe.to(torch.uint8) + 2 * spot.to(torch.uint8)


def contrast_colour(colour: Tensor) -> Tensor:
    """Colour of the stripes and spots on a body: lighter on dark, darker on light. [..., 3] to [..., 3]."""
    luminance = (colour * colour.new_tensor([0.30, 0.59, 0.11])).sum(dim=-1, keepdim=True)
    return torch.where(luminance < 0.7, colour * 0.25 + 0.72, colour * 0.35)


def random_look(poses: Tensor, size: int, generator: torch.Generator) -> Look:
    """A light above and beside the camera, and a background: mostly neutral, sometimes tinted or graded.

    Args:
        poses: [B, 12] camera_to_world rows.
        size: height and width of the picture.
        generator: source of randomness.
    """
    count = len(poses)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    back = poses.view(count, 3, 4)[:, :, 2]
    azimuth = torch.atan2(back[:, 0], back[:, 2]) + uniform(-1.2, 1.2)
    elevation = uniform(0.5, 1.2)
    light = torch.stack([elevation.cos() * azimuth.sin(), elevation.sin(), elevation.cos() * azimuth.cos()], dim=-1)
    kind = uniform(0.0, 1.0, 1)
    neutral = uniform(0.15, 0.95, 1) + uniform(-0.02, 0.02, 3)
    tinted = uniform(0.25, 0.95, 3)
    colour = torch.where(kind < 0.55, neutral, torch.where(kind < 0.75, torch.ones(count, 3), tinted))
    slope = uniform(-0.08, 0.08, 1, 1, 1) * (uniform(0.0, 1.0, 1, 1, 1) < 0.4)
    ramp = torch.linspace(-1, 1, size).view(1, 1, size, 1)
    background = (colour[:, :, None, None] + slope * ramp).clamp(0, 1).expand(count, 3, size, size)
    return Look(light=light, ambient=uniform(0.5, 0.75), background=background)


def palettes(things: Sequence[Sequence[Thing]], jitter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour tables: colours [B, 2, 33, 3] out of and in the pattern, pattern bit [B, 33], gloss [B, 33]."""
    colours = torch.zeros(len(things), 2, NOTHING + 1, 3)
    bits = torch.zeros(len(things), NOTHING + 1, dtype=torch.uint8)
    gloss = torch.zeros(len(things), NOTHING + 1)
    accents = torch.tensor(ACCENT_COLOURS)
    pattern_bit = {"striped": 1, "spotted": 2}
    for row, scene in enumerate(things):
        for slot, thing in enumerate(scene):
            body = PARTS * slot
            colour = (torch.tensor(COLOURS[thing.colour]) + jitter[row]).clamp(0, 1)
            colours[row, :, body : body + len(accents)] = accents  # its row 0 stands for the body
            colours[row, 0, body] = colour
            colours[row, 1, body] = contrast_colour(colour)
            bits[row, body] = pattern_bit.get(thing.material, 0)
            gloss[row, body] = _GLOSS[thing.material]
    return colours, bits, gloss


def _lookup(table: Tensor, code: Tensor) -> Tensor:
    """Rows of per-picture tables: [B, K, ...] at [B, P] gives [B, P, ...]."""
    offset = torch.arange(len(code))[:, None] * table.shape[1]
    return table.flatten(0, 1)[(code + offset).flatten()].unflatten(0, code.shape)


def shade(geometry: Geometry, things: Sequence[Sequence[Thing]], look: Look, jitter: Tensor) -> Tensor:
    """Pictures of B scenes.

    Args:
        geometry: what is seen, at twice the size of the picture.
        things: for each scene the thing in every slot.
        look: light and background.
        jitter: [B, 3] added to the body colours.

    Returns:
        [B, 3, H/2, W/2] in [0, 1].

    Raises:
        ValueError: an unknown material.
    """
    if any(thing.material not in MATERIALS for scene in things for thing in scene):
        raise ValueError(f"unknown material in {things}")
    height, width = geometry.code.shape[1:]
    colours, bits, gloss = palettes(things, jitter)
    code = geometry.code.flatten(1).int()
    patterned = (geometry.pattern.flatten(1) & _lookup(bits, code)) > 0
    albedo = _lookup(colours.flatten(1, 2), code + (NOTHING + 1) * patterned)
    normal = geometry.normal.flatten(1, 2).float()
    if geometry.normal.dtype == torch.int8:
        normal /= 127
    half = functional.normalize(look.light + geometry.to_camera, dim=-1)
    lambert, specular = (normal @ torch.stack([look.light, half], dim=-1)).clamp_min_(0).unbind(-1)
    ambient = look.ambient[:, None]
    lit = albedo * (ambient + (1 - ambient) * lambert)[..., None]
    if gloss.any():
        lit += (_lookup(gloss, code) * specular.pow(24))[..., None]
    visible = (geometry.code != NOTHING).float()[:, None]
    premultiplied = lit.clamp_(0, 1).transpose(1, 2).unflatten(2, (height, width)) * visible
    alpha = functional.avg_pool2d(visible, 2)
    return functional.avg_pool2d(premultiplied, 2) + (1 - alpha) * look.background
