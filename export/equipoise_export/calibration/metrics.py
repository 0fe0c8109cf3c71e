"""How good probabilities and scores are. Cases along the first axis: probabilities `[n, K]`, labels `[n]` in 0..K−1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Metric = Callable[[Floats, Integers], float]

BINS = 15
SMALLEST = 1e-7
"""Probabilities are held above this in logarithms."""


@dataclass(frozen=True)
class ReliabilityBin:
    """One bar of a reliability diagram: `count` cases, their mean confidence and how often they were right."""

    low: float
    high: float
    count: int
    confidence: float
    frequency: float


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


def reliability(confidence: Floats, hit: NDArray[Any], edges: Floats) -> list[ReliabilityBin]:
    """Bins with at least one case. `confidence` `[n]` in 0..1, `hit` `[n]` 0/1, `edges` `[bins + 1]` rising."""
    counts, sums, hits = bin_sums(confidence, hit, edges)
    return [
        ReliabilityBin(float(edges[b]), float(edges[b + 1]), int(n), float(sums[b] / n), float(hits[b] / n))
        for b, n in enumerate(counts)
        if n
    ]


def _gap(confidence: Floats, hit: NDArray[Any], edges: Floats) -> float:
    bins = reliability(confidence, hit, edges)
    return sum(b.count * abs(b.frequency - b.confidence) for b in bins) / len(confidence)


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


def class_calibration_errors(probabilities: Floats, labels: Integers) -> list[float]:
    """Per class: `Σ_b n_b/n · |frequency_b − probability_b|` over 15 equal-width bins; rare classes fail first."""
    return [_gap(p, labels == k, equal_widths()) for k, p in enumerate(probabilities.T)]


def brier_score(probabilities: Floats, labels: Integers) -> float:
    """Mean over cases of `Σ_k (p_k − [label = k])²`; 0..2 (Brier 1950)."""
    return float(class_brier_scores(probabilities, labels).sum())


def class_brier_scores(probabilities: Floats, labels: Integers) -> Floats:
    """Per class `[K]` the mean of `(p_k − [label = k])²`; 0..1; they sum to `brier_score`."""
    hits = labels[:, None] == np.arange(probabilities.shape[1])
    return np.asarray(((probabilities - hits) ** 2).mean(axis=0))


def negative_log_likelihood(probabilities: Floats, labels: Integers) -> float:
    """Mean of `−ln p(label)` in nats, ≥ 0."""
    wide = bounded(probabilities)
    return float(log_loss(labels, wide, labels=np.arange(wide.shape[1])))


def bounded(probabilities: Floats) -> Floats:
    """Held above `SMALLEST`, and summing to 1 again."""
    wide = np.maximum(probabilities.astype(np.float64), SMALLEST)
    return np.asarray(wide / wide.sum(axis=1, keepdims=True))


METRICS: dict[str, Metric] = {
    "ece": expected_calibration_error,
    "ace": adaptive_calibration_error,
    "brier": brier_score,
    "nll": negative_log_likelihood,
}
"""What the report gives before and after calibration."""


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


def area_under_risk_coverage(score: Floats, loss: Floats) -> float:
    """AURC: mean of the risk over coverages 1/n … 1; 0..1, lower is better (Geifman et al. 2019)."""
    return float(risk_coverage(score, loss)[1].mean())


def excess_area_under_risk_coverage(score: Floats, loss: Floats) -> float:
    """E-AURC: AURC minus that of the oracle, which ranks by the loss itself; ≥ 0 (Geifman et al. 2019)."""
    return area_under_risk_coverage(score, loss) - area_under_risk_coverage(np.asarray(loss, dtype=np.float64), loss)


def accuracy_at(score: Floats, loss: Floats, coverage: float) -> float:
    """`1 − risk` of the ⌈coverage·n⌉ most certain cases; 0..1."""
    _, risk = risk_coverage(score, loss)
    return float(1.0 - risk[int(np.ceil(coverage * len(risk) - 1e-9)) - 1])


def separation(low: Floats, high: Floats) -> float:
    """AUROC: the chance that a number of `high` exceeds one of `low`, ties half. NaN if either is empty."""
    if not len(low) or not len(high):
        return float("nan")
    return float(roc_auc_score(np.r_[np.zeros(len(low)), np.ones(len(high))], np.r_[low, high]))
