"""The evidence of one monitor along its cases, in the order in which these were decided.

Verdicts come in another order: the worklist shows the most uncertain cases first, and some are never judged. A case
keeps its place, and its verdict is put there when it comes; what follows is reckoned anew. Until then it counts as
right against an alarm: the evidence is then at most what it would be with all verdicts, so that whoever stops or looks
when it suits has no more false alarms (Ville's inequality for the cases in their order). What follows the last case
with a verdict does not count yet. For a warning, which promises less, cases without a verdict are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .evidence import ODDS, Evidence, Exchangeability, no_evidence, ratios_of_event


class Outcome(Enum):
    """Of a case at its place."""

    NO = "no"
    YES = "yes"
    WAITING = "waiting"
    """Not known yet; as good as no against an alarm."""
    OPTIONAL = "optional"
    """Not known yet, and perhaps never: passed over until it is."""
    GONE = "gone"


_LATER = (Outcome.WAITING, Outcome.OPTIONAL)


@dataclass(slots=True)
class Stream:
    """See the module.

    Attributes:
        rate: that the event has at most, 0..1, both ends exclusive.
        every, limit: evidence of late from which it warns, and e-value from which it alarms.
        cases, events: with an outcome, so far.
        warning, alarm: number of the line at which the limit was reached first, or None.
    """

    rate: float
    every: float
    limit: float
    cases: int = 0
    events: int = 0
    warning: int | None = None
    alarm: int | None = None
    _settled: Evidence = field(default_factory=lambda: no_evidence(len(ODDS)))
    _first: int = 0  # place of the first of `_open`; all before it are settled
    _open: list[Outcome] = field(default_factory=list)
    _after: list[Evidence] = field(default_factory=list)  # of `_open`, up to the last that has an outcome

    @property
    def evidence(self) -> Evidence:
        """After the last case that has an outcome."""
        return self._after[-1] if self._after else self._settled

    def place(self, outcome: Outcome = Outcome.WAITING) -> int:
        """A further case, decided after all others."""
        self._open.append(outcome)
        return self._first + len(self._open) - 1

    def put(self, place: int, event: bool | None, sequence: int) -> None:
        """What became of a case; None: it is gone. Once for each place.

        Args:
            sequence: number of the line that says so.
        """
        index = place - self._first
        self._open[index] = Outcome.GONE if event is None else Outcome.YES if event else Outcome.NO
        self.cases += event is not None
        self.events += bool(event)
        upto = max(len(self._after), index + 1 if event is not None else 0)
        begin = min(index, len(self._after))
        del self._after[begin:]
        for outcome in self._open[begin:upto]:
            evidence = self._next(outcome)
            self._after.append(evidence)
            if self.warning is None and evidence.of_late >= self.every:
                self.warning = sequence
            if self.alarm is None and evidence.e_value >= self.limit:
                self.alarm = sequence
        waiting = (at for at, outcome in enumerate(self._open) if outcome in _LATER)
        known = min(next(waiting, len(self._open)), len(self._after))
        if known:
            self._settled, self._first = self._after[known - 1], self._first + known
            del self._open[:known], self._after[:known]

    def add(self, event: bool, sequence: int) -> None:
        """A case whose outcome is known when it is decided."""
        self.put(self.place(), event, sequence)

    def _next(self, outcome: Outcome) -> Evidence:
        before = self.evidence
        if outcome in (Outcome.OPTIONAL, Outcome.GONE):
            return before
        ratios = ratios_of_event(outcome is Outcome.YES, self.rate)
        return before.after(ratios, known=outcome is not Outcome.WAITING)


@dataclass(slots=True)
class Change:
    """As `Stream`, of numbers that are to go on as they began; there is no rate, and nothing that a case is at least.

    Attributes:
        cases: so far.
    """

    every: float
    limit: float
    evidence: Evidence = field(default_factory=lambda: no_evidence(1))
    warning: int | None = None
    alarm: int | None = None
    rate: None = None
    events: int = 0
    _before: Exchangeability = field(default_factory=Exchangeability)

    @property
    def cases(self) -> int:
        return self.evidence.cases

    def add(self, number: float, draw: float, sequence: int) -> None:
        """The next number, see `Exchangeability.ratio`."""
        self.evidence = self.evidence.after((self._before.ratio(number, draw),))
        if self.warning is None and self.evidence.of_late >= self.every:
            self.warning = sequence
        if self.alarm is None and self.evidence.e_value >= self.limit:
            self.alarm = sequence
