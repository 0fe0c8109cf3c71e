"""What the gateway knows, in SQLite: durable before anything is answered, and the same after a crash.

A **study** is an input, a **case** one result: one row per study, series, model and model version, a **parcel** one of
its objects on the way out. No column holds what identifies a person; DICOM UIDs stand here, and names nowhere.

    study:  receiving ──quiet──▶ analysed          case:  analysed ─logged─▶ delivering ──▶ delivered
               ▲  │  └────▶ rejected(reason)                          └────▶ review ─┬─ accept ─▶ delivering
               └──┴ late    dead(reason)                                             └─ reject, correct ─▶ withheld
                                                   delivering ──▶ dead(reason);  any unsent ─ late ─▶ rejected(reason)

**Late images.** Images that come after their study was analysed make it `receiving` again. If the new answer is the
same, nothing happens. If not, and nothing of the old one was sent, the new one takes its place. If something was sent,
the sent result stays the only one, and the case goes to the worklist as `late`: a person decides what to do about it.
Where the earlier images were deleted already (`keep_input_hours`), a series that they belong to is rejected until they
are sent again: what is left of it would pass for the whole.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from time import time
from typing import Any

from .spool import OutOfRoom

_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
    key TEXT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('receiving', 'analysed', 'rejected', 'dead')),
    reason TEXT NOT NULL DEFAULT '',
    revision INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    heard REAL NOT NULL,
    due REAL NOT NULL,
    kept INTEGER NOT NULL DEFAULT 1
) STRICT;
CREATE INDEX IF NOT EXISTS studies_due ON studies (state, due);
CREATE TABLE IF NOT EXISTS instances (
    study TEXT NOT NULL REFERENCES studies (key),
    uid TEXT NOT NULL,
    series TEXT NOT NULL DEFAULT '',
    deleted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (study, uid)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS aside (
    key TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS cases (
    key TEXT PRIMARY KEY,
    study TEXT NOT NULL REFERENCES studies (key),
    series TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN
        ('analysed', 'delivering', 'delivered', 'review', 'withheld', 'rejected', 'dead')),
    reason TEXT NOT NULL DEFAULT '',
    route TEXT NOT NULL,
    why TEXT NOT NULL,
    score REAL,
    volume TEXT NOT NULL,
    marked INTEGER NOT NULL,
    late INTEGER NOT NULL DEFAULT 0,
    verdict TEXT,
    created REAL NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_result ON cases (study, series, model, version) WHERE state <> 'rejected';
CREATE INDEX IF NOT EXISTS cases_state ON cases (state);
CREATE TABLE IF NOT EXISTS parcels (
    owner TEXT NOT NULL REFERENCES cases (key),
    number INTEGER NOT NULL,
    uid TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'dead')),
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    away REAL,
    PRIMARY KEY (owner, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS journal (
    entry TEXT PRIMARY KEY,
    owner TEXT NOT NULL REFERENCES cases (key),
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    start INTEGER NOT NULL,
    sequence INTEGER,
    written INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS journal_open ON journal (written) WHERE written = 0;
CREATE INDEX IF NOT EXISTS journal_case ON journal (owner);
CREATE TABLE IF NOT EXISTS cursors (
    source TEXT PRIMARY KEY,
    position TEXT NOT NULL
) STRICT;
"""

_ADDED = {"instances": {"series": "TEXT NOT NULL DEFAULT ''", "deleted": "INTEGER NOT NULL DEFAULT 0"}}
"""Columns that databases of version 0.1 and earlier lack. An image of no series may be of any."""

STUDY_STATES = ("receiving", "analysed", "rejected", "dead")
CASE_STATES = ("analysed", "delivering", "delivered", "review", "withheld", "rejected", "dead")

FINISHED = ("delivered", "withheld", "rejected")
"""States of cases whose objects need not be kept."""

SENT_LATE = "images arrived after this result was sent: it does not cover them"
REPLACED = "more images of the study came before it was sent: they are analysed together"


class Kept(str, Enum):
    """What became of an analysis."""

    NEW = "new"
    SAME = "same"
    REPLACED = "replaced"
    LATE = "late"
    STALE = "stale"


@dataclass(frozen=True)
class Study:
    """An input.

    Attributes:
        key: random; the only name that logs see.
        revision: number of images taken so far; an analysis counts only for the revision that it saw.
        heard: when the last image came, seconds since 1970.
        kept: whether the images are still in the spool.
    """

    key: str
    uid: str
    state: str
    reason: str
    revision: int
    attempts: int
    heard: float
    due: float
    kept: bool


