"""Pictures of a run while it is optimised, for whoever watches its folder.

`preview/` in the run folder holds, each file whole or not there:

```
view.png      what a training camera sees now; to its right, as large, what the teacher would rather see there
scene.splat   the scene now, if it is made of Gaussians: the most important ones
state.json    stage, step, time left, teacher calls and the losses so far; written last, it says what else is there
```

Nothing here draws a random number or changes the scene: a run with previews ends in the same bytes as one without.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dreamkit.errors import SceneError
from dreamkit.files import read_jsonl, write_error, write_json
from dreamkit.scenes.gaussians import GaussianScene
from dreamkit.scenes.trainable import TrainableScene
from dreamkit.training.callbacks import Callback

FOLDER = "preview"
MAX_LOSSES = 500
MAX_SPLATS = 40_000
_SHARE = 0.03
"""Of a run's time that previews may take; so they come less often where they cost more."""
_SHOWN_SIZE = 512  # pixels: larger views are made smaller


class Watched(Protocol):
    """What a preview looks at: a trainer."""

    @property
    def scene(self) -> TrainableScene:
        """What it makes."""
        ...

    @property
    def calls(self) -> int:
        """Samples that went through the teacher so far."""
        ...


class Previews(Callback):
    """Writes the folder `preview/` of a run now and then.

    Args:
        run: the run's folder.
        trainer: what is looked at.
        every: steps between two previews, >= 1; fewer are written where they would take more than 3 % of the time.
        stage: the stage whose steps are shown.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run: Path,
        trainer: Watched,
        every: int,
        stage: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = run / FOLDER
        self.every = every
        self._trainer, self._shown_stage, self._clock = trainer, stage, clock
        self._stage = ""
        self._step = self._total = self._first = 0
        self._images: dict[str, Tensor] = {}
        self._is_due = False
        self._version = 0
        self._has_target = False
        self._splats: int | None = None
        self._spent = 0.0
        self._began = clock()
        self._losses = Losses(run / "metrics.jsonl")
        self._earlier = _earlier(self.folder / "state.json")
        self._eta: float | None = None

    def wants(self, picture: str, step: int, total: int) -> bool:
        """Whether a step's target is to be decoded for it: see `Callback.wants`."""
        elapsed = self._clock() - self._began
        is_time = step == total or (step % self.every == 0 and self._spent <= _SHARE * elapsed)
        self._is_due = is_time or self._version == 0
        return picture == "target" and self._is_due

    def on_stage(self, name: str, total_steps: int | None) -> None:
        """Note a stage, and tell it."""
        self._stage = name
        if name == self._shown_stage:
            self._total, self._began = total_steps or 0, self._clock()
        elif self._version:
            self._eta = None
            self._write_state()

    def on_image(self, name: str, image: Tensor) -> None:
        """Keep a picture for the next preview."""
        self._images[name] = image.detach()

    def on_step(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Note the loss; write a preview if it is time."""
        if self._stage != self._shown_stage:
            return
        self._first = self._first or step
        self._step, self._total = step, total
        self._losses.add(step, metrics.get("loss"))
        if not self._is_due:
            return
        started = self._clock()
        made = step - self._first + 1
        self._eta = round((total - step) * (started - self._began) / made, 1)
        self._version += 1
        self._write_pictures()
        self._write_state()
        self._spent += self._clock() - started

    def on_end(self, result: Any) -> None:
        """Say that all is done."""
        self.on_stage("done", None)

    def _write_pictures(self) -> None:
        from dreamkit.scenes.pictures import save_image
        from dreamkit.scenes.splat_files import write_splat

        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error) from error
        if "view" in self._images:
            target = self._images.pop("target", None)  # of this very view
            self._has_target = target is not None
            save_image(side_by_side(self._images["view"], target), self.folder / "view.png")
        scene = self._trainer.scene
        self._splats = None
        if isinstance(scene, GaussianScene):
            try:
                write_splat(scene, self.folder / "scene.splat", MAX_SPLATS)
                self._splats = min(len(scene), MAX_SPLATS)
            except SceneError:  # not finite: the run itself will say so
                self._splats = None

    def _write_state(self) -> None:
        content = {
            "version": self._version,
            "stage": self._stage,
            "step": self._step,
            "total": self._total,
            "eta": self._eta,
            "seconds": round(self._earlier["seconds"] + self._clock() - self._began, 1),
            "teacher_calls": round(self._earlier["teacher_calls"]) + self._trainer.calls,
            "view": "view" in self._images,
            "target": self._has_target,
            "splats": self._splats,
            "losses": self._losses.points,
        }
        write_json(self.folder / "state.json", content)


class Losses:
    """The losses of a run, at most `MAX_LOSSES` of them: every second goes when there are more.

    Args:
        metrics: the file that holds those of an interrupted run's steps.
    """

    def __init__(self, metrics: Path) -> None:
        self.points: list[tuple[int, float]] = []
        self._every = 1
        for row in read_jsonl(metrics):
            if isinstance(row.get("step"), int):
                self.add(row["step"], row.get("loss"))

    def add(self, step: int, loss: Any) -> None:
        """Note a step's loss; one that is no number is left out."""
        if not isinstance(loss, int | float) or step % self._every:
            return
        self.points.append((step, float(f"{loss:.5g}")))
        if len(self.points) > MAX_LOSSES:
            self._every *= 2
            self.points = [point for point in self.points if point[0] % self._every == 0]


def side_by_side(
    view: Tensor,  # [3, H, W] in [0, 1]
    target: Tensor | None,  # [3, h, w]
) -> Tensor:
    """The view, and to its right the target at the same size, [3, H, 2 W]; the view alone where there is no target."""
    pictures = [view] if target is None else [view, target]
    height, width = view.shape[-2:]
    shrink = min(1.0, _SHOWN_SIZE / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    shown = [
        picture[None].float().cpu()
        if picture.shape[-2:] == size
        else functional.interpolate(picture[None].float().cpu(), size, mode="bilinear", antialias=True)
        for picture in pictures
    ]
    return torch.nan_to_num(torch.cat(shown, dim=-1)[0]).clamp(0.0, 1.0)


def _earlier(state: Path) -> dict[str, float]:
    """What an interrupted process of the same run has spent."""
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    found = content if isinstance(content, dict) else {}
    return {
        name: float(found[name]) if isinstance(found.get(name), int | float) else 0.0
        for name in ("seconds", "teacher_calls")
    }
