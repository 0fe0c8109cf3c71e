"""Lines for the audit log go through the database: exactly one for each decision and verdict, crash or no crash."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from pathlib import Path

from ..audit import Kind, append
from .spool import room
from .store import Note, Store


def write_out(store: Store, log: Path, passed: Callable[[str], None] = lambda point: None) -> int:
    """Appends what the log does not hold yet; returns how many lines. Raises AuditError for a damaged log.

    The gateway and the review page take turns (flock).
    """
    if not store.to_log():
        return 0
    with room(), log.with_name(f"{log.name}.writer.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        notes = store.to_log()
        for note in notes:
            sequence = _find(log, note)
            if sequence is None:
                sequence = append(log, Kind(note.kind), note.body).sequence
            passed("journal.appended")
            store.logged(note, sequence)
            passed("journal.recorded")
    return len(notes)


def size(log: Path) -> int:
    """Bytes."""
    return log.stat().st_size if log.exists() else 0


def _find(log: Path, note: Note) -> int | None:
    """The line that a crash kept us from noting; looked for only where it can be."""
    if not log.exists():
        return None
    with log.open("rb") as file:
        file.seek(note.start if note.start <= size(log) else 0)
        for line in file:
            if note.entry.encode() in line:
                return int(json.loads(line)["sequence"])
    return None
