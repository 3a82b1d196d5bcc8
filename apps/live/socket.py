"""A viewer's WebSocket: frames and messages out, acknowledgements and commands in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from dreamkit_apps.live.hub import LiveHub
from dreamkit_apps.live.messages import TokenBucket, obey, read_message, reply_id
from dreamkit_apps.live.session import LiveSession
from dreamkit_apps.live.viewer import Viewer, to_json
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from dreamkit.errors import DreamkitError

GONE, FULL, RUDE, OVER = 4404, 4429, 1008, 1001
"""Codes that a connection is closed with: no such session, too many viewers, too many messages, session or server
ended."""
_COMMANDS_A_SECOND, _COMMANDS_AT_ONCE = 30.0, 60
_STRAYS_A_SECOND, _STRAYS_AT_ONCE = 30.0, 300
"""Messages over the limit, and acknowledgements of nothing; more close the connection."""


async def serve_viewer(socket: WebSocket, hub: LiveHub, key: str) -> None:
    """Serve a connection until either side ends it.

    Args:
        socket: not accepted yet.
        hub: of the sessions.
        key: a session's secret.
    """
    await socket.accept()
    found = hub.find(key)
    if found is None:
        await _refuse(socket, GONE, "There is no such stream any more.", "Start another one.")
        return
    session, can_control = found
    wake, wakened = waker()
    viewer = Viewer(wake, can_control)
    try:
        session.join(viewer)
    except DreamkitError as error:
        await _refuse(socket, FULL, error.message, error.hint)
        return
    code = OVER
    try:
        code = await _until_one_ends(_send(socket, viewer, wakened), _Listener(socket, hub, session, viewer).listen())
    finally:
        viewer.close()
        session.leave(viewer)
        if socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
                await socket.close(code)


def waker() -> tuple[Callable[[], None], asyncio.Event]:
    """An event, and what sets it from any thread."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(event.set)

    return wake, event


async def _until_one_ends(*jobs: Any) -> int:
    """Run both until one ends; its result is the code to close with."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, int):
            return result
        if isinstance(result, Exception) and not isinstance(result, WebSocketDisconnect | OSError | RuntimeError):
            raise result
    return OVER


async def _send(socket: WebSocket, viewer: Viewer, wakened: asyncio.Event) -> int:
    while True:
        wakened.clear()
        is_last = viewer.is_closed
        for item in viewer.take():
            await (socket.send_text(item) if isinstance(item, str) else socket.send_bytes(item))
        if is_last:
            return OVER
        await wakened.wait()


class _Listener:
    """Reads what a viewer says, one message after the other: whoever sends faster than it is done waits."""

    def __init__(self, socket: WebSocket, hub: LiveHub, session: LiveSession, viewer: Viewer) -> None:
        self._socket, self._hub, self._session, self._viewer = socket, hub, session, viewer
        self._commands = TokenBucket(_COMMANDS_A_SECOND, _COMMANDS_AT_ONCE)
        self._strays = TokenBucket(_STRAYS_A_SECOND, _STRAYS_AT_ONCE)

    async def listen(self) -> int:
        """Until the viewer leaves, or has to; returns the code to close with."""
        while True:
            event = await self._socket.receive()
            if event["type"] == "websocket.disconnect":
                return OVER
            if not await self._hear(event.get("text") or event.get("bytes") or ""):
                return RUDE

    async def _hear(self, text: str | bytes) -> bool:
        """Do what a message says; whether the viewer may stay."""
        try:
            message = read_message(text)
        except DreamkitError as error:
            self._viewer.tell({"type": "error", "id": None, "message": error.message, "hint": error.hint}, "unread")
            return self._strays.take()
        kind = message["type"]
        if kind == "ack":
            number = message.get("frame")
            return (isinstance(number, int) and self._viewer.acknowledge(number)) or self._strays.take()
        if not self._commands.take():
            self._error(message, "Too many messages in a short time.", "Send fewer.", "hurry")
            return self._strays.take()
        if kind == "look":
            self._session.look(self._viewer, message.get("on") is True)
        elif kind == "ping":
            self._viewer.tell({"type": "pong", "id": reply_id(message)})
        elif self._viewer.can_control:
            self._viewer.tell(await self._hub.run(lambda: obey(self._session, message)))
        else:
            self._error(message, "This link is for watching only.", "Ask its owner for the one that steers.")
        return True

    def _error(self, message: dict[str, Any], text: str, hint: str, key: str | None = None) -> None:
        self._viewer.tell({"type": "error", "id": reply_id(message), "message": text, "hint": hint}, key)


async def _refuse(socket: WebSocket, code: int, message: str, hint: str | None) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, OSError):
        await socket.send_text(to_json({"type": "error", "id": None, "message": message, "hint": hint}))
        await socket.close(code)
