"""Evidence against "nothing has changed", case by case: how much there is lately, and whether there ever was enough.

A monitor turns each case into likelihood ratios: numbers ≥ 0 whose mean is at most 1 as long as its promise holds,
whatever came before. `Evidence` multiplies them up in two ways, which differ in what a restart costs:

    recent    R ← (1 + R) · L      Shiryaev-Roberts e-detector (Shin, Ramdas & Rinaldo 2022, arXiv 2203.03532). Its mean
                                   grows by at most 1 a case: it reaches A on average not before A cases.
    ever      S ← (S + wₙ) · L     an e-process: a mixture over the case n at which things went wrong, of prior
                                   wₙ = 1/(n(n + 1)). Its mean stays at most 1: it ever reaches 1/δ with probability
                                   at most δ, over all time (Ville 1939; Ramdas et al. 2023, arXiv 2210.01948).

The first notices sooner and has false alarms again and again, rarely. The second has at most one chance of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

ODDS = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Suspected changes of an event's odds, all looked for at once."""

_BINS = 10
_FORGET = 0.98
"""Weight of the p-value before: the density that is bet on follows a change within some fifty cases."""


@dataclass(frozen=True)
class Evidence:
    """See the module.

    Attributes:
        recent, ever: R and S of each suspected change.
        cases: n, so far.
    """

    recent: tuple[float, ...]
    ever: tuple[float, ...]
    cases: int = 0

    @property
    def of_late(self) -> float:
        """M: compared with the average number of cases between false warnings that is put up with."""
        return sum(self.recent) / len(self.recent)

    @property
    def e_value(self) -> float:
        """Compared with 1/δ. 1 before the first case: what no restart has used yet counts as it is."""
        return sum(self.ever) / len(self.ever) + 1.0 / (self.cases + 1)

    def after(self, ratios: Sequence[float], known: bool = True) -> Evidence:
        """With one more case, whose likelihood ratio under each suspected change is given.

        Args:
            known: whether that is what became of it, or the least that it can be: then it is nothing that was noticed.
        """
        n = self.cases + 1
        weight = 1.0 / (n * (n + 1))
        recent = (
            tuple((1.0 + r) * ratio for r, ratio in zip(self.recent, ratios, strict=True)) if known else self.recent
        )
        ever = tuple((s + weight) * ratio for s, ratio in zip(self.ever, ratios, strict=True))
        return replace(self, recent=recent, ever=ever, cases=n)


def no_evidence(changes: int) -> Evidence:
    """Before the first case, for so many suspected changes."""
    return Evidence((0.0,) * changes, (0.0,) * changes)


@lru_cache(maxsize=64)
def ratios_of_event(happened: bool, rate: float) -> tuple[float, ...]:
    """Likelihood ratios of an event whose rate is at most `rate` against rates of `ODDS` times its odds.

    Args:
        rate: 0..1, both ends exclusive.
    """
    suspected = [odds * rate / (1.0 - rate + odds * rate) for odds in ODDS]
    return tuple(q / rate if happened else (1.0 - q) / (1.0 - rate) for q in suspected)


@dataclass
class Exchangeability:
    """Whether numbers go on as they began: conformal p-values, and a bet on those that came more often lately.

    The p-value of a number is its rank among all before it, ties broken by a draw; as long as the numbers are
    exchangeable these are independent and uniform (Vovk et al. 2005), so that any density learned from earlier ones
    is a fair bet. For calibration the numbers are probability integral transforms (Farran 2026, arXiv 2603.13156).
    """

    past: list[float] = field(default_factory=list)
    counts: list[float] = field(default_factory=lambda: [0.0] * _BINS)

    def ratio(self, number: float, draw: float) -> float:
        """The likelihood ratio of the next number.

        Args:
            draw: uniform in 0..1, of nothing else.
        """
        below, upto = bisect_left(self.past, number), bisect_right(self.past, number)
        p = (below + draw * (upto - below + 1)) / (len(self.past) + 1)
        place = min(_BINS - 1, int(p * _BINS))
        ratio = _BINS * (self.counts[place] + 1.0) / (sum(self.counts) + _BINS)
        self.counts = [count * _FORGET for count in self.counts]
        self.counts[place] += 1.0
        insort(self.past, number)
        return ratio


def transform(confidence: float, right: bool, draw: float) -> float:
    """The randomised probability integral transform of "the answer is right", 0..1: uniform where P(right) is what the
    model says.

    Args:
        draw: uniform in 0..1, of nothing else.
    """
    return 1.0 - confidence + draw * confidence if right else draw * (1.0 - confidence)
