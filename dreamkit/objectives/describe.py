"""What an objective says about itself: its docstring, and its options with their defaults and docstrings."""

import ast
import dataclasses
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from dreamkit.config import Schedule
from dreamkit.objectives.base import Objective
from dreamkit.objectives.matching import NEEDS, Matching
from dreamkit.objectives.timesteps import NAMED, TimestepSchedule


def describe(kind: type[Objective] | type[Matching]) -> dict[str, Any]:
    """Tell about an objective, of a scene or of a student.

    Returns:
        `title` (first line of the docstring), `text` (all of it), `options` (name -> default and what it means),
        `needs` (what the context must hold besides the teacher).
    """
    text = inspect.getdoc(kind) or kind.__name__
    documented: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        documented |= field_docs(base)
    options = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        factory = item.default_factory
        default: Any = item.default if factory is dataclasses.MISSING else factory()
        options[item.name.rstrip("_")] = (_shown(default), documented.get(item.name, ""))
    needs = [need for need in dict.fromkeys(("critic", "source", *NEEDS)) if getattr(kind, f"needs_{need}", False)]
    return {"title": text.splitlines()[0], "text": text, "options": options, "needs": needs}


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings that follow the fields in a class's own source; none where the source is not there."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return {}
    found = {}
    body = node.body if isinstance(node, ast.ClassDef) else []
    for statement, after in pairwise(body):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            found[statement.target.id] = inspect.cleandoc(after.value.value)
    return found


def _shown(value: Any) -> Any:
    """A default as a user would write it."""
    if isinstance(value, Schedule):
        return value.data()
    if isinstance(value, TimestepSchedule):
        named = next((name for name, schedule in NAMED.items() if schedule == value), None)
        if named is not None:
            return named
        plain = TimestepSchedule()
        shown = {"level": value.level.data(), "jitter": value.jitter.data()}
        others = ("t_min", "t_max", "order")
        return shown | {name: getattr(value, name) for name in others if getattr(value, name) != getattr(plain, name)}
    return value
