"""Objectives by name.

A package adds its own through the entry-point group `dreamkit.objectives`:

    [project.entry-points."dreamkit.objectives"]
    mine = "my_package.my_objective"

The module is imported when objectives are first looked up, and registers itself with `@register("mine")`.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import TypeVar

from dreamkit.errors import ConfigError
from dreamkit.objectives.base import Objective

GROUP = "dreamkit.objectives"

_REGISTRY: dict[str, type[Objective]] = {}
Kind = TypeVar("Kind", bound=type[Objective])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: make an objective known by a name.

    Raises:
        ConfigError: the name is taken.
    """

    def add(kind: Kind) -> Kind:
        if name in _REGISTRY:
            raise ConfigError(f"Two objectives are called {name!r}.", "Give one another name.")
        kind.name = name
        _REGISTRY[name] = kind
        return kind

    return add


@cache
def load_plugins() -> None:
    """Import the objectives of other installed packages, once.

    Raises:
        ConfigError: one of them does not import; the message names its package.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            raise ConfigError(
                f"The objective {entry.name!r} of the package {package} can't be loaded: {error}.",
                "Update that package, or remove it.",
            ) from error


def objective_class(name: str) -> type[Objective]:
    """The objective of a name.

    Raises:
        ConfigError: there is none; the message lists those that are.
    """
    load_plugins()
    if name not in _REGISTRY:
        near = get_close_matches(name, _REGISTRY, n=1)
        known = ", ".join(sorted(_REGISTRY))
        raise ConfigError(
            f"The objective {name!r} is not known.", f"Known: {known}." + (f" Did you mean {near[0]}?" if near else "")
        )
    return _REGISTRY[name]


def objective_names() -> list[str]:
    """Names of all registered objectives, sorted."""
    load_plugins()
    return sorted(_REGISTRY)
