"""What a check found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..ports import USUAL_PORTS, Ports


class Status(str, Enum):
    """How much it matters. A warning is for a person to judge; a failure must be repaired before going live."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: its name.
        found: what there is, with figures.
        remedy: what to do about it; empty where all is well.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""

    def document(self) -> dict[str, str]:
        return {"check": self.check, "status": self.status.value, "found": self.found, "remedy": self.remedy}


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        repository: what is or will be served: a model repository, or `STORE/current`.
        ports: of the server, on this machine.
        trust: public key that releases must be signed with.
        certificate, key: of whatever ends TLS here, PEM.
        user: who the server runs as; None: whoever asks.
        audit_log: where decisions are recorded.
        grpc, http, metrics: addresses of a running server, `host:port`; None: it is not asked.
        pid: of a running Triton, or of an `equipoise serve`.
        triton_release: the container's release, `26.07`, where it cannot be seen from here.
        baseline: file with latencies that were recorded when all was well.
        record: write such a file.
    """

    repository: Path
    ports: Ports = USUAL_PORTS
    trust: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str | None = None
    audit_log: Path | None = None
    grpc: str | None = None
    http: str | None = None
    metrics: str | None = None
    pid: int | None = None
    triton_release: str | None = None
    baseline: Path | None = None
    record: Path | None = None

    @property
    def live(self) -> bool:
        return self.grpc is not None


Check = Callable[[Subject], Iterator[Finding]]


def ok(check: str, found: str) -> Finding:
    return Finding(check, Status.OK, found)


def skipped(check: str, found: str, how: str = "") -> Finding:
    return Finding(check, Status.SKIPPED, found, how)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Status.WARNING, found, remedy)


def failure(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, Status.FAILURE, found, remedy)


def examine(subject: Subject, checks: tuple[tuple[str, Check], ...]) -> Iterator[Finding]:
    """All findings, in the order of the checks. A check that breaks is a failure of its own and stops no other."""
    for name, check in checks:
        try:
            yield from check(subject)
        except Exception as error:  # noqa: BLE001 (a fault of the check must not hide what the others find)
            yield failure(name, f"the check itself broke: {type(error).__name__}: {error}", "please report it")


def as_document(findings: list[Finding]) -> dict[str, Any]:
    """For `--json`."""
    counts = {status.value: sum(f.status is status for f in findings) for status in Status}
    return {"counts": counts, "findings": [finding.document() for finding in findings]}
