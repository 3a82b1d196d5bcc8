"""The registry of the toy world: 30 objects by name, 18 of them with a recognisable front."""

from __future__ import annotations

from dreamkit.errors import ConfigError
from dreamkit.toyworld.objects_animals import CREATURES
from dreamkit.toyworld.objects_plain import PLAIN_OBJECTS
from dreamkit.toyworld.objects_things import THINGS
from dreamkit.toyworld.solids import (
    ACCENT_COLOURS,
    BOUNDING_RADIUS,
    ShapeParameters,
    Solid,
    ToyObject,
)

__all__ = [
    "ACCENT_COLOURS",
    "BOUNDING_RADIUS",
    "OBJECTS",
    "OBJECT_NAMES",
    "ShapeParameters",
    "Solid",
    "ToyObject",
    "get_object",
]

OBJECTS: dict[str, ToyObject] = {kind.name: kind for kind in (*PLAIN_OBJECTS, *CREATURES, *THINGS)}
OBJECT_NAMES: tuple[str, ...] = tuple(OBJECTS)


def get_object(name: str) -> ToyObject:
    """The object of this name.

    Raises:
        ConfigError: there is no such object.
    """
    if name not in OBJECTS:
        raise ConfigError(f"The toy world has no object {name!r}.", f"It has: {', '.join(OBJECT_NAMES)}.")
    return OBJECTS[name]
