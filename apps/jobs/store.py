"""The queue of jobs: everything that submits, lists, cancels, runs or ends a job goes through here.

States change only in a transaction, and only from the states they may be changed from: two workers, two servers and a
command line on one file see one order of events.
"""

from __future__ import annotations

import json
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamkit_apps.jobs.database import Database
from dreamkit_apps.jobs.errors import JobStateError, NotFoundError, QueueFullError
from dreamkit_apps.jobs.job import ACTIVE, ENDED, HELD, RETRIABLE, STATES, Job, Progress, State
from dreamkit_apps.jobs.settings import JobSettings

from dreamkit.errors import ConfigError
from dreamkit.files import remove_path

QUEUE_FILE = ".jobs/queue.sqlite3"
"""Where the queue lies in the folder of the runs."""
MAX_PAGE = 500
_CRASHES = 2
"""Crashes of a job's own process after which it is quarantined."""
_LOSSES = 5
"""Losses of its worker, without a step in between, after which it is: it may be the job that takes the worker along."""
_LONGEST_ERROR = 2000  # characters kept


@dataclass(frozen=True)
class Limits:
    """How many jobs may wait and run.

    Args:
        jobs: of everybody, >= 1.
        per_user: of one user, >= 1.
    """

    jobs: int = 200
    per_user: int = 50


@dataclass(frozen=True)
class Page:
    """A part of a list of jobs.

    Args:
        jobs: the newest first.
        total: how many there are on all pages.
    """

    jobs: list[Job]
    total: int


