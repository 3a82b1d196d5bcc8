"""`dreamkit stream PROMPT`: a video that goes on, written and shown while it is made."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dreamkit.checks import require_choice, require_integer, require_number
from dreamkit.cli.generate import SEED_LIMIT
from dreamkit.cli.output import print_json, print_rows, print_warning
from dreamkit.cli.parsing import Device, Integer, Prompt, parse, require_device
from dreamkit.errors import ConfigError
from dreamkit.prompts import clean_prompt, slug

if TYPE_CHECKING:
    from dreamkit.cli.preview import Preview
    from dreamkit.video.pipeline import VideoTeacher
    from dreamkit.video.stream import StreamSession
    from dreamkit.video.stream_config import StreamConfig
    from dreamkit.video.stream_controls import Steering
    from dreamkit.video.stream_metrics import StreamMetrics

ModelName = Annotated[str, tyro.conf.arg(metavar="embedded|FOLDER|NAME-random")]
Overlap = Annotated[str, tyro.conf.arg(metavar="auto|on|off")]
Size = Annotated[str, tyro.conf.arg(metavar="HEIGHTxWIDTH", help_behavior_hint="(default: the model's)")]
_STUDENTS = "(default: the student's)"
StudentInteger = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint=_STUDENTS)]
StudentNumber = Annotated[float | None, tyro.conf.arg(metavar="F", help_behavior_hint=_STUDENTS)]
StudentSparsity = Annotated[
    str | None, tyro.conf.arg(metavar="dense|keep=F|mass=F[,block=N][,dense_layers=N]", help_behavior_hint=_STUDENTS)
]
_OVERLAP = {"auto": None, "on": True, "off": False}
_SECONDS_A_LINE = 5.0


@dataclass(frozen=True)
class Stream:
    """Make a video of a sentence, for as long as you like; the file plays at every moment."""

    prompt: Prompt
    """What to show, in words."""
    frames: Integer = 120
    """Frames to make, >= 1."""
    endless: bool = False
    """Go on until Ctrl-C."""
    switch: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="FRAME:PROMPT")] = ()
    """Change the prompt at the first chunk from a frame on, e.g. 60:"a blue ball bouncing"; may be given several
    times."""
    switch_by: Annotated[str, tyro.conf.arg(metavar="recache|interpolate")] = "recache"
    """How a new prompt comes in: what the window remembers is computed anew with it, or gradually."""
    camera: Annotated[str, tyro.conf.arg(metavar="MOVE|FILE")] = ""
    """How the camera moves: static, orbit-left, orbit-right, dolly-in, dolly-out, pan-left, pan-right, or a JSON or CSV
    file of camera_to_world rows, 12 or 16 numbers a frame."""
    tracks: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Where points go: a JSON list of frames, each a list of [x, y] in [0, 1] from the top left, or null."""
    source: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """A video to film again from the --camera, beside each of its frames, by a --model that was taught to; the stream
    ends with it."""
    model: ModelName = "embedded"
    """The causal student: the embedded one, a folder in diffusers layout, or random weights of a known shape."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Where to write, .mp4 or .mkv; by default outputs/PROMPT.mp4, or nowhere with --preview."""
    preview: bool = False
    """Show it while it is made, in a window where there is one, else in the terminal."""
    fps: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the model's)")] = None
    """Frames a second of the file and the preview, 1 to 120."""
    size: Size = ""
    """Of a frame, pixels."""
    guidance: StudentNumber = None
    """Classifier-free guidance, >= 0; 1 is none and what a distilled student wants."""
    chunk: StudentInteger = None
    """Latent frames that are made together."""
    window: StudentInteger = None
    """Latent frames before a chunk that it sees."""
    sink: StudentInteger = None
    """First latent frames that stay visible for good."""
    sparsity: StudentSparsity = None
    """What of attention is computed: a share of the blocks between sink and chunk, as few of them as have a share of
    the attention, or dense, all; a student should have been trained with the same."""
    overlap: Overlap = "auto"
    """Whether denoising and decoding have threads of their own."""
    seed: Integer = 0
    """Seed of the noise, >= 0; the same seed gives the same frames on a CPU."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: bool = False
    """Print one JSON object as the last line of stdout."""

    def check(self) -> None:
        """Check every option that can be checked before anything heavy is loaded.

        Raises:
            ConfigError: an option out of range or unknown.
            PromptError: a prompt that can't be used.
        """
        clean_prompt(self.prompt)
        require_integer("--frames", self.frames, 1)
        require_integer("--fps", self.fps, 1, 120)
        require_number("--guidance", self.guidance, 0, 100)
        require_integer("--seed", self.seed, 0, SEED_LIMIT)
        require_choice("--overlap", self.overlap, _OVERLAP)
        require_choice("--switch-by", self.switch_by, ("recache", "interpolate"))
        require_device(self.device)
        for at, prompt in self.switches():
            if not self.endless and at >= self.frames:
                raise ConfigError(
                    f"--switch {at}:{prompt!r} comes too late: the video has {self.frames} frames.",
                    f"Use a frame from 0 to {self.frames - 1}, or more --frames.",
                )
        if self.source and self.endless:
            raise ConfigError("--endless goes on and a --source ends.", "Leave one of them out.")
        frame_size(self.size)

    def switches(self) -> list[tuple[int, str]]:
        """Frames and prompts of the switches, in order.

        Raises:
            ConfigError: not FRAME:PROMPT.
            PromptError: a prompt that can't be used.
        """
        found = []
        for item in self.switch:
            match = re.fullmatch(r"(\d{1,15}):(.*)", item, re.DOTALL)
            if match is None:
                raise ConfigError(f"--switch {item!r} is not understood.", 'Write --switch 60:"a blue ball bouncing".')
            found.append((int(match[1]), clean_prompt(match[2])))
        return sorted(found)


def frame_size(text: str) -> tuple[int, int] | None:
    """Height and width of "480x832"; `None` for "".

    Raises:
        ConfigError: another form.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ConfigError(f"--size {text!r} is not understood.", "Write HEIGHTxWIDTH, for example 480x832.")
    return int(match[1]), int(match[2])


