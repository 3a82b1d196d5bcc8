"""A cheap stream with the handle of `StreamSession`, a model that opens it, and a server in a thread."""

import contextlib
import threading
import time
from types import SimpleNamespace

import torch

from dreamkit.errors import ConfigError, PromptError, TeacherError
from dreamkit.video.stream_engine import StreamFrame
from dreamkit.video.stream_metrics import Drift

SIZE = 64


def picture(number, prompt, seed):
    """A disc that goes round on a ground whose colour depends on the prompt and the seed."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    angle = torch.tensor(number / 12 * 1.5)
    disc = ((x - 32 - 18 * angle.cos()) ** 2 + (y - 32 - 18 * angle.sin()) ** 2) < 80
    ground = torch.stack([x * 2, y * 2, torch.full_like(x, (sum(prompt.encode()) + seed) % 200)], dim=-1)
    return torch.where(disc[..., None], torch.tensor([240, 90, 60]), ground).to(torch.uint8)


class FakeSource:
    """Frames at once, each under the prompt and the controls that were given before it was asked for."""

    def __init__(self, prompt, seed, has_controls=True, fails_at=None, picture=picture):
        self.prompt, self.seed, self.picture = prompt, seed, picture
        self.has_controls, self.fails_at = has_controls, fails_at
        self.warnings = ["It does not know 'zebra'."] if "zebra" in prompt else []
        self.number = 0
        self.made = 0
        self.steered = []
        self.snapshots = []
        self.calls = []
        self.is_closed = self.is_paused = False
        self.changed = threading.Condition()

    @property
    def metrics(self):
        drift = Drift(0.01, 0.0, 0.0)
        return SimpleNamespace(
            frames=self.made, recent_denoise_fps=31.0, recent_end_to_end_fps=24.0, first_frame_s=0.5, drift=drift
        )

    def __next__(self):
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or not self.is_paused)
            if self.is_closed:
                raise StopIteration
            if self.fails_at == self.number:
                raise RuntimeError("it broke")
            frame = StreamFrame(self.number, self.picture(self.number, self.prompt, self.seed), self.prompt)
            self.number += 1
            self.made += 1
        return frame

    def say(self, prompt):
        if "nonsense" in prompt:
            raise PromptError(f"This teacher knows no word of {prompt!r}.", "Words it knows: cube.")
        self.prompt = prompt
        return ["It does not know 'zebra'."] if "zebra" in prompt else []

    def steer(self, controls):
        if not self.has_controls:
            raise TeacherError("It knows no cameras and no tracks.", "Leave the controls out.")
        self.steered.append(controls)

    def _set(self, name, **values):
        with self.changed:
            self.calls.append(name)
            vars(self).update(values)
            self.changed.notify_all()

    def pause(self):
        self._set("pause", is_paused=True)

    def resume(self):
        self._set("resume", is_paused=False)

    def snapshot(self):
        self.snapshots.append(self.number)

    def rewind(self, frame):
        if frame >= self.number:
            raise ConfigError(f"The frame to go back to is {frame}.", "Use one that was read.")
        self._set("rewind", number=frame)

    def close(self):
        self._set("close", is_closed=True)


class FakeModel:
    """Opens `FakeSource`s and keeps them."""

    def __init__(self, info=None, **options):
        from dreamkit_apps.live.source import ModelInfo

        controls = options.get("has_controls", True)
        self.known = info or ModelInfo("fake", SIZE, SIZE, 30, controls, ("cube", "ball"))
        self.options = options
        self.opened = []
        self.problem = None

    def info(self):
        if self.problem is not None:
            raise self.problem
        return self.known

    def open(self, prompt, seed):
        if "nonsense" in prompt:
            raise PromptError(f"This teacher knows no word of {prompt!r}.", "Words it knows: cube.")
        source = FakeSource(prompt, seed, **self.options)
        self.opened.append(source)
        return source


def until(condition, seconds=20.0):
    """Wait for something to become true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def live_threads():
    names = ("dreamkit-live", "dreamkit-stream")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


@contextlib.contextmanager
def running(app, port=0):
    """Serve an app from a thread; gives its address."""
    from dreamkit_apps.server import StudioServer, listen

    listener = listen("127.0.0.1", port)
    server = StudioServer(app)
    thread = threading.Thread(target=server.run, args=([listener],), name="test-server")
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()
