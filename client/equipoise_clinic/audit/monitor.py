"""Does a policy keep its promises in service? Read from the log: decisions, and experts' verdicts.

Each policy is watched on its own, by five monitors:

    error         accepted cases are wrong more often than α                       verdicts on marked cases
    coverage      true volumes lie outside their intervals more often than stated  the volumes that these verdicts state
    calibration   how sure the model is and how often it is right drift apart      verdicts on marked cases
    referral      more cases go to review than among the calibration cases         every decision
    drift         more images lie beyond nine tenths of the calibration cases      every decision

Of the accepted cases a random share is marked (`record["audit"]`), and for the first three only these count: experts
look at others for reasons of their own, so their verdicts are no fair sample. What a rate may be, the record says
(`expected`, from the policy); a policy that does not say so is not watched for it.

A monitor **warns** where the evidence of late is high (on average not before `every` cases without a reason). It
**alarms** where there was enough evidence ever: with probability at most `FALSE_ALARM`, over all monitors and all time.
Where that was asked for, an alarm closes the model's `accept` (`closing`), until a named person opens it again; then
the monitors begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from equipoise_core.monitoring import DOUBT, UNUSUAL

from .chain import entries
from .entry import AuditError, Entry, Kind, Verdict
from .evidence import ODDS, Evidence, Exchangeability, no_evidence, ratios_of_event, transform

FALSE_ALARM = 0.05
"""Probability that any monitor of a policy ever alarms while all is as it was: the monitors' own, and that a rate of
`expected` is too low (`DOUBT` for each of three)."""

_LOWEST, _HIGHEST = 1e-3, 1.0 - 1e-3


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
    Watched.COVERAGE: "true volumes lie outside their intervals more often than the policy promises",
    Watched.CALIBRATION: "how sure the model is no longer goes with how often it is right",
    Watched.REFERRAL: "more cases go to review than among the calibration cases",
    Watched.DRIFT: "more images are unlike the calibration cases than expected",
}

_EXPECTED = {Watched.COVERAGE: "missed", Watched.REFERRAL: "referred", Watched.DRIFT: "unusual"}
"""Monitor → its rate's name in `expected`."""

LIMIT = len(Watched) / (FALSE_ALARM - DOUBT * len(_EXPECTED))
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


def monitor(path: Path, every: float = 1000.0, alpha: float | None = None) -> list[PolicyStatus]:
    """The status of every policy that a log knows, in order of appearance; see `Monitor`.

    Raises AuditError for a broken log, and where neither the policy nor the caller states an α.
    """
    watcher = Monitor(every, alpha)
    for entry in entries(path):
        watcher.add(entry)
    return watcher.statuses()


class Monitor:
    """Reads a log line by line, and knows the status of each policy at any time.

    An image counts once, however often it was decided, by its first verdict; that of an image which is marked only
    later counts from then on. Decisions whose content is deleted before anybody judged them do not wait any more.
    Whoever named a seed or a number of samples studies the model: that is no case.

    Args:
        every: cases between false warnings, on average at least.
        alpha: instead of the policies' own.
    """

    def __init__(self, every: float = 1000.0, alpha: float | None = None) -> None:
        self._every, self._alpha = every, alpha
        self._policies: dict[str, _Policy] = {}
        self._images: dict[int, tuple[_Policy, str]] = {}  # sequence of an accepted decision → its image

    def add(self, entry: Entry) -> None:
        """The next line. Raises AuditError where it lacks what it has to say; then nothing was changed."""
        body = entry.body or {}
        try:
            if entry.kind is Kind.DECISION and body.get("policy_digest") and not _study(body):
                self._decision(entry.sequence, body)
            elif entry.kind is Kind.VERDICT and body.get("decision") in self._images:
                policy, image = self._images[body["decision"]]
                wrong = Verdict(body["verdict"]).wrong
                policy.verdict(image, _Judged(entry.sequence, wrong, _volumes(body.get("volume_ml"))))
            elif entry.kind in (Kind.ALARM, Kind.OPENING):
                digest, model, reason = (str(body[name]) for name in ("policy", "model", "reason"))
                noted = self._policies.setdefault(digest, _Policy(model, digest, self._every))
                for policy in self._policies.values():
                    if policy is noted or (entry.kind is Kind.OPENING and policy.model == model):
                        policy.note(entry, reason)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise AuditError(f"line {entry.sequence} is no {entry.kind.value} that can be counted") from error
        for sequence in body.get("sequences", ()) if entry.kind is Kind.DELETION else ():
            if sequence in self._images:
                policy, image = self._images.pop(sequence)
                policy.forget(image)

    def statuses(self) -> list[PolicyStatus]:
        """Of every policy, in order of appearance. Raises AuditError where nobody states an α."""
        return [policy.status() for policy in self._policies.values()]

    def _decision(self, sequence: int, body: Mapping[str, Any]) -> None:
        digest, image, model = str(body["policy_digest"]), str(body["input_digest"]), str(body["model"])
        accepted = _route(body) == "accept"
        policy = self._policies.setdefault(digest, _Policy(model, digest, self._every))
        if not policy.known:
            alpha = self._alpha if self._alpha is not None else body.get("alpha")
            policy.learn(None if alpha is None else float(alpha), dict(body.get("expected") or {}))
        policy.seen_image(image, sequence, body)
        if accepted:
            policy.decision(image, bool(body.get("audit")), body)
            self._images[sequence] = policy, image


