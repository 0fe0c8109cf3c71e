"""What an administrator makes as root belongs to the service, which has its own user and has to go on with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from equipoise_clinic.audit.chain import Kind, append
from equipoise_clinic.gateway.store import Store
from equipoise_clinic.ownership import give_to_owner
from equipoise_clinic.review.identity import Reviewers

SERVICE = 1000


@pytest.fixture
def given(tmp_path, monkeypatch) -> dict[str, int]:
    """File → user that root gave it to, in a folder of the service's."""
    found: dict[str, int] = {}
    stat = Path.stat

    def owned(self, **options):
        values = list(stat(self, **options))
        values[4] = SERVICE if self == tmp_path else found.get(str(self), 0)
        return os.stat_result(values)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        os, "fchown", lambda fd, user, _: found.update({str(Path(f"/proc/self/fd/{fd}").readlink()): user})
    )
    monkeypatch.setattr(Path, "stat", owned)
    return found


def test_a_list_of_reviewers_can_be_read_by_the_service(tmp_path, given):
    """Also where an earlier one was root's."""
    (tmp_path / "reviewers.json").write_text("{}")
    Reviewers(tmp_path / "reviewers.json").add("dr.who")
    (user,) = given.values()
    assert user == SERVICE


def test_a_new_log_and_its_lock_can_be_written_by_the_service(tmp_path, given):
    log = tmp_path / "decisions.jsonl"
    append(log, Kind.DECISION, {})
    assert given == {str(log): SERVICE, str(log.with_name("decisions.jsonl.lock")): SERVICE}


def test_a_new_database_can_be_written_by_the_service(tmp_path, given):
    Store(tmp_path / "gateway.db").close()
    assert given == {str(tmp_path / "gateway.db"): SERVICE}


def test_nobody_else_gives_anything_away(tmp_path, given, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with (tmp_path / "file").open("w") as file:
        give_to_owner(file.fileno(), tmp_path)
    assert given == {}
