"""A log in several files: one chain, whatever happens at the seams, and no read of what is long written."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from equipoise_clinic.audit import AuditError, Kind, append, end, entries, head, lines_since, redact, verify
from equipoise_clinic.audit.entry import Entry
from equipoise_clinic.audit.segments import SEGMENT_BYTES, numbers, segment

START = datetime(2025, 1, 1, tzinfo=timezone.utc)
SMALL = 1000
"""Bytes of a file: three lines."""


def write(log: Path, count: int, first: int = 0) -> None:
    for day in range(first, first + count):
        append(log, Kind.DECISION, {"route": "accept", "day": day}, START + timedelta(days=day), SMALL)


@pytest.fixture
def log(tmp_path):
    """Ten decisions, a day apart, in four files."""
    path = tmp_path / "decisions.jsonl"
    write(path, 10)
    assert numbers(path) == [1, 2, 3, 4]
    return path


def faults(log: Path, anchor=None) -> list[tuple[int, int]]:
    """(line, file) of each."""
    return [(fault.line, fault.segment) for fault in verify(log, anchor)]


def days(log: Path) -> list[int]:
    return [entry.body["day"] for entry in entries(log)]


def test_lines_go_into_files_of_bounded_size_that_are_one_chain(log):
    files = [segment(log, number) for number in numbers(log)]
    assert [file.name for file in files[:2]] == ["decisions.jsonl", "decisions.part-000002.jsonl"]
    assert all(0 < file.stat().st_size <= SMALL for file in files)
    assert faults(log) == [] and days(log) == list(range(10))
    before, after = files[0].read_text().splitlines()[-1], files[1].read_text().splitlines()[0]
    assert json.loads(after)["previous"] == json.loads(before)["hash"]
    assert head(log).entries == 10 and faults(log, head(log)) == []


def test_a_log_of_one_file_goes_on_in_a_second(tmp_path):
    """As earlier versions wrote it, and larger than a file may be now: it is valid, and nothing in it changes."""
    path = tmp_path / "decisions.jsonl"
    for day in range(6):
        append(path, Kind.DECISION, {"route": "accept", "day": day}, START)
    before, anchor = path.read_bytes(), head(path)
    assert len(before) > SMALL
    write(path, 4, first=6)
    assert path.read_bytes() == before and numbers(path) == [1, 2, 3]
    assert faults(path, anchor) == [] and days(path) == list(range(10))


def test_a_line_that_is_longer_than_a_file_has_one_of_its_own(log):
    append(log, Kind.DECISION, {"route": "x" * 2 * SMALL}, START, SMALL)
    write(log, 1)
    sizes = [segment(log, number).stat().st_size for number in numbers(log)]
    assert len(sizes) == 6 and sizes[4] > SMALL and faults(log) == []


@pytest.mark.parametrize(("gone", "at"), [(1, (1, 2)), (2, (4, 3)), (3, (7, 4))])
def test_a_missing_file_is_found_where_it_was(log, gone, at):
    """The first too: what is left is not a log that begins there."""
    file = segment(log, gone)
    file.unlink()
    assert faults(log) == [at]
    (fault,) = verify(log)
    assert fault.what == f"{file.name} is missing before this line"
    with pytest.raises(AuditError, match="is missing"):
        head(log)


def test_a_missing_last_file_is_found_by_the_anchor(log):
    """As is any cut-off end; the position of the lines that are missing is given."""
    anchor = head(log)
    segment(log, 4).unlink()
    assert faults(log) == []
    assert faults(log, anchor) == [(10, 3)]


def test_swapped_files_are_found(log):
    second, third = segment(log, 2).read_bytes(), segment(log, 3).read_bytes()
    segment(log, 2).write_bytes(third)
    segment(log, 3).write_bytes(second)
    assert faults(log)[0] == (4, 2)


def test_an_emptied_file_is_found(log):
    segment(log, 2).write_bytes(b"")
    assert faults(log) == [(4, 3)]


def test_a_file_of_another_log_is_found(log, tmp_path):
    other = tmp_path / "other.jsonl"
    for day in range(10):
        append(other, Kind.DECISION, {"route": "review", "day": day}, START, SMALL)
    segment(log, 2).write_bytes(segment(other, 2).read_bytes())
    assert faults(log)[0] == (4, 2)


def test_a_change_is_located_in_its_file(log):
    file = segment(log, 3)
    file.write_bytes(file.read_bytes().replace(b'"day":7', b'"day":8'))
    (fault,) = verify(log)
    assert (fault.line, fault.segment) == (8, 3)
    assert fault.text(log).startswith("decisions.jsonl line 8 (in decisions.part-000003.jsonl): the line was changed")


def test_a_later_file_is_not_taken_for_a_log(log):
    """Lines would be appended to it beside those of the log."""
    for act in (lambda path: append(path, Kind.DECISION, {}), lambda path: list(verify(path)), head):
        with pytest.raises(AuditError, match="is a part of the log decisions"):
            act(segment(log, 2))


DIE = """
import os, sys
from datetime import datetime, timezone
from pathlib import Path
from equipoise_clinic.audit import Kind, append

whole, part = os.write, int(sys.argv[2])

def write(descriptor, line):  # the power fails after so many bytes of the line
    if bytes(line).startswith(b"{"):
        whole(descriptor, bytes(line)[:part]) if part else None
        os._exit(9)
    return whole(descriptor, line)

