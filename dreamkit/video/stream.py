"""A video that never ends and answers while it plays.

```python
with StreamSession(teacher, "a red cube rolling", seed=1) as session:
    for frame in session:
        show(frame.pixels)              # [H, W, 3] uint8
        if frame.number == 60:
            session.say("a blue ball bouncing")
```
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from dreamkit.checks import require, require_integer
from dreamkit.errors import ConfigError, TeacherError
from dreamkit.prompts import check_prompt, clean_prompt
from dreamkit.video.pipeline import VideoTeacher
from dreamkit.video.source_video import encode_source
from dreamkit.video.stream_config import StreamConfig
from dreamkit.video.stream_controls import Steering
from dreamkit.video.stream_engine import Event, StreamEngine, StreamFrame
from dreamkit.video.stream_metrics import StreamMetrics
from dreamkit.video.stream_queue import Closed

MAX_SEED = 2**63 - 1


class StreamSession:
    """One stream: an iterator of `StreamFrame`, steered from any thread.

    Work begins with the first frame that is asked for and runs ahead of the reader by as much as the queues hold. The
    iteration ends after `frames` frames or when the session is closed; an error in a thread is raised where frames are
    read. The session closes itself at its end, after an error and when it is collected; `with` closes it at once.

    The same seed, prompts and controls give the same frames on a CPU, in one thread or in several.

    Args:
        teacher: a causal student with its parts, as `load_video_teacher` gives it.
        prompt: what to show, one sentence.
        controls: the camera and the tracks from the first frame on.
        seed: of the noise, 0 to 2^63 - 1; chunk n's noise is a function of it and n.
        config: window, steps, queues.
        frames: how many, at least 1; `None` is no end, or where a video is filmed again that video's.
        source: [F, 3, H, W] in [0, 1], a video to film again, for a model that does that (`teacher.pairs`); the camera
            then begins where the source's was. The stream ends with it.

    Attributes:
        warnings: what the model does not understand of the first prompt, a sentence each.

    Raises:
        ConfigError: a size that the model can't make, a number out of range, or a source where none is wanted.
        PromptError: an empty prompt, one that is no plain sentence, or one of unknown words only.
        TeacherError: controls for a model that knows none.
    """

    def __init__(
        self,
        teacher: VideoTeacher,
        prompt: str,
        controls: Steering | None = None,
        seed: int = 0,
        config: StreamConfig | None = None,
        frames: int | None = None,
        source: Tensor | None = None,  # [F, 3, H, W]
    ) -> None:
        require_integer("The seed", seed, 0, MAX_SEED)
        require_integer("The number of frames", frames, 1)
        self.teacher = teacher
        self.config = config or StreamConfig()
        teacher.check_source(source)
        latents = None
        if source is not None:
            frames = min(len(source), frames or len(source))
            latents = encode_source(teacher.autoencoder, source[:frames], self.config.size)
        self.total = frames
        prompt, self.warnings = self._read(prompt)
        steering = self._known(controls or Steering())
        text = teacher.encode_prompt([prompt])
        self._engine = StreamEngine(teacher, self.config, seed, prompt, text, steering, frames, latents)
        self._close = weakref.finalize(self, self._engine.close)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamFrame:
        if self.total is not None and self._engine.shown >= self.total - 1:
            self.close()
        if self._engine.is_closed:
            raise StopIteration
        try:
            return self._engine.read()
        except Closed:
            self.close()
            raise StopIteration from None
        except BaseException:  # Ctrl-C as well: no thread may outlive it
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def metrics(self) -> StreamMetrics:
        """Speeds and drift so far."""
        return self._engine.meter.read()

    @property
    def is_paused(self) -> bool:
        """Whether it stands still."""
        return self._engine.is_paused

    @property
    def is_closed(self) -> bool:
        """Whether it is over."""
        return self._engine.is_closed

    @property
    def snapshots(self) -> list[int]:
        """Frames before which a snapshot was taken; going back to them computes nothing twice."""
        return self._engine.shelf.frames

    @property
    def tensor_bytes(self) -> int:
        """Memory of the cache; it does not grow with the stream."""
        return self._engine.denoiser.cache.bytes

    @property
    def overlaps(self) -> bool:
        """Whether denoising and decoding have threads of their own."""
        return self._engine.overlaps

    def say(self, prompt: str, at: int | None = None) -> list[str]:
        """Change the prompt, as the configuration's `switch` says.

        Args:
            prompt: the new one.
            at: from the first chunk on that begins at this frame or later; by default, or where that has been made
                already, from the next chunk that is made.

        Returns:
            What the model does not understand of it, a sentence each.

        Raises:
            PromptError: see the class.
            ConfigError: a frame that the stream does not reach, or a session that is closed.
        """
        self._check_open()
        prompt, warnings = self._read(prompt)
        text = self.teacher.encode_prompt([prompt])
        self._engine.order(Event(self._frame("A switch of prompts", at), prompt, text))
        return warnings

    def steer(self, controls: Steering, at: int | None = None) -> None:
        """Take other controls; what they don't name is no longer steered.

        Args:
            controls: a path of the camera begins where the camera is, tracks at the chunk's first frame.
            at: see `say`.

        Raises:
            TeacherError: controls for a model that knows none.
            ConfigError: see `say`.
        """
        self._check_open()
        steering = self._known(controls)
        if steering.tracks is not None:  # a caller may go on changing its own
            steering = replace(steering, tracks=steering.tracks.detach().to("cpu", copy=True))
        self._engine.order(Event(self._frame("A change of controls", at), steering=steering))

    def pause(self) -> None:
        """Hand over no frame and begin no chunk until `resume` or `close`; whoever reads waits."""
        self._check_open()
        self._engine.pause(True)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._check_open()
        self._engine.pause(False)

    def snapshot(self) -> None:
        """Keep a snapshot of the next chunk's beginning for `rewind`; it takes as much memory as the cache."""
        self._check_open()
        self._engine.want_snapshot()

    def rewind(self, frame: int) -> None:
        """Let a frame that was read be the next one again: it, its chunk and what was on the schedule play as before.

        The stream goes on from the last snapshot before that frame, or from its beginning, and computes what lies
        between without showing it. Prompts and controls that were given for the next chunk after that frame are
        forgotten; those with a frame of their own come again.

        Args:
            frame: its number.

        Raises:
            ConfigError: a frame that has not been read, or a session that is closed.
        """
        self._check_open()
        low, high = self._engine.earliest, self._engine.shown
        whole = isinstance(frame, int) and not isinstance(frame, bool)
        wanted = f"{low} to {high}, the frames that were read" if high >= low else "none: no frame was read"
        require("The frame to go back to", whole and low <= frame <= high, frame, wanted)
        self._engine.rewind(frame)

    def close(self) -> None:
        """End the stream and wait for its threads. A chunk that is being made is finished first."""
        self._close()

    def _check_open(self) -> None:
        if self._engine.is_closed:
            raise ConfigError("The stream is over.", "Open another session.")

    def _frame(self, what: str, at: int | None) -> int | None:
        require_integer(f"{what} is at a frame that", at, 0)
        if at is not None and self.total is not None and at >= self.total:
            raise ConfigError(
                f"{what} at frame {at} comes too late: the stream has {self.total} frames.",
                f"Use a frame from 0 to {self.total - 1}, or a longer stream.",
            )
        return at

    def _read(self, prompt: str) -> tuple[str, list[str]]:
        """A prompt in the one form that prompts have, and what the model does not understand of it."""
        prompt = clean_prompt(prompt)
        return prompt, check_prompt(self.teacher.text, prompt, "--model FOLDER")

    def _known(self, steering: Steering) -> Steering:
        if not steering.is_empty and self.teacher.controls is None:
            raise TeacherError(f"{self.teacher.name} knows no cameras and no tracks.", "Leave the controls out.")
        if steering.tracks is not None and self.teacher.pairs:
            raise TeacherError(f"{self.teacher.name} films a video again and knows no tracks.", "Steer the camera.")
        if steering.camera is not None:  # a path that can't be followed is found out here, not in a thread
            steering.camera.poses(torch.zeros(1, dtype=torch.float64))
        return steering
