"""Pictures of the toy world with captions and cameras, made on the fly from cached geometry.

Tracing a shape costs tens of milliseconds, colouring one costs one: so geometry is traced once into a cache on
disk, and every training sample draws new colours, materials, light, background and wording.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dreamkit.files import atomic_path
from dreamkit.scenes.cameras import Camera, view_name
from dreamkit.toyworld import shading
from dreamkit.toyworld.captions import COLOURS, MATERIALS, OBJECTS, SIZES, CaptionWriter, Thing
from dreamkit.toyworld.geometry import SUPPORTS, Placed, beside, on_top, trace
from dreamkit.toyworld.objects import ShapeParameters, get_object

_RELATION_NAMES = ("", "on", "beside")
_SIZE_NAMES = tuple(SIZES)


@dataclass(frozen=True)
class GeometryConfig:
    """What to trace.

    Args:
        singles: shapes of every object.
        pairs: scenes of two objects.
        views: cameras a scene.
        size: height and width traced, twice the pictures' size.
        seed: of shapes, layouts and cameras.
    """

    singles: int = 24
    pairs: int = 150
    views: int = 16
    size: int = 128
    seed: int = 1

    @property
    def key(self) -> str:
        """Name of this cache on disk: changes with the settings, the names' order and the shapes' source."""
        sources = [
            Path(__file__).with_name(f"{name}.py")
            for name in (
                "primitives",
                "solids",
                "objects_plain",
                "objects_animals",
                "objects_things",
                "marching",
                "geometry",
                "shading",
                "dataset",
            )
        ]
        # Labels are positions in these tuples.
        names = [OBJECTS, _RELATION_NAMES, _SIZE_NAMES]
        text = json.dumps([asdict(self), names]) + "".join(source.read_text() for source in sources)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """B samples.

    Args:
        images: [B, 3, S, S] in [0, 1].
        captions: B strings.
        poses: [B, 12] camera_to_world rows.
        things: what is in each picture.
        views: B names: front, side, back, overhead.
        rows: [B] rows of the cache.
    """

    images: Tensor
    captions: list[str]
    poses: Tensor
    things: list[list[Thing]]
    views: list[str]
    rows: Tensor


def random_cameras(count: int, size: int, generator: torch.Generator) -> Camera:
    """Cameras all round: azimuth uniform, elevation -10 to 60 degrees, radius 2.8 to 3.2, 40 degrees of view."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    return Camera.orbit(uniform(-180, 180), uniform(-10, 60), uniform(2.8, 3.2), 40.0, size, size)


