"""Checks of what a user asked for, with one wording everywhere. Light: no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from dreamkit.errors import ConfigError


def nearest_first(value: str, known: Iterable[str]) -> list[str]:
    """Sort the known names by their likeness to `value`, the most alike first, equals by name."""
    folded = value.casefold()

    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, folded, name.casefold()).ratio()

    return sorted(known, key=lambda name: (-likeness(name), name))


def require_choice(option: str, value: str, known: Iterable[str]) -> None:
    """Check that `value` is one of the known names.

    Args:
        option: how the user names it, e.g. "--objective".
        value: what was given.
        known: every name that would do.

    Raises:
        ConfigError: it is none of them; the message lists them, the nearest first.
    """
    names = list(known)
    if value not in names:
        raise ConfigError(
            f"{option} {value!r} is not known.", f"Choose one of: {', '.join(nearest_first(value, names))}."
        )


def require_integer(option: str, value: int | None, minimum: int, maximum: int | None = None) -> None:
    """Check that `value` is a whole number in [minimum, maximum]; None (not given) passes.

    Raises:
        ConfigError: it is not.
    """
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < minimum or (maximum is not None and value > maximum):
        limits = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise ConfigError(f"{option} is {value!r}.", f"It must be a whole number {limits}.")


def require_number(option: str, value: float | None, minimum: float, maximum: float = math.inf) -> None:
    """Check that `value` is a finite number in [minimum, maximum]; None (not given) passes.

    Raises:
        ConfigError: it is not.
    """
    if value is None:
        return
    if not math.isfinite(value) or not minimum <= value <= maximum:
        limits = f"at least {minimum:g}" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        raise ConfigError(f"{option} is {value!r}.", f"It must be a finite number {limits}.")


def require(what: str, holds: bool, value: object, wanted: str) -> None:
    """Check a condition on a setting; one that NaN enters does not hold.

    Args:
        what: the setting in words, e.g. "The scene's count".
        holds: whether it may be so.
        value: what was given.
        wanted: what would do.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{what} is {value}.", f"Use {wanted}.")


def one_of(what: str, value: object, known: Iterable[object]) -> None:
    """Check that a setting is among the known values.

    Raises:
        ConfigError: it is none of them; the message lists them.
    """
    choices = list(known)
    if value not in choices:
        raise ConfigError(f"{what} {value!r} is not known.", f"Use one of {', '.join(map(str, choices))}.")
