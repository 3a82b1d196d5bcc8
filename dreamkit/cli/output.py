"""What commands print: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from dreamkit.files import plain

_RED, _YELLOW, _BOLD, _RESET = "\x1b[1;31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"


def _coloured(text: str, colour: str, stream: TextIO) -> str:
    """Colour `text` on a terminal, unless NO_COLOR is set (no-color.org)."""
    if stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return f"{colour}{text}{_RESET}"
    return text


def print_json(value: Any) -> None:
    """Print one JSON object as a line of its own on stdout (ASCII, so that any terminal takes it)."""
    print(json.dumps(plain(value)), flush=True)


def print_error(message: str, hint: str | None = None) -> None:
    """Print what was wrong in red, and what to do about it on a line of its own, on stderr."""
    print(f"{_coloured('error:', _RED, sys.stderr)} {message}", file=sys.stderr)
    if hint:
        print(f"{_coloured('hint:', _YELLOW, sys.stderr)} {hint}", file=sys.stderr, flush=True)


def print_warning(message: str) -> None:
    """Print a warning on stderr."""
    print(f"{_coloured('warning:', _YELLOW, sys.stderr)} {message}", file=sys.stderr, flush=True)


def print_rows(rows: Mapping[str, Any]) -> None:
    """Print names and values in two columns on stdout; mappings indent by one level."""
    width = max((len(name) for name, value in rows.items() if not isinstance(value, Mapping)), default=0)
    for name, value in rows.items():
        if isinstance(value, Mapping):
            print(_coloured(name, _BOLD, sys.stdout))
            inner = max((len(str(key)) for key in value), default=0)
            for key, item in value.items():
                print(f"  {key!s:<{inner}}  {format_value(item)}")
        else:
            print(f"{name:<{width}}  {format_value(value)}")


def format_value(value: Any) -> str:
    """Write a value for people: floats to 4 digits, None as a dash, the rest as it is."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
