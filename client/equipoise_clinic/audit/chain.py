"""A hash chain in JSONL files. Each line holds

    {"sequence": n, "previous": H(line n−1), "at": UTC time, "kind": …, "content": D, "body": {…}, "hash": H(line n)}

with D = SHA-256 of the canonical body and H = SHA-256 of the canonical line without `body` and `hash`. Changing,
removing or moving a line breaks the chain where it happened. Cutting off the end does not: only an anchor kept outside
the log (`head`, printed or sent and, with a key, signed) shows that. `segments` says how a log is divided into files.

A line is on the disk before `append` returns: file, and folder where the file is new, are synced. Where the power fails
in the middle of a line, the lock file says that one was being written there; the next `append` sets the fragment aside,
since it was never confirmed. A line that is cut off although nobody was writing it is damage, and `append` refuses.

The body is hashed on its own so that it can be deleted (retention, a patient's right): the line keeps its digest, the
chain stays whole, and a `deletion` line says when and why.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from equipoise_core.canonical import digest_of

from ..ownership import give_to_owner
from .anchor import Anchor
from .entry import GENESIS, START, AuditError, Entry, Kind, Link, parse, what_is_wrong
from .segments import SEGMENT_BYTES, last_line, lines, log_of, missing, segment

_INTENT = 40
"""Bytes of the lock file that say where a line is being written: `OFFSET` or `OFFSET@SEGMENT`."""

_REDACTED = (Kind.DECISION, Kind.VERDICT)
"""What may hold data about a patient."""


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a log, and where.

    Attributes:
        line: 1-based, counted over all files; one past the end where lines are missing there.
        segment: number of the file that holds the line.
    """

    line: int
    what: str
    segment: int = 1

    def text(self, path: Path) -> str:
        """For people: file, line and what is wrong."""
        log = log_of(path)
        where = f" (in {segment(log, self.segment).name})" if self.segment > 1 else ""
        return f"{log.name} line {self.line}{where}: {self.what}"


def append(
    path: Path, kind: Kind, body: Mapping[str, Any], now: datetime | None = None, segment_bytes: int = SEGMENT_BYTES
) -> Entry:
    """Adds a line and syncs it to disk; writers take turns (flock). Raises AuditError after a damaged last line."""
    log = log_of(path)
    with _locked(log) as lock:
        return _write(log, lock, kind, body, now, segment_bytes)


def head(path: Path, key: bytes | None = None) -> Anchor:
    """The anchor of the log as it stands, after verifying it. Raises AuditError at the first fault."""
    log = log_of(path)
    for fault in verify(log):
        raise AuditError(f"{fault.text(log)}; no anchor is given for a broken log")
    _, line = last_line(log)
    before = START if line is None else parse(line)[1]
    anchor = Anchor(before.sequence, before.hash)
    return anchor.signed(key) if key else anchor


def verify(path: Path, anchor: Anchor | None = None) -> Iterator[Fault]:
    """Everything that is wrong, in order; nothing for a whole log.

    After a damaged line the chain is followed from that line's own claim, so that one change is one fault.
    """
    log = log_of(path)
    before: Link | None = START
    at_anchor = GENESIS if anchor and anchor.entries == 0 else None
    deletions: set[int] = set()
    empty: list[tuple[Fault, int]] = []
    gaps = missing(log)
    count, file = 0, 1
    for count, (file, line) in enumerate(lines(log), start=1):
        while gaps and gaps[0] < file:
            yield Fault(count, f"{segment(log, gaps.pop(0)).name} is missing before this line", file)
            before = None
        try:
            entry, stated = parse(line)
        except AuditError as error:
            yield Fault(count, str(error), file)
            before = None  # nothing is known of what the next line should continue
            continue
        if wrong := what_is_wrong(line, entry, stated, before):
            yield Fault(count, wrong, file)
        if entry.body is None:
            gone = "its content is gone, and no later line says that it was deleted"
            empty.append((Fault(count, gone, file), entry.sequence))
        if entry.kind is Kind.DELETION and entry.body is not None:
            deletions |= {int(sequence) for sequence in entry.body.get("sequences", ())}
        before = stated
        if anchor and count == anchor.entries:
            at_anchor = stated.hash
    yield from (Fault(count + 1, f"{segment(log, number).name} is missing", file) for number in gaps)
    yield from (fault for fault, sequence in empty if sequence not in deletions)
    if anchor and count < anchor.entries:
        yield Fault(count + 1, f"the end is missing: {count} lines, the anchor counted {anchor.entries}", file)
    elif anchor and at_anchor != anchor.hash:
        yield Fault(anchor.entries, "is not the line that the anchor saw: the log was rewritten up to here", file)


def entries(path: Path) -> Iterator[Entry]:
    """All lines of a whole log. Raises AuditError at the first fault of `verify`: a broken log proves nothing."""
    log = log_of(path)
    for fault in verify(log):
        raise AuditError(fault.text(log))
    yield from (parse(line)[0] for _, line in lines(log))


