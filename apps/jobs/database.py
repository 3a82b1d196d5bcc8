"""The SQLite file under the queue: one schema, short transactions, and errors that say what to do.

The file is in WAL mode: readers never wait, writers wait for one another for at most `busy` seconds, and several
processes of one machine may have it open (not over a network file system: WAL needs shared memory).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamkit_apps.jobs.errors import QueueError

from dreamkit.files import write_error

SCHEMA_VERSION = 1
_APPLICATION = 0x444B4A51  # "DKJQ": tells our files from other SQLite files
_SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    user TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    losses INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    run TEXT,
    prompt TEXT NOT NULL,
    folded TEXT NOT NULL,
    settings TEXT NOT NULL,
    worker TEXT,
    lease REAL,
    error TEXT,
    hint TEXT,
    progress TEXT NOT NULL DEFAULT '{}',
    furthest INTEGER NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT '{}',
    child TEXT
) STRICT;
CREATE INDEX jobs_by_state ON jobs (state, user);
CREATE TABLE served (user TEXT PRIMARY KEY, time REAL NOT NULL) STRICT;
CREATE TABLE workers (name TEXT PRIMARY KEY, seen REAL NOT NULL) STRICT;
"""
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_NO_RIGHT = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


class Database:
    """One connection, for all threads of a process.

    Args:
        path: the file; made if missing, with its folder.
        busy: seconds to wait for another process's write.

    Raises:
        QueueError: it can't be opened, is damaged, no queue, or of a newer DreamKit.
    """

    def __init__(self, path: Path, busy: float = 5.0) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(path.parent, error) from error
        with self._explained():
            self._connection = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                self._prepare(busy)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _prepare(self, busy: float) -> None:
        """Check whose file it is before anything is changed; make the tables of an empty one."""
        connection = self._connection
        connection.row_factory = sqlite3.Row
        self._check()
        deadline = time.monotonic() + busy
        while True:  # the change to WAL does not wait for locks by itself
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in _BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL would lose the last jobs in a power cut
        if self._version() == 0:
            with self.writing() as cursor:
                if self._version() == 0:  # another process may have been first
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        cursor.execute(statement)
                    cursor.execute(f"PRAGMA application_id = {_APPLICATION}")
                    cursor.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _check(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = self._version()
        if application != _APPLICATION and (tables or version):
            raise QueueError(f"{self.path} is a database of something else.", "Choose another file with --queue.")
        if version > SCHEMA_VERSION:
            raise QueueError(
                f"The queue {self.path} has schema version {version}; this DreamKit knows up to {SCHEMA_VERSION}.",
                "Upgrade DreamKit, or choose another file with --queue: nothing was changed.",
            )

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        """A transaction that holds the write lock from its first moment; undone when the block raises.

        Raises:
            QueueError: locked for too long, disk full, damaged.
        """
        with self._lock, self._explained():
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """All rows of a query.

        Raises:
            QueueError: see `writing`.
        """
        with self._lock, self._explained():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            raise QueueError(*self._said(error, None if code is None else code & 0xFF)) from error

    def _said(self, error: sqlite3.Error, code: int | None) -> tuple[str, str]:
        if code in _BUSY:
            return f"The queue {self.path} is locked by another process.", "Try again, or stop the process that has it."
        if code == sqlite3.SQLITE_FULL:
            return f"The disk of the queue {self.path} is full.", "Free some space; nothing in the queue was lost."
        if code in _CORRUPT:
            return (
                f"The queue {self.path} is damaged or no queue: {error}.",
                "Move the file away to begin a new one: the runs are not in it, and stay.",
            )
        if code in _NO_RIGHT:
            return f"The queue {self.path} can't be opened or written: {error}.", "Check the file and folder's rights."
        return f"The queue {self.path} failed: {error}.", "Check its disk, or choose another file with --queue."
