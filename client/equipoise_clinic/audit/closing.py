"""Whether a model may accept at present. That follows from the log alone, so that a restart changes nothing.

An alarm of one of its policies closes accept of the model, also under a policy that is made later. It is noted in the
log by a line of its own, since the cases that led to it may be deleted. Only an `opening` line, which names a person,
opens it again. While the log cannot be read, everything is closed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .chain import append
from .entry import AuditError, Kind
from .follow import Follower
from .monitor import Monitor
from .status import PolicyStatus


class Closing:
    """Follows a log. Cheap where nothing is new."""

    def __init__(self, path: Path, monitor: Monitor | None = None) -> None:
        self._path, self._follower, self._monitor = path, Follower(path), monitor or Monitor()
        self._closed: dict[str, str] | None = None

    def look(self) -> list[PolicyStatus]:
        """What the log says by now; notes alarms in it. Raises AuditError or OSError, and then everything is closed."""
        try:
            statuses = self._read()
            fresh = [each for each in statuses if each.alarm is not None and not each.noted]
            self._closed = {each.model: _words(each) for each in statuses if each.alarm is not None}
            for each in fresh:
                body = {"policy": each.policy, "model": each.model, "line": each.alarm, "reason": each.why}
                with suppress(OSError):  # a server that may only read: whoever writes the log notes it as well
                    append(self._path, Kind.ALARM, body)
            return self._read() if fresh else statuses
        except Exception:
            self._closed = None
            raise

    def _read(self) -> list[PolicyStatus]:
        for entry in self._follower.new():
            self._monitor.add(entry)
        return self._monitor.statuses()

    @property
    def closed(self) -> dict[str, str] | None:
        """Each model that may accept nothing → why, in words. None: the log cannot be read, so none may."""
        return None if self._closed is None else dict(self._closed)

    def why(self, model: str) -> str:
        """Why a model may accept nothing, in words; empty: it may."""
        if self._closed is None:
            return "the audit log cannot be read"
        return self._closed.get(model, "")


def open_again(path: Path, model: str, by: str, reason: str) -> PolicyStatus:
    """Notes that a person opens a model's accept again. The monitors of its policies begin anew.

    Raises AuditError for a model that is not closed, and where nobody is named.
    """
    if not by.strip() or not reason.strip():
        raise AuditError("accept is opened by a named person, who says why: give --by and --reason")
    statuses = [each for each in Closing(path).look() if each.alarm is not None]
    closed = [each for each in statuses if each.model == model]
    if not closed:
        known = ", ".join(sorted({each.model for each in statuses}))
        raise AuditError(f"{model!r} is not closed; closed are: {known or 'none'}")
    body = {"policy": closed[-1].policy, "model": model, "by": by, "reason": reason}
    append(path, Kind.OPENING, body)
    return closed[-1]


def _words(status: PolicyStatus) -> str:
    return f"{status.why} (alarm at line {status.alarm} of the audit log)"
