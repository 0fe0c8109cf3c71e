"""A hash chain in a JSONL file. Each line holds

    {"sequence": n, "previous": H(line n−1), "at": UTC time, "kind": …, "content": D, "body": {…}, "hash": H(line n)}

with D = SHA-256 of the canonical body and H = SHA-256 of the canonical line without `body` and `hash`. Changing,
removing or moving a line breaks the chain where it happened. Cutting off the end does not: only an anchor kept outside
the file (`head`, printed or sent and, with a key, signed) shows that.

A line is on the disk before `append` returns: file, and folder where it is new, are synced. Where the power goes in the
middle of a line, the lock file says that one was being written there; the next `append` sets the fragment aside, since
nobody was told of it. A line that is cut off and that nobody was writing is damage, and nothing is added after it.

The body is hashed on its own so that it can be deleted (retention, a patient's right): the line keeps its digest, the
chain stays whole, and a `deletion` line says when and why.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import IO, Any

from equipoise_client.errors import EquipoiseError
from equipoise_core.canonical import canonical_json, digest_of

FORMAT = "equipoise-audit/1"
GENESIS = hashlib.sha256(FORMAT.encode()).hexdigest()
"""`previous` of the first line."""

_INTENT = 20
"""Bytes of the lock file that say where a line is being written."""

_KEYS = {"sequence", "previous", "at", "kind", "content", "body", "hash"}


class AuditError(EquipoiseError):
    """The log cannot be written or read as asked; the message says why."""


class Kind(str, Enum):
    """What a line records."""

    DECISION = "decision"
    VERDICT = "verdict"
    DELETION = "deletion"
    RELEASE = "release"
    """Which version of a model was put into service, by whom and why, or was refused."""


_REDACTED = (Kind.DECISION, Kind.VERDICT)
"""What can tell of a patient."""


@dataclass(frozen=True)
class Entry:
    """One line. `body` None: deleted."""

    sequence: int
    previous: str
    at: str
    kind: Kind
    content: str
    body: Mapping[str, Any] | None

    @property
    def hash(self) -> str:
        return digest_of(
            {
                "format": FORMAT,
                "sequence": self.sequence,
                "previous": self.previous,
                "at": self.at,
                "kind": self.kind.value,
                "content": self.content,
            }
        )

    def line(self) -> str:
        """As it stands in the file, without the newline."""
        return canonical_json(
            {
                "sequence": self.sequence,
                "previous": self.previous,
                "at": self.at,
                "kind": self.kind.value,
                "content": self.content,
                "body": None if self.body is None else dict(self.body),
                "hash": self.hash,
            }
        )


@dataclass(frozen=True)
class Anchor:
    """How long the log was and how it ended: what is kept outside the file.

    Attributes:
        entries: number of lines.
        hash: of the last line (`GENESIS` for an empty log).
        signature: HMAC-SHA-256 of both under a key, or "".
    """

    entries: int
    hash: str
    signature: str = ""

    def text(self) -> str:
        """One line to print or send: `equipoise-audit/1 12 3f…  [signature]`."""
        return " ".join(part for part in (FORMAT, str(self.entries), self.hash, self.signature) if part)

    def signed(self, key: bytes) -> Anchor:
        message = f"{FORMAT} {self.entries} {self.hash}".encode()
        return Anchor(self.entries, self.hash, hmac.new(key, message, hashlib.sha256).hexdigest())


def parse_anchor(text: str, key: bytes | None = None) -> Anchor:
    """Reads `Anchor.text`. With a key the signature must be right. Raises AuditError."""
    parts = text.split()
    if len(parts) not in (3, 4) or parts[0] != FORMAT or not parts[1].isdigit():
        raise AuditError(f"{text[:80]!r} is no anchor; expected '{FORMAT} <entries> <hash> [<signature>]'")
    anchor = Anchor(int(parts[1]), parts[2], parts[3] if len(parts) == 4 else "")
    if key is not None and not hmac.compare_digest(anchor.signature, anchor.signed(key).signature):
        raise AuditError("the anchor's signature is not by this key: it was changed, or signed by another")
    return anchor


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with the log, and where.

    Attributes:
        line: 1-based; one past the end where lines are missing there.
    """

    line: int
    what: str


