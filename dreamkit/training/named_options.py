"""NAME=VALUE options: how a name leads to a field, however deep, and text becomes a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dreamkit.errors import ConfigError
from dreamkit.training.settings import field_name


def read_option(option: str) -> tuple[list[str], Any]:
    """The fields that a dotted name leads through, and the value: YAML (a number, a list, true, a word).

    Raises:
        ConfigError: an option of another form, or a value that is no YAML.
    """
    name, separator, text = option.partition("=")
    path = [field_name(part) for part in name.strip().split(".")]
    if not separator or not all(path):
        raise ConfigError(f"The option {option!r} is not of the form NAME=VALUE.", "For example: guidance=7.5")
    return path, _value(text)


def placed(content: Any, path: Sequence[str], value: Any) -> dict[str, Any]:
    """The nested mapping with a value at a path; what is no mapping there is replaced by one."""
    own = dict(content) if isinstance(content, Mapping) else {}
    own[path[0]] = value if len(path) == 1 else placed(own.get(path[0]), path[1:], value)
    return own


def _value(text: str) -> Any:
    """A value from YAML, in which 1e-3 is a number too."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value {text!r} can't be read: {error}.", "Quote it.") from error
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
