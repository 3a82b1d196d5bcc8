"""Films as files: mp4, gif, webp, or a folder of PNGs. Frames come one at a time, and each file is written atomically.

```python
with open_film("turn.mp4", "mp4", fps=24) as add:
    for frame in frames:
        add(frame)
```

The same frames give the same bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dreamkit.errors import ConfigError, SceneError
from dreamkit.files import atomic_folder, atomic_path
from dreamkit.scenes.cameras import turntable
from dreamkit.scenes.pictures import pillow_image, render_views, to_bytes
from dreamkit.scenes.rendering import Scene

if TYPE_CHECKING:
    from PIL.Image import Image

FilmFormat = Literal["mp4", "gif", "webp", "png"]
AddFrame = Callable[[Tensor], None]

MAX_FPS = {"mp4": 120, "gif": 50, "webp": 120, "png": 120}
"""Viewers slow a GIF down whose frames last less than 2 hundredths of a second."""
MAX_COLLECTED = 2**28
"""Pixels of all frames together that gif and webp may have: their frames are kept until the last."""
_COLLECTED_BYTES = {"gif": 8, "webp": 5}
"""Memory that a pixel takes meanwhile, measured."""
_PALETTE_PIXELS = 2**18


def check_film(kind: FilmFormat, fps: int, frames: int, height: int, width: int, films: int = 1) -> None:
    """Refuse a film that its format can't hold.

    Args:
        kind: mp4, gif, webp or png.
        fps: frames a second.
        frames: how many there will be.
        height: of a frame, pixels.
        width: of a frame, pixels.
        films: how many are made at once.

    Raises:
        ConfigError: an unknown format, too few or too many frames a second, or more pixels than memory should hold.
    """
    if kind not in get_args(FilmFormat):
        raise ConfigError(f"The film format {kind!r} is not known.", f"Known: {', '.join(get_args(FilmFormat))}.")
    if not 1 <= fps <= MAX_FPS[kind]:
        others = "" if kind != "gif" else ", or another format"
        raise ConfigError(f"{fps} frames a second are no {kind}.", f"Use 1 to {MAX_FPS[kind]}{others}.")
    pixels = films * frames * height * width
    if kind in _COLLECTED_BYTES and pixels > MAX_COLLECTED:
        what = f"A {kind}" if films == 1 else f"{films} films in {kind}"
        gigabytes = 1e-9 * _COLLECTED_BYTES[kind] * pixels
        raise ConfigError(
            f"{what} of {frames} frames of {width}x{height} pixels would take {gigabytes:.1f} GB of memory.",
            f"Use mp4 or png, fewer frames{' or styles' if films > 1 else ''} or a smaller resolution.",
        )


@contextmanager
def open_film(path: Path | str, kind: FilmFormat, fps: int) -> Iterator[AddFrame]:
    """A film that frames are added to; it is there when the block ends well, and nothing is when it raises.

    - mp4: H.264, yuv420p, plays everywhere; odd sizes are extended by their last row or column.
    - gif: loops; one palette of 256 colours for the whole film, so that nothing flickers.
    - webp: loops, full colour.
    - png: a folder of 0000.png, 0001.png, ...

    Args:
        path: the file (or folder) to write or replace.
        kind: its format.
        fps: frames a second.

    Yields:
        A function that takes the next frame, [3, H, W] in [0, 1]; all must have one size.

    Raises:
        ConfigError: more frames a second than the format knows.
        SceneError: no frames, frames of different sizes, or the encoder failed.
        RunError: the system refused the write.
    """
    check_film(kind, fps, 0, 1, 1)
    if kind == "png":
        refuse_other_folder(Path(path))
    with atomic_folder(path) if kind == "png" else atomic_path(path) as temporary:
        films: dict[str, Callable[[], _Film]] = {
            "mp4": lambda: _Video(temporary, fps),
            "gif": lambda: _Gif(temporary, fps),
            "webp": lambda: _Webp(temporary, fps),
            "png": lambda: _Pictures(temporary),
        }
        film = films[kind]()
        try:
            yield film.add
        except BaseException:
            film.abandon()
            raise
        if film.shape is None:
            raise SceneError("A video of no frames can't be written.", "Give at least one frame.")
        film.finish()


def write_video(
    frames: Iterable[Tensor],  # each [3, H, W] in [0, 1]
    path: Path | str,
    fps: int = 30,
) -> None:
    """Encode frames as mp4 (H.264, yuv420p: plays everywhere), one at a time; the same frames give the same bytes.

    Args:
        frames: [3, H, W] in [0, 1], all of one size; odd sizes are extended by their last row or column.
        path: the .mp4 file to write or replace.
        fps: frames a second, 1 to 120.

    Raises:
        ConfigError: `fps` out of range.
        SceneError: no frames, frames of different sizes, or the encoder failed.
        RunError: the system refused the write.
    """
    with open_film(path, "mp4", fps) as add:
        for frame in frames:
            add(frame)


def turntable_video(
    scene: Scene,
    path: Path | str,
    frames: int = 120,
    fps: int = 30,
    size: int = 256,
    elevation: float = 15.0,
    radius: float = 3.0,
    fov_y: float = 40.0,
    background: Tensor | None = None,
) -> None:
    """Write a video of one turn round the scene, starting in front, as mp4 (H.264) that loops smoothly.

    Args:
        scene: what to look at.
        path: the .mp4 file to write or replace.
        frames: pictures in the turn, >= 1.
        fps: frames a second, 1 to 120.
        size: image side in pixels.
        elevation: degrees.
        radius: distance to the origin, world units.
        fov_y: vertical field of view, degrees.
        background: [3] colour, the scene's own by default.

    Raises:
        ConfigError: `fps` out of range.
        SceneError: another value out of range, or the encoder failed.
        RunError: the system refused the write.
    """
    cameras = turntable(frames, elevation, radius, fov_y, size, size)
    write_video(render_views(scene, cameras, background), path, fps)


def refuse_other_folder(path: Path) -> None:
    """Make sure that a folder of frames replaces nothing but a folder of frames.

    Raises:
        SceneError: there is a file, or a folder with anything else in it.
    """
    if path.is_dir() and all(item.suffix == ".png" and item.stem.isdecimal() for item in path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise SceneError(f"{path} is there, and is no folder of frames only.", "Choose another name for the folder.")


class _Film(ABC):
    """What the formats have in common: frames of one size."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None

    def add(self, frame: Tensor) -> None:
        """Take the next frame, [3, H, W] in [0, 1].

        Raises:
            SceneError: another size than the first one's.
        """
        pixels = to_bytes(frame)
        if self.shape is None:
            self.shape = pixels.shape
        elif pixels.shape != self.shape:
            raise SceneError(f"A frame is {pixels.shape[:2]}, the first was {self.shape[:2]}.", "Use one size.")
        self.take(pixels)

    @abstractmethod
    def take(self, pixels: NDArray[np.uint8]) -> None:
        """Write or keep [H, W, 3] bytes."""

    def finish(self) -> None:  # noqa: B027 - not every format has something left
        """Write what is left."""

    def abandon(self) -> None:  # noqa: B027 - not every format holds something
        """Let go of everything: the film will not be finished."""


