"""Evidence that may be looked at after every case: is the error among accepted cases below α?

A bet against "the error rate is α or more" gains with every right case and loses with every error. If that were so, its
wealth, which starts at 1, would reach 1/δ with probability at most δ over all time (Ville 1939): one may look as often
as one likes and stop at any time, which a binomial test repeated with every case does not allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import betainc, betaln

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

_PRIOR = 0.5
"""Bets are mixed by Beta(½, ½) over the error rates that they bet on."""


def log_wealth(errors: Integers, cases: Integers, alpha: float) -> Floats:
    """ln of the wealth of a bet against "the error rate is ≥ α" after some cases with some errors.

    `E = ∫₀^α Π (p/α)^L ((1−p)/(1−α))^(1−L) dπ(p)`: each factor is a bet `1 − λ (L − α)` with λ = (α − p)/(α(1 − α)) in
    `[0, 1/(1−α)]` (Waudby-Smith & Ramdas 2024, arXiv 2010.09686), mixed over p by Beta(½, ½) cut off at α (Robbins
    1970). A supermartingale whenever each case errs with probability at least α given those before it. It depends on
    the two counts alone. Losses are 0 or 1.

    The mirrored `log_wealth(cases − errors, cases, 1 − alpha)` is the bet against "the error rate is ≤ α".

    Args:
        errors, cases: 0 ≤ errors ≤ cases, of one shape.
        alpha: between 0 and 1, neither.

    Returns:
        Of that shape; −inf where nothing measurable is left.
    """
    right = cases - errors
    with np.errstate(divide="ignore"):
        gained = betaln(errors + _PRIOR, right + _PRIOR) + np.log(betainc(errors + _PRIOR, right + _PRIOR, alpha))
    staked = betaln(_PRIOR, _PRIOR) + math.log(betainc(_PRIOR, _PRIOR, alpha))
    return np.asarray(gained - staked - errors * math.log(alpha) - right * math.log1p(-alpha))


def error_bounds(errors: int, cases: int, delta: float) -> tuple[float, float]:
    """Confidence sequence of the error rate: (low, high), each with confidence 1 − δ over all numbers of cases at once.

    The rates that neither bet has refuted: high is the smallest α at which `log_wealth` reaches ln(1/δ).
    """

    def high(lost: int) -> float:
        if lost == cases:
            return 1.0
        seen, limit = max(lost / cases, 1e-9), 1.0 - 1e-12

        def short(rate: float) -> float:
            return float(log_wealth(np.array(lost), np.array(cases), rate)) + math.log(delta)

        return float(brentq(short, seen, limit)) if short(limit) > 0.0 else 1.0

    return (1.0 - high(cases - errors), high(errors)) if cases else (0.0, 1.0)


def labels_until_open(alpha: float, delta: float, error: float, errors: int = 0, cases: int = 0) -> int | None:
    """Further accepted cases until the bet reaches 1/δ where a share `error` of them is wrong.

    Args:
        errors, cases: so far.

    Returns:
        None: more than 10,000.
    """
    further = np.arange(1, 10_001)
    wrong = errors + np.ceil(further * error - 1e-9).astype(np.int64)
    reached = log_wealth(wrong, cases + further, alpha) >= -math.log(delta)
    return int(further[np.argmax(reached)]) if reached.any() else None


@dataclass(frozen=True)
class Growth:
    """What was known after each of n labelled cases, of K candidates from the strictest to the most permissive.

    Attributes:
        accepted, errors: `[n, K]` so far.
        wealth: `[n, K]`, ln of the bet's wealth.
        certified: `[n, K]`: its wealth has reached 1/δ at some time, and so has that of every stricter candidate.
        refuted: `[n, K]`: the mirrored bet has reached 1/δ: the error rate is above α. So are all more permissive ones.
    """

    accepted: Integers
    errors: Integers
    wealth: Floats
    certified: NDArray[np.bool_]
    refuted: NDArray[np.bool_]

    @property
    def open(self) -> int | None:
        """The most permissive candidate that may accept now, at one site; None: none may."""
        if not len(self.certified):
            return None
        fine = np.flatnonzero(self.certified[-1] & ~self.refuted[-1])
        return int(fine[-1]) if len(fine) else None


def follow(accepted: NDArray[np.bool_], losses: Floats, alpha: float, delta: float) -> Growth:
    """Certificates that grow with labelled cases.

    Candidates are certified in a fixed sequence: one only after all stricter ones, each at level δ. A certificate that
    does not hold takes that the first candidate in the sequence whose error is α or more is certified, so whatever is
    certified, at any time, fails with probability at most δ in all.

    Args:
        accepted: `[…, n, K]`, whether candidate k accepts case i; cases in an order that does not depend on their
            labels.
        losses: `[…, n, K]`, 0 or 1: whether accepting case i under candidate k is an error.
        alpha, delta: between 0 and 1.
    """
    counts = accepted.cumsum(axis=-2)
    errors = np.where(accepted, losses, 0.0).cumsum(axis=-2).round().astype(np.int64)
    wealth = log_wealth(errors, counts, alpha)
    enough = -math.log(delta)
    reached = np.logical_or.accumulate(wealth >= enough, axis=-2)
    against = np.logical_or.accumulate(log_wealth(counts - errors, counts, 1.0 - alpha) >= enough, axis=-2)
    return Growth(
        counts,
        errors,
        wealth,
        np.logical_and.accumulate(reached, axis=-1),
        np.logical_or.accumulate(against, axis=-1),
    )
