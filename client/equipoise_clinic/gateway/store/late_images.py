"""What becomes of earlier results when more images of their study come."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

SENT_LATE = "images arrived after this result was sent: it does not cover them"
REPLACED = "more images of the study came before it was sent: they are analysed together"

OUTDATED = (
    "EXISTS (SELECT 1 FROM studies s WHERE s.key = c.study AND s.state = 'receiving' AND s.revision <> c.revision)"
)
"""SQL: more of its study came than case `c` is of, and what that changes is not known yet."""


def anything_sent(db: sqlite3.Connection, case: str) -> bool:
    """Also what may have been sent: an attempt may have arrived although no answer came back."""
    sent = db.execute(
        "SELECT 1 FROM cases WHERE key = ?1 AND state IN ('delivering', 'delivered') UNION ALL"
        " SELECT 1 FROM outbox WHERE owner = ?1 AND (state = 'sent' OR attempts > 0 OR away IS NOT NULL)",
        (case,),
    )
    return sent.fetchone() is not None


def end_cases(db: sqlite3.Connection, study: str, models: Collection[str] | None = None) -> None:
    """Results that do not hold for the whole study: unsent ones are withdrawn, sent ones go to the worklist.

    Args:
        models: only these models' results, and those that are current and of an earlier revision; None: all.
    """
    rows = db.execute(
        "SELECT c.key, c.model, c.late = 0 AND c.revision <> s.revision AS earlier"
        " FROM cases c JOIN studies s ON s.key = c.study WHERE c.study = ? AND c.state <> 'rejected'",
        (study,),
    )
    for row in rows.fetchall():
        if models is not None and row["model"] not in models and not row["earlier"]:
            continue
        if anything_sent(db, row["key"]):
            mark_late(db, row["key"])
        else:
            withdraw(db, row["key"])


def withdraw(db: sqlite3.Connection, case: str) -> None:
    """Nothing of it was sent, and nothing will be. The decision stays in the audit log."""
    db.execute("DELETE FROM outbox WHERE owner = ?", (case,))
    db.execute("UPDATE cases SET state = 'rejected', reason = ? WHERE key = ?", (REPLACED, case))


def mark_late(db: sqlite3.Connection, case: str) -> None:
    """It was sent, and stays; a person decides what to do about it."""
    db.execute("UPDATE cases SET late = 1, reason = ?, verdict = NULL WHERE key = ?", (SENT_LATE, case))
