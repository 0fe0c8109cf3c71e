"""What the page shows of a case, and how a verdict is recorded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from urllib.parse import quote

from ..audit import AuditError, Verdict, end
from ..gateway.audit_log import write_out
from ..gateway.settings import Settings
from ..gateway.spool import OutOfRoom
from ..gateway.store import Store, StoredCase, Study

_DELIVERY = {
    "analysed": "not sent yet",
    "delivering": "on its way",
    "delivered": "sent",
    "review": "held until your verdict",
    "withheld": "withheld",
    "dead": "could not be sent",
}


@dataclass(frozen=True)
class Row:
    """An open case, and what the page says of it beyond what the store does."""

    case: StoredCase
    age: str
    delivery: str
    viewer: str
    picture: bool


@dataclass(frozen=True)
class Failed:
    """A study without a result, or without one for each of its series."""

    study: Study
    age: str
    viewer: str


class Worklist:
    """The open cases of one gateway's directory, most uncertain first."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store

    def rows(self) -> list[Row]:
        return [self._row(case) for case in self._store.cases.worklist()]

    def failed(self) -> list[Failed]:
        """Rejected and given-up studies, and those of which a series was rejected, newest first."""
        partly = [each for each in self._store.studies.all("analysed") if each.reason]
        studies = [*self._store.studies.all("rejected"), *self._store.studies.all("dead"), *partly]
        return [
            Failed(each, age(time() - each.heard), self._viewer(each.uid))
            for each in sorted(studies, key=lambda study: -study.heard)
        ]

    def refused_kinds(self) -> list[str]:
        """What kinds of objects the destination does not take, and why."""
        return [reason for reason, _ in self._store.outbox.refusals().values()]

    def picture(self, case: str) -> bytes | None:
        """PNG; None where there is none."""
        if self._store.cases.get(case) is None:  # only a known key becomes a path
            return None
        path = self._picture(case)
        return path.read_bytes() if path.exists() else None

    def judge(self, case: str, fingerprint: str, verdict: Verdict, reviewer: str) -> bool:
        """Records a verdict. False: the case was judged already, or has another result by now."""
        start = end(self._settings.audit)
        tell = self._settings.hl7 is not None and (self._settings.directory / "outbox" / case).exists()
        if not self._store.cases.judge(case, fingerprint, verdict.value, reviewer, start, tell):
            return False
        with suppress(OutOfRoom, AuditError):  # it is stored; the gateway logs it before it sends anything
            write_out(self._store, self._settings.audit)
        return True

    def _row(self, case: StoredCase) -> Row:
        return Row(
            case,
            age(time() - case.created),
            _DELIVERY[case.state],
            self._viewer(self._store.studies.get(case.study).uid),
            self._picture(case.key).exists(),
        )

    def _picture(self, case: str) -> Path:
        return self._settings.directory / "pictures" / f"{case}.png"

    def _viewer(self, study: str) -> str:
        return self._settings.review.viewer.replace("{study}", quote(study, safe=""))


def age(seconds: float) -> str:
    """In the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