def append(path: Path, kind: Kind, body: Mapping[str, Any], now: datetime | None = None) -> Entry:
    """Adds a line and syncs it to disk; writers take turns (flock). Raises AuditError after a damaged last line."""
    path = path.resolve()  # one lock, whatever links lead there
    with _locked(path) as (file, lock):
        _mend(file, lock, path)
        entry = _next(file, path, kind, body, now)
        end, line = file.seek(0, os.SEEK_END), memoryview(entry.line().encode() + b"\n")
        _write_intent(lock, end)
        try:
            while line:  # past the buffer, which would try again when it is closed
                line = line[os.write(file.fileno(), line) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), end)  # a full disk takes a part of a line, and that would stop the log
            raise
        if end == 0:
            _sync_folder(path)
        _write_intent(lock, None)
    return entry


def head(path: Path, key: bytes | None = None) -> Anchor:
    """The anchor of the log as it stands, after verifying it. Raises AuditError at the first finding."""
    for finding in verify(path):
        raise AuditError(f"{path.name} line {finding.line}: {finding.what}; no anchor is given for a broken log")
    lines = _lines(path)
    anchor = Anchor(len(lines), _parse(lines[-1]).hash) if lines else Anchor(0, GENESIS)
    return anchor.signed(key) if key else anchor


