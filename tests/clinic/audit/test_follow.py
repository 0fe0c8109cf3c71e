"""A log is followed as it grows: each line once, what was read is not read again, damage is noticed."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from equipoise_clinic.audit import AuditError, Kind, append, redact
from equipoise_clinic.audit.follow import Follower
from equipoise_clinic.audit.segments import numbers, segment

START = datetime(2025, 1, 1, tzinfo=timezone.utc)
SMALL = 1000
"""Bytes of a file: three lines."""


@pytest.fixture
def log(tmp_path):
    return tmp_path / "decisions.jsonl"


def write(log: Path, count: int, first: int = 1, body: str = "") -> None:
    for day in range(first, first + count):
        append(log, Kind.DECISION, {"day": day, "more": body}, START + timedelta(days=day), SMALL + len(body))


def new(follower: Follower) -> list[int]:
    return [entry.sequence for entry in follower.new()]


def test_every_line_comes_once_across_files(log):
    follower = Follower(log)
    assert new(follower) == []
    write(log, 2)
    assert new(follower) == [1, 2]
    write(log, 8, first=3)
    assert new(follower) == list(range(3, 11)) and len(numbers(log)) > 2
    assert new(follower) == []


def test_a_line_that_was_not_taken_comes_again(log):
    write(log, 3)
    follower = Follower(log)
    for entry in follower.new():
        if entry.sequence == 2:
            break
    assert new(follower) == [2, 3]


def read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_what_was_read_is_not_read_again(log):
    """Bytes read for one more line of a kilobyte, after many of a hundred."""
    write(log, 60, body="x" * 100_000)
    follower = Follower(log)
    before = read_bytes()
    assert len(new(follower)) == 60
    assert read_bytes() - before > 6_000_000
    before = read_bytes()
    assert new(follower) == []
    append(log, Kind.DECISION, {}, segment_bytes=SMALL + 100_000)
    assert new(follower) == [61]
    assert read_bytes() - before < 1_000_000


def test_a_deletion_moves_lines_and_none_comes_twice(log):
    """In files that are finished, and in the one that is being written."""
    write(log, 8)
    follower = Follower(log)
    assert new(follower) == list(range(1, 9))
    for days in (4, 9):
        sequence = redact(log, START + timedelta(days=days), "retention", segment_bytes=SMALL).sequence
        assert new(follower) == [sequence]
    write(log, 2, first=20)
    assert new(follower) == [11, 12]


@pytest.mark.parametrize("number", [1, 2])
def test_damage_in_a_finished_file_is_noticed_until_it_is_whole(log, number):
    write(log, 8)
    follower = Follower(log)
    new(follower)
    file = segment(log, number)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b'"day":', b'"dax":', 1))
    for _ in range(2):
        with pytest.raises(AuditError, match="the line was changed"):
            new(follower)
    file.unlink()
    with pytest.raises(AuditError, match="is missing"):
        new(follower)
    file.write_bytes(whole)
    assert new(follower) == []


def test_damage_in_what_was_read_of_the_last_file_is_noticed_at_the_next_look(log):
    """Also a change that leaves the file as long as it was, and its last line as it was."""
    write(log, 1)
    follower = Follower(log)
    assert new(follower) == [1]
    write(log, 1, first=2)
    assert new(follower) == [2]
    log.write_bytes(log.read_bytes().replace(b'"day":1', b'"day":9'))
    with pytest.raises(AuditError, match="line 1: the line was changed"):
        new(follower)


def test_lines_that_were_added_to_a_finished_file_are_noticed(log):
    write(log, 8)
    follower = Follower(log)
    new(follower)
    with log.open("ab") as file:
        file.write(log.read_bytes().splitlines(keepends=True)[-1])
    with pytest.raises(AuditError, match="lines were added after line 3"):
        new(follower)


@pytest.mark.parametrize("left", [0, 1])
def test_lines_that_were_cut_off_are_noticed(log, left):
    """`verify` without an anchor cannot know of them."""
    write(log, 3)
    follower = Follower(log)
    new(follower)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:left]))
    with pytest.raises(AuditError, match="lines are missing that were there before"):
        new(follower)


def test_a_line_without_its_end_is_damage_once_nobody_writes(log):
    write(log, 2)
    follower = Follower(log)
    whole = log.read_bytes()
    log.write_bytes(whole[:-10])
    with pytest.raises(AuditError, match="line 2: "):
        new(follower)
    log.write_bytes(whole)
    assert new(follower) == [2]


def test_a_log_without_its_first_file_is_damaged(log):
    write(log, 8)
    log.unlink()
    with pytest.raises(AuditError, match="is missing"):
        new(Follower(log))
