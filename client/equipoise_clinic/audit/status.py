"""What is watched of a policy, and what the monitors say of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from equipoise_core.monitoring import DOUBT

FALSE_ALARM = 0.05
"""Probability that any monitor of a policy ever alarms while all is as it was: the monitors' own, and that a rate of
`expected` is too low (`DOUBT` for each of three)."""


class Watched(str, Enum):
    """What a monitor looks for."""

    ERROR = "error"
    COVERAGE = "coverage"
    CALIBRATION = "calibration"
    REFERRAL = "referral"
    DRIFT = "drift"

    @property
    def words(self) -> str:
        """What an alarm says."""
        return _WORDS[self]


_WORDS = {
    Watched.ERROR: "accepted cases are wrong more often than the policy promises",
    Watched.COVERAGE: "true volumes or numbers lie outside their intervals more often than the policy promises",
    Watched.CALIBRATION: "how sure the model is no longer goes with how often it is right",
    Watched.REFERRAL: "more cases go to review than among the calibration cases",
    Watched.DRIFT: "more images are unlike the calibration cases than expected",
}

EXPECTED = {Watched.COVERAGE: "missed", Watched.REFERRAL: "referred", Watched.DRIFT: "unusual"}
"""Monitor → its rate's name in `expected`."""

LIMIT = len(Watched) / (FALSE_ALARM - DOUBT * len(EXPECTED))
"""e-value from which a monitor alarms."""


@dataclass(frozen=True)
class MonitorStatus:
    """One monitor of one policy.

    Attributes:
        rate: that the event has at most; None: nothing is counted, only change is looked for.
        cases, events: so far, since accept was opened last.
        evidence: of late, and e_value: ever; as they are now (`evidence`).
        warns: whether the evidence of late is above its limit now.
        warning, alarm: number of the line at which the limit was reached first, or None.
    """

    watched: Watched
    rate: float | None
    cases: int
    events: int
    evidence: float
    e_value: float
    warns: bool
    warning: int | None
    alarm: int | None


@dataclass(frozen=True)
class PolicyStatus:
    """One policy in service.

    Attributes:
        alpha: None: the policy accepts nothing.
        accepted, marked: images accepted automatically, and those of them that are to be audited.
        judged, wrong: marked ones with a verdict, and those of them that were wrong.
        monitors: those that have what they need.
        alarm: number of the line at which a monitor alarmed, or where that was noted; None: none has, since accept was
            opened last.
        why: which one, in words; empty: none.
        noted: whether the log says so in a line of its own, which outlasts the deletion of cases.
    """

    model: str
    policy: str
    alpha: float | None
    accepted: int
    marked: int
    judged: int
    wrong: int
    monitors: tuple[MonitorStatus, ...]
    alarm: int | None
    why: str
    noted: bool

    @property
    def waiting(self) -> int:
        """Marked cases without a verdict: while they are many, nothing is known."""
        return self.marked - self.judged

    def document(self) -> dict[str, Any]:
        """JSON-able."""
        monitors = [{**vars(each), "watched": each.watched.value} for each in self.monitors]
        return {**vars(self), "waiting": self.waiting, "monitors": monitors}
