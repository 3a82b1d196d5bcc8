"""What the moving toy world is made of: its settings and its objects."""

from __future__ import annotations

from dataclasses import dataclass

from dreamkit.checks import require_integer

MOTION_OBJECTS: tuple[str, ...] = (
    "cube", "ball", "cone", "cylinder", "ring", "pyramid", "mushroom", "tree", "table", "duck", "car", "robot",
    "house", "snowman", "mug", "fish",
)  # fmt: skip
"""Nouns of the moving world, some of `captions.OBJECTS`."""

MOTION_MATERIALS: tuple[str, ...] = ("plain", "striped", "spotted")


@dataclass(frozen=True)
class MotionConfig:
    """Clips of the moving toy world and the meshes they show.

    Raises:
        ConfigError: a setting out of range.
    """

    frames: int = 15
    """Frames a clip, 1 to 1000."""
    size: int = 64
    """Height and width of a frame in pixels, 16 to 512; traced at twice that and averaged."""
    points: int = 16
    """Tracked points a clip, 2 to 256: three quarters lie on the objects, the rest on the floor."""
    shapes: int = 6
    """Variants of every object, 1 to 100."""
    faces: int = 1600
    """Triangles of an object, about, 100 to 20,000."""
    resolution: int = 96
    """Grid points along an edge of the cube in which distance functions are cut, 32 to 256."""
    seed: int = 1
    """Of the variants' shapes."""

    def __post_init__(self) -> None:
        limits = {
            "frames": (1, 1000),
            "size": (16, 512),
            "points": (2, 256),
            "shapes": (1, 100),
            "faces": (100, 20_000),
            "resolution": (32, 256),
            "seed": (0, 2**31),
        }
        for name, (low, high) in limits.items():
            require_integer(f"The moving world's {name}", getattr(self, name), low, high)
