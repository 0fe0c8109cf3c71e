"""One line of an audit log: what it holds, its hash, and whether it continues the line before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from equipoise_client.errors import EquipoiseError
from equipoise_core.canonical import canonical_json, digest_of

FORMAT = "equipoise-audit/1"
GENESIS = hashlib.sha256(FORMAT.encode()).hexdigest()
"""`previous` of the first line."""

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
    ALARM = "alarm"
    """A monitor of a policy has alarmed: where that was asked for, its model accepts nothing."""
    OPENING = "opening"
    """Who opened a model's accept again after an alarm, and why."""


class Verdict(str, Enum):
    """What an expert says of a decision: on the review page, with `equipoise audit verdict`, and in the log."""

    ACCEPT = "accept"
    REJECT = "reject"
    CORRECT = "correct"

    @property
    def wrong(self) -> bool:
        """Whether an accepted case should not have been accepted."""
        return self is not Verdict.ACCEPT


@dataclass(frozen=True)
class Link:
    """What the next line has to continue: number and hash of the line before it."""

    sequence: int
    hash: str


START = Link(0, GENESIS)
"""Before the first line."""


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
        hashed = {name: value for name, value in vars(self).items() if name != "body"}
        return digest_of({"format": FORMAT, **hashed})

    def line(self) -> bytes:
        """As it stands in the file, with its newline."""
        body = None if self.body is None else dict(self.body)
        return canonical_json({**vars(self), "body": body, "hash": self.hash}).encode() + b"\n"


def parse(line: bytes) -> tuple[Entry, Link]:
    """A line, with or without its newline, and what it says that the next one has to continue. Raises AuditError."""
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
    return entry, Link(entry.sequence, str(document["hash"]))


def what_is_wrong(line: bytes, entry: Entry, stated: Link, before: Link | None) -> str:
    """Why `line`, which `parse` has read, is not the line after `before`; "": it is.

    Args:
        before: None: nothing is known of the line before.
    """
    if not line.endswith(b"\n"):
        return "the line is cut off: its end is missing"
    hashed = entry.hash
    if stated.hash != hashed or line != entry.line():
        return "the line was changed: it does not have the hash that it states"
    if before is not None and entry.previous != before.hash:
        after = f"line {before.sequence}" if before.sequence else "the start of a log"
        return f"does not continue {after}: lines were removed, added or moved here"
    if before is not None and entry.sequence != before.sequence + 1:
        return f"is number {entry.sequence}, expected {before.sequence + 1}"
    return ""