class JobStore:
    """The queue in a file. Every method may raise `QueueError` (see `database`).

    Args:
        path: the file; made if missing.
        limits: of what may wait and run.
        clock: seconds since 1970.
        busy: seconds to wait for another process's write.
    """

    def __init__(
        self,
        path: Path | str,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        busy: float = 5.0,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.limits = limits or Limits()
        self._clock = clock
        self._database = Database(self.path, busy)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def logs(self, job_id: str) -> Path:
        """The folder of what a job's process says; not made here."""
        return self.path.parent / "logs" / job_id

    def submit(self, settings: JobSettings, user: str = "local", priority: int = 0) -> Job:
        """Queue a job.

        Args:
            settings: checked ones, see `settings.read_settings`.
            user: who asks, 1 to 100 characters.
            priority: the higher, the sooner; -100 to 100.

        Raises:
            QueueFullError: too many jobs wait and run.
            ConfigError: a user or priority that can't be.
        """
        if not 1 <= len(user) <= 100 or not user.isprintable():
            raise ConfigError(f"The user {user[:100]!r} can't be.", "Use 1 to 100 printable characters.")
        if not -100 <= priority <= 100:
            raise ConfigError(f"The priority is {priority}.", "Use a whole number from -100 to 100.")
        prompt, content = settings.prompt, json.dumps(settings.plain())
        job_id, now = secrets.token_hex(16), self._clock()
        with self._database.writing() as cursor:
            self._require_room(cursor, user)
            cursor.execute(
                "INSERT INTO jobs (id, kind, user, priority, state, created, prompt, folded, settings) "
                "VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?)",
                (job_id, settings.kind, user, priority, now, prompt, prompt.casefold(), content),
            )
        return self.get(job_id)

    def _require_room(self, cursor: sqlite3.Cursor, user: str) -> None:
        where = f"SELECT count(*) FROM jobs WHERE state IN ({_marks(ACTIVE)})"
        if cursor.execute(where, ACTIVE).fetchone()[0] >= self.limits.jobs:
            raise QueueFullError(
                f"The queue is full: {self.limits.jobs} jobs wait or run.", "Try again when some are done."
            )
        if cursor.execute(f"{where} AND user = ?", (*ACTIVE, user)).fetchone()[0] >= self.limits.per_user:
            raise QueueFullError(
                f"You have {self.limits.per_user} jobs that wait or run, which is as many as one user may have.",
                "Cancel one, or wait until one is done.",
            )

    def get(self, job_id: str) -> Job:
        """A job.

        Raises:
            NotFoundError: there is none of that id.
        """
        rows = self._database.rows("SELECT * FROM jobs WHERE id = ?", (_storable(job_id),))
        if not rows:
            raise _no_job(job_id)
        return _job(rows[0])

    def resolve(self, beginning: str) -> Job:
        """The job whose id begins so, for people who type.

        Raises:
            NotFoundError: there is none, or there are several.
        """
        if not re.fullmatch("[0-9a-f]{4,32}", beginning):
            raise _no_job(beginning)
        rows = self._database.rows("SELECT * FROM jobs WHERE id GLOB ? LIMIT 2", (f"{beginning}*",))
        if len(rows) > 1:
            raise NotFoundError(f"Several jobs begin with {beginning}.", "Give more of the id.")
        if not rows:
            raise _no_job(beginning)
        return _job(rows[0])

    def find(
        self,
        states: Sequence[State] = (),
        search: str = "",
        user: str | None = None,
        kind: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Jobs, the newest first.

        Args:
            states: of these states only; of all by default.
            search: words that the prompt must all have in it, in any case.
            user: of this user only.
            kind: of this kind only.
            limit: how many at most, 1 to `MAX_PAGE`.
            offset: how many to leave out, >= 0.

        Raises:
            ConfigError: an unknown state, or a number out of range.
        """
        if unknown := [state for state in states if state not in STATES]:
            raise ConfigError(f"The state {unknown[0]!r} is not known.", f"Known: {', '.join(STATES)}.")
        if not 1 <= limit <= MAX_PAGE or not 0 <= offset < 2**63:
            raise ConfigError(
                f"{limit} jobs from number {offset} can't be listed.", f"List 1 to {MAX_PAGE}, from 0 on."
            )
        conditions, values = ["1"], list[str]()
        if states:
            conditions.append(f"state IN ({_marks(states)})")
            values += list(states)
        for name, value in (("user", user), ("kind", kind)):
            if value is not None:
                conditions.append(f"{name} = ?")
                values.append(_storable(value))
        for word in _storable(search).casefold().split():
            conditions.append("instr(folded, ?) > 0")
            values.append(word)
        where = " AND ".join(conditions)
        total = self._database.rows(f"SELECT count(*) FROM jobs WHERE {where}", values)[0][0]
        query = f"SELECT * FROM jobs WHERE {where} ORDER BY number DESC LIMIT ? OFFSET ?"
        return Page([_job(row) for row in self._database.rows(query, [*values, limit, offset])], total)

    def counts(self) -> dict[State, int]:
        """How many jobs there are in each state."""
        rows = self._database.rows("SELECT state, count(*) FROM jobs GROUP BY state")
        found = {row[0]: row[1] for row in rows}
        return {state: found.get(state, 0) for state in STATES}

    def uses_run(self, run: str) -> bool:
        """Whether a job that waits or runs works on a run."""
        query = f"SELECT 1 FROM jobs WHERE run = ? AND state IN ({_marks(ACTIVE)}) LIMIT 1"
        return bool(self._database.rows(query, (run, *ACTIVE)))

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it waits; otherwise its worker stops it and keeps what there is.

        Raises:
            NotFoundError: there is no such job.
            JobStateError: it has ended.
        """
        now = self._clock()
        with self._database.writing() as cursor:
            self._expire(cursor)
            self._require(cursor, job_id, ACTIVE, "has ended", "There is nothing to cancel.")
            cursor.execute("UPDATE jobs SET state='cancelling' WHERE id=? AND state='running'", (job_id,))
            cursor.execute(
                "UPDATE jobs SET state='cancelled', ended=?, error=NULL, hint=NULL WHERE id=? AND state='queued'",
                (now, job_id),
            )
        return self.get(job_id)

    def retry(self, job_id: str, fresh: bool = False) -> Job:
        """Queue an ended job again; it goes on from its checkpoint.

        Args:
            job_id: which.
            fresh: begin a new run instead; the old one stays where it is.

        Raises:
            NotFoundError: there is no such job.
            JobStateError: it has not ended, or is done.
            QueueFullError: too many jobs wait and run.
        """
        with self._database.writing() as cursor:
            row = self._require(cursor, job_id, RETRIABLE, "is not to be retried", "Submit a new job.")
            self._require_room(cursor, row["user"])
            cursor.execute(
                "UPDATE jobs SET state='queued', attempts=0, crashes=0, losses=0, furthest=0, error=NULL, hint=NULL, "
                "ended=NULL, progress='{}', result='{}' WHERE id=?",
                (job_id,),
            )
            if fresh:
                cursor.execute("UPDATE jobs SET run=NULL WHERE id=?", (job_id,))
                remove_path(self.logs(job_id))  # which name the run too
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Forget a job that waits or has ended; its run stays.

        Raises:
            NotFoundError: there is no such job.
            JobStateError: a worker has it.
        """
        with self._database.writing() as cursor:
            self._require(cursor, job_id, ("queued", *ENDED), "is running", "Cancel it first.")
            cursor.execute("DELETE FROM jobs WHERE id=?", (job_id,))
        remove_path(self.logs(job_id))

    def _require(
        self, cursor: sqlite3.Cursor, job_id: str, states: Sequence[State], problem: str, hint: str
    ) -> sqlite3.Row:
        row: sqlite3.Row | None = cursor.execute("SELECT * FROM jobs WHERE id=?", (_storable(job_id),)).fetchone()
        if row is None:
            raise _no_job(job_id)
        if row["state"] not in states:
            raise JobStateError(f"The job {job_id} {problem}: it is {row['state']}.", hint)
        return row

    def greet(self, worker: str) -> None:
        """Say that a worker is there; those not heard of for a day are forgotten."""
        now = self._clock()
        with self._database.writing() as cursor:
            cursor.execute("INSERT OR REPLACE INTO workers VALUES (?, ?)", (worker, now))
            cursor.execute("DELETE FROM workers WHERE seen < ?", (now - 86400,))

    def part(self, worker: str) -> None:
        """Say that a worker goes."""
        with self._database.writing() as cursor:
            cursor.execute("DELETE FROM workers WHERE name=?", (worker,))

    def workers(self, within: float = 20.0) -> int:
        """How many workers were heard of in the last `within` seconds."""
        query = "SELECT count(*) FROM workers WHERE seen >= ?"
        return int(self._database.rows(query, (self._clock() - within,))[0][0])

    def claim(self, worker: str, lease: float) -> Job | None:
        """Take the next job: the highest priority, of those the one that has waited longest.

        A job waits from when it was queued or from when its user was last served, whichever is later: so one user's
        hundred jobs can't keep another's single one waiting.

        Args:
            worker: who takes it, a name of its own.
            lease: seconds until it must be heard of, see `heartbeat`.
        """
        now = self._clock()
        with self._database.writing() as cursor:
            self._expire(cursor)
            row = cursor.execute(
                "SELECT id, user FROM jobs LEFT JOIN served USING (user) WHERE state='queued' "
                "ORDER BY priority DESC, max(created, coalesce(time, 0)), number LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            cursor.execute(
                "UPDATE jobs SET state='running', worker=?, lease=?, started=?, error=NULL, hint=NULL "
                "WHERE id=? AND state='queued'",
                (worker, now + lease, now, row["id"]),
            )
            cursor.execute("INSERT OR REPLACE INTO served VALUES (?, ?)", (row["user"], now))
        return self.get(row["id"])

    def expire(self) -> None:
        """Put back every job whose worker was not heard of for its lease."""
        now = self._clock()
        if self._database.rows(f"SELECT 1 FROM jobs WHERE state IN ({_marks(HELD)}) AND lease < ?", (*HELD, now)):
            with self._database.writing() as cursor:
                self._expire(cursor)

    def _expire(self, cursor: sqlite3.Cursor) -> None:
        now = self._clock()
        lost = "attempts=attempts+1, losses=losses+1, worker=NULL, lease=NULL"
        cursor.execute(
            f"UPDATE jobs SET state='quarantined', ended=?, {lost}, error=?, hint=? "
            "WHERE state='running' AND lease < ? AND losses >= ?",
            (
                now,
                f"Its worker was lost {_LOSSES} times in a row without a step in between.",
                "Is there enough memory for it? Retry it with a smaller preset, or when the machine is free.",
                *(now, _LOSSES - 1),
            ),
        )
        cursor.execute(
            f"UPDATE jobs SET state='queued', {lost}, error='Its worker was lost; it goes on from its checkpoint.', "
            "hint=NULL WHERE state='running' AND lease < ?",
            (now,),
        )
        cursor.execute(
            f"UPDATE jobs SET state='cancelled', ended=?, {lost} WHERE state='cancelling' AND lease < ?", (now, now)
        )

    def heartbeat(
        self,
        job_id: str,
        worker: str,
        lease: float,
        progress: Progress | None = None,
        run: str | None = None,
        child: Mapping[str, Any] | None = None,
    ) -> State | None:
        """Keep a job, and tell how far it is.

        Args:
            job_id: which.
            worker: who has it.
            lease: seconds until the next one must come.
            progress: how far it is; unchanged if left out, as are
            run: the id of its run, and
            child: the identity of its process.

        Returns:
            Its state, running or cancelling; `None` when it is no longer this worker's.
        """
        told = None if progress is None else json.dumps(asdict(progress))
        step = 0 if progress is None else progress.step
        process = None if child is None else json.dumps(child)
        with self._database.writing() as cursor:
            row = cursor.execute(
                "UPDATE jobs SET lease=?, progress=coalesce(?, progress), run=coalesce(?, run), "
                "child=coalesce(?, child), losses=CASE WHEN ? > furthest THEN 0 ELSE losses END, "
                f"furthest=max(furthest, ?) WHERE id=? AND worker=? AND state IN ({_marks(HELD)}) RETURNING state",
                (self._clock() + lease, told, run, process, step, step, job_id, worker, *HELD),
            ).fetchall()
        return row[0]["state"] if row else None

    def finish(
        self,
        job_id: str,
        worker: str,
        state: State,
        error: str | None = None,
        hint: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a job as done, cancelled or failed.

        Returns:
            Whether it was this worker's; otherwise nothing changes.
        """
        if state not in ("done", "cancelled", "failed"):
            raise ValueError(f"a worker ends a job as done, cancelled or failed, not {state}")
        with self._database.writing() as cursor:
            cursor.execute(
                "UPDATE jobs SET state=?, ended=?, error=?, hint=?, result=?, worker=NULL, lease=NULL, child=NULL "
                f"WHERE id=? AND worker=? AND state IN ({_marks(HELD)})",
                (
                    *(state, self._clock(), _short(error), _short(hint), json.dumps(dict(result or {}))),
                    *(job_id, worker, *HELD),
                ),
            )
            return cursor.rowcount == 1

    def release(self, job_id: str, worker: str) -> bool:
        """Put a job back that the worker stops working on; one that is being cancelled is cancelled.

        Returns:
            Whether it was this worker's.
        """
        with self._database.writing() as cursor:
            cursor.execute(
                "UPDATE jobs SET state=iif(state='running', 'queued', 'cancelled'), "
                "ended=iif(state='running', NULL, ?), worker=NULL, lease=NULL "
                f"WHERE id=? AND worker=? AND state IN ({_marks(HELD)})",
                (self._clock(), job_id, worker, *HELD),
            )
            return cursor.rowcount == 1

    def crash(self, job_id: str, worker: str, reason: str) -> State | None:
        """Say that a job's process crashed: it is queued again, or quarantined after the second time.

        Returns:
            Its new state; `None` when it is not this worker's.
        """
        with self._database.writing() as cursor:
            rows = cursor.execute(
                "UPDATE jobs SET attempts=attempts+1, crashes=crashes+1, worker=NULL, lease=NULL, child=NULL, error=?, "
                "state=CASE WHEN state='cancelling' THEN 'cancelled' WHEN crashes+1 >= ? THEN 'quarantined' "
                "ELSE 'queued' END, "
                "ended=iif(state='running' AND crashes+1 < ?, NULL, ?), "
                "hint=iif(crashes+1 >= ?, 'Retry starts it again; its log says more.', NULL) "
                f"WHERE id=? AND worker=? AND state IN ({_marks(HELD)}) RETURNING state",
                (_short(reason), _CRASHES, _CRASHES, self._clock(), _CRASHES, job_id, worker, *HELD),
            ).fetchall()
        return rows[0]["state"] if rows else None


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _storable(text: str) -> str:
    """Text that SQLite takes: a lone surrogate, of a file name or a hostile request, becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _no_job(job_id: str) -> NotFoundError:
    return NotFoundError(f"There is no job {job_id[:40]!r}.", "`dreamkit jobs list` shows all.")


def _short(text: str | None) -> str | None:
    return None if text is None else _storable(text[:_LONGEST_ERROR])


def _job(row: sqlite3.Row) -> Job:
    child = row["child"]
    return Job(
        **{name: row[name] for name in ("id", "kind", "user", "priority", "state", "attempts", "crashes")},
        **{name: row[name] for name in ("created", "started", "ended", "run", "prompt", "worker", "error", "hint")},
        settings=json.loads(row["settings"]),
        progress=Progress.of(json.loads(row["progress"])),
        result=json.loads(row["result"]),
        child=None if child is None else json.loads(child),
    )
