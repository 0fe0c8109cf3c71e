"""One SQLite connection: transactions that are on the disk when they end, and a bell for whoever waits for a change."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...ownership import give_to_owner
from ..spool import OutOfRoom
from .schema import migrate


class Database:
    """Safe to share between threads, and between the gateway and the review page.

    Args:
        patience: seconds; a waiting time further ahead means that the clock was set back, and counts as over.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self.patience = patience
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self.changes = 0  # grows with every transaction that changed something
        if not path.exists():
            with path.open("ab") as file:  # SQLite gives the owner of this file to those that it puts beside it
                give_to_owner(file.fileno(), path.parent)
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
        self._connection.row_factory = sqlite3.Row
        try:
            with _full_disk_as_out_of_room():
                self._connection.execute("PRAGMA journal_mode = WAL")
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("PRAGMA foreign_keys = ON")
            with self.transaction() as db:  # gateway and review page may be started together
                migrate(db)
        except BaseException:
            self._connection.close()
            raise
        path.chmod(0o600)
        self._foreign = self._data_version()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing. Wakes whoever waits, if it changed anything."""
        with self._lock, _full_disk_as_out_of_room():
            before = self._connection.total_changes
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            changed = self._connection.total_changes != before
        if changed:  # else whoever looks for work would wake itself, for ever
            self.wake()

    def execute(self, statement: str, *values: Any) -> int:
        """A transaction of one statement; how many rows it changed."""
        with self.transaction() as db:
            return db.execute(statement, values).rowcount

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """The first row that it finds."""
        return next(iter(self.rows(query, *values)), None)

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, _full_disk_as_out_of_room():
            return self._connection.execute(query, values).fetchall()

    # Waiting for something to do

    def wait(self, seen: int, seconds: float) -> None:
        """Until `changes` differs from `seen`, for at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self.changes != seen, max(0.0, seconds))

    def wake(self) -> None:
        """Ends every `wait`."""
        with self._changed:
            self.changes += 1
            self._changed.notify_all()

    def notice(self) -> None:
        """Wakes whoever waits where another process, as the review page, has changed the database."""
        version = self._data_version()
        if version != self._foreign:
            self._foreign = version
            self.wake()

    def _data_version(self) -> int:
        """Changes when another connection commits."""
        return int(self.rows("PRAGMA data_version")[0][0])


@contextmanager
def _full_disk_as_out_of_room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        # FULL, and the I/O errors that a full disk causes in the write-ahead log.
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or "full" in str(error) or "disk I/O" in str(error):
            raise OutOfRoom(
                "the disk is full or cannot be written; free some space, and the gateway goes on by itself"
            ) from None
        raise
