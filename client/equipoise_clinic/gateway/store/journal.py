"""Lines that the audit log is to get. They are noted with what they record, and written to the log afterwards."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .database import Database


@dataclass(frozen=True)
class JournalLine:
    """A line that the audit log is to get.

    Attributes:
        entry: random; the log's line has it in its body.
        case: key of the case that it is about.
        kind: `decision` or `verdict`.
        start: position in the log (`equipoise_clinic.audit.end`) from which to look whether it is there already.
    """

    entry: str
    case: str
    kind: str
    body: Mapping[str, Any]
    start: int


class Journal:
    """The lines, written ones among them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def pending(self) -> list[JournalLine]:
        """What the audit log does not hold yet, oldest first."""
        rows = self._database.rows("SELECT * FROM journal WHERE written = 0 ORDER BY rowid")
        return [
            JournalLine(row["entry"], row["owner"], row["kind"], json.loads(row["body"]), row["start"]) for row in rows
        ]

    def written(self, line: JournalLine, sequence: int) -> None:
        """The audit log holds the line."""
        self._database.execute("UPDATE journal SET sequence = ?, written = 1 WHERE entry = ?", sequence, line.entry)

    def decision(self, case: str) -> int | None:
        """Line of the audit log that holds the case's decision; None: not written yet."""
        row = self._database.row("SELECT sequence FROM journal WHERE owner = ? AND kind = 'decision'", case)
        return row["sequence"] if row else None


def note(db: sqlite3.Connection, case: str, kind: str, body: Mapping[str, Any], start: int) -> None:
    """One more line for the audit log, within the transaction of what it records."""
    entry = secrets.token_hex(8)
    db.execute(
        "INSERT INTO journal (entry, owner, kind, body, start) VALUES (?, ?, ?, ?, ?)",
        (entry, case, kind, json.dumps({**body, "case": case, "entry": entry}), start),
    )
