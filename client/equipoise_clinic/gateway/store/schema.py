"""The tables, and how a database of an earlier version gets them.

`PRAGMA user_version` is the number of migrations that a database has had. A change to the tables is one more function
at the end of `MIGRATIONS`; those that are there never change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from equipoise_client.errors import EquipoiseError

_TABLES = """
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
) STRICT
"""

_ADDED = {"series": "TEXT NOT NULL DEFAULT ''", "deleted": "INTEGER NOT NULL DEFAULT 0"}
"""Columns of `instances` that version 0.1 did not have. An image of no series may be of any."""


def _first(db: sqlite3.Connection) -> None:
    """A new database; or one from before the migrations were numbered, which may be of version 0.1."""
    for statement in _TABLES.split(";"):
        db.execute(statement)
    there = {row[1] for row in db.execute("PRAGMA table_info(instances)")}
    for column in _ADDED.keys() - there:
        db.execute(f"ALTER TABLE instances ADD COLUMN {column} {_ADDED[column]}")


def _second(db: sqlite3.Connection) -> None:
    """One name for one thing: what lies in the outbox is an outbox item."""
    db.execute("ALTER TABLE parcels RENAME TO outbox")


def _third(db: sqlite3.Connection) -> None:
    """Images by content, damaged ones, what archives say that they hold; results that replace a sent one; kinds.

    A digest, a kind or a series that was not noted before is empty.
    """
    for statement in (
        "ALTER TABLE instances ADD COLUMN digest TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE instances ADD COLUMN damaged INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE absent (study TEXT NOT NULL, series TEXT NOT NULL, count INTEGER NOT NULL,"
        " PRIMARY KEY (study, series)) STRICT, WITHOUT ROWID",
        "ALTER TABLE cases ADD COLUMN replaces TEXT NOT NULL DEFAULT ''",
        "DROP INDEX one_result",
        "CREATE UNIQUE INDEX one_result ON cases (study, series, model, version)"
        " WHERE state <> 'rejected' AND late = 0",
        "CREATE TABLE sendings (owner TEXT NOT NULL REFERENCES cases (key), number INTEGER NOT NULL,"
        " uid TEXT NOT NULL UNIQUE, state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'dead', 'unwanted')),"
        " attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, away REAL,"
        " sop_class TEXT NOT NULL DEFAULT '', series TEXT NOT NULL DEFAULT '',"
        " PRIMARY KEY (owner, number)) STRICT, WITHOUT ROWID",
        "INSERT INTO sendings (owner, number, uid, state, attempts, due, away)"
        " SELECT owner, number, uid, state, attempts, due, away FROM outbox",
        "DROP TABLE outbox",
        "ALTER TABLE sendings RENAME TO outbox",
        "CREATE TABLE refusals (sop_class TEXT PRIMARY KEY, reason TEXT NOT NULL, objects INTEGER NOT NULL,"
        " since REAL NOT NULL) STRICT",
    ):
        db.execute(statement)


def _fourth(db: sqlite3.Connection) -> None:
    """Which revision of its study a result is of; 0, where that was not noted, is an earlier one than any."""
    db.execute("ALTER TABLE cases ADD COLUMN revision INTEGER NOT NULL DEFAULT 0")


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first, _second, _third, _fourth)


def migrate(db: sqlite3.Connection) -> None:
    """Brings a database up to date, within the caller's transaction. Raises EquipoiseError for one of the future."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > len(MIGRATIONS):
        raise EquipoiseError(
            f"the gateway's database has layout {version}, and this version of equipoise knows {len(MIGRATIONS)} at "
            "most: install the version that wrote it, or a later one"
        )
    for migration in MIGRATIONS[version:]:
        migration(db)
    if version < len(MIGRATIONS):
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
