"""The studio's web server: one FastAPI application, guarded, and what runs it until it is told to stop.

Live video is always there. The router of jobs and Gradio's interface are mounted by `make_app`'s arguments, so that a
server without them needs neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from dreamkit_apps.auth import Auth
from dreamkit_apps.guard import GRADIO_CSP, STRICT_CSP, Guard, GuardPolicy
from dreamkit_apps.live.hub import LiveHub
from dreamkit_apps.live.limits import LiveLimits
from dreamkit_apps.live.messages import MAX_MESSAGE
from dreamkit_apps.live.routes import STATIC, make_live, problem_of
from dreamkit_apps.live.source import LiveModel
from dreamkit_apps.login import make_login
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response

from dreamkit._version import __version__
from dreamkit.checks import require_integer
from dreamkit.errors import ConfigError, DreamkitError

DEFAULT_PORT = 7860
_THEME = Path(__file__).parent / "theme.css"
_BACKLOG = 128
_GRACE_S = 5
_LAST_WORDS_S = 0.05
"""Seconds in which viewers are told that the server stops."""
_MAX_WAITING = 4
"""WebSocket messages that wait to be read."""


def make_app(
    model: LiveModel,
    *,
    auth: Auth | None = None,
    policy: GuardPolicy | None = None,
    limits: LiveLimits | None = None,
    routers: Sequence[APIRouter] = (),
    interface: Callable[[FastAPI], FastAPI] | None = None,
    interface_path: str = "/studio",
    on_stop: Callable[[], None] | None = None,
) -> FastAPI:
    """The application.

    Args:
        model: what live video streams; loaded when the first session begins.
        auth: who may come in; `None` is everybody who reaches it.
        policy: what the guard lets pass.
        limits: of live video.
        routers: more addresses, such as those of jobs (`dreamkit_apps.api.make_api`; `guard.user_of` tells who asks).
        interface: mounts Gradio's interface (`dreamkit_apps.studio.mount_studio`) and returns the application.
        interface_path: where that is; "/" leads there.
        on_stop: called when the server begins to stop, for answers that never end by themselves.

    Returns:
        The application; its `state.hub` holds the sessions, which end with its lifespan.
    """
    hub = LiveHub(model, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        care = asyncio.create_task(hub.look_after())
        try:
            yield
        finally:
            care.cancel()
            await asyncio.gather(care, return_exceptions=True)
            await hub.close()

    app = FastAPI(title="DreamKit Studio", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.hub, app.state.on_stop = hub, on_stop
    app.add_exception_handler(DreamkitError, _explain)
    home = "/live" if interface is None else f"{interface_path}/"
    _add_own_routes(app, home)
    if auth is not None:
        app.include_router(make_login(auth))
    app.include_router(make_live(hub))
    for router in routers:
        app.include_router(router)
    policy = policy or GuardPolicy()
    if interface is not None:
        app = interface(app)
        policy = replace(policy, csp={"": STRICT_CSP, interface_path: GRADIO_CSP, **policy.csp})
    app.add_middleware(Guard, policy=policy, auth=auth)
    return app


def _add_own_routes(app: FastAPI, home: str) -> None:
    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse(home, 307)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the server answers."""
        return {"status": "ok", "version": __version__}

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return FileResponse(STATIC / "icon.svg", headers={"cache-control": "no-cache"})

    @app.get("/theme.css", include_in_schema=False)
    async def theme() -> Response:
        return FileResponse(_THEME, headers={"cache-control": "no-cache"})


async def _explain(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DreamkitError)
    return problem_of(error)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(item[4][0]).partition("%")[0]).is_loopback for item in found)


def check_exposure(host: str, auth: Auth | None, allow_public: bool) -> None:
    """Refuse to listen to others without a password, unless told to.

    Raises:
        ConfigError: it would.
    """
    if auth is None and not allow_public and not is_loopback(host):
        raise ConfigError(
            f"On {host} everybody in the network could use this machine.",
            "Add --auth USER:PASSWORD, or --allow-public if that is what you want.",
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address of this machine.
        port: 0 to 65535; 0 is a free one.

    Raises:
        ConfigError: an address that is not this machine's, or a port that is taken or not allowed.
    """
    require_integer("--port", port, 0, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"There is no address {host!r}.", "Use --host 127.0.0.1.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # else a port is ours only minutes after a server before us; elsewhere it means stealing
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from error
    return listener


def _explained(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"Port {port} is taken.", "Use another one: --port N, or --port 0 for a free one.")
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(f"You may not listen on port {port}.", "Use one above 1023: --port 7860.")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"{host} is no address of this machine.", "Use --host 127.0.0.1.")
    return ConfigError(f"Can't listen on {host}, port {port}: {error.strerror}.", "Use another --host or --port.")


class StudioServer(uvicorn.Server):
    """Ends what never ends by itself before it waits for connections, and leaves signals to `serve`.

    Args:
        app: of `make_app`.
    """

    def __init__(self, app: FastAPI) -> None:
        self._hub: LiveHub = app.state.hub
        self._on_stop: Callable[[], None] | None = app.state.on_stop
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            server_header=False,
            proxy_headers=False,
            ws_max_size=2 * MAX_MESSAGE,  # what is just too long is answered; the rest is cut off
            ws_max_queue=_MAX_WAITING,
            ws_per_message_deflate=False,  # a JPEG gets no smaller
            timeout_graceful_shutdown=_GRACE_S,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell viewers, then see uvicorn."""
        self._hub.stop()
        if self._on_stop is not None:
            self._on_stop()
        await asyncio.sleep(_LAST_WORDS_S)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: uvicorn would raise them again once all is done."""
        yield


def serve(app: FastAPI, listener: socket.socket, on_ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; then close every session, wait for every thread and return.

    A second Ctrl-C closes connections at once.

    Args:
        app: of `make_app`.
        listener: of `listen`; closed here.
        on_ready: called before the first request is answered.
    """
    server = StudioServer(app)
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if on_ready is not None:
            on_ready()
        server.run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