@dataclass(frozen=True)
class Case:
    """A result.

    Attributes:
        version: digest of the model.
        fingerprint: digest of its objects' UIDs: equal for equal results.
        route, why: the decision and its reason; `reason`: why it is rejected or dead.
        score: None where there is none; higher is more uncertain.
        volume: class → {mean, sd, low, high} in mL, `total` among them; empty for a classification.
        marked: accepted, and drawn for an audit.
        late: see the module.
    """

    key: str
    study: str
    series: str
    model: str
    version: str
    fingerprint: str
    state: str
    reason: str
    route: str
    why: str
    score: float | None
    volume: Mapping[str, Mapping[str, float | None]]
    marked: bool
    late: bool
    verdict: str | None
    created: float


@dataclass(frozen=True)
class Result:
    """An analysis, ready to be kept: what `Case` says of it, its objects' UIDs in the order of sending, its record."""

    series: str
    model: str
    version: str
    fingerprint: str
    route: str
    why: str
    score: float | None
    volume: Mapping[str, Mapping[str, float | None]]
    marked: bool
    record: Mapping[str, Any]
    objects: tuple[str, ...]


@dataclass(frozen=True)
class Parcel:
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


@dataclass(frozen=True)
class Note:
    """A line that the audit log is to get. `start`: where in the log to look whether it is there already, bytes."""

    entry: str
    case: str
    kind: str
    body: Mapping[str, Any]
    start: int
    sequence: int | None