def verify(path: Path, anchor: Anchor | None = None) -> Iterator[Finding]:
    """Everything that is wrong, in order; nothing for a whole log.

    After a damaged line the chain is followed from that line's own claim, so that one change is one finding.
    """
    lines, cut_off = _lines(path), not _ends_whole(path)
    previous: str | None = GENESIS
    at_anchor = GENESIS if anchor and anchor.entries == 0 else None
    deletions: set[int] = set()
    missing: list[tuple[int, int]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry, stated = _parse(line), json.loads(line)["hash"]
        except AuditError as error:
            yield Finding(number, str(error))
            previous = None  # nothing is known of what the next line should continue
            continue
        if number == len(lines) and cut_off:
            yield Finding(number, "the line is cut off: its end is missing")
        elif line != entry.line().encode() or stated != entry.hash:
            yield Finding(number, "the line was changed: it does not have the hash that it states")
        elif previous is not None and entry.previous != previous:
            yield Finding(number, f"does not continue line {number - 1}: lines were removed, added or moved here")
        elif previous is not None and entry.sequence != number:
            yield Finding(number, f"is number {entry.sequence}, expected {number}")
        if entry.body is None:
            missing.append((number, entry.sequence))
        if entry.kind is Kind.DELETION and entry.body is not None:
            deletions |= {int(sequence) for sequence in entry.body.get("sequences", ())}
        previous = stated
        if anchor and number == anchor.entries:
            at_anchor = stated
    for number, sequence in missing:
        if sequence not in deletions:
            yield Finding(number, "its content is gone, and no later line says that it was deleted")
    if anchor and len(lines) < anchor.entries:
        yield Finding(len(lines) + 1, f"the end is missing: {len(lines)} lines, the anchor counted {anchor.entries}")
    elif anchor and at_anchor != anchor.hash:
        yield Finding(anchor.entries, "is not the line that the anchor saw: the log was rewritten up to here")


def entries(path: Path) -> Iterator[Entry]:
    """All lines of a whole log. Raises AuditError at the first finding of `verify`: a broken one tells nothing."""
    for finding in verify(path):
        raise AuditError(f"{path.name} line {finding.line}: {finding.what}")
    yield from (_parse(line) for line in _lines(path))


def redact(path: Path, before: datetime, reason: str, now: datetime | None = None) -> Entry | None:
    """Deletes the content of decisions and verdicts older than `before`; the chain stays verifiable.

    The deletion is recorded first, in a line that names the sequences and the reason; then the file is replaced in one
    step. None where nothing is that old. Raises AuditError for a broken log: its evidence is not to be touched.
    """
    path = path.resolve()  # what a link leads to is replaced, not the link
    with _locked(path) as (file, lock):
        _mend(file, lock, path)
        for finding in verify(path):
            raise AuditError(f"{path.name} line {finding.line}: {finding.what}; a broken log is not redacted")
        entries = [_parse(line) for line in _lines(path)]
        old = [e for e in entries if e.kind in _REDACTED and e.body is not None and _time(e.at) < before]
        if not old:
            return None
        sequences = [entry.sequence for entry in old]
        deletion = _next(file, path, Kind.DELETION, {"sequences": sequences, "reason": reason}, now)
        gone = set(sequences)
        kept = [Entry(**{**vars(e), "body": None}) if e.sequence in gone else e for e in entries]
        text = "".join(f"{entry.line()}\n" for entry in (*kept, deletion))
        temporary = path.with_name(f".{path.name}.redacting")
        with temporary.open("wb") as fresh:
            owner = os.fstat(file.fileno())  # whoever deletes: the service has to go on writing
            os.fchmod(fresh.fileno(), stat.S_IMODE(owner.st_mode))
            if os.geteuid() == 0:
                os.fchown(fresh.fileno(), owner.st_uid, owner.st_gid)
            fresh.write(text.encode())
            fresh.flush()
            os.fsync(fresh.fileno())
        temporary.replace(path)
        _sync_folder(path)
    return deletion


@contextmanager
def _locked(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """The log, exclusively, and the lock: a file of its own, since `redact` replaces the log."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with path.open("ab+") as file:
            yield file, lock
    finally:
        os.close(lock)


def _write_intent(lock: int, end: int | None) -> None:
    """Notes in the lock file that a line is being written at byte `end`; None: it is whole, and that need not last."""
    os.pwrite(lock, b" " * _INTENT if end is None else f"{end:<{_INTENT}}".encode(), 0)
    if end is not None:
        os.fsync(lock)


def _mend(file: IO[bytes], lock: int, path: Path) -> None:
    """Sets a fragment aside that a crash left where a line was being written, in a file beside the log."""
    noted = os.pread(lock, _INTENT, 0).strip()
    end = int(noted) if noted.isdigit() else -1
    file.seek(max(end, 0))
    fragment = file.read() if end >= 0 else b""
    if fragment and b"\n" not in fragment:
        aside = path.with_name(f"{path.name}.torn-{end}")
        with aside.open("ab") as kept:
            kept.write(fragment)
            kept.flush()
            os.fsync(kept.fileno())
        os.ftruncate(file.fileno(), end)
        os.fsync(file.fileno())
    if end >= 0:
        _write_intent(lock, None)


def _sync_folder(path: Path) -> None:
    """So that the file's name survives a loss of power as well."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _next(file: IO[bytes], path: Path, kind: Kind, body: Mapping[str, Any], now: datetime | None) -> Entry:
    last = _last_line(file)
    sequence, previous = 1, GENESIS
    if last is not None:
        if not last.endswith(b"\n"):
            raise AuditError(f"{path.name}: the last line is cut off; run `equipoise audit verify` before going on")
        entry = _parse(last.rstrip(b"\n"))
        sequence, previous = entry.sequence + 1, entry.hash
    at = (now or datetime.now(timezone.utc)).isoformat(timespec="milliseconds")
    return Entry(sequence, previous, at, kind, digest_of(dict(body)), dict(body))


def _last_line(file: IO[bytes]) -> bytes | None:
    """With its newline, where it has one; reads from the end, since logs grow long."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return None
    block, tail = 1 << 16, b""
    while end > 0 and b"\n" not in tail[:-1]:
        start = max(0, end - block)
        file.seek(start)
        tail = file.read(end - start) + tail
        end = start
    return tail[tail[:-1].rfind(b"\n") + 1 :]


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        last = _last_line(file)
    return last is None or last.endswith(b"\n")


def _lines(path: Path) -> list[bytes]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AuditError(f"{path}: cannot be read: {error.strerror}") from error
    return content.removesuffix(b"\n").split(b"\n") if content else []


def _parse(line: bytes) -> Entry:
    try:
        document = json.loads(line)
        if set(document) != _KEYS:
            raise ValueError("its keys are not those of an audit line")
        entry = Entry(
            int(document["sequence"]),
            str(document["previous"]),
            str(document["at"]),
            Kind(document["kind"]),
            str(document["content"]),
            document["body"],
        )
        if entry.body is not None and digest_of(dict(entry.body)) != entry.content:
            raise ValueError("its content does not have the digest that it states")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = str(error) if isinstance(error, ValueError) and str(error).startswith("its ") else "it cannot be read"
        raise AuditError(f"the line was changed: {detail}") from error
    return entry


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
