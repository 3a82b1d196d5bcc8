"""All live sessions of a server: made, found by their secrets, closed when nobody is there."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from dreamkit_apps.live.limits import LiveLimits
from dreamkit_apps.live.session import LiveSession
from dreamkit_apps.live.source import LiveModel

from dreamkit.errors import DreamkitError

Result = TypeVar("Result")
_THREADS = 4
_MAX_LOOK_S = 10.0
_SPARE_AFTER_S = 20.0
"""Seconds after which a session that nobody watches makes room for a new one."""


class LiveHub:
    """Used by one event loop.

    Args:
        model: what all sessions stream.
        limits: of sessions and viewers.

    Attributes:
        limits: of sessions and viewers.
    """

    def __init__(self, model: LiveModel, limits: LiveLimits | None = None) -> None:
        self.limits = limits or LiveLimits()
        self._model = model
        self._sessions: dict[str, LiveSession] = {}
        self._leaving: set[asyncio.Future[None]] = set()
        self._count = 0
        self._folder = Path(tempfile.mkdtemp(prefix="dreamkit-live-"))
        # Of its own: a command waits for a chunk or for a text encoder, and must not take the threads of others.
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="dreamkit-live-command")

    @property
    def sessions(self) -> list[LiveSession]:
        """Those that go on."""
        return list(self._sessions.values())

    def run(self, function: Callable[[], Result]) -> Awaitable[Result]:
        """Call something that may take a while in a thread."""
        return asyncio.get_running_loop().run_in_executor(self._executor, function)

    def open(self, prompt: str, seed: int | None = None) -> LiveSession:
        """Begin a session; it is loading when this returns.

        Args:
            prompt: what to show.
            seed: of the noise, by default any.

        Raises:
            PromptError: a prompt that is no sentence.
            ConfigError: a seed out of range.
            DreamkitError: all places are taken.
        """
        if len(self._sessions) >= self.limits.sessions:
            self._make_room()
        self._count += 1
        folder = self._folder / str(self._count)
        seed = secrets.randbelow(2**31) if seed is None else seed
        session = LiveSession(self._model, prompt, seed, folder, self.limits)
        self._sessions[session.key] = session
        return session

    def find(self, key: str) -> tuple[LiveSession, bool] | None:
        """The session of a secret and whether it lets steer it; `None` where there is none."""
        given = key.encode("utf-8", "surrogatepass")
        for session in self._sessions.values():
            if hmac.compare_digest(session.key.encode(), given):
                return session, True
            if hmac.compare_digest(session.watch_key.encode(), given):
                return session, False
        return None

    def end(self, session: LiveSession, reason: str) -> None:
        """Close a session; its thread is waited for elsewhere."""
        self._sessions.pop(session.key, None)
        session.ask_to_close(reason)
        closing = asyncio.ensure_future(self.run(session.close))
        self._leaving.add(closing)
        closing.add_done_callback(self._leaving.discard)

    async def look_after(self) -> None:
        """Close what nobody watches and let rest what nobody steers, until cancelled."""
        while True:
            await asyncio.sleep(min(_MAX_LOOK_S, self.limits.idle_s / 4, self.limits.unattended_s / 4))
            for session in self.sessions:
                if session.unwatched_s > self.limits.idle_s:
                    self.end(session, "idle")
                else:
                    session.rest_if_unattended()

    def stop(self) -> None:
        """Begin to close everything: viewers are told, no thread is waited for yet."""
        for session in self.sessions:
            session.ask_to_close("server")

    async def close(self) -> None:
        """Close everything and wait for all threads. Recordings are deleted."""
        self.stop()
        for session in self.sessions:
            self.end(session, "server")
        while self._leaving:
            await asyncio.wait(set(self._leaving))
        await asyncio.to_thread(self._executor.shutdown)
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)

    def _make_room(self) -> None:
        longest = max(self._sessions.values(), key=lambda session: session.unwatched_s)
        if longest.unwatched_s < _SPARE_AFTER_S:
            raise DreamkitError(
                f"All {self.limits.sessions} places for live video are taken.", "Try again when somebody has left."
            )
        self.end(longest, "idle")