def stream_config(command: Any, student: VideoTeacher, **more: Any) -> StreamConfig:
    """The settings of `stream` and `bench stream`: what was asked for, over those that the student was trained with.

    Raises:
        ConfigError: a setting out of range.
        CheckpointError: the student's folder says how it is streamed, and that can't be read.
    """
    from dreamkit.video import students
    from dreamkit.video.random_models import RANDOM_MODELS
    from dreamkit.video.stream_config import StreamConfig

    trained = None if student.name in RANDOM_MODELS else students.read_stream_config(Path(student.name))
    base = trained or StreamConfig(size=students.frame_size(student))
    asked = {name: getattr(command, name) for name in ("chunk", "window", "sink", "guidance", "sparsity")}
    asked = {name: value for name, value in asked.items() if value is not None} | more
    size = frame_size(command.size) or base.size
    # No memory for snapshots: nobody rewinds here.
    return replace(base, size=size, overlap=_OVERLAP[command.overlap], snapshot_mb=0, **asked)


def run(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `stream`.

    Returns:
        The exit code.
    """
    command = parse(Stream, "stream", arguments)
    command.check()
    from dreamkit.diffusion.loading import resolve_device
    from dreamkit.video.source_video import read_video
    from dreamkit.video.stream import StreamSession
    from dreamkit.video.stream_file import check_name
    from dreamkit.video.students import frame_rate, load_student

    out = command.out or ("" if command.preview else f"outputs/{slug(clean_prompt(command.prompt))}.mp4")
    if out:
        check_name(out)
    steering = _steering(command)
    student = load_student(command.model, resolve_device(command.device))
    fps = command.fps or frame_rate(student)
    config = stream_config(command, student, fps=fps, switch=command.switch_by)
    frames = None if command.endless else command.frames
    source = None
    if command.source:
        student.check_source(command.source)
        source = read_video(command.source, config.size, command.frames)
    with StreamSession(student, command.prompt, steering, command.seed, config, frames, source) as session:
        warnings = session.warnings
        for at, prompt in command.switches():
            warnings.extend(session.say(prompt, at))
        for warning in dict.fromkeys(warnings):
            print_warning(warning)
        is_stopped = _play(session, command, out, fps)
        metrics = session.metrics
    _print_result(metrics, out, warnings, command.json)
    if is_stopped and not command.endless:
        raise KeyboardInterrupt
    return 0


def _steering(command: Stream) -> Steering:
    from dreamkit.video.camera_paths import camera_path
    from dreamkit.video.stream_controls import Steering, read_tracks

    camera = camera_path(command.camera) if command.camera else None
    tracks, visible = read_tracks(command.tracks) if command.tracks else (None, None)
    return Steering(camera, tracks, visible)


def _play(session: StreamSession, command: Stream, out: str, fps: int) -> bool:
    """Write and show every frame; whether Ctrl-C ended it, which leaves a file that plays."""
    from dreamkit.cli.preview import open_preview
    from dreamkit.video.stream_file import StreamFile

    progress = _Progress(command.frames if not command.endless else None)
    with ExitStack() as stack:
        preview: Preview | None = None
        if command.preview:
            preview = open_preview(fps, "dreamkit stream")
            stack.callback(preview.close)
        file = stack.enter_context(StreamFile(out, fps)) if out else None
        try:
            for frame in session:
                if file is not None:
                    file.add(frame.pixels)
                if preview is not None:
                    preview.show(frame.pixels, progress.line(session.metrics))
                elif progress.is_due():
                    progress.print(session.metrics)
        except KeyboardInterrupt:
            session.close()
            return True
        finally:
            progress.close()
    return False


class _Progress:
    """A line on stderr: in place on a terminal, else one every few seconds."""

    def __init__(self, total: int | None) -> None:
        self._total = "" if total is None else f"/{total}"
        self._is_live = sys.stderr.isatty()
        self._last = time.monotonic()
        self._has_line = False

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        return time.monotonic() - self._last > (0.2 if self._is_live else _SECONDS_A_LINE)

    def line(self, metrics: StreamMetrics) -> str:
        """What to tell."""
        speeds = ((metrics.recent_denoise_fps, "denoise"), (metrics.recent_end_to_end_fps, "end to end"))
        parts = [f"frame {metrics.frames}{self._total}"]
        parts += [f"{name} {speed:.1f} FPS" for speed, name in speeds if speed is not None]
        if metrics.drift is not None:
            parts.append(f"drift: colour {metrics.drift.colour:.3f}, sharpness {100 * metrics.drift.sharpness:+.0f} %")
        return "  ".join(parts)

    def print(self, metrics: StreamMetrics) -> None:
        """Tell it."""
        self._last = time.monotonic()
        self._has_line = True
        text = self.line(metrics)
        print(f"\r{text}\x1b[K" if self._is_live else text, end="" if self._is_live else "\n", file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self._is_live and self._has_line:
            print(file=sys.stderr)


def _print_result(metrics: StreamMetrics, out: str, warnings: Sequence[str], as_json: bool) -> None:
    content = {"out": str(Path(out)) if out else None, **measured(metrics), "warnings": list(warnings)}
    if as_json:
        print_json(content)
        return
    speeds = {name: content[name] for name in ("denoise_fps", "end_to_end_fps", "first_frame_s")}
    print_rows({"video": content["out"], "frames": metrics.frames, "speed": speeds})


def measured(metrics: StreamMetrics) -> dict[str, Any]:
    """The numbers of a stream that has ended, rounded, as JSON has them."""
    from dreamkit.training.generate import peak_rss_mb

    names = ("frames", "seconds", "denoise_fps", "end_to_end_fps", "first_frame_s", "chunk_ms_first", "chunk_ms_last")
    numbers = {name: getattr(metrics, name) for name in names}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in numbers.items()}
    drift = metrics.drift
    told = None if drift is None else {name: round(value, 4) for name, value in vars(drift).items()}
    return {**rounded, "drift": told, "peak_rss_mb": round(peak_rss_mb(), 1)}
