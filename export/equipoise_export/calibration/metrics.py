"""How good answers, probabilities and scores are.

Cases are along the first axis: probabilities `[n, K]`, labels `[n]` in 0..K−1. Figures of scores take `weights`
`[R, n]`, how often each case occurs in each of R resamples, and are then `[R]`; without weights every case counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Metric = Callable[[Floats, Integers], float]

BINS = 15
CELLS = 960
"""Places of the smooth calibration error: its kernel is hardly ever narrower than a few of them."""

SMALLEST = 1e-7
"""Probabilities are held above this in logarithms."""


def bin_sums(confidence: Floats, hit: NDArray[Any], edges: Floats) -> Floats:
    """`[3, bins]`: cases, sum of their confidence, and how many were right. Sums of two sets of cases add up.

    Args:
        confidence: `[n]` in 0..1.
        hit: `[n]` 0/1.
        edges: `[bins + 1]`, rising.
    """
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, bins - 1)
    weights = (None, confidence, np.asarray(hit, dtype=np.float64))
    return np.stack([np.bincount(place, weights=each, minlength=bins).astype(np.float64) for each in weights])


def _gap(confidence: Floats, hit: NDArray[Any], edges: Floats) -> float:
    _, sums, hits = bin_sums(confidence, hit, edges)
    return float(np.abs(hits - sums).sum() / len(confidence))


def dice(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice of two masks of one shape, 0..1; 1 where both are empty."""
    total = int(predicted.sum()) + int(truth.sum())
    return 2.0 * int((predicted & truth).sum()) / total if total else 1.0


def no_and_yes(probabilities: Floats) -> Floats:
    """`[n]` → `[n, 2]`: a label that may hold or not as two exclusive classes."""
    return np.stack([1.0 - probabilities, probabilities], axis=1)


def equal_widths() -> Floats:
    """Edges of the ECE's bins."""
    return np.linspace(0.0, 1.0, BINS + 1)