def _integer(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def _scene(index: int, config: GeometryConfig) -> tuple[list[Placed], list[int], int, int]:
    """Scene number `index`: its objects, their indices, the relation and the size."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + index)
    if index < config.singles * len(OBJECTS):
        which = index % len(OBJECTS)
        size = _integer(3, generator)
        shape = ShapeParameters.sample(generator)
        placed = Placed(get_object(OBJECTS[which]), shape, scale=SIZES[_SIZE_NAMES[size]])
        return [placed], [which], 0, size
    relation = 1 + _integer(2, generator)
    under = OBJECTS.index(SUPPORTS[_integer(len(SUPPORTS), generator)])
    over = _integer(len(OBJECTS), generator)
    other = under if relation == 1 else _integer(len(OBJECTS), generator)
    first, second = (Placed(get_object(OBJECTS[which]), ShapeParameters.sample(generator)) for which in (over, other))
    pair = on_top(first, second) if relation == 1 else beside(first, second)
    return list(pair), [over, other], relation, _SIZE_NAMES.index("")


def _trace_scene(index: int, config: GeometryConfig) -> dict[str, NDArray[Any]]:
    """Geometry of every view of one scene, packed into bytes; arrays, since tensors would travel as open files."""
    torch.set_num_threads(1)
    placed, names, relation, size = _scene(index, config)
    generator = torch.Generator().manual_seed(config.seed * 7_000_003 + index)
    cameras = random_cameras(config.views, config.size, generator)
    buffer = trace(placed, *cameras.rays())
    code = torch.where(buffer.hit, buffer.part + shading.PARTS * buffer.slot, shading.NOTHING)
    label = torch.tensor([names[0], names[1] if len(names) > 1 else -1, relation, size], dtype=torch.int64)
    tensors = {
        "normal": (buffer.normal * 127).round().to(torch.int8),
        "code": code.to(torch.uint8),
        "pattern": shading.stripes_and_spots(buffer.position),
        "pose": cameras.pose,
        "angles": torch.stack([cameras.azimuth, cameras.elevation], dim=-1),
        "label": label.expand(config.views, -1).contiguous(),
    }
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def build_cache(
    config: GeometryConfig,
    folder: Path,
    workers: int = 2,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Trace the scenes of a configuration, or find them traced already.

    Args:
        config: what to trace.
        folder: where caches live.
        workers: processes.
        report: called with (scenes done, scenes in all).

    Returns:
        The safetensors file.
    """
    from safetensors.numpy import save_file

    path = folder / f"geometry-{config.key}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    count = config.singles * len(OBJECTS) + config.pairs
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = []
        for part in pool.map(_trace_scene, range(count), [config] * count, chunksize=4):
            parts.append(part)
            report(len(parts), count)
    tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return path


class ToyWorld:
    """Endless samples from cached geometry.

    Args:
        path: file that `build_cache` made.
        hold_out: whether to avoid the compositions of `captions.HELD_OUT`.
    """

    def __init__(self, path: Path, hold_out: bool = True) -> None:
        from safetensors.torch import load_file

        self.cache = load_file(path)
        self.hold_out = hold_out

    def __len__(self) -> int:
        return len(self.cache["code"])

    def _thing(self, name: str, size: str, writer: CaptionWriter) -> Thing:
        while True:
            material = writer.choose(MATERIALS) if writer.chance(0.5) else "plain"
            thing = Thing(name, writer.choose(tuple(COLOURS)), material, size)
            if not (self.hold_out and thing.held_out):
                return thing

    def sample(self, count: int, generator: torch.Generator, singles_only: bool = False) -> Batch:
        """Draw `count` pictures with captions.

        Args:
            count: pictures.
            generator: source of every choice.
            singles_only: leave scenes of two objects out.
        """
        labels = self.cache["label"]
        if singles_only:
            rows = torch.nonzero(labels[:, 2] == 0)[:, 0]
            rows = rows[torch.randint(len(rows), (count,), generator=generator)]
        else:
            rows = torch.randint(len(self), (count,), generator=generator)
        writer = CaptionWriter(generator)
        things, captions, views = [], [], []
        for row in rows.tolist():
            first, second, relation, size = labels[row].tolist()
            scene = [self._thing(OBJECTS[first], _SIZE_NAMES[size], writer)]
            if relation:
                scene.append(self._thing(OBJECTS[second], "", writer))
            view = view_name(*self.angles(row).tolist()).removesuffix(" view")
            named = view if writer.chance(0.5) else None
            things.append(scene)
            views.append(view)
            captions.append(writer.caption(scene, _RELATION_NAMES[relation] or None, named))
        images = self.render(rows, things, generator)
        return Batch(images, captions, self.cache["pose"][rows], things, views, rows)

    def render(self, rows: Tensor, things: list[list[Thing]], generator: torch.Generator) -> Tensor:
        """Pictures [B, 3, S, S] of cached rows with the given things in them, under random light."""
        poses = self.cache["pose"][rows]
        to_camera = poses.view(-1, 3, 4)[:, :, 2]
        geometry = shading.Geometry(
            self.cache["normal"][rows], self.cache["code"][rows], self.cache["pattern"][rows], to_camera
        )
        look = shading.random_look(poses, geometry.code.shape[-1] // 2, generator)
        jitter = 0.04 * (2 * torch.rand(len(rows), 3, generator=generator) - 1)
        return shading.shade(geometry, things, look, jitter)

    def angles(self, rows: Tensor | int) -> Tensor:
        """Azimuth and elevation of cached views in degrees, [B, 2] (or [2] of one)."""
        return self.cache["angles"][rows]

    def shapes(self, rows: Tensor) -> Tensor:
        """What is where in cached views, at half the pictures' size: [B, 4, S/2, S/2].

        Channel 0 is the share covered by an object, 1 to 3 the surface normal in camera axes (x right, y up, z
        towards the camera) times that share.
        """
        covered = (self.cache["code"][rows] != shading.NOTHING).float()
        normal = self.cache["normal"][rows].float() / 127
        rotation = self.cache["pose"][rows].view(-1, 3, 4)[:, :, :3]
        normal = torch.einsum("bhwi,bij->bjhw", normal, rotation) * covered[:, None]
        return functional.avg_pool2d(torch.cat([covered[:, None], normal], dim=1), 4)