class Store:
    """The database; safe to share between threads, and between the gateway and the review page.

    Args:
        path: of the database file.
        patience: seconds; a waiting time further ahead means that the clock was set back, and counts as over.
    """

    def __init__(self, path: Path, patience: float = 3600.0) -> None:
        self._patience = patience
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._changes = 0
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30.0)
        self._db.row_factory = sqlite3.Row
        with _full():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._db.executescript(_SCHEMA)
        with self._transaction() as db:  # gateway and review page may be started together
            for table, columns in _ADDED.items():
                there = {row["name"] for row in db.execute(f"PRAGMA table_info({table})")}
                for name in columns.keys() - there:
                    db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {columns[name]}")
        path.chmod(0o600)
        self._foreign = self._data_version()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # Waiting for something to do

    @property
    def changes(self) -> int:
        """Grows with every transaction that changed something."""
        return self._changes

    def wait(self, seen: int, seconds: float) -> None:
        """Until `changes` differs from `seen`, for at most `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, max(0.0, seconds))

    def ring(self) -> None:
        """Wakes whoever waits."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def notice(self) -> None:
        """Wakes whoever waits where another process, as the review page, has changed the database."""
        version = self._data_version()
        if version != self._foreign:
            self._foreign = version
            self.ring()

    def _data_version(self) -> int:
        """Changes when another connection commits."""
        return int(self._rows("PRAGMA data_version")[0][0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _full():
            before = self._db.total_changes
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            changed = self._db.total_changes != before
        if changed:  # else whoever looks for work would wake itself, for ever
            self.ring()

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, _full():
            return self._db.execute(query, values).fetchall()

    # Studies

    def study_key(self, uid: str) -> str | None:
        """None: nothing of it came yet."""
        rows = self._rows("SELECT key FROM studies WHERE uid = ?", uid)
        return rows[0]["key"] if rows else None

    def study(self, key: str) -> Study:
        return _study(self._rows("SELECT * FROM studies WHERE key = ?", key)[0])

    def studies(self, state: str | None = None) -> list[Study]:
        return [_study(row) for row in self._rows("SELECT * FROM studies WHERE ?1 IS NULL OR state = ?1", state)]

    def known(self, study_uid: str) -> set[str]:
        """SOP Instance UIDs of a study: images that need not be taken again, and results that were made here."""
        rows = self._rows(
            "SELECT i.uid FROM instances i JOIN studies s ON s.key = i.study WHERE s.uid = ?1 AND i.deleted = 0"
            " UNION SELECT p.uid FROM parcels p JOIN cases c ON c.key = p.owner JOIN studies s ON s.key = c.study"
            " WHERE s.uid = ?1",
            study_uid,
        )
        return {row["uid"] for row in rows}

    def instances(self) -> list[tuple[str, str]]:
        """(study key, SOP Instance UID) of all images that lie in the spool."""
        rows = self._rows(
            "SELECT i.study, i.uid FROM instances i JOIN studies s ON s.key = i.study"
            " WHERE s.kept = 1 AND i.deleted = 0"
        )
        return [(row["study"], row["uid"]) for row in rows]

    def deleted(self, study: Study, series: str) -> int:
        """How many images of a series came once, were deleted, and have not come again."""
        query = "SELECT COUNT(*) AS n FROM instances WHERE study = ? AND series IN (?, '') AND deleted = 1"
        return int(self._rows(query, study.key, series)[0]["n"])

    def take(self, key: str, study_uid: str, series: str, uid: str, quiet: float) -> bool:
        """An image has come; its study waits for `quiet` seconds from now. False: it was here already.

        Args:
            key: a fresh one, used where the study is new.
            series: its Series Instance UID.
        """
        now = time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO studies (key, uid, state, heard, due) VALUES (?, ?, 'receiving', ?, ?)"
                " ON CONFLICT (uid) DO NOTHING",
                (key, study_uid, now, now + quiet),
            )
            study, kept = db.execute("SELECT key, kept FROM studies WHERE uid = ?", (study_uid,)).fetchone()
            if not kept:  # from now on what was deleted can be taken again
                db.execute("UPDATE instances SET deleted = 1 WHERE study = ?", (study,))
            taken = db.execute(
                "INSERT INTO instances (study, uid, series) VALUES (?, ?, ?)"
                " ON CONFLICT (study, uid) DO UPDATE SET series = excluded.series, deleted = 0 WHERE deleted = 1",
                (study, uid, series),
            )
            if not taken.rowcount:
                return False
            db.execute(
                "UPDATE studies SET state = 'receiving', reason = '', attempts = 0, revision = revision + 1,"
                " heard = ?, due = ?, kept = 1 WHERE key = ?",
                (now, now + quiet, study),
            )
        return True

    def settle(self, study_uid: str) -> None:
        """Its source says that the study is complete: no need to wait for quiet."""
        with self._transaction() as db:
            db.execute(
                "UPDATE studies SET due = 0 WHERE uid = ? AND state = 'receiving' AND attempts = 0 AND due > 0",
                (study_uid,),
            )

    def refuse(self, key: str, study_uid: str, reason: str) -> None:
        """It could not be taken whole, so it is not analysed; images that come later open it again.

        Args:
            key: a fresh one, used where the study is new.
        """
        now = time()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO studies (key, uid, state, reason, heard, due) VALUES (?1, ?2, 'rejected', ?3, ?4, ?4)"
                " ON CONFLICT (uid) DO UPDATE SET state = 'rejected', reason = ?3",
                (key, study_uid, reason, now),
            )
            _end_cases(db, db.execute("SELECT key FROM studies WHERE uid = ?", (study_uid,)).fetchone()["key"])

    def put_aside(self, key: str, reason: str) -> None:
        """A malformed object; its file lies aside under `key`."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO aside VALUES (?, ?, ?)", (key, reason, time()))

    def aside(self) -> dict[str, str]:
        """Key → reason."""
        return {row["key"]: row["reason"] for row in self._rows("SELECT key, reason FROM aside")}

    def forget_aside(self, before: float) -> list[str]:
        """Keys of malformed objects that were set aside before that time, and are forgotten now."""
        if not self._rows("SELECT 1 FROM aside WHERE at < ? LIMIT 1", before):
            return []
        with self._transaction() as db:
            rows = db.execute("DELETE FROM aside WHERE at < ? RETURNING key", (before,)).fetchall()
        return [row["key"] for row in rows]

    def next_study(self) -> tuple[Study | None, float]:
        """The one that is due longest; or None, and seconds until one will be (infinite: none waits)."""
        now = time()
        rows = self._rows("SELECT * FROM studies WHERE state = 'receiving' ORDER BY due LIMIT 1")
        if not rows:
            return None, float("inf")
        waits = rows[0]["due"] - now
        return (_study(rows[0]), 0.0) if waits <= 0 or waits > self._patience else (None, waits)

    def postpone(self, study: Study, seconds: float, counted: bool) -> None:
        """Tried in vain; again after `seconds`, unless new images set another time meanwhile."""
        with self._transaction() as db:
            db.execute(
                "UPDATE studies SET due = ?, attempts = attempts + ? WHERE key = ? AND revision = ?",
                (time() + seconds, int(counted), study.key, study.revision),
            )

    def end_study(self, study: Study, state: str, reason: str = "") -> bool:
        """`analysed`, `rejected` or `dead`; False where new images came meanwhile: it is `receiving` again.

        A study that ends without a result takes along what an earlier revision produced: what was not sent is
        rejected, what was sent is marked late.
        """
        with self._transaction() as db:
            done = db.execute(
                "UPDATE studies SET state = ?, reason = ? WHERE key = ? AND revision = ? AND state = 'receiving'",
                (state, reason, study.key, study.revision),
            ).rowcount
            if done and state != "analysed":
                _end_cases(db, study.key)
        return bool(done)

    def expired(self, before: float) -> list[Study]:
        """Those done with since `before` whose images still lie in the spool."""
        return [
            _study(row)
            for row in self._rows("SELECT * FROM studies WHERE kept = 1 AND state <> 'receiving' AND heard < ?", before)
        ]

    def forget_images(self, study: Study) -> bool:
        """Its images are about to be deleted; False where new ones came meanwhile."""
        with self._transaction() as db:
            return bool(
                db.execute(
                    "UPDATE studies SET kept = 0 WHERE key = ? AND revision = ? AND state <> 'receiving'",
                    (study.key, study.revision),
                ).rowcount
            )

    # Cases

    def keep(self, study: Study, case: str, result: Result, log_end: int) -> tuple[Kept, str | None]:
        """Takes a result in; see the module for late ones. Returns what was done, and a case key that it replaced.

        A result of fewer images than there are by now is not kept (`STALE`).

        Args:
            case: a fresh key, under which the objects already lie in the outbox.
            log_end: size of the audit log in bytes.
        """
        with self._transaction() as db:
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
            if old is not None and _anything_sent(db, old["key"]):
                _mark_late(db, old["key"])
                return Kept.LATE, None
            if old is not None:
                _withdraw(db, old["key"])
            db.execute(
                "INSERT INTO cases (key, study, series, model, version, fingerprint, state, route, why, score, volume,"
                " marked, created) VALUES (?, ?, ?, ?, ?, ?, 'analysed', ?, ?, ?, ?, ?, ?)",
                (case, study.key, result.series, result.model, result.version, result.fingerprint, result.route,
                 result.why, result.score, json.dumps(result.volume), int(result.marked), time()),
            )  # fmt: skip
            db.executemany(
                "INSERT INTO parcels (owner, number, uid, state) VALUES (?, ?, ?, 'waiting')",
                [(case, number, uid) for number, uid in enumerate(result.objects, start=1)],
            )
            _note(db, case, "decision", dict(result.record), log_end)
        return (Kept.NEW, None) if old is None else (Kept.REPLACED, old["key"])

    def case(self, key: str) -> Case | None:
        rows = self._rows("SELECT * FROM cases WHERE key = ?", key)
        return _case(rows[0]) if rows else None

    def cases(self, state: str | None = None) -> list[Case]:
        return [_case(row) for row in self._rows("SELECT * FROM cases WHERE ?1 IS NULL OR state = ?1", state)]

    def worklist(self) -> list[Case]:
        """What waits for a person, most uncertain first; what has no score comes before all that have one."""
        rows = self._rows(
            "SELECT * FROM cases WHERE verdict IS NULL AND state <> 'rejected'"
            " AND (state = 'review' OR route <> 'accept' OR marked = 1 OR late = 1 OR state = 'dead')"
            " ORDER BY score IS NOT NULL, score DESC, created"
        )
        return [_case(row) for row in rows]

    def to_log(self) -> list[Note]:
        """What the audit log does not hold yet, oldest first."""
        rows = self._rows("SELECT * FROM journal WHERE written = 0 ORDER BY rowid")
        return [_row_note(row) for row in rows]

    def logged(self, note: Note, sequence: int) -> None:
        """The audit log holds the line."""
        with self._transaction() as db:
            db.execute("UPDATE journal SET sequence = ?, written = 1 WHERE entry = ?", (sequence, note.entry))

    def decision(self, case: str) -> int | None:
        """Line of the audit log that holds the case's decision; None: not written yet."""
        rows = self._rows("SELECT sequence FROM journal WHERE owner = ? AND kind = 'decision'", case)
        return rows[0]["sequence"] if rows else None

    def dispatch(self, handling: Mapping[str, str]) -> list[Case]:
        """Sends logged decisions on their way: to delivery or to review. Returns what was moved.

        Args:
            handling: route → "send" or "hold".
        """
        moved = []
        logged = (
            "SELECT c.* FROM cases c WHERE c.state = 'analysed' AND NOT EXISTS"
            " (SELECT 1 FROM journal j WHERE j.owner = c.key AND j.written = 0)"
        )
        if not self._rows(logged):
            return []
        with self._transaction() as db:
            for row in db.execute(logged).fetchall():
                state = "delivering" if handling[row["route"]] == "send" else "review"
                db.execute("UPDATE cases SET state = ? WHERE key = ?", (state, row["key"]))
                moved.append(_case({**dict(row), "state": state}))
        return moved

    def judge(self, case: str, fingerprint: str, verdict: str, by: str, log_end: int) -> bool:
        """An expert's verdict: noted for the audit log, and what is held is released or withheld.

        False: there is no such open case, or not this result any more; nothing was changed.
        """
        with self._transaction() as db:
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
            _note(db, case, "verdict", body, log_end)
            state = row["state"]
            if verdict == "accept":
                state = "delivering" if state in ("analysed", "review") else state
            elif state != "delivered":
                state = "withheld"  # also where a part has gone: what an expert calls wrong goes no further
            db.execute("UPDATE cases SET verdict = ?, state = ? WHERE key = ?", (verdict, state, case))
        return True

    # Delivery

    def next_parcel(self) -> tuple[Parcel | None, float]:
        """The next object to send; or None, and seconds until there will be one (infinite: none waits).

        Objects of a case go in order, so that a report never arrives without what it reports on; nothing goes before
        the audit log holds the decision, and the verdict that released it.
        """
        now = time()
        rows = self._rows(
            "SELECT p.* FROM parcels p JOIN cases c ON c.key = p.owner"
            " WHERE c.state = 'delivering' AND p.state = 'waiting' AND p.number ="
            " (SELECT MIN(number) FROM parcels q WHERE q.owner = p.owner AND q.state = 'waiting')"
            " AND NOT EXISTS (SELECT 1 FROM journal j WHERE j.owner = c.key AND j.written = 0)"
            " ORDER BY p.due, c.created LIMIT 1"
        )
        if not rows:
            return None, float("inf")
        row = rows[0]
        waits = row["due"] - now
        if 0 < waits <= self._patience:
            return None, waits
        return Parcel(row["owner"], row["number"], row["uid"], row["attempts"], row["away"]), 0.0

    def sent(self, parcel: Parcel) -> bool:
        """It has arrived. True: the case is complete now."""
        with self._transaction() as db:
            db.execute(
                "UPDATE parcels SET state = 'sent', away = NULL WHERE owner = ? AND number = ?",
                (parcel.case, parcel.number),
            )
            left = db.execute(
                "SELECT COUNT(*) AS n FROM parcels WHERE owner = ? AND state <> 'sent'", (parcel.case,)
            ).fetchone()["n"]
            if not left:
                db.execute(
                    "UPDATE cases SET state = 'delivered' WHERE key = ? AND state = 'delivering'", (parcel.case,)
                )
        return not left

    def refused(self, parcel: Parcel, seconds: float) -> None:
        """A destination that is there does not want it; again after `seconds`."""
        with self._transaction() as db:
            db.execute(
                "UPDATE parcels SET attempts = attempts + 1, due = ?, away = NULL WHERE owner = ? AND number = ?",
                (time() + seconds, parcel.case, parcel.number),
            )

    def missed(self, parcel: Parcel, seconds: float, everything: bool) -> None:
        """Its destination could not take it, which counts against nothing; again after `seconds`.

        Args:
            everything: nobody was there, so that all that is on its way waits as long.
        """
        now = time()
        with self._transaction() as db:
            db.execute(
                "UPDATE parcels SET due = MAX(due, ?1), away = COALESCE(away, ?2) WHERE state = 'waiting' AND"
                " CASE WHEN ?3 THEN owner IN (SELECT key FROM cases WHERE state = 'delivering')"
                " ELSE owner = ?4 AND number = ?5 END",
                (now + seconds, now, int(everything), parcel.case, parcel.number),
            )

    def give_up(self, parcel: Parcel, reason: str) -> None:
        """A dead letter: the object and its case stay where they are until somebody says `revive`."""
        with self._transaction() as db:
            db.execute("UPDATE parcels SET state = 'dead' WHERE owner = ? AND number = ?", (parcel.case, parcel.number))
            db.execute(
                "UPDATE cases SET state = 'dead', reason = ? WHERE key = ? AND state = 'delivering'",
                (reason, parcel.case),
            )

    def revive(self) -> int:
        """All dead letters are sent again, all dead studies analysed again; how many there were."""
        with self._transaction() as db:
            db.execute("UPDATE parcels SET state = 'waiting', attempts = 0, due = 0, away = NULL WHERE state = 'dead'")
            count = db.execute("UPDATE cases SET state = 'delivering', reason = '' WHERE state = 'dead'").rowcount
            count += db.execute(
                "UPDATE studies SET state = 'receiving', reason = '', attempts = 0, due = 0"
                " WHERE state = 'dead' AND kept = 1"
            ).rowcount
        return count

    # Everything else

    def cursor(self, source: str) -> str | None:
        """Where a source was read up to."""
        rows = self._rows("SELECT position FROM cursors WHERE source = ?", source)
        return rows[0]["position"] if rows else None

    def remember(self, source: str, position: str) -> None:
        with self._transaction() as db:
            db.execute(
                "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET position = excluded.position",
                (source, position),
            )

    def counts(self) -> dict[str, dict[str, int]]:
        """`studies`, `cases` → state → how many; every state is there."""
        told = {"studies": dict.fromkeys(STUDY_STATES, 0), "cases": dict.fromkeys(CASE_STATES, 0)}
        for table, states in told.items():
            for row in self._rows(f"SELECT state, COUNT(*) AS n FROM {table} GROUP BY state"):  # noqa: S608
                states[row["state"]] = row["n"]
        return told

    def oldest(self) -> float:
        """Seconds since the last image of the study that has waited longest; 0: none waits."""
        rows = self._rows("SELECT MIN(heard) AS first FROM studies WHERE state = 'receiving'")
        return max(0.0, time() - rows[0]["first"]) if rows[0]["first"] is not None else 0.0


