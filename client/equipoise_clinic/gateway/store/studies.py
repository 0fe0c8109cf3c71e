"""Studies as they come in, the images that are there of each, and objects that were set aside."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from time import time

from .database import Database
from .late_images import end_cases

STATES = ("receiving", "analysed", "rejected", "dead")


@dataclass(frozen=True)
class Study:
    """An input.

    Attributes:
        key: random; the only name that logs see.
        revision: number of images that came so far, damaged ones among them; an analysis counts only for the revision
            that it saw.
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


class Studies:
    """Inputs, and what happens to each."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def key_of(self, uid: str) -> str | None:
        """None: nothing of it came yet."""
        row = self._database.row("SELECT key FROM studies WHERE uid = ?", uid)
        return row["key"] if row else None

    def get(self, key: str) -> Study:
        return _study(self._database.rows("SELECT * FROM studies WHERE key = ?", key)[0])

    def all(self, state: str | None = None) -> list[Study]:
        rows = self._database.rows("SELECT * FROM studies WHERE ?1 IS NULL OR state = ?1", state)
        return [_study(row) for row in rows]

    def known(self, study_uid: str) -> dict[str, str]:
        """SOP Instance UID → digest of the images of a study that are here whole, and of results that were made here.

        The digest is "" for a result, and for an image that a version took which noted none.
        """
        rows = self._database.rows(
            "SELECT i.uid, i.digest FROM instances i JOIN studies s ON s.key = i.study"
            " WHERE s.uid = ?1 AND i.deleted = 0 AND i.damaged = 0"
            " UNION SELECT p.uid, '' FROM outbox p JOIN cases c ON c.key = p.owner JOIN studies s ON s.key = c.study"
            " WHERE s.uid = ?1",
            study_uid,
        )
        return {row["uid"]: row["digest"] for row in rows}

    def set_aside(self, study_uid: str) -> set[str]:
        """SOP Instance UIDs of the images of a study that came damaged or could not be taken."""
        query = "SELECT i.uid FROM instances i JOIN studies s ON s.key = i.study WHERE s.uid = ? AND i.damaged = 1"
        return {row["uid"] for row in self._database.rows(query, study_uid)}

    def instances(self, study: str | None = None) -> list[tuple[str, str, str]]:
        """(study key, SOP Instance UID, digest) of all images that lie in the spool, or of those of one study."""
        rows = self._database.rows(
            "SELECT i.study, i.uid, i.digest FROM instances i JOIN studies s ON s.key = i.study"
            " WHERE s.kept = 1 AND i.deleted = 0 AND i.damaged = 0 AND (?1 IS NULL OR i.study = ?1)",
            study,
        )
        return [(row["study"], row["uid"], row["digest"]) for row in rows]

    def deleted(self, study: Study, series: str) -> int:
        """How many images of a series came once, were deleted, and have not come again."""
        query = "SELECT COUNT(*) AS n FROM instances WHERE study = ? AND series IN (?, '') AND deleted = 1"
        return int(self._database.rows(query, study.key, series)[0]["n"])

    def missing(self, study: Study, series: str) -> tuple[str, ...]:
        """Why a series is known to be incomplete: images of it that came damaged, or that its archive does not give.

        Args:
            series: its Series Instance UID; "" for any of the study.
        """
        query = (
            "SELECT COUNT(*) AS n FROM instances WHERE study = ?1 AND (?2 = '' OR series IN (?2, '')) AND damaged = 1"
        )
        damaged = self._database.rows(query, study.key, series)[0]["n"]
        absent = self._database.row("SELECT count FROM absent WHERE study = ? AND series = ?", study.uid, series)
        reasons = [f"{damaged} of its images came damaged or could not be taken"] if damaged else []
        if absent and absent["count"]:
            reasons.append(f"its archive has {absent['count']} images more than it has given so far")
        return tuple(reasons)

    def absent(self, study_uid: str, series: str, count: int) -> None:
        """How many images more an archive says that it has of a series than it has given so far."""
        row = self._database.row("SELECT count FROM absent WHERE study = ? AND series = ?", study_uid, series)
        if (row["count"] if row else 0) != count:
            statement = (
                "INSERT INTO absent VALUES (?, ?, ?) ON CONFLICT (study, series) DO UPDATE SET count = excluded.count"
            )
            self._database.execute(statement, study_uid, series, count)

    def take(self, key: str, study_uid: str, series: str, uid: str, quiet: float, digest: str = "") -> bool:
        """An image has come; its study waits for `quiet` seconds from now. False: it was here already, the same.

        Args:
            key: a fresh one, used where the study is new.
            series: its Series Instance UID.
            digest: of its content. Another one under a UID that is known takes the place of the image before.
        """
        with self._database.transaction() as db:
            study = _opened(db, key, study_uid, quiet)
            taken = db.execute(
                "INSERT INTO instances (study, uid, series, digest) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (study, uid) DO UPDATE SET series = excluded.series, digest = excluded.digest,"
                " deleted = 0, damaged = 0 WHERE deleted = 1 OR damaged = 1 OR digest <> excluded.digest",
                (study, uid, series, digest),
            )
            if taken.rowcount:
                _heard(db, study, quiet)
        return bool(taken.rowcount)

    def damaged(self, key: str, study_uid: str, series: str, uid: str, quiet: float) -> bool:
        """An image came that cannot be used or was refused: its series is incomplete until a good one comes.

        False: that is known, or a good one is here.

        Args:
            key: a fresh one, used where the study is new.
            series: its Series Instance UID, or "" where it states none: then it may be of any.
            uid: its SOP Instance UID, or another name where it states none.
        """
        with self._database.transaction() as db:
            study = _opened(db, key, study_uid, quiet)
            noted = db.execute(
                "INSERT INTO instances (study, uid, series, damaged) VALUES (?, ?, ?, 1)"
                " ON CONFLICT (study, uid) DO NOTHING",
                (study, uid, series),
            )
            if noted.rowcount:
                _heard(db, study, quiet)
        return bool(noted.rowcount)

    def settle(self, study_uid: str) -> None:
        """Its source says that the study is complete: no need to wait for quiet."""
        statement = "UPDATE studies SET due = 0 WHERE uid = ? AND state = 'receiving' AND attempts = 0 AND due > 0"
        self._database.execute(statement, study_uid)

    def refuse(self, key: str, study_uid: str, reason: str) -> None:
        """It could not be taken whole, so it is not analysed; images that come later open it again.

        Args:
            key: a fresh one, used where the study is new.
        """
        now = time()
        with self._database.transaction() as db:
            db.execute(
                "INSERT INTO studies (key, uid, state, reason, heard, due) VALUES (?1, ?2, 'rejected', ?3, ?4, ?4)"
                " ON CONFLICT (uid) DO UPDATE SET state = 'rejected', reason = ?3",
                (key, study_uid, reason, now),
            )
            end_cases(db, db.execute("SELECT key FROM studies WHERE uid = ?", (study_uid,)).fetchone()["key"])

    def put_aside(self, key: str, reason: str) -> None:
        """A malformed object; its file lies aside under `key`."""
        self._database.execute("INSERT OR IGNORE INTO aside VALUES (?, ?, ?)", key, reason, time())

    def aside(self) -> dict[str, str]:
        """Key → reason."""
        return {row["key"]: row["reason"] for row in self._database.rows("SELECT key, reason FROM aside")}

    def forget_aside(self, before: float) -> list[str]:
        """Keys of malformed objects that were set aside before that time, and are forgotten now."""
        if not self._database.rows("SELECT 1 FROM aside WHERE at < ? LIMIT 1", before):
            return []
        with self._database.transaction() as db:
            rows = db.execute("DELETE FROM aside WHERE at < ? RETURNING key", (before,)).fetchall()
        return [row["key"] for row in rows]

    def next(self) -> tuple[Study | None, float]:
        """The one that is due longest; or None, and seconds until one will be (infinite: none waits)."""
        row = self._database.row("SELECT * FROM studies WHERE state = 'receiving' ORDER BY due LIMIT 1")
        if row is None:
            return None, float("inf")
        waits = row["due"] - time()
        return (_study(row), 0.0) if waits <= 0 or waits > self._database.patience else (None, waits)

    def postpone(self, study: Study, seconds: float, counted: bool) -> None:
        """Tried in vain; again after `seconds`, unless new images set another time meanwhile."""
        statement = "UPDATE studies SET due = ?, attempts = attempts + ? WHERE key = ? AND revision = ?"
        self._database.execute(statement, time() + seconds, int(counted), study.key, study.revision)

    def end(self, study: Study, state: str, reason: str = "", refused: Collection[str] = ()) -> bool:
        """`analysed`, `rejected` or `dead`; False where new images came meanwhile: it is `receiving` again.

        A study that ends without a result takes along what an earlier revision produced: what was not sent is
        rejected, what was sent is marked late. Likewise the results of `refused`, models whose series was refused this
        time, and all that this revision did not give again: their series is gone, or fits another model by now.
        """
        with self._database.transaction() as db:
            done = db.execute(
                "UPDATE studies SET state = ?, reason = ? WHERE key = ? AND revision = ? AND state = 'receiving'",
                (state, reason, study.key, study.revision),
            ).rowcount
            if done:
                end_cases(db, study.key, refused if state == "analysed" else None)
        return bool(done)

    def expired(self, before: float, given_up: float) -> list[Study]:
        """Those done with whose images still lie in the spool though the last came before that time.

        Args:
            given_up: the same of dead ones, which need their images to be tried again.
        """
        query = (
            "SELECT * FROM studies WHERE kept = 1 AND state <> 'receiving'"
            " AND heard < CASE state WHEN 'dead' THEN ? ELSE ? END"
        )
        return [_study(row) for row in self._database.rows(query, given_up, before)]

    def forget_images(self, study: Study) -> bool:
        """Its images are about to be deleted; False where new ones came meanwhile."""
        statement = "UPDATE studies SET kept = 0 WHERE key = ? AND revision = ? AND state <> 'receiving'"
        return bool(self._database.execute(statement, study.key, study.revision))

    def oldest(self) -> float:
        """Seconds since the last image of the study that has waited longest; 0: none waits."""
        rows = self._database.rows("SELECT MIN(heard) AS first FROM studies WHERE state = 'receiving'")
        return max(0.0, time() - rows[0]["first"]) if rows[0]["first"] is not None else 0.0


def _opened(db: sqlite3.Connection, key: str, uid: str, quiet: float) -> str:
    """Key of the study, which is there now; what was deleted of it can be taken again."""
    now = time()
    statement = "INSERT INTO studies (key, uid, state, heard, due) VALUES (?, ?, 'receiving', ?, ?)"
    db.execute(f"{statement} ON CONFLICT (uid) DO NOTHING", (key, uid, now, now + quiet))
    study, kept = db.execute("SELECT key, kept FROM studies WHERE uid = ?", (uid,)).fetchone()
    if not kept:
        db.execute("UPDATE instances SET deleted = 1 WHERE study = ? AND damaged = 0", (study,))
    return str(study)


def _heard(db: sqlite3.Connection, study: str, quiet: float) -> None:
    """Something new came of it: it is analysed again, after a quiet time."""
    now = time()
    db.execute(
        "UPDATE studies SET state = 'receiving', reason = '', attempts = 0, revision = revision + 1,"
        " heard = ?, due = ?, kept = 1 WHERE key = ?",
        (now, now + quiet, study),
    )


def _study(row: sqlite3.Row) -> Study:
    values = dict(row)
    return Study(**{**values, "kept": bool(values["kept"])})
