"""Results: one row per study, series, model and model version. The package says which states follow which."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from time import time
from typing import Any

from .database import Database
from .journal import note
from .late_images import OUTDATED, anything_sent, mark_late, withdraw
from .outbox import tell_again
from .studies import Study

STATES = ("analysed", "delivering", "delivered", "review", "withheld", "rejected", "dead")

FINISHED = ("delivered", "withheld", "rejected")
"""States of cases whose objects need not be kept."""


OPEN = (
    "(verdict IS NULL AND state <> 'rejected'"
    " AND (state IN ('review', 'dead') OR route <> 'accept' OR marked = 1 OR late = 1))"
)
"""SQL: a person is asked for a verdict."""


class Kept(str, Enum):
    """What became of an analysis."""

    NEW = "new"
    SAME = "same"
    REPLACED = "replaced"  # an earlier one, of which nothing was sent
    LATE = "late"  # a new version beside an earlier one, which was sent
    STALE = "stale"  # not kept: more images came meanwhile, or an earlier one was sent that it does not name


@dataclass(frozen=True)
class Result:
    """What an analysis found.

    Attributes:
        version: digest of the model.
        fingerprint: digest of its objects' UIDs: equal for equal results.
        route, why: the decision and its reason.
        score: None where there is none; higher is more uncertain.
        volume: class → {mean, sd, low, high} in mL, `total` among them; of a regression target → the same and `unit`
            (UCUM); empty for a classification.
        marked: accepted, and drawn for an audit.
    """

    series: str
    model: str
    version: str
    fingerprint: str
    route: str
    why: str
    score: float | None
    volume: Mapping[str, Mapping[str, Any]]
    marked: bool


@dataclass(frozen=True)
class NewObject:
    """A DICOM object of a result.

    Attributes:
        number: 1-based place in the order of sending, and its file's name.
    """

    number: int
    sop_class: str
    series: str
    uid: str


@dataclass(frozen=True)
class NewCase(Result):
    """A result that is ready to be kept.

    Attributes:
        record: for the audit log.
        objects: those of its DICOM objects that are sent, in order.
    """

    record: Mapping[str, Any]
    objects: tuple[NewObject, ...]
    replaces: str = ""


@dataclass(frozen=True)
class StoredCase(Result):
    """A result in the store.

    Attributes:
        reason: why it is rejected or dead.
        late: images came after it was sent, see the package.
        replaces: key of the sent result that this one is a new version of; "" where there is none.
        revision: the latest of its study that gave it.
    """

    key: str
    study: str
    state: str
    reason: str
    late: bool
    verdict: str | None
    created: float
    replaces: str
    revision: int


class Cases:
    """Results, and what happens to each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str) -> StoredCase | None:
        row = self._database.row("SELECT * FROM cases WHERE key = ?", key)
        return _case(row) if row else None

    def all(self, state: str | None = None) -> list[StoredCase]:
        rows = self._database.rows("SELECT * FROM cases WHERE ?1 IS NULL OR state = ?1", state)
        return [_case(row) for row in rows]

    def worklist(self) -> list[StoredCase]:
        """What waits for a person, most uncertain first; what has no score comes before all that have one."""
        rows = self._database.rows(
            f"SELECT * FROM cases WHERE {OPEN} ORDER BY score IS NOT NULL, score DESC, created"  # noqa: S608
        )
        return [_case(row) for row in rows]

    def earlier(self, study: Study, series: str, model: str, version: str) -> StoredCase | None:
        """The result that a new one would replace: the current one, else the latest that was sent."""
        row = self._database.row(
            "SELECT * FROM cases WHERE study = ? AND series = ? AND model = ? AND version = ? AND state <> 'rejected'"
            " ORDER BY late, created DESC",
            study.key, series, model, version,
        )  # fmt: skip
        return _case(row) if row else None

    def sent(self, case: str) -> bool:
        """Whether anything of it was sent, or may have been."""
        with self._database.transaction() as db:
            return anything_sent(db, case)

    def report(self, case: str, sop_class: str) -> tuple[str, str] | None:
        """Series and SOP Instance UID of its object of that class; None where it has none, or that is not known."""
        query = "SELECT series, uid FROM outbox WHERE owner = ? AND sop_class = ? AND series <> ''"
        row = self._database.row(query, case, sop_class)
        return (row["series"], row["uid"]) if row else None

    def keep(self, study: Study, case: str, result: NewCase, log_end: int) -> tuple[Kept, str | None]:
        """Takes a result in; see the package for late ones. Returns what was done, and a case key that it replaced.

        Args:
            case: a fresh key, under which the objects already lie in the outbox.
            log_end: end of the audit log (`equipoise_clinic.audit.end`).
        """
        with self._database.transaction() as db:
            now = db.execute("SELECT revision FROM studies WHERE key = ?", (study.key,)).fetchone()["revision"]
            if now != study.revision:  # more images came meanwhile: it is analysed again, whole
                return Kept.STALE, None
            there = db.execute(
                "SELECT * FROM cases WHERE study = ? AND series = ? AND model = ? AND version = ?"
                " AND state <> 'rejected' ORDER BY late, created DESC",
                (study.key, result.series, result.model, result.version),
            ).fetchall()
            old = next((row for row in there if not row["late"]), None)
            if old is not None and old["fingerprint"] == result.fingerprint:
                db.execute("UPDATE cases SET revision = ? WHERE key = ?", (study.revision, old["key"]))
                return Kept.SAME, None
            kept, replaced = Kept.NEW, None
            if old is not None and anything_sent(db, old["key"]):
                if result.replaces != old["key"]:
                    return Kept.STALE, None
                kept = Kept.LATE
                mark_late(db, old["key"])
            elif old is not None:
                kept, replaced = Kept.REPLACED, str(old["key"])
                withdraw(db, replaced)
            again = next((row for row in there if row["fingerprint"] == result.fingerprint), None)
            if again is not None:  # the images are as they were for a result that was sent: it is the current one again
                statement = "UPDATE cases SET late = 0, reason = '', revision = ? WHERE key = ?"
                db.execute(statement, (study.revision, again["key"]))
                return Kept.SAME, None
            db.execute(
                "INSERT INTO cases (key, study, series, model, version, fingerprint, state, route, why, score, volume,"
                " marked, created, replaces, revision)"
                " VALUES (?, ?, ?, ?, ?, ?, 'analysed', ?, ?, ?, ?, ?, ?, ?, ?)",
                (case, study.key, result.series, result.model, result.version, result.fingerprint, result.route,
                 result.why, result.score, json.dumps(result.volume), int(result.marked), time(), result.replaces,
                 study.revision),
            )  # fmt: skip
            db.executemany(
                "INSERT INTO outbox (owner, number, uid, state, sop_class, series) VALUES (?, ?, ?, 'waiting', ?, ?)",
                [(case, each.number, each.uid, each.sop_class, each.series) for each in result.objects],
            )
            note(db, case, "decision", dict(result.record), log_end)
        return kept, replaced

    def dispatch(self, handling: Mapping[str, str]) -> list[StoredCase]:
        """Sends logged decisions on their way: to delivery or to review, as all that have no objects. Returns them.

        Not those of which it is not known yet whether they hold for all that came of their study.

        Args:
            handling: route → "send" or "hold".
        """
        logged = (
            "SELECT c.* FROM cases c WHERE c.state = 'analysed' AND NOT EXISTS"  # noqa: S608 (all of it is constant)
            f" (SELECT 1 FROM journal j WHERE j.owner = c.key AND j.written = 0) AND NOT {OUTDATED}"
        )
        if not self._database.rows(logged):
            return []
        moved = []
        with self._database.transaction() as db:
            for row in db.execute(logged).fetchall():
                empty = db.execute("SELECT 1 FROM outbox WHERE owner = ?", (row["key"],)).fetchone() is None
                state = "delivering" if handling[row["route"]] == "send" and not empty else "review"
                db.execute("UPDATE cases SET state = ? WHERE key = ?", (state, row["key"]))
                moved.append(_case({**dict(row), "state": state}))
        return moved

    def hold(self, case: str, why: str) -> bool:
        """An accepted result goes to review instead of on its way: what is not sent yet waits for an expert's verdict.

        False: it is none, or an expert has released it; nothing was changed.
        """
        with self._database.transaction() as db:
            changed = db.execute(
                "UPDATE cases SET state = 'review', reason = ? WHERE key = ? AND state = 'delivering'"
                " AND route = 'accept' AND verdict IS NULL",
                (why, case),
            )
            return changed.rowcount > 0

    def judge(self, case: str, fingerprint: str, verdict: str, by: str, log_end: int, tell: bool = True) -> bool:
        """An expert's verdict: noted for the audit log, and what is held is released or withheld.

        Args:
            tell: whether whoever got an HL7 message about the case can get another one, about the verdict.

        False: there is no such open case, or not this result any more; nothing was changed.
        """
        with self._database.transaction() as db:
            row = db.execute(
                "SELECT * FROM cases WHERE key = ? AND fingerprint = ? AND verdict IS NULL AND state <> 'rejected'",
                (case, fingerprint),
            ).fetchone()
            decision = db.execute(
                "SELECT sequence FROM journal WHERE owner = ? AND kind = 'decision' AND written = 1", (case,)
            ).fetchone()
            if row is None or decision is None:
                return False
            body = {"decision": decision["sequence"], "by": by, "verdict": verdict, "case": case}
            note(db, case, "verdict", body, log_end)
            state = row["state"]
            empty = db.execute("SELECT 1 FROM outbox WHERE owner = ?", (case,)).fetchone() is None
            told = tell and tell_again(db, case, verdict)
            if verdict == "accept" and not empty:
                state = "delivering" if state in ("analysed", "review") or (told and state == "delivered") else state
            elif told:
                state = "delivering"
            elif state != "delivered":
                state = "withheld"  # also where a part was sent: what an expert calls wrong is not sent further
            db.execute("UPDATE cases SET verdict = ?, state = ? WHERE key = ?", (verdict, state, case))
        return True


def fingerprint_of(uids: Sequence[str]) -> str:
    """Of the objects' UIDs, which follow from images, model and answer."""
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()


def _case(row: Mapping[str, Any] | sqlite3.Row) -> StoredCase:
    values = dict(row)
    volume, marked, late = json.loads(values["volume"]), bool(values["marked"]), bool(values["late"])
    return StoredCase(**{**values, "volume": volume, "marked": marked, "late": late})
