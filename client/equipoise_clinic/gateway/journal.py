"""Lines for the audit log go through the database: exactly one for each decision and verdict, crash or no crash."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

from ..audit import Kind, append
from ..audit.chain import AuditError
from ..audit.monitor import monitor
from .observe import Log, Metrics
from .spool import room
from .store import JournalLine, Store


def write_out(store: Store, log: Path, passed: Callable[[str], None] = lambda point: None) -> int:
    """Appends what the log does not hold yet; returns how many lines. Raises AuditError for a damaged log.

    The gateway and the review page take turns (flock).
    """
    if not store.journal.pending():
        return 0
    with room(), log.with_name(f"{log.name}.writer.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        notes = store.journal.pending()
        for note in notes:
            sequence = _find(log, note)
            if sequence is None:
                sequence = append(log, Kind(note.kind), note.body).sequence
            passed("journal.appended")
            store.journal.written(note, sequence)
            passed("journal.recorded")
    return len(notes)


class Watch:
    """The alarm of `equipoise audit monitor`, among the metrics."""

    def __init__(self, audit: Path, log: Log, metrics: Metrics) -> None:
        self._audit, self._log, self._metrics = audit, log, metrics
        self._read = -1  # bytes when it was read last

    def look(self) -> None:
        """Reads the whole log where it has grown. A damaged one is told by a metric of its own, and read again."""
        now = size(self._audit)
        if now == self._read:
            return
        try:
            self._metrics.watched(monitor(self._audit) if now else ())
        except (AuditError, OSError) as error:
            self._log.failure("audit log", error)
            self._metrics.readable.set(0)
            return
        self._metrics.readable.set(1)
        self._read = now


def size(log: Path) -> int:
    """Bytes."""
    return log.stat().st_size if log.exists() else 0


def _find(log: Path, note: JournalLine) -> int | None:
    """The line that a crash kept us from noting; looked for only where it can be."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(note.start if note.start <= size(log) else 0)
        for line in file:
            if line.endswith(b"\n") and note.entry.encode() in line:  # a torn one is `append`'s to set aside
                return int(json.loads(line)["sequence"])
    return None
