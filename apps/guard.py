"""What stands before every request: who asks for which server, from which page, with which password and how much.

- A Host that is not ours is refused: a foreign name that resolves to this machine (DNS rebinding) would make a foreign
  page same-origin with us. A browser's Host is an IP address only where the user typed one, so those pass.
- A foreign Origin is refused on WebSockets, which no same-origin policy protects, and on what changes state.
- A body is counted while it is read, whatever its Content-Length says.
- Every answer carries the headers that keep pages from being framed, sniffed, or made to run what isn't ours.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit

from dreamkit_apps.auth import Auth
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRICT_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
"""For pages of ours: nothing inline, nothing from elsewhere."""
GRADIO_CSP = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; media-src 'self' blob: data:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "worker-src 'self' blob:; frame-src 'self'; form-action 'self'; base-uri 'self'; frame-ancestors 'self'"
)
"""For Gradio's pages, whose scripts and styles are inline; nothing from elsewhere either."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_POLICY_VIOLATION = 1008
_USER = "dreamkit.user"


@dataclass(frozen=True)
class GuardPolicy:
    """What passes."""

    hosts: frozenset[str] = frozenset()
    """Names of this server besides localhost, this machine's own name and any IP address; lower case."""
    max_body: int = 1_000_000
    """Bytes of a request."""
    max_bodies: Mapping[str, int] = field(default_factory=dict)
    """The same below paths that need more; the longest prefix counts."""
    csp: Mapping[str, str] = field(default_factory=lambda: {"": STRICT_CSP})
    """Content-Security-Policy by the beginning of a path; the longest counts."""
    open_paths: frozenset[str] = frozenset({"/login", "/theme.css", "/health", "/favicon.ico"})
    """What is answered without a password."""

    def knows_host(self, host: str) -> bool:
        """Whether a Host header names this server; the port may be any.

        A name can be made to point here by whoever owns it, an address can't.
        """
        name = _host_name(host)
        if name is None:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            own = {"localhost", socket.gethostname().lower()} | self.hosts
            return name in own or name.endswith(".localhost")
        return True


class Guard:
    """ASGI middleware, the outermost one.

    Args:
        app: what it guards.
        policy: what passes.
        auth: who passes; `None` is everybody.
    """

    def __init__(self, app: ASGIApp, policy: GuardPolicy, auth: Auth | None = None) -> None:
        self.app, self.policy, self.auth = app, policy, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or hand it on."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal.reason[:120]})
            return
        limited = _Limited(receive, send, self._limit(scope["path"]), self._headers(scope["path"]))
        if refusal is None and not limited.fits(headers.get("content-length")):
            refusal = limited.too_large
        if refusal is not None:
            await refusal.answer(limited.send)
            return
        await limited.run(self.app, scope)

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> _Refusal | None:
        host = headers.get("host", "")
        if not self.policy.knows_host(host):
            hint = "Use its IP address or localhost, or start it with --allow-host NAME."
            return _Refusal(HTTPStatus.MISDIRECTED_REQUEST, "This server does not go by that name.", hint)
        is_safe = scope["type"] == "http" and scope["method"] in _SAFE_METHODS
        if not is_safe and not _is_own_page(headers, host):
            return _Refusal(HTTPStatus.FORBIDDEN, "A page of another site may not do that.", "Open this server itself.")
        if self.auth is None or scope["path"] in self.policy.open_paths:
            return None
        user = self.auth.user(headers, client_address(scope))
        if user is not None:
            scope[_USER] = user
            return None
        wants_page = is_safe and "text/html" in headers.get("accept", "")
        if wants_page:
            query = scope.get("query_string", b"").decode("latin-1")
            wanted = scope["path"] + (f"?{query}" if query else "")
            return _Refusal(
                HTTPStatus.SEE_OTHER, "Log in.", extra={"location": f"/login?next={quote(wanted, safe='')}"}
            )
        # To a page's own requests a browser would answer Basic's header with a window of its own.
        extra = {} if "sec-fetch-mode" in headers else {"www-authenticate": 'Basic realm="DreamKit", charset="UTF-8"'}
        return _Refusal(HTTPStatus.UNAUTHORIZED, "This server wants a user and a password.", "Log in.", extra)

    def _limit(self, path: str) -> int:
        found = _longest(self.policy.max_bodies, path)
        return self.policy.max_body if found is None else found

    def _headers(self, path: str) -> dict[str, str]:
        return {
            "content-security-policy": _longest(self.policy.csp, path) or STRICT_CSP,
            "x-content-type-options": "nosniff",
            "x-frame-options": "SAMEORIGIN",
            "referrer-policy": "same-origin",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }


@dataclass(frozen=True)
class _Refusal:
    """A request that is answered here."""

    status: HTTPStatus
    reason: str
    hint: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    async def answer(self, send: Send) -> None:
        """Send it."""
        body = json.dumps({"error": self.reason, "hint": self.hint}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in (headers | dict(self.extra)).items()]
        await send({"type": "http.response.start", "status": int(self.status), "headers": pairs})
        await send({"type": "http.response.body", "body": body})


class _Limited:
    """A request whose body is counted, and whose answer gets our headers."""

    def __init__(self, receive: Receive, send: Send, limit: int, headers: Mapping[str, str]) -> None:
        self._receive, self._send = receive, send
        self._left = limit
        self._headers = headers
        self._is_started = False
        text = f"A request of more than {limit:,} bytes is not taken."
        self.too_large = _Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, "Send less.")

    def fits(self, length: str | None) -> bool:
        """Whether a Content-Length is within the limit."""
        return length is None or (length.isascii() and length.isdigit() and int(length) <= self._left)

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the application answer; where it read too much, that is the answer, whatever it made of it."""
        try:
            await app(scope, self._counted, self.send)
        except Exception:
            if self._left >= 0:
                raise
        if self._left < 0 and not self._is_started:
            await self.too_large.answer(self._deliver)

    async def send(self, message: Message) -> None:
        """Hand on what is answered, unless too much was read before the answer began."""
        if self._left >= 0 or self._is_started:
            await self._deliver(message)

    async def _counted(self) -> Message:
        """What comes, up to the limit; then whoever reads sees a client that went away."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                return {"type": "http.disconnect"}
        return message

    async def _deliver(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_started = True
            given = {name.lower() for name, _ in message["headers"]}
            ours = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            message = {**message, "headers": [*message["headers"], *(pair for pair in ours if pair[0] not in given)]}
        await self._send(message)


def user_of(connection: HTTPConnection) -> str:
    """Who makes a request, "local" on a server without passwords."""
    return str(connection.scope.get(_USER, "local"))


def client_address(scope: Scope) -> str:
    """The address that a request comes from."""
    client: tuple[str, int] | None = scope.get("client")
    return client[0] if client else ""


def _longest(values: Mapping[str, Any], path: str) -> Any:
    """The value of the longest prefix of a path, `None` where there is none."""
    fitting = [prefix for prefix in values if path.startswith(prefix)]
    return values[max(fitting, key=len)] if fitting else None


def _split(netloc: str, scheme: str) -> tuple[str, int] | None:
    """Name and port of HOST[:PORT]."""
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port
    except ValueError:
        return None
    name = (parts.hostname or "").rstrip(".")
    if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return name, port if port is not None else _DEFAULT_PORTS.get(scheme, 80)


def _host_name(host: str) -> str | None:
    found = _split(host, "http")
    return None if found is None else found[0]


def _is_own_page(headers: Mapping[str, str], host: str) -> bool:
    """Whether a request comes from a page of this server, or from no page at all."""
    if headers.get("sec-fetch-site") == "cross-site":
        return False
    origin = headers.get("origin")
    if origin is None:
        return True  # a program: browsers send it with WebSockets and with whatever changes state
    scheme, separator, netloc = origin.partition("://")
    if not separator:
        return False  # "null": a sandboxed page or a file
    return _split(netloc, scheme) is not None and _split(netloc, scheme) == _split(host, scheme)
