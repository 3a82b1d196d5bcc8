"""What to film of a scene: styles, path, size, format, and where the files go."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from dreamkit.checks import one_of, require
from dreamkit.errors import ConfigError
from dreamkit.scenes.cameras import Camera, turntable
from dreamkit.scenes.films import FilmFormat, check_film
from dreamkit.scenes.paths import MAX_FRAMES, read_camera_path, spiral
from dreamkit.scenes.styles import Colormap, Style

BACKGROUNDS: Mapping[str, float] = {"light": 0.85, "white": 1.0, "gray": 0.5, "black": 0.0}
"""Gray levels by name; both white and black objects stand out from the light one."""
PATHS = ("turntable", "spiral")
"""Names that are no files."""
FRAMES, FPS = 120, 24
ELEVATION, RADIUS, FOV = 15.0, 3.0, 40.0
_RISE, _HIGHEST = 45.0, 85.0  # degrees: a spiral's


@dataclass(frozen=True)
class FilmConfig:
    """A film of a scene; what is None has a default that depends on the rest."""

    styles: tuple[Style, ...] = ("rgb",)
    """One film each: rgb, normal, depth, clay, wireframe."""
    path: str = "turntable"
    """turntable, spiral, or a file of cameras, see `dreamkit.scenes.paths`."""
    format: FilmFormat | None = None
    """mp4, gif, webp, or png (a folder of pictures); by default what `output` ends in, else mp4."""
    output: str | None = None
    """The file to write, or the folder of pictures, or a .png of one frame; with several styles each one's name is put
    before the suffix."""
    resolution: int = 512
    """Height of the frames in pixels, 16 to 2048; they are square unless the path's file says otherwise."""
    fps: int | None = None
    """Frames a second, 1 to 120 (gif: 50); 24 by default."""
    frames: int | None = None
    """How many, 1 to 10,000; 120 by default."""
    elevation: float | None = None
    """Degrees above the horizon, -90 to 90, 15 by default; a spiral begins there."""
    radius: float | None = None
    """Distance of the camera from the origin, world units, 0.05 to 50; 3 by default."""
    fov: float | None = None
    """Vertical field of view, degrees, 1 to 150; 40 by default."""
    background: str = "light"
    """light, white, gray, black, or #rrggbb."""
    colormap: Colormap = "magma"
    """The colours of depth: magma, inferno, viridis, turbo or gray; what is near is bright."""
    faces: int = 4000
    """Most triangles of a wireframe, 100 to 1,000,000."""
    line_width: float = 1.0
    """Of a wireframe's edges in pixels, 0.25 to 16."""
    device: str = "auto"
    """Where to render: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        known = get_args(Style)
        require("The film's list of styles", len(self.styles) > 0, "empty", f"one or more of {', '.join(known)}")
        for style in self.styles:
            one_of("The style", style, known)
        if self.format is not None:
            one_of("The format", self.format, get_args(FilmFormat))
        one_of("The colour map", self.colormap, get_args(Colormap))
        limits: dict[str, tuple[float, float]] = {
            "resolution": (16, 2048),
            "fps": (1, 120),
            "frames": (1, MAX_FRAMES),
            "elevation": (-90, 90),
            "radius": (0.05, 50),
            "fov": (1, 150),
            "faces": (100, 1_000_000),
            "line_width": (0.25, 16),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            holds = value is None or (math.isfinite(value) and low <= value <= high)
            require(f"The film's {name.replace('_', ' ')}", holds, value, f"{low:g} to {high:,g}")
        if self.path not in PATHS:
            for name in ("frames", "elevation", "radius", "fov"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"The path {self.path!r} is a file of cameras, which says the {name} itself.",
                        f"Leave --{name} out, or use one of {', '.join(PATHS)}.",
                    )
        _kind(self.output, self.format)
        self.background_color()

    @property
    def kind(self) -> FilmFormat:
        """The format: what the output ends in, else the one asked for, else mp4."""
        return _kind(self.output, self.format)

    @property
    def is_picture(self) -> bool:
        """Whether the output is the file of a single picture."""
        return self.output is not None and Path(self.output).suffix.lower() == ".png"

    def background_color(self) -> Tensor:
        """[3] in [0, 1].

        Raises:
            ConfigError: the name is not known.
        """
        if re.fullmatch("#[0-9a-fA-F]{6}", self.background):
            return torch.tensor(list(bytes.fromhex(self.background[1:]))) / 255.0
        if self.background not in BACKGROUNDS:
            known = f"Use {', '.join(BACKGROUNDS)}, or six hexadecimal digits such as #ffd080."
            raise ConfigError(f"The background {self.background!r} is not known.", known)
        return torch.full((3,), BACKGROUNDS[self.background])

    @property
    def frames_per_second(self) -> int:
        """`fps` or its default."""
        return self.fps or FPS

    def cameras(self) -> Camera:
        """The cameras of the film.

        Raises:
            SceneError: the path's file can't be read.
            ConfigError: more frames or pixels than the format, or a single picture, can hold.
        """
        cameras = self._cameras()
        films = len(set(self.styles))
        check_film(self.kind, self.frames_per_second, len(cameras), cameras.height, cameras.width, films)
        if self.is_picture and len(cameras) > 1:
            raise ConfigError(
                f"The output {self.output!r} is one picture, and the film has {len(cameras)} frames.",
                "Use --frames 1, or a folder's name.",
            )
        return cameras

    def _cameras(self) -> Camera:
        if self.path not in PATHS:
            if not Path(self.path).expanduser().exists():
                raise ConfigError(
                    f"There is no camera path {self.path!r}.", f"Use {' or '.join(PATHS)}, or a JSON file of cameras."
                )
            return read_camera_path(Path(self.path).expanduser(), self.resolution)
        frames = self.frames or FRAMES
        elevation = ELEVATION if self.elevation is None else self.elevation
        lens = (self.radius or RADIUS, self.fov or FOV, self.resolution, self.resolution)
        if self.path == "turntable":
            return turntable(frames, elevation, *lens)
        return spiral(frames, max(elevation, min(elevation + _RISE, _HIGHEST)), elevation, 2, *lens)

    def files(self, folder: Path) -> dict[str, Path]:
        """Where each style's film goes.

        Args:
            folder: of what has no `output`.

        Returns:
            Style -> file, or folder for pictures.
        """
        styles = dict.fromkeys(self.styles)
        if self.output is not None:
            output = Path(self.output).expanduser()
            names = {style: f"-{style}" if len(styles) > 1 else "" for style in styles}
            return {style: output.with_name(f"{output.stem}{name}{output.suffix}") for style, name in names.items()}
        stem = self.path if self.path in PATHS else re.sub(r"[^\w-]+", "-", Path(self.path).stem).strip("-") or "path"
        suffix = "" if self.kind == "png" else f".{self.kind}"
        return {style: folder / f"{stem}-{style}{suffix}" for style in styles}


def _kind(output: str | None, wanted: FilmFormat | None) -> FilmFormat:
    """The format of a film.

    Raises:
        ConfigError: the output ends in no known format, or in another than the one wanted.
    """
    if output is None:
        return wanted or "mp4"
    formats: tuple[FilmFormat, ...] = get_args(FilmFormat)
    suffix = Path(output).suffix.lower().removeprefix(".")
    found = [name for name in formats if name == (suffix or "png")]
    if not Path(output).name or not found:
        raise ConfigError(
            f"The output {output!r} ends in no known format.",
            "Use .mp4, .gif or .webp, a folder's name for pictures, or .png for one.",
        )
    if wanted not in (None, found[0]):
        raise ConfigError(f"The output {output!r} is no {wanted}.", f"Name it {Path(output).stem}.{wanted}.")
    return found[0]
