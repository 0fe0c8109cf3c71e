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
from .late_images import anything_sent, mark_late, withdraw
from .studies import Study

STATES = ("analysed", "delivering", "delivered", "review", "withheld", "rejected", "dead")

FINISHED = ("delivered", "withheld", "rejected")
"""States of cases whose objects need not be kept."""


class Kept(str, Enum):
    """What became of an analysis."""

    NEW = "new"
    SAME = "same"
    REPLACED = "replaced"
    LATE = "late"
    STALE = "stale"


@dataclass(frozen=True)
class Result:
    """What an analysis found.

    Attributes:
        version: digest of the model.
        fingerprint: digest of its objects' UIDs: equal for equal results.
        route, why: the decision and its reason.
        score: None where there is none; higher is more uncertain.
        volume: class → {mean, sd, low, high} in mL, `total` among them; empty for a classification.
        marked: accepted, and drawn for an audit.
    """

    series: str
    model: str
    version: str
    fingerprint: str
    route: str
    why: str
    score: float | None
    volume: Mapping[str, Mapping[str, float | None]]
    marked: bool


@dataclass(frozen=True)
class NewCase(Result):
    """A result that is ready to be kept.

    Attributes:
        record: for the audit log.
        objects: UIDs of its DICOM objects, in the order of sending.
    """

    record: Mapping[str, Any]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class StoredCase(Result):
    """A result in the store.

    Attributes:
        reason: why it is rejected or dead.
        late: images came after it was sent, see the package.
    """

    key: str
    study: str
    state: str
    reason: str
    late: bool
    verdict: str | None
    created: float


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
            "SELECT * FROM cases WHERE verdict IS NULL AND state <> 'rejected'"
            " AND (state = 'review' OR route <> 'accept' OR marked = 1 OR late = 1 OR state = 'dead')"
            " ORDER BY score IS NOT NULL, score DESC, created"
        )
        return [_case(row) for row in rows]

    def keep(self, study: Study, case: str, result: NewCase, log_end: int) -> tuple[Kept, str | None]:
        """Takes a result in; see the package for late ones. Returns what was done, and a case key that it replaced.

        A result of fewer images than there are by now is not kept (`STALE`).

        Args:
            case: a fresh key, under which the objects already lie in the outbox.
            log_end: end of the audit log (`equipoise_clinic.audit.end`).
        """
        with self._database.transaction() as db:
            now = db.execute("SELECT revision FROM studies WHERE key = ?", (study.key,)).fetchone()["revision"]
            if now != study.revision:  # more images came meanwhile: it is analysed again, whole
                return Kept.STALE, None
            old = db.execute(
                "SELECT * FROM cases WHERE study = ? AND series = ? AND model = ? AND version = ?"
                " AND state <> 'rejected'",
                (study.key, result.series, result.model, result.version),
            ).fetchone()
            if old is not None and old["fingerprint"] == result.fingerprint:
                return Kept.SAME, None
            if old is not None and anything_sent(db, old["key"]):
                mark_late(db, old["key"])
                return Kept.LATE, None
            if old is not None:
                withdraw(db, old["key"])
            db.execute(
                "INSERT INTO cases (key, study, series, model, version, fingerprint, state, route, why, score, volume,"
                " marked, created) VALUES (?, ?, ?, ?, ?, ?, 'analysed', ?, ?, ?, ?, ?, ?)",
                (case, study.key, result.series, result.model, result.version, result.fingerprint, result.route,
                 result.why, result.score, json.dumps(result.volume), int(result.marked), time()),
            )  # fmt: skip
            db.executemany(
                "INSERT INTO outbox (owner, number, uid, state) VALUES (?, ?, ?, 'waiting')",
                [(case, number, uid) for number, uid in enumerate(result.objects, start=1)],
            )
            note(db, case, "decision", dict(result.record), log_end)
        return (Kept.NEW, None) if old is None else (Kept.REPLACED, old["key"])

    def dispatch(self, handling: Mapping[str, str]) -> list[StoredCase]:
        """Sends logged decisions on their way: to delivery or to review. Returns what was moved.

        Args:
            handling: route → "send" or "hold".
        """
        logged = (
            "SELECT c.* FROM cases c WHERE c.state = 'analysed' AND NOT EXISTS"
            " (SELECT 1 FROM journal j WHERE j.owner = c.key AND j.written = 0)"
        )
        if not self._database.rows(logged):
            return []
        moved = []
        with self._database.transaction() as db:
            for row in db.execute(logged).fetchall():
                state = "delivering" if handling[row["route"]] == "send" else "review"
                db.execute("UPDATE cases SET state = ? WHERE key = ?", (state, row["key"]))
                moved.append(_case({**dict(row), "state": state}))
        return moved

    def judge(self, case: str, fingerprint: str, verdict: str, by: str, log_end: int) -> bool:
        """An expert's verdict: noted for the audit log, and what is held is released or withheld.

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
            if verdict == "accept":
                state = "delivering" if state in ("analysed", "review") else state
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
