"""Case scores: one number per image that routing can look at. Higher always means less certain.

None is normalised by the image's own minimum and maximum, so a score means the same for every case.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .contract import Activation, Contract, Task
from .moments import Array
from .numeric import dot, mean, total
from .uncertainty import NumberUncertainty, Uncertainty

Score = Callable[[Contract, Uncertainty], float]


def lack_of_confidence(contract: Contract, uncertainty: Uncertainty) -> float:
    """`1 − max_k p̄_k` (softmax, 0..1−1/K); the least certain label's `1 − max(p̄, 1−p̄)` (sigmoid, 0..½)."""
    mean = uncertainty.mean
    if contract.activation is Activation.SOFTMAX:
        return float(1.0 - mean.max())
    return float(np.minimum(mean, 1.0 - mean).max())


def predictive_entropy(contract: Contract, uncertainty: Uncertainty) -> float:
    """`H[p̄]` in nats; the least certain label's for sigmoid."""
    return float(uncertainty.total.max())


def mutual_information(contract: Contract, uncertainty: Uncertainty) -> float:
    """BALD in nats (Houlsby et al. 2011); the least certain label's for sigmoid."""
    return float(uncertainty.epistemic.max())


def standard_deviation(contract: Contract, uncertainty: Uncertainty) -> float:
    """Of a new measurement, √(aleatoric + epistemic), in the target's unit; of several targets the largest, each in its
    own. A policy says what is tolerated of each, and looks at `intervals.RELATIVE_WIDTH`."""
    assert isinstance(uncertainty, NumberUncertainty)
    return float(uncertainty.deviation.max())


def epistemic_deviation(contract: Contract, uncertainty: Uncertainty) -> float:
    """How far the samples' numbers lie apart: their standard deviation (√epistemic), with several targets as above."""
    return math.sqrt(float(uncertainty.epistemic.max()))


def sample_disagreement(contract: Contract, uncertainty: Uncertainty) -> float:
    """1 − pooled pairwise soft Dice between samples, over all foreground classes; 0..1.

    `Dice = Σ_v Σ_{s≠t} p_s p_t / ((T−1) Σ_v Σ_t p_t) = (Σ_v S² − Σ_v Q) / ((T−1) Σ_v S)` with S = Σ_t p_t and
    Q = Σ_t p_t²: it follows from the moments, so chunking cannot change it. 1 (no evidence of agreement) where a
    single sample was drawn or no sample saw any foreground.
    """
    moments = uncertainty.moments
    sums = _foreground(contract, moments.sum_p)
    most = total(sums) * (moments.samples - 1)
    pairs = dot(sums, sums) - total(_foreground(contract, moments.sum_p2))
    return 1.0 - (pairs / most if most > 0.0 else 0.0)


def lack_of_soft_dice_confidence(contract: Contract, uncertainty: Uncertainty) -> float:
    """1 − Soft Dice Confidence `2 Σ p̄ ŷ / Σ (p̄ + ŷ)` over foreground (arXiv 2402.10665; Buddenkotte's predicted DSC).

    0..1; 1 where no foreground is predicted.
    """
    labels, p = uncertainty.labels, _foreground(contract, uncertainty.mean)
    if contract.activation is Activation.SOFTMAX:
        agreed = sum(_within(labels == index, p[row]) for row, index in enumerate(contract.foreground))
    else:
        agreed = _within(labels, p)
    mass = total(p) + np.count_nonzero(labels)
    return 1.0 - 2.0 * agreed / mass if mass > 0.0 else 1.0


def volume_variation(contract: Contract, uncertainty: Uncertainty) -> float:
    """Coefficient of variation (sd/mean, ≥ 0) of the samples' foreground volume; 1 where there is none to speak of."""
    volumes = uncertainty.moments.volumes[:, len(contract.classes) - len(contract.foreground) :].sum(axis=1)
    middle = mean(volumes)
    if len(volumes) < 2 or middle <= 0.0:
        return 1.0
    volumes -= middle
    return math.sqrt(dot(volumes, volumes) / (len(volumes) - 1)) / middle


