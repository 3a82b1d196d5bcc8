"""The addresses of live video: its page, its sessions, its frames."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dreamkit_apps.live.hub import LiveHub
from dreamkit_apps.live.messages import obey, read_message, read_whole
from dreamkit_apps.live.session import LiveSession
from dreamkit_apps.live.socket import serve_viewer, waker
from dreamkit_apps.live.viewer import Viewer
from fastapi import APIRouter, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from dreamkit.errors import ConfigError, DreamkitError

STATIC = Path(__file__).parent / "static"
_BOUNDARY = b"dreamkit-frame"
_NOT_STORED = {"cache-control": "no-store"}
_ASK_AGAIN = {"cache-control": "no-cache"}
"""For the page's files: kept, and asked for anew whether they have changed."""
_AGAIN_S = 10.0
"""Seconds without a frame after which the last one is sent again."""


def make_live(hub: LiveHub) -> APIRouter:
    """The router of live video.

    Args:
        hub: of its sessions; whoever made it closes it.
    """
    router = APIRouter()
    _add_pages(router)
    _add_sessions(router, hub)
    _add_frames(router, hub)
    return router


def _add_pages(router: APIRouter) -> None:
    files = {path.name: path for path in STATIC.iterdir() if path.is_file()}

    @router.get("/live", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(files["live.html"], headers=_ASK_AGAIN)

    @router.get("/live/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            return _problem(404, "There is no such file.")
        return FileResponse(files[name], headers=_ASK_AGAIN)


def _add_sessions(router: APIRouter, hub: LiveHub) -> None:
    @router.post("/live/sessions", status_code=201)
    async def open_session(request: Request) -> JSONResponse:
        """Begin a session: {"prompt": TEXT, "seed": NUMBER or null}."""
        try:
            content = json.loads(await request.body())
        except (ValueError, RecursionError):
            content = None
        prompt, seed = (content.get("prompt"), content.get("seed")) if isinstance(content, dict) else (None, None)
        if not isinstance(prompt, str):
            raise ConfigError("The prompt is missing.", 'Send {"prompt": "a red cube"}.')
        session = hub.open(prompt, None if seed is None else read_whole("The seed", seed))
        return JSONResponse({"session": session.key, "watch": session.watch_key}, 201, _NOT_STORED)

    @router.get("/live/sessions")
    async def tell_session(session: str) -> JSONResponse:
        """What a session does now."""
        found = hub.find(session)
        return _gone() if found is None else JSONResponse(found[0].state(), headers=_NOT_STORED)

    @router.delete("/live/sessions", status_code=204)
    async def end_session(session: str) -> Response:
        """End a session."""
        found = _steered(hub, session)
        if not isinstance(found, LiveSession):
            return found
        hub.end(found, "closed")
        return Response(status_code=204)

    @router.post("/live/command")
    async def command(request: Request, session: str) -> JSONResponse:
        """Steer a session where no WebSocket gets through; the messages are the same."""
        found = _steered(hub, session)
        if not isinstance(found, LiveSession):
            return found
        message = read_message((await request.body()).decode("utf-8", "replace"))
        answer: dict[str, Any] = await hub.run(lambda: obey(found, message))
        return JSONResponse(answer, 400 if answer["type"] == "error" else 200, _NOT_STORED)

    @router.get("/live/films/{name}")
    async def film(name: str, session: str) -> Response:
        """A finished recording."""
        found = hub.find(session)
        path = None if found is None else found[0].film(name)
        if path is None:
            return _problem(404, "There is no such recording any more.", "Record another one.")
        return FileResponse(path, media_type="video/mp4", filename=path.name, headers=_NOT_STORED)


def _add_frames(router: APIRouter, hub: LiveHub) -> None:
    @router.websocket("/live/ws")
    async def socket(socket: WebSocket, session: str = "") -> None:
        await serve_viewer(socket, hub, session)

    @router.get("/live/mjpeg")
    async def mjpeg(session: str) -> Response:
        """The frames as a multipart stream, which an <img> shows: for where no WebSocket gets through."""
        found = hub.find(session)
        if found is None:
            return _gone()
        wake, wakened = waker()
        viewer = Viewer(wake, can_control=False, wants_messages=False)
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY.decode()}"
        return StreamingResponse(_parts(found[0], viewer, wakened), media_type=kind, headers=_NOT_STORED)


async def _parts(session: LiveSession, viewer: Viewer, wakened: asyncio.Event) -> AsyncIterator[bytes]:
    """The parts of a multipart stream; the next one is made when the connection has taken the last one."""
    last = None
    try:
        session.join(viewer)
        yield b"--" + _BOUNDARY + b"\r\n"
        while not viewer.is_closed:
            wakened.clear()
            jpeg = viewer.take_jpeg()
            if jpeg is None:
                try:
                    await asyncio.wait_for(wakened.wait(), _AGAIN_S)
                    continue
                except TimeoutError:
                    # Only writing tells that nobody listens any more.
                    jpeg = last
            if jpeg is not None:
                last = jpeg
                # The boundary comes with its frame: browsers show a frame when they see where it ends.
                head = b"Content-Type: image/jpeg\r\nContent-Length: " + str(len(jpeg)).encode() + b"\r\n\r\n"
                yield head + jpeg + b"\r\n--" + _BOUNDARY + b"\r\n"
    finally:
        viewer.close()
        session.leave(viewer)


def _steered(hub: LiveHub, key: str) -> LiveSession | JSONResponse:
    """The session that a secret lets steer, or what is answered where it doesn't."""
    found = hub.find(key)
    if found is None:
        return _gone()
    session, can_control = found
    if not can_control:
        return _problem(403, "This link is for watching only.", "Ask its owner for the one that steers.")
    return session


def _gone() -> JSONResponse:
    return _problem(404, "There is no such stream any more.", "Start another one.")


def _problem(status: int, message: str, hint: str | None = None) -> JSONResponse:
    return JSONResponse({"error": message, "hint": hint}, status, _NOT_STORED)


def problem_of(error: DreamkitError, status: int = 400) -> JSONResponse:
    """A user's mistake as an answer."""
    return _problem(status, error.message, error.hint)
