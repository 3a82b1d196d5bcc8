"""A video file that grows with a stream and plays at every moment, also after its writer was killed.

The file is a fragmented mp4, or Matroska: a fragment of a second is complete in itself. So it is written in place, not
under a temporary name. The encoder is a process of its own that ends the file when it hears no more from us.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from torch import Tensor

from dreamkit.checks import require, require_integer
from dreamkit.errors import ConfigError, RunError
from dreamkit.files import write_error

FORMATS: dict[str, tuple[str, ...]] = {
    ".mp4": ("-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-f", "mp4"),
    ".mkv": ("-f", "matroska"),
}
"""ffmpeg's options by the end of a file's name."""
_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class StreamFile:
    """H.264 (yuv420p) in a fragmented mp4 or Matroska, a frame at a time; the same frames give the same bytes.

    Args:
        path: .mp4 or .mkv; replaced where it is there, its folder is made.
        fps: frames a second, 1 to 240.

    Raises:
        ConfigError: another ending of the name, or frames a second out of range.
        RunError: the file can't be written.
    """

    def __init__(self, path: Path | str, fps: int) -> None:
        self.path = Path(path)
        check_name(self.path)
        require_integer("Frames a second", fps, 1, 240)
        self.fps = fps
        self._shape: tuple[int, ...] | None = None
        self._encoder: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the file
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = open(self.path, "wb")  # noqa: SIM115 - closed by close
        except OSError as error:
            self._log.close()
            raise write_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(RunError):  # what went wrong first is what is told
            self.close()

    def add(self, pixels: Tensor) -> None:
        """Append a frame.

        Args:
            pixels: [H, W, 3] uint8 on the CPU; odd sides are extended by their last row or column.

        Raises:
            ConfigError: another size than the first frame's.
            RunError: the disk is full, or the encoder failed for another reason.
        """
        picture = pixels.numpy()
        if self._shape is None:
            self._shape = picture.shape
        require("The frame's shape", picture.shape == self._shape, list(picture.shape), f"{list(self._shape)}")
        height, width = picture.shape[:2]
        picture = np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
        if self._encoder is None:
            self._encoder = self._start(picture.shape[0], picture.shape[1])
        assert self._encoder.stdin is not None
        try:
            self._encoder.stdin.write(picture.data)
            self._encoder.stdin.flush()
        except OSError as error:  # it has gone
            raise self._explained(self._encoder) from error

    def close(self) -> None:
        """Write what is left; safe to call again.

        Raises:
            RunError: the disk is full, or the encoder failed for another reason.
        """
        encoder, self._encoder = self._encoder, None
        try:
            if encoder is not None:
                self._end(encoder)
        finally:
            self._file.close()
            self._log.close()

    def _end(self, encoder: subprocess.Popen[bytes]) -> None:
        assert encoder.stdin is not None
        try:
            encoder.stdin.close()
        except OSError as error:
            raise self._explained(encoder) from error
        finally:
            encoder.wait()
        if encoder.returncode != 0:
            raise self._explained(encoder)

    def _start(self, height: int, width: int) -> subprocess.Popen[bytes]:
        import imageio_ffmpeg  # type: ignore[import-untyped]

        source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(self.fps), "-i", "-")
        codec = ("-an", "-c:v", "libx264", "-preset", "veryfast", "-tune", "zerolatency", "-crf", "16")
        plain = ("-pix_fmt", "yuv420p", "-threads", "1", "-g", str(self.fps), "-fflags", "+bitexact")
        options = ("-v", "error", "-flush_packets", "1", *FORMATS[self.path.suffix.lower()], "pipe:1")
        # A session of its own: Ctrl-C in the terminal is for us, the encoder ends the file when we close its input.
        return subprocess.Popen(
            [imageio_ffmpeg.get_ffmpeg_exe(), *source, *codec, *plain, *options],
            stdin=subprocess.PIPE,
            stdout=self._file,
            stderr=self._log,
            start_new_session=True,
        )

    def _explained(self, encoder: subprocess.Popen[bytes]) -> RunError:
        """Why the encoder gave up."""
        code = encoder.wait()
        if code == -signal.SIGXFSZ:
            return write_error(self.path, OSError(errno.EFBIG, os.strerror(errno.EFBIG)))
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")
        for number in _ERRNOS:
            if os.strerror(number) in log:
                return write_error(self.path, OSError(number, os.strerror(number)))
        reason = (log.strip().splitlines() or [f"it ended with code {code}"])[-1]
        return RunError(f"Could not write {self.path}: the video encoder failed: {reason}.", "Check the disk.")


def check_name(path: Path | str) -> None:
    """Refuse a file whose name does not end in a format's.

    Raises:
        ConfigError: neither .mp4 nor .mkv.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} is no {' or '.join(FORMATS)}.", f"Let the name end in {' or '.join(FORMATS)}.")