def redact(
    path: Path, before: datetime, reason: str, now: datetime | None = None, segment_bytes: int = SEGMENT_BYTES
) -> Entry | None:
    """Deletes the content of decisions and verdicts older than `before`; the chain stays verifiable.

    The deletion is recorded first, in a line that names the sequences and the reason; then each file that holds some of
    them is replaced in one step. Interrupted between files, it is finished by calling it again. None where nothing is
    that old. Raises AuditError for a broken log: its evidence is not to be touched.
    """
    log = log_of(path)
    with _locked(log) as lock:
        for fault in verify(log):
            raise AuditError(f"{fault.text(log)}; a broken log is not redacted")
        old: dict[int, set[int]] = {}
        for number, line in lines(log):
            entry, _ = parse(line)
            if entry.kind in _REDACTED and entry.body is not None and datetime.fromisoformat(entry.at) < before:
                old.setdefault(number, set()).add(entry.sequence)
        if not old:
            return None
        sequences = sorted(set[int]().union(*old.values()))
        deletion = _write(log, lock, Kind.DELETION, {"sequences": sequences, "reason": reason}, now, segment_bytes)
        for number, gone in old.items():
            _replace_without(segment(log, number), gone)
    return deletion


def settle(path: Path) -> None:
    """Returns when nobody is in the middle of writing a line."""
    log = log_of(path)
    try:
        lock = os.open(_lock_file(log), os.O_RDONLY)
    except FileNotFoundError:  # nobody has ever written
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _lock_file(log: Path) -> Path:
    return log.with_name(f"{log.name}.lock")


@contextmanager
def _locked(log: Path) -> Iterator[int]:
    """The log, exclusively, without a fragment at its end. The lock is a file of its own: `redact` replaces files."""
    lock = os.open(_lock_file(log), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        give_to_owner(lock, log)
        fcntl.flock(lock, fcntl.LOCK_EX)
        _set_fragment_aside(log, lock)
        yield lock
    finally:
        os.close(lock)


def _write(
    log: Path, lock: int, kind: Kind, body: Mapping[str, Any], now: datetime | None, segment_bytes: int
) -> Entry:
    number, last = last_line(log)
    if last is not None and not last.endswith(b"\n"):
        raise AuditError(f"{log.name}: the last line is cut off; run `equipoise audit verify` before going on")
    before = START if last is None else _link(last)
    at = (now or datetime.now(timezone.utc)).isoformat(timespec="milliseconds")
    entry = Entry(before.sequence + 1, before.hash, at, kind, digest_of(dict(body)), dict(body))
    line = memoryview(entry.line())
    file = segment(log, number)
    size = file.stat().st_size if file.exists() else 0
    if size and size + len(line) > segment_bytes:
        number, size = number + 1, 0
        file = segment(log, number)
    _write_intent(lock, number, size)
    new = not file.exists()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        if number > 1 and size == 0:
            _like(descriptor, segment(log, number - 1))
        elif new:
            give_to_owner(descriptor, log.parent)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)  # a full disk takes a part of a line, and that would stop the log
            raise
    finally:
        os.close(descriptor)
    if size == 0:
        _sync_folder(file.parent)
    _write_intent(lock, None)
    return entry


def _link(line: bytes) -> Link:
    """By the line's computed hash, not the one that it states."""
    entry, _ = parse(line)
    return Link(entry.sequence, entry.hash)


def _write_intent(lock: int, number: int | None, end: int = 0) -> None:
    """Notes in the lock file that a line is being written at byte `end` of a file; None: it is whole."""
    text = "" if number is None else f"{end}@{number}"
    os.pwrite(lock, f"{text:<{_INTENT}}".encode(), 0)
    if number is not None:  # that it is whole need not last
        os.fsync(lock)


def _set_fragment_aside(log: Path, lock: int) -> None:
    """Moves what a crash left of a line, where one was being written, into a file beside the log."""
    intent = re.fullmatch(rb"(\d+)(?:@(\d+))?", os.pread(lock, _INTENT, 0).strip())
    if intent is None:
        return
    end, file = int(intent[1]), segment(log, int(intent[2] or 1))
    if file.exists():
        with file.open("rb+") as opened:
            opened.seek(end)
            fragment = opened.read()
            if fragment and b"\n" not in fragment:
                with file.with_name(f"{file.name}.torn-{end}").open("ab") as kept:
                    kept.write(fragment)
                    kept.flush()
                    os.fsync(kept.fileno())
                os.ftruncate(opened.fileno(), end)
                os.fsync(opened.fileno())
    _write_intent(lock, None)


def _replace_without(file: Path, gone: set[int]) -> None:
    """A file of the log anew, without the bodies of these sequences."""
    temporary = file.with_name(f".{file.name}.redacting")
    with temporary.open("wb") as fresh, file.open("rb") as old:
        _like(fresh.fileno(), file)
        for line in old:
            entry, _ = parse(line)
            fresh.write(Entry(**{**vars(entry), "body": None}).line() if entry.sequence in gone else line)
        fresh.flush()
        os.fsync(fresh.fileno())
    temporary.replace(file)
    _sync_folder(file.parent)


def _like(descriptor: int, file: Path) -> None:
    """Mode and, where root writes, owner of another file of the log."""
    if file.exists():
        os.fchmod(descriptor, stat.S_IMODE(file.stat().st_mode))
    give_to_owner(descriptor, file)


def _sync_folder(folder: Path) -> None:
    """So that the file's name survives a loss of power as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
