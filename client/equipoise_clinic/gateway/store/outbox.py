"""Results on their way out, one DICOM object at a time.

    waiting ──▶ sent
       │▲
       ▼└ revive
      dead(refused too often, or its destination was away too long)

Nothing leaves before the audit log holds the decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import time

from .database import Database


@dataclass(frozen=True)
class OutboxItem:
    """One object on its way.

    Attributes:
        number: 1-based place in the order of sending, and its file's name.
        away: since when its destination has not answered, seconds since 1970; None: it answered last time.
    """

    case: str
    number: int
    uid: str
    attempts: int
    away: float | None


class Outbox:
    """The objects of all cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next(self) -> tuple[OutboxItem | None, float]:
        """The next object to send; or None, and seconds until there will be one (infinite: none waits).

        Objects of a case go in order, so that a report never arrives without what it reports on; nothing goes before
        the audit log holds the decision, and the verdict that released it.
        """
        row = self._database.row(
            "SELECT p.* FROM outbox p JOIN cases c ON c.key = p.owner"
            " WHERE c.state = 'delivering' AND p.state = 'waiting' AND p.number ="
            " (SELECT MIN(number) FROM outbox q WHERE q.owner = p.owner AND q.state = 'waiting')"
            " AND NOT EXISTS (SELECT 1 FROM journal j WHERE j.owner = c.key AND j.written = 0)"
            " ORDER BY p.due, c.created LIMIT 1"
        )
        if row is None:
            return None, float("inf")
        waits = row["due"] - time()
        if 0 < waits <= self._database.patience:
            return None, waits
        return OutboxItem(row["owner"], row["number"], row["uid"], row["attempts"], row["away"]), 0.0

    def sent(self, item: OutboxItem) -> bool:
        """It has arrived. True: the case is complete now."""
        with self._database.transaction() as db:
            db.execute(
                "UPDATE outbox SET state = 'sent', away = NULL WHERE owner = ? AND number = ?",
                (item.case, item.number),
            )
            left = db.execute(
                "SELECT COUNT(*) AS n FROM outbox WHERE owner = ? AND state <> 'sent'", (item.case,)
            ).fetchone()["n"]
            if not left:
                db.execute("UPDATE cases SET state = 'delivered' WHERE key = ? AND state = 'delivering'", (item.case,))
        return not left

    def refused(self, item: OutboxItem, seconds: float) -> None:
        """A destination that is there does not want it; again after `seconds`."""
        statement = "UPDATE outbox SET attempts = attempts + 1, due = ?, away = NULL WHERE owner = ? AND number = ?"
        self._database.execute(statement, time() + seconds, item.case, item.number)

    def missed(self, item: OutboxItem, seconds: float, everything: bool) -> None:
        """Its destination could not take it, which counts against nothing; again after `seconds`.

        Args:
            everything: nobody was there, so that all that is on its way waits as long.
        """
        now = time()
        statement = (
            "UPDATE outbox SET due = MAX(due, ?1), away = COALESCE(away, ?2) WHERE state = 'waiting' AND"
            " CASE WHEN ?3 THEN owner IN (SELECT key FROM cases WHERE state = 'delivering')"
            " ELSE owner = ?4 AND number = ?5 END"
        )
        self._database.execute(statement, now + seconds, now, int(everything), item.case, item.number)

    def give_up(self, item: OutboxItem, reason: str) -> None:
        """A dead letter: the object and its case stay where they are until `Store.revive`."""
        with self._database.transaction() as db:
            db.execute("UPDATE outbox SET state = 'dead' WHERE owner = ? AND number = ?", (item.case, item.number))
            db.execute(
                "UPDATE cases SET state = 'dead', reason = ? WHERE key = ? AND state = 'delivering'",
                (reason, item.case),
            )
