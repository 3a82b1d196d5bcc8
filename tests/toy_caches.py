"""A toy-world geometry cache that is drawn instead of traced: milliseconds in place of minutes.

Every object is an ellipse of its own proportions with the normals of a ball. From the front it has a nose in the
middle, from the side one at its rim, so that views can be told apart.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from dreamkit.scenes.cameras import Camera, view_name
from dreamkit.toyworld import shading
from dreamkit.toyworld.captions import OBJECTS
from dreamkit.toyworld.dataset import random_cameras

RELATIONS = 2


def write_cache(path: Path, size: int = 128, views: int = 2, pairs: int = 4, seed: int = 0, objects: int = 30) -> Path:
    """Write a cache in the format of `dreamkit.toyworld.dataset.build_cache`.

    Args:
        path: the safetensors file to write.
        size: pixels along a side, twice those of the pictures.
        views: cameras a scene.
        pairs: scenes of two objects after one scene of each object.
        seed: of the cameras.
        objects: how many of `OBJECTS` to draw.
    """
    generator = torch.Generator().manual_seed(seed)
    scenes = [(index, -1, 0, index % 3) for index in range(objects)]
    scenes += [(index % objects, (7 * index + 3) % objects, 1 + index % RELATIONS, 1) for index in range(pairs)]
    rows: dict[str, list[torch.Tensor]] = {}
    for label in scenes:
        cameras = random_cameras(views, size, generator)
        for index in range(views):
            for name, value in _row(label, cameras[index], size).items():
                rows.setdefault(name, []).append(value)
    save_file({name: torch.stack(values) for name, values in rows.items()}, path)
    return path


def _row(label: tuple[int, int, int, int], camera: Camera, size: int) -> dict[str, torch.Tensor]:
    """The buffers of one view."""
    step = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(-step, step, indexing="ij")
    code = torch.full((size, size), shading.NOTHING, dtype=torch.uint8)
    normal = torch.zeros(size, size, 3)
    position = torch.zeros(size, size, 3)
    view = view_name(float(camera.azimuth), float(camera.elevation))
    things = [which for which in label[:2] if which >= 0]
    for slot, which in enumerate(things):
        centre = 0.0 if len(things) == 1 else (-0.45, 0.45)[slot]
        reach = 0.7 if len(things) == 1 else 0.4
        width, height = reach * (0.4 + 0.12 * (which % 6)), reach * (0.4 + 0.15 * (which // 6))
        u, v = (x - centre) / width, y / height
        inside = u**2 + v**2 < 1
        depth = (1 - u**2 - v**2).clamp_min(0).sqrt()
        part = torch.zeros(size, size, dtype=torch.uint8)
        if view in ("front view", "side view"):
            nose = 0.0 if view == "front view" else 0.6
            part[((u - nose) ** 2 + v**2) < 0.15] = 1
        code = torch.where(inside, part + shading.PARTS * slot, code)
        local = torch.stack([u, v, depth], dim=-1)
        normal = torch.where(inside[..., None], local @ camera.camera_to_world[0, :3, :3].T, normal)
        position = torch.where(inside[..., None], local, position)
    return {
        "normal": (normal * 127).round().to(torch.int8),
        "code": code.to(torch.uint8),
        "pattern": shading.stripes_and_spots(position),
        "pose": camera.pose[0],
        "angles": torch.stack([camera.azimuth[0], camera.elevation[0]]),
        "label": torch.tensor(label, dtype=torch.int64),
    }


assert len(OBJECTS) == 30
