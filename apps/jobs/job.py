"""A job as everyone sees it: what was asked, how far it is, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

State = Literal["queued", "running", "cancelling", "done", "cancelled", "failed", "quarantined"]
"""queued: waits for a worker. running, cancelling: a worker has it. done: everything is there. cancelled: stopped by
its user, what there was is kept. failed: its user's mistake or the machine's condition, explained. quarantined: its
process crashed again and again; only a retry starts it once more."""

STATES: tuple[State, ...] = get_args(State)
ACTIVE: tuple[State, ...] = ("queued", "running", "cancelling")
HELD: tuple[State, ...] = ("running", "cancelling")
"""States in which a worker has the job."""
ENDED: tuple[State, ...] = ("done", "cancelled", "failed", "quarantined")
RETRIABLE: tuple[State, ...] = ("cancelled", "failed", "quarantined")


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Args:
        stage: what is done now, in words; "" before anything is.
        step: steps done in this stage, >= 0.
        total: steps of this stage, `None` when unknown.
        eta: seconds that the stage still takes, `None` when unknown.
        loss: of the last step, `None` when there is none.
    """

    stage: str = ""
    step: int = 0
    total: int | None = None
    eta: float | None = None
    loss: float | None = None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Progress:
        """From the plain form of `asdict`; what a later version added is left out."""
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})


@dataclass(frozen=True)
class Job:
    """One job of the queue.

    Args:
        id: 32 random hexadecimal digits; nobody guesses another's.
        kind: "generate", "edit" or "compare".
        user: who asked for it.
        priority: the higher, the sooner.
        state: see `State`.
        attempts: starts that came to nothing: crashes of its process and losses of its worker.
        crashes: how often its own process crashed since it was last queued by its user.
        created: seconds since 1970 (UTC), like all times here.
        started: when a worker last took it.
        ended: when it ended.
        run: id of its run (see `gallery.run_id`), `None` before there is one.
        prompt: what was asked for.
        settings: everything that was asked for, plain.
        worker: who has it.
        error: why it failed, or why it was put back.
        hint: what to do about it.
        progress: how far it is.
        result: what its process said at the end: scores, seconds, warnings.
        child: identity of its process, for `child.fence`.
    """

    id: str
    kind: str
    user: str
    priority: int
    state: State
    attempts: int
    crashes: int
    created: float
    started: float | None
    ended: float | None
    run: str | None
    prompt: str
    settings: dict[str, Any]
    worker: str | None = None
    error: str | None = None
    hint: str | None = None
    progress: Progress = field(default_factory=Progress)
    result: dict[str, Any] = field(default_factory=dict)
    child: dict[str, Any] | None = None

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    def public(self) -> dict[str, Any]:
        """What users may know, plain: everything but worker and process."""
        return {name: value for name, value in asdict(self).items() if name not in ("worker", "child")}
