"""How old Triton is, how to scan the packages, and whether anything phones home."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil

from ..ports import fetch, listeners
from .results import CheckResult, Subject, failure, ok, skipped, warning

SAFE_TRITON = "26.07"
"""The oldest container release (year.month) that has the fix of everything in NVIDIA's security bulletins up to 5875 of
8 September 2026 (github.com/NVIDIA/product-security). Move it when a bulletin names a later one.
"""

CONTAINER_OF = {f"2.{42 + month}": f"{24 + month // 12}.{month % 12 + 1:02d}" for month in range(18)}
"""Triton's own version → the container's release: 2.42 is 24.01, 2.51 is 24.10, 2.59 is 25.06. Later versions do not
keep step.
"""

EMBEDDED_TRITON = "2.51"
"""What the pinned nvidia-pytriton wheel carries."""

TELEMETRY = "ORT_DISABLE_TELEMETRY"
_RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"


def triton_version(subject: Subject) -> Iterator[CheckResult]:
    """Triton's release against the oldest safe one."""
    release, seen, embedded = _release(subject)
    if release is None:
        yield skipped(
            "Triton", f"{seen}: its release is unknown", "give the container's with --triton-release, as in 26.07"
        )
        return
    if _number(release) >= _number(SAFE_TRITON):
        yield ok("Triton", f"{seen}: not older than {SAFE_TRITON}, the oldest safe release; read newer bulletins too")
        return
    found = f"{seen}: older than {SAFE_TRITON}, it lacks fixes of published vulnerabilities"
    if embedded:
        yield warning(
            "Triton",
            found,
            f"use this server for development on loopback only; in production: NGC image {SAFE_TRITON} or newer",
        )
    else:
        yield failure("Triton", found, f"move to the NGC image {SAFE_TRITON} or newer")


def packages(subject: Subject) -> Iterator[CheckResult]:
    """Vulnerabilities of Python packages: a scanner with a fresh database knows them, this program does not."""
    yield skipped(
        "packages",
        "known vulnerabilities of Python packages are not looked up here",
        "scan the bill of materials of an installed bundle, `grype sbom:sbom.cdx.json`; of a clone, "
        "`pip-audit -r deploy/locks/constraints.txt`",
    )


def telemetry(subject: Subject) -> Iterator[CheckResult]:
    """ONNX Runtime 1.29 and later reports to its maker unless a variable forbids it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    mark = cache / "Microsoft" / "DeveloperTools" / ".onnxruntime"
    if mark.exists():
        yield warning(
            "telemetry",
            f"{mark} has a device id: ONNX Runtime once ran here without {TELEMETRY}=1",
            f"set {TELEMETRY}=1 for the user who ran it, and remove the folder",
        )
    if not subject.live:
        yield ok("telemetry", f"`equipoise serve` starts Triton with {TELEMETRY}=1, whatever the environment says")
        return
    processes = _processes(subject)
    if not processes:
        yield skipped("telemetry", "the running Triton was not found on this machine", "give its process with --pid")
        return
    loud, unknown = [], 0
    for process in processes:
        try:
            environment = process.environ()
        except (psutil.Error, OSError):
            unknown += 1
            continue
        if environment.get(TELEMETRY) != "1":
            loud.append(f"{process.name()} ({process.pid})")
    if loud:
        yield failure("telemetry", f"{', '.join(loud)} run without {TELEMETRY}=1", f"set {TELEMETRY}=1 and restart")
    elif unknown:
        yield warning(
            "telemetry", f"{unknown} processes do not show their environment", "run as root or the server's user"
        )
    else:
        yield ok("telemetry", f"{len(processes)} running processes of the server have {TELEMETRY}=1")


def _release(subject: Subject) -> tuple[str | None, str, bool]:
    """The container's release, what was seen, and whether it is the embedded server."""
    if subject.triton_release:
        return subject.triton_release, f"release {subject.triton_release}", False
    for process in _processes(subject) if subject.live else ():
        try:
            stated = process.environ().get(_RELEASE_VARIABLE)
        except (psutil.Error, OSError):
            continue
        if stated and len(stated.split(".")[0]) == 2:
            return stated, f"release {stated}, by its environment", False
    version = _running_version(subject.http) if subject.http else None
    if version is None:
        try:
            metadata.version("nvidia-pytriton")
            version = f"{EMBEDDED_TRITON}.0"
        except metadata.PackageNotFoundError:
            return None, "no Triton found here", False
    short = ".".join(version.split(".")[:2])
    return CONTAINER_OF.get(short), f"Triton {version}", short == EMBEDDED_TRITON


def _running_version(address: str) -> str | None:
    try:
        return str(json.loads(fetch(address, "/v2", 5.0) or b"")["version"])
    except (ValueError, KeyError, TypeError):
        return None


def _processes(subject: Subject) -> list[psutil.Process]:
    """The server's processes on this machine, its stubs included."""
    roots: set[int | None] = {subject.pid} if subject.pid is not None else set()
    if not roots:
        for address in filter(None, (subject.grpc, subject.http)):
            roots |= {listener.pid for listener in listeners(int(address.rpartition(":")[2]))}
    found = []
    for root in sorted(pid for pid in roots if pid is not None):
        try:
            process = psutil.Process(root)
            found += [process, *process.children(recursive=True)]
        except psutil.Error:
            continue
    # `equipoise serve` itself loads no ONNX Runtime; of its tree, Triton and its stubs do.
    return [process for process in found if process.name().startswith(("tritonserver", "triton_python"))]


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])
