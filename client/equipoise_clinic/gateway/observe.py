"""Logs and metrics. Nothing in them identifies a person: studies and cases have random keys, errors only a kind."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..audit.status import PolicyStatus

_POLICY = ("model", "policy")
_MONITOR = (*_POLICY, "monitor")


class Log:
    """One JSON object a line: `{"at": …, "level": …, "event": …, "study": KEY, …}`."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._lock = threading.Lock()

    def info(self, event: str, **facts: Any) -> None:
        self._write("info", event, facts)

    def warning(self, event: str, **facts: Any) -> None:
        self._write("warning", event, facts)

    def failure(self, event: str, error: BaseException, **facts: Any) -> None:
        """An error by its kind and place; its message and its values may quote a patient's data."""
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames][-6:]
        self._write("error", event, {**facts, "error": type(error).__name__, "where": places})

    def _write(self, level: str, event: str, facts: dict[str, Any]) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        document = {"at": at, "level": level, "event": event, **facts}
        # Of a value that is not meant for the log only the kind.
        line = json.dumps(document, allow_nan=False, default=lambda value: type(value).__name__)
        with self._lock, contextlib.suppress(OSError, ValueError):  # full or closed: the work goes on without a log
            self._stream.write(line + "\n")
            self._stream.flush()


def silence_libraries() -> None:
    """pydicom, pynetdicom and highdicom quote patients' fields in their warnings and log lines."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "pynetdicom", "highdicom", "dicomweb_client", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers = [logging.NullHandler()]
        logger.propagate = False
        logger.setLevel(logging.CRITICAL + 1)


class Metrics:
    """What `/metrics` shows, of this process since it started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"equipoise_gateway_{name}", what, labels, registry=self.registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"equipoise_gateway_{name}", what, labels, registry=self.registry)

        self.instances = counter("instances", "DICOM objects that came in, by what became of them", "outcome")
        self.results = counter("results", "analyses, by what became of them", "outcome")
        self.deliveries = counter("deliveries", "attempts to send one object, by outcome", "outcome")
        self.failures = counter("failures", "unforeseen errors, by the part in which they happened", "part")
        self.analysis = Histogram(
            "equipoise_gateway_analysis_seconds",
            "one study from selection to written objects",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self.studies = gauge("studies", "studies by state", "state")
        self.cases = gauge("cases", "cases by state", "state")
        self.unwanted = gauge("unwanted_objects", "objects of a kind that the destination does not take", "kind")
        self.oldest = gauge("oldest_waiting_seconds", "age of the study that has waited longest")
        self.worklist = gauge("worklist", "cases that wait for an expert")
        self.free = gauge("free_bytes", "free disk in the gateway's directory")
        self.reachable = gauge("reachable", "1: the peer answered last time, 0: it did not", "peer")
        self.readable = gauge("audit_readable", "1: the audit log could be read last time, 0: it could not")
        self.warning = gauge("audit_warning", "1: much evidence of late that a promise is broken", *_MONITOR)
        self.alarm = gauge("audit_alarm", "1: there was enough evidence ever; until accept is opened again", *_POLICY)
        self.evidence = gauge("audit_evidence", "e-value: how much evidence there is, ever", *_MONITOR)
        self.closed = gauge("audit_closed", "1: an alarm has closed accept", *_POLICY)
        self.judged = gauge("audit_judged", "audited cases with an expert's verdict", *_POLICY)
        self.wrong = gauge("audit_wrong", "those of them that were wrong", *_POLICY)
        self.unjudged = gauge("audit_waiting", "accepted cases marked for an audit that nobody has judged", *_POLICY)

    def policies(self, statuses: Iterable[PolicyStatus], close: bool) -> None:
        """What `equipoise audit monitor` says of each policy.

        Args:
            close: whether an alarm closes accept.
        """
        for status in statuses:
            labels = (status.model, status.policy[:12])
            self.alarm.labels(*labels).set(status.alarm is not None)
            self.closed.labels(*labels).set(close and status.alarm is not None)
            for each in status.monitors:
                self.warning.labels(*labels, each.watched.value).set(each.warns)
                self.evidence.labels(*labels, each.watched.value).set(each.e_value)
            self.judged.labels(*labels).set(status.judged)
            self.wrong.labels(*labels).set(status.wrong)
            self.unjudged.labels(*labels).set(status.waiting)