class _Pictures(_Film):
    """A folder of PNGs."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.count = 0

    def take(self, pixels: NDArray[np.uint8]) -> None:
        pillow_image(pixels).save(self.folder / f"{self.count:04d}.png", format="PNG")
        self.count += 1


class _Video(_Film):
    """An mp4: every frame goes to the encoder at once."""

    def __init__(self, path: Path, fps: int) -> None:
        super().__init__()
        self.path = path
        self.fps = fps
        self.encoder: Any = None

    def take(self, pixels: NDArray[np.uint8]) -> None:
        # H.264 halves the colour planes: repeat the last row or column where the side is odd.
        height, width = pixels.shape[:2]
        pixels = np.ascontiguousarray(np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
        with self._explained():
            if self.encoder is None:
                self.encoder = self._start(pixels.shape[0], pixels.shape[1])
            self.encoder.send(pixels)

    def _start(self, height: int, width: int) -> Any:
        import imageio_ffmpeg  # type: ignore[import-untyped]

        encoder = imageio_ffmpeg.write_frames(
            str(self.path),
            (width, height),
            fps=self.fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-crf", "16", "-threads", "1", "-fflags", "+bitexact", "-movflags", "+faststart"],
        )
        encoder.send(None)
        return encoder

    def finish(self) -> None:
        with self._explained():
            self.encoder.close()

    def abandon(self) -> None:
        if self.encoder is not None:
            self.encoder.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn imageio-ffmpeg's word for a failed encoder, with its whole log, into one sentence."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise SceneError(f"The video encoder failed: {reason}.", "Check the disk and ffmpeg.") from error


class _Animation(_Film):
    """What pillow writes from all frames at once."""

    def __init__(self, path: Path, fps: int) -> None:
        super().__init__()
        self.path = path
        self.fps = fps

    def save(self, images: list[Image], kind: str, unit: int, **options: Any) -> None:
        """Write an endless loop of images that last multiples of `unit` milliseconds."""
        durations = frame_durations(len(images), self.fps, unit)
        first, *others = images
        first.save(self.path, format=kind, save_all=True, append_images=others, duration=durations, loop=0, **options)


class _Webp(_Animation):
    """A webp, which counts in thousandths of a second."""

    def __init__(self, path: Path, fps: int) -> None:
        super().__init__(path, fps)
        self.images: list[Image] = []

    def take(self, pixels: NDArray[np.uint8]) -> None:
        self.images.append(pillow_image(pixels))

    def finish(self) -> None:
        self.save(self.images, "WEBP", 1, quality=90, method=4)


class _Gif(_Animation):
    """A gif, which counts in hundredths of a second; its palette is known when all its frames are."""

    def __init__(self, path: Path, fps: int) -> None:
        super().__init__(path, fps)
        self.frames: list[NDArray[np.uint8]] = []

    def take(self, pixels: NDArray[np.uint8]) -> None:
        self.frames.append(pixels)

    def finish(self) -> None:
        palette = film_palette(self.frames)
        self.save([reduce_colors(frame, palette) for frame in self.frames], "GIF", 10, optimize=False)


def frame_durations(frames: int, fps: int, unit: int) -> list[int]:
    """Milliseconds that each frame lasts in a format that counts in multiples of `unit` milliseconds.

    Frame k ends at the multiple nearest to 1000 (k + 1) / fps, so the film is as long as it should be.

    Args:
        frames: how many.
        fps: frames a second.
        unit: milliseconds, 1 for a webp, 10 for a gif.

    Returns:
        One duration a frame.
    """
    ends = [unit * round(1000 * k / (fps * unit)) for k in range(frames + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def film_palette(frames: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """A palette of 256 colours for all frames: the commonest colour (the background) exactly, the rest by median cut.

    Args:
        frames: [H, W, 3] bytes each.

    Returns:
        [256, 3] bytes, the commonest colour first; a film of fewer colours has them all, the first ones again after
        the last.
    """
    every = max(1, len(frames) * frames[0].shape[0] * frames[0].shape[1] // _PALETTE_PIXELS)
    sample = np.concatenate([frame.reshape(-1, 3)[index % every :: every] for index, frame in enumerate(frames)])
    colors, counts = np.unique(sample, axis=0, return_counts=True)
    common = colors[counts.argmax()]
    rest = colors[(colors != common).any(axis=1)]
    if len(rest) > 255:
        others = sample[(sample != common).any(axis=1)]
        reduced = pillow_image(np.ascontiguousarray(others[None])).quantize(255, kmeans=2)
        table = reduced.getpalette()
        rest = np.array(table, np.uint8).reshape(-1, 3)[:255] if table is not None else rest[:255]
    entries = np.concatenate([common[None], rest]).astype(np.uint8)
    return np.resize(entries, (256, 3))


def reduce_colors(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> Image:
    """A frame in the colours of a palette, dithered (Floyd and Steinberg) but where it has the first colour exactly.

    Args:
        pixels: [H, W, 3] bytes.
        palette: [256, 3] bytes.

    Returns:
        A picture of mode P.
    """
    from PIL import Image

    table = Image.new("P", (1, 1))
    table.putpalette(palette.tobytes())
    indices = np.array(pillow_image(pixels).quantize(palette=table))
    indices[(pixels == palette[0]).all(axis=-1)] = 0  # no grain in the background
    picture = Image.fromarray(indices, "P")
    picture.putpalette(palette.tobytes())
    return picture
