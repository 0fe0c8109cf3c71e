"""Databases of earlier versions are opened, brought up to date, and lose nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from equipoise_client.errors import EquipoiseError
from equipoise_clinic.gateway.store import Store
from equipoise_clinic.gateway.store.schema import MIGRATIONS

EARLIER = Path(__file__).with_name("gateway_0_2.sql")
"""Of the last version that did not number its migrations: a result that is held, one that was sent, an object aside."""


@pytest.fixture(params=["0.2", "0.1"])
def earlier(request, tmp_path):
    """A database file; that of version 0.1 lacks two columns."""
    path = tmp_path / "gateway.db"
    db = sqlite3.connect(path)
    db.executescript(EARLIER.read_text())
    if request.param == "0.1":
        db.execute("ALTER TABLE instances DROP COLUMN series")
        db.execute("ALTER TABLE instances DROP COLUMN deleted")
    db.commit()
    db.close()
    return path


def layout(path: Path) -> tuple[int, list[tuple[str, str, str, int]]]:
    """`PRAGMA user_version`, and every column of every table."""
    db = sqlite3.connect(path)
    try:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = [
            (table, *row[1:4]) for table in sorted(tables) for row in sorted(db.execute(f"PRAGMA table_info({table})"))
        ]
        return db.execute("PRAGMA user_version").fetchone()[0], sorted(columns)
    finally:
        db.close()


def test_an_earlier_database_becomes_what_a_new_one_is(earlier, tmp_path):
    Store(earlier).close()
    Store(tmp_path / "new.db").close()
    assert layout(earlier) == layout(tmp_path / "new.db")
    assert layout(earlier)[0] == len(MIGRATIONS)


def test_an_earlier_database_loses_nothing(earlier):
    store = Store(earlier)
    try:
        assert {case.key[0]: case.state for case in store.cases.all()} == {"c": "review", "d": "delivered"}
        assert [case.key for case in store.cases.worklist()] == ["c" * 16]
        assert sorted(each.revision for each in store.studies.all()) == [1, 2]
        assert len(store.studies.instances()) == 3 and len(store.studies.aside()) == 1
        assert store.journal.pending() == [] and store.journal.decision("d" * 16) == 2
        assert store.cursor("orthanc http://127.0.0.1:8042") == "17"
        (case,) = store.cases.worklist()
        assert store.cases.judge(case.key, case.fingerprint, "accept", "dr.who", 0)
    finally:
        store.close()


def test_a_database_of_a_later_version_is_refused_and_left_alone(tmp_path):
    """What an older program does not know of it would be lost."""
    path = tmp_path / "gateway.db"
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(EquipoiseError, match="install the version that wrote it"):
        Store(path)
    assert layout(path)[0] == len(MIGRATIONS) + 1
