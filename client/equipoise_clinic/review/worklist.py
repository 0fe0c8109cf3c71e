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
from ..gateway.store import Store, StoredCase

_DELIVERY = {
    "analysed": "not sent yet",
    "delivering": "on its way",
    "delivered": "sent",
    "review": "held until your verdict",
    "withheld": "withheld",
    "dead": "could not be sent",
}


@dataclass(frozen=True)
class VolumeLine:
    """One line of volumes, ready to read: `1.83 mL (1.60 to 2.10)`."""

    name: str
    mean: str
    interval: str


@dataclass(frozen=True)
class Row:
    """A case, as text for the page."""

    key: str
    fingerprint: str
    route: str
    why: str
    score: str
    volumes: tuple[VolumeLine, ...]
    age: str
    model: str
    version: str
    delivery: str
    trouble: str
    viewer: str
    picture: bool


@dataclass(frozen=True)
class Failed:
    """A study without a result."""

    key: str
    state: str
    reason: str
    age: str
    viewer: str


class Worklist:
    """The open cases of one gateway's directory, most uncertain first."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings, self._store = settings, store

    def rows(self) -> list[Row]:
        return [self._row(case) for case in self._store.cases.worklist()]

    def failed(self) -> list[Failed]:
        """Rejected and given-up studies, newest first."""
        studies = [*self._store.studies.all("rejected"), *self._store.studies.all("dead")]
        return [
            Failed(each.key, each.state, each.reason, age(time() - each.heard), self._viewer(each.uid))
            for each in sorted(studies, key=lambda study: -study.heard)
        ]

    def picture(self, case: str) -> bytes | None:
        """PNG; None where there is none."""
        if self._store.cases.get(case) is None:  # only a known key becomes a path
            return None
        path: Path = self._settings.directory / "pictures" / f"{case}.png"
        return path.read_bytes() if path.exists() else None

    def judge(self, case: str, fingerprint: str, verdict: Verdict, reviewer: str) -> bool:
        """Records a verdict. False: the case was judged already, or has another result by now."""
        start = end(self._settings.audit)
        if not self._store.cases.judge(case, fingerprint, verdict.value, reviewer, start):
            return False
        with suppress(OutOfRoom, AuditError):  # it is stored; the gateway logs it before it sends anything
            write_out(self._store, self._settings.audit)
        return True

    def _row(self, case: StoredCase) -> Row:
        return Row(
            key=case.key,
            fingerprint=case.fingerprint,
            route=case.route,
            why=f"{case.why} (drawn at random to check what is accepted)" if case.marked else case.why,
            score="–" if case.score is None else f"{case.score:.3f}",
            volumes=tuple(_volume(name, estimate) for name, estimate in case.volume.items()),
            age=age(time() - case.created),
            model=case.model,
            version=case.version[:12],
            delivery=_DELIVERY[case.state],
            trouble=case.reason,
            viewer=self._viewer(self._store.studies.get(case.study).uid),
            picture=(self._settings.directory / "pictures" / f"{case.key}.png").exists(),
        )

    def _viewer(self, study: str) -> str:
        return self._settings.review.viewer.replace("{study}", quote(study, safe=""))


def age(seconds: float) -> str:
    """In the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _volume(name: str, estimate: object) -> VolumeLine:
    assert isinstance(estimate, dict)
    mean, low, high = (estimate.get(key) for key in ("mean", "low", "high"))
    known = None not in (low, high)
    return VolumeLine(
        name, "–" if mean is None else f"{mean:.2f} mL", f"{low:.2f} to {high:.2f} mL" if known else "no interval"
    )
