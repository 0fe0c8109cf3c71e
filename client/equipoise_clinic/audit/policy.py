"""One policy under watch: its accepted images, what experts said of them, and what each monitor makes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from equipoise_core.monitoring import UNUSUAL

from .entry import AuditError, Entry, Kind
from .evidence import transform
from .status import EXPECTED, LIMIT, MonitorStatus, PolicyStatus, Watched
from .stream import Change, Outcome, Stream

_LOWEST, _HIGHEST = 1e-3, 1.0 - 1e-3


@dataclass(frozen=True, slots=True)
class Judged:
    sequence: int
    wrong: bool
    measured: Mapping[str, float]


@dataclass(slots=True)
class _Image:
    """An accepted image: decisions of it that still have their content; its first verdict, and what was said of it.

    Attributes:
        place: in the streams, of a marked one that counts.
        together: whether all its intervals hold at once, or each on its own.
    """

    confidence: float | None
    intervals: Mapping[str, tuple[float, float]]
    together: bool
    draws: tuple[float, float]
    copies: int = 0
    marked: bool = False
    judged: Judged | None = None
    place: int | None = None

    def outside(self) -> bool | None:
        """Whether what was measured lies outside its interval; None: nothing that has one was measured."""
        measured = self.judged.measured if self.judged else {}
        names = sorted(measured.keys() & self.intervals.keys(), key=lambda name: (name != "total", name))
        if not names:
            return None
        counted = names if self.together else names[:1]
        return any(not self.intervals[name][0] <= measured[name] <= self.intervals[name][1] for name in counted)


@dataclass(slots=True)
class WatchedPolicy:
    """What is known of one policy: from its first decision on, or from an alarm, whose decisions may be deleted."""

    model: str
    digest: str
    every: float
    known: bool = False
    alpha: float | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    streams: dict[Watched, Stream | Change] = field(default_factory=dict)
    images: dict[str, _Image] = field(default_factory=dict)
    unjudged: deque[_Image] = field(default_factory=deque)  # that calibration waits for, in the order of decisions
    seen: set[int] = field(default_factory=set)
    patients: set[str] = field(default_factory=set)
    audited: set[str] = field(default_factory=set)
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
        """All monitors from the start, with the cases that are decided from now on."""
        rates = {Watched.ERROR: self.alpha, **{each: self.expected.get(name) for each, name in EXPECTED.items()}}
        self.streams = {
            watched: Stream(min(_HIGHEST, max(_LOWEST, rate)), self.every, LIMIT)
            for watched, rate in rates.items()
            if rate is not None and rate < _HIGHEST
        }
        self.streams[Watched.CALIBRATION] = Change(self.every, LIMIT)
        for image in self.images.values():
            image.place = None
        for each in (self.unjudged, self.patients, self.audited):
            each.clear()

    def seen_image(self, image: str, sequence: int, body: Mapping[str, Any]) -> None:
        """Every decision: how many go to review, and how many images are unlike the calibration cases."""
        key, rank, route = int(image[-16:], 16), body.get("ood_rank"), body["route"]
        rank = None if rank is None else float(rank)
        closed = (body.get("reason") or {}).get("code") == "closed"
        if key in self.seen or closed or self.alarm is not None:  # after an alarm, accept may be closed
            return
        self.seen.add(key)
        if not _first_of_patient(self.patients, body):
            return
        if rank is not None:
            self._add(Watched.DRIFT, sequence, rank > UNUSUAL)
        # The server's own route: what a client knows beside the pixels is in no calibration.
        if route != "reject":
            self._add(Watched.REFERRAL, sequence, route != "accept")

    def decision(self, image: str, marked: bool, sequence: int, body: Mapping[str, Any]) -> None:
        found = self.images.get(image) or _image(image, body)
        self.images[image] = found
        found.copies += 1
        if marked and not found.marked:
            found.marked = True
            self.marked += 1
            if self.alpha is not None and _first_of_patient(self.audited, body):
                found.place = self._place(Watched.ERROR, Outcome.WAITING)
                self._place(Watched.COVERAGE, Outcome.OPTIONAL)
                if found.confidence is not None:
                    self.unjudged.append(found)
            if found.judged is not None:
                self._count(found, sequence)

    def verdict(self, image: str, judged: Judged) -> None:
        found = self.images[image]
        if found.judged is None:  # a second opinion is not a second case
            found.judged = judged
            if found.marked:
                self._count(found, judged.sequence)
        elif judged.measured and not found.judged.measured:  # measured later
            found.judged = replace(found.judged, measured=judged.measured)
            self._put(Watched.COVERAGE, found.place, found.outside(), judged.sequence)

    def forget(self, image: str, sequence: int) -> None:
        """A decision's content was deleted. A verdict that was counted stays counted until the log is read anew."""
        found = self.images[image]
        found.copies -= 1
        if not found.copies and found.judged is None:
            self.marked -= found.marked
            del self.images[image]
            if found.place is not None:
                for watched in (Watched.ERROR, Watched.COVERAGE):
                    self._put(watched, found.place, None, sequence)
                self._calibrate(sequence)

    def note(self, entry: Entry, reason: str) -> None:
        """The log says that a monitor has alarmed, or that a person opens accept again."""
        if entry.kind is Kind.OPENING:
            self.alarm, self.why, self.noted = None, "", False
            self._begin()
            return
        self.noted = True
        if self.alarm is None:
            self.alarm, self.why = entry.sequence, reason

    def _count(self, found: _Image, sequence: int) -> None:
        """A marked image has a verdict."""
        if self.alpha is None or found.judged is None:
            return
        self.judged += 1
        self.wrong += found.judged.wrong
        self._put(Watched.ERROR, found.place, found.judged.wrong, sequence)
        outside = found.outside()
        if outside is not None:
            self._put(Watched.COVERAGE, found.place, outside, sequence)
        self._calibrate(sequence)

    def _calibrate(self, sequence: int) -> None:
        """With the cases whose turn it is: no case is counted before those that were decided before it."""
        stream = self.streams[Watched.CALIBRATION]
        while self.unjudged and (self.unjudged[0].judged is not None or not self.unjudged[0].copies):
            found = self.unjudged.popleft()
            if found.judged is not None and found.confidence is not None and isinstance(stream, Change):
                number = transform(found.confidence, not found.judged.wrong, found.draws[0])
                stream.add(number, found.draws[1], sequence)
                self._alarm_by(Watched.CALIBRATION, stream)

    def _place(self, watched: Watched, outcome: Outcome) -> int | None:
        """The same in every stream of marked cases."""
        stream = self.streams.get(watched)
        return stream.place(outcome) if isinstance(stream, Stream) else None

    def _put(self, watched: Watched, place: int | None, event: bool | None, sequence: int) -> None:
        stream = self.streams.get(watched)
        if place is not None and isinstance(stream, Stream):
            stream.put(place, event, sequence)
            self._alarm_by(watched, stream)

    def _add(self, watched: Watched, sequence: int, event: bool) -> None:
        self._put(watched, self._place(watched, Outcome.WAITING), event, sequence)

    def _alarm_by(self, watched: Watched, stream: Stream | Change) -> None:
        if self.alarm is None and stream.alarm is not None:
            self.alarm, self.why = stream.alarm, watched.words

    def status(self) -> PolicyStatus:
        if self.alpha is None and self.images:
            raise AuditError(f"policy {self.digest[:12]} states no alpha; give one with --alpha")
        return PolicyStatus(
            self.model, self.digest, self.alpha, len(self.images), self.marked, self.judged, self.wrong,
            tuple(_status(watched, stream) for watched, stream in self.streams.items() if stream.cases),
            self.alarm, self.why, self.noted,
        )  # fmt: skip


def _status(watched: Watched, stream: Stream | Change) -> MonitorStatus:
    found = stream.evidence
    return MonitorStatus(
        watched, stream.rate, stream.cases, stream.events, found.of_late, found.e_value,
        found.of_late >= stream.every, stream.warning, stream.alarm,
    )  # fmt: skip


def _first_of_patient(known: set[str], body: Mapping[str, Any]) -> bool:
    """Images of one patient say no more than one of them. Whoever is not named is another patient each time."""
    patient = body.get("patient")
    if patient is None:
        return True
    new = str(patient) not in known
    known.add(str(patient))
    return new


def _image(digest: str, body: Mapping[str, Any]) -> _Image:
    confidence, values = body.get("confidence"), body.get("values")
    stated = {**(body.get("volume_ml") or {}), **(values or {})}
    ends = {name: (each.get("low"), each.get("high")) for name, each in stated.items()}
    return _Image(
        None if confidence is None else float(confidence),
        {name: (float(low), float(high)) for name, (low, high) in ends.items() if None not in (low, high)},
        bool(values),
        (int(digest[16:32], 16) / 2**64, int(digest[32:48], 16) / 2**64),
    )
