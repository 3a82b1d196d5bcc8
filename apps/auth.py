"""Who may come in: names with passwords, and the signed cookie that a browser gets once it has shown one.

A cookie rather than HTTP Basic alone: not every browser sends Basic's header when it opens a WebSocket. Programs may
use Basic.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from pathlib import Path

from dreamkit.errors import ConfigError

COOKIE = "dreamkit_session"
COOKIE_SECONDS = 7 * 24 * 3600
_ATTEMPTS = 10
_ATTEMPT_SECONDS = 60.0
_ADDRESSES = 1024
_MAX_FILE_BYTES = 100_000


def read_credentials(text: str) -> dict[str, str]:
    """Names and passwords of `--auth`.

    Args:
        text: USER:PASSWORD, or the path of a file with such a line for each user (empty lines and those that begin
            with # are left out).

    Returns:
        Password by name.

    Raises:
        ConfigError: neither, or an empty name or password. The message tells no password.
    """
    path = Path(text)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):
        is_file = False
    if is_file:
        try:
            if path.stat().st_size > _MAX_FILE_BYTES:
                raise ConfigError(f"{path} is too large for a list of users.", "Give a line USER:PASSWORD for each.")
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} can't be read.", "Give a text file with a line USER:PASSWORD.") from error
        lines = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        where = str(path)
    else:
        lines, where = [text], "--auth"
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name, colon, password = line.partition(":")
        if not colon or not name or not password:
            place = f"{where}, entry {number}," if is_file else where
            raise ConfigError(f"{place} is not USER:PASSWORD.", "Give both, or the path of a file with such lines.")
        found[name] = password
    if not found:
        raise ConfigError(f"{where} names no user.", "Give a line USER:PASSWORD for each.")
    return found


class Throttle:
    """Lets an address try a few times a minute, in constant memory.

    Args:
        attempts: failures until it has to wait.
        seconds: for how long one counts.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        attempts: int = _ATTEMPTS,
        seconds: float = _ATTEMPT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempts, self._seconds, self._clock = attempts, seconds, clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def is_blocked(self, address: str) -> bool:
        """Whether an address has failed too often."""
        failures = self._failures.get(address)
        if failures is None:
            return False
        now = self._clock()
        while failures and now - failures[0] > self._seconds:
            failures.popleft()
        return len(failures) >= self._attempts

    def fail(self, address: str) -> None:
        """Note a failure."""
        self._failures.setdefault(address, deque(maxlen=self._attempts)).append(self._clock())
        self._failures.move_to_end(address)
        while len(self._failures) > _ADDRESSES:
            self._failures.popitem(last=False)


class Auth:
    """Checks names, passwords and cookies, all in constant time.

    Cookies are signed with a key of this process: they end with it, and nothing is kept for each.

    Args:
        credentials: password by name.
        clock: seconds since 1970.
    """

    def __init__(self, credentials: Mapping[str, str], clock: Callable[[], float] = time.time) -> None:
        self._users = [(_digest(name), _digest(password)) for name, password in credentials.items()]
        self._key = secrets.token_bytes(32)
        self._clock = clock
        self.throttle = Throttle()

    def knows(self, name: str, password: str) -> bool:
        """Whether a user has this password; takes as long whether the name is known or not."""
        given, word = _digest(name), _digest(password)
        known = False
        for user, secret in self._users:
            known |= hmac.compare_digest(user, given) & hmac.compare_digest(secret, word)
        return known

    def new_cookie(self, name: str) -> str:
        """A cookie's value for a user, good for a week."""
        told = f"{int(self._clock()) + COOKIE_SECONDS}.{name.encode().hex()}"
        return f"{told}.{self._sign(told)}"

    def read_cookie(self, value: str) -> str | None:
        """The user of a value that is one of `new_cookie`'s and not over; `None` for any other."""
        told, _, signature = value.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._sign(told).encode()):
            return None
        expiry, _, name = told.partition(".")
        return bytes.fromhex(name).decode() if int(expiry) > self._clock() else None

    def user(self, headers: Mapping[str, str], address: str) -> str | None:
        """Who makes a request; `None` is nobody who may.

        Args:
            headers: by lower-case name.
            address: whom to make wait after wrong passwords.
        """
        name = self.read_cookie(_cookie(headers.get("cookie", "")))
        pair = _basic(headers.get("authorization", "")) if name is None else None
        if pair is None or self.throttle.is_blocked(address):
            return name
        if self.knows(*pair):
            return pair[0]
        self.throttle.fail(address)
        return None

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def _digest(text: str) -> bytes:
    """Of one length for every text, so that comparing tells nothing about it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _cookie(header: str) -> str:
    try:
        jar = SimpleCookie(header)
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""


def _basic(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon else None