@dataclass(frozen=True, slots=True)
class _Judged:
    sequence: int
    wrong: bool
    volumes: Mapping[str, float]


@dataclass(slots=True)
class _Image:
    """An accepted image: decisions of it that still have their content; its first verdict, and what was said of it."""

    copies: int = 0
    marked: bool = False
    judged: _Judged | None = None
    confidence: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(slots=True)
class _Stream:
    """One monitor's evidence."""

    watched: Watched
    rate: float | None
    every: float
    evidence: Evidence
    exchangeability: Exchangeability = field(default_factory=Exchangeability)
    events: int = 0
    warning: int | None = None
    alarm: int | None = None

    def count(self, sequence: int, ratios: tuple[float, ...], event: bool = False) -> None:
        self.evidence = self.evidence.after(ratios)
        self.events += event
        if self.warning is None and self.evidence.of_late >= self.every:
            self.warning = sequence
        if self.alarm is None and self.evidence.e_value >= LIMIT:
            self.alarm = sequence

    def count_event(self, sequence: int, event: bool) -> None:
        assert self.rate is not None
        self.count(sequence, ratios_of_event(event, self.rate), event)

    def status(self) -> MonitorStatus:
        found = self.evidence
        return MonitorStatus(
            self.watched, self.rate, found.cases, self.events, found.of_late, found.e_value,
            found.of_late >= self.every, self.warning, self.alarm,
        )  # fmt: skip


