"""Results on their way out, one DICOM object at a time, and the HL7 message about them last.

    waiting ──▶ sent
     │ │▲
     │ ▼└ revive
     │dead(refused too often, or its destination was away too long)
     ▼
    unwanted(its kind is refused, whatever is in it)

Nothing leaves before the audit log holds the decision. A kind of objects that a destination does not take is
remembered, and each later object of that kind is offered once: it may have learned it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from time import time

from .database import Database
from .late_images import OUTDATED

ORU = "ORU^R01"
"""Stands for the SOP class of an HL7 message; it follows the report that it is about."""


@dataclass(frozen=True)
class OutboxItem:
    """One object on its way.

    Attributes:
        number: 1-based place in the order of sending, and its file's name.
        sop_class: `ORU` of an HL7 message; "" where a version put it here which did not note that.
        away: since when its destination has not answered, seconds since 1970; None: it answered last time.
    """

    case: str
    number: int
    uid: str
    sop_class: str
    attempts: int
    away: float | None


class Outbox:
    """The objects of all cases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next(self) -> tuple[OutboxItem | None, float]:
        """The next object to send; or None, and seconds until there will be one (infinite: none waits).

        Objects of a case go in order, so that a report arrives after what it reports on, but what was refused, or could
        not be stored, holds up no other object; a message waits for its report. Nothing goes before the audit log
        holds the decision, and the verdict that released it; and nothing while more of its study waits to be analysed
        than it is of. A late result, as long as it is not all sent, goes on only by an expert's verdict.
        """
        row = self._database.row(
            "SELECT p.* FROM outbox p JOIN cases c ON c.key = p.owner"  # noqa: S608 (all of it is constant)
            " WHERE c.state = 'delivering' AND p.state = 'waiting' AND NOT EXISTS"
            " (SELECT 1 FROM outbox q WHERE q.owner = p.owner AND q.state = 'waiting' AND q.number < p.number"
            " AND q.attempts = 0 AND (q.due <= p.due OR p.sop_class = ?))"
            " AND NOT EXISTS (SELECT 1 FROM journal j WHERE j.owner = c.key AND j.written = 0)"
            f" AND NOT {OUTDATED} AND (c.late = 0 OR c.verdict IS NOT NULL)"
            " ORDER BY p.due, c.created, p.number LIMIT 1",
            ORU,
        )
        if row is None:
            return None, float("inf")
        waits = row["due"] - time()
        if 0 < waits <= self._database.patience:
            return None, waits
        return OutboxItem(row["owner"], row["number"], row["uid"], row["sop_class"], row["attempts"], row["away"]), 0.0

    def sent(self, item: OutboxItem) -> bool:
        """It has arrived. True: the case is complete now."""
        with self._database.transaction() as db:
            db.execute("DELETE FROM refusals WHERE sop_class = ?", (item.sop_class,))
            return _ended(db, item, "sent", "") == "delivered"

    def unwanted(self, item: OutboxItem, reason: str) -> bool:
        """Its kind is refused; the others of its case go on. True: the case is complete now."""
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO refusals VALUES (?, ?, 1, ?)"
                " ON CONFLICT (sop_class) DO UPDATE SET objects = objects + 1, reason = excluded.reason",
                (item.sop_class, reason, time()),
            )
            return _ended(db, item, "unwanted", reason) == "delivered"

    def refusals(self) -> dict[str, tuple[str, int]]:
        """SOP Class UID → why the destination takes no objects of it, and how many it has refused since it last did."""
        rows = self._database.rows("SELECT * FROM refusals ORDER BY sop_class")
        return {row["sop_class"]: (row["reason"], row["objects"]) for row in rows}

    def refused(self, item: OutboxItem, seconds: float) -> None:
        """A destination that is there does not want it; again after `seconds`."""
        statement = "UPDATE outbox SET attempts = attempts + 1, due = ?, away = NULL WHERE owner = ? AND number = ?"
        self._database.execute(statement, time() + seconds, item.case, item.number)

    def missed(self, item: OutboxItem, seconds: float, everything: bool) -> None:
        """Its destination could not take it, which counts against nothing; again after `seconds`.

        Args:
            everything: nobody was there, so that all that is on its way there waits as long; its own case a little
                longer, so that others have their turn first.
        """
        now = time()
        statement = (
            "UPDATE outbox SET due = MAX(due, ?1) + (owner = ?4) * 1e-3, away = COALESCE(away, ?2)"
            " WHERE state = 'waiting' AND CASE WHEN ?3 THEN (sop_class = ?6) = (?7 = ?6)"
            " AND owner IN (SELECT key FROM cases WHERE state = 'delivering')"
            " ELSE owner = ?4 AND number = ?5 END"
        )
        values = (now + seconds, now, int(everything), item.case, item.number, ORU, item.sop_class)
        self._database.execute(statement, *values)

    def give_up(self, item: OutboxItem, reason: str) -> None:
        """A dead letter: the object stays where it is until `Store.revive`; the others of its case go on."""
        with self._database.transaction() as db:
            _ended(db, item, "dead", reason)


def tell_again(db: sqlite3.Connection, case: str, verdict: str) -> bool:
    """One more message, about a verdict, where one was sent or may have been. False: there is none to add to.

    The one before is not repeated: it would say something else under the same Message Control ID. What an expert calls
    wrong is not sent further.
    """
    first = db.execute(
        "SELECT uid FROM outbox WHERE owner = ? AND sop_class = ?"
        " AND (state = 'sent' OR attempts > 0 OR away IS NOT NULL) ORDER BY number",
        (case, ORU),
    ).fetchone()
    if first is None:
        return False
    last = db.execute("SELECT MAX(number) FROM outbox WHERE owner = ?", (case,)).fetchone()[0]
    db.execute(
        "DELETE FROM outbox WHERE owner = ? AND state <> 'sent' AND (sop_class = ? OR ? <> 'accept')",
        (case, ORU, verdict),
    )
    db.execute(
        "INSERT INTO outbox (owner, number, uid, state, sop_class, series) VALUES (?, ?, ?, 'waiting', ?, '')",
        (case, last + 1, f"{first['uid']}.{last + 1}", ORU),
    )
    return True


def _ended(db: sqlite3.Connection, item: OutboxItem, state: str, reason: str) -> str | None:
    """Notes an object's end. Returns the state of its case where that ends with it: `delivered` or `dead`.

    A case is dead, so that a person sees it, where an object was given up, or nothing but unwanted kinds is left.
    """
    db.execute(
        "UPDATE outbox SET state = ?, away = NULL WHERE owner = ? AND number = ?", (state, item.case, item.number)
    )
    if reason:
        db.execute(
            "UPDATE cases SET reason = CASE WHEN reason = '' THEN ?1 ELSE reason || '; ' || ?1 END"
            " WHERE key = ?2 AND state = 'delivering' AND instr(reason, ?1) = 0",
            (reason, item.case),
        )
    rows = db.execute("SELECT state, sop_class FROM outbox WHERE owner = ? ORDER BY number", (item.case,)).fetchall()
    states = [row["state"] for row in rows]
    if "waiting" in states:
        return None
    report = [row["state"] for row in rows if row["sop_class"] != ORU][-1:]  # the last of the objects
    ended = "dead" if "dead" in states or report == ["unwanted"] else "delivered"
    db.execute("UPDATE cases SET state = ? WHERE key = ? AND state = 'delivering'", (ended, item.case))
    return ended
