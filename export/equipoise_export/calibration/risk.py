"""Thresholds with a guarantee, by Learn-then-Test and by conformal risk control.

Both hold for cases exchangeable with the calibration cases (same kind of patient, scanner, protocol), and for nothing
else. Neither trusts the network: a bad score costs accepted cases, not the guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from .errors import TooFewCases

Floats = NDArray[np.floating[Any]]

HEAD_START = 1.5
"""Testing begins where this multiple of the cases needed for any certificate is accepted, or half of all cases if that
is fewer: at the strictest threshold a single unlucky error would end it."""


def binomial_p_value(losses: Floats, cases: NDArray[np.integer[Any]], alpha: float) -> Floats:
    """`P(Bin(n, α) ≤ k)`: exact p-value of "the error rate exceeds α" after k errors in n cases, for a 0/1 loss.

    Args:
        losses: number of errors k, any shape.
        cases: n, same shape; 0 gives 1.
        alpha: 0..1.
    """
    return np.asarray(binom.cdf(losses, cases, alpha))


def accepted_cases_needed(alpha: float, delta: float, errors: int = 0) -> int:
    """The fewest accepted cases that certify "error ≤ α with confidence 1−δ" in spite of `errors` of them being wrong.

    `min{n : P(Bin(n, α) ≤ errors) ≤ δ}`; without any error `⌈ln δ / ln(1−α)⌉`: 22 at α = δ = .1, 59 at .05.

    >>> accepted_cases_needed(0.1, 0.1), accepted_cases_needed(0.05, 0.05), accepted_cases_needed(0.1, 0.1, errors=1)
    (22, 59, 38)
    """
    cases = math.ceil(math.log(delta) / math.log1p(-alpha))
    while binom.cdf(errors, cases, alpha) > delta:
        cases += 1
    return cases


@dataclass(frozen=True)
class Certificate:
    """What Learn-then-Test chose: candidate number `index`, and what the calibration cases did under it.

    Attributes:
        accepted: cases that it accepts.
        losses: the number of errors among them.
        p_value: of "the risk among accepted cases exceeds α" at this candidate.
    """

    index: int
    accepted: int
    losses: float
    p_value: float


def learn_then_test(accepted: NDArray[np.bool_], losses: Floats, alpha: float, delta: float) -> Certificate | None:
    """The most permissive candidate whose risk *among accepted cases* is at most α, with confidence 1−δ.

    Fixed-sequence testing (Angelopoulos et al. 2021, arXiv 2110.01052): candidates are tested one by one at level δ,
    the first that cannot be certified ends the sequence, the last that was certified is chosen. Because the sequence
    ends, no correction for the number of candidates is needed. A candidate is any rule that was fixed without looking
    at these cases: a threshold on a score, or those of a list of stages.

    The sequence begins at the first candidate that accepts enough cases for a certificate (see `HEAD_START`): which one
    that is depends on how many are accepted, never on whether they are right. For candidates that accept more and more,
    and a score that gets no better as it rises, the guarantee is exact: the first bad candidate's accepted cases are at
    least as often wrong as its rate says.

    Args:
        accepted: `[n, L]`, whether candidate l accepts case i; l from the strictest to the most permissive.
        losses: `[n]` or `[n, L]`, 0 or 1: whether accepting case i (under candidate l) is an error.
        alpha: the largest acceptable risk, 0..1.
        delta: the chance of a certificate that does not hold, 0..1.

    Returns:
        None where not even the first candidate could be certified.

    Raises:
        TooFewCases: so few cases that no certificate is possible, however good the model is.
    """
    needed = accepted_cases_needed(alpha, delta)
    if len(losses) < needed:
        raise TooFewCases(f"an error rate of at most {alpha:g} with confidence {1 - delta:g}", len(losses), needed)
    counts = accepted.sum(axis=0)
    enough = counts >= min(math.ceil(HEAD_START * needed), max(needed, len(losses) // 2))
    if not enough.any():
        return None
    first = int(np.argmax(enough))
    wide = np.asarray(losses, dtype=np.float64)
    sums = (accepted * (wide if wide.ndim == 2 else wide[:, None])).sum(axis=0)
    p_values = binomial_p_value(sums[first:], counts[first:], alpha)
    failed = p_values > delta
    passed = int(np.argmax(failed)) if failed.any() else len(p_values)
    if passed == 0:
        return None
    index = first + passed - 1
    return Certificate(index, int(counts[index]), float(sums[index]), float(p_values[passed - 1]))


def cases_needed_for_control(alpha: float) -> int:
    """Fewest cases for conformal risk control at α: `(n·0 + 1)/(n + 1) ≤ α`, so `⌈1/α⌉ − 1`: 9 at .1."""
    return math.ceil(1.0 / alpha - 1e-9) - 1


def conformal_risk_control(losses: Floats, alpha: float) -> int:
    """`λ̂ = inf{λ : (n·R̂(λ) + 1)/(n + 1) ≤ α}`, the first candidate whose expected loss on a new case is at most α.

    Angelopoulos et al. 2022, "Conformal risk control" (arXiv 2208.02814). The expectation is over the calibration cases
    as well as the new one: it is an average, not a confidence statement.

    Args:
        losses: `[n, L]`, 0..1, falling (or equal) along the candidates for every case; the last must be 0 throughout,
            so that there always is an answer.

    Returns:
        Index of the chosen candidate.
    """
    cases, _ = losses.shape
    needed = cases_needed_for_control(alpha)
    if cases < needed:
        raise TooFewCases(f"an expected loss of at most {alpha:g}", cases, needed)
    if (np.diff(losses, axis=1) > 1e-12).any() or losses[:, -1].any():
        raise ValueError("losses must not rise along the candidates and must end at 0; order the candidates so")
    return int(np.argmax((losses.sum(axis=0) + 1.0) / (cases + 1) <= alpha))