@dataclass(slots=True)
class _Policy:
    """What is known of one policy: from its first decision on, or from an alarm, whose decisions may be deleted."""

    model: str
    digest: str
    every: float
    known: bool = False
    alpha: float | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    streams: dict[Watched, _Stream] = field(default_factory=dict)
    images: dict[str, _Image] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    marked: int = 0
    judged: int = 0
    wrong: int = 0
    alarm: int | None = None
    why: str = ""
    noted: bool = False

    def learn(self, alpha: float | None, expected: Mapping[str, float]) -> None:
        """What a decision says of it; without α there is no monitor of errors."""
        self.known, self.alpha, self.expected = True, alpha, expected
        self._begin()

    def _begin(self) -> None:
        """All monitors from the start."""
        rates = {Watched.ERROR: self.alpha, **{each: self.expected.get(name) for each, name in _EXPECTED.items()}}
        self.streams = {
            watched: _Stream(watched, min(_HIGHEST, max(_LOWEST, rate)), self.every, no_evidence(len(ODDS)))
            for watched, rate in rates.items()
            if rate is not None and rate < _HIGHEST
        }
        self.streams[Watched.CALIBRATION] = _Stream(Watched.CALIBRATION, None, self.every, no_evidence(1))

    def seen_image(self, image: str, sequence: int, body: Mapping[str, Any]) -> None:
        """Every decision: how many go to review, and how many images are unlike the calibration cases."""
        key, rank, route = int(image[-16:], 16), body.get("ood_rank"), body["route"]
        rank = None if rank is None else float(rank)
        closed = (body.get("reason") or {}).get("code") == "closed"
        if key in self.seen or closed or self.alarm is not None:  # after an alarm, accept may be closed
            return
        self.seen.add(key)
        if rank is not None and Watched.DRIFT in self.streams:
            self._count(Watched.DRIFT, sequence, rank > UNUSUAL)
        # The server's own route: what a client knows beside the pixels is in no calibration.
        if route != "reject" and Watched.REFERRAL in self.streams:
            self._count(Watched.REFERRAL, sequence, route != "accept")

    def decision(self, image: str, marked: bool, body: Mapping[str, Any]) -> None:
        found = self.images.setdefault(image, _Image(confidence=body.get("confidence"), intervals=_intervals(body)))
        found.copies += 1
        if marked and not found.marked:
            found.marked = True
            self.marked += 1
            self._count_verdict(image, found)

    def verdict(self, image: str, judged: _Judged) -> None:
        found = self.images[image]
        if found.judged is None:  # a second opinion is not a second case
            found.judged = judged
            self._count_verdict(image, found)
        elif judged.volumes and not found.judged.volumes:  # measured later
            found.judged = replace(found.judged, volumes=judged.volumes)
            if found.marked and self.alpha is not None:
                self._count_volume(found, judged.sequence)

    def forget(self, image: str) -> None:
        """A decision's content was deleted. A verdict that was counted stays counted until the log is read anew."""
        found = self.images[image]
        found.copies -= 1
        if not found.copies and found.judged is None:
            self.marked -= found.marked
            del self.images[image]

    def note(self, entry: Entry, reason: str) -> None:
        """The log says that a monitor has alarmed, or that a person opens accept again."""
        if entry.kind is Kind.OPENING:
            self.alarm, self.why, self.noted = None, "", False
            self._begin()
            return
        self.noted = True
        if self.alarm is None:
            self.alarm, self.why = entry.sequence, reason

    def _count_verdict(self, image: str, found: _Image) -> None:
        if not found.marked or found.judged is None or self.alpha is None:
            return
        sequence, wrong = found.judged.sequence, found.judged.wrong
        self.judged += 1
        self.wrong += wrong
        self._count(Watched.ERROR, sequence, wrong)
        self._count_volume(found, sequence)
        if found.confidence is not None:
            draws = int(image[16:32], 16) / 2**64, int(image[32:48], 16) / 2**64
            stream = self.streams[Watched.CALIBRATION]
            number = transform(float(found.confidence), not wrong, draws[0])
            stream.count(sequence, (stream.exchangeability.ratio(number, draws[1]),))
            self._alarm_by(stream)

    def _count_volume(self, found: _Image, sequence: int) -> None:
        assert found.judged is not None
        stated = [name for name in found.judged.volumes if name in found.intervals]
        if stated and Watched.COVERAGE in self.streams:
            name = "total" if "total" in stated else sorted(stated)[0]
            low, high = found.intervals[name]
            self._count(Watched.COVERAGE, sequence, not low <= found.judged.volumes[name] <= high)

    def _count(self, watched: Watched, sequence: int, event: bool) -> None:
        stream = self.streams[watched]
        stream.count_event(sequence, event)
        self._alarm_by(stream)

    def _alarm_by(self, stream: _Stream) -> None:
        if self.alarm is None and stream.alarm is not None:
            self.alarm, self.why = stream.alarm, stream.watched.words

    def status(self) -> PolicyStatus:
        if self.alpha is None and self.images:
            raise AuditError(f"policy {self.digest[:12]} states no alpha; give one with --alpha")
        return PolicyStatus(
            self.model, self.digest, self.alpha, len(self.images), self.marked, self.judged, self.wrong,
            tuple(stream.status() for stream in self.streams.values() if stream.evidence.cases),
            self.alarm, self.why, self.noted,
        )  # fmt: skip


def _route(body: Mapping[str, Any]) -> Any:
    """The final route where it is stated: a client may hold back what the server accepts, which sees pixels only."""
    return (body.get("routed") or body).get("route")


def _study(body: Mapping[str, Any]) -> bool:
    return bool(body.get("seed_named") or body.get("samples_named"))


def _intervals(body: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    found = {name: (each.get("low"), each.get("high")) for name, each in (body.get("volume_ml") or {}).items()}
    return {name: (float(low), float(high)) for name, (low, high) in found.items() if None not in (low, high)}


def _volumes(stated: Any) -> dict[str, float]:
    return {str(name): float(volume) for name, volume in (stated or {}).items()}
