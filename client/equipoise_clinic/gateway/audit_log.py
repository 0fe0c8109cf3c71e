"""The audit log of the gateway: it gets exactly one line for each decision and verdict, and is watched for alarms."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from ..audit import AuditError, Kind, append, lines_since, redact
from ..audit.closing import Closing
from .observe import Log, Metrics
from .spool import room
from .store import JournalLine, Store


def write_out(store: Store, log: Path, passed: Callable[[str], None] = lambda point: None) -> int:
    """Appends the journal's lines that the log does not hold yet; returns how many.

    A line that was appended just before a crash is found there, and not appended again. The gateway and the review page
    take turns (flock). Raises AuditError for a damaged log.
    """
    if not store.journal.pending():
        return 0
    with room(), log.with_name(f"{log.name}.writer.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pending = store.journal.pending()
        for line in pending:
            sequence = _find(log, line)
            if sequence is None:
                sequence = append(log, Kind(line.kind), line.body).sequence
            passed("journal.appended")
            store.journal.written(line, sequence)
            passed("journal.recorded")
    return len(pending)


def forget(store: Store, log: Path, days: float, now: datetime | None = None) -> int:
    """Deletes contents of the log that are older than so many days; returns how many.

    Not while lines wait to be written: where they belong is known by places in the files, which change.
    Raises AuditError for a damaged log.
    """
    with room(), log.with_name(f"{log.name}.writer.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists() or store.journal.pending():
            return 0
        before = (now or datetime.now(timezone.utc)) - timedelta(days=days)
        deletion = redact(log, before, f"retention: keep_audit_days = {days:g}")
    return 0 if deletion is None or deletion.body is None else len(deletion.body["sequences"])


class AuditWatch:
    """Keeps the metrics up to date with the alarms of `equipoise audit monitor`, and says which models are closed.

    Args:
        close: whether an alarm closes a model's accept.
    """

    def __init__(self, path: Path, log: Log, metrics: Metrics, close: bool = False) -> None:
        self._log, self._metrics, self._close = log, metrics, close
        self._closing = Closing(path)

    def closed(self, model: str) -> str:
        """Why the model may accept nothing; empty: it may."""
        return self._closing.why(model) if self._close else ""

    def look(self) -> None:
        """Reads what is new. Reports a damaged log by a metric of its own, until it is whole again."""
        try:
            statuses = self._closing.look()
        except (AuditError, OSError) as error:
            self._log.failure("audit log cannot be read", error)
            self._metrics.readable.set(0)
            return
        self._metrics.policies(statuses, self._close)
        self._metrics.readable.set(1)


def _find(log: Path, line: JournalLine) -> int | None:
    """Number of the log's line that a crash kept us from noting; looked for only where it can be."""
    for written in lines_since(log, line.start):
        if written.endswith(b"\n") and line.entry.encode() in written:  # `append` sets a fragment aside
            return int(json.loads(written)["sequence"])
    return None