os.write = write
append(Path(sys.argv[1]), Kind.DECISION, {"route": "accept"}, segment_bytes=1)  # a new file for each line
"""


@pytest.mark.parametrize("part", [0, 1, 100, 10_000])
def test_a_crash_at_the_first_line_of_a_new_file(log, part):
    """Before, within and after it: the log goes on where it was, whole; a line that was whole stays."""
    anchor, before = head(log), numbers(log)
    died = subprocess.run([sys.executable, "-c", DIE, str(log), str(part)], capture_output=True, text=True)
    assert died.returncode == 9, died.stderr
    new = segment(log, 5)
    assert numbers(log) == [*before, 5] and (new.stat().st_size == part or part > 1000)
    written = append(log, Kind.DECISION, {"route": "review", "day": 10}, START, SMALL)
    assert written.sequence == (12 if part > 1000 else 11)
    assert faults(log, anchor) == [] and numbers(log) == [*before, 5]
    torn = list(log.parent.glob("*.torn-0"))
    assert [file.name for file in torn] == ([f"{new.name}.torn-0"] if 0 < part <= 1000 else [])


def test_an_intent_that_an_earlier_version_left_is_understood(tmp_path):
    """It knew one file only, and named no number."""
    path = tmp_path / "decisions.jsonl"
    write(path, 2)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"at":')
    path.with_name("decisions.jsonl.lock").write_bytes(f"{size:<20}".encode())
    write(path, 1, first=2)
    assert faults(path) == [] and days(path) == [0, 1, 2]
    assert path.with_name(f"decisions.jsonl.torn-{size}").read_bytes() == b'{"at":'


def test_a_deletion_reaches_every_file_and_keeps_the_chain(log):
    anchor, late = head(log), segment(log, 4).read_bytes()
    deletion = redact(log, START + timedelta(days=5), "retention", segment_bytes=SMALL)
    assert deletion.body["sequences"] == [1, 2, 3, 4, 5] and deletion.sequence == 11
    assert faults(log, anchor) == []
    assert b'"day":4' not in b"".join(segment(log, number).read_bytes() for number in numbers(log))
    assert segment(log, 4).read_bytes().startswith(late)
    assert not list(log.parent.glob(".*.redacting"))


def test_a_deletion_that_was_interrupted_is_finished_by_the_next(log, monkeypatch):
    """It is recorded first: half of it done, the log is whole, and says what was to be deleted."""
    replace, done = Path.replace, []

    def once(self, target):
        if done:
            raise OSError(5, "Input/output error")
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(OSError, match="Input/output"):
        redact(log, START + timedelta(days=9), "retention", segment_bytes=SMALL)
    assert faults(log) == []
    monkeypatch.undo()
    assert redact(log, START + timedelta(days=9), "retention", segment_bytes=SMALL) is not None
    assert faults(log) == []
    assert [entry.body is None for entry in entries(log)][:10] == [True] * 9 + [False]


def test_a_new_file_has_owner_and_mode_of_the_one_before(tmp_path):
    """Whoever appends, also an administrator: the service has to go on writing, and others must not read."""
    path = tmp_path / "decisions.jsonl"
    write(path, 1)
    path.chmod(0o600)
    write(path, 3, first=1)
    assert segment(path, 2).stat().st_mode == path.stat().st_mode


def test_lines_since_a_position_are_those_after_it(log):
    """Across files; after a deletion made a file shorter, from its start."""
    position = end(log)
    assert list(lines_since(log, position)) == []
    write(log, 5, first=10)
    assert [json.loads(line)["sequence"] for line in lines_since(log, position)] == [11, 12, 13, 14, 15]
    assert end(log) > position
    redact(log, START + timedelta(days=10), "retention", segment_bytes=SMALL)
    found = [json.loads(line)["sequence"] for line in lines_since(log, position)]
    assert set(found) >= {11, 12, 13, 14, 15} and found == sorted(found)
    assert (end(log.with_name("none.jsonl")), list(lines_since(log.with_name("none.jsonl"), position))) == (0, [])


def read_bytes() -> int:
    """By this process so far, of files and anything else."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("layout", ["one file", "many files"])
def test_appending_to_a_long_log_reads_no_more_than_its_end(tmp_path, layout):
    """A million lines of a kilobyte; holes stand for all but the last."""
    path = tmp_path / "decisions.jsonl"
    last = Entry(1_000_000, "0" * 64, "2025-01-01T00:00:00+00:00", Kind.DECISION, "0" * 64, None)
    files = [path] if layout == "one file" else [segment(path, number) for number in range(1, 61)]
    for file in files:
        with file.open("wb") as opened:
            opened.truncate(1_000_000_000 if len(files) == 1 else SEGMENT_BYTES)
            opened.seek(0, 2)
            opened.write(b"\n" + last.line())
    before = read_bytes()
    assert append(path, Kind.DECISION, {"route": "accept"}).sequence == 1_000_001
    assert read_bytes() - before < 1_000_000
    assert numbers(path)[-1] == len(files) + 1, "the last is full"
    before = read_bytes()
    assert append(path, Kind.DECISION, {"route": "accept"}).sequence == 1_000_002
    assert read_bytes() - before < 100_000