def rim_epistemic(contract: Contract, uncertainty: Uncertainty) -> float:
    """Mean epistemic entropy (nats) inside the predicted foreground and its rim of one voxel; the image's highest
    where no foreground is predicted."""
    return _mean_at_foreground(contract, uncertainty, uncertainty.epistemic)


def rim_uncertainty(contract: Contract, uncertainty: Uncertainty) -> float:
    """The same mean of the network's own ranking of its voxels, in its own unit, ≥ 0."""
    return _mean_at_foreground(contract, uncertainty, uncertainty.stated)


def _mean_at_foreground(contract: Contract, uncertainty: Uncertainty, maps: Array) -> float:
    region = _dilated(uncertainty.labels.any(axis=0))
    highest = maps[0] if len(maps) == 1 else maps.max(axis=0)
    count = np.count_nonzero(region)
    return _within(region, highest) / count if count else float(highest.max())


def _foreground(contract: Contract, maps: Array) -> Array:
    """The foreground classes' part of `[K, *S]`: they are the last ones."""
    return maps[len(contract.classes) - len(contract.foreground) :]


def _within(region: NDArray[np.bool_] | NDArray[np.uint8], values: Array) -> float:
    """Sum of the values in a region of zeros and ones; `values[region]` alone takes many times as long."""
    return dot(values, region.astype(values.dtype))


def _dilated(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The region and its face neighbours."""
    grown = region.copy()
    flat = grown.reshape(-1)
    for axis, size in enumerate(region.shape):
        step = math.prod(region.shape[axis + 1 :])  # shifts of the flat array: many times longer rows
        for end, target, source in ((-1, slice(step, None), slice(-step)), (0, slice(-step), slice(step, None))):
            inner = region.copy()
            inner[(slice(None),) * axis + (end,)] = False  # has its neighbour in the next row
            if size > 1:
                flat[target] |= inner.reshape(-1)[source]
    return grown


SCORES: dict[Task, dict[str, Score]] = {
    Task.CLASSIFICATION: {
        "lack_of_confidence": lack_of_confidence,
        "predictive_entropy": predictive_entropy,
        "mutual_information": mutual_information,
    },
    Task.SEGMENTATION: {
        "sample_disagreement": sample_disagreement,
        "lack_of_soft_dice_confidence": lack_of_soft_dice_confidence,
        "volume_variation": volume_variation,
        "rim_epistemic": rim_epistemic,
    },
    Task.REGRESSION: {
        "standard_deviation": standard_deviation,
        "epistemic_deviation": epistemic_deviation,
    },
}
"""Every score of a task by name; the first that a model has is the one reported where no policy chose another."""

STATED_SCORES = {"rim_uncertainty": rim_uncertainty}
"""Of a segmentation that states its moments, besides."""

COMPARING = {"sample_disagreement", "volume_variation"}
"""Scores that compare samples: a single pass has none to compare."""

EPISTEMIC = {"mutual_information", "rim_epistemic", "epistemic_deviation"}
"""Scores of the epistemic part: a single pass has one only where the network states it."""


def scores_of(contract: Contract) -> dict[str, Score]:
    """The scores that say something about this model's answers, by name."""
    scores = {**SCORES[contract.task], **(STATED_SCORES if contract.states_moments else {})}
    silent = set() if contract.varies else COMPARING if contract.states_moments else COMPARING | EPISTEMIC
    return {name: score for name, score in scores.items() if name not in silent}


def case_scores(contract: Contract, uncertainty: Uncertainty) -> dict[str, float]:
    """All scores of the contract, by name."""
    return {name: score(contract, uncertainty) for name, score in scores_of(contract).items()}


def default_score(contract: Contract) -> str:
    """The score reported where no policy chose one."""
    return next(iter(scores_of(contract)))