@contextmanager
def _full() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        # FULL, and the I/O errors that a full disk causes in the write-ahead log.
        if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or "full" in str(error) or "disk I/O" in str(error):
            raise OutOfRoom(
                "the disk is full or cannot be written; free some space, and the gateway goes on by itself"
            ) from None
        raise


def _anything_sent(db: sqlite3.Connection, case: str) -> bool:
    """Also what may have been sent: an attempt may have arrived although no answer came back."""
    row = db.execute("SELECT state FROM cases WHERE key = ?", (case,)).fetchone()
    if row["state"] in ("delivering", "delivered"):
        return True
    sent = db.execute(
        "SELECT 1 FROM parcels WHERE owner = ? AND (state = 'sent' OR attempts > 0 OR away IS NOT NULL)", (case,)
    )
    return sent.fetchone() is not None


def _end_cases(db: sqlite3.Connection, study: str) -> None:
    """More came of the study, and nothing can be said about it all: unsent results go, sent ones call a person."""
    for row in db.execute("SELECT key FROM cases WHERE study = ? AND state <> 'rejected'", (study,)).fetchall():
        if _anything_sent(db, row["key"]):
            _mark_late(db, row["key"])
        else:
            _withdraw(db, row["key"])


def _withdraw(db: sqlite3.Connection, case: str) -> None:
    """Nothing of it was sent, and nothing will be. The decision stays in the audit log."""
    db.execute("DELETE FROM parcels WHERE owner = ?", (case,))
    db.execute("UPDATE cases SET state = 'rejected', reason = ? WHERE key = ?", (REPLACED, case))