def _equal_counts(confidence: Floats) -> Floats:
    edges = np.unique(np.quantile(confidence, np.linspace(0.0, 1.0, BINS + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])


def expected_calibration_error(probabilities: Floats, labels: Integers) -> float:
    """ECE: `Σ_b n_b/n · |accuracy_b − confidence_b|` over 15 equal-width bins of the top probability; 0..1.

    Guo et al. 2017 (arXiv 1706.04599).
    """
    return _gap(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, equal_widths())


def adaptive_calibration_error(probabilities: Floats, labels: Integers) -> float:
    """ACE: like ECE, but 15 bins of equal count for every class, averaged over classes; 0..1 (Nixon et al. 2019)."""
    columns = probabilities.T
    return float(np.mean([_gap(p, labels == k, _equal_counts(p)) for k, p in enumerate(columns)]))


def residual_sums(confidence: Floats, hit: NDArray[Any]) -> Floats:
    """`[CELLS]`: `Σ (hit − confidence)` of the cases in each of so many equal parts of 0..1. Sums of two sets add up.

    Args:
        confidence: `[n]` in 0..1.
        hit: `[n]` 0/1.
    """
    place = np.minimum((confidence * CELLS).astype(np.int64), CELLS - 1)
    return np.bincount(place, np.asarray(hit, np.float64) - confidence, CELLS).astype(np.float64)


def smooth_error(residuals: Floats) -> Floats:
    """The width σ at which smoothed residuals have σ as the sum of their sizes: `[…, CELLS]` → `[…]`, 0..1.

    Smoothing is by the heat kernel of a path that reflects at its ends: on `CELLS` places it is what the reflected
    Gaussian kernel of width σ is on 0..1, and cosines are its eigenvectors. It only ever lowers the sum, so that there
    is one such σ, found by bisection.

    Args:
        residuals: as from `residual_sums`, over the number of cases.
    """
    waves = dct(residuals, norm="ortho")
    decay = CELLS**2 * (1.0 - np.cos(np.pi * np.arange(CELLS) / CELLS))
    low, high = np.zeros(residuals.shape[:-1]), np.ones(residuals.shape[:-1])
    for _ in range(16):
        width = (low + high) / 2.0
        smoothed = idct(waves * np.exp(-(width[..., None] ** 2) * decay), norm="ortho")
        wide = np.abs(smoothed).sum(axis=-1) < width
        low, high = np.where(wide, low, width), np.where(wide, width, high)
    return low


def smooth_calibration_error(probabilities: Floats, labels: Integers) -> float:
    """Smooth ECE of the top probability, 0..1: what ECE is with a kernel of a width that follows from the data itself
    instead of bins, so that no case's place near a border decides (Błasiok & Nakkiran 2023, arXiv 2309.12236)."""
    residuals = residual_sums(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
    return float(smooth_error(residuals / len(labels)))


def classwise_calibration_error(probabilities: Floats, labels: Integers) -> float:
    """Class-wise ECE: `class_calibration_errors`, mean over classes; 0..1 (Kull et al. 2019; Nixon et al. 2019)."""
    return float(np.mean(class_calibration_errors(probabilities, labels)))


def class_calibration_errors(probabilities: Floats, labels: Integers) -> list[float]:
    """Per class: `Σ_b n_b/n · |frequency_b − probability_b|` over 15 equal-width bins; rare classes fail first."""
    return [_gap(p, labels == k, equal_widths()) for k, p in enumerate(probabilities.T)]


def brier_score(probabilities: Floats, labels: Integers) -> float:
    """Mean over cases of `Σ_k (p_k − [label = k])²`; 0..2 (Brier 1950)."""
    hits = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((probabilities - hits) ** 2).sum(axis=1).mean())


def negative_log_likelihood(probabilities: Floats, labels: Integers) -> float:
    """Mean of `−ln p(label)` in nats, ≥ 0; p is held above `SMALLEST`, and sums to 1 again."""
    wide = np.maximum(probabilities.astype(np.float64), SMALLEST)
    wide /= wide.sum(axis=1, keepdims=True)
    return float(-np.log(wide[np.arange(len(wide)), labels]).mean())


METRICS: dict[str, Metric] = {
    "ece": expected_calibration_error,
    "smooth_ece": smooth_calibration_error,
    "classwise_ece": classwise_calibration_error,
    "ace": adaptive_calibration_error,
    "brier": brier_score,
    "nll": negative_log_likelihood,
}
"""What reports give before and after recalibration."""

TITLES = {
    "ece": "ECE",
    "smooth_ece": "smooth ECE",
    "classwise_ece": "class-wise ECE",
    "ace": "ACE",
    "brier": "Brier",
    "nll": "NLL",
}
"""How reports call them."""


def floor(probabilities: Floats, metric: Metric, seed: int = 0, repetitions: int = 200) -> tuple[float, float]:
    """(mean, 95th percentile) of a metric if these probabilities were exactly right, at this n.

    Labels are drawn from the probabilities themselves. A finite n shows some calibration error even then: below the
    95th percentile there is nothing left to find.
    """
    random = np.random.default_rng(seed)
    cumulative = probabilities.astype(np.float64).cumsum(axis=1)
    cumulative /= cumulative[:, -1:]
    figures = [
        metric(probabilities, (random.random((len(cumulative), 1)) >= cumulative).sum(axis=1))
        for _ in range(repetitions)
    ]
    return float(np.mean(figures)), float(np.quantile(figures, 0.95))


def risk_coverage(score: Floats, loss: Floats) -> tuple[Floats, Floats]:
    """Coverage `[n]` = k/n and risk `[n]` = mean loss of the k cases of lowest score (El-Yaniv & Wiener 2010).

    Cases of equal score count with their common mean, so that their order cannot matter.
    """
    _, group, sizes = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=np.asarray(loss, dtype=np.float64)) / sizes
    ranked = np.repeat(means, sizes)
    kept = np.arange(1, len(ranked) + 1)
    return kept / len(ranked), ranked.cumsum() / kept


