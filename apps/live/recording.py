"""Films of what a session shows: one that is being written, and the last finished ones. All of bounded size."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamkit.errors import DreamkitError, RunError

if TYPE_CHECKING:
    from torch import Tensor

_FRAMES_A_LOOK = 16
"""Frames from one look at the file's size to the next."""


class Recording:
    """An mp4 that is being written; it plays at every moment.

    Args:
        path: of the file.
        fps: frames a second.
        max_bytes: at which no more is taken, but for the frames up to the next look.

    Attributes:
        path: of the file.
        frames: written so far.

    Raises:
        RunError: it can't be written.
    """

    def __init__(self, path: Path, fps: int, max_bytes: int) -> None:
        from dreamkit.video.stream_file import StreamFile

        self.path, self.frames, self._fps, self._max_bytes = path, 0, fps, max_bytes
        self._file = StreamFile(path, fps)

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return self.frames / self._fps

    @property
    def bytes(self) -> int:
        """Its size so far; an encoder holds back the last frames."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def add(self, pixels: Tensor) -> bool:
        """Append a frame [H, W, 3] uint8; whether more are taken.

        Raises:
            DreamkitError: the disk is full, or the encoder failed.
        """
        self._file.add(pixels)
        self.frames += 1
        return self.frames % _FRAMES_A_LOOK != 0 or self.bytes < self._max_bytes

    def close(self) -> None:
        """End the file.

        Raises:
            RunError: the disk is full, or the encoder failed.
        """
        self._file.close()

    def discard(self) -> None:
        """End it and delete it, whatever became of it."""
        with contextlib.suppress(RunError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class Films:
    """The recordings of a session, from any thread. Only writing waits for a disk, and nothing else waits for that.

    Args:
        folder: where they go; made when there is one.
        room: finished ones that are kept; the oldest is deleted.
        megabytes: of one.
    """

    def __init__(self, folder: Path, room: int, megabytes: int) -> None:
        self._folder, self._room, self._megabytes = folder, room, megabytes
        self._lock = threading.Lock()
        self._now: Recording | None = None
        self._finished: tuple[Recording, ...] = ()
        self._count = 0

    @property
    def is_recording(self) -> bool:
        """Whether one is being written."""
        return self._now is not None

    def listing(self) -> list[dict[str, Any]]:
        """Name, seconds and bytes of the finished ones, the oldest first."""
        films = self._finished
        return [{"name": film.path.name, "seconds": film.seconds, "bytes": film.bytes} for film in films]

    def find(self, name: str) -> Path | None:
        """The file of a finished one; `None` where none has that name."""
        return next((film.path for film in self._finished if film.path.name == name), None)

    def begin(self, fps: int) -> None:
        """Begin one, unless one is being written.

        Raises:
            RunError: it can't be written.
        """
        with self._lock:
            if self._now is None:
                self._count += 1
                path = self._folder / f"dreamkit-live-{self._count}.mp4"
                self._now = Recording(path, fps, self._megabytes * 1_000_000)

    def add(self, pixels: Tensor) -> str | None:
        """Append a frame where one is being written; returns why it was ended, where it was."""
        if self._now is None:
            return None
        with self._lock:
            recording = self._now
            if recording is None:
                return None
            try:
                if recording.add(pixels):
                    return None
                self._finish()
            except DreamkitError as error:
                self._now = None
                recording.discard()
                return str(error)
            return f"The recording has reached {self._megabytes} MB and was ended."

    def end(self) -> None:
        """End the one that is being written.

        Raises:
            RunError: the disk is full, or the encoder failed; it is deleted then.
        """
        with self._lock:
            self._finish()

    def clear(self) -> None:
        """Delete all."""
        with self._lock:
            recording, self._now = self._now, None
            films, self._finished = self._finished, ()
        for film in (*films, *([] if recording is None else [recording])):
            film.discard()

    def _finish(self) -> None:
        recording = self._now
        if recording is None:
            return
        try:
            recording.close()
        except RunError:
            self._now = None
            recording.discard()
            raise
        kept = (*self._finished, recording) if recording.frames else self._finished
        self._finished = kept[-self._room :]
        self._now = None  # now that it is listed
        for film in (*kept[: -self._room], *(() if recording.frames else (recording,))):
            film.discard()
