"""Whether a policy may accept at present. That follows from the log alone, so that a restart changes nothing.

An alarm closes accept. It is noted in the log by a line of its own, since the cases that led to it may be deleted.
Only an `opening` line, which names a person, opens it again. While the log cannot be read, everything is closed.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from .chain import append
from .entry import AuditError, Kind
from .follow import Follower
from .monitor import Monitor, PolicyStatus


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
            self._closed = {each.policy: _words(each) for each in statuses if each.alarm is not None}
            for each in fresh:
                body = {"policy": each.policy, "model": each.model, "line": each.alarm, "reason": each.why}
                with suppress(OSError):  # a server that may only read: whoever writes the log notes it as well
                    append(self._path, Kind.ALARM, body)
            return self._read() if fresh else statuses
        except (AuditError, OSError):
            self._closed = None
            raise

    def _read(self) -> list[PolicyStatus]:
        for entry in self._follower.new():
            self._monitor.add(entry)
        return self._monitor.statuses()

    @property
    def closed(self) -> dict[str, str] | None:
        """Digest of each policy that may accept nothing → why, in words. None: the log cannot be read, so none may."""
        return None if self._closed is None else dict(self._closed)

    def why(self, policy: str | None) -> str:
        """Why a policy may accept nothing, in words; empty: it may.

        Args:
            policy: its digest; None: no policy, which accepts nothing anyway.
        """
        if self._closed is None:
            return "the audit log cannot be read"
        return self._closed.get(policy or "", "")


def open_again(path: Path, policy: str, by: str, reason: str) -> PolicyStatus:
    """Notes that a person opens a policy's accept again. Its monitors begin anew.

    Args:
        policy: the beginning of its digest.

    Raises AuditError where no single policy is meant, or none that is closed.
    """
    if not by.strip() or not reason.strip():
        raise AuditError("accept is opened by a named person, who says why: give --by and --reason")
    closing = Closing(path)
    found = [each for each in closing.look() if each.policy.startswith(policy) or each.model == policy]
    closed = [each for each in found if each.alarm is not None]
    if len(closed) != 1:
        known = ", ".join(f"{each.policy[:12]} ({each.model})" for each in closing.look() if each.alarm is not None)
        raise AuditError(f"{policy!r} names {len(closed)} closed policies; closed are: {known or 'none'}")
    body = {"policy": closed[0].policy, "model": closed[0].model, "by": by, "reason": reason}
    append(path, Kind.OPENING, body)
    return closed[0]


def _words(status: PolicyStatus) -> str:
    return f"{status.why} (alarm at line {status.alarm} of the audit log)"
