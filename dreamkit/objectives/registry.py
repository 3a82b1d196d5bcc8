"""Objectives by name: those of a scene, and those of a student.

A package adds its own through the entry-point group `dreamkit.objectives`:

    [project.entry-points."dreamkit.objectives"]
    mine = "my_package.my_objective"

The module is imported when objectives are first looked up, and registers itself with `@register("mine")`, or with
`@register_student("mine")`.
"""

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from dreamkit.errors import ConfigError
from dreamkit.objectives.base import Objective
from dreamkit.objectives.matching import Matching

GROUP = "dreamkit.objectives"

_REGISTRY: dict[str, type[Objective]] = {}
_STUDENTS: dict[str, type[Matching]] = {}
Named = TypeVar("Named")
Kind = TypeVar("Kind", bound=type[Objective])
StudentKind = TypeVar("StudentKind", bound=type[Matching])


def register(name: str) -> Callable[[Kind], Kind]:
    """Class decorator: make an objective known by a name.

    Raises:
        ConfigError: the name is taken.
    """
    return lambda kind: _add(_REGISTRY, name, kind)


def register_student(name: str) -> Callable[[StudentKind], StudentKind]:
    """Class decorator: make a student's objective known by a name.

    Raises:
        ConfigError: the name is taken, be it by a scene's objective.
    """
    return lambda kind: _add(_STUDENTS, name, kind)


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
    return _found(_REGISTRY, "objective", name)


def student_objective_class(name: str) -> type[Matching]:
    """The student's objective of a name.

    Raises:
        ConfigError: there is none; the message lists those that are.
    """
    return _found(_STUDENTS, "student objective", name)


def objective_names() -> list[str]:
    """Names of all registered objectives of a scene, sorted."""
    load_plugins()
    return sorted(_REGISTRY)


def student_objective_names() -> list[str]:
    """Names of all registered objectives of a student, sorted."""
    load_plugins()
    return sorted(_STUDENTS)


def _add(kinds: dict[str, Any], name: str, kind: Any) -> Any:
    """Put a class among its kind under a name that no objective has, and tell it."""
    if name in _REGISTRY or name in _STUDENTS:
        raise ConfigError(f"Two objectives are called {name!r}.", "Give one another name.")
    kind.name = name
    kinds[name] = kind
    return kind


def _found(kinds: dict[str, Named], what: str, name: str) -> Named:
    """The class of a name, or an error that lists those there are."""
    load_plugins()
    if name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        known = ", ".join(sorted(kinds))
        raise ConfigError(
            f"The {what} {name!r} is not known.", f"Known: {known}." + (f" Did you mean {near[0]}?" if near else "")
        )
    return kinds[name]
