"""A stream shown while it is made: in a window where there is one, else in the terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from dreamkit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_RESET = "\x1b[0m"


def open_preview(fps: int, title: str, stream: TextIO | None = None) -> Preview:
    """The preview that this machine has.

    Args:
        fps: frames a second that are shown at most.
        title: of a window.
        stream: a terminal, stderr by default.

    Raises:
        ConfigError: neither a window nor a terminal.
    """
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        try:
            return WindowPreview(fps, title)
        except Exception:  # no tkinter, or a display that can't be opened: whatever Tcl calls it
            pass
    target = sys.stderr if stream is None else stream
    if not target.isatty():
        raise ConfigError("--preview finds no window and no terminal.", "Leave it out, or write a file with --out.")
    return TerminalPreview(fps, target)


def half_blocks(
    pixels: Tensor,  # [H, W, 3] uint8
    columns: int,
    rows: int,
) -> list[str]:
    """A picture as lines of upper half blocks, two pixels a character, in 24-bit colours.

    Args:
        pixels: the picture; it keeps its proportions and is never enlarged.
        columns: characters a line at most, at least 1.
        rows: lines at most, at least 1.

    Returns:
        Lines without line breaks, each ending with a reset of the colours.
    """
    from torch.nn import functional

    height, width = pixels.shape[:2]
    share = min(1.0, columns / width, 2 * rows / height)
    size = (max(2, 2 * round(height * share / 2)), max(1, round(width * share)))
    small = functional.interpolate(pixels.permute(2, 0, 1)[None].float(), size=size, mode="area")[0]
    picture = small.round().byte().permute(1, 2, 0).tolist()
    lines = []
    for top, bottom in zip(picture[::2], picture[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]}m\x1b[48;2;{b[0]};{b[1]};{b[2]}m▀" for a, b in zip(top, bottom, strict=True)
        )
        lines.append("".join(cells) + _RESET)
    return lines


class Preview(ABC):
    """Shows frames at the video's speed at most: waiting holds the stream back, nothing piles up.

    Args:
        fps: frames a second.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self, fps: int, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._interval = 1 / fps
        self._clock = clock
        self._sleep = sleep
        self._due = -float("inf")

    def show(self, pixels: Tensor, status: str) -> None:
        """Show a frame [H, W, 3] uint8 with a line of text when it is time."""
        wait = self._due - self._clock()
        if wait > 0:
            self._sleep(wait)
        self._due = max(self._due, self._clock()) + self._interval
        self.draw(pixels, status)

    @abstractmethod
    def draw(self, pixels: Tensor, status: str) -> None:
        """Show a frame now."""

    @abstractmethod
    def close(self) -> None:
        """Leave the screen as it was."""


class TerminalPreview(Preview):
    """In place, by coloured half blocks."""

    def __init__(self, fps: int, stream: TextIO) -> None:
        super().__init__(fps)
        self._stream = stream
        self._lines = 0

    def draw(self, pixels: Tensor, status: str) -> None:
        """See `Preview.draw`."""
        columns, rows = shutil.get_terminal_size()
        lines = [*half_blocks(pixels, columns, max(1, rows - 2)), status[: columns - 1] + "\x1b[K"]
        back = f"\x1b[{self._lines}A\r" if self._lines else "\x1b[?25l"
        self._stream.write(back + "\n".join(lines) + "\n")
        self._stream.flush()
        self._lines = len(lines)

    def close(self) -> None:
        """Show the cursor again."""
        self._stream.write("\x1b[?25h")
        self._stream.flush()


class WindowPreview(Preview):
    """A window of the desktop, small pictures enlarged; closing it is as Ctrl-C."""

    def __init__(self, fps: int, title: str) -> None:
        super().__init__(fps)
        import tkinter

        self._tk: Any = tkinter
        self._root: Any = tkinter.Tk()
        self._root.title(title)
        self._root.protocol("WM_DELETE_WINDOW", self._leave)
        self._label: Any = tkinter.Label(self._root)
        self._label.pack()
        self._is_left = False

    def _leave(self) -> None:
        self._is_left = True

    def draw(self, pixels: Tensor, status: str) -> None:
        """See `Preview.draw`."""
        times = max(1, 448 // max(pixels.shape[:2]))
        large = pixels.repeat_interleave(times, 0).repeat_interleave(times, 1)
        header = f"P6 {large.shape[1]} {large.shape[0]} 255 ".encode()
        picture = self._tk.PhotoImage(data=header + large.numpy().tobytes(), format="PPM")
        self._label.configure(image=picture)
        self._label.image = picture  # Tk keeps no reference of its own
        self._root.title(status)
        self._root.update()
        if self._is_left:
            raise KeyboardInterrupt

    def close(self) -> None:
        """Close the window."""
        self._root.destroy()
