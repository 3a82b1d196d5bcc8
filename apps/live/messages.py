"""What a viewer may say: read strictly, bounded in size and rate, and answered whatever it is."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dreamkit_apps.live.joystick import JoystickPath
from dreamkit_apps.live.session import LiveSession

from dreamkit.errors import ConfigError, DreamkitError

if TYPE_CHECKING:
    from torch import Tensor

MAX_MESSAGE = 65_536
"""Characters of a message."""
_MAX_POINTS = 4096
_MAX_TRACKS = 32
_MAX_ID = 2**53
_MAX_DIGITS = 19

Message = Mapping[str, Any]


class TokenBucket:
    """Lets a few things a second pass, and a burst now and then.

    Args:
        rate: a second.
        burst: at once.
        clock: seconds, monotonic.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._filled = float(burst), clock()

    def take(self) -> bool:
        """Whether one more may pass."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + self._rate * (now - self._filled))
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def read_message(text: str | bytes) -> dict[str, Any]:
    """A message: a JSON object with a "type".

    Raises:
        ConfigError: too long, no JSON, NaN or infinity in it, no object, or no type.
    """
    if len(text) > MAX_MESSAGE:
        raise ConfigError(f"The message has {len(text):,} characters.", f"Send at most {MAX_MESSAGE:,}.")
    try:
        content = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError("The message is no JSON.", "Send a JSON object.") from error
    if not isinstance(content, dict) or not isinstance(content.get("type"), str):
        raise ConfigError("The message has no type.", 'Send a JSON object with a "type".')
    return content


def read_whole(what: str, value: object) -> int:
    """A whole number, also one in digits: JavaScript's own end at 2^53.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{what} is {_told(value)}.", "Send a whole number.")
    return value


def reply_id(message: Message) -> int | None:
    """The number that an answer carries, so that its sender knows what it answers."""
    given = message.get("id")
    return given if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < _MAX_ID else None


def obey(session: LiveSession, message: Message) -> dict[str, Any]:
    """Do what a message says. May wait for a chunk or for a text encoder.

    Args:
        session: whose.
        message: as `read_message` gives it, from one who may steer.

    Returns:
        The answer, an "ok" or an "error" with what was wrong and what to do about it.
    """
    kind = message["type"]
    number = reply_id(message)
    try:
        if kind not in COMMANDS:
            raise ConfigError(f"There is no message of type {kind[:40]!r}.", f"There are: {', '.join(COMMANDS)}.")
        return {"type": "ok", "id": number, "of": kind, **COMMANDS[kind](session, message)}
    except DreamkitError as error:
        return {"type": "error", "id": number, "of": kind[:40], "message": error.message, "hint": error.hint}


def _prompt(session: LiveSession, message: Message) -> dict[str, Any]:
    control, warnings = session.say(_text(message, "text"))
    return {"control": control, "warnings": warnings}


def _play(session: LiveSession, message: Message) -> dict[str, Any]:
    session.play(True)
    return {}


def _pause(session: LiveSession, message: Message) -> dict[str, Any]:
    session.play(False)
    return {}


def _speed(session: LiveSession, message: Message) -> dict[str, Any]:
    session.set_speed(_number(message, "value"))
    return {}


def _seed(session: LiveSession, message: Message) -> dict[str, Any]:
    session.restart(read_whole("The seed", message.get("value")))
    return {}


def _camera(session: LiveSession, message: Message) -> dict[str, Any]:
    session.move(JoystickPath(*(_number(message, name, 0.0) for name in ("orbit", "dolly", "pan"))))
    return {}


def _tracks(session: LiveSession, message: Message) -> dict[str, Any]:
    tracks = message.get("tracks")
    session.draw(None if tracks == [] else _places(tracks))
    return {}


def _moment(session: LiveSession, message: Message) -> dict[str, Any]:
    return {"frame": session.keep_moment()}


def _rewind(session: LiveSession, message: Message) -> dict[str, Any]:
    session.rewind(read_whole("The frame to go back to", message.get("frame")))
    return {}


def _record(session: LiveSession, message: Message) -> dict[str, Any]:
    is_on = message.get("on")
    if not isinstance(is_on, bool):
        raise ConfigError(f'"on" is {_told(is_on)}.', "Send true or false.")
    session.record(is_on)
    return {}


COMMANDS: dict[str, Callable[[LiveSession, Message], dict[str, Any]]] = {
    "prompt": _prompt,
    "play": _play,
    "pause": _pause,
    "speed": _speed,
    "seed": _seed,
    "camera": _camera,
    "tracks": _tracks,
    "moment": _moment,
    "rewind": _rewind,
    "record": _record,
}
"""What steers a session, by a message's type."""


def _text(message: Message, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise ConfigError(f'"{name}" is {_told(value)}.', "Send a text.")
    return value


def _number(message: Message, name: str, default: float | None = None) -> float:
    value = message.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
        raise ConfigError(f'"{name}" is {_told(value)}.', "Send a finite number.")
    return float(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


def _places(tracks: Any) -> Tensor:
    """[F, N, 2] of N lists of F places: a track for each point, all of one length."""
    import torch

    fine = isinstance(tracks, list) and 1 <= len(tracks) <= _MAX_TRACKS and all(isinstance(t, list) for t in tracks)
    if not fine:
        raise ConfigError(f"{_told(tracks)} are no tracks.", f"Send a list of 1 to {_MAX_TRACKS} lists of [x, y].")
    lengths = {len(track) for track in tracks}
    if len(lengths) != 1 or not 1 <= max(lengths) * len(tracks) <= _MAX_POINTS:
        raise ConfigError("The tracks are too long, or not of one length.", f"Send at most {_MAX_POINTS:,} places.")
    for place in (place for track in tracks for place in track):
        is_pair = isinstance(place, list) and len(place) == 2
        if not is_pair or not all(
            isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= 1 for x in place
        ):
            raise ConfigError(f"{_told(place)} is no place on the frame.", "Send [x, y], each from 0 to 1.")
    return torch.tensor(tracks, dtype=torch.float32).transpose(0, 1).contiguous()


def _told(value: Any) -> str:
    """A value in a message about it, not longer than a line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
