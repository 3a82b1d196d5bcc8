"""A live session: one stream in a thread of its own, whoever watches it, and the commands that steer it.

It plays only while somebody watches, is not paused and takes frames: with nobody there it waits and costs nothing.
The fastest viewer sets the pace, up to the model's frame rate; the others miss frames.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamkit_apps.live.audience import Audience
from dreamkit_apps.live.joystick import JoystickPath
from dreamkit_apps.live.limits import LiveLimits
from dreamkit_apps.live.moments import Moment, Moments
from dreamkit_apps.live.pace import Pace
from dreamkit_apps.live.packet import Packet, encode_jpeg
from dreamkit_apps.live.recording import Films
from dreamkit_apps.live.source import FrameSource, LiveModel, ModelInfo, statistics
from dreamkit_apps.live.steering import LiveControls, PromptClock
from dreamkit_apps.live.viewer import Viewer

from dreamkit.checks import require_integer
from dreamkit.errors import ConfigError, DreamkitError
from dreamkit.prompts import clean_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from dreamkit.video.stream_engine import StreamFrame

MAX_SEED = 2**63 - 1
_MOMENT_SECONDS = 4
_STATISTICS_SECONDS = 1.0
_log = logging.getLogger(__name__)


class LiveSession:
    """Made with its thread running; every method may be called from any thread, and most of them wait for no frame.

    Args:
        model: makes the stream; loaded in the session's thread.
        prompt: what to show.
        seed: of the noise, 0 to 2^63 - 1.
        folder: for recordings; made when there is one.
        limits: see the class.
        clock: seconds, monotonic.

    Attributes:
        key: the secret that lets its owner steer.
        watch_key: the secret that lets others watch.

    Raises:
        PromptError: a prompt that is no sentence.
        ConfigError: a seed out of range.
    """

    def __init__(
        self,
        model: LiveModel,
        prompt: str,
        seed: int,
        folder: Path,
        limits: LiveLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_integer("The seed", seed, 0, MAX_SEED)
        self.key, self.watch_key = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
        self.limits = limits or LiveLimits()
        self._model, self._clock = model, clock
        self._prompt, self._seed = clean_prompt(prompt), seed
        self._changed = threading.Condition(threading.RLock())
        self._audience = Audience(self.limits.viewers, self._changed, clock)
        self._films = Films(folder, self.limits.recordings, self.limits.record_mb)
        self._moments = Moments(self.limits.moments, self.limits.reach)
        self._prompts = PromptClock()
        self._controls = LiveControls()
        self._phase = "loading"
        self._problem: dict[str, str | None] | None = None
        self._info: ModelInfo | None = None
        self._source: FrameSource | None = None
        self._is_paused = self._is_resting = self._is_going = self._is_closing = self._must_restart = False
        self._pace = Pace()
        self._told, self._steered_at = 0.0, clock()
        self._thread = threading.Thread(target=self._run, name=f"dreamkit-live-{self.watch_key[:4]}", daemon=True)
        self._thread.start()

    # What it is --------------------------------------------------------------------------------------------------

    @property
    def is_going(self) -> bool:
        """Whether frames are made: somebody watches, and it neither is paused nor rests."""
        return self._is_going

    @property
    def viewers(self) -> int:
        """How many there are, whether they look or not."""
        return len(self._audience)

    @property
    def unwatched_s(self) -> float:
        """Seconds since somebody was there; 0 while somebody is."""
        return self._audience.away_for

    def state(self) -> dict[str, Any]:
        """What everybody is told when it changes."""
        with self._changed:
            return {
                "type": "state",
                "phase": self._phase,
                "problem": self._problem,
                "prompt": self._prompt,
                "seed": str(self._seed),  # JavaScript's numbers end at 2^53
                "speed": self._pace.speed,
                "paused": self._is_paused,
                "resting": self._is_resting,
                "recording": self._films.is_recording,
                "films": self._films.listing(),
                "viewers": len(self._audience),
            }

    def film(self, name: str) -> Path | None:
        """The file of a finished recording; `None` where none has that name."""
        return self._films.find(name)

    # Who watches -------------------------------------------------------------------------------------------------

    def join(self, viewer: Viewer) -> None:
        """Let somebody watch.

        Raises:
            ConfigError: too many do, or it is over.
        """
        with self._changed:
            if self._is_closing:
                raise ConfigError("This stream has ended.", "Start another one.")
            self._audience.join(viewer, self._hello(viewer.can_control))
            self._update()
        self._tell_state()

    def leave(self, viewer: Viewer) -> None:
        """Let somebody go."""
        with self._changed:
            self._audience.leave(viewer)
            self._update()
        self._tell_state()

    def look(self, viewer: Viewer, wants_frames: bool) -> None:
        """Somebody looks, or looks away."""
        with self._changed:
            self._audience.look(viewer, wants_frames)
            self._update()

    # Commands ----------------------------------------------------------------------------------------------------

    def say(self, prompt: str) -> tuple[int, list[str]]:
        """Change the prompt while it plays; where there is no stream, because it failed, begin one.

        Returns:
            The number that frames carry from the first one on that obeys it, 0 where none tells; and what the model
            does not understand.

        Raises:
            PromptError: no sentence, or one of unknown words only.
        """
        prompt = clean_prompt(prompt)
        with self._changed:
            self._touch()
            source = self._source if self._phase == "running" else None
            if source is None:
                self._prompt = prompt
            elif prompt == self._prompt:
                return 0, []
            else:
                number = self._prompts.give(prompt)
        if source is None:
            self._restart()
            return 0, []
        try:
            warnings = source.say(prompt)
        except BaseException:
            with self._changed:
                self._prompts.take_back(number)
            raise
        with self._changed:
            self._prompt = prompt
        self._tell_state()
        return number, warnings

    def restart(self, seed: int) -> None:
        """Begin anew with another seed, or the same; waits for the chunk that is being made.

        Raises:
            ConfigError: a seed out of range.
        """
        require_integer("The seed", seed, 0, MAX_SEED)
        with self._changed:
            self._touch()
            self._seed = seed
            self._is_paused = False
        self._restart()

    def play(self, is_on: bool) -> None:
        """Go on, or stand still."""
        with self._changed:
            self._touch()
            self._is_paused = not is_on
            self._update()
        self._tell_state()

    def set_speed(self, speed: float) -> None:
        """Play faster or slower than the model's frame rate, as far as frames come.

        Raises:
            ConfigError: not 0.1 to 4.
        """
        with self._changed:
            self._touch()
            self._pace.set_speed(speed)
            self._changed.notify_all()
        self._tell_state()

    def move(self, camera: JoystickPath) -> None:
        """Hold the joystick like this, from the next chunk on.

        Raises:
            DreamkitError: the model knows no cameras, or there is no stream.
        """
        with self._changed:
            self._touch()
            if camera != self._controls.camera:
                self._steer(self._controls.moved(camera, self._audience.shown))

    def draw(self, tracks: Tensor | None) -> None:
        """Let points follow tracks from the next chunk on, in place of all others.

        Args:
            tracks: [F, N, 2] places in [0, 1]; `None` lets go of all.

        Raises:
            DreamkitError: shapes or numbers that don't fit, a model that knows no tracks, or no stream.
        """
        with self._changed:
            self._touch()
            self._steer(replace(self._controls, tracks=tracks, given_at=self._audience.shown))

    def keep_moment(self) -> int:
        """Keep the frame that is shown, to go back to; returns its number.

        Raises:
            ConfigError: nothing has been shown.
        """
        with self._changed:
            self._touch()
            source, packet = self._running(), self._audience.last
            if packet is None:
                raise ConfigError("There is no frame yet.", "Wait for the stream to begin.")
            source.snapshot()
        self._add_moment(source, packet, is_asked=True)
        return packet.number

    def rewind(self, frame: int) -> None:
        """Go back to a frame that was shown, and play on from it.

        Raises:
            ConfigError: a frame that was not shown, or one that takes too long to come back to.
        """
        require_integer("The frame to go back to", frame, 0)
        with self._changed:
            self._touch()
            source = self._running()
            if not self._moments.reaches(frame, source.snapshots):
                raise ConfigError(f"Frame {frame} is too far back.", "Keep a moment to be able to come back to it.")
            source.rewind(frame)
            self._moments.forget_after(frame)
            self._prompts.forget()
            self._is_paused = False
            self._pace.reset()
            self._update()
        self._tell_moments(None)
        self._tell_state()

    def record(self, is_on: bool) -> None:
        """Begin a film of what is shown, or end it.

        Raises:
            DreamkitError: nothing is shown, or the file can't be written.
        """
        with self._changed:
            self._touch()
            if is_on:
                self._running()
            fps = None if self._info is None else self._info.fps
        if not is_on:
            self._films.end()
        elif fps is not None:
            self._films.begin(fps)
        self._tell_state()

    def rest_if_unattended(self) -> None:
        """Stand still where nobody has given a command for long."""
        with self._changed:
            if not self._is_going or self._clock() - self._steered_at <= self.limits.unattended_s:
                return
            self._is_resting = True
            self._update()
        self._tell_state()

    def ask_to_close(self, reason: str) -> None:
        """Begin to end it: viewers are told why, the thread ends with its chunk."""
        with self._changed:
            if self._is_closing:
                return
            self._is_closing, self._phase = True, "closed"
            self._changed.notify_all()
        self._audience.dismiss(reason)

    def close(self, reason: str = "closed") -> None:
        """End it and wait for its thread. Recordings are deleted."""
        self.ask_to_close(reason)
        source = self._source
        if source is not None:
            source.close()
        self._thread.join()

    # In its own thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._is_closing:
            source: FrameSource | None = None
            try:
                source = self._open()
                self._play(source)
            except DreamkitError as error:
                self._fail(error.message, error.hint)
            except Exception as error:  # this session has failed; the others and the server go on
                _log.exception("a live session failed")
                self._fail(f"{type(error).__name__}: {error}", "This is a bug in DreamKit: please report it.")
            finally:
                self._drop(source)
            with self._changed:
                self._changed.wait_for(lambda: self._must_restart or self._is_closing)
        self._films.clear()

    def _open(self) -> FrameSource:
        with self._changed:
            self._must_restart = False
            self._phase, self._problem = "loading", None
            prompt, seed = self._prompt, self._seed
            self._audience.last = None
            self._moments.clear()
            self._prompts.forget()
            self._controls = LiveControls()
        self._tell_state()
        self._tell_moments(None)
        info = self._model.info()
        source = self._model.open(prompt, seed)
        with self._changed:
            self._info, self._source, self._phase = info, source, "running"
            self._is_going = True  # as every stream begins
            self._pace.reset()
            self._update()
        self._audience.tell({"type": "model", **asdict(info)}, "model")
        self._tell_state()
        for warning in source.warnings:
            self._audience.tell({"type": "warning", "message": warning})
        return source

    def _play(self, source: FrameSource) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._must_leave() or (self._is_going and self._audience.is_ready))
                if self._must_leave():
                    return
            try:
                frame = next(source)
            except StopIteration:
                with self._changed:
                    if self._must_leave():
                        return
                raise DreamkitError("The stream has ended by itself.", "Start it again.") from None
            if not self._wait_for_its_time():
                return
            self._show(source, frame)

    def _wait_for_its_time(self) -> bool:
        """Wait until the next frame is due; whether the stream still goes on."""
        assert self._info is not None
        with self._changed:
            self._changed.wait_for(self._must_leave, self._pace.wait(self._clock(), self._info.fps))
            return not self._must_leave()

    def _show(self, source: FrameSource, frame: StreamFrame) -> None:
        assert self._info is not None
        jpeg = encode_jpeg(frame.pixels)
        with self._changed:
            packet = Packet(frame.number, self._prompts.see(frame.prompt), 1000 * time.time(), jpeg)
        self._audience.show(packet)
        if (problem := self._films.add(frame.pixels)) is not None:
            self._audience.tell({"type": "warning", "message": problem})
            self._tell_state()
        if frame.number % (_MOMENT_SECONDS * self._info.fps) == 0:
            self._add_moment(source, packet, is_asked=False)
        if self._clock() - self._told >= _STATISTICS_SECONDS:
            self._told = self._clock()
            self._audience.tell_statistics(statistics(source))

    def _add_moment(self, source: FrameSource, packet: Packet, is_asked: bool) -> None:
        moment = Moment(packet.number, packet.thumbnail(), is_asked)
        with self._changed:
            if source is not self._source:
                return
            self._moments.add(moment, source.snapshots)
        self._tell_moments(moment)

    def _fail(self, message: str, hint: str | None) -> None:
        with self._changed:
            if self._must_leave():
                return
            self._phase, self._problem = "failed", {"message": message, "hint": hint}
        self._tell_state()

    def _drop(self, source: FrameSource | None) -> None:
        with self._changed:
            self._source, self._is_going = None, False
        with contextlib.suppress(DreamkitError):  # what could not be written is not listed
            self._films.end()
        if source is not None:
            source.close()

    # Small things ------------------------------------------------------------------------------------------------

    def _running(self) -> FrameSource:
        if self._source is None or self._phase != "running":
            raise ConfigError("There is no stream right now.", "Wait for it to begin, or write another prompt.")
        return self._source

    def _steer(self, controls: LiveControls) -> None:
        from dreamkit.video.stream_controls import Steering

        self._running().steer(Steering(controls.camera, controls.tracks))
        self._controls = controls

    def _restart(self) -> None:
        """Let the thread drop its stream and open another."""
        with self._changed:
            source, self._source = self._source, None
            self._must_restart = True
            self._changed.notify_all()
        if source is not None:
            source.close()  # its thread may wait for a frame that a pause holds back

    def _hello(self, can_control: bool) -> dict[str, Any]:
        """What a new viewer is told."""
        return {
            "type": "hello",
            "session": self.key if can_control else None,
            "watch": self.watch_key,
            "can_control": can_control,
            "model": None if self._info is None else asdict(self._info),
            "state": self.state(),
            "moments": self._moments.listing(),
        }

    def _touch(self) -> None:
        """Somebody is there and steers."""
        self._steered_at = self._clock()
        if self._is_resting:
            self._is_resting = False
            self._update()

    def _update(self) -> None:
        """Let the stream play or stand still, as everything together demands."""
        goes = self._audience.is_watching and not (self._is_paused or self._is_resting or self._is_closing)
        if self._source is not None and goes != self._is_going:
            self._is_going = goes
            self._pace.reset()
            with contextlib.suppress(DreamkitError):  # it has just ended
                (self._source.resume if goes else self._source.pause)()
        self._changed.notify_all()

    def _must_leave(self) -> bool:
        return self._is_closing or self._must_restart

    def _tell_state(self) -> None:
        self._audience.tell(self.state(), "state")

    def _tell_moments(self, new: Moment | None) -> None:
        with self._changed:
            kept = self._moments.frames
        shown = None if new is None else {"frame": new.frame, "image": new.image}
        self._audience.tell({"type": "moments", "kept": kept, "new": shown})
