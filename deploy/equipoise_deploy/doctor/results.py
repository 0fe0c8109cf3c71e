"""What the checks of doctor found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..ports import USUAL_PORTS, Ports


class Status(str, Enum):
    """A person judges a warning; a failure must be repaired before going live."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: its name.
        found: what there is, with figures.
        remedy: what to do about it; empty for a good result.
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
        certificate, key: of the reverse proxy, PEM.
        user: who the server runs as; None: the present user.
        audit_log: where decisions are recorded.
        grpc, http, metrics: addresses of a running server, `host:port`; None: it is not examined.
        pid: of a running Triton, or of an `equipoise serve`.
        triton_release: the container's release, `26.07`, where it cannot be seen from here.
        baseline: file with latencies of this server in good health.
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


Check = Callable[[Subject], Iterator[CheckResult]]


def ok(check: str, found: str) -> CheckResult:
    return CheckResult(check, Status.OK, found)


def skipped(check: str, found: str, how: str = "") -> CheckResult:
    return CheckResult(check, Status.SKIPPED, found, how)


def warning(check: str, found: str, remedy: str) -> CheckResult:
    return CheckResult(check, Status.WARNING, found, remedy)


def failure(check: str, found: str, remedy: str) -> CheckResult:
    return CheckResult(check, Status.FAILURE, found, remedy)


def examine(subject: Subject, checks: tuple[tuple[str, Check], ...]) -> Iterator[CheckResult]:
    """All results, in the order of the checks. A check that crashes is a failure and stops no other."""
    for name, check in checks:
        try:
            yield from check(subject)
        except Exception as error:  # noqa: BLE001 (a fault of the check must not hide what the others find)
            yield failure(name, f"the check itself crashed: {type(error).__name__}: {error}", "please report it")


def as_document(results: list[CheckResult]) -> dict[str, Any]:
    """For `--json`."""
    counts = {status.value: sum(each.status is status for each in results) for status in Status}
    return {"counts": counts, "findings": [each.document() for each in results]}
