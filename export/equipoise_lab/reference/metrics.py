"""How good probabilities are: overlap, accuracy and calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise_lab.reference.specs import Reference

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]

ECE_BINS = 15


def categorical(probabilities: Floats, activation: str) -> Floats:
    """Probabilities `[K, …]` with one channel for every answer: a sigmoid's `[1, …]` gains its complement as 0."""
    if activation == "softmax":
        return probabilities
    return np.concatenate([1 - probabilities, probabilities])


def dice_per_label(predicted: Integers, truth: Integers, labels: int) -> NDArray[np.float64]:
    """Dice of labels 1 … `labels` between two label maps `[*S]` → `[labels]` in [0, 1]; 1 where both lack it."""
    scores = np.ones(labels)
    for label in range(1, labels + 1):
        there, true = predicted == label, truth == label
        if size := int(there.sum() + true.sum()):
            scores[label - 1] = 2 * int((there & true).sum()) / size
    return scores


def is_loss(reference: Reference, predicted: Integers, truth: Integers) -> bool:
    """Whether accepting this answer would have been a mistake: mean Dice below the acceptable, or the wrong class.

    Args:
        predicted, truth: label maps `[*S]` or classes `[]`.
    """
    if reference.acceptable_dice is None:
        return bool(predicted != truth)
    labels = len(reference.classes) - (reference.activation == "softmax")
    return bool(dice_per_label(predicted, truth, labels).mean() < reference.acceptable_dice)


def expected_calibration_error(probabilities: Floats, truth: Integers) -> float:
    """Σ_b n_b/n · |accuracy_b − confidence_b| over equal bins of the top class's probability; in [0, 1].

    Guo et al., "On calibration of modern neural networks", ICML 2017.

    Args:
        probabilities: `[K, n]`.
        truth: classes `[n]`.
    """
    confidence, correct = probabilities.max(axis=0), probabilities.argmax(axis=0) == truth
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gap = np.bincount(bins, weights=correct - confidence.astype(np.float64), minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(truth))


def negative_log_likelihood(probabilities: Floats, truth: Integers) -> float:
    """Mean of −ln p(truth) in nat, ≥ 0; p is held above 1e-7. `[K, n]` against `[n]`."""
    chosen = np.take_along_axis(probabilities, truth[None].astype(np.int64), axis=0)[0]
    return float(-np.log(np.maximum(chosen, 1e-7), dtype=np.float64).mean())


def brier_score(probabilities: Floats, truth: Integers) -> float:
    """Mean of Σ_k (p_k − [truth = k])², in [0, 2] (Brier 1950). `[K, n]` against `[n]`."""
    hit = np.take_along_axis(probabilities, truth[None].astype(np.int64), axis=0)[0].astype(np.float64)
    return float(((probabilities.astype(np.float64) ** 2).sum(axis=0) - 2 * hit + 1).mean())