def _mark_late(db: sqlite3.Connection, case: str) -> None:
    db.execute("UPDATE cases SET late = 1, reason = ?, verdict = NULL WHERE key = ?", (SENT_LATE, case))


def _note(db: sqlite3.Connection, case: str, kind: str, body: Mapping[str, Any], start: int) -> None:
    entry = secrets.token_hex(8)
    db.execute(
        "INSERT INTO journal (entry, owner, kind, body, start) VALUES (?, ?, ?, ?, ?)",
        (entry, case, kind, json.dumps({**body, "case": case, "entry": entry}), start),
    )


def _study(row: Mapping[str, Any] | sqlite3.Row) -> Study:
    values = dict(row)
    return Study(**{**values, "kept": bool(values["kept"])})


def _case(row: Mapping[str, Any] | sqlite3.Row) -> Case:
    values = dict(row)
    return Case(
        **{
            **values,
            "volume": json.loads(values["volume"]),
            "marked": bool(values["marked"]),
            "late": bool(values["late"]),
        }
    )


def _row_note(row: sqlite3.Row) -> Note:
    return Note(row["entry"], row["owner"], row["kind"], json.loads(row["body"]), row["start"], row["sequence"])


def fingerprint_of(uids: Sequence[str]) -> str:
    """Of the objects' UIDs, which follow from images, model and answer."""
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()