def risk_at(score: Floats, risk: Floats, coverage: float, weights: Floats | None = None) -> Any:
    """Selective risk: mean risk of the ⌈coverage·n⌉ cases of lowest score; 0..1. Of cases of equal score of which only
    some are kept each counts in part.

    Args:
        coverage: above 0, at most 1.
    """
    _, size, total, before = _in_order(score, risk, weights)
    kept = np.ceil(coverage * size.sum(axis=-1) - 1e-9)[..., None]
    share = np.clip(kept - before, 0.0, size) / np.maximum(size, 1.0)
    return (share * total).sum(axis=-1) / kept[..., 0]


def area_under_risk_coverage(score: Floats, risk: Floats, weights: Floats | None = None) -> Any:
    """AURC: mean of the risk over coverages 1/n … 1; 0..1, lower is better (Geifman et al. 2019).

    In closed form for cases of equal score: s cases of mean risk m after N cases of total risk L add
    `Σ_{j=1..s} (L + j·m)/(N + j)`, which is `s·m + (L − m·N)·(H(N+s) − H(N))` with the harmonic numbers H.
    """
    after, size, total, before = _in_order(score, risk, weights)
    risk_before = total.cumsum(axis=-1) - total
    level = total / np.maximum(size, 1.0)
    harmonic = np.r_[0.0, np.cumsum(1.0 / np.arange(1, int(after.max()) + 1))]
    steps = harmonic[after.astype(np.int64)] - harmonic[before.astype(np.int64)]
    return (total + (risk_before - level * before) * steps).sum(axis=-1) / after[..., -1]


def area_under_generalised_risk_coverage(score: Floats, risk: Floats, weights: Floats | None = None) -> Any:
    """AUGRC: area under the generalised risk `Σ_{kept} risk / n`, which a case that is set aside cannot raise, over
    coverage 0..1; 0..½, lower is better (Traub et al. 2024, arXiv 2407.01032).

    Of a loss of 0 and 1 it is the chance that of two cases drawn at random the first is kept at the second's threshold
    and wrong: `(1 − AUROC)·a·(1 − a) + (1 − a)²/2` with the accuracy a.
    """
    after, size, total, _ = _in_order(score, risk, weights)
    area = (size * (total.cumsum(axis=-1) - total / 2.0)).sum(axis=-1)
    return area / after[..., -1] ** 2


def excess_area_under_risk_coverage(score: Floats, risk: Floats, weights: Floats | None = None) -> Any:
    """E-AURC: AURC minus that of the oracle, which ranks by the risk itself; ≥ 0 (Geifman et al. 2019)."""
    return area_under_risk_coverage(score, risk, weights) - area_under_risk_coverage(risk, risk, weights)


def separation(values: Floats, low: NDArray[Any], high: NDArray[Any]) -> Any:
    """AUROC: the chance that a `high` case exceeds a `low` one, ties half. NaN if there is none of either.

    Args:
        values: `[n]`.
        low, high: `[n]` or `[R, n]`, how often each case counts on either side.
    """
    lows, highs = _by_value(values, low), _by_value(values, high)
    with np.errstate(invalid="ignore"):
        won = (highs * (lows.cumsum(axis=-1) - lows / 2.0)).sum(axis=-1)
        return won / (lows.sum(axis=-1) * highs.sum(axis=-1))


def _in_order(score: Floats, risk: Floats, weights: Floats | None) -> tuple[Floats, Floats, Floats, Floats]:
    """`[…, G]` of the groups of equal score, the lowest first: cases up to and with it, its cases, their total risk,
    cases before it."""
    weights = np.ones(len(score)) if weights is None else weights
    size, total = _by_value(score, weights), _by_value(score, weights * risk)
    after = size.cumsum(axis=-1)
    return after, size, total, after - size


def _by_value(values: Floats, of: NDArray[Any]) -> Floats:
    """`[…, G]`: `of` `[…, n]` summed over cases of equal value, values rising."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(values[order]) > 0])
    return np.asarray(np.add.reduceat(np.asarray(of, dtype=np.float64)[..., order], starts, axis=-1))
